"""Streams, shards and files of a store as dataclasses, with names, sizes and hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dataengine.arrays import Bools, Tokens


@dataclass(frozen=True)
class Stream:
    """A built stream."""

    name: str
    """Name of the stream in the config."""
    remote: str
    """Folder of the stream, relative to the store."""
    index_sha256: str
    """SHA-256 of its index.json."""
    samples: int
    """Samples in all shards."""
    tokens: int
    """Token ids in these samples: samples x (seq_len + 1)."""
    shards: tuple[Shard, ...]
    """The shards in order."""
    loss_mask: bool = False
    """Whether the shards say which tokens count as labels. Not in the file if they do not: all tokens count."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a store."""

    basename: str
    """Name of the file in its folder."""
    bytes: int
    """Size in bytes."""
    hashes: dict[str, str]
    """Hash of the content by algorithm, in hexadecimal."""


@dataclass(frozen=True)
class Shard:
    """A written shard."""

    samples: int
    """Samples in the shard."""
    raw: StoredFile
    """The uncompressed shard."""
    zip: StoredFile | None = None
    """The compressed shard, if the store holds that one instead; else null."""

    @property
    def stored(self) -> StoredFile:
        """The file in the store."""
        return self.zip or self.raw

    def renamed(self, number: int) -> Shard:
        """The shard with the name that it has as number `number` of a stream."""
        name = shard_name(number)
        packed = replace(self.zip, basename=self.zip.basename.replace(self.raw.basename, name)) if self.zip else None
        return Shard(self.samples, replace(self.raw, basename=name), packed)


def hash_bytes(content: bytes, algorithm: str) -> str:
    """Hash in hex by streaming's name of the algorithm, such as xxh64 or sha256."""
    if algorithm.startswith("xxh"):
        return str(getattr(xxhash, algorithm)(content).hexdigest())
    return hashlib.new(algorithm, content).hexdigest()


def is_hash(algorithm: str) -> bool:
    """Whether `hash_bytes` supports an algorithm."""
    try:
        hash_bytes(b"", algorithm)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def documents_name(task: int) -> str:
    """File name of the provenance of a packed task."""
    return f"documents.{task:05d}.npy"


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard.{number:05d}.mds"


def marked_dtype(tokens: np.dtype[Any]) -> np.dtype[Any]:
    """A token while it is packed, with a mark whether it counts as a label."""
    return np.dtype([("token", tokens), ("counts", np.bool_)])


def mark(tokens: Tokens, counts: Bools) -> NDArray[Any]:
    """Tokens with their marks, in the same shape."""
    marked = np.empty(tokens.shape, marked_dtype(tokens.dtype))
    marked["token"], marked["counts"] = tokens, counts
    return marked


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type of tokens in shards: uint16 for up to 65,536 ids, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
