"""The learning rate as a function of the step, and the settings that decide it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dataengine.config.schema import Config
from dataengine.config.training import InitConfig, TrainConfig
from dataengine.schedule.slots import Schedule

Shape = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class StageRate:
    """The learning rate of a stage with a schedule of its own, and of the stages after it that have none."""

    begin: int
    """First step of the stage."""
    steps: int
    """Steps to the end of the stage."""
    schedule: Shape
    """How the rate moves."""
    to: float
    """Rate of the last step; a constant rate does not use it."""
    start: float | None = None
    """Rate of the step before, if it was trained with other settings; else null."""

    def rate(self, done: float, top: float) -> float:
        """The rate after this fraction of the way from `top`."""
        if self.schedule == "constant":
            return top
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.to + (top - self.to) * left

    def __str__(self) -> str:
        to = "" if self.schedule == "constant" else f" to {self.to:g}"
        return f"{self.schedule}{to} in steps {self.begin:,} to {self.begin + self.steps:,}"


@dataclass(frozen=True)
class Settings:
    """The settings of a step, besides its samples."""

    train: TrainConfig
    restarts: tuple[int, ...] = ()  # ascending steps at which the learning rate restarts its warm-up and decay
    end: int | None = None  # steps of the plan, if the rate depends on them (`train.decay_steps: end`)
    stages: tuple[StageRate, ...] = ()  # ascending: the stages that state a schedule

    def rate(self, step: int) -> float:
        """The learning rate of a step.

        In a stage of L steps with a schedule, step k (from 1) is k / L of the way from the rate of the step before the
        stage, and the last step has the rate `decay_to`. If the run or the rate begins with the stage, it warms up
        first, and the way begins at the peak. Later steps keep the last rate.
        """
        stage = next((stage for stage in reversed(self.stages) if stage.begin <= step), None)
        if stage is None or stage.begin < (restart := _begin(step, self.restarts)):
            return learning_rate(step, self.train, self.restarts, self.end)
        done, whole = min(step - stage.begin + 1, stage.steps), stage.steps
        if stage.begin > restart:
            return stage.rate(done / whole, self.rate(stage.begin - 1) if stage.start is None else stage.start)
        warmup = self.train.warmup_steps
        if done <= warmup:
            return self.train.learning_rate * done / warmup
        return stage.rate((done - warmup) / (whole - warmup), self.train.learning_rate)

    def describe(self, first: int, last: int) -> str:
        """The rates at step `first`, where a warm-up ends or a cooldown begins, and before `last`; empty if none.

        The rate does not restart inside a stage.
        """
        begin = _begin(first, self.restarts)
        turns = [begin + self.train.warmup_steps - 1]
        if self.train.schedule == "wsd" and not any(stage.begin < last for stage in self.stages):
            horizon = _horizon(self.train, begin, self.end)
            turns.append(begin + horizon - _cooldown(self.train, horizon))
        shown = [first, *sorted({turn for turn in turns if first < turn < last - 1}), last - 1]
        return " -> ".join(f"{self.rate(step):.2e}" for step in shown) if first < last else ""

    def after(self, before: Settings, step: int, fork: int) -> Settings:
        """These settings for a run that goes on at `step`, after steps with the settings `before`.

        Restarts before `step`, and all of a parent (before `fork`), are those of `before`. A stage that begins at
        `step` begins with the rate that the step before it really had.
        """
        border = max(step, fork)
        kept = [restart for restart in before.restarts if restart < border]
        restarts = (*kept, *(restart for restart in self.restarts if restart >= border))
        starts = {stage.begin: stage.start for stage in before.stages if stage.begin < step}
        own = [replace(stage, start=starts.get(stage.begin)) for stage in self.stages if stage.begin >= fork]
        stages = (*(stage for stage in before.stages if stage.begin < fork), *own)
        joined = replace(self, restarts=restarts, stages=stages)
        if step and before.rate(step - 1) != joined.rate(step - 1):
            real = before.rate(step - 1)
            stages = tuple(replace(stage, start=real) if stage.begin == step else stage for stage in stages)
        return replace(joined, stages=stages)


def learning_rate(step: int, train: TrainConfig, restarts: Sequence[int] = (), end: int | None = None) -> float:
    """The rate of step number `step`, counted from 0 or from the last of `restarts` that is not after it.

    Linear warm-up that reaches `learning_rate` at the last of `warmup_steps` steps, then a cosine to
    `min_learning_rate` at `decay_steps`, then constant (paper, table 10; in the reference code, the cosine ends long
    after its runs). The reference counts microbatches, so its warm-up lags ours by a quarter of a step. If
    `decay_steps` is `end`, the cosine ends at `end`, the number of steps of the plan. `linear` is a line
    in place of the cosine. `wsd` stays at the peak and is a line over the last `cooldown_steps` before `decay_steps`,
    as OLMo 2 anneals (arXiv 2501.00656). `constant` does not fall.
    """
    begin = _begin(step, restarts)
    horizon = _horizon(train, begin, end)
    step -= begin
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.learning_rate
    if step >= horizon:
        return train.min_learning_rate
    span = train.learning_rate - train.min_learning_rate
    if train.schedule == "wsd":
        left = (horizon - step) / _cooldown(train, horizon)
        return train.min_learning_rate + span * left if left < 1 else train.learning_rate
    done = (step - train.warmup_steps) / (horizon - train.warmup_steps)
    if train.schedule == "linear":
        return train.min_learning_rate + span * (1 - done)
    return train.min_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


def _cooldown(train: TrainConfig, horizon: int) -> int:
    """Steps of the cooldown of `wsd`, at most those after the warm-up."""
    asked = train.cooldown_steps
    steps = asked if isinstance(asked, int) else max(round(asked * horizon), 1)
    return max(min(steps, horizon - train.warmup_steps), 1)


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
    is_flat = train.schedule == "constant" or train.min_learning_rate >= train.learning_rate
    if horizon == "end" or is_flat or settings.stages:
        return []
    falls_from = horizon - _cooldown(train, horizon)
    if train.schedule == "wsd" and not is_second_stage and falls_from >= longest:
        return [
            f"the learning rate does not fall: its cooldown begins after {falls_from:,} steps, because "
            f"train.decay_steps is {horizon:,}, in a run of {steps:,} steps. With train.decay_steps=end it falls to "
            "train.decay_to at the end"
        ]
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
    return Settings(config.train, tuple(restart_steps(schedule, names)), end, tuple(_stage_rates(config, schedule)))


def _stage_rates(config: Config, schedule: Schedule) -> Iterator[StageRate]:
    """The schedules that stages state, ascending.

    Where a stage with a course of its own splits another (`at`), the rest of that one has its own way to `decay_to`.
    """
    stated = {stage.name: stage for stage in config.stages}
    turns = {stage.name for stage in config.stages if stage.schedule or stage.restart_learning_rate}
    ends = {name: end for name, (_, end) in _spans(schedule).items()}
    between: dict[str, set[str]] = {}  # the stages since the last piece of each
    for piece, start in zip(schedule.stages, schedule.stage_starts, strict=True):
        if start < schedule.fork:
            continue
        stage, resumes = stated.get(piece.name), piece.name in between
        if stage and stage.schedule and (not resumes or between[piece.name] & turns):
            lowest = config.train.min_learning_rate if stage.decay_to is None else stage.decay_to
            yield StageRate(start, ends[piece.name] - start, stage.schedule, lowest)
        between[piece.name] = set()
        for name, others in between.items():
            if name != piece.name:
                others.add(piece.name)


def restart_steps(schedule: Schedule, names: Collection[str]) -> list[int]:
    """First steps of the stages with these names. Stages of a parent and later pieces of a stage do not count."""
    return [start for name, (start, _) in _spans(schedule).items() if name in names]


def _spans(schedule: Schedule) -> dict[str, tuple[int, int]]:
    """The first step of each stage of the run's own, and the step after its last piece."""
    spans: dict[str, tuple[int, int]] = {}
    for stage, start in zip(schedule.stages, schedule.stage_starts, strict=True):
        if start >= schedule.fork:
            spans[stage.name] = (spans.get(stage.name, (start, 0))[0], start + stage.length)
    return spans
