"""Save checkpoints while training goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from composer import Callback, Logger, State
from composer.utils import dist, reproducibility
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from dataengine.errors import InputError, naming
from dataengine.schedule.manifest import Manifest
from trainer.checkpoints.fetch import hash_file
from trainer.checkpoints.marker import Marker, checkpoint_folder, mark_complete
from trainer.checkpoints.retention import remove_old, set_aside
from trainer.checkpoints.uploads import Uploader
from trainer.run.folder import Run
from trainer.training.finite import not_finite, tell
from trainer.training.spikes import BadStepError

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """What knows the digest of all samples trained on (callbacks.SampleLedger)."""

    digest: str


class SaveCheckpoints(Callback):
    """Save after the given steps, mark each checkpoint complete, and let old ones go or leave that to the uploader.

    `init` is the checkpoint of another run that this one began with; it goes into the markers. The run's folder is
    shared by all nodes, or, if an uploader brings it to a bucket, may be each node's own: a node then has only the
    files of its own ranks.
    """

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        model: dict[str, Any],
        steps: Sequence[int],
        keep: int | None,
        *,
        ledger: Ledger,
        uploader: Uploader | None = None,
        init: dict[str, Any] | None = None,
    ) -> None:
        self._run, self._plan_id, self._model, self._init = run, manifest.plan_id, model, init
        self._steps, self._keep, self._ledger, self._uploader = frozenset(steps), keep, ledger, uploader
        self._saved = -1  # step of the newest checkpoint

    def fit_start(self, state: State, logger: Logger) -> None:
        """Take the step that training starts at as saved; bring the log, which was cut to it, to the bucket."""
        self._saved = int(state.timestamp.batch)
        if self._uploader is not None and dist.get_global_rank() == 0:
            self._uploader.publish()

    def newest(self) -> str:
        """What training can go on from, in a sentence; its weights and moments were looked at before it was saved."""
        if self._saved <= 0:
            return "No checkpoint was saved yet."
        return f"All weights and moments of the last checkpoint, of step {self._saved:,}, are finite."

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Runs after all of a step's events, so the state that is saved is that of the step's end."""
        if int(state.timestamp.batch) in self._steps:
            self.save_now(state)

    def save_now(self, state: State) -> None:
        """Save between two steps, on all ranks together; does nothing if this step is saved already.

        Raises InputError on all ranks if the uploads of one of them were given up; the checkpoint is on disk then.
        Raises BadStepError on all ranks, before anything is written, if a weight or a moment is not finite.
        """
        step = int(state.timestamp.batch)
        if step == self._saved:
            return
        # What composer.utils.checkpoint.save_checkpoint writes, into a folder that we name.
        content: dict[str, Any] = {"state": state.state_dict(), "rng": reproducibility.get_rng_state()}
        if damaged := not_finite(content["state"]):
            raise BadStepError(
                f"step {step - 1:,}: {tell(damaged)} after its update, so no checkpoint was saved. {self.newest()} "
                "Run the same command again. If it stops here again, lower train.learning_rate; if not, a device or "
                "its memory failed: have it checked."
            )
        folder = checkpoint_folder(self._run.folder, step)
        if dist.get_local_rank() == 0:
            set_aside(folder)
        dist.barrier()
        if dist.get_global_rank() > 0:
            content.pop("rng")  # it has the state of all ranks
        with naming(folder):
            dcp.save(content, checkpoint_id=folder, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
        own = sorted(folder.glob(f"__{dist.get_global_rank()}_*.distcp"))
        if dist.get_global_rank() == 0:
            own.append(folder / ".metadata")
        described = {path.name: (path.stat().st_size, hash_file(path)) for path in own}
        failure = self._uploader.failure if self._uploader else None
        gathered = dist.all_gather_object((described, failure))
        files = {name: found for part, _ in gathered for name, found in sorted(part.items())}
        marker = Marker(
            step=step,
            plan_id=self._plan_id,
            world_size=dist.get_world_size(),
            model=self._model,
            files={name: size for name, (size, _) in files.items()},
            hashes={name: digest for name, (_, digest) in files.items()},
            init=self._init,
            digest=self._ledger.digest,
            finite=True,
        )
        written = mark_complete(folder, marker) if dist.get_local_rank() == 0 else None
        if self._uploader is None:
            if dist.get_global_rank() == 0:
                self._remove_old()
        else:
            self._uploader.submit(step, list(described), marker.files, written if dist.get_global_rank() == 0 else None)
        self._saved = step
        log.info("saved %s", folder)
        dist.barrier()
        failures = [words for _, words in gathered if words]
        if failures:
            raise InputError(failures[0])

    def _remove_old(self) -> None:
        """Let older checkpoints go; what cannot be removed costs room, and no training."""
        try:
            remove_old(self._run, self._keep)
        except OSError as error:  # as of files that a process on another machine has open, on a shared disk
            log.warning("cannot remove old checkpoints of %s now: %s", self._run.url, error)
