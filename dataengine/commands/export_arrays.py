"""Samples as raw token arrays: files that NumPy, nanoGPT and OLMo-core map, with Megatron-LM's indexes if asked.

A file holds samples one after another, without a header. Megatron-LM's index beside it (`.idx`, version 1) names the
type, length and offset of each sequence: megatron/core/datasets/indexed_dataset.py of megatron-core 0.16.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from dataengine.mds.types import Shard, token_dtype
from dataengine.mds.writer import ShardFormat, describe_file
from dataengine.schedule.manifest import Manifest
from dataengine.storage.store import AddFile

VERSION = 1
_FILE_BYTES = 1 << 28  # at most; a file is in memory while it is written
_MEGATRON_CODES = {"uint16": 8, "int32": 4}  # Megatron-LM has no uint32


@dataclass(frozen=True)
class ArrayFile:
    """A file of samples."""

    basename: str
    """Name of the file."""
    samples: int
    """Samples in the file."""
    bytes: int
    """Size in bytes."""
    hashes: dict[str, str]
    """Hash of the content by algorithm, in hexadecimal."""


@dataclass(frozen=True)
class ArrayIndex:
    """index.json of an export to arrays. Step s has the samples from (s - first_step) x batch_size on, of all files."""

    format: str
    """numpy or megatron."""
    plan_id: str
    """SHA-256 of the manifest."""
    first_step: int
    """First step of the export."""
    last_step: int
    """The step after the last one."""
    batch_size: int
    """Samples of a step."""
    seq_len: int
    """Tokens that a sample predicts. A sample holds seq_len + 1 ids."""
    dtype: str
    """NumPy's name of the type of a token; little-endian."""
    samples: int
    """Samples in all files."""
    files: tuple[ArrayFile, ...]
    """The files in order."""
    version: int = VERSION
    """Version of the format."""


def array_form(manifest: Manifest, hashes: Sequence[str]) -> ShardFormat:
    """The form of files of bounded size."""
    sample = (manifest.seq_len + 1) * token_dtype(manifest.vocab_size).itemsize
    return ShardFormat(max(_FILE_BYTES // sample, 1), tuple(hashes))


def array_dtype(to_format: str, tokens: np.dtype[Any]) -> np.dtype[Any]:
    """The type that a file states for tokens. Ids are below 2^31, so int32 and uint32 have the same bytes."""
    return np.dtype(np.int32) if to_format == "megatron" and tokens == np.uint32 else tokens


def write_array(samples: NDArray[Any], add: AddFile, number: int, form: ShardFormat, to_format: str) -> list[Shard]:
    """Write samples, shape (num_samples, width), as one file, with an `.idx` for Megatron-LM."""
    name = f"tokens.{number:05d}"
    content = samples.astype(samples.dtype.newbyteorder("<"), copy=False).tobytes()
    if to_format == "megatron":
        add(f"{name}.idx", encode_idx(len(samples), samples.shape[1], array_dtype(to_format, samples.dtype).name))
    add(f"{name}.bin", content)
    return [Shard(len(samples), describe_file(f"{name}.bin", content, form.hashes))]


def encode_idx(samples: int, width: int, dtype: str) -> bytes:
    """Megatron-LM's index of `samples` sequences of `width` tokens, each a document of its own."""
    size = np.dtype(dtype).itemsize
    return b"".join(
        [
            b"MMIDIDX\x00\x00",
            struct.pack("<QBQQ", 1, _MEGATRON_CODES[dtype], samples, samples + 1),
            np.full(samples, width, "<i4").tobytes(),
            (np.arange(samples, dtype="<i8") * width * size).tobytes(),  # where each sequence begins
            np.arange(samples + 1, dtype="<i8").tobytes(),  # the first sequence of each document, and the end
        ]
    )


def encode_array_index(manifest: Manifest, first: int, last: int, shards: Sequence[Shard], to_format: str) -> bytes:
    """The content of index.json."""
    index = ArrayIndex(
        format=to_format,
        plan_id=manifest.plan_id,
        first_step=first,
        last_step=last,
        batch_size=manifest.batch_size,
        seq_len=manifest.seq_len,
        dtype=array_dtype(to_format, token_dtype(manifest.vocab_size)).name,
        samples=sum(shard.samples for shard in shards),
        files=tuple(ArrayFile(s.raw.basename, s.samples, s.raw.bytes, s.raw.hashes) for s in shards),
    )
    return orjson.dumps(asdict(index), option=orjson.OPT_INDENT_2)
