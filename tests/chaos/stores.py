"""Random histories of a store: builds of related configs, killed at any write, with files removed, damaged and pruned.

`python -m tests.chaos.stores --seeds 20 [--first 1] [--workers 2]` prints the history of each seed that fails. After
each build that ends, its streams and manifest are those of a build from nothing, and a second build does nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataengine.build import clean, near_duplicates, near_units, split
from dataengine.build.build import build, work
from dataengine.build.executors import FinishedEngine, LocalEngine, OthersNotDoneError, SliceEngine
from dataengine.build.finished import find_finished
from dataengine.build.prepare import missing_streams, prepare
from dataengine.build.prune import find_unneeded, remove_unneeded
from dataengine.build.stream import make_stream
from dataengine.build.units import Receipt, Unit
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.manifest import read_manifest
from dataengine.storage.open import open_store
from dataengine.storage.store import AddFile, Store
from tests.conftest import DEMO, small_experiment, write_corpora, write_jsonl
from tests.passing_store import PassingStore

_BUILDS = 6  # of a history, about
_DEADLINE_S = 120


class WrongError(Exception):
    """What must not happen."""


@dataclass(frozen=True)
class DyingStore(PassingStore):
    """Passes everything on to `inner`; the process dies by SIGKILL at its `last` write or removal, or after it."""

    last: int
    after: bool
    done: list[int] = field(default_factory=lambda: [0])
    lock: Any = field(default_factory=threading.Lock)

    @contextmanager
    def _step(self) -> Iterator[None]:
        with self.lock:
            self.done[0] += 1
            here = self.done[0] == self.last
        if here and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    def sizes_if_few(self, prefix: str, requests: int) -> dict[str, int] | None:
        return self.inner.sizes_if_few(prefix, requests)

    def write(self, key: str, content: bytes) -> None:
        with self._step():
            self.inner.write(key, content)

    def link(self, source: str, key: str, size: int | None = None) -> None:
        with self._step():
            self.inner.link(source, key, size)

    def remove(self, prefix: str) -> None:
        with self._step():
            self.inner.remove(prefix)

    def remove_files(self, keys: Sequence[str]) -> None:
        for key in keys:
            with self._step():
                self.inner.remove_files([key])

    @contextmanager
    def new_folder(self, key: str, last: str) -> Iterator[AddFile]:
        with self._step(), self.inner.new_folder(key, last) as add:

            def add_or_die(name: str, content: bytes) -> None:
                with self._step():
                    add(name, content)

            yield add_or_die


class Counting:
    """Runs units here, and keeps the kinds of those that ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, units: Sequence[Unit], store: Store, title: str, **how: Any) -> list[Receipt]:
        found = find_finished(dict(enumerate(units)), store, whole="needed" in how).receipts
        self.ran += [unit.kind for k, unit in enumerate(units) if k not in found]
        return LocalEngine(1).run(units, store, title, **how)


def write_sources(folder: Path) -> None:
    """Files of documents and pairs, with exact and near duplicates within and between them, and a crowd."""
    write_corpora(folder)
    chance, template = random.Random(7), " ".join(f"word{k}" for k in range(60))
    own = [" ".join(f"w{chance.randrange(900)}" for _ in range(9)) for _ in range(120)]
    write_jsonl(folder / "mono.2.jsonl", [{"text": f"{template} {words}"} for words in (*own, *own[:20])])
    for kind, count in (("mono", 40), ("pairs", 80)):
        lines = [(folder / f"{kind}.{k}.jsonl").read_bytes().splitlines()[:count] for k in range(2)]
        lines[1] += lines[0][::3]
        for k in range(2):
            (folder / f"{kind}.{k}.jsonl").write_bytes(b"\n".join(lines[k]) + b"\n")
    lines = (folder / "pairs.1.jsonl").read_bytes().splitlines()
    (folder / "pairs.2.jsonl").write_bytes(b"\n".join(lines[:40]) + b"\n")


