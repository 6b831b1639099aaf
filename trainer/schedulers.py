"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from dataengine.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step number `step`, counted from 0.

    Linear warm-up that reaches `learning_rate` at the last of `warmup_steps` steps, then a cosine to
    `min_learning_rate` at `decay_steps` and constant from there (paper, table 10; the reference code's horizon is far
    beyond its runs). The reference counts micro-batches, so its warm-up lags ours by a quarter of a step.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if step >= config.decay_steps:
        return config.min_learning_rate
    done = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
    return (
        config.min_learning_rate
        + (config.learning_rate - config.min_learning_rate) * (1 + math.cos(math.pi * done)) / 2
    )
