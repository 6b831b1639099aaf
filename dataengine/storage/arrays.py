"""Array files with a hash behind them: written, read and checked."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dataengine.errors import DamagedError
from dataengine.storage.store import Store


def damaged_unit(store: Store, key: str) -> DamagedError:
    """What to do about a file of a unit that is not as it was written."""
    folder = key.rpartition("/")[0]
    return DamagedError(f"{store.url}/{key} is missing or damaged. Remove the folder {folder} and build again.")


def read_whole(store: Store, key: str) -> bytes:
    """A file that a unit left. Raises DamagedError if it is missing."""
    try:
        return store.read(key)
    except FileNotFoundError:
        raise damaged_unit(store, key) from None


def read_npy(store: Store, key: str) -> NDArray[Any]:
    """An array that a unit left as an .npy file: not for threads, see `decode_npy`. Raises InputError if the file is
    missing or damaged."""
    return _decode(store, key, read_whole(store, key))


def read_all_npy(store: Store, keys: Sequence[str], pool: Executor) -> Iterator[NDArray[Any]]:
    """Many such arrays in order, fetched by `pool` and decoded here."""
    return map(partial(_decode, store), keys, pool.map(partial(read_whole, store), keys))


def _decode(store: Store, key: str, content: bytes) -> NDArray[Any]:
    try:
        return decode_npy(content)
    except ValueError:
        raise damaged_unit(store, key) from None


def encode_npy(array: NDArray[Any]) -> bytes:
    """An array as the content of an .npy file, and 8 bytes more, a hash of it, which numpy passes over."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue() + xxhash.xxh3_64_digest(file.getvalue())


def is_intact_npy(content: bytes) -> bool:
    """Whether the hash behind an .npy file (`encode_npy`) is that of its content."""
    return content[-8:] == xxhash.xxh3_64_digest(content[:-8])


def decode_npy(content: bytes) -> NDArray[Any]:
    """The array of `encode_npy`. Raises ValueError if the content is not as it was written.

    One thread at a time: numpy reads the header by `ast.literal_eval`, of which two in a process at once can fail in
    Python 3.11 (SystemError: AST constructor recursion depth mismatch; seen once, in a build).
    """
    if not is_intact_npy(content):
        raise ValueError("the hash behind it is another")
    return np.load(io.BytesIO(content))  # type: ignore[no-any-return]
