"""Write samples as MDS shards, byte for byte those of streaming.MDSWriter, a whole shard at a time.

Layout (streaming/base/format/mds/writer.py): uint32 number of samples, uint32 offsets, the column config as JSON, the
samples. One column of fixed size has no size words, so a shard can also be read as an array at a known offset.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

COLUMN = "tokens"


@dataclass(frozen=True)
class Shard:
    """A written shard. `bytes` is its size; `xxh64` the hash of its content in hex."""

    basename: str
    samples: int
    bytes: int
    xxh64: str


def shard_config(width: int, dtype: np.dtype[Any], samples_per_shard: int) -> dict[str, Any]:
    """The description of its column that each shard and the index carry."""
    config: dict[str, Any] = {
        "column_encodings": [f"ndarray:{dtype.name}:{width}"],
        "column_names": [COLUMN],
        "column_sizes": [width * dtype.itemsize],
        "compression": None,
        "format": "mds",
        "hashes": ["xxh64"],
        "size_limit": 0,
        "version": 2,
    }
    # The limit at which MDSWriter would cut, counted as it counts; its own digits are part of the header.
    while (limit := 8 + len(_dump(config)) + samples_per_shard * (width * dtype.itemsize + 4)) != config["size_limit"]:
        config["size_limit"] = limit
    return config


def encode_shard(samples: NDArray[Any], config: dict[str, Any]) -> bytes:
    """The content of a shard of samples, shape (num_samples, width)."""
    header = _dump(config)
    count = len(samples)
    first = 4 + 4 * (count + 1) + len(header)
    offsets = first + np.arange(count + 1, dtype=np.uint64) * samples.dtype.itemsize * samples.shape[1]
    little_endian = samples.astype(samples.dtype.newbyteorder("<"), copy=False)
    return b"".join([np.uint32(count).tobytes(), offsets.astype("<u4").tobytes(), header, little_endian.tobytes()])


def write_shards(samples: NDArray[Any], directory: Path, first: int, samples_per_shard: int) -> list[Shard]:
    """Write samples, shape (num_samples, width), as shards numbered from `first`; the last may be short."""
    config = shard_config(samples.shape[1], samples.dtype, samples_per_shard)
    shards: list[Shard] = []
    for start in range(0, len(samples), samples_per_shard):
        content = encode_shard(samples[start : start + samples_per_shard], config)
        basename = shard_name(first + len(shards))
        (directory / basename).write_bytes(content)
        count = min(samples_per_shard, len(samples) - start)
        shards.append(Shard(basename, count, len(content), xxhash.xxh64(content).hexdigest()))
    return shards


def map_shard(path: Path, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The samples of a shard, shape (num_samples, width), mapped: a row is read when it is used."""
    with path.open("rb") as file:
        count, first = np.frombuffer(file.read(8), "<u4").tolist()  # number of samples, offset of the first
    return np.memmap(path, dtype.newbyteorder("<"), "r", first, (count, width))


class ShardWriter:
    """Gather samples and write each full shard; `finish` writes the rest."""

    def __init__(self, directory: Path, samples_per_shard: int) -> None:
        self._directory, self._samples_per_shard = directory, samples_per_shard
        self._waiting: list[NDArray[Any]] = []
        self.shards: list[Shard] = []

    def add(self, samples: NDArray[Any]) -> None:
        """Take samples, shape (num_samples, width)."""
        self._waiting.append(samples)
        count = sum(map(len, self._waiting))
        if count >= self._samples_per_shard:
            self._write(count - count % self._samples_per_shard)

    def finish(self) -> list[Shard]:
        """Write what waits; return all shards."""
        self._write(sum(map(len, self._waiting)))
        return self.shards

    def _write(self, count: int) -> None:
        if count:
            joined = np.concatenate(self._waiting)
            self._waiting = [joined[count:].copy()]
            self.shards += write_shards(joined[:count], self._directory, len(self.shards), self._samples_per_shard)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard.{number:05d}.mds"


def encode_index(shards: Sequence[Shard], config: dict[str, Any]) -> bytes:
    """The content of index.json, as MDSWriter writes it."""
    entries = [
        {
            **config,
            "raw_data": {"basename": shard.basename, "bytes": shard.bytes, "hashes": {"xxh64": shard.xxh64}},
            "samples": shard.samples,
            "zip_data": None,
        }
        for shard in shards
    ]
    return _dump({"version": 2, "shards": entries})


def _dump(config: dict[str, Any]) -> bytes:
    return json.dumps(config, sort_keys=True).encode()
