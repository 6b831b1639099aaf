"""The learning rate as a function of the step, and the settings that decide it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dataengine.config.schema import Config
from dataengine.config.training import InitConfig, TrainConfig
from dataengine.schedule.slots import Schedule


@dataclass(frozen=True)
class Settings:
    """The settings of a step, besides its samples."""

    train: TrainConfig
    restarts: tuple[int, ...] = ()  # ascending steps at which the learning rate restarts its warm-up and decay
    end: int | None = None  # steps of the plan, if the rate depends on them (`train.decay_steps: end`)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(step, self.train, self.restarts, self.end)

    def describe(self, first: int, last: int) -> str:
        """The rates at step `first`, at the end of a warm-up, and before `last`; empty if there are no steps.

        The rate does not restart inside a stage.
        """
        top = _begin(first, self.restarts) + self.train.warmup_steps - 1
        turns = [first, *([top] if first < top < last - 1 else []), last - 1]
        return " -> ".join(f"{self.rate(step):.2e}" for step in turns) if first < last else ""


def learning_rate(step: int, train: TrainConfig, restarts: Sequence[int] = (), end: int | None = None) -> float:
    """The rate of step number `step`, counted from 0 or from the last of `restarts` that is not after it.

    Linear warm-up that reaches `learning_rate` at the last of `warmup_steps` steps, then a cosine to
    `min_learning_rate` at `decay_steps`, then constant (paper, table 10; in the reference code, the cosine ends long
    after its runs). The reference counts microbatches, so its warm-up lags ours by a quarter of a step. If
    `decay_steps` is `end`, the cosine ends at `end`, the number of steps of the plan.
    """
    begin = _begin(step, restarts)
    horizon = _horizon(train, begin, end)
    step -= begin
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if step >= horizon:
        return train.min_learning_rate
    done = (step - train.warmup_steps) / (horizon - train.warmup_steps)
    span = train.learning_rate - train.min_learning_rate
    return train.min_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


def _begin(step: int, restarts: Sequence[int]) -> int:
    """The last restart at or before a step."""
    return max((restart for restart in restarts if restart <= step), default=0)


def _horizon(train: TrainConfig, begin: int, end: int | None) -> int:
    """Steps from a restart to the end of its decay."""
    if train.decay_steps != "end":
        return train.decay_steps
    assert end is not None, "decay_steps `end` goes with the steps of a plan"
    return end - begin


def horizon_notes(settings: Settings, steps: int, *, first: int = 0, init: InitConfig | None = None) -> list[str]:
    """Notes on a rate that only rises, hardly falls or stays at its minimum in steps `first` to `steps`.

    The paper's rate falls by only 3 %: its cosine is nine times as long as its run. The cosine of a second stage in a
    short run of its own also ends long after the run.
    """
    train, horizon = settings.train, settings.train.decay_steps
    begins = [0, *settings.restarts]
    spans = [(begin, end) for begin, end in zip(begins, [*settings.restarts, steps], strict=True) if end > first]
    longest, is_second_stage = max(end - begin for begin, end in spans), init and init.mode != "continue"
    if longest < train.warmup_steps and not is_second_stage:
        return [
            f"the learning rate ends at {settings.rate(steps - 1):.4e}, within its warm-up: train.warmup_steps is "
            f"{train.warmup_steps:,} in a run of {steps:,} steps. Lower it"
        ]
    if horizon == "end" or train.min_learning_rate >= train.learning_rate:
        return []
    flat = sum(max(0, end - max(begin + horizon, first)) for begin, end in spans)
    if 2 * flat > steps - first:
        return [
            f"the learning rate is at train.min_learning_rate in {flat:,} of {steps - first:,} steps, because "
            f"train.decay_steps is {horizon:,}. With train.decay_steps=end it falls until the end"
        ]
    if horizon > 10 * longest and not is_second_stage:
        return [
            f"the learning rate hardly falls: it ends at {settings.rate(steps - 1):.4e} of {train.learning_rate:.4e}, "
            f"because train.decay_steps is {horizon:,} in a run of {steps:,} steps. With "
            "train.decay_steps=end it falls to train.min_learning_rate"
        ]
    return []


def planned_settings(config: Config, schedule: Schedule) -> Settings:
    """The settings that a config gives for its own steps, without those of a parent."""
    names = {stage.name for stage in config.stages if stage.restart_learning_rate}
    end = schedule.steps if config.train.decay_steps == "end" else None
    return Settings(config.train, tuple(restart_steps(schedule, names)), end)


def restart_steps(schedule: Schedule, names: Collection[str]) -> list[int]:
    """First steps of the stages with these names. Stages of a parent and later pieces of a stage do not count."""
    first: dict[str, int] = {}
    for stage, start in zip(schedule.stages, schedule.stage_starts, strict=True):
        if start >= schedule.fork:
            first.setdefault(stage.name, start)
    return [start for name, start in first.items() if name in names]
