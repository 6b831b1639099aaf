"""Save checkpoints while training goes on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from composer.utils import dist, reproducibility
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from dataengine.manifest import Manifest
from trainer.checkpoints import checkpoint_folder, mark_complete, remove_old

log = logging.getLogger(__name__)


class SaveCheckpoints(Callback):
    """Save after the given steps, mark each checkpoint complete, and let old ones go."""

    def __init__(
        self, out: Path, manifest: Manifest, model: dict[str, Any], steps: Sequence[int], keep: int | None
    ) -> None:
        self._out, self._plan_id, self._model = out, manifest.plan_id, model
        self._steps, self._keep = frozenset(steps), keep

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Runs after all of a step's events, so the state that is saved is that of the step's end."""
        step = int(state.timestamp.batch)
        if step not in self._steps:
            return
        folder = checkpoint_folder(self._out, step)
        if dist.get_global_rank() == 0 and folder.is_dir():
            shutil.rmtree(folder)  # an unfinished one of a run that was killed while it saved
        dist.barrier()
        # What composer.utils.checkpoint.save_checkpoint writes, into a folder that we name.
        content = {"state": state.state_dict(), "rng": reproducibility.get_rng_state()}
        if dist.get_global_rank() > 0:
            content.pop("rng")  # it has the state of all ranks
        dcp.save(content, checkpoint_id=folder, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
        dist.barrier()
        if dist.get_global_rank() == 0:
            mark_complete(folder, step, self._plan_id, dist.get_world_size(), self._model)
            remove_old(self._out, self._keep)
            log.info("saved %s", folder)
        dist.barrier()
