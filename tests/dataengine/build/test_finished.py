"""What a build removes of its units, and that later builds give the same bytes nevertheless."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dataengine.build import executors
from dataengine.build.build import build, work
from dataengine.build.executors import FinishedEngine, LocalEngine, OthersNotDoneError, SliceEngine
from dataengine.build.finished import find_finished
from dataengine.build.near_units import FindLinks
from dataengine.build.prepare import prepare
from dataengine.build.running import Running, running_builds, say_running
from dataengine.build.units import Receipt, Unit
from dataengine.config.schema import Config
from dataengine.json_files import encode_hashed
from dataengine.storage.local import LocalStore
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from tests.conftest import ConfigMaker
from tests.dataengine.build.test_executors import tree
from tests.object_store import ObjectStore, object_store  # noqa: F401

GOES = re.compile(r"(run|near)\.\d+\.|gathered\.|bounds\.npy")


@dataclass
class Recording:
    """Runs units here, and counts those that ran by their kinds."""

    ran: Counter[str] = field(default_factory=Counter)

    def run(self, units: Sequence[Unit], store: Store, title: str, **how: Any) -> list[Receipt]:
        found = find_finished(dict(enumerate(units)), store, whole="needed" in how).receipts
        receipts = LocalEngine(1).run(units, store, title, **how)
        self.ran.update(unit.kind for k, unit in enumerate(units) if k not in found)
        return receipts


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Makes URLs of new stores."""
    root = request.getfixturevalue("object_store").url if request.param == "bucket" else str(tmp_path)
    return lambda name: f"{root}/{name}"


def streams_of(corpora: Path, documents: str, pairs: str) -> dict[str, Any]:
    """A stream of documents, and two of pairs that share their cleaning."""
    of_pairs = {"pairs": [str(corpora / pairs)], "clean": {"dedup": ["pair"], "near_dedup": 0.5}}
    return {
        "part_bytes": 20_000,
        "samples_per_shard": 8,
        "streams": {
            "mono": {"documents": [str(corpora / documents)]},
            "there": {**of_pairs, "directions": ["en-zh"]},
            "back": {**of_pairs, "directions": ["zh-en"]},
        },
        "stages": [{"name": "all", "steps": 4, "mix": {"mono": 2, "there": 1, "back": 1}}],
    }


def whole_tree(config: Config, folder: Path) -> dict[str, str]:
    """The files of a build from nothing."""
    alone = config.model_copy(update={"store": str(folder)})
    build(alone)
    return tree(open_store(alone.store))


def of_streams(found: dict[str, str], wanted: dict[str, str]) -> dict[str, str]:
    """The files of the streams of another tree."""
    folders = {key.split("/")[1] for key in wanted if key.startswith("streams/")}
    return {key: value for key, value in found.items() if key.startswith("streams/") and key.split("/")[1] in folders}


def test_a_build_leaves_only_what_later_builds_reuse(
    make_config: ConfigMaker,
    corpora: Path,
    new_store: Any,
    tmp_path: Path,
) -> None:
    first = make_config(**streams_of(corpora, "mono.0.jsonl", "pairs.0.jsonl"), store=new_store("store"))
    store = open_store(first.store)
    build(first)
    left = store.sizes("")
    names = {key.rpartition("/")[2] for key in left if key.startswith("units/")}
    assert not [name for name in names if GOES.match(name)]
    assert {"receipt.json", "dropped.npy", "groups.npy", "pairs.npy", "tail.npy"} <= names
    assert running_builds(store) == []
    if store.copies_links:
        assert not [name for name in names if name.endswith(".mds")]
        assert sum(left.values()) < 1.5 * sum(size for key, size in left.items() if key.startswith("streams/"))

    engine = Recording()  # more sources: only the new documents are tokenized; keys and runs are made again
    more = make_config(**streams_of(corpora, "mono.*.jsonl", "pairs.*.jsonl"), store=first.store)
    build(more, engine=engine)
    wanted = whole_tree(more, tmp_path / "alone")
    assert of_streams(tree(store), wanted) == {key: one for key, one in wanted.items() if key.startswith("streams/")}
    of_new = len([part for part in prepare(more, store).streams["mono"].parts if "mono.1" in part.paths[0]])
    assert engine.ran["documents"] == of_new

    engine = Recording()  # another form of the same records: nothing is cleaned again
    build(
        make_config(["seq_len=24"], **streams_of(corpora, "mono.*.jsonl", "pairs.*.jsonl"), store=first.store),
        engine=engine,
    )
    assert engine.ran["pairs"] > 0
    assert set(engine.ran) == {"documents", "pairs", "merge"}


