"""Hash built streams again and compare with what was written, wherever they are."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import orjson
from tqdm import tqdm

from dataengine.build import experiment_url
from dataengine.config import Config
from dataengine.errors import InputError
from dataengine.manifest import Stream, read_manifest
from dataengine.shards import Shard, StoredFile
from dataengine.storage import Store, open_store
from dataengine.streams import read_raw_shard

_THREADS = 8  # shards fetched and hashed at a time; a shard is about 16 MB


def verify(target: Config | str) -> tuple[list[str], int, int]:
    """Check the streams of an experiment, or the folder (path or URL) of one stream.

    Returns what is wrong, the number of shards and their bytes.

    Every shard is read, decompressed if it is compressed, and hashed; a manifest also pins the index of each stream.
    """
    if isinstance(target, Config):
        store = open_store(target.store)
        streams = list(read_manifest(experiment_url(target)).streams)
    else:
        folder, _, name = target.rstrip("/").rpartition("/")
        store = open_store(folder or ".")
        streams = [_stream_of_index(store, name)]
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


def _stream_of_index(store: Store, name: str) -> Stream:
    try:
        content = store.read(f"{name}/index.json")
    except FileNotFoundError:
        raise InputError(f"no index.json in {store.url}/{name}. Name a config, or the folder of a stream.") from None
    shards = []
    for entry in orjson.loads(content)["shards"]:
        packed = entry["zip_data"]
        shards.append(
            Shard(entry["samples"], StoredFile(**entry["raw_data"]), StoredFile(**packed) if packed else None)
        )
    samples = sum(shard.samples for shard in shards)
    return Stream(name, name, hashlib.sha256(content).hexdigest(), samples, 0, tuple(shards))
