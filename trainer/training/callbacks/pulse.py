"""Tell the pulse what this rank is doing."""

from __future__ import annotations

from composer import Callback, Logger, State

from trainer.training.pulse import Pulse


class TellWhere(Callback):
    """Tell the pulse where this rank stands, before other callbacks do their part."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._trained = False  # the first step may compile, and tune itself

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """The loader waits for a bucket as long as train.outage_limit allows."""
        self._pulse.at(f"waiting for the batch of step {int(state.timestamp.batch):,}", may_wait=True)

    def batch_start(self, state: State, logger: Logger) -> None:
        """The loader has given a batch."""
        self._pulse.at(f"training step {int(state.timestamp.batch):,}", may_wait=not self._trained)

    def after_loss(self, state: State, logger: Logger) -> None:
        """A half of a microbatch is done."""
        self.batch_start(state, logger)

    def after_backward(self, state: State, logger: Logger) -> None:
        """The other half is done."""
        self.batch_start(state, logger)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """A checkpoint may be saved now, on a slow disk."""
        self._trained = True
        self._pulse.at(f"saving step {int(state.timestamp.batch):,}", may_wait=True)
