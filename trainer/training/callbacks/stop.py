"""End a training after the current step when a rank was asked to stop."""

from __future__ import annotations

from composer import Callback, Logger, State

from trainer.training.callbacks.save import SaveCheckpoints


class StopRequest:
    """A wish to end after the step under way, which all ranks come to know at the same step."""

    def __init__(self) -> None:
        self.asked = False  # on this rank
        self.agreed = False  # all ranks know of it

    def ask(self) -> None:
        """Ask for it; safe in a signal handler."""
        self.asked = True


class StopWhenAsked(Callback):
    """Once all ranks know that one was asked to stop: save, and end the training after this step."""

    def __init__(self, stop: StopRequest, save: SaveCheckpoints) -> None:
        self._stop, self._save = stop, save

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After all of a step's events."""
        if self._stop.agreed:
            self._save.save_now(state)
            state.stop_training()
