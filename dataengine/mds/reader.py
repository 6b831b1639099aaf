"""Read samples, shards and indexes of built streams from any store, with their hashes checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import zstandard
from numpy.typing import NDArray

from dataengine.arrays import Bools, Int64s, Tokens
from dataengine.errors import DamagedError, InputError, MissingError
from dataengine.mds.shard_map import ShardMap
from dataengine.mds.types import Stream, hash_bytes, marked_dtype
from dataengine.mds.writer import COLUMN, MASK, row_dtype
from dataengine.storage.local import LocalStore
from dataengine.storage.store import Store

SHARDS_MAPPED = 256  # by each reader; a mapping needs an open file
_ROWS_AT_ONCE = 32  # that are copied in one call
_SHARDS_IN_MEMORY = 32  # of each stream, if they cannot be mapped; about 16 MB each

OpenShard = Callable[[int, int], NDArray[Any]]  # (stream, its shard) -> its samples, as `view_shard` gives them


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
        self._masked = any(stream.loss_mask for stream in streams)
        self._shard = lru_cache(kept)(lambda shard: _columns(open_shard(*self._map.places[shard])))

    @classmethod
    def of_store(cls, store: Store, streams: Sequence[Stream], width: int, dtype: np.dtype[Any]) -> SampleReader:
        """Read from a store."""

        def open_shard(number: int, shard: int) -> NDArray[Any]:
            return read_shard(store, streams[number], shard, width, dtype)

        kept = SHARDS_MAPPED if can_be_mapped(store, streams) else _SHARDS_IN_MEMORY * len(streams)
        return cls(streams, open_shard, width, dtype, kept=kept)

    def find(self, sample_ids: Sequence[int] | Int64s) -> tuple[Int64s, Int64s]:
        """Where samples are, for `gather` and `gather_mask`. Raises IndexError for an id without a sample."""
        return self._map.find(sample_ids)

    def read(self, sample_ids: Sequence[int] | Int64s) -> Tokens:
        """Samples, shape (n,), as tokens, shape (n, width)."""
        return self.gather(*self.find(sample_ids))

    def read_mask(self, sample_ids: Sequence[int] | Int64s) -> Bools | None:
        """Which tokens of samples, shape (n,), count as labels, shape (n, width). None if no stream has masks: all."""
        return self.gather_mask(*self.find(sample_ids))

    def gather(self, shards: Int64s, rows: Int64s) -> Tokens:
        """The tokens of found samples, shape (n, width)."""
        tokens = np.empty((len(shards), self._width), self._dtype)
        places, shard = list(zip(shards.tolist(), rows.tolist(), strict=True)), self._shard
        for k in range(0, len(places), _ROWS_AT_ONCE):  # their shards stay open
            parts = [shard(number)[0][row] for number, row in places[k : k + _ROWS_AT_ONCE]]
            np.concatenate(parts, out=tokens[k : k + _ROWS_AT_ONCE].reshape(-1))
        return tokens

    def gather_mask(self, shards: Int64s, rows: Int64s) -> Bools | None:
        """The loss masks of found samples, shape (n, width)."""
        if not self._masked:
            return None
        bits = np.full((len(shards), -(-self._width // 8)), 0xFF, np.uint8)
        for place, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            if (masks := self._shard(shard)[1]) is not None:
                bits[place] = masks[row]
        return np.unpackbits(bits, axis=1, count=self._width).view(np.bool_)


def _columns(samples: NDArray[Any]) -> tuple[Tokens, NDArray[np.uint8] | None]:
    """The tokens of a shard's samples, shape (samples, width), and their packed masks, if they have any."""
    return (samples, None) if samples.dtype.names is None else (samples[COLUMN], samples[MASK])


def can_be_mapped(store: Store, streams: Sequence[Stream]) -> TypeGuard[LocalStore]:
    """Whether the shards of streams are uncompressed files on a disk."""
    return isinstance(store, LocalStore) and not any(shard.zip for stream in streams for shard in stream.shards)


def read_shard(store: Store, stream: Stream, number: int, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The samples of a shard as `view_shard` gives them, its hashes checked: mapped if possible, else in memory."""
    shard = stream.shards[number]
    try:
        content = read_raw_shard(store, stream, number)
    except InputError as error:
        raise type(error)(f"{error}. {_SEE_ALL}") from None
    try:
        if isinstance(store, LocalStore) and shard.zip is None:
            path = store.path(f"{stream.remote}/{shard.raw.basename}")
            rows = map_shard(path, width, dtype, loss_mask=stream.loss_mask)
        else:
            rows = view_shard(content, width, dtype, loss_mask=stream.loss_mask)
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


def map_shard(path: Path, width: int, dtype: np.dtype[Any], *, loss_mask: bool = False) -> NDArray[Any]:
    """The samples of a shard as `view_shard` gives them, memory-mapped: a row is read on use."""
    with path.open("rb") as file:
        count, first = np.frombuffer(file.read(8), "<u4").tolist()  # number of samples, offset of the first
    row = row_dtype(width, marked_dtype(dtype)) if loss_mask else dtype.newbyteorder("<")
    mapped = np.memmap(path, row, "r", first, (count,) if loss_mask else (count, width))
    return mapped.view(np.ndarray)  # rows of a plain array are five times as fast


def view_shard(content: bytes, width: int, dtype: np.dtype[Any], *, loss_mask: bool = False) -> NDArray[Any]:
    """The samples of a shard in memory, without a copy: tokens, shape (num_samples, width).

    With `loss_mask`, the shard has that column, too, and the samples are rows of both, shape (num_samples,).
    """
    count, first = np.frombuffer(content, "<u4", 2).tolist()  # number of samples, offset of the first
    if loss_mask:
        return np.frombuffer(content, row_dtype(width, marked_dtype(dtype)), count, first)
    return np.frombuffer(content, dtype.newbyteorder("<"), count * width, first).reshape(count, width)
