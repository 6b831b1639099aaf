"""Keyed permutations and hashes of integers, in closed form.

The arithmetic is implemented here, so results do not depend on the version of any library.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s

_ROUNDS = 4
_MASK = (1 << 64) - 1


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a tuple of integers and names."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(index: Int64s, size: int, key: int) -> Int64s:
    """Map positions in [0, size) one-to-one to positions in [0, size), by an alternating Feistel network.

    Positions form a grid of about sqrt(size) columns. Each round shifts the columns by a hash of the row, then the rows
    by a hash of the column. The few positions that land beyond `size` are mapped again.
    """
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    result = index.astype(np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        column, row = np.divmod(result[walking], np.uint64(rows))
        for turn in range(_ROUNDS):
            column = (column + _mix(row, key, 2 * turn) % np.uint64(columns)) % np.uint64(columns)
            row = (row + _mix(column, key, 2 * turn + 1) % np.uint64(rows)) % np.uint64(rows)
        result[walking] = column * np.uint64(rows) + row
        walking = walking[result[walking] >= size]
    return result.astype(np.int64)


def hash_numbers(numbers: Int64s, key: int) -> NDArray[np.uint64]:
    """A keyed 64-bit hash of each number. Different numbers have different hashes."""
    return _mix(numbers.astype(np.uint64), key, 0)


def _mix(value: NDArray[np.uint64], key: int, turn: int) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014), keyed."""
    with np.errstate(over="ignore"):
        bits = value + np.uint64((key + (turn + 1) * 0x9E3779B97F4A7C15) & _MASK)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))
