"""What happens around each step: clipping, the ledger of samples, logs."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import torch
from composer import Callback, Logger, State
from composer.utils import dist, reproducibility
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from dataengine.manifest import Manifest
from dataengine.storage import write_file
from trainer.step_log import next_digest, read_log


class RestoreRng(Callback):
    """Give each rank its random state back at the first step after a resume.

    Composer 0.32 does so only at the start of an epoch or when it winds a loader forward, not for a dataset that
    resumes by itself.
    """

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] | None = None  # set once the trainer has loaded a checkpoint

    def batch_start(self, state: State, logger: Logger) -> None:
        """Restore once, after the loader has drawn its seed."""
        if self.states is not None:
            reproducibility.load_rng_state(self.states)
            self.states = None


class ClipGradients(Callback):
    """Scale the gradients so that their norm over all ranks is at most `max_norm`; keep the norm before that.

    FSDP2 averages gradients by reduce-scatter with ReduceOp.AVG, which gloo of torch 2.7 takes for a sum
    (pytorch/pytorch#162338). So what it does is measured once, and mended here, before anything uses the gradients.
    """

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm
        self._excess = 1.0
        self.norm = float("nan")

    def fit_start(self, state: State, logger: Logger) -> None:
        """Average ones over the ranks: 1 where averages are averages, the number of ranks where they are sums."""
        ones = state.device.tensor_to_device(torch.ones(dist.get_world_size()))
        average = torch.empty_like(ones[:1])
        torch.distributed.reduce_scatter_tensor(average, ones, op=torch.distributed.ReduceOp.AVG)
        self._excess = float(average.item())

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Clip between the backward pass and the optimizer's step."""
        parameters = list(state.model.parameters())
        if self._excess != 1.0:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], self._excess)
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, self._max_norm)
        self.norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class SampleLedger(Callback):
    """Check every batch against the plan, and keep a digest of all samples trained on.

    The digest after a step is sha256(digest before + step + the batch's sample ids in slot order), little-endian
    int64. It is in each checkpoint, so equal digests mean equal samples in equal order since step 0.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.digest = ""
        self._ids: NDArray[np.int64] = np.empty(0, np.int64)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Gather the ids of all ranks; every rank sees the same, so all stop together at a difference."""
        step = int(state.timestamp.batch)
        own = state.device.tensor_to_device(state.batch["sample_id"])
        parts: Sequence[Tensor] = dist.all_gather(own)
        self._ids = torch.cat(list(parts)).cpu().numpy()
        planned = self._manifest.order.sample_ids(step)
        if not np.array_equal(self._ids, planned):
            shared = min(len(self._ids), len(planned))
            differing = np.flatnonzero(self._ids[:shared] != planned[:shared])
            slot = int(differing[0]) if len(differing) else shared
            raise RuntimeError(
                f"step {step}: the loader gave {len(self._ids)} samples that differ from the plan's {len(planned)} "
                f"from slot {slot} on: {self._ids[slot : slot + 4].tolist()} for {planned[slot : slot + 4].tolist()}. "
                "Nothing of this batch was trained on; the last checkpoint is good."
            )

    def batch_end(self, state: State, logger: Logger) -> None:
        """Enter the batch that was trained on."""
        self.digest = next_digest(self.digest, int(state.timestamp.batch) - 1, self._ids)

    def state_dict(self) -> dict[str, Any]:
        """Kept in checkpoints."""
        return {"digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Taken from a checkpoint."""
        self.digest = state["digest"]


class StepLog(Callback):
    """Write one row a step to OUT/log.csv and a line every `interval` steps to the console.

    Losses are means over all ranks; `samples/STREAM` counts what has been drawn since step 0.
    """

    def __init__(
        self,
        out: Path,
        manifest: Manifest,
        ledger: SampleLedger,
        clip: ClipGradients,
        *,
        interval: int,
        last: int,
    ) -> None:
        self._path, self._manifest, self._ledger, self._clip = out / "log.csv", manifest, ledger, clip
        self._interval, self._last = interval, last
        self._names = [stream.name for stream in manifest.streams]
        self._sums = torch.zeros(2, len(self._names))  # losses and samples by stream, of this step and rank
        self._file: TextIO | None = None
        self._rate = self._learning_rate = 0.0
        self._begun = time.monotonic()
        self._first = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the log; rows of steps after the checkpoint that this run resumes from go, for they come again."""
        self._first = int(state.timestamp.batch)
        self._begun = time.monotonic()
        if dist.get_global_rank() == 0:
            rows = read_log(self._path) if self._path.is_file() else []
            kept = io.StringIO(newline="")
            writer = csv.DictWriter(kept, self._columns)
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) < self._first)
            write_file(self._path, kept.getvalue().encode())
            self._file = self._path.open("a", newline="", encoding="utf-8")

    @property
    def _columns(self) -> list[str]:
        by_stream = [f"{kind}/{name}" for kind in ("loss", "samples") for name in self._names]
        return ["step", "stage", "loss", *by_stream, "learning_rate", "grad_norm", "seconds", "digest"]

    def batch_start(self, state: State, logger: Logger) -> None:
        """Note when and with which rate the step begins."""
        self._started = time.monotonic()
        self._learning_rate = state.optimizers[0].param_groups[0]["lr"]
        self._sums = state.device.tensor_to_device(torch.zeros(2, len(self._names)))

    def after_loss(self, state: State, logger: Logger) -> None:
        """Add up a microbatch's losses by stream, without waiting for the device."""
        losses = cast(Tensor, state.outputs).detach().float()  # (microbatch,)
        self._sums[0].index_add_(0, state.batch["stream"], losses)
        self._sums[1].index_add_(0, state.batch["stream"], torch.ones_like(losses))

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write the row of the step that ended."""
        dist.all_reduce(self._sums)
        if self._file is None:
            return
        done = int(state.timestamp.batch)  # steps trained
        schedule = self._manifest.schedule
        cursors = schedule.cursors(done)
        losses, counts = self._sums.tolist()
        row: dict[str, Any] = {
            "step": done - 1,
            "stage": schedule.stages[schedule.stage_index(done - 1)].name,
            "loss": state.total_loss_dict["loss/train/total"],
            "learning_rate": self._learning_rate,
            "grad_norm": self._clip.norm,
            "seconds": round(time.monotonic() - self._started, 4),
            "digest": self._ledger.digest,
        }
        for name, loss, count in zip(self._names, losses, counts, strict=True):
            row[f"loss/{name}"] = loss / count if count else ""
            row[f"samples/{name}"] = cursors.get(name, 0)
        csv.DictWriter(self._file, self._columns).writerow(row)
        self._file.flush()
        if done % self._interval == 0 or done == self._last:
            print(self._line(row, done), flush=True)

    def _line(self, row: dict[str, Any], done: int) -> str:
        rate = (done - self._first) / (time.monotonic() - self._begun)  # steps a second since the start
        by_stream = ", ".join(f"{n} {row[f'loss/{n}']:.3f}" for n in self._names if row[f"loss/{n}"] != "")
        tokens = rate * self._manifest.batch_size * self._manifest.seq_len
        return (
            f"step {done}/{self._last} {row['stage']}: loss {row['loss']:.4f} ({by_stream}), "
            f"gradient norm {row['grad_norm']:.2f}, lr {row['learning_rate']:.2e}, {tokens:,.0f} tokens/s, "
            f"{_duration((self._last - done) / rate)} left"
        )

    def close(self, state: State, logger: Logger) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
