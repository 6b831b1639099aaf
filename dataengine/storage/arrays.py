"""Array files that end with a hash: write, read and check them."""

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
    """The error for a missing or damaged file of a task."""
    folder = key.rpartition("/")[0]
    return DamagedError(f"{store.url}/{key} is missing or damaged. Remove the folder {folder} and build again.")


def read_whole(store: Store, key: str) -> bytes:
    """Read a file of a task. Raises DamagedError if it is missing."""
    try:
        return store.read(key)
    except FileNotFoundError:
        raise damaged_unit(store, key) from None


def read_npy(store: Store, key: str) -> NDArray[Any]:
    """Read an array of a task from an .npy file. Not for threads: see `decode_npy`.

    Raises DamagedError if the file is missing or damaged.
    """
    return _decode(store, key, read_whole(store, key))


def read_all_npy(store: Store, keys: Sequence[str], pool: Executor) -> Iterator[NDArray[Any]]:
    """Read many such arrays, in order. `pool` fetches them; this thread decodes them."""
    return map(partial(_decode, store), keys, pool.map(partial(read_whole, store), keys))


def _decode(store: Store, key: str, content: bytes) -> NDArray[Any]:
    try:
        return decode_npy(content)
    except ValueError:
        raise damaged_unit(store, key) from None


def encode_npy(array: NDArray[Any]) -> bytes:
    """Encode an array as an .npy file, followed by a hash of 8 bytes, which numpy ignores."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue() + xxhash.xxh3_64_digest(file.getvalue())


def is_intact_npy(content: bytes) -> bool:
    """Whether the hash at the end of an .npy file (`encode_npy`) matches its content."""
    return content[-8:] == xxhash.xxh3_64_digest(content[:-8])


def decode_npy(content: bytes) -> NDArray[Any]:
    """Decode the output of `encode_npy`. Raises ValueError if the content is damaged.

    Call it from one thread at a time. numpy reads the header with `ast.literal_eval`; in Python 3.11, two calls at once
    can fail (SystemError: AST constructor recursion depth mismatch; seen once, in a build).
    """
    if not is_intact_npy(content):
        raise ValueError("the hash at its end differs")
    return np.load(io.BytesIO(content))  # type: ignore[no-any-return]
