"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from dataengine.config import TrainConfig
from dataengine.schedule import Schedule


def learning_rate(step: int, config: TrainConfig, restarts: Sequence[int] = ()) -> float:
    """The rate of step number `step`, counted from 0 or from the last of `restarts` that is not after it.

    Linear warm-up that reaches `learning_rate` at the last of `warmup_steps` steps, then a cosine to
    `min_learning_rate` at `decay_steps` and constant from there (paper, table 10; the reference code's horizon is far
    beyond its runs). The reference counts micro-batches, so its warm-up lags ours by a quarter of a step.
    """
    step -= max((restart for restart in restarts if restart <= step), default=0)
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if step >= config.decay_steps:
        return config.min_learning_rate
    done = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


def restart_steps(schedule: Schedule, names: Collection[str]) -> list[int]:
    """First steps of the stages of these names; a later piece of one stage does not count."""
    seen: set[str] = set()
    steps = []
    for stage, start in zip(schedule.stages, schedule.stage_starts, strict=True):
        if stage.name in names and stage.name not in seen:
            steps.append(start)
        seen.add(stage.name)
    return steps
