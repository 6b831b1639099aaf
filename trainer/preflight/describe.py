"""Describe a run in a few lines, printed before its first step."""

from __future__ import annotations

from typing import Literal

from dataengine.config.schema import Config
from dataengine.hardware.sizes import checkpoint_bytes, num_parameters
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings
from dataengine.schedule.stages import by_entry, stage_rows
from dataengine.storage.paths import is_url
from dataengine.tables import size_words, table
from trainer.checkpoints.steps import kept_checkpoints, last_step
from trainer.run.ranks import count_ranks


def describe(
    config: Config,
    manifest: Manifest,
    world_size: int,
    microbatch: int | None = None,
    *,
    settings: Settings,
    first: int = 0,
) -> str:
    """Describe model, data, batches, checkpoints, places and stages, with the learning rate from step `first` on.

    `microbatch`: the size that `auto` chose.
    """
    steps, of_rank = last_step(config.train.max_steps, manifest.schedule), manifest.batch_size // world_size
    size: int | Literal["auto"] = microbatch or config.train.microbatch_size
    if size == "auto":
        split = "microbatches as large as fit"
    else:
        split = f"microbatches of {min(size, of_rank)}, {-(-of_rank // size)} per step"
    tokens = steps * manifest.batch_size * manifest.seq_len
    bytes_each, kept = checkpoint_bytes(config.model, manifest.vocab_size), kept_checkpoints(config, manifest)
    batch = f"{manifest.batch_size:,} samples of {manifest.seq_len:,} tokens on {count_ranks(world_size)}"
    rows = [
        ("experiment", f"{config.name}, plan {manifest.plan_id[:12]}"),
        ("model", f"{num_parameters(config.model, manifest.vocab_size):,} parameters"),
        ("training", f"{steps:,} of {manifest.schedule.steps:,} steps, {tokens:,} tokens"),
        ("batch", f"{batch}: {of_rank} per rank, {split}"),
        ("checkpoints", f"{size_words(bytes_each)} each, {kept} kept: {size_words(kept * bytes_each)}"),
        ("out", config.out),
        ("store", config.store + (f", cached in {config.cache}" if is_url(config.store) else "")),
    ]
    if config.init:
        init = config.init
        where = f"{init.hf} ({init.revision or 'a folder'})" if init.hf else f"{init.checkpoint} ({init.mode})"
        rows.append(("starts from", where))
    stages = [("stage", "from step", "steps", "samples by stream", "learning rate")]
    for row in stage_rows(manifest.schedule):
        drawn = ", ".join(f"{name} {count:,}" for name, count in sorted(by_entry(row.drawn).items()))
        rate = settings.describe(max(row.start, first), min(row.start + row.steps, steps))
        stages.append((row.name, f"{row.start:,}", f"{row.steps:,}", drawn, rate))
    return "\n".join([*table(rows, left=(0, 1)), "", *table(stages, left=(0, 3, 4))])
