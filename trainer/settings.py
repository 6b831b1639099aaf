"""OUT/settings.jsonl: which `train` settings each step of a run was trained with. Needs no Composer.

A line for each change: {"from_step": 400, "train": {...}}, without settings that change no number of a run.
"""

from __future__ import annotations

import logging
from pathlib import Path

import orjson
from pydantic import ValidationError

from dataengine.config import TrainConfig, decision_of, load_config
from dataengine.errors import InputError

log = logging.getLogger(__name__)

SETTINGS = "settings.jsonl"

_DECIDE = {name for name in TrainConfig.model_fields if decision_of(TrainConfig, name) != "nothing"}

History = list[tuple[int, TrainConfig]]  # first step of each, ascending


def read_history(folder: Path) -> History:
    """The settings of a run's steps; of a run without the file, those of its config.yaml; empty without either.

    Raises InputError if the file is damaged.
    """
    path = folder / SETTINGS
    if path.is_file():
        return parse_history(path.read_bytes(), str(path))
    if (folder / "config.yaml").is_file():
        return [(0, load_config(folder / "config.yaml").train)]
    return []


def put_aside_damaged(folder: Path) -> History:
    """The same of a run that goes on, which no training is lost for: a damaged file gets another name."""
    try:
        return read_history(folder)
    except InputError as error:
        if not (folder / SETTINGS).is_file():
            raise
        aside = (folder / SETTINGS).replace(folder / "settings.damaged.jsonl")
        log.warning("%s It is now %s", error, aside)
        return read_history(folder)


def parse_history(content: bytes, place: str) -> History:
    """The settings that a file states. Raises InputError if it is damaged."""
    history: History = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry = orjson.loads(line)
            step, train = entry["from_step"], TrainConfig.model_validate(entry["train"])
            if not isinstance(step, int) or step < 0 or (history and step <= history[-1][0]):
                raise ValueError(f"from_step {step} is none after the line before")
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{place} is damaged, line {number}: {reason}. Mend or remove it; without it config.yaml counts."
            ) from None
        history.append((step, train))
    return history


def settings_at(history: History, step: int) -> TrainConfig | None:
    """Those that a step was trained with; None if that is not known."""
    return next((train for begin, train in reversed(history) if begin <= step), None)


def with_settings(history: History, step: int, train: TrainConfig) -> History:
    """The history of a run that goes on at a step: what was said of this step and later ones is forgotten."""
    kept = [(begin, before) for begin, before in history if begin < step]
    return kept if kept and not differences(kept[-1][1], train) else [*kept, (step, train)]


def differences(before: TrainConfig, now: TrainConfig) -> list[tuple[str, object, object]]:
    """Settings that change a run's numbers and differ: name, then, now."""
    return [
        (name, getattr(before, name), getattr(now, name))
        for name in TrainConfig.model_fields
        if name in _DECIDE and getattr(before, name) != getattr(now, name)
    ]


def dump_history(history: History) -> bytes:
    """The file's content."""
    return b"".join(
        orjson.dumps({"from_step": step, "train": train.model_dump(mode="json", include=_DECIDE)}) + b"\n"
        for step, train in history
    )
