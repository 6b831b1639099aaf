"""The rows of a run's log.csv, one per step, with their digests. The trainer writes them; this module reads them."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from dataengine.arrays import Int64s
from dataengine.errors import InputError

_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log, one per step, in order. A last row that was cut short is left out.

    Steps may be missing if the log was damaged earlier. Raises InputError if an earlier row is damaged.
    """
    rows, problem = read_whole_rows(path)
    if problem:
        raise InputError(f"{path} is damaged: {problem}. Remove or fix it; a resumed run sets it aside by itself.")
    return rows


def read_whole_rows(path: Path) -> tuple[list[dict[str, str]], str]:
    """The rows before the first damaged one, and its line with the reason; empty if all rows are whole."""
    return parse_rows(path.read_bytes())


def parse_rows(content: bytes) -> tuple[list[dict[str, str]], str]:
    """As `read_whole_rows`, for the content of a log."""
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
            is_later = (
                step.isdecimal() and len(step) < 20 and int(step) > after
            )  # an earlier damage may have left a gap
            if not (is_later and _DIGEST.fullmatch(row["digest"] or "") and None not in row):
                words = f"line {reader.line_num} is not a row of a step after {after}"
                return rows, words if reader.line_num <= whole else ""
            rows.append(row)
    except csv.Error as error:
        return rows, f"line {reader.line_num}: {error}"
    return rows, ""


def missing_steps(rows: Sequence[Mapping[str, str]], begin: int, end: int) -> list[tuple[int, int]]:
    """The gaps of a log between the steps `begin` and `end` (exclusive): first and last missing step of each."""
    logged = [int(row["step"]) for row in rows if begin <= int(row["step"]) < end]
    edges = pairwise([begin - 1, *logged, end])
    return [(before + 1, after - 1) for before, after in edges if after - before > 1]


def skipped_steps(rows: Iterable[Mapping[str, str]]) -> dict[int, str]:
    """The logged steps whose samples were read but not trained on, with the reason. Older logs have none."""
    return {int(row["step"]): row["skipped"] for row in rows if row.get("skipped")}


def next_digest(digest: str, step: int, sample_ids: Int64s, *, skipped: bool = False) -> str:
    """The digest of all samples up to a step, as in a run's log.csv: from the digest before the step, "" at first.

    Takes the ids of all samples of the step, in the order of the batch: gather them from all ranks. A step that was
    read but not trained on (`skipped`) gives a different digest.

        digest = ""
        for batch in manifest.batches():
            digest = dataengine.next_digest(digest, batch.step, batch.sample_ids)
    """
    content = bytes.fromhex(digest) + np.int64(step).astype("<i8").tobytes() + sample_ids.astype("<i8").tobytes()
    return hashlib.sha256(content + (b"skipped" if skipped else b"")).hexdigest()
