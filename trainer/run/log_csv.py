"""OUT/log.csv as `StepLog` writes it; `dataengine.schedule.log_csv` reads it. Needs no Composer."""

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
