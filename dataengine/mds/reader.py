"""Read the samples of built streams, from any store: to look at them, to check them, to write them out again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from dataengine.errors import DamagedError, InputError, MissingError
from dataengine.mds.types import Stream, hash_bytes
from dataengine.storage.local import LocalStore
from dataengine.storage.store import Store

_SHARDS = 32  # kept in memory, about 16 MB each, where they cannot be mapped


class StreamReader:
    """The samples of a stream by their numbers. `width` is tokens a sample, `dtype` their type in the shards.

    With `check`, every shard is hashed when it is opened; else those that are mapped are not.
    """

    def __init__(self, store: Store, stream: Stream, width: int, dtype: np.dtype[Any], *, check: bool = False) -> None:
        self._check = check
        self._store, self._stream, self._width, self._dtype = store, stream, width, dtype
        self._shard = lru_cache(maxsize=_SHARDS)(self._open_shard)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([shard.samples for shard in self._stream.shards], dtype=np.int64)

    def read(self, samples: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Samples, shape (n,), as tokens, shape (n, width)."""
        rows = np.empty((len(samples), self._width), self._dtype)
        shards = np.searchsorted(self._ends, samples, side="right")
        for place, (sample, shard) in enumerate(zip(samples, shards.tolist(), strict=True)):
            rows[place] = self._shard(shard)[int(sample) - (int(self._ends[shard - 1]) if shard else 0)]
        return rows

    def _open_shard(self, number: int) -> NDArray[Any]:
        shard = self._stream.shards[number]
        key = f"{self._stream.remote}/{shard.raw.basename}"
        try:
            if isinstance(self._store, LocalStore) and shard.zip is None and not self._check:
                size = self._store.size(key)
                if size != shard.raw.bytes:
                    raise _another_size(f"{self._store.url}/{key}", size, shard.raw.bytes)
                rows = map_shard(self._store.path(key), self._width, self._dtype)
            else:
                rows = view_shard(read_raw_shard(self._store, self._stream, number), self._width, self._dtype)
        except InputError as error:
            raise type(error)(f"{error}. See all that is damaged, and what to do: dataengine verify CONFIG") from None
        except ValueError:  # no such number of samples fits in the file
            rows = np.empty((0, self._width), self._dtype)
        if len(rows) != shard.samples:
            raise DamagedError(
                f"{self._store.url}/{key} is damaged: it does not hold {shard.samples:,} samples of {self._width:,} "
                "tokens. See all that is damaged, and what to do: dataengine verify CONFIG"
            )
        return rows


def read_raw_shard(store: Store, stream: Stream, number: int) -> bytes:
    """A raw shard, its size and all its hashes checked. Raises MissingError or DamagedError if they are not right."""
    shard = stream.shards[number]
    key = f"{stream.remote}/{shard.stored.basename}"
    try:
        content = store.read(key)
    except FileNotFoundError:
        raise MissingError(f"{store.url}/{key} is missing") from None
    if len(content) != shard.stored.bytes:
        raise _another_size(f"{store.url}/{key}", len(content), shard.stored.bytes)
    for algorithm, expected in shard.stored.hashes.items():
        if (found := hash_bytes(content, algorithm)) != expected:
            raise DamagedError(f"{store.url}/{key} is damaged: its {algorithm} is {found}, and {expected} was written")
    if shard.zip is None:
        return content
    try:
        raw = zstandard.ZstdDecompressor().decompress(content, max_output_size=shard.raw.bytes)
    except zstandard.ZstdError as error:
        raise DamagedError(f"{store.url}/{key} is damaged: it cannot be decompressed: {error}") from None
    for algorithm, expected in shard.raw.hashes.items():
        if hash_bytes(raw, algorithm) != expected:
            raise DamagedError(f"{store.url}/{key} is damaged: its content is not what was compressed")
    return raw


def _another_size(place: str, size: int | None, expected: int) -> InputError:
    if size is None:
        return MissingError(f"{place} is missing")
    return DamagedError(f"{place} is damaged: it has {size:,} bytes, and {expected:,} were written")


def map_shard(path: Path, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The samples of a shard, shape (num_samples, width), mapped: a row is read when it is used."""
    with path.open("rb") as file:
        count, first = np.frombuffer(file.read(8), "<u4").tolist()  # number of samples, offset of the first
    return np.memmap(path, dtype.newbyteorder("<"), "r", first, (count, width))


def view_shard(content: bytes, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The samples of a shard that is in memory, shape (num_samples, width), without a copy."""
    count, first = np.frombuffer(content, "<u4", 2).tolist()  # number of samples, offset of the first
    return np.frombuffer(content, dtype.newbyteorder("<"), count * width, first).reshape(count, width)
