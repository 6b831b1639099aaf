"""Sorted runs of an external sort: what units write by a random 64-bit key, and later units read a range of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dataengine.storage.arrays import damaged_unit, encode_npy, read_npy
from dataengine.storage.store import AddFile, Store

BUCKETS = 4096  # equal ranges of keys at which a run can be entered
RUN_KEYS = 1 << 21  # keys sorted at a time


def bucket_bounds(keys: NDArray[np.uint64], buckets: int = BUCKETS) -> NDArray[np.int64]:
    """Where each of `buckets` equal ranges of 64-bit keys begins in sorted keys, and, last, their number; shape
    (buckets + 1,)."""
    edges = np.array([(number << 64) // buckets for number in range(1, buckets)], np.uint64)
    inner = np.searchsorted(np.ascontiguousarray(keys), edges)
    return np.concatenate([[0], inner, [len(keys)]]).astype(np.int64)


def buckets_of(number: int, ranges: int) -> tuple[int, int]:
    """The buckets of range `number` of `ranges`: the first, and the one after the last."""
    return BUCKETS * number // ranges, BUCKETS * (number + 1) // ranges


def num_ranges(total: int, most: int) -> int:
    """How many ranges hold at most about `most` of `total` each; no more than there are buckets."""
    return min(max(1, -(-total // most)), BUCKETS)


def bucket_hashes(content: bytes, bounds: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """A hash of each bucket of a file of items of `size` bytes, by `bucket_bounds`; as those, shape (buckets + 1,)."""
    hashes, view = np.zeros(len(bounds), np.int64), memoryview(content)
    for bucket in np.flatnonzero(np.diff(bounds)).tolist():
        part = view[int(bounds[bucket]) * size : int(bounds[bucket + 1]) * size]
        hashes[bucket] = np.uint64(xxhash.xxh3_64_intdigest(part)).astype(np.int64)
    return hashes


class KeyRuns:
    """Gather keys, arrays of one dtype, and write them as sorted runs PREFIX.N: .keys, and .bounds.npy, shape (2,
    BUCKETS + 1): where each range of the keys' `column` begins, and the hash of what the file has there.

    `on_run` is called with the name of each run and its sorted keys.
    """

    def __init__(
        self,
        add: AddFile,
        prefix: str,
        column: str,
        sort: Callable[[NDArray[Any]], NDArray[Any]],
        on_run: Callable[[str, NDArray[Any]], None] = lambda name, keys: None,
    ) -> None:
        self._add, self._prefix, self._column, self._sort, self._on_run = add, prefix, column, sort, on_run
        self._parts: list[NDArray[Any]] = []
        self._waiting = self._runs = 0

    def add(self, keys: NDArray[Any]) -> None:
        """Take keys."""
        self._parts.append(keys)
        self._waiting += len(keys)
        if self._waiting >= RUN_KEYS:
            self._write()

    def finish(self) -> int:
        """Write what waits; return the number of runs."""
        if self._waiting:
            self._write()
        return self._runs

    def _write(self) -> None:
        keys = self._sort(np.concatenate(self._parts))
        name = f"{self._prefix}.{self._runs:05d}"
        content, bounds = keys.tobytes(), bucket_bounds(keys[self._column])
        self._add(f"{name}.keys", content)
        self._add(f"{name}.bounds.npy", encode_npy(np.stack([bounds, bucket_hashes(content, bounds, keys.itemsize)])))
        self._on_run(name, keys)
        self._runs, self._waiting, self._parts = self._runs + 1, 0, []


def read_keys(
    store: Store, fingerprint: str, prefix: str, runs: int, dtype: np.dtype[Any], buckets: tuple[int, int]
) -> NDArray[Any]:
    """The keys that a unit left by `KeyRuns`, those in buckets from a first one to before a last one, run after run."""
    low, high = buckets
    found = [np.empty(0, dtype)]
    for run in range(runs):
        name = f"units/{fingerprint}/{prefix}.{run:05d}"
        bounds, hashes = read_npy(store, f"{name}.bounds.npy")[:, low : high + 1]
        found.append(read_array(store, f"{name}.keys", dtype, bounds, hashes))
    return np.concatenate(found)


def read_array(
    store: Store, key: str, dtype: np.dtype[Any], bounds: NDArray[np.int64], hashes: NDArray[np.int64]
) -> NDArray[Any]:
    """The elements of some neighbouring buckets of an array that a unit left as its bytes.

    Takes where these buckets begin and the last one ends, and `bucket_hashes` of them. Raises InputError if the file is
    damaged there.
    """
    first, last = int(bounds[0]), int(bounds[-1])
    if first == last:
        return np.empty(0, dtype)
    try:
        content = store.read_range(key, first * dtype.itemsize, last * dtype.itemsize)
    except FileNotFoundError:
        raise damaged_unit(store, key) from None
    if not np.array_equal(bucket_hashes(content, bounds - first, dtype.itemsize)[:-1], hashes[:-1]):
        raise damaged_unit(store, key)
    return np.frombuffer(content, dtype)
