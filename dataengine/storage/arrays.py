"""Array files that end with a hash: write, read and check them."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from dataengine.errors import DamagedError
from dataengine.storage.store import Store

_THREADS = 16
_AHEAD = 64  # results that wait, at most
_LOADING = threading.Lock()
T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], arguments: Iterable[T]) -> Generator[R, None, None]:
    """The results of a function that waits for a store, in order. Threads call it ahead, so that many requests wait at
    the same time; the results that are ready take the memory of at most _AHEAD."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for argument in arguments:
                waiting.append(pool.submit(function, argument))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
    """Read an array of a task from an .npy file. Raises DamagedError if the file is missing or damaged."""
    try:
        return decode_npy(read_whole(store, key))
    except ValueError:
        raise damaged_unit(store, key) from None


def read_all_npy(store: Store, keys: Iterable[str]) -> Iterator[NDArray[Any]]:
    """Read many such arrays ahead, in order."""
    return in_threads(partial(read_npy, store), keys)


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

    One thread at a time does so: numpy reads the header with `ast.literal_eval`, and in Python 3.11 two calls at once
    can fail (SystemError: AST constructor recursion depth mismatch; seen once, in a build).
    """
    if not is_intact_npy(content):
        raise ValueError("the hash at its end differs")
    with _LOADING:
        return np.load(io.BytesIO(content))  # type: ignore[no-any-return]