class Lab:
    """Sources, and the trees of builds from nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known = folder, dict[str, dict[str, bytes]]()
        write_sources(folder)

    def draw(self, chance: random.Random) -> dict[str, Any]:
        """A config, apart from its store. Those of a seed share much."""

        def some(kind: str) -> list[str]:
            numbers = chance.choice([[0], [0, 1], [0, 1], [0, 1, 2], [1, 0], [0, 0]])
            return [str(self.folder / f"{kind}.{k}.jsonl") for k in numbers]

        near, rules = chance.choice([None, 0.5, 0.5]), [{}, {"max_characters": 150}]
        common = {"dedup": chance.choice([["pair"], ["pair", "zh"], []]), "near_dedup": near}
        files = some("pairs")
        pairs: dict[str, Any] = {"pairs": files, "directions": ["en-zh"]}
        streams: dict[str, Any] = {
            "mono": {"documents": some("mono"),
                     "clean": {"document_rules": chance.choice([{}, {"min_characters": 60}]),
                               "dedup": ["text"], "near_dedup": chance.choice([None, 0.7, 0.7])}},
            "one": {**pairs, "clean": {**common, "pair_rules": chance.choice(rules)}},
            "two": {**pairs, "pairs": chance.choice([files, some("pairs")]),
                    "clean": {**common, "pair_rules": chance.choice(rules)}},
        }  # fmt: skip
        if chance.random() < 0.3:
            streams["two"]["clean"]["min_language_score"] = chance.choice([0.2, 0.7])
        chosen = ["mono", "one", "two"] if chance.random() < 0.6 else chance.sample(["mono", "one", "two"], 2)
        values = small_experiment(self.folder, DEMO / "tokenizer.model", self.folder)
        values |= {
            "name": chance.choice(["a", "b"]), "seq_len": chance.choice([32, 32, 24]), "part_bytes": 8_000,
            "samples_per_shard": 8, "streams": {name: streams[name] for name in chosen},
            "stages": [{"name": "all", "steps": 2, "mix": dict.fromkeys(chosen, 1)}],
        }  # fmt: skip
        return values

    def fresh(self, values: dict[str, Any]) -> dict[str, bytes]:
        """The tree of a build from nothing."""
        key = repr(values)
        if key not in self.known:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                config = config_of(values, folder)
                build(config)
                self.known[key] = tree(open_store(folder), config)
        return self.known[key]


def config_of(values: dict[str, Any], store: str) -> Config:
    return Config.model_validate({**values, "store": store, "out": f"{store}-run"})


def tree(store: Store, config: Config) -> dict[str, bytes]:
    """The files of the manifest of a config, and of its streams."""
    key = f"experiments/{config.name}/manifest.json"
    streams = [stream.remote for stream in read_manifest(f"{store.url}/{key}").streams]
    return {key: store.read(key) for folder in streams for key in store.sizes(f"{folder}/")} | {key: store.read(key)}


def in_child(run: Callable[[], object]) -> tuple[int, str]:
    """Run something in a forked process; return its code (2: InputError, 3: waits) and words."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        try:
            signal.alarm(_DEADLINE_S)
            run()
            os._exit(0)
        except InputError as error:
            os.write(write, f"{error}".encode())
            os._exit(2)
        except OthersNotDoneError:
            os._exit(3)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        words = said.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 2, 3, -9):
        raise WrongError(f"code {code}: {words[-3000:]}")
    return code, words


