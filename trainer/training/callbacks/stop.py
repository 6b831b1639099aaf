"""End training after the current step if a rank was asked to stop."""

from __future__ import annotations

from trainer.training.callbacks.protocol import Callback, State
from trainer.training.callbacks.save import SaveCheckpoints


class StopRequest:
    """A request to end after the current step; all ranks learn of it at the same step."""

    def __init__(self) -> None:
        self.asked = False  # on this rank
        self.agreed = False  # all ranks know of it

    def ask(self) -> None:
        """Request the stop; safe in a signal handler and in a thread."""
        self.asked = True


class StopWhenAsked(Callback):
    """Once all ranks know of a stop request, save, and end training after this step."""

    def __init__(self, stop: StopRequest, save: SaveCheckpoints) -> None:
        self._stop, self._save = stop, save

    def batch_checkpoint(self, state: State) -> None:
        """Save and stop, after all other events of the step."""
        if self._stop.agreed:
            self._save.save_now(state)
            self._save.finish()
            state.stop()
