"""OUT/settings.jsonl: the `train` settings of each step of a run. Does not need Composer.

One line for each change: {"from_step": 400, "train": {...}, "restarts": [300]}. `train` contains only settings that
change the numbers of a run. `restarts` are the steps at which the learning rate starts a new warmup and decay. `end` is
the number of steps of the plan, with `train.decay_steps: end`. `stages` are the stages that state a schedule.
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
from dataengine.schedule.rates import Settings, StageRate, planned_settings
from dataengine.schedule.slots import Schedule

log = logging.getLogger(__name__)

SETTINGS = "settings.jsonl"

_DECIDE = {name for name in TrainConfig.model_fields if decision_of(TrainConfig, name) != "nothing"}

_Step = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class _Change:
    """A line of the file: the settings from one step on."""

    from_step: _Step
    """First step trained with these settings."""
    train: Annotated[TrainConfig, PlainValidator(TrainConfig.model_validate)]
    """The `train` settings that change a run's numbers."""
    restarts: tuple[_Step, ...] | None = None
    """Steps from which the learning rate warms up and decays again. Earlier versions do not state them."""
    end: Annotated[int, Field(ge=1)] | None = None
    """Steps of the plan, if `train.decay_steps` is `end`; else left out."""
    stages: tuple[StageRate, ...] = ()
    """The stages that state a learning rate schedule of their own; left out if there are none."""

    def __post_init__(self) -> None:
        if self.train.decay_steps == "end" and self.end is None:
            raise ValueError("end is missing")
        if any(a >= b for a, b in pairwise(self.restarts or ())):
            raise ValueError(f"restarts {list(self.restarts or ())} do not ascend")


History = list[tuple[int, Settings]]  # first step of each, in ascending order


def read_history(folder: Path) -> History:
    """Read the settings of a run's steps: from the file, else from its config.yaml, else none.

    Raises InputError if the file is damaged.
    """
    path, config = folder / SETTINGS, folder / "config.yaml"
    if path.is_file():
        return parse_history(path.read_bytes(), str(path), partial(_unstated_restarts, folder))
    if config.is_file():
        return [(0, Settings(load_config(config).train, _unstated_restarts(folder)))]
    return []


def _unstated_restarts(folder: Path) -> tuple[int, ...]:
    """Return the restarts of a run whose version did not record them. It matched names, also of a parent's stages."""
    if not (folder / "config.yaml").is_file() or not (folder / "manifest.json").is_file():
        return ()
    try:
        config, manifest = load_config(folder / "config.yaml"), read_manifest(folder / "manifest.json")
    except InputError as error:  # not a reason to stop a training
        log.warning("%s Earlier restarts of the learning rate are unknown", error)
        return ()
    return planned_settings(config, replace(manifest.schedule, fork=0)).restarts


def put_aside_damaged(folder: Path) -> History:
    """Read the settings of a run that resumes. A damaged file is renamed and does not stop the training."""
    try:
        return read_history(folder)
    except InputError as error:
        if not (folder / SETTINGS).is_file():
            raise
        aside = (folder / SETTINGS).replace(folder / "settings.damaged.jsonl")
        log.warning("%s It was renamed to %s", error, aside)
        return read_history(folder)


def parse_history(content: bytes, place: str, unstated: Callable[[], tuple[int, ...]] = tuple) -> History:
    """Parse the content of a settings file. `unstated` returns the restarts for lines of versions that lack them.

    Raises InputError if the file is damaged.
    """
    history: History = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            change = decode(_Change, line)
            if history and change.from_step <= history[-1][0]:
                raise ValueError(f"from_step {change.from_step} is not after that of the line before")
        except ValueError as error:
            raise InputError(
                f"{place} is damaged, line {number}: {error}. Fix or remove it; without it config.yaml counts."
            ) from None
        restarts = unstated() if change.restarts is None else change.restarts
        history.append((change.from_step, Settings(change.train, restarts, change.end, change.stages)))
    return history


def settings_at(history: History, step: int) -> Settings | None:
    """Return the settings that a step was trained with; None if unknown."""
    return next((settings for begin, settings in reversed(history) if begin <= step), None)


def settings_from(history: History, step: int, config: Config, schedule: Schedule) -> Settings:
    """Return the config's settings for a run that resumes at a step.

    Restarts before that step, and all of a parent's stages, come from the history. Otherwise renaming a stage in the
    config would change the learning rate of later steps.
    """
    planned, before = planned_settings(config, schedule), settings_at(history, step - 1)
    return planned if before is None else planned.after(before, step, schedule.fork)


def with_settings(history: History, step: int, settings: Settings) -> History:
    """Return the history of a run that resumes at a step, without earlier entries for this step and later ones."""
    kept = history_before(history, step)
    return kept if kept and not differences(kept[-1][1], settings) else [*kept, (step, settings)]


def history_before(history: History, step: int) -> History:
    """Return the entries before a step."""
    return [(begin, settings) for begin, settings in history if begin < step]


def differences(before: Settings, now: Settings) -> list[tuple[str, object, object]]:
    """Return the differing settings that change a run's numbers: (key, before, now)."""
    found: list[tuple[str, object, object]] = [
        (f"train.{name}", _value(before, name), _value(now, name))
        for name in TrainConfig.model_fields
        if name in _DECIDE and _value(before, name) != _value(now, name)
    ]
    if before.restarts != now.restarts:
        found.append(("restart_learning_rate", _places(before.restarts), _places(now.restarts)))
    if before.stages != now.stages:
        found.append(("schedule of stages", _stages(before.stages), _stages(now.stages)))
    return found


def _value(settings: Settings, name: str) -> object:
    if name == "decay_steps" and settings.end is not None:
        return f"end (step {settings.end:,})"
    return getattr(settings.train, name)


def _places(steps: Sequence[int]) -> str:
    return f"at step {', '.join(f'{step:,}' for step in steps)}" if steps else "at no step"


def _stages(stages: Sequence[StageRate]) -> str:
    return ", ".join(map(str, stages)) or "that of train"


def warn_of_changes(
    history: History,
    step: int,
    config: Config,
    schedule: Schedule,
    words: str = "%s was %s until now and is %s from here on",
) -> None:
    """Warn of each setting that differs from those of the step before `step`."""
    before = settings_at(history, step - 1)
    for change in differences(before, settings_from(history, step, config, schedule)) if before else ():
        log.warning(words, *change)
    for sentence in late_restarts(history, step, config, schedule):
        log.warning("%s", sentence)


def late_restarts(history: History, step: int, config: Config, schedule: Schedule) -> list[str]:
    """Return a sentence for each stage that started before `step` and whose restart the config changed."""
    before = settings_at(history, step - 1)
    if before is None:
        return []
    planned = planned_settings(config, schedule).restarts
    changed = sorted(one for one in {*before.restarts} ^ {*planned} if schedule.fork <= one < step)
    return [
        f"restart_learning_rate of stage '{schedule.stages[schedule.stage_index(start)].name}' is "
        f"{str(start in planned).lower()}, but the stage began at step {start:,} "
        f"{'without' if start in planned else 'with'} a restart: the change has no effect"
        for start in changed
    ]


def dump_history(history: History) -> bytes:
    """Return the content of the file."""
    return b"".join(
        orjson.dumps(
            {
                "from_step": step,
                "train": settings.train.model_dump(mode="json", include=_DECIDE),
                "restarts": settings.restarts,
                **({"end": settings.end} if settings.end else {}),
                **({"stages": settings.stages} if settings.stages else {}),
            }
        )
        + b"\n"
        for step, settings in history
    )
