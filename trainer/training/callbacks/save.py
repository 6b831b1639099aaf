"""Save checkpoints during training. All ranks save together:

step                           | rank 0           | first rank of a node | every rank
copy the state to the host     | also rng         |                      | its own
set an unfinished folder aside |                  | yes                  |
write tensors, hash the files  | also .metadata   |                      | its own
write the marker               |                  | the same on all      |
queue the upload               | also the marker  |                      | its own files
remove older checkpoints       | without uploader |                      |

The training waits for the copy only. A thread of each rank does the rest, with collectives in a group of their own. One
checkpoint is written at a time: the next one, and the end of the training, wait for it. With an uploader, its threads
remove: rank 0 in the bucket, the first rank of a node the copies on its disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from dataengine.errors import InputError, naming
from dataengine.schedule.manifest import Manifest
from trainer.checkpoints.fetch import hash_file
from trainer.checkpoints.marker import Marker, checkpoint_folder, mark_complete
from trainer.checkpoints.retention import remove_old, set_aside
from trainer.checkpoints.uploads import Uploader
from trainer.run.folder import Run
from trainer.run.ranks import ProcessGroup
from trainer.training.beside import Beside
from trainer.training.callbacks.protocol import Callback, State
from trainer.training.callbacks.rng import gather_rng_states
from trainer.training.finite import describe_not_finite, not_finite
from trainer.training.host_copy import HostCopy
from trainer.training.spikes import BadStepError

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """An object with the digest of all samples trained on (`SampleLedger`)."""

    digest: str


class SaveCheckpoints(Callback):
    """Save after the given steps, mark each checkpoint complete, and remove old ones or leave that to the uploader.

    `beside` is a process group for the threads. A thread that fails calls `failed`, which asks for a stop: there, all
    ranks raise the error. `init` is the checkpoint of another run that this one began with; markers record it. All
    nodes share the run's folder. With an uploader, each node may have its own folder, with only the files of its own
    ranks.
    """

    def __init__(
        self,
        group: ProcessGroup,
        beside: ProcessGroup,
        run: Run,
        manifest: Manifest,
        model: dict[str, Any],
        steps: Sequence[int],
        keep: int | None,
        *,
        ledger: Ledger,
        failed: Callable[[], None],
        uploader: Uploader | None = None,
        init: dict[str, Any] | None = None,
    ) -> None:
        self._group, self._beside, self._run, self._plan_id = group, beside, run, manifest.plan_id
        self._model, self._init = model, init
        self._steps, self._keep, self._ledger, self._uploader = frozenset(steps), keep, ledger, uploader
        self._copy, self._thread = HostCopy(), Beside(failed)
        self._begun = self._saved = -1  # step of the newest checkpoint, and of the newest complete one

    def fit_start(self, state: State) -> None:
        """Count the first step as saved; upload the log, which was cut to it."""
        self._begun = self._saved = state.step
        if self._uploader is not None and self._group.ranks.rank == 0:
            self._uploader.publish()

    def newest(self) -> str:
        """Return a sentence on the newest checkpoint, once it is finished; its weights and moments were checked."""
        self.settle()
        if self._saved <= 0:
            return "No checkpoint was saved yet."
        return f"All weights and moments of the last checkpoint, of step {self._saved:,}, are finite."

    def after_train_batch(self, state: State) -> None:
        """Let the optimizer change nothing that is still being copied."""
        self._copy.hold_back()

    def batch_checkpoint(self, state: State) -> None:
        """Save if planned. This is a step's last event, so the saved state is that of the step's end."""
        if state.step in self._steps:
            self.save_now(state)
            if state.step == max(self._steps):
                self.finish()

    def save_now(self, state: State) -> None:
        """Begin a checkpoint between two steps, on all ranks together; do nothing if this step is already saved.

        Waits for the checkpoint before, and raises its error. Raises BadStepError on all ranks, before anything is
        written, if a weight or a moment is not finite.
        """
        step = state.step
        if step == self._begun:
            return
        self.finish()
        # The content of a checkpoint by Composer, in a folder of our own.
        content: dict[str, Any] = {"state": state.state_dict(), "rng": gather_rng_states(self._group)}
        self._check_finite(step, content["state"])
        if self._group.ranks.rank > 0:
            content.pop("rng")  # rank 0 writes the states of all ranks
        self._begun = step
        self._thread.start(partial(self._save, step, self._copy.take(content), self._ledger.digest))

    def finish(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises InputError on all ranks if one of them gave up its uploads; the checkpoint is then on disk.
        """
        self._thread.wait()

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait for the checkpoint that is being written, and log its error: another one ends the training."""
        self._thread.settle(timeout_s)

    def _check_finite(self, step: int, state: Mapping[str, Any]) -> None:
        if damaged := not_finite(state, self._group):
            raise BadStepError(
                f"step {step - 1:,}: {describe_not_finite(damaged)} after its update, so no checkpoint was saved. "
                f"{self.newest()} Run the same command again. If it stops here again, lower train.learning_rate. If "
                "not, a device or its memory failed: have it checked."
            )

    def _save(self, step: int, content: dict[str, Any], digest: str) -> None:
        """Write and complete a checkpoint, in the thread."""
        folder = checkpoint_folder(self._run.folder, step)
        self._copy.wait()
        own = self._write(folder, content)
        marker = self._describe(step, digest, self._beside.gather(own))
        self._beside.run_on_all(lambda: self._complete(folder, marker, list(own)))
        self._saved = step

    def _write(self, folder: Path, content: dict[str, Any]) -> dict[str, tuple[int, str]]:
        """Write this rank's part of the state; return its files: name -> bytes and hash."""
        ranks, planner = self._beside.ranks, DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        self._beside.run_on_all(lambda: set_aside(folder) if ranks.local_rank == 0 else None)
        with naming(folder):
            dcp.save(content, checkpoint_id=folder, planner=planner, process_group=self._beside.torch_group)
        own = sorted(folder.glob(f"__{ranks.rank}_*.distcp")) + [folder / ".metadata"] * (ranks.rank == 0)
        return {path.name: (path.stat().st_size, hash_file(path)) for path in own}

    def _describe(self, step: int, digest: str, gathered: Sequence[Mapping[str, tuple[int, str]]]) -> Marker:
        """Return the marker of a checkpoint, from the files of all ranks."""
        files = {name: found for own in gathered for name, found in sorted(own.items())}
        return Marker(
            step=step,
            plan_id=self._plan_id,
            world_size=len(gathered),
            model=self._model,
            files={name: size for name, (size, _) in files.items()},
            hashes={name: digest for name, (_, digest) in files.items()},
            init=self._init,
            digest=digest,
            finite=True,
            torch=torch.__version__,
        )

    def _complete(self, folder: Path, marker: Marker, own: Sequence[str]) -> None:
        """Mark the checkpoint, then queue its upload or remove older ones.

        Raises InputError if this rank gave up its uploads.
        """
        ranks = self._group.ranks
        content = mark_complete(folder, marker) if ranks.local_rank == 0 else None
        log.info("saved %s", folder)
        if self._uploader is not None:
            self._uploader.submit(marker.step, own, marker.files, content if ranks.rank == 0 else None)
            if self._uploader.failure is not None:
                raise InputError(self._uploader.failure)
        elif ranks.rank == 0:
            self._remove_old()

    def _remove_old(self) -> None:
        """Remove older checkpoints; a failure costs disk space but no training."""
        try:
            remove_old(self._run, self._keep)
        except OSError as error:  # such as files on a shared disk that a process on another machine has open
            log.warning("cannot remove old checkpoints of %s now: %s", self._run.url, error)
