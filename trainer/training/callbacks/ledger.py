"""Check every batch against the plan, and keep a digest of all samples seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataengine.schedule.manifest import Manifest
from trainer.run.log_csv import next_digest
from trainer.training.callbacks.protocol import Callback, State


class SampleLedger(Callback):
    """Check every batch against the plan, and keep a digest of all samples seen.

    The digest after a step is sha256(previous digest + step + the batch's sample ids in slot order), as little-endian
    int64, followed by b"skipped" if the step was not trained on. Each checkpoint holds it: equal digests mean equal
    samples in equal order since step 0.
    """

    def __init__(self, manifest: Manifest, rank: int) -> None:
        self._manifest, self._rank = manifest, rank
        self.digest = ""
        self.strays = False  # whether this rank's part of the batch differs from the plan
        self.skipped = ""  # the reason if this step is not trained on
        self._own = torch.empty(0, dtype=torch.int64)
        self._planned: NDArray[np.int64] = np.empty(0, np.int64)

    def batch_start(self, state: State) -> None:
        """Compare this rank's part of the batch; all ranks learn of a difference before the optimizer's step."""
        self.skipped = ""
        self._own = state.batch["sample_id"]
        self._planned = self._manifest.order.sample_ids(state.step)
        own = self._own.cpu().numpy()
        first = self._rank * len(own)
        self.strays = not np.array_equal(own, self._planned[first : first + len(own)])

    def refuse(self, state: State) -> None:
        """Raise on all ranks if one of them has found a difference."""
        own = self._own.to(state.device)
        parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, own)
        found, planned = torch.cat(parts).cpu().numpy(), self._planned
        shared = min(len(found), len(planned))
        differing = np.flatnonzero(found[:shared] != planned[:shared])
        slot = int(differing[0]) if len(differing) else shared
        raise RuntimeError(
            f"step {state.step}: the loader gave {len(found)} samples that differ from the plan's "
            f"{len(planned)} from slot {slot} on: {found[slot : slot + 4].tolist()} for "
            f"{planned[slot : slot + 4].tolist()}. This batch was not trained on; the last checkpoint is good."
        )

    def batch_end(self, state: State) -> None:
        """Add the batch to the digest."""
        step = state.step - 1
        self.digest = next_digest(self.digest, step, self._planned, skipped=bool(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint."""
        self.digest = state["digest"]
