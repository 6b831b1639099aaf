"""Trainings that start at the same moment on one machine."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from dataengine.build.build import build
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.shard_cache import ShardCache
from dataengine.storage.open import open_store
from tests.conftest import ConfigMaker
from trainer.data.dataset import ScheduledDataset

_FORK = multiprocessing.get_context("fork")
_STARTS, _ROUNDS = 6, 5


def test_their_shared_memory_has_different_names(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    manifest = build(config, workers=1).manifest
    at_once = _FORK.Barrier(_STARTS)
    processes = [_FORK.Process(target=_start, args=(manifest, config.store, tmp_path, at_once)) for _ in range(_STARTS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * _STARTS


def _start(manifest: Manifest, store: str, folder: Path, at_once: Barrier) -> None:
    for _ in range(_ROUNDS):
        at_once.wait(60)
        cache = ShardCache(open_store(store), folder / "unused", manifest, limit=None, outage_limit=1)
        ScheduledDataset(manifest, cache, world_size=1)
