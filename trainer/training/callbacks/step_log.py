"""Write a row per step to OUT/log.csv (read by run/log_csv) and to the loggers."""

from __future__ import annotations

import csv
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch

from dataengine.errors import naming
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import write_file
from dataengine.tables import few
from trainer.run.log_csv import dump_rows, expand_columns, gap_words, missing_steps, read_whole_rows
from trainer.training.callbacks.gradients import ClipGradients
from trainer.training.callbacks.ledger import SampleLedger
from trainer.training.callbacks.losses import StreamLosses
from trainer.training.callbacks.protocol import Callback, State

log = logging.getLogger(__name__)
_STREAMS = 12  # whose losses the console shows


@dataclass(frozen=True)
class Speed:
    """The figures behind MFU."""

    flops_per_token: float  # of training: forward and backward
    peak_flops: float | None  # per second, of the devices of all ranks; None: unknown


class StepLog(Callback):
    """Write one row per step to OUT/log.csv and to the loggers, and a line every `interval` steps to the console.

    Losses are means over all ranks; `samples/STREAM` counts the samples drawn since step 0. `data_wait` is the share of
    the step that rank 0 waited for its batch; `memory_gb` is the peak memory of its GPU, or on CPU the memory of its
    process; `skipped` is the reason why a step was not trained on.
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
        self._columns = expand_columns(self._names)
        self._file: TextIO | None = None
        self._learning_rate = self._wait = 0.0
        self._process = psutil.Process()
        self._begun = self._ended = self._asked = time.monotonic()  # of training, the last step, the wait for a batch
        self._first = 0

    def fit_start(self, state: State) -> None:
        """Open the log; remove the rows after the checkpoint that this run resumes from, since they come again."""
        self._first = state.step
        self._begun = self._ended = time.monotonic()
        kept = [row for row in self._rows_so_far() if int(row["step"]) < self._first]
        write_file(self._path, dump_rows(kept, self._columns))
        self._file = self._path.open("a", newline="", encoding="utf-8")

    def _rows_so_far(self) -> list[dict[str, str]]:
        """Return the complete rows. A damaged log never ends a training: it is renamed, and gaps are reported."""
        rows, problem = read_whole_rows(self._path) if self._path.is_file() else ([], "")
        if problem:
            aside = self._path.with_name("log.damaged.csv")
            self._path.replace(aside)
            log.warning("log.csv is damaged: %s. It is now %s; its complete rows before that are kept", problem, aside)
        if gaps := missing_steps(rows, 0, self._first):
            log.warning("log.csv has no rows of these steps: %s", gap_words(gaps))
        return rows

    def before_dataloader(self, state: State) -> None:
        """Note the time at which the wait for a batch begins."""
        self._asked = time.monotonic()

    def batch_start(self, state: State) -> None:
        """Note the time and the learning rate at the step's start."""
        self._started = time.monotonic()
        self._wait = self._started - self._asked
        self._learning_rate = state.optimizer.param_groups[0]["lr"]

    def batch_end(self, state: State) -> None:
        """Write the row of the finished step."""
        assert self._file is not None  # opened by fit_start
        now = time.monotonic()
        whole, self._ended = now - self._ended, now
        done = state.step  # steps trained
        schedule = self._manifest.schedule
        cursors = schedule.cursors(done)
        rate = self._manifest.batch_size * self._manifest.seq_len / whole
        row: dict[str, Any] = {
            "step": done - 1,
            "stage": schedule.stages[schedule.stage_index(done - 1)].name,
            "loss": state.loss,
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
            row["mfu"] = round(rate * self._speed.flops_per_token / self._speed.peak_flops, 4)
        for name in self._names:
            row[f"loss/{name}"] = self._losses.losses.get(name, "")
            row[f"samples/{name}"] = cursors.get(name, 0)
        with naming(self._path):
            csv.DictWriter(self._file, self._columns).writerow(row)
            self._file.flush()
        state.log_metrics({name: value for name, value in row.items() if isinstance(value, int | float)})
        if done % self._interval == 0 or done == self._last:
            print(self._line(row, done), flush=True)

    def _memory(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return int(self._process.memory_info().rss)

    def _line(self, row: dict[str, Any], done: int) -> str:
        rate = (done - self._first) / (time.monotonic() - self._begun)  # steps per second since the start
        shown = [f"{n} {row[f'loss/{n}']:.3f}" for n in self._names if row[f"loss/{n}"] != ""]
        by_stream = few(shown, _STREAMS)
        tokens = rate * self._manifest.batch_size * self._manifest.seq_len
        mfu = f", MFU {row['mfu']:.1%}" if row["mfu"] != "" else ""
        waits = f", {row['data_wait']:.0%} waiting for data" if row["data_wait"] >= 0.05 else ""
        return (
            f"step {done}/{self._last} {row['stage']}: loss {row['loss']:.4f} ({by_stream}), "
            f"gradient norm {row['grad_norm']:.2f}, lr {row['learning_rate']:.2e}, {tokens:,.0f} tokens/s{mfu}{waits}, "
            f"{_duration((self._last - done) / rate)} left"
            f"{', NOT TRAINED ON' if row['skipped'] else ''}"
        )

    def close(self) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
