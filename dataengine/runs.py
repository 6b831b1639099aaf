"""Sorted runs of an external sort: what units write by a random 64-bit key, and later units read a range of."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.storage import Store

BUCKETS = 4096  # equal ranges of keys at which a run can be entered


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


def read_array(store: Store, key: str, dtype: np.dtype[Any], first: int, last: int) -> NDArray[Any]:
    """Elements `first` to `last` - 1 of an array that a unit left as its bytes."""
    if first == last:
        return np.empty(0, dtype)
    return np.frombuffer(store.read_range(key, first * dtype.itemsize, last * dtype.itemsize), dtype)


def read_npy(store: Store, key: str) -> NDArray[Any]:
    """An array that a unit left as an .npy file. Not for threads: see `decode_npy`."""
    return decode_npy(store.read(key))


def decode_npy(content: bytes) -> NDArray[Any]:
    """An array from the content of an .npy file.

    One thread at a time: numpy reads the header by `ast.literal_eval`, of which two in a process at once can fail in
    Python 3.11 (SystemError: AST constructor recursion depth mismatch; seen once, in a build).
    """
    return np.load(io.BytesIO(content))  # type: ignore[no-any-return]


def encode_npy(array: NDArray[Any]) -> bytes:
    """An array as the content of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
