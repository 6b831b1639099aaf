"""Read samples, shards and indexes of built streams from any store, with their hashes checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import zstandard

from dataengine.arrays import Int64s, Tokens
from dataengine.errors import DamagedError, InputError, MissingError
from dataengine.mds.shard_map import ShardMap
from dataengine.mds.types import Stream, hash_bytes
from dataengine.storage.local import LocalStore
from dataengine.storage.store import Store

SHARDS_MAPPED = 256  # by each reader; a mapping needs an open file
_SHARDS_IN_MEMORY = 32  # of each stream, if they cannot be mapped; about 16 MB each

OpenShard = Callable[[int, int], Tokens]  # (stream, its shard) -> samples, shape (shard's samples, width)


class SampleReader:
    """Samples of streams by their ids (see `ShardMap`). The `kept` most recently used shards stay open.

    `width` is the number of tokens of a sample, `dtype` their type in the shards.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        open_shard: OpenShard,
        width: int,
        dtype: np.dtype[Any],
        *,
        kept: int = SHARDS_MAPPED,
    ) -> None:
        self._map, self._width, self._dtype = ShardMap(streams), width, dtype
        self._shard = lru_cache(kept)(lambda shard: open_shard(*self._map.places[shard]))

    @classmethod
    def of_store(cls, store: Store, streams: Sequence[Stream], width: int, dtype: np.dtype[Any]) -> SampleReader:
        """Read from a store."""

        def open_shard(number: int, shard: int) -> Tokens:
            return read_shard(store, streams[number], shard, width, dtype)

        kept = SHARDS_MAPPED if can_be_mapped(store, streams) else _SHARDS_IN_MEMORY * len(streams)
        return cls(streams, open_shard, width, dtype, kept=kept)

    def read(self, sample_ids: Sequence[int] | Int64s) -> Tokens:
        """Samples, shape (n,), as tokens, shape (n, width)."""
        tokens = np.empty((len(sample_ids), self._width), self._dtype)
        shards, rows = self._map.find(sample_ids)
        for place, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            tokens[place] = self._shard(shard)[row]
        return tokens


def can_be_mapped(store: Store, streams: Sequence[Stream]) -> TypeGuard[LocalStore]:
    """Whether the shards of streams are uncompressed files on a disk."""
    return isinstance(store, LocalStore) and not any(shard.zip for stream in streams for shard in stream.shards)


def read_shard(store: Store, stream: Stream, number: int, width: int, dtype: np.dtype[Any]) -> Tokens:
    """The samples of a shard, shape (samples, width), with its hashes checked: mapped if possible, else in memory."""
    shard = stream.shards[number]
    try:
        content = read_raw_shard(store, stream, number)
    except InputError as error:
        raise type(error)(f"{error}. {_SEE_ALL}") from None
    try:
        if isinstance(store, LocalStore) and shard.zip is None:
            rows = map_shard(store.path(f"{stream.remote}/{shard.raw.basename}"), width, dtype)
        else:
            rows = view_shard(content, width, dtype)
    except ValueError:  # the file is too short for its number of samples
        rows = np.empty((0, width), dtype)
    if len(rows) != shard.samples:
        raise DamagedError(
            f"{store.url}/{stream.remote}/{shard.raw.basename} is damaged: it does not hold {shard.samples:,} samples "
            f"of {width:,} tokens. {_SEE_ALL}"
        )
    return rows


_SEE_ALL = "See all that is damaged, and what to do: dataengine verify CONFIG"


def is_index_of(stream: Stream, content: bytes) -> bool:
    """Whether the content of an index.json is that of the manifest."""
    return hashlib.sha256(content).hexdigest() == stream.index_sha256


def read_index(store: Store, stream: Stream) -> bytes:
    """The content of a stream's index.json. Raises MissingError, or DamagedError if it is not the manifest's."""
    folder = f"{store.url.rstrip('/')}/{stream.remote}"
    try:
        content = store.read(f"{stream.remote}/index.json")
    except FileNotFoundError:
        raise MissingError(
            f"stream '{stream.name}': no index.json in {folder}. Build the streams first: dataengine build CONFIG"
        ) from None
    if not is_index_of(stream, content):
        raise DamagedError(
            f"stream '{stream.name}': {folder}/index.json is not the one that the manifest was made with. "
            f"Remove {folder} and build again: dataengine build CONFIG"
        )
    return content


def read_stored_shard(store: Store, stream: Stream, number: int) -> bytes:
    """The file of a shard, after a check of its size and all its hashes. Raises MissingError or DamagedError."""
    shard = stream.shards[number]
    key = f"{stream.remote}/{shard.stored.basename}"
    try:
        content = store.read(key)
    except FileNotFoundError:
        raise MissingError(f"{store.url}/{key} is missing") from None
    if len(content) != shard.stored.bytes:
        raise DamagedError(
            f"{store.url}/{key} is damaged: it has {len(content):,} bytes, and {shard.stored.bytes:,} were written"
        )
    for algorithm, expected in shard.stored.hashes.items():
        if (found := hash_bytes(content, algorithm)) != expected:
            raise DamagedError(f"{store.url}/{key} is damaged: its {algorithm} is {found}, and {expected} was written")
    return content


def read_raw_shard(store: Store, stream: Stream, number: int) -> bytes:
    """A raw shard, after a check of its size and all its hashes. Raises MissingError or DamagedError if it fails."""
    shard, content = stream.shards[number], read_stored_shard(store, stream, number)
    key = f"{stream.remote}/{shard.stored.basename}"
    if shard.zip is None:
        return content
    try:
        raw = zstandard.ZstdDecompressor().decompress(content, max_output_size=shard.raw.bytes)
    except zstandard.ZstdError as error:
        raise DamagedError(f"{store.url}/{key} is damaged: it cannot be decompressed: {error}") from None
    for algorithm, expected in shard.raw.hashes.items():
        if hash_bytes(raw, algorithm) != expected:
            raise DamagedError(f"{store.url}/{key} is damaged: its decompressed content has changed")
    return raw


def map_shard(path: Path, width: int, dtype: np.dtype[Any]) -> Tokens:
    """The samples of a shard, shape (num_samples, width), memory-mapped: a row is read on use."""
    with path.open("rb") as file:
        count, first = np.frombuffer(file.read(8), "<u4").tolist()  # number of samples, offset of the first
    mapped = np.memmap(path, dtype.newbyteorder("<"), "r", first, (count, width))
    return mapped.view(np.ndarray)  # rows of a plain array are five times as fast


def view_shard(content: bytes, width: int, dtype: np.dtype[Any]) -> Tokens:
    """The samples of a shard in memory, shape (num_samples, width), without a copy."""
    count, first = np.frombuffer(content, "<u4", 2).tolist()  # number of samples, offset of the first
    return np.frombuffer(content, dtype.newbyteorder("<"), count * width, first).reshape(count, width)
