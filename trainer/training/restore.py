"""Load a checkpoint into Composer's Trainer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from composer import Trainer
from composer.utils import reproducibility

from trainer.checkpoints.load import load_checkpoint, saved_names
from trainer.checkpoints.marker import Checkpoint
from trainer.run.ranks import count_ranks
from trainer.training.callbacks.rng import RestoreRng

log = logging.getLogger(__name__)
# Parts of a checkpoint that a second stage with its own step 0 does not load.
_OF_THE_PLAN = ("timestamp", "schedulers", "dataset_state", "callbacks")
_CUDA_STATE = "rng.0.cuda"  # name of the first rank's, in checkpoints that were made on CUDA


def load_state(trainer: Trainer, checkpoint: Checkpoint, *, restart: bool) -> None:
    """Load a checkpoint, written by any number of ranks, into a new trainer; `restart` leaves out its plan.

    Same as composer.utils.checkpoint.load_sharded_checkpoint, which refuses the unsharded model of a run on one rank.
    Random states are restored at the first step, as far as the checkpoint has them: one made without CUDA has no
    state of a GPU.
    """
    state = trainer.state
    content: dict[str, Any] = {"state": state.state_dict()}
    if restart:
        content["state"] = {key: value for key, value in content["state"].items() if key not in _OF_THE_PLAN}
    else:
        states, had_cuda = reproducibility.get_rng_state(), _CUDA_STATE in saved_names(checkpoint)
        _tell_differences(checkpoint, len(states), had_cuda=had_cuda, has_cuda="cuda" in states[0])
        content["rng"] = [
            {name: state for name, state in of_rank.items() if name != "cuda" or had_cuda}
            for of_rank in states[: checkpoint.world_size]
        ]
    with torch.no_grad():
        load_checkpoint(content, checkpoint)
        state.load_state_dict(content["state"], trainer.logger, strict=True)
    for callback in state.callbacks:
        if isinstance(callback, RestoreRng):
            callback.states = content.get("rng")


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
