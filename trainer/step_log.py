"""Read OUT/log.csv, the row a step that callbacks.StepLog writes. Needs no Composer."""

from __future__ import annotations

import csv
from pathlib import Path


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log, one a step from step 0; a last row that was cut short is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if len(row["digest"] or "") == 64]
