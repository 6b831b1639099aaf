"""What a training loop and its callbacks know of each other; any loop that calls these events in order can run them.

A step: before_dataloader, batch_start, then after_loss and after_backward for each microbatch, after_train_batch, the
optimizer's step, batch_end, batch_checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class State(Protocol):
    """A training, as its callbacks see it."""

    @property
    def step(self) -> int:
        """The number of trained steps, which is also the current step's number; `batch_end` counts the current step."""

    @property
    def batch(self) -> Mapping[str, Tensor]:
        """This rank's part of the batch; in `after_loss` and `after_backward` a microbatch, on the device.

        If the plan has a loss mask, it is under `loss_mask`, for all samples.
        """

    @property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """The microbatch's mean loss, and the loss of each of its samples, from `after_loss` on.

        With a loss mask, means are over the tokens that count.
        """

    @property
    def loss(self) -> float:
        """The mean loss of the batch over all ranks, from `batch_end` on.

        With a loss mask, it is the mean over the tokens of all ranks that count: each microbatch has weight in loss and
        gradient by its number of them.
        """

    @property
    def model(self) -> nn.Module:
        """The model; its parameters are DTensors if they are sharded."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint; of sharded tensors, each rank has its own part."""

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Load the content of a checkpoint, all of it or some of its top-level keys."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a finished step to the run's loggers."""

    def stop(self) -> None:
        """End the training after this step."""


class Callback:
    """Work around the steps of a training: one method per event, each of which does nothing unless overridden."""

    def fit_start(self, state: State) -> None:
        """Called once, before the first step and after a checkpoint was loaded."""

    def before_dataloader(self, state: State) -> None:
        """Called before the loader is asked for a batch."""

    def batch_start(self, state: State) -> None:
        """Called when the batch is there."""

    def after_loss(self, state: State) -> None:
        """Called after the forward pass of a microbatch."""

    def after_backward(self, state: State) -> None:
        """Called after the backward pass of a microbatch."""

    def after_train_batch(self, state: State) -> None:
        """Called when the batch's gradients are complete, before the optimizer's step."""

    def batch_end(self, state: State) -> None:
        """Called after the optimizer's step."""

    def batch_checkpoint(self, state: State) -> None:
        """Called last in a step."""

    def close(self) -> None:
        """Called at the end of the program, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, which stores it under the name of the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint."""
