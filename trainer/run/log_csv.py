"""Read OUT/log.csv, the log that `StepLog` writes with one row a step, and its digest. Does not need Composer."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from dataengine.arrays import Int64s
from dataengine.errors import InputError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_GAPS_SHOWN = 5


def read_log(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log, one a step, in order, without a truncated last row.

    Steps lost to an earlier damage are missing. Raises InputError if any other row is damaged.
    """
    rows, problem = read_whole_rows(path)
    if problem:
        raise InputError(f"{path} is damaged: {problem}. Fix or remove it; a resumed run moves it aside itself.")
    return rows


def read_whole_rows(path: Path) -> tuple[list[dict[str, str]], str]:
    """Return the rows before the first damaged one, and its line and fault; "" if none is damaged."""
    return parse_rows(path.read_bytes())


def parse_rows(content: bytes) -> tuple[list[dict[str, str]], str]:
    """The same of a log's content."""
    rows: list[dict[str, str]] = []
    text = content.decode("utf-8", errors="replace")
    lines = text.splitlines()
    whole = len(lines) - (not text.endswith("\n"))  # the last line may be cut short, anywhere
    try:
        reader = csv.DictReader(lines, strict=True)
        names = reader.fieldnames or []
        if not {"step", "stage", "digest"} <= set(names):
            return [], "its first line does not name step, stage and digest" if whole > 0 else ""
        for row in reader:
            step = row["step"] or ""
            after = int(rows[-1]["step"]) if rows else -1
            is_later = step.isdecimal() and int(step) > after  # a gap is what an earlier damage left
            if not (is_later and _DIGEST.fullmatch(row["digest"] or "") and None not in row):
                words = f"line {reader.line_num} is no row of a step after {after}"
                return rows, words if reader.line_num <= whole else ""
            rows.append(row)
    except csv.Error as error:
        return rows, f"line {reader.line_num}: {error}"
    return rows, ""


def dump_rows(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> bytes:
    """A log of these columns; a row may lack some."""
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue().encode()


def missing_steps(rows: Sequence[Mapping[str, str]], begin: int, end: int) -> list[tuple[int, int]]:
    """The steps from `begin` on and before `end` that a log has no rows of, as the first and last step of each gap."""
    logged = [int(row["step"]) for row in rows if begin <= int(row["step"]) < end]
    edges = pairwise([begin - 1, *logged, end])
    return [(before + 1, after - 1) for before, after in edges if after - before > 1]


def gap_words(gaps: Sequence[tuple[int, int]]) -> str:
    """Gaps for a message, of many the first."""
    words = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in gaps[:_GAPS_SHOWN]]
    more = f" and in {len(gaps) - _GAPS_SHOWN:,} more places" if len(gaps) > _GAPS_SHOWN else ""
    return f"{', '.join(words)}{more}"


def skipped_steps(rows: Iterable[Mapping[str, str]]) -> dict[int, str]:
    """The logged steps whose samples were seen and not trained on, and why. Logs of older versions have none."""
    return {int(row["step"]): row["skipped"] for row in rows if row.get("skipped")}


def next_digest(digest: str, step: int, sample_ids: Int64s, *, skipped: bool = False) -> str:
    """The ledger's digest after a step; that of a step that was not trained on is another one."""
    content = bytes.fromhex(digest) + np.int64(step).astype("<i8").tobytes() + sample_ids.astype("<i8").tobytes()
    return hashlib.sha256(content + (b"skipped" if skipped else b"")).hexdigest()
