"""The learning rate as a function of the step, and what it follows from."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dataengine.config import Config, TrainConfig
from dataengine.schedule import Schedule


@dataclass(frozen=True)
class Settings:
    """What a step is trained with beside its samples."""

    train: TrainConfig
    restarts: tuple[int, ...] = ()  # steps, ascending, from which the learning rate warms up and decays anew
    end: int | None = None  # steps of the plan, if the rate goes by them (`train.decay_steps: end`)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(step, self.train, self.restarts, self.end)


def learning_rate(step: int, train: TrainConfig, restarts: Sequence[int] = (), end: int | None = None) -> float:
    """The rate of step number `step`, counted from 0 or from the last of `restarts` that is not after it.

    Linear warm-up that reaches `learning_rate` at the last of `warmup_steps` steps, then a cosine to
    `min_learning_rate` at `decay_steps` and constant from there (paper, table 10; the reference code's horizon is far
    beyond its runs). The reference counts micro-batches, so its warm-up lags ours by a quarter of a step.
    """
    begin = max((restart for restart in restarts if restart <= step), default=0)
    step -= begin
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if step >= train.decay_steps:
        return train.min_learning_rate
    done = (step - train.warmup_steps) / (train.decay_steps - train.warmup_steps)
    span = train.learning_rate - train.min_learning_rate
    return train.min_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


def planned_settings(config: Config, schedule: Schedule) -> Settings:
    """What a config says of the steps that are not a parent's."""
    names = {stage.name for stage in config.stages if stage.restart_learning_rate}
    return Settings(config.train, tuple(restart_steps(schedule, names)))


def restart_steps(schedule: Schedule, names: Collection[str]) -> list[int]:
    """First steps of the stages of these names, a parent's left out; a later piece of one stage does not count."""
    first: dict[str, int] = {}
    for stage, start in zip(schedule.stages, schedule.stage_starts, strict=True):
        if start >= schedule.fork:
            first.setdefault(stage.name, start)
    return [start for name, start in first.items() if name in names]
