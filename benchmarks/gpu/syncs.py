"""Count the operations at which the host waits for the GPU, and where in the code they are."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.processes import ROOT

_WORDS = "synchronizing CUDA operation"  # of PyTorch's warning


class SyncCounter:
    """Between `start` and `stop`, count PyTorch's warnings of synchronizing operations by place.

    PyTorch does not notice all of them: not those of torch.distributed and of sparse tensors (set_sync_debug_mode).
    """

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._filters: Any = None

    def start(self) -> None:
        """Let PyTorch warn of each."""
        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._note
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        """End the counting."""
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self._filters.__exit__(None, None, None)

    def _note(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if _WORDS in str(message):
            self.places[_place()] += 1


def _place() -> str:
    """Return the line that runs, and the innermost line of this project if that is another one."""
    frame: Any = sys._getframe(1)
    while frame and Path(frame.f_code.co_filename).name in (Path(__file__).name, "warnings.py"):
        frame = frame.f_back
    places = []
    while frame:
        places.append((Path(frame.f_code.co_filename), frame.f_lineno))
        frame = frame.f_back
    own = [place for place in places if place[0].parent.is_relative_to(ROOT / "trainer")]
    lines = dict.fromkeys([*places[:1], *own[:1]])
    return ", in ".join(f"{'/'.join(path.parts[-2:])}:{number}" for path, number in lines)
