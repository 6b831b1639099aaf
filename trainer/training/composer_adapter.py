"""Composer's side of `callbacks/protocol`: our callbacks and loggers as Composer's, Composer's state as ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import composer
import torch
from composer.loggers import LoggerDestination
from torch import Tensor, nn

from trainer.training.callbacks.protocol import Callback
from trainer.training.loggers import MetricLogger


@dataclass(frozen=True)
class ComposerState:
    """The `State` of a training by Composer's Trainer."""

    state: composer.State
    logger: composer.Logger

    @property
    def step(self) -> int:
        """The number of trained steps."""
        return int(self.state.timestamp.batch)

    @property
    def batch(self) -> Mapping[str, Tensor]:
        """The batch, or within the Trainer's loop over microbatches, a microbatch."""
        return cast(Mapping[str, Tensor], self.state.batch)

    @property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """The output of `TranslationModel`."""
        return cast(tuple[Tensor, Tensor], self.state.outputs)

    @property
    def loss(self) -> float:
        """The mean loss of the batch, which Composer also logs under this name."""
        return self.state.total_loss_dict["loss/train/total"]

    @property
    def model(self) -> nn.Module:
        """The `TranslationModel`."""
        return self.state.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The only optimizer."""
        return cast(torch.optim.Optimizer, self.state.optimizers[0])

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def state_dict(self) -> dict[str, Any]:
        """Return Composer's own content of a checkpoint; it has the state of each callback."""
        return self.state.state_dict()

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Load such content."""
        self.state.load_state_dict(content, self.logger, strict=True)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Send metrics to the loggers, with the number of trained steps."""
        self.logger.log_metrics(dict(metrics))

    def stop(self) -> None:
        """End the training after this step."""
        self.state.stop_training()


class Adapter(composer.Callback):
    """A callback of ours."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback

    def run_event(self, event: composer.Event, state: composer.State, logger: composer.Logger) -> None:
        """Pass on the events that ours know."""
        if method := getattr(self.callback, event.value, None):
            method(ComposerState(state, logger))

    def close(self, state: composer.State, logger: composer.Logger) -> None:
        """Pass on the end; Composer calls this directly."""
        self.callback.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the callback's state."""
        return self.callback.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the callback's state."""
        self.callback.load_state_dict(state)


def adapt(callback: Callback) -> composer.Callback:
    """Return a callback of ours as Composer's.

    Composer stores the state of a callback under the name of its class, so the adapter has the name of ours.
    """
    return cast(composer.Callback, type(type(callback).__qualname__, (Adapter,), {})(callback))


class Destination(LoggerDestination):
    """A logger of ours as Composer's, which also gives it Composer's own metrics."""

    def __init__(self, logger: MetricLogger) -> None:
        self._logger = logger

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Pass on metrics; Composer's Logger always gives the step."""
        assert step is not None
        self._logger.log_metrics(metrics, step)

    def post_close(self) -> None:
        """Close the logger after all callbacks."""
        self._logger.close()
