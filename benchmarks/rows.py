"""Rows of the benchmarks: a figure of ours beside a named peer's, as a line of a table or as a JSON object."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """What we and a peer reach in one run. A ratio above 1 means that we are better, also where less is better.

    The peer of a program is another program, or what must hold, such as the time of half the size, twice. A figure that
    has no peer leaves the three fields out.
    """

    benchmark: str  # such as build_en
    ours: float  # median of the runs
    unit: str  # such as "Mtok/s"
    peer: str = ""  # name and version
    peer_value: float | None = None
    ratio: float | None = None
    cpu_seconds: float | None = None  # of this process and its children, median of the runs
    peer_cpu_seconds: float | None = None
    runs: int = 1


def show(row: Row, *, as_json: bool) -> None:
    """Print a row: with `as_json` as one JSON object a line, without fields that were not measured."""
    fields = {name: value for name, value in asdict(row).items() if value not in (None, "")}
    print(json.dumps(fields) if as_json else line(row), flush=True)


def line(row: Row) -> str:
    """A row as a line of a table."""
    peer = f"{row.peer:36} {row.peer_value:12,.3f}" if row.peer_value is not None else ""
    ratio = f" {row.ratio:7.2f}x" if row.ratio is not None else ""
    cpu = ""
    if row.cpu_seconds is not None:
        against = "" if row.peer_cpu_seconds is None else f" against {row.peer_cpu_seconds:.2f} s"
        cpu = f"  CPU {row.cpu_seconds:.2f} s{against}"
    return f"{row.benchmark:26} {row.ours:12,.3f} {row.unit:20} {peer}{ratio}{cpu}".rstrip()


@contextmanager
def to_stderr() -> Iterator[None]:
    """Send what libraries and their processes print to stderr, so that stdout has rows alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def medians(runs: int, contenders: Mapping[str, Callable[[], Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The median of each figure of each contender.

    Contenders run in turn, so that a slow moment of the machine affects all alike.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for _ in range(runs):
        for name, run in contenders.items():
            for figure, value in run().items():
                found[name].setdefault(figure, []).append(value)
    return {name: {figure: _median(values) for figure, values in figures.items()} for name, figures in found.items()}


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def cpu_seconds() -> float:
    """CPU time that this process and its ended children have used."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
