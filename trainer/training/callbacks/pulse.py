"""Report the activity of this rank to the pulse."""

from __future__ import annotations

from trainer.training.callbacks.protocol import Callback, State
from trainer.training.pulse import Pulse


class TellWhere(Callback):
    """Report the place of this rank to the pulse, before other callbacks run."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._trained = False  # the first step may compile and autotune

    def before_dataloader(self, state: State) -> None:
        """Report the wait for a batch, which may last up to train.outage_limit."""
        self._pulse.at(f"waiting for the batch of step {state.step:,}", may_wait=True)

    def batch_start(self, state: State) -> None:
        """Report that the loader returned a batch."""
        self._pulse.at(f"training step {state.step:,}", may_wait=not self._trained)

    def after_loss(self, state: State) -> None:
        """Report the forward pass of a microbatch."""
        self.batch_start(state)

    def after_backward(self, state: State) -> None:
        """Report the backward pass of a microbatch."""
        self.batch_start(state)

    def batch_checkpoint(self, state: State) -> None:
        """Report that a checkpoint may be saved now, perhaps on a slow disk."""
        self._trained = True
        self._pulse.at(f"saving step {state.step:,}", may_wait=True)
