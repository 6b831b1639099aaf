"""Write samples as MDS shards, a whole shard at a time, byte for byte as streaming.MDSWriter does.

Layout (streaming/base/format/mds/writer.py): uint32 number of samples, uint32 offsets, the column config as JSON, the
samples. Columns of fixed size have no size words, so a shard is also an array at a known offset.

    tokens       the ids of a sample
    loss_mask    only of marked samples (`mds.types.mark`): a bit for each token, 1 if it counts as a label, as
                 numpy.packbits writes them. MDS orders columns by name, so this one is first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from dataengine.mds.types import Shard, StoredFile, hash_bytes, shard_name
from dataengine.storage.store import AddFile

COLUMN, MASK = "tokens", "loss_mask"


@dataclass(frozen=True)
class ShardFormat:
    """The settings that decide the bytes of shards, besides their samples."""

    samples_per_shard: int
    hashes: tuple[str, ...] = ("xxh64",)  # names as in streaming: xxh64, sha256 ...
    compression: str | None = None  # "zstd:1"

    def config(self, width: int, dtype: np.dtype[Any]) -> dict[str, Any]:
        """The description of the columns, which is in each shard and in the index.

        Takes the number of tokens of a sample and their type, which may be marked.
        """
        columns = _columns(width, dtype)
        sizes = [size * kind.itemsize for size, kind in columns.values()]
        config: dict[str, Any] = {
            "column_encodings": [f"ndarray:{kind.name}:{size}" for size, kind in columns.values()],
            "column_names": list(columns),
            "column_sizes": sizes,
            "compression": self.compression,
            "format": "mds",
            "hashes": list(self.hashes),
            "size_limit": 0,
            "version": 2,
        }
        # The size limit at which MDSWriter would cut a shard. Its digits are part of the header, hence the loop.
        row = sum(sizes) + 4
        while (limit := 8 + len(_dump(config)) + self.samples_per_shard * row) != config["size_limit"]:
            config["size_limit"] = limit
        return config


def _columns(width: int, dtype: np.dtype[Any]) -> dict[str, tuple[int, np.dtype[Any]]]:
    """The columns of samples with `width` tokens, in their order: the number of elements and their type."""
    if dtype.names is None:
        return {COLUMN: (width, dtype)}
    return {MASK: (-(-width // 8), np.dtype(np.uint8)), COLUMN: (width, dtype["token"])}


def row_dtype(width: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A sample of marked tokens in a shard: a field for each column, of shape (elements,)."""
    return np.dtype([(name, kind.newbyteorder("<"), (size,)) for name, (size, kind) in _columns(width, dtype).items()])


def encode_shard(parts: Sequence[NDArray[Any]], config: dict[str, Any]) -> bytes:
    """The content of a shard with these samples, in parts of shape (num_samples, width)."""
    header = _dump(config)
    count = sum(map(len, parts))
    first = 4 + 4 * (count + 1) + len(header)
    offsets = first + np.arange(count + 1, dtype=np.uint64) * sum(config["column_sizes"])
    content = [_rows(samples).view(np.uint8).data for samples in parts if len(samples)]
    return b"".join([np.uint32(count).tobytes(), offsets.astype("<u4").tobytes(), header, *content])


def _rows(samples: NDArray[Any]) -> NDArray[Any]:
    if samples.dtype.names is None:
        return np.ascontiguousarray(samples, samples.dtype.newbyteorder("<"))
    rows = np.empty(len(samples), row_dtype(samples.shape[1], samples.dtype))
    rows[COLUMN], rows[MASK] = samples["token"], np.packbits(samples["counts"], axis=1)
    return rows


def write_shards(samples: NDArray[Any], add: AddFile, first: int, form: ShardFormat) -> list[Shard]:
    """Write samples, shape (num_samples, width), as shards numbered from `first`; the last may be short."""
    return [
        _write_shard([samples[start : start + form.samples_per_shard]], add, number, form)
        for number, start in enumerate(range(0, len(samples), form.samples_per_shard), first)
    ]


def _write_shard(parts: Sequence[NDArray[Any]], add: AddFile, number: int, form: ShardFormat) -> Shard:
    content = encode_shard(parts, form.config(parts[0].shape[1], parts[0].dtype))
    raw = describe_file(shard_name(number), content, form.hashes)
    packed = None
    if form.compression:
        content = compress(content, form.compression)
        packed = describe_file(f"{raw.basename}.zstd", content, form.hashes)
    shard = Shard(sum(map(len, parts)), raw, packed)
    add(shard.stored.basename, content)
    return shard


def compress(content: bytes, compression: str) -> bytes:
    """Compressed content. `compression` is zstd:LEVEL, as in streaming."""
    return zstandard.ZstdCompressor(level=int(compression.partition(":")[2])).compress(content)


def describe_file(basename: str, content: bytes, algorithms: Sequence[str]) -> StoredFile:
    """Name, size and hashes of a file."""
    return StoredFile(basename, len(content), {name: hash_bytes(content, name) for name in algorithms})


class ShardWriter:
    """Collect samples and pass each full shard to `add`. `rest` has the samples that do not fill one."""

    def __init__(self, add: AddFile, form: ShardFormat, first: int = 0) -> None:
        self._add, self._format, self._first = add, form, first  # the first shard's number
        self._waiting: list[NDArray[Any]] = []
        self._count = 0
        self.shards: list[Shard] = []

    def add(self, samples: NDArray[Any]) -> None:
        """Take samples, shape (num_samples, width)."""
        self._waiting.append(samples)
        self._count += len(samples)
        while self._count >= self._format.samples_per_shard:
            self._write(self._format.samples_per_shard)

    @property
    def rest(self) -> list[NDArray[Any]]:
        """The samples that are not written yet, in parts of shape (num_samples, width)."""
        return self._waiting

    def finish(self) -> list[Shard]:
        """Write the remaining samples as a last, short shard, and return all shards."""
        if self._count:
            self._write(self._count)
        return self.shards

    def _write(self, count: int) -> None:
        """Write the first samples as a shard."""
        ends = np.cumsum(list(map(len, self._waiting)))
        last = int(np.searchsorted(ends, count))
        part = self._waiting[last]
        cut = len(part) - int(ends[last] - count)
        parts, self._waiting = [*self._waiting[:last], part[:cut]], [part[cut:], *self._waiting[last + 1 :]]
        self._count -= count
        self.shards.append(_write_shard(parts, self._add, self._first + len(self.shards), self._format))


def encode_index(shards: Sequence[Shard], config: dict[str, Any]) -> bytes:
    """The content of index.json, as MDSWriter writes it."""
    entries = [
        {
            **config,
            "raw_data": asdict(shard.raw),
            "samples": shard.samples,
            "zip_data": asdict(shard.zip) if shard.zip else None,
        }
        for shard in shards
    ]
    return _dump({"version": 2, "shards": entries})


def _dump(config: dict[str, Any]) -> bytes:
    return json.dumps(config, sort_keys=True).encode()
