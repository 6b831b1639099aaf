"""An external sort: units write arrays as runs sorted by a random 64-bit key, and later units read ranges of them.

A run has a file per array and a file of bounds. The bounds hold, for each of BUCKETS equal ranges of keys, the first
element in each array and a hash of the elements. So a range of keys can be read and checked without the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dataengine.arrays import Int64s, UInt64s
from dataengine.storage.arrays import damaged_unit, encode_npy, read_npy
from dataengine.storage.store import AddFile, Store

BUCKETS = 4096  # equal ranges of keys at which reading can begin
RUN_KEYS = 1 << 21  # keys sorted at a time

Bucketed = tuple[NDArray[Any], Int64s]  # an array; where each of its buckets begins, then its length


def bucket_bounds(keys: UInt64s, buckets: int = BUCKETS) -> Int64s:
    """Where each of `buckets` equal ranges of 64-bit keys begins in sorted keys, then the number of keys; shape
    (buckets + 1,)."""
    edges = np.array([(number << 64) // buckets for number in range(1, buckets)], np.uint64)
    inner = np.searchsorted(np.ascontiguousarray(keys), edges)
    return np.concatenate([[0], inner, [len(keys)]]).astype(np.int64)


def buckets_of(number: int, ranges: int) -> tuple[int, int]:
    """The buckets of range `number` of `ranges`: the first, and one past the last."""
    return BUCKETS * number // ranges, BUCKETS * (number + 1) // ranges


def num_ranges(total: int, most: int) -> int:
    """The number of ranges that hold about `most` of `total` each, at most BUCKETS."""
    return min(max(1, -(-total // most)), BUCKETS)


class SortedRuns:
    """Collect arrays and write them as sorted runs PREFIX.00000, PREFIX.00001, and so on.

    A run is written once the last array has `most` elements. `sort` turns the collected arrays into those of the run,
    by the suffixes of their files.
    """

    def __init__(self, add: AddFile, prefix: str, most: int, sort: Callable[..., Mapping[str, Bucketed]]) -> None:
        self._add, self._prefix, self._most, self._sort = add, prefix, most, sort
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._waiting = self._runs = 0

    @property
    def name(self) -> str:
        """Name of the current run."""
        return f"{self._prefix}.{self._runs:05d}"

    def add(self, *arrays: NDArray[Any]) -> None:
        """Add arrays, in the order of the parameters of `sort`."""
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
        arrays = self._sort(*map(np.concatenate, zip(*self._parts, strict=True)))
        files = {f"{self.name}.{suffix}": array for suffix, array in arrays.items()}
        write_buckets(self._add, f"{self.name}.bounds.npy", files)
        self._runs, self._waiting, self._parts = self._runs + 1, 0, []


def key_runs(add: AddFile, prefix: str, column: str, sort: Callable[[NDArray[Any]], NDArray[Any]]) -> SortedRuns:
    """Runs of keys only (one file, .keys): arrays of one dtype, in buckets by their `column`."""

    def sort_keys(keys: NDArray[Any]) -> dict[str, Bucketed]:
        ordered = sort(keys)
        return {"keys": (ordered, bucket_bounds(ordered[column]))}

    return SortedRuns(add, prefix, RUN_KEYS, sort_keys)


def read_runs(
    store: Store,
    fingerprint: str,
    prefix: str,
    runs: int,
    dtypes: Mapping[str, np.dtype[Any]],
    buckets: tuple[int, int],
) -> list[NDArray[Any]]:
    """Some buckets of the arrays that a unit wrote with `SortedRuns`, run after run.

    Takes the dtype of each array by its suffix, the first bucket and one past the last.
    """
    found = [[np.empty(0, dtype)] for dtype in dtypes.values()]
    for run in range(runs):
        name = f"units/{fingerprint}/{prefix}.{run:05d}"
        files = {f"{name}.{suffix}": dtype for suffix, dtype in dtypes.items()}
        for parts, array in zip(found, read_buckets(store, f"{name}.bounds.npy", files, buckets), strict=True):
            parts.append(array)
    return [np.concatenate(parts) for parts in found]


def write_buckets(add: AddFile, bounds: str, arrays: Mapping[str, Bucketed]) -> None:
    """Write arrays as raw bytes, and a file of bounds, shape (2 * arrays, buckets + 1): first a row per array with the
    beginnings of its buckets, then a row per array with their hashes."""
    hashes = []
    for name, (array, begins) in arrays.items():
        content = array.tobytes()
        hashes.append(_bucket_hashes(content, begins, array.itemsize))
        add(name, content)
    add(bounds, encode_npy(np.stack([*(begins for _, begins in arrays.values()), *hashes])))


def read_buckets(
    store: Store, bounds: str, dtypes: Mapping[str, np.dtype[Any]], buckets: tuple[int, int]
) -> list[NDArray[Any]]:
    """Neighbouring buckets of the arrays that a unit wrote with `write_buckets`, given the dtype of each file.

    Raises InputError if a file is missing, or damaged in these buckets.
    """
    low, high = buckets
    rows = read_npy(store, bounds)[:, low : high + 1]
    return [
        _read_array(store, key, dtype, begins, hashes)
        for (key, dtype), begins, hashes in zip(dtypes.items(), rows[: len(dtypes)], rows[len(dtypes) :], strict=True)
    ]


def _read_array(store: Store, key: str, dtype: np.dtype[Any], begins: Int64s, hashes: Int64s) -> NDArray[Any]:
    first, last = int(begins[0]), int(begins[-1])
    if first == last:
        return np.empty(0, dtype)
    try:
        content = store.read_range(key, first * dtype.itemsize, last * dtype.itemsize)
    except FileNotFoundError:
        raise damaged_unit(store, key) from None
    if not np.array_equal(_bucket_hashes(content, begins - first, dtype.itemsize)[:-1], hashes[:-1]):
        raise damaged_unit(store, key)
    return np.frombuffer(content, dtype)


def _bucket_hashes(content: bytes, begins: Int64s, size: int) -> Int64s:
    """A hash of each bucket, then a zero, for elements of `size` bytes; the shape of `begins`."""
    hashes, view = np.zeros(len(begins), np.int64), memoryview(content)
    for bucket in np.flatnonzero(np.diff(begins)).tolist():
        part = view[int(begins[bucket]) * size : int(begins[bucket + 1]) * size]
        hashes[bucket] = np.uint64(xxhash.xxh3_64_intdigest(part)).astype(np.int64)
    return hashes
