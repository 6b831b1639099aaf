"""Hash built streams again and compare with what was written, wherever they are."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import orjson
from tqdm import tqdm

from dataengine.errors import InputError
from dataengine.manifest import Stream
from dataengine.shards import Shard, StoredFile
from dataengine.storage import Store, open_store
from dataengine.streams import read_raw_shard

_THREADS = 8  # shards fetched and hashed at a time; a shard is about 16 MB


def verify(store: Store, streams: Sequence[Stream]) -> tuple[list[str], int, int]:
    """Check streams of a store; return what is wrong, the number of shards and their bytes.

    Every shard is read, decompressed if it is compressed, and hashed; a manifest also pins the index of each stream.
    """
    problems: list[str] = []
    total = sum(shard.stored.bytes for stream in streams for shard in stream.shards)
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=total, desc="verifying", unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar,
    ):
        for stream in streams:
            problems += _check_index(store, stream)
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


def _check_index(store: Store, stream: Stream) -> Iterator[str]:
    key = f"{stream.remote}/index.json"
    try:
        content = store.read(key)
    except FileNotFoundError:
        yield f"{store.url}/{key} is missing"
        return
    if hashlib.sha256(content).hexdigest() != stream.index_sha256:
        yield f"{store.url}/{key} is not the one that the manifest was made with"


def open_stream(folder: str) -> tuple[Store, Stream]:
    """The stream that a folder's (a path's or a URL's) index.json describes, and the store that the folder is in."""
    above, _, name = folder.rstrip("/").rpartition("/")
    store = open_store(above or ("/" if folder.startswith("/") else "."))
    try:
        content = store.read(f"{name}/index.json")
    except FileNotFoundError:
        raise InputError(
            f"no index.json in {folder}. Name a config (.yaml), or the folder of one stream, such as "
            "STORE/streams/NAME-0123456789ab."
        ) from None
    shards = []
    try:
        for entry in orjson.loads(content)["shards"]:
            packed = entry["zip_data"]
            raw = StoredFile(**entry["raw_data"])
            shards.append(Shard(entry["samples"], raw, StoredFile(**packed) if packed else None))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/index.json is damaged: {error}. Fetch it, or build the stream, again.") from None
    samples = sum(shard.samples for shard in shards)
    return store, Stream(name, name, hashlib.sha256(content).hexdigest(), samples, 0, tuple(shards))
