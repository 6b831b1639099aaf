"""Load a checkpoint into a new training."""

from __future__ import annotations

import logging
from typing import Any

import torch

from trainer.checkpoints.load import load_checkpoint, saved_names
from trainer.checkpoints.marker import Checkpoint
from trainer.run.ranks import Collective, count_ranks
from trainer.training.callbacks.protocol import State
from trainer.training.callbacks.rng import gather_rng_states

log = logging.getLogger(__name__)
# Parts of a checkpoint that a second stage with its own step 0 does not load.
_OF_THE_PLAN = ("timestamp", "schedulers", "dataset_state", "callbacks")
_CUDA_STATE = "rng.0.cuda"  # name of the first rank's, in checkpoints that were made on CUDA


def load_state(state: State, checkpoint: Checkpoint, group: Collective, *, restart: bool) -> list[dict[str, Any]]:
    """Load a checkpoint, written by any number of ranks, into a new training; `restart` leaves out its plan.

    Composer's own function refuses the unsharded model of a run on one rank. Return the random states by rank, for
    `RestoreRng`, as far as the checkpoint has them: one made without CUDA has no state of a GPU. After a restart there
    are none.
    """
    content: dict[str, Any] = {"state": state.state_dict()}
    if restart:
        content["state"] = {key: value for key, value in content["state"].items() if key not in _OF_THE_PLAN}
    else:
        states, had_cuda = gather_rng_states(group), _CUDA_STATE in saved_names(checkpoint)
        _tell_differences(checkpoint, len(states), had_cuda=had_cuda, has_cuda="cuda" in states[0])
        content["rng"] = [
            {name: value for name, value in of_rank.items() if name != "cuda" or had_cuda}
            for of_rank in states[: checkpoint.world_size]
        ]
    with torch.no_grad():
        load_checkpoint(content, checkpoint)
        state.load_state_dict(content["state"])
    loaded: list[dict[str, Any]] = content.get("rng", [])
    return loaded


def _tell_differences(checkpoint: Checkpoint, ranks: int, *, had_cuda: bool, has_cuda: bool) -> None:
    """Warn about differences that change this run's floats, compared with the run that saved the checkpoint."""
    if had_cuda != has_cuda:
        log.warning(
            "%s was saved %s CUDA and training continues %s: the precision differs (bf16 on CUDA, fp32 without), so "
            "losses change slightly from here on; samples stay the same",
            checkpoint.folder,
            *(("with", "without") if had_cuda else ("without", "with")),
        )
    if checkpoint.torch and checkpoint.torch != torch.__version__:
        log.warning(
            "%s was saved with torch %s and training continues with torch %s: kernels differ, so losses change in "
            "their last digits from here on; samples stay the same",
            checkpoint.folder,
            checkpoint.torch,
            torch.__version__,
        )
    if checkpoint.world_size != ranks:
        log.warning(
            "%s was saved on %s and training continues on %d: the order of sums over ranks differs, so losses change "
            "in their last digits from here on; samples stay the same",
            checkpoint.folder,
            count_ranks(checkpoint.world_size),
            ranks,
        )
