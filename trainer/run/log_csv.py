"""Write OUT/log.csv, the log with one row per step; `dataengine.schedule.log_csv` reads it. Needs no Composer."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from dataengine.schedule.log_csv import missing_steps, next_digest, parse_rows, read_log, read_whole_rows, skipped_steps

__all__ = [
    "dump_rows",
    "gap_words",
    "missing_steps",
    "next_digest",
    "parse_rows",
    "read_log",
    "read_whole_rows",
    "skipped_steps",
]
_GAPS_SHOWN = 5
COLUMNS = {
    "step": "Number of the step, from 0.",
    "stage": "Stage of the step.",
    "loss": "Mean loss of the batch, over all ranks, in nats per token.",
    "loss/STREAM": "Mean loss of the samples of a stream; empty if the step has none.",
    "samples/STREAM": "Samples of a stream drawn since step 0.",
    "learning_rate": "Learning rate of the step.",
    "grad_norm": "Gradient norm before clipping.",
    "seconds": "Duration of the step without the wait for its batch.",
    "tokens_per_second": "Predicted tokens per second, over all ranks.",
    "data_wait": "Share of the step that rank 0 waited for its batch.",
    "memory_gb": "Peak GPU memory of rank 0; on a CPU the memory of its process.",
    "mfu": "Model FLOPs utilization; empty if the peak of the device is not known.",
    "skipped": "Why the step was not trained on; else empty.",
    "digest": "Digest of all samples up to this step (SHA-256).",  # the last: a row that was cut short shows
}


def expand_columns(streams: Sequence[str]) -> list[str]:
    """The columns of a log of these streams."""
    return [
        name.replace("STREAM", stream)
        for name in COLUMNS
        for stream in (streams if name.endswith("/STREAM") else ("",))
    ]


def dump_rows(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> bytes:
    """A log of these columns; a row may lack some."""
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue().encode()


def gap_words(gaps: Sequence[tuple[int, int]]) -> str:
    """Gaps for a message, of many the first."""
    words = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in gaps[:_GAPS_SHOWN]]
    more = f" and in {len(gaps) - _GAPS_SHOWN:,} more places" if len(gaps) > _GAPS_SHOWN else ""
    return f"{', '.join(words)}{more}"
