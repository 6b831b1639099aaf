"""What happens around each step: clipping, the ledger of samples, the watch, logs."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import psutil
import torch
from composer import Callback, Logger, State
from composer.utils import dist, reproducibility
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from dataengine.errors import naming
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import write_file
from trainer.checkpoints.finite import not_finite, tell
from trainer.run.step_log import dump_rows, gap_words, missing_steps, next_digest, read_whole_rows
from trainer.training.spikes import BadStepError, SpikeDetector

log = logging.getLogger(__name__)


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
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        parts = [
            g.to_local() if isinstance(g, DTensor) else g for g in gradients
        ]  # without DTensor's cost an operation
        squared = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts))).square()
        if isinstance(gradients[0], DTensor):  # sharded over the last dimension of the mesh, replicated over others
            mesh = gradients[0].device_mesh
            torch.distributed.all_reduce(squared, group=mesh.get_group(mesh.ndim - 1))
        self.norm = math.sqrt(squared.item()) / self._excess
        # As torch.nn.utils.clip_grad_norm_ scales; a norm that is not finite is for Watch to find.
        scale = min(1.0, self._max_norm / (self.norm + 1e-6)) / self._excess
        if scale != 1.0:
            torch._foreach_mul_(parts, scale)


class SampleLedger(Callback):
    """Check every batch against the plan, and keep a digest of all samples seen.

    The digest after a step is sha256(digest before + step + the batch's sample ids in slot order), little-endian
    int64, and b"skipped" behind that if the step was not trained on. It is in each checkpoint, so equal digests mean
    equal samples in equal order since step 0.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.digest = ""
        self.strays = False  # whether this rank's part of the batch is not the plan's
        self.skipped = ""  # why this step is not trained on
        self._own = torch.empty(0, dtype=torch.int64)
        self._planned: NDArray[np.int64] = np.empty(0, np.int64)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Compare this rank's part of the batch; the ranks hear of a difference before the optimizer's step."""
        self.skipped = ""
        self._own = state.batch["sample_id"]
        self._planned = self._manifest.order.sample_ids(int(state.timestamp.batch))
        own, rank = self._own.cpu().numpy(), dist.get_global_rank()
        self.strays = not np.array_equal(own, self._planned[rank * len(own) : (rank + 1) * len(own)])

    def refuse(self, state: State) -> None:
        """Raise, on all ranks together, once one of them has found a difference."""
        parts: Sequence[Tensor] = dist.all_gather(state.device.tensor_to_device(self._own))
        found, planned = torch.cat(list(parts)).cpu().numpy(), self._planned
        shared = min(len(found), len(planned))
        differing = np.flatnonzero(found[:shared] != planned[:shared])
        slot = int(differing[0]) if len(differing) else shared
        raise RuntimeError(
            f"step {int(state.timestamp.batch)}: the loader gave {len(found)} samples that differ from the plan's "
            f"{len(planned)} from slot {slot} on: {found[slot : slot + 4].tolist()} for "
            f"{planned[slot : slot + 4].tolist()}. Nothing of this batch was trained on; the last checkpoint is good."
        )

    def batch_end(self, state: State, logger: Logger) -> None:
        """Enter the batch that was seen."""
        step = int(state.timestamp.batch) - 1
        self.digest = next_digest(self.digest, step, self._planned, skipped=bool(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        """Kept in checkpoints."""
        return {"digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Taken from a checkpoint."""
        self.digest = state["digest"]


class StreamLosses(Callback):
    """The mean loss of each stream over all ranks, known before the optimizer's step.

    One sum over the ranks serves them, `stop`, which any rank may be asked for, and the ledger.
    """

    def __init__(self, manifest: Manifest, ledger: SampleLedger, stop: StopRequest) -> None:
        self._names = [stream.name for stream in manifest.streams]
        self._ledger, self._stop = ledger, stop
        self._sums = torch.zeros(0)
        self.losses: dict[str, float] = {}  # of the streams that this step has samples of
        self.counts: dict[str, int] = {}  # samples of each stream
        self.samples: list[tuple[Tensor, Tensor]] = []  # ids and losses of this rank's microbatches

    def batch_start(self, state: State, logger: Logger) -> None:
        """Begin to add up."""
        self._sums = state.device.tensor_to_device(torch.zeros(2, len(self._names) + 1, dtype=torch.float64))
        self.samples = []

    def after_loss(self, state: State, logger: Logger) -> None:
        """Add up a microbatch's losses by stream, without waiting for the device."""
        losses = cast(tuple[Tensor, Tensor], state.outputs)[1].double()  # (microbatch,)
        self._sums[0].index_add_(0, state.batch["stream"], losses)
        self._sums[1].index_add_(0, state.batch["stream"], torch.ones_like(losses))
        self.samples.append((state.batch["sample_id"], losses))

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Add up over the ranks."""
        self._sums[:, -1] = self._sums.new_tensor([self._ledger.strays, self._stop.asked])
        dist.all_reduce(self._sums)
        losses, counts = self._sums.tolist()
        if losses[-1]:
            self._ledger.refuse(state)
        self._stop.agreed = counts[-1] > 0
        self.counts = dict(zip(self._names, map(round, counts), strict=False))
        self.losses = {
            name: loss / count for name, loss, count in zip(self._names, losses, counts, strict=False) if count
        }


class StopRequest:
    """A wish to end after the step under way, which all ranks come to know at the same step."""

    def __init__(self) -> None:
        self.asked = False  # on this rank
        self.agreed = False  # all ranks know of it

    def ask(self) -> None:
        """Ask for it; safe in a signal handler."""
        self.asked = True


class Watch(Callback):
    """Find steps whose loss or gradient is not finite, or whose loss is a spike, and stop before their update.

    If `allowed` is not None, go on without the update of such a step, for so many steps of a run in all: weights,
    moments and their count of steps stay as they are, the rate goes on by the number of the step. What is compared is
    equal on all ranks, so they decide alike. OUT/bad-step-N.json says what the step was.
    """

    def __init__(
        self,
        out: Path,
        manifest: Manifest,
        ledger: SampleLedger,
        losses: StreamLosses,
        clip: ClipGradients,
        detector: SpikeDetector,
        newest: Callable[[], str],
        allowed: int | None,
    ) -> None:
        """`newest`: which checkpoint training can go on from, in a sentence (saving.SaveCheckpoints)."""
        self._out, self._manifest, self._newest, self._allowed = out, manifest, newest, allowed
        self._ledger, self._losses, self._clip, self._detector = ledger, losses, clip, detector
        self._skipped: list[int] = []  # steps

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Judge the step, after the losses and the norm are known."""
        reason = self._detector.judge(self._losses.losses, self._losses.counts, self._clip.norm)
        if reason is None:
            return
        step = int(state.timestamp.batch)
        path = self._out / f"bad-step-{step:08d}.json"
        parts = dist.all_gather_object([(ids.tolist(), losses.tolist()) for ids, losses in self._losses.samples])
        if dist.get_global_rank() == 0:
            write_file(path, json.dumps(self._describe(state, step, reason, parts), indent=1).encode())
        damaged = not_finite(dict(state.model.named_parameters()))
        if self._allowed is None or damaged or len(self._skipped) >= self._allowed or not state.optimizers[0].state:
            raise BadStepError(
                f"step {step:,}: {reason}. Training stopped before this step's update. {self._newest()} The samples "
                f"are in {path}. Look at them: python trainer/replay.py {self._out}. {self._remedy(damaged)}"
            )
        self._skipped.append(step)
        self._ledger.skipped = reason
        for parameter in state.model.parameters():
            parameter.grad = None  # the optimizer leaves alone what has no gradient
        log.warning(
            "step %d: %s. It is not trained on (skipped steps: %d of at most %d); its samples are in %s",
            *(step, reason, len(self._skipped), self._allowed, path),
        )

    def _remedy(self, damaged: Sequence[str]) -> str:
        """What helps against this step: other things if it is a spike, a loss that is not finite, or the weights."""
        if damaged:
            return (
                f"The weights were damaged before this step: {tell(damaged)}. Run the same command again. If it stops "
                "here again, lower train.learning_rate; if not, a device or its memory failed: have it checked."
            )
        again = "To go on, run the same command again with a lower train.learning_rate"
        if all(map(math.isfinite, (*self._losses.losses.values(), self._clip.norm))):
            again += ", or with train.spike_factor=null if the data are as they should be"
        if self._allowed is None:
            again += ", or with train.on_bad_step=skip to go on without this step's update"
        elif self._skipped:
            again += f", or with a higher train.max_skipped_steps ({len(self._skipped)} were skipped before this one)"
        return f"{again}; or build a child plan (`parent`) that leaves these samples out."

    def batch_end(self, state: State, logger: Logger) -> None:
        """Remember the losses of a step that was trained on."""
        if not self._ledger.skipped:
            self._detector.add(self._losses.losses, self._losses.counts)

    def _describe(self, state: State, step: int, reason: str, parts: Sequence[Any]) -> dict[str, Any]:
        by_id = {k: loss for rank in parts for ids, losses in rank for k, loss in zip(ids, losses, strict=True)}
        ids = self._manifest.order.sample_ids(step)
        streams = self._manifest.order.stream_numbers(ids).tolist()
        return {
            "step": step,
            "reason": reason,
            "plan_id": self._manifest.plan_id,
            "losses": self._losses.losses,
            "grad_norm": self._clip.norm,
            "learning_rate": state.optimizers[0].param_groups[0]["lr"],
            "samples": [
                {"slot": slot, "stream": self._manifest.streams[number].name, "sample_id": k, "loss": by_id.get(k)}
                for slot, (k, number) in enumerate(zip(ids.tolist(), streams, strict=True))
            ],
        }

    def state_dict(self) -> dict[str, Any]:
        """Kept in checkpoints, as one text: its length may differ, and older checkpoints have no other key."""
        return {"losses": json.dumps({"usual": self._detector.dump(), "skipped": self._skipped})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Taken from a checkpoint; those of older versions hold the losses of each stream alone."""
        found = json.loads(state["losses"])
        if isinstance(found.get("usual"), str):
            self._detector.load(found["usual"])
            self._skipped = found["skipped"]
        else:
            self._detector.load(state["losses"])


@dataclass(frozen=True)
class Speed:
    """What a step's work is measured by."""

    flops_per_token: float  # of training: forward and backward
    peak_flops: float | None  # a second, of one rank's device; None: unknown


class StepLog(Callback):
    """Write one row a step to OUT/log.csv and to the loggers, and a line every `interval` steps to the console.

    Losses are means over all ranks; `samples/STREAM` counts what has been drawn since step 0. `data_wait` is the share
    of the step that the rank waited for its batch; `memory_gb` the most that the GPU held, on CPU what the process has;
    `skipped` says why a step was not trained on.
    """

    def __init__(
        self,
        out: Path,
        manifest: Manifest,
        ledger: SampleLedger,
        clip: ClipGradients,
        losses: StreamLosses,
        speed: Speed,
        *,
        interval: int,
        last: int,
    ) -> None:
        self._path, self._manifest, self._ledger, self._clip = out / "log.csv", manifest, ledger, clip
        self._losses, self._speed, self._interval, self._last = losses, speed, interval, last
        self._names = [stream.name for stream in manifest.streams]
        self._columns = [
            "step",
            "stage",
            "loss",
            *(f"{kind}/{name}" for kind in ("loss", "samples") for name in self._names),
            "learning_rate",
            "grad_norm",
            "seconds",
            "tokens_per_second",
            "data_wait",
            "memory_gb",
            "mfu",
            "skipped",
            "digest",  # the last: a row that was cut short shows
        ]
        self._file: TextIO | None = None
        self._learning_rate = self._wait = 0.0
        self._process = psutil.Process()
        self._begun = self._ended = self._asked = time.monotonic()  # training; the last step; the wait for a batch
        self._first = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the log; rows of steps after the checkpoint that this run resumes from go, for they come again."""
        self._first = int(state.timestamp.batch)
        self._begun = self._ended = time.monotonic()
        if dist.get_global_rank() == 0:
            rows = self._rows_so_far()
            kept = [row for row in rows if int(row["step"]) < self._first]
            write_file(self._path, dump_rows(kept, self._columns))
            self._file = self._path.open("a", newline="", encoding="utf-8")

    def _rows_so_far(self) -> list[dict[str, str]]:
        """Rows that are whole. No training is lost for its log: a damaged one is put aside, and gaps are told."""
        rows, problem = read_whole_rows(self._path) if self._path.is_file() else ([], "")
        if problem:
            aside = self._path.with_name("log.damaged.csv")
            self._path.replace(aside)
            log.warning("log.csv is damaged: %s. It is now %s; what is whole before that is kept", problem, aside)
        if gaps := missing_steps(rows, 0, self._first):
            log.warning("log.csv has no rows of these steps: %s", gap_words(gaps))
        return rows

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """The wait for a batch begins."""
        self._asked = time.monotonic()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Note when and with which rate the step begins."""
        self._started = time.monotonic()
        self._wait = self._started - self._asked
        self._learning_rate = state.optimizers[0].param_groups[0]["lr"]

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write the row of the step that ended."""
        if self._file is None:
            return
        now = time.monotonic()
        whole, self._ended = now - self._ended, now
        done = int(state.timestamp.batch)  # steps trained
        schedule = self._manifest.schedule
        cursors = schedule.cursors(done)
        rate = self._manifest.batch_size * self._manifest.seq_len / whole
        row: dict[str, Any] = {
            "step": done - 1,
            "stage": schedule.stages[schedule.stage_index(done - 1)].name,
            "loss": state.total_loss_dict["loss/train/total"],
            "learning_rate": self._learning_rate,
            "grad_norm": self._clip.norm,
            "seconds": round(now - self._started, 4),
            "tokens_per_second": round(rate, 1),
            "data_wait": round(self._wait / whole, 4),
            "memory_gb": round(self._memory() / 1e9, 3),
            "mfu": "",
            "skipped": self._ledger.skipped,
            "digest": self._ledger.digest,
        }
        if self._speed.peak_flops:
            peak = self._speed.peak_flops * dist.get_world_size()
            row["mfu"] = round(rate * self._speed.flops_per_token / peak, 4)
        for name in self._names:
            row[f"loss/{name}"] = self._losses.losses.get(name, "")
            row[f"samples/{name}"] = cursors.get(name, 0)
        with naming(self._path):
            csv.DictWriter(self._file, self._columns).writerow(row)
            self._file.flush()
        logger.log_metrics({name: value for name, value in row.items() if isinstance(value, int | float)}, step=done)
        if done % self._interval == 0 or done == self._last:
            print(self._line(row, done), flush=True)

    def _memory(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return int(self._process.memory_info().rss)

    def _line(self, row: dict[str, Any], done: int) -> str:
        rate = (done - self._first) / (time.monotonic() - self._begun)  # steps a second since the start
        by_stream = ", ".join(f"{n} {row[f'loss/{n}']:.3f}" for n in self._names if row[f"loss/{n}"] != "")
        tokens = rate * self._manifest.batch_size * self._manifest.seq_len
        mfu = f", MFU {row['mfu']:.1%}" if row["mfu"] != "" else ""
        waits = f", {row['data_wait']:.0%} waiting for data" if row["data_wait"] >= 0.05 else ""
        return (
            f"step {done}/{self._last} {row['stage']}: loss {row['loss']:.4f} ({by_stream}), "
            f"gradient norm {row['grad_norm']:.2f}, lr {row['learning_rate']:.2e}, {tokens:,.0f} tokens/s{mfu}{waits}, "
            f"{_duration((self._last - done) / rate)} left"
            f"{', NOT TRAINED ON' if row['skipped'] else ''}"
        )

    def close(self, state: State, logger: Logger) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
