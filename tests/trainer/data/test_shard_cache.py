"""Shards of a bucket on this disk: whole, once, despite failures; and no more of them than allowed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dataengine.build.build import build
from dataengine.errors import InputError
from dataengine.mds.reader import SampleReader
from dataengine.mds.types import Shard, StoredFile, Stream, token_dtype
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.shard_cache import ShardCache, cache_floor
from dataengine.schedule.slots import Stage
from dataengine.storage import s3_client
from dataengine.storage.open import open_store
from tests.conftest import ConfigMaker
from tests.object_store import ObjectStore, faulty_proxy, object_store
from trainer.data.dataset import ScheduledDataset, make_loader
from trainer.data.prefetch import Prefetcher

__all__ = ["object_store"]

_FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=[None, "zstd:1"])
def manifest(make_config: ConfigMaker, object_store: ObjectStore, request: pytest.FixtureRequest) -> Manifest:
    """Streams in a bucket, raw or compressed."""
    return build_there(make_config, object_store, request.param)


def build_there(make_config: ConfigMaker, store: ObjectStore, compression: str | None = None) -> Manifest:
    return build(make_config(store=f"{store.url}/store", shard_compression=compression), workers=1).manifest


def open_cache(
    store: ObjectStore, folder: Path, manifest: Manifest, *, limit: int | None = None, outage_limit: float = 60
) -> ShardCache:
    return ShardCache(open_store(f"{store.url}/store"), folder, manifest, limit=limit, outage_limit=outage_limit)


def all_rows(store: ObjectStore, manifest: Manifest) -> list[np.ndarray]:
    """Every sample in id order, as another reader of the store gives them."""
    width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
    readers = [SampleReader.of_store(open_store(f"{store.url}/store"), [s], width, dtype) for s in manifest.streams]
    return [row for s, reader in zip(manifest.streams, readers, strict=True) for row in reader.read(range(s.samples))]


def check_all(cache: ShardCache, rows: list[np.ndarray], manifest: Manifest) -> None:
    at = 0
    for number, stream in enumerate(manifest.streams):
        for shard in range(len(stream.shards)):
            mapped = cache.map(number, shard)
            assert np.array_equal(mapped, rows[at : at + len(mapped)])
            at += len(mapped)
    assert at == len(rows)


def test_every_sample_is_what_the_store_has(object_store: ObjectStore, tmp_path: Path, manifest: Manifest) -> None:
    check_all(open_cache(object_store, tmp_path, manifest), all_rows(object_store, manifest), manifest)
    assert not list(tmp_path.rglob(".fetching-*"))


@pytest.mark.parametrize(("workers", "first"), [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_the_loader_gives_the_plan_from_a_bucket(
    object_store: ObjectStore, tmp_path: Path, manifest: Manifest, workers: int, first: int
) -> None:
    rows = all_rows(object_store, manifest)
    dataset = ScheduledDataset(manifest, open_cache(object_store, tmp_path, manifest), world_size=1)
    state = dataset.state_dict(first * manifest.batch_size, from_beginning=True)
    dataset.load_state_dict({**state, "epoch": 0})  # as while a run trains
    loader = make_loader(dataset, workers)
    assert len(loader) == manifest.schedule.steps
    batches = list(loader)
    assert len(batches) == manifest.schedule.steps - first
    for step, batch in enumerate(batches, first):
        planned = manifest.order.sample_ids(step)
        assert batch["tokens"].dtype == batch["stream"].dtype == torch.int64
        assert np.array_equal(batch["sample_id"], planned)
        assert np.array_equal(batch["stream"], manifest.order.stream_numbers(planned))
        assert np.array_equal(batch["tokens"], [rows[k] for k in planned])


def test_a_run_that_starts_leaves_the_cache_as_it_is(
    object_store: ObjectStore, tmp_path: Path, manifest: Manifest
) -> None:
    """Streaming would remove the shards of compressed streams."""
    cache = open_cache(object_store, tmp_path, manifest)
    check_all(cache, all_rows(object_store, manifest), manifest)
    held = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mds")}
    assert len(held) == sum(len(stream.shards) for stream in manifest.streams)
    ScheduledDataset(manifest, cache, world_size=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mds")} == held


def test_processes_fetch_each_shard_once(
    make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = build_there(make_config, object_store)
    rows = all_rows(object_store, manifest)
    with faulty_proxy(object_store.endpoint, lambda number, method, headers: None) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        cache = open_cache(object_store, tmp_path, manifest)
        processes = [_FORK.Process(target=check_all, args=(cache, rows, manifest)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 4
        assert methods.count("GET") == sum(len(stream.shards) for stream in manifest.streams)


def test_a_server_that_fails_now_and_then(
    make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = build_there(make_config, object_store)
    rows = all_rows(object_store, manifest)

    def fault(number: int, method: str, headers: Mapping[str, str]) -> int | str | None:
        return [503, None, "cut", None, "reset", None][number % 6]

    with faulty_proxy(object_store.endpoint, fault) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that the cache's own attempts are seen
        check_all(open_cache(object_store, tmp_path, manifest), rows, manifest)


def test_a_server_that_does_not_answer(
    make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = build_there(make_config, object_store)
    rows = all_rows(object_store, manifest)

    def fault(number: int, method: str, headers: Mapping[str, str]) -> None:
        if number in (0, 3):
            time.sleep(3)

    with faulty_proxy(object_store.endpoint, fault) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3_client, "_READ_TIMEOUT_S", 1)
        check_all(open_cache(object_store, tmp_path, manifest), rows, manifest)


def test_an_outage_ends_after_the_limit(
    make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = build_there(make_config, object_store)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with faulty_proxy(object_store.endpoint, lambda number, method, headers: 503) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        with pytest.raises(InputError, match=r"too busy.*It was tried \d+ times in \d+ s \(train.outage_limit\)\."):
            open_cache(object_store, tmp_path, manifest, outage_limit=1).fetch(0, 0)
        assert len(methods) >= 2


def test_a_shard_that_is_gone_or_damaged_in_the_store(
    make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path
) -> None:
    manifest = build_there(make_config, object_store)
    cache = open_cache(object_store, tmp_path, manifest)
    names = [f"store/{manifest.streams[0].remote}/{shard.raw.basename}" for shard in manifest.streams[0].shards]
    object_store.client.delete_object(Bucket=object_store.bucket, Key=names[0])
    content = object_store.client.get_object(Bucket=object_store.bucket, Key=names[1])["Body"].read()
    object_store.client.put_object(Bucket=object_store.bucket, Key=names[1], Body=content[:-1] + b"?")
    with pytest.raises(InputError, match=r"shard\.00000\.mds is missing"):
        cache.fetch(0, 0)
    with pytest.raises(InputError, match=r"shard\.00001\.mds is damaged: its xxh64 is"):
        cache.fetch(0, 1)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"?"])
def test_a_cached_shard_that_was_damaged_is_fetched_again(
    make_config: ConfigMaker,
    object_store: ObjectStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    manifest = build_there(make_config, object_store)
    rows = all_rows(object_store, manifest)
    check_all(open_cache(object_store, tmp_path, manifest), rows, manifest)
    path = tmp_path / manifest.streams[0].remote / "shard.00000.mds"
    path.write_bytes(damage(path.read_bytes()))
    check_all(open_cache(object_store, tmp_path, manifest), rows, manifest)


def test_a_shard_in_place_that_was_damaged_is_named(make_config: ConfigMaker, tmp_path: Path) -> None:
    """A changed byte as well: nothing is trained on what was not built."""
    config = make_config()
    manifest = build(config, workers=1).manifest
    path = Path(config.store) / manifest.streams[0].remote / "shard.00000.mds"
    content = path.read_bytes()

    def open_in_place() -> ShardCache:
        return ShardCache(open_store(config.store), tmp_path / "cache", manifest, limit=None, outage_limit=1)

    assert len(open_in_place().map(0, 0)) == manifest.streams[0].shards[0].samples
    for damaged, words in (
        (content[:-1], "is damaged: it has"),
        (content[:-1] + b"?", "is damaged: its xxh64 is"),
        (None, "is missing"),
    ):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"shard\.00000\.mds {words}.*build again"):
            open_in_place().map(0, 0)
        path.write_bytes(content)


def test_a_killed_download_leaves_no_lock(
    make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = build_there(make_config, object_store)
    rows = all_rows(object_store, manifest)
    asked = _FORK.Event()

    def hang(number: int, method: str, headers: Mapping[str, str]) -> None:
        asked.set()
        time.sleep(5)

    with faulty_proxy(object_store.endpoint, hang) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        process = _FORK.Process(target=open_cache(object_store, tmp_path, manifest).fetch, args=(0, 0))
        process.start()
        assert asked.wait(30)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        monkeypatch.setenv("S3_ENDPOINT_URL", object_store.endpoint)
        check_all(open_cache(object_store, tmp_path, manifest), rows, manifest)


def test_a_limit_is_kept_and_changes_nothing(
    make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path
) -> None:
    manifest = replace(build_there(make_config, object_store), shuffle_block=8)
    rows, limit = all_rows(object_store, manifest), cache_floor(manifest)
    total = sum(shard.raw.bytes for stream in manifest.streams for shard in stream.shards)
    assert limit < total
    cache = open_cache(object_store, tmp_path, manifest, limit=limit)
    for _ in range(2):
        check_all(cache, rows, manifest)
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.mds")) <= limit
    with pytest.raises(InputError, match=r"cache_limit is .*, but the steps of this plan need .* of shards at a time"):
        open_cache(object_store, tmp_path, manifest, limit=limit - 1)


@pytest.mark.parametrize("first", [0, 12])
def test_the_prefetcher_brings_what_the_next_steps_need(
    make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path, first: int
) -> None:
    manifest = replace(build_there(make_config, object_store), shuffle_block=32)  # 4 steps
    cache = open_cache(object_store, tmp_path, manifest)
    prefetcher = Prefetcher(cache, manifest, first)
    prefetcher.advance(first)
    wanted = np.concatenate([manifest.order.sample_ids(step) for step in range(first, first + 4)])
    streams = [manifest.streams[number] for number in np.unique(manifest.order.stream_numbers(wanted))]
    deadline = time.monotonic() + 30
    while not all(list((tmp_path / stream.remote).glob("*.mds")) for stream in streams):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    prefetcher.close()
    others = [stream for stream in manifest.streams if stream not in streams]
    assert others
    assert not any(list((tmp_path / stream.remote).glob("*.mds")) for stream in others)


def test_the_floor_by_hand() -> None:
    def stream(name: str, shards: int) -> Stream:
        made = [Shard(10, StoredFile(f"{name}{k}", 100, {})) for k in range(shards)]
        return Stream(name, name, "", 10 * shards, 0, tuple(made))

    streams = (stream("a", 50), stream("b", 3), stream("c", 50))
    stages = (Stage("one", 1, {"a": 4}), Stage("two", 1, {"b": 4}), Stage("three", 1, {"c": 4}))
    plan = Manifest("m", "t", 1000, 2, 16, 4, 1, 17, 25, streams, stages)
    # A block of 25 samples touches 3 shards of 10, two blocks 6, and one at either end: 8 shards of 100 bytes.
    assert cache_floor(plan) == 800 + 300  # a and b, or b and c; b has but 3
    assert cache_floor(replace(plan, lanes=2)) == 1600 + 300
