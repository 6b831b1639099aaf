"""The random state of each rank: in each checkpoint, and restored on a resume."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch

from trainer.run.ranks import Collective
from trainer.training.callbacks.protocol import Callback, State

log = logging.getLogger(__name__)


def gather_rng_states(group: Collective) -> list[dict[str, Any]]:
    """Return the random states of each rank, on every rank, in the form of Composer's checkpoints."""
    return group.gather(own_rng_state())


def own_rng_state() -> dict[str, Any]:
    """Return the random states of this process."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


class RestoreRng(Callback):
    """Restore the random state of each rank at the first step after a resume.

    Composer 0.32 does so only at the start of an epoch or when it fast-forwards a loader, not for a dataset that
    resumes by itself. A rank that the run did not have before keeps its new state.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.states: list[dict[str, Any]] = []  # of the checkpoint, by rank, until they are restored

    def batch_start(self, state: State) -> None:
        """Restore once, after the loader has drawn its seed."""
        if self._rank < len(self.states):
            _restore(self.states[self._rank])
        self.states = []


def _restore(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        try:
            torch.cuda.set_rng_state(state["cuda"])
        except RuntimeError as error:  # of another version of torch; no computation of ours draws on a GPU
            log.warning("the checkpoint's random state of the GPU is not restored: %s", error)
