"""Restore the random state of each rank on a resume."""

from __future__ import annotations

from typing import Any

from composer import Callback, Logger, State
from composer.utils import reproducibility


class RestoreRng(Callback):
    """Restore the random state of each rank at the first step after a resume.

    Composer 0.32 does so only at the start of an epoch or when it fast-forwards a loader, not for a dataset that
    resumes by itself.
    """

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] | None = None  # set once the trainer has loaded a checkpoint

    def batch_start(self, state: State, logger: Logger) -> None:
        """Restore once, after the loader has drawn its seed."""
        if self.states is not None:
            reproducibility.load_rng_state(self.states)
            self.states = None
