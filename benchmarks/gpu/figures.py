"""Compute the memory of steps without a GPU."""

from __future__ import annotations

from typing import Any

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.hardware.fitting import Work
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from trainer.model.memory import step_bytes

Question = tuple[int, int, bool]  # microbatch, ranks, activation checkpointing


def answer(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the bytes of each of `questions`, and with a `room` of one rank the microbatch that `auto` takes.

    Other keys: `model`, `seq_len`, `vocab_size`, `batch_size`.
    """
    model, batch = ModelConfig(**settings["model"]), settings["batch_size"]
    stages = (Stage("all", 1, {"mono": batch}),)
    manifest = Manifest("m", "t", settings["vocab_size"], 2, settings["seq_len"], batch, 1, 17, 8, (), stages)
    questions: list[Question] = settings["questions"]
    found: dict[str, Any] = {
        "bytes": [
            step_bytes(model, manifest, size, shard_ranks=ranks, recompute=recompute)
            for size, ranks, recompute in questions
        ]
    }
    if "room" in settings:
        found["auto"], _ = Work(model, manifest, TrainConfig(), 1, step_bytes).largest(settings["room"])
    return found