class History:
    """One seed: a store, and what happens to it."""

    def __init__(self, lab: Lab, seed: int, url: str, workers: int = 1) -> None:
        self.lab, self.chance, self.url, self.workers = lab, random.Random(f"stores {seed}"), url, workers
        self.store = open_store(url)
        self.told: list[str] = []
        self.damaged = False
        chance = self.chance
        self.variants = [lab.draw(chance) for _ in range(3)]

    def tell(self, words: str) -> None:
        self.told.append(words)

    def run(self) -> None:
        """Do all; raise WrongError if something is wrong."""
        for _ in range(_BUILDS):
            values = self.chance.choice(self.variants)
            for _ in range(self.chance.randrange(3)):
                self.chance.choice([self.kill, self.kill, self.kill, self.remove, self.damage, self.prune,
                                    self.slices, self.lose_stream, self.twice])(values)  # fmt: skip
            self.check(values)

    def check(self, values: dict[str, Any]) -> None:
        """A build gives the bytes of a fresh one, and a second one does nothing."""
        config, fresh = config_of(values, self.url), self.lab.fresh(values)
        self.tell(f"build {self.variants.index(values)}")
        for _ in range(8):
            code, words = in_child(lambda: build(config, workers=self.workers))
            if code == 0:
                break
            self.tell(f"refused: {words}")
            found = re.search(r"Remove the folder (\S+) and build again", words)
            if not self.damaged or not found:
                raise WrongError(words)
            self.store.remove(found[1])
        if code:
            raise WrongError("refuses again and again")
        if (found_tree := tree(self.store, config)) != fresh:
            keys = [key for key in {*fresh, *found_tree} if fresh.get(key) != found_tree.get(key)]
            raise WrongError(f"other bytes: {keys}")
        engine = Counting()
        if build(config, engine=engine).new or engine.ran:
            raise WrongError(f"a second build is new: {engine.ran}")

    def kill(self, values: dict[str, Any]) -> None:
        last, after = int(2 ** self.chance.uniform(0, 9)), self.chance.random() < 0.5
        store = DyingStore(self.store.url, self.store, last, after)
        code, words = in_child(lambda: build(config_of(values, self.url), store=store))
        self.tell(f"build {self.variants.index(values)}, killed at {last} (after: {after}): {code}")
        if code == 2 and not self.damaged:
            raise WrongError(words)

    def _keys(self, *folders: str) -> list[str]:
        return [key for folder in folders for key in self.store.sizes(f"{folder}/")]

    def remove(self, values: dict[str, Any]) -> None:
        """Folders of tasks, or decisions."""
        folders = sorted({"/".join(key.split("/")[:2]) for key in self._keys("units")})
        gone = self.chance.sample(folders, self.chance.choice([0, min(1, len(folders)), len(folders) // 3]))
        for folder in gone or ["keeps"]:
            self.tell(f"remove {folder}")
            self.store.remove(folder)

    def lose_stream(self, values: dict[str, Any]) -> None:
        """A stream, or what makes it one."""
        streams = sorted({"/".join(key.split("/")[:2]) for key in self._keys("streams")})
        for folder in self.chance.sample(streams, min(len(streams), self.chance.choice([1, 3]))):
            whole = self.chance.random() < 0.6
            self.tell(f"remove {folder} {whole}")
            self.store.remove(folder if whole else f"{folder}/index.json")

    def damage(self, values: dict[str, Any]) -> None:
        """A byte of a file that is no shard: shards are compared with the hashes of the index when they are read."""
        keys = [key for key in self._keys("units", "keeps") if not key.endswith(".mds")]
        if keys:
            key = self.chance.choice(keys)
            content = bytearray(self.store.read(key))
            if content:
                content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            self.tell(f"damage {key}")
            self.store.write(key, bytes(content))
            self.damaged = True

    def prune(self, values: dict[str, Any]) -> None:
        """With all configs that are built, a build of each is then not new."""
        named = [one for one in self.variants if self.chance.random() < 0.7]
        self.tell(f"prune {[self.variants.index(one) for one in named]}")
        configs = [config_of(one, self.url) for one in named]
        try:
            before = [self._left_to_run(config) for config in configs]
            remove_unneeded(find_unneeded(self.store, configs), self.store)
            after = [self._left_to_run(config) for config in configs]
        except InputError as error:
            if not self.damaged:
                raise WrongError(f"prune: {error}") from None
            return
        if before != after:
            raise WrongError(f"prune: {before} were to run, then {after}")

    def _left_to_run(self, config: Config) -> list[int]:
        """The number of units of each stream that the first unfinished round of a build would run, 0: none."""
        counts = []
        for plan in missing_streams(prepare(config, self.store)).values():
            rounds, count = make_stream(plan, config, self.store), 0
            with suppress(StopIteration):
                one = next(rounds)
                while True:
                    receipts = find_finished(dict(enumerate(one.units)), self.store).receipts
                    if count := len(one.units) - len(receipts):
                        break
                    one = rounds.send([receipts[k] for k in range(len(one.units))])
            counts.append(count)
        return counts

    def slices(self, values: dict[str, Any]) -> None:
        """Slices of a job array take turns, some killed, some never."""
        count, config = self.chance.choice([2, 3]), config_of(values, self.url)
        codes = []
        for _ in range(self.chance.randrange(1, 8) * count):
            number, last = self.chance.randrange(count), int(2 ** self.chance.uniform(0, 14))
            store = DyingStore(self.store.url, self.store, last, True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("dataengine.build.build.open_store", lambda url, store=store: store)
                code, words = in_child(partial(work, config, SliceEngine(number, count, 1, 0)))
            codes.append(code)
            if code == 2 and not self.damaged:
                raise WrongError(words)
        self.tell(f"{count} slices of {self.variants.index(values)}: {codes}")
        code, _ = in_child(lambda: build(config, engine=FinishedEngine(count)))
        self.tell(f"finished: {code}")

    def twice(self, values: dict[str, Any]) -> None:
        """Builds at the same time: of this config, and of any."""
        other = self.chance.choice(self.variants)
        self.tell(f"builds of {self.variants.index(values)} and {self.variants.index(other)} at once")
        codes: list[int] = []
        children = []
        for one in (values, other):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    with open(os.devnull, "w") as null:
                        os.dup2(null.fileno(), 2)
                    build(config_of(one, self.url))
                    code = 0
                except InputError as error:
                    Path(self.url + f".said.{os.getpid()}").write_text(str(error))
                    code = 2
                except BaseException:
                    Path(self.url + f".said.{os.getpid()}").write_text(traceback.format_exc())
                os._exit(code)
            children.append(child)
        words = ""
        for child in children:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            said = Path(self.url + f".said.{child}")
            if said.exists():
                words += said.read_text()
        if any(code == 1 or (code and not self.damaged) for code in codes):
            raise WrongError(f"at once: {codes} {words}")


@contextmanager
def small_units() -> Iterator[None]:
    """Several ranges, groups and splits of a few records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "RANGE_KEYS", 60)
        patch.setattr(near_units, "RANGE_KEYS", 400)
        patch.setattr(split, "SPLIT_BYTES", 1 << 12)
        patch.setattr(split, "_FEW", 2)
        patch.setattr(near_duplicates, "_LEAST_GROUP", 8)
        patch.setattr(near_duplicates, "GROUP_BYTES", 1 << 11)
        for module in ("prepare", "stream"):
            patch.setattr(f"dataengine.build.{module}.MERGE_TOKENS", 4000)
            patch.setattr(f"dataengine.build.{module}.TAIL_TOKENS", 60)
        yield


def one_seed(lab: Lab, seed: int, url: str, workers: int = 1) -> None:
    """Run a seed; raises WrongError with its history."""
    history = History(lab, seed, url, workers)
    try:
        history.run()
    except Exception as error:
        told = "\n".join(history.told)
        raise WrongError(f"seed {seed}:\n{told}\n{type(error).__name__}: {error}") from error


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.stores", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="stores-") as folder, small_units():
        lab = Lab(Path(folder))
        for seed in range(options.first, options.first + options.seeds):
            try:
                one_seed(lab, seed, f"{folder}/seed-{seed}", options.workers)
                print(f"seed {seed}: equal", flush=True)
            except WrongError as error:
                wrong += 1
                traceback.print_exception(error)
                sys.stderr.flush()
            shutil.rmtree(f"{folder}/seed-{seed}", ignore_errors=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
