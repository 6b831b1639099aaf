"""OUT/log.csv, the row a step that callbacks.StepLog writes, and the digest in it. Needs no Composer."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np

from dataengine.schedule import Int64s


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log, one a step from step 0; a last row that was cut short is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if len(row["digest"] or "") == 64]


def next_digest(digest: str, step: int, sample_ids: Int64s) -> str:
    """The ledger's digest after a step."""
    content = bytes.fromhex(digest) + np.int64(step).astype("<i8").tobytes() + sample_ids.astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()