@pytest.mark.slow
def test_a_lost_stream_is_built_again_from_what_is_left(
    make_config: ConfigMaker, corpora: Path, new_store: Any
) -> None:
    config = make_config(**streams_of(corpora, "mono.*.jsonl", "pairs.*.jsonl"), store=new_store("store"))
    store = open_store(config.store)
    build(config)
    wanted, merged = tree(store), [key for key in store.sizes("units/") if key.endswith("tail.npy")]
    there = next(plan.folder for name, plan in prepare(config, store).streams.items() if name == "there")
    for lost in (there, "streams", merged[0].rpartition("/")[0]):
        store.remove(lost)
        if lost.startswith("units/"):
            store.remove("streams")
        build(config)
        assert tree(store) == wanted
    store.remove_files([f"{there}/index.json"])
    build(config)
    assert tree(store) == wanted


def test_a_build_removes_nothing_while_another_one_runs(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path
) -> None:
    config = make_config(**streams_of(corpora, "mono.0.jsonl", "pairs.0.jsonl"), store=str(tmp_path / "store"))
    store = open_store(config.store)
    with say_running(["streams/other-0123"], store):
        build(config)
        assert [one.streams for one in running_builds(store)] == [("streams/other-0123",)]
    kinds = {GOES.match(key.rpartition("/")[2]) is not None for key in store.sizes("units/")}
    assert kinds == {True, False}


@pytest.mark.slow
def test_a_slice_that_starts_late_finds_all_done(make_config: ConfigMaker, corpora: Path, tmp_path: Path) -> None:
    config = make_config(**streams_of(corpora, "mono.*.jsonl", "pairs.*.jsonl"), store=str(tmp_path / "store"))
    store = open_store(config.store)
    while True:  # slices take turns, as in a job array of which one at a time may run
        waiting = 0
        for number in range(2):
            try:
                work(config, SliceEngine(number, 3, 1, 0))
            except OthersNotDoneError as waits:
                waiting += 1
                if set(waits.left) == {2}:
                    work_one(config, 2)
        if not waiting:
            break
    work(config, SliceEngine(2, 3, 1, 0))
    assert not [key for key in store.sizes("units/") if GOES.match(key.rpartition("/")[2])]
    build(config, engine=FinishedEngine(3))
    work(config, SliceEngine(1, 3, 1, 0))
    wanted = whole_tree(config, tmp_path / "alone")
    assert tree(store) == wanted


def work_one(config: Config, number: int) -> None:
    """Give a slice its turn."""
    with suppress(OthersNotDoneError):
        work(config, SliceEngine(number, 3, 1, 0))


