"""AdamW with the run's own settings at every step, regardless of the settings in a checkpoint."""

from __future__ import annotations

import torch
from composer import Callback, Logger, State
from torch import nn

from dataengine.config.training import TrainConfig
from dataengine.schedule.rates import Settings


def make_optimizer(model: nn.Module, config: TrainConfig, *, fused: bool) -> torch.optim.AdamW:
    """Return the paper's AdamW (table 10). Composer's DecoupledAdamW does not multiply the decay by the rate."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,  # on all parameters, norms and embeddings too, as in the paper
        fused=fused,
    )


class OptimizerSettings(Callback):
    """Set the learning rate and the other settings before each step.

    A checkpoint holds the settings of its own run. A scheduler that multiplies a base rate would keep the old base,
    and the first step of a second stage would use the last rate of the first stage.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def batch_start(self, state: State, logger: Logger) -> None:
        """Set the settings before anything reads them."""
        apply_settings(state.optimizers[0], self._settings, int(state.timestamp.batch))


def apply_settings(optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    """Apply the settings of a step to an optimizer."""
    train = settings.train
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
        group["betas"], group["eps"], group["weight_decay"] = train.betas, train.eps, train.weight_decay
        group["fused"] = optimizer.defaults["fused"]  # from this device, not from the checkpoint
