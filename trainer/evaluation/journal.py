"""Completions on disk, a batch a line, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dataengine.errors import naming
from trainer.evaluation.decode import Completion
from trainer.run.folder import parse_json

# Keep what is finished.


class FinishedBatches:
    """Completions on disk as JSON lines, a batch a line, so that an evaluation that is killed goes on where it was."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint  # of all that decides the completions

    def read(self) -> dict[int, list[Completion]]:
        """Batches by number; a last line that was cut short and lines of other settings are left out."""
        found = {}
        with suppress(FileNotFoundError):  # also if another evaluation of the same has finished
            for line in self._path.read_bytes().split(b"\n"):
                with suppress(ValueError, KeyError, TypeError):
                    row = parse_json(line)
                    if row["fingerprint"] == self._fingerprint:
                        found[row["batch"]] = [Completion(text, unfinished) for text, unfinished in row["completions"]]
        return found

    def add(self, batch: int, completions: Sequence[Completion]) -> None:
        """Append a batch, so that it survives this process."""
        row = {
            "fingerprint": self._fingerprint,
            "batch": batch,
            "completions": [[one.text, one.unfinished] for one in completions],
        }
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(row, ensure_ascii=False) + "\n")  # a cut line before it ends here
