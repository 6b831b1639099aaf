"""AdamW with the run's own settings at every step, regardless of the settings in a checkpoint."""

from __future__ import annotations

import torch
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


def apply_settings(optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    """Apply the settings of a step to an optimizer."""
    train = settings.train
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
        group["betas"], group["eps"], group["weight_decay"] = train.betas, train.eps, train.weight_decay
        group["fused"] = optimizer.defaults["fused"]  # from this device, not from the checkpoint
