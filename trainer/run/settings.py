"""OUT/settings.jsonl: which `train` settings each step of a run was trained with. Needs no Composer.

A line for each change: {"from_step": 400, "train": {...}, "restarts": [300]}. `train` leaves out settings that change
no number of a run; `restarts` are the steps from which the learning rate warms up and decays anew. `end`, if the rate
goes by it (`train.decay_steps: end`), is the number of the plan's steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import Field, PlainValidator

from dataengine.config.fields import decision_of
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.config.training import TrainConfig
from dataengine.errors import InputError
from dataengine.json_files import decode
from dataengine.schedule.manifest import read_manifest
from dataengine.schedule.rates import Settings, planned_settings
from dataengine.schedule.slots import Schedule

log = logging.getLogger(__name__)

SETTINGS = "settings.jsonl"

_DECIDE = {name for name in TrainConfig.model_fields if decision_of(TrainConfig, name) != "nothing"}

_Step = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class _Change:
    """A line of the file: what steps are trained with from one on."""

    from_step: _Step
    """First step trained with these settings."""
    train: Annotated[TrainConfig, PlainValidator(TrainConfig.model_validate)]
    """The `train` settings that change a run's numbers."""
    restarts: tuple[_Step, ...] | None = None
    """Steps from which the learning rate warms up and decays again. Earlier versions do not state them."""
    end: Annotated[int, Field(ge=1)] | None = None
    """Steps of the plan, if `train.decay_steps` is `end`; else left out."""

    def __post_init__(self) -> None:
        if self.train.decay_steps == "end" and self.end is None:
            raise ValueError("end is missing")
        if any(a >= b for a, b in pairwise(self.restarts or ())):
            raise ValueError(f"restarts {list(self.restarts or ())} do not ascend")


History = list[tuple[int, Settings]]  # first step of each, ascending


def read_history(folder: Path) -> History:
    """Read the settings of a run's steps; without the file, those of its config.yaml; empty without either.

    Raises InputError if the file is damaged.
    """
    path, config = folder / SETTINGS, folder / "config.yaml"
    if path.is_file():
        return parse_history(path.read_bytes(), str(path), partial(_unstated_restarts, folder))
    if config.is_file():
        return [(0, Settings(load_config(config).train, _unstated_restarts(folder)))]
    return []


def _unstated_restarts(folder: Path) -> tuple[int, ...]:
    """Those of a run of a version that wrote none down: it went by names alone, those of a parent's stages too."""
    if not (folder / "config.yaml").is_file() or not (folder / "manifest.json").is_file():
        return ()
    try:
        config, manifest = load_config(folder / "config.yaml"), read_manifest(folder / "manifest.json")
    except InputError as error:  # no training is lost for it
        log.warning("%s Whether the learning rate was restarted in the past is not known", error)
        return ()
    return planned_settings(config, replace(manifest.schedule, fork=0)).restarts


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


def parse_history(content: bytes, place: str, unstated: Callable[[], tuple[int, ...]] = tuple) -> History:
    """Read the settings that a file states; `unstated` gives the restarts for lines of earlier versions, without them.

    Raises InputError if the file is damaged.
    """
    history: History = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            change = decode(_Change, line)
            if history and change.from_step <= history[-1][0]:
                raise ValueError(f"from_step {change.from_step} is none after the line before")
        except ValueError as error:
            raise InputError(
                f"{place} is damaged, line {number}: {error}. Mend or remove it; without it config.yaml counts."
            ) from None
        restarts = unstated() if change.restarts is None else change.restarts
        history.append((change.from_step, Settings(change.train, restarts, change.end)))
    return history


def settings_at(history: History, step: int) -> Settings | None:
    """Those that a step was trained with; None if that is not known."""
    return next((settings for begin, settings in reversed(history) if begin <= step), None)


def settings_from(history: History, step: int, config: Config, schedule: Schedule) -> Settings:
    """Those of a run that goes on at a step: the config's.

    But for restarts before that step, or of a parent's stages, which are those of the history: else the rate of a step
    would change with a config that names other stages, or the same ones otherwise.
    """
    planned, before = planned_settings(config, schedule), settings_at(history, step - 1)
    if before is None:
        return planned
    border = max(step, schedule.fork)
    kept = [restart for restart in before.restarts if restart < border]
    return replace(planned, restarts=(*kept, *(restart for restart in planned.restarts if restart >= border)))


def with_settings(history: History, step: int, settings: Settings) -> History:
    """The history of a run that goes on at a step: what was said of this step and later ones is forgotten."""
    kept = history_before(history, step)
    return kept if kept and not differences(kept[-1][1], settings) else [*kept, (step, settings)]


def history_before(history: History, step: int) -> History:
    """What is said of the steps before a step."""
    return [(begin, settings) for begin, settings in history if begin < step]


def differences(before: Settings, now: Settings) -> list[tuple[str, object, object]]:
    """Settings that change a run's numbers and differ: key, then, now."""
    found: list[tuple[str, object, object]] = [
        (f"train.{name}", _value(before, name), _value(now, name))
        for name in TrainConfig.model_fields
        if name in _DECIDE and _value(before, name) != _value(now, name)
    ]
    if before.restarts != now.restarts:
        found.append(("restart_learning_rate", _places(before.restarts), _places(now.restarts)))
    return found


def _value(settings: Settings, name: str) -> object:
    if name == "decay_steps" and settings.end is not None:
        return f"end (step {settings.end:,})"
    return getattr(settings.train, name)


def _places(steps: Sequence[int]) -> str:
    return f"at step {', '.join(f'{step:,}' for step in steps)}" if steps else "at no step"


def tell_changes(
    history: History,
    step: int,
    config: Config,
    schedule: Schedule,
    words: str = "%s was %s so far and is %s from here on",
) -> None:
    """Say what differs from the settings of the step before `step`; it may, but not unseen."""
    before = settings_at(history, step - 1)
    for change in differences(before, settings_from(history, step, config, schedule)) if before else ():
        log.warning(words, *change)
    for sentence in late_restarts(history, step, config, schedule):
        log.warning("%s", sentence)


def late_restarts(history: History, step: int, config: Config, schedule: Schedule) -> list[str]:
    """A sentence for each stage begun before a step whose restart the config has otherwise than it was."""
    before = settings_at(history, step - 1)
    if before is None:
        return []
    planned = planned_settings(config, schedule).restarts
    changed = sorted(one for one in {*before.restarts} ^ {*planned} if schedule.fork <= one < step)
    return [
        f"restart_learning_rate of stage '{schedule.stages[schedule.stage_index(start)].name}' is "
        f"{str(start in planned).lower()}, but the stage began at step {start:,} "
        f"{'without' if start in planned else 'with'} a restart: this changes nothing any more"
        for start in changed
    ]


def dump_history(history: History) -> bytes:
    """The file's content."""
    return b"".join(
        orjson.dumps(
            {
                "from_step": step,
                "train": settings.train.model_dump(mode="json", include=_DECIDE),
                "restarts": settings.restarts,
                **({"end": settings.end} if settings.end else {}),
            }
        )
        + b"\n"
        for step, settings in history
    )
