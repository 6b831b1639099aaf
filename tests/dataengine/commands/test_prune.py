"""`dataengine prune`: what it keeps, what it frees, and when it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataengine.build.build import build
from dataengine.build.running import say_running
from dataengine.cli import main
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.schedule.manifest import read_manifest
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from tests.conftest import ConfigMaker
from tests.dataengine.build.test_executors import tree
from tests.dataengine.build.test_finished import Recording, new_store, object_store, streams_of
from tests.object_store import ObjectStore

__all__ = ["new_store", "object_store"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Config], str]:
    """Writes a config as a YAML file; returns its path."""

    def write_one(config: Config) -> str:
        path = tmp_path / f"{config.name.replace('/', '-')}.yaml"
        path.write_text(dump_config(config))
        return str(path)

    return write_one


def prune(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit, match=str(code)):
        main(["prune", *words])


def folders(store: Store, below: str) -> set[str]:
    return {key.split("/")[1] for key in store.sizes(f"{below}/")}


def test_pruning_keeps_the_streams_of_manifests_and_all_that_a_build_of_the_named_configs_reuses(
    make_config: ConfigMaker,
    corpora: Path,
    new_store: Any,
    write: Callable[[Config], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = new_store("store")
    first = make_config(**streams_of(corpora, "mono.0.jsonl", "pairs.0.jsonl"), store=url, name="a/first")
    store = open_store(url)
    build(make_config(["seq_len=24"], **streams_of(corpora, "mono.1.jsonl", "pairs.1.jsonl"), store=url, name="b"))
    old = folders(store, "streams")
    build(make_config(["seq_len=24"], **streams_of(corpora, "mono.1.jsonl", "pairs.0.jsonl"), store=url, name="b"))
    build(first)
    manifests = [read_manifest(f"{url}/experiments/{name}/manifest.json") for name in ("a/first", "b")]
    named = {stream.remote for manifest in manifests for stream in manifest.streams}
    before, published = store.sizes(""), tree(store)
    unnamed = old - {name.split("/")[1] for name in named}
    assert len(unnamed) == 2  # the third one has the same documents

    prune(write(first))
    shown = capsys.readouterr().out
    assert store.sizes("") == before
    assert all(f"would remove streams/{name}" in shown for name in unnamed)
    assert "give the same command with --yes" in shown

    prune(write(first), "--yes")
    left = store.sizes("")
    assert folders(store, "streams") == {name.split("/")[1] for name in named}
    assert tree(store) == {key: value for key, value in published.items() if key.split("/")[1] not in unnamed}
    build(first)
    prune(write(first), "--yes")
    assert store.sizes("") == left  # a build needs nothing that went, and nothing more can go
    assert "nothing to remove" in capsys.readouterr().out

    store.remove("streams")  # the units of `first` give them again, those of `b` are gone
    kept = folders(store, "units")
    build(first)
    assert not store.copies_links or len(folders(store, "units")) >= len(kept)
    prune(url, "--yes")
    assert not [key for key in store.sizes("") if key.startswith(("units/", "keeps/"))]
    assert "experiments/b/manifest.json" in store.sizes("")


def test_on_a_disk_only_the_last_name_of_a_file_frees_its_bytes(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("units/a/shard", bytes(1000))
    store.write("units/a/tail", bytes(10))
    store.link("units/a/shard", "streams/s/shard")
    assert store.freed_by(["units/a/shard", "units/a/tail"]) == 10
    assert store.freed_by(["units/a/shard", "units/a/tail", "streams/s/shard"]) == 1010


def test_pruning_refuses_while_a_build_runs_and_what_is_not_a_store(
    make_config: ConfigMaker, tmp_path: Path, write: Callable[[Config], str]
) -> None:
    config = make_config(store=str(tmp_path / "store"))
    build(config)
    store = open_store(config.store)
    before = store.sizes("")
    with say_running(["streams/mono-0123"], store):
        for words in ([config.store], [write(config), "--yes"]):
            prune(*words, code=2)
    for words in ([str(tmp_path / "elsewhere")], [str(tmp_path)], [config.store, "seq_len=9"]):
        prune(*words, "--yes", code=2)
    path = Path(config.store, "experiments/small/manifest.json")
    path.write_bytes(path.read_bytes()[:-9])
    prune(config.store, "--yes", code=2)  # what a damaged manifest needs is not known
    assert store.sizes("").keys() == before.keys()


@pytest.mark.slow
def test_pruning_keeps_the_stream_that_has_the_shards_of_reused_tasks(
    make_config: ConfigMaker,
    corpora: Path,
    object_store: ObjectStore,
    write: Callable[[Config], str],
) -> None:
    url = f"{object_store.url}/store"
    documents = {"streams": {"mono": {"documents": [str(corpora / "mono.0.jsonl")]}},
                 "stages": [{"name": "all", "steps": 2, "mix": {"mono": 1}}], "store": url}  # fmt: skip
    build(make_config(**documents))
    build(make_config(["seq_len=24"], **documents))  # the manifest names another stream now
    documents["streams"] = {"mono": {"documents": [str(corpora / "mono.*.jsonl")]}}
    more = make_config(**documents)
    prune(write(more), "--yes")
    engine = Recording()
    build(more, engine=engine)
    assert engine.ran["documents"] == 1
