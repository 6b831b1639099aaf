"""Units that bring the records of a range together, with requests that grow with the parts and the data alone.

    files of parts -> SplitRuns (one for about SPLIT_BYTES of them) -> the same records, in a bucket per range

If every unit of a range read the files of all parts, that would be parts x ranges requests. With N bytes in P files, in
G = N / SPLIT_BYTES groups, and R ranges, there are P requests of SplitRuns and 2 x G x R of the units of the ranges,
for SPLIT_BYTES / R bytes each. Where these are fewer than _BLOCK, a second step of SplitRuns comes between: the first
one makes sqrt(R) coarse ranges, the second one cuts each of them, and all requests are for SPLIT_BYTES / sqrt(R) bytes.
So the requests are at most P + 4 x N / _BLOCK, and a few for each unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isqrt
from typing import ClassVar

import numpy as np

from dataengine.arrays import Int64s
from dataengine.build.external_sort import (
    Form,
    Source,
    Table,
    number_cuts,
    read_table,
    run_name,
    units_of,
    write_buckets,
)
from dataengine.build.rounds import Round, Rounds
from dataengine.build.units import Keep, OnProgress, Receipt, Unit
from dataengine.storage.store import AddFile, Store

SPLIT_BYTES = 1 << 26  # records of a SplitRuns unit, about; it takes four times this memory
_BLOCK = 1 << 17  # bytes that a request is worth: with 16 at a time and 20 ms each, 100 MB/s
MOST_FILES = 1024  # that a SplitRuns unit reads in the first step, so that many tiny ones are shared
_FEW = 16  # groups; a unit reads so many places at once

Places = tuple[Source, ...]


@dataclass(frozen=True)
class SplitRuns(Unit):
    """Write the records of some places by range, in the file `split`.

    They are in the ranges from `first` to `stop` of `ranges`, which fill `buckets` equal buckets.
    """

    kind: ClassVar[str] = "split"
    for_units: ClassVar[tuple[str, ...]] = ("split",)
    sources: Places
    form: Form = field(metadata={"identity": False})  # the units of the sources decide it
    ranges: int
    first: int
    stop: int
    buckets: int
    size: int = field(metadata={"identity": False})  # an estimate, for progress

    @property
    def inputs(self) -> tuple[str, ...]:
        return units_of(self.sources)

    @property
    def input_bytes(self) -> int:
        return self.size

    @property
    def starts(self) -> list[int]:
        """The first range of each bucket, then `stop`."""
        return [self.first + (self.stop - self.first) * k // self.buckets for k in range(self.buckets + 1)]

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        table, places = _by_bucket(read_table(store, self.sources, self.form), self)
        on_progress(self.size)
        arrays = [(table.heads, places)]
        if self.form.element is not None:
            ends = np.concatenate([[0], np.cumsum(table.heads[self.form.sizes], dtype=np.int64)])
            arrays.append((table.elements, ends[places]))
        write_buckets(add, "split", arrays)
        return Receipt(kept=len(table.heads))


def _by_bucket(table: Table, unit: SplitRuns) -> tuple[Table, Int64s]:
    """The records by bucket, otherwise in their order, and where each bucket begins."""
    buckets = number_cuts(unit.starts)[unit.form.ranges_of(table.heads, unit.ranges) - unit.first]
    places = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=unit.buckets))])
    return table.take(np.argsort(buckets, kind="stable"), unit.form), places


def part_sources(
    part: int, fingerprint: str, prefix: str, runs: int, size: int, alive: Keep | None = None
) -> list[tuple[Source, int]]:
    """The runs of a part with about `size` bytes, and the bytes of each."""
    names = [run_name(prefix, number) for number in range(runs)]
    return [(Source(fingerprint, name, part=part, alive=alive), size // runs) for name in names]


def split(title: str, files: Sequence[tuple[Source, int]], form: Form, ranges: int) -> Rounds[list[Places]]:
    """Rounds of units that split files, given with about their bytes. Returns where the records of each range are."""
    sources = tuple(source for source, _ in files)
    if ranges == 1:
        return [sources]
    groups = _group(files)
    size = sum(size for _, size in groups)
    small = needs_two_steps(len(groups), size, ranges)
    coarse = isqrt(ranges) if small else ranges
    units = [SplitRuns(places, form, ranges, 0, ranges, coarse, size) for places, size in groups]
    yield Round(title, units)
    split_units = [unit.fingerprint for unit in units]
    if not small:
        return [_buckets(split_units, number, ranges) for number in range(ranges)]
    starts, count = units[0].starts, min(-(-size // (coarse * SPLIT_BYTES)), len(units))
    again = [
        SplitRuns(_buckets(some, number, coarse), form, ranges, first, stop, stop - first, size // (coarse * count))
        for number, (first, stop) in enumerate(pairwise(starts))
        for some in _deal(split_units, count)
    ]
    yield Round(title, again)
    places: list[list[Source]] = [[] for _ in range(ranges)]
    for unit in again:
        fingerprint = unit.fingerprint
        for number in range(unit.first, unit.stop):
            places[number].append(Source(fingerprint, "split", number - unit.first, unit.buckets))
    return list(map(tuple, places))


def needs_two_steps(groups: int, size: int, ranges: int) -> bool:
    """Whether the requests of one step are too small."""
    return groups > _FEW and size < _BLOCK * groups * ranges


def _group(files: Sequence[tuple[Source, int]]) -> list[tuple[Places, int]]:
    """Groups of neighbouring files, with about SPLIT_BYTES or MOST_FILES each, and their bytes."""
    groups: list[tuple[list[Source], int]] = []
    for source, size in files:
        if not groups or groups[-1][1] + size > SPLIT_BYTES or len(groups[-1][0]) >= MOST_FILES:
            groups.append(([], 0))
        groups[-1] = (groups[-1][0], groups[-1][1] + size)
        groups[-1][0].append(source)
    return [(tuple(sources), size) for sources, size in groups]


def _buckets(units: Sequence[str], bucket: int, buckets: int) -> Places:
    """One bucket of the files of SplitRuns units."""
    return tuple(Source(unit, "split", bucket, buckets) for unit in units)


def _deal(units: Sequence[str], count: int) -> list[Sequence[str]]:
    """Cut a sequence into `count` equal ones."""
    return [units[len(units) * k // count : len(units) * (k + 1) // count] for k in range(count)]
