"""AdamW whose settings are the run's at every step, whatever a checkpoint says."""

from __future__ import annotations

import torch
from composer import Callback, Logger, State
from torch import nn

from dataengine.config.training import TrainConfig
from dataengine.schedule.rates import Settings


def make_optimizer(model: nn.Module, config: TrainConfig, *, fused: bool) -> torch.optim.AdamW:
    """The paper's AdamW (table 10). Composer's DecoupledAdamW does not multiply the decay by the rate."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,  # on all parameters, norms and embeddings too, as in the paper
        fused=fused,
    )


class OptimizerSettings(Callback):
    """Set the learning rate of each step, and the other settings.

    A checkpoint brings the settings of its own run along: a scheduler that multiplies a base rate goes on with the old
    base, and the first step of a second stage would be made at the first stage's last rate.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def batch_start(self, state: State, logger: Logger) -> None:
        """Before anything of the step reads the settings."""
        apply_settings(state.optimizers[0], self._settings, int(state.timestamp.batch))


def apply_settings(optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    """Give an optimizer the settings of a step."""
    train = settings.train
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
        group["betas"], group["eps"], group["weight_decay"] = train.betas, train.eps, train.weight_decay
        group["fused"] = optimizer.defaults["fused"]  # as this device has it, not the one of the checkpoint
