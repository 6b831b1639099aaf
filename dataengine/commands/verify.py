"""Check built streams, local or remote, against the hashes of their indexes."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from dataengine.commands.common import command_again, load_experiment, read_experiment_manifest
from dataengine.errors import InputError, note
from dataengine.mds.reader import is_index_of, read_raw_shard
from dataengine.mds.summary import NAMES, DamagedStreamError, read_rejects, read_summary
from dataengine.mds.types import Shard, StoredFile, Stream, is_hash, shard_name
from dataengine.storage.arrays import is_intact_npy
from dataengine.storage.open import open_store
from dataengine.storage.store import Store

_THREADS = 8  # shards fetched and hashed at a time; a shard is about 16 MB


def run(options: argparse.Namespace) -> None:
    """Check the streams of a config or of a folder. Raises InputError that lists all problems."""
    if options.config.endswith((".yaml", ".yml")):
        config, _ = load_experiment(options)
        store, streams = open_store(config.store), read_experiment_manifest(options, config).streams
        remedy = (
            f"Remove the folders of the streams named here, and {store.url}/units (on a disk, both are the same "
            f"ones), then build again: {command_again(options, 'build')}"
        )
    elif options.overrides:
        raise InputError(f"settings ({' '.join(options.overrides)}) go with a config; {options.config} is a folder")
    else:
        store, stream = open_stream(options.config)
        streams, remedy = (stream,), "Fetch or build this stream again."
    problems, shards, size = verify(store, streams)
    if problems:
        count, of = (f"{n:,} {word}{'s' * (n != 1)}" for n, word in ((len(problems), "problem"), (shards, "shard")))
        found = f"{count} in {of}. {remedy}"
        raise InputError("\n".join([*problems, found]))
    print(f"{shards:,} shards, {size:,} bytes: all unchanged since they were written")
    if bare := sum(not shard.stored.hashes for stream in streams for shard in stream.shards):
        note(f"{bare:,} of these shards were written without hashes (shard_hashes): only their sizes were compared")


def verify(store: Store, streams: Sequence[Stream]) -> tuple[list[str], int, int]:
    """Check streams of a store. Returns the problems, the number of shards and their bytes.

    Every shard is read, decompressed if it is compressed, and hashed; a manifest also pins the index of each stream.
    What says where each document comes from is hashed as well, but may be missing: shards and index alone are a stream.
    """
    problems: list[str] = []
    total = sum(shard.stored.bytes for stream in streams for shard in stream.shards)
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=total, desc="verifying", unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar,
    ):
        for stream in streams:
            problems += [*_check_index(store, stream), *_check_origins(store, stream)]
            numbers = range(len(stream.shards))
            for number, problem in zip(numbers, pool.map(partial(_check_shard, store, stream), numbers), strict=True):
                problems += problem
                bar.update(stream.shards[number].stored.bytes)
    return problems, sum(len(stream.shards) for stream in streams), total


def _check_shard(store: Store, stream: Stream, number: int) -> list[str]:
    try:
        read_raw_shard(store, stream, number)
    except InputError as error:
        return [str(error)]
    return []


def _check_file(store: Store, key: str, judge: Callable[[bytes], str]) -> Iterator[str]:
    """The problems of a file: it cannot be read, or `judge` finds something in its content."""
    try:
        words = judge(store.read(key))
    except FileNotFoundError:
        words = "is missing"
    except InputError as error:
        yield str(error)
        return
    if words:
        yield f"{store.url}/{key} {words}"


def _check_index(store: Store, stream: Stream) -> Iterator[str]:
    def judge(content: bytes) -> str:
        return "" if is_index_of(stream, content) else "is not the one that the manifest was made with"

    return _check_file(store, f"{stream.remote}/index.json", judge)


def _check_origins(store: Store, stream: Stream) -> Iterator[str]:
    """The problems of the files that describe how the stream was made, if it has any."""
    if not _has(store, stream.remote, (*NAMES, "documents.00000.npy")):
        return
    try:
        units = len(read_summary(store, stream.remote).packed)
        read_rejects(store, stream.remote)
    except InputError as error:
        yield error.what if isinstance(error, DamagedStreamError) else str(error)
        return
    names = [f"documents.{number:05d}.npy" for number in range(units)]
    for name in [*names, "remainder.npy"]:
        yield from _check_file(
            store,
            f"{stream.remote}/{name}",
            lambda content: "" if is_intact_npy(content) else "is damaged: its hash differs",
        )


def _has(store: Store, folder: str, names: Sequence[str]) -> bool:
    """Whether a folder holds any of these files."""
    return any(store.size(f"{folder}/{name}") is not None for name in names)


def open_stream(folder: str) -> tuple[Store, Stream]:
    """The stream that a folder's (a path's or a URL's) index.json describes, and the store that the folder is in."""
    above, _, name = folder.rstrip("/").rpartition("/")
    store = open_store(above or ("/" if folder.startswith("/") else "."))
    try:
        content = store.read(f"{name}/index.json")
    except FileNotFoundError:
        if _has(store, name, (*NAMES, shard_name(0), f"{shard_name(0)}.zstd")):
            raise InputError(
                f"no index.json in {folder}: this stream is not finished, or was copied in part. Build it, or fetch "
                "it, again."
            ) from None
        raise InputError(
            f"no index.json in {folder}. Name a config (.yaml), or the folder of one stream, such as "
            "STORE/streams/NAME-0123456789ab."
        ) from None
    try:
        entries = _INDEX.validate_json(content).shards
    except ValidationError as error:
        first = error.errors()[0]
        words = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise InputError(f"{folder}/index.json is damaged: {words}. Fetch it, or build the stream, again.") from None
    shards = tuple(Shard(entry.samples, entry.raw_data, entry.zip_data) for entry in entries)
    for algorithm in {name for shard in shards for file in (shard.raw, shard.stored) for name in file.hashes}:
        if not is_hash(algorithm):
            raise InputError(f"{folder}/index.json names the hash {algorithm!r}, which this program cannot compute")
    samples = sum(shard.samples for shard in shards)
    return store, Stream(name, name, hashlib.sha256(content).hexdigest(), samples, 0, shards)


@dataclass(frozen=True)
class _Entry:
    """The fields of a shard in an index.json that are needed here."""

    samples: int
    raw_data: StoredFile
    zip_data: StoredFile | None


@dataclass(frozen=True)
class _Index:
    shards: tuple[_Entry, ...]


_INDEX = TypeAdapter(_Index)
