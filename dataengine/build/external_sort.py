"""Records of many parts, brought together by ranges of a key in bounded memory (`split` has the units that do so).

A unit writes its records in files. A file has one bucket or more: a range of keys each, with the records in it and
their elements (tokens, shingles) side by side. A head gives the place and a hash of each bucket. So one request reads a
file with one bucket, and two read and check a bucket of many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dataengine.arrays import Int64s, with_part
from dataengine.build.units import Keep
from dataengine.storage.arrays import damaged_unit, in_threads
from dataengine.storage.store import AddFile, Store
from dataengine.text.packing import gather

BUCKETS = 4096  # equal ranges of 64-bit keys at which a range can begin
RUN_KEYS = 1 << 21  # keys of a run
_KEY_SHIFT = np.uint64(64 - (BUCKETS - 1).bit_length())

Bucketed = tuple[NDArray[Any], Int64s]  # an array; where each of its buckets begins, then its length


@dataclass(frozen=True)
class Form:
    """The form of records: their fields, the field that decides their range, and the elements that each may have."""

    head: np.dtype[Any]  # as the units of parts write them
    by: str  # a field: a 64-bit key, or (of fewer bits) the number of the range
    sizes: str = ""  # a field: the number of the record's elements
    element: np.dtype[Any] | None = None

    @property
    def moved(self) -> np.dtype[Any]:
        """The fields with the number of the part."""
        return with_part(np.empty(0, self.head), 0).dtype

    def ranges_of(self, heads: NDArray[Any], ranges: int) -> NDArray[Any]:
        """The range of each record, of `ranges`; shape (n,)."""
        values: NDArray[Any] = np.asarray(heads[self.by])
        if values.dtype.itemsize < 8:
            return values
        cuts = number_cuts([BUCKETS * number // ranges for number in range(ranges + 1)])
        return np.asarray(cuts[values >> _KEY_SHIFT])


@dataclass(frozen=True)
class Table:
    """n records, and their elements one after the other (none without a form for them)."""

    heads: NDArray[Any]
    elements: NDArray[Any]

    def take(self, order: Int64s, form: Form) -> Table:
        """The records in another order."""
        sizes = self.heads[form.sizes].astype(np.int64) if form.sizes else None
        return Table(self.heads.take(order), self.elements if sizes is None else gather(self.elements, sizes, order))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a unit finds records: a bucket in a file of another unit."""

    unit: str  # its fingerprint
    name: str
    bucket: int = 0
    buckets: int = 1
    part: int | None = None  # the number of the records' part; None: the records have it
    alive: Keep | None = None  # the records of the part that count; all, if None

    def read(self, store: Store, form: Form) -> Table:
        """The records, with the number of their part. Raises InputError if they are missing or damaged."""
        dtypes = [form.moved if self.part is None else form.head, *([form.element] if form.element else [])]
        arrays = read_bucket(store, f"units/{self.unit}/{self.name}", dtypes, self.bucket, self.buckets)
        heads = arrays[0] if self.part is None else with_part(arrays[0], self.part)
        if self.alive is not None:
            bits, records = self.alive.read(store), heads["record"]
            heads = heads[(bits[records >> 3] << (records & 7).astype(np.uint8)) & 0x80 > 0]
        return Table(heads, arrays[1] if form.element else np.empty(0, np.uint8))


def units_of(sources: Sequence[Source]) -> tuple[str, ...]:
    """Fingerprints of the units that wrote the records."""
    return tuple(dict.fromkeys(source.unit for source in sources))


def read_table(store: Store, sources: Sequence[Source], form: Form) -> Table:
    """The records of all sources, in their order. The memory is twice that of the records."""
    found = list(in_threads(lambda source: source.read(store, form), sources))
    return Table(
        np.concatenate([np.empty(0, form.moved), *(table.heads for table in found)]),
        np.concatenate([np.empty(0, form.element or np.uint8), *(table.elements for table in found)]),
    )


def number_cuts(starts: Sequence[int]) -> NDArray[Any]:
    """For each number from the first of sorted starts to the last, the place of the latest start at or before it; in a
    small dtype, which sorts fast."""
    count = len(starts) - 1
    return np.repeat(np.arange(count, dtype=np.min_scalar_type(count)), np.diff(starts))


