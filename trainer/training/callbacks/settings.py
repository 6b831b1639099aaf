"""Set the optimizer's settings before each step."""

from __future__ import annotations

from dataengine.schedule.rates import Settings
from trainer.model.optimizer import apply_settings
from trainer.training.callbacks.protocol import Callback, State


class OptimizerSettings(Callback):
    """Set the learning rate and the other settings before each step.

    A checkpoint holds the settings of its own run. A scheduler that multiplies a base rate would keep the old base,
    and the first step of a second stage would use the last rate of the first stage.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def batch_start(self, state: State) -> None:
        """Set the settings before anything reads them."""
        apply_settings(state.optimizer, self._settings, state.step)