def test_a_build_that_was_killed_does_not_count_as_running(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    child = os.fork()
    if child == 0:
        with say_running(["streams/here"], store):
            os._exit(0)
    os.waitpid(child, 0)
    assert len(store.sizes("running/")) == 1
    assert running_builds(store) == []
    for name, age in (("just-now", 30.0), ("long-ago", 3600.0)):
        said = Running((f"streams/{name}",), time.time() - age)
        store.write(f"running/another-machine~1~{name}", encode_hashed(said))
    assert [one.streams for one in running_builds(store)] == [("streams/just-now",)]


def test_units_that_run_again_stay_readable(make_config: ConfigMaker, corpora: Path, new_store: Any) -> None:
    """Two builds at once may both need files that an earlier one removed."""
    config = make_config(**streams_of(corpora, "mono.0.jsonl", "pairs.0.jsonl"), store=new_store("store"))
    store = open_store(config.store)
    build(config)
    wanted = tree(store)
    before = {key: store.read(key) for key in store.sizes("units/") if key.endswith((".npy", "rejects.jsonl"))}
    compared = {key.rpartition("/")[0] for key in before if key.endswith(("pairs.npy", "twins.npy"))}
    for folder in (*compared, "streams"):
        store.remove(folder)
    left = {key for key in before if key.rpartition("/")[0] not in compared}
    seen: Counter[str] = Counter()

    class Reading(Recording):
        def run(self, units: Sequence[Unit], store: Store, title: str, **how: Any) -> list[Receipt]:
            begin = executors._begin

            def begin_and_read(*some: Any, **how: Any) -> Any:
                begun = begin(*some, **how)
                seen[title] += len(begun[1])
                assert {key: store.read(key) for key in left} == {key: before[key] for key in left}
                return begun

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(executors, "_begin", begin_and_read)
                return super().run(units, store, title, **how)

    build(config, engine=Reading())
    assert seen["repeating"] > 0
    assert tree(store) == wanted


def differing_streams(corpora: Path) -> dict[str, Any]:
    """Two streams of pairs share the keys of near duplicates, but not the rules. One comes to tokenizing first."""
    made = streams_of(corpora, "mono.0.jsonl", "pairs.0.jsonl")
    there = made["streams"]["there"]
    made["streams"]["back"] = there
    made["streams"]["there"] = {**there, "clean": {"near_dedup": 0.5, "pair_rules": {"max_characters": 150}}}
    return made


def test_near_keys_that_streams_share_go_for_all(make_config: ConfigMaker, corpora: Path, tmp_path: Path) -> None:
    config = make_config(**differing_streams(corpora), store=str(tmp_path / "store"))
    build(config)
    assert not [key for key in open_store(config.store).sizes("units/") if GOES.match(key.rpartition("/")[2])]
    engine = Recording()
    build(make_config(["seq_len=24"], **differing_streams(corpora), store=config.store), engine=engine)
    assert set(engine.ran) == {"documents", "pairs", "merge"}


def test_a_slice_that_waits_for_removed_files_goes_on_when_nothing_needs_them_any_more(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = streams_of(corpora, "mono.0.jsonl", "pairs.0.jsonl")
    del streams["streams"]["back"], streams["stages"][0]["mix"]["back"]
    config = make_config(**{**streams, "part_bytes": 5_000}, store=str(tmp_path / "store"))
    store = open_store(config.store)
    build(config)
    wanted = tree(store)
    for key in store.sizes("units/"):
        if key.endswith("crowded.npy"):  # of the one unit that reads the keys of near duplicates: the first slice's
            store.remove(key.rpartition("/")[0])
    store.remove("streams")
    sleep, slept = time.sleep, []

    def first_slice(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            work(config, SliceEngine(0, 2, 1, 0))
        sleep(0.01)

    monkeypatch.setattr(executors, "_SHORTEST_PAUSE_S", 0.01)
    monkeypatch.setattr(executors.time, "sleep", first_slice)
    work(config, SliceEngine(1, 2, 1, 2))
    assert slept
    build(config, engine=FinishedEngine(2))
    assert tree(store) == wanted


def test_two_builds_of_one_config_at_once(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one does all while the first one is about to read keys."""
    config = make_config(**differing_streams(corpora), store=str(tmp_path / "store"))
    find, begun = FindLinks.work, []

    def find_late(unit: FindLinks, *some: Any) -> Receipt:
        begun.append(unit)
        if len(begun) == 1:
            build(config)
        return find(unit, *some)

    monkeypatch.setattr(FindLinks, "work", find_late)
    build(config)
    assert len(begun) > 1
    assert tree(open_store(config.store)) == whole_tree(config, tmp_path / "alone")


@dataclass(frozen=True)
class StartingStore(LocalStore):
    """Another build starts when the first receipt says that files go."""

    def write(self, key: str, content: bytes) -> None:
        super().write(key, content)
        if b'"spent": true' in content and not self.sizes("running/elsewhere"):
            said = Running(("streams/other-0123",), time.time())
            super().write("running/elsewhere~1~x", encode_hashed(said))


def test_files_stay_if_a_build_starts_while_they_are_about_to_go(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path
) -> None:
    config = make_config(**streams_of(corpora, "mono.0.jsonl", "pairs.0.jsonl"), store=str(tmp_path / "store"))
    store = StartingStore(config.store)
    build(config, store=store)
    assert any('"spent": true' in store.read(key).decode() for key in store.sizes("units/") if key.endswith("pt.json"))
    assert {key.rpartition("/")[2] for key in store.sizes("units/")} >= {"near.00000", "near.00000.held", "run.00000"}