def num_ranges(total: int, most: int) -> int:
    """The number of ranges that hold about `most` of `total` each, at most BUCKETS."""
    return min(max(1, -(-total // most)), BUCKETS)


class Runs:
    """Collect arrays (records, and perhaps their elements) and write them as runs PREFIX.00000, PREFIX.00001, and so
    on: files with one bucket.

    A run is written once the last array has `most` elements, after a call of `before` with its name and arrays.
    """

    def __init__(
        self, add: AddFile, prefix: str, most: int, before: Callable[..., None] = lambda name, *arrays: None
    ) -> None:
        self._add, self._prefix, self._most, self._before = add, prefix, most, before
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._waiting = self._runs = 0

    def add(self, *arrays: NDArray[Any]) -> None:
        """Add arrays."""
        self._parts.append(arrays)
        self._waiting += len(arrays[-1])
        if self._waiting >= self._most:
            self._write()

    def finish(self) -> int:
        """Write the last run; return the number of runs."""
        if self._parts:
            self._write()
        return self._runs

    def _write(self) -> None:
        arrays = list(map(np.concatenate, zip(*self._parts, strict=True)))
        self._parts = []
        name = run_name(self._prefix, self._runs)
        self._before(name, *arrays)
        write_buckets(self._add, name, list(map(whole_bucket, arrays)))
        self._runs, self._waiting = self._runs + 1, 0


def run_name(prefix: str, number: int) -> str:
    """The file of a run."""
    return f"{prefix}.{number:05d}"


def whole_bucket(array: NDArray[Any]) -> Bucketed:
    """An array in one bucket."""
    return array, np.array([0, len(array)])


def write_buckets(add: AddFile, name: str, arrays: Sequence[Bucketed]) -> None:
    """Write arrays bucket by bucket, after a head of int64, shape (buckets + 1, arrays + 2).

    A row of the head is where the bucket begins in each array, the hash of its bytes, and the hash of the row.
    """
    begins = np.stack([places for _, places in arrays], axis=1)
    head = np.zeros((len(begins), len(arrays) + 2), "<i8")
    head[:, :-2] = begins
    views = [np.ascontiguousarray(array).view(np.uint8).data for array, _ in arrays]
    sizes = [array.itemsize for array, _ in arrays]
    pieces: list[memoryview] = []
    for bucket, (low, high) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
        here = [view[low[k] * size : high[k] * size] for k, (view, size) in enumerate(zip(views, sizes, strict=True))]
        head[bucket, -2] = _hash(*here)
        pieces += here
    head[:, -1] = [_hash(row[:-1].tobytes()) for row in head]
    add(name, b"".join([head.tobytes(), *pieces]))


def read_bucket(
    store: Store, key: str, dtypes: Sequence[np.dtype[Any]], bucket: int = 0, buckets: int = 1
) -> list[NDArray[Any]]:
    """The arrays of a bucket of a file of `write_buckets`, given their dtypes and its number of buckets.

    Raises InputError if the file is missing, or damaged in this bucket.
    """
    row = 8 * (len(dtypes) + 2)
    try:
        if buckets == 1:
            content = store.read(key)
            head, body = content[: 2 * row], memoryview(content)[2 * row :]
        else:
            head, body = store.read_range(key, bucket * row, (bucket + 2) * row), None
        rows = np.frombuffer(head, "<i8").reshape(2, len(dtypes) + 2)
        if any(one[-1] != _hash(one[:-1].tobytes()) for one in rows):
            raise ValueError
        sizes = [dtype.itemsize for dtype in dtypes]
        low, high = ([place * size for place, size in zip(one, sizes, strict=False)] for one in rows.tolist())
        if body is None:
            first = (buckets + 1) * row + sum(low)
            stop = first + sum(high) - sum(low)
            body = memoryview(store.read_range(key, first, stop) if stop > first else b"")
        if rows[0, -2] != _hash(body):
            raise ValueError
    except (FileNotFoundError, ValueError):
        raise damaged_unit(store, key) from None
    ends = np.cumsum(np.subtract(high, low)).tolist()
    return [np.frombuffer(body[a:b], dtype) for a, b, dtype in zip([0, *ends], ends, dtypes, strict=False)]


def _hash(*pieces: bytes | memoryview) -> np.int64:
    whole = xxhash.xxh3_64()
    for piece in pieces:
        whole.update(piece)
    return np.uint64(whole.intdigest()).astype(np.int64)
