"""Keyed permutations and hashes of integers, in closed form.

The arithmetic is implemented here, so results do not depend on the version of any library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from dataengine.arrays import Int64s, UInt64s

_ROUNDS = 4
_MASK = (1 << 64) - 1
_AT_ONCE = 8192  # positions whose arrays stay in the cache of a core; in large arrays, page faults take half the time


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a tuple of integers and names."""
    return int.from_bytes(_digest(key_head(*parts)), "little")


def key_head(*parts: int | str) -> str:
    """The first parts of many keys, as text, for `derive_keys`."""
    return "/".join(f"{type(part).__name__}:{part}" for part in parts)


def derive_keys(heads: Iterable[str], use: str, numbers: Iterable[tuple[int, ...]]) -> UInt64s:
    """The key `derive_key(*parts, use, *numbers)` of each head, made of such parts, and its numbers."""
    texts = (f"{head}/str:{use}" + "/int:%d" * len(last) % last for head, last in zip(heads, numbers, strict=True))
    return np.frombuffer(b"".join(map(_digest, texts)), "<u8").astype(np.uint64)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def permute(index: Int64s, size: int | Int64s, key: int | UInt64s) -> Int64s:
    """Map positions in [0, size) one-to-one to positions in [0, size), by an alternating Feistel network.

    Positions form a grid of about sqrt(size) columns. Each round shifts the columns by a hash of the row, then the rows
    by a hash of the column. The few positions that land beyond `size` are mapped again. Sizes and keys may be those of
    each position, so one call covers positions of many permutations.
    """
    sizes = np.broadcast_to(np.asarray(size, np.int64).astype(np.uint64), index.shape)
    keys = np.broadcast_to(np.asarray(key, np.uint64), index.shape)
    result = np.empty(len(index), np.int64)
    for first in range(0, len(index), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        result[some] = _permute(index[some].astype(np.uint64), sizes[some], keys[some])
    return result


def _permute(result: UInt64s, sizes: UInt64s, keys: UInt64s) -> UInt64s:
    columns = _root(sizes - np.uint64(1)) + np.uint64(1)
    rows = (sizes + columns - np.uint64(1)) // columns
    walking = np.arange(len(result))
    while len(walking):
        column, row = np.divmod(result[walking], rows)
        for turn in range(_ROUNDS):
            column = (column + _mix(row, keys, 2 * turn) % columns) % columns
            row = (row + _mix(column, keys, 2 * turn + 1) % rows) % rows
        result[walking] = found = column * rows + row
        beyond = found >= sizes
        walking, sizes, keys, columns, rows = (each[beyond] for each in (walking, sizes, keys, columns, rows))
    return result


def hash_numbers(numbers: Int64s, key: int) -> UInt64s:
    """A keyed 64-bit hash of each number. Different numbers have different hashes."""
    return _mix(numbers.astype(np.uint64), np.array([key], np.uint64), 0)


def _root(numbers: UInt64s) -> UInt64s:
    """The whole part of each square root. That of a float64 differs by at most 1 below 2^62."""
    root: UInt64s = np.sqrt(numbers.astype(np.float64)).astype(np.uint64)
    root -= root * root > numbers
    root += (root + np.uint64(1)) ** 2 <= numbers
    return root


def _mix(value: UInt64s, key: UInt64s, turn: int) -> UInt64s:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014), keyed. Arrays overflow without a word."""
    bits: UInt64s = value + (key + np.uint64((turn + 1) * 0x9E3779B97F4A7C15 & _MASK))
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
