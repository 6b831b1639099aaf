"""Builds that die, on every engine and store, and resume to the same bytes."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from dataengine.build import clean, executors, near_units, tokenize
from dataengine.build.agreement import read_built_config
from dataengine.build.build import build, work
from dataengine.build.executors import FinishedEngine, OthersNotDoneError, RayEngine, SliceEngine
from dataengine.build.prepare import prepare, read_source_hashes
from dataengine.build.running import say_running
from dataengine.build.sources import share_hashes
from dataengine.config.load import dump_config
from dataengine.errors import InputError
from dataengine.records import splitting
from dataengine.storage.local import LocalStore
from dataengine.storage.open import open_store
from dataengine.storage.paths import FoundFile
from dataengine.storage.store import Store
from tests.conftest import ROOT, ConfigMaker, slow_but, write_jsonl
from tests.crashing_store import MOMENTS, CrashingStore, PassingStore
from tests.object_store import ObjectStore, object_store  # noqa: F401

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read at the import of Ray: its processes listen on loopback


def cleaned(corpora: Path) -> dict[str, Any]:
    """Streams whose builds have all kinds of units, several of each; in one nearly all texts share a template."""
    chance, template = random.Random(7), " ".join(f"word{k}" for k in range(60))
    own = [" ".join(f"w{chance.randrange(900)}" for _ in range(9)) for _ in range(300)]
    write_jsonl(corpora / "crowd.jsonl", [{"text": f"{template} {words}"} for words in (*own, *own[:40])])
    return {
        "part_bytes": 20_000,
        "streams": {
            "mono": {
                "documents": [str(corpora / "mono.*.jsonl")],
                "clean": {"document_rules": {}, "near_dedup": 0.7},
            },
            "both": {
                "pairs": [str(corpora / "pairs.*.jsonl")],
                "directions": ["en-zh", "zh-en"],
                "clean": {"pair_rules": {"max_characters": 150}, "dedup": ["pair", "zh"], "near_dedup": 0.5},
            },
            "crowd": {"documents": [str(corpora / "crowd.jsonl")], "clean": {"near_dedup": 0.8}},
        },
        "stages": [{"name": "all", "steps": 10, "mix": {"mono": 3, "both": 1, "crowd": 1}}],
    }


def tree(store: Store) -> dict[str, str]:
    """sha256 of every file that a build publishes."""
    keys = [*store.sizes("streams/"), *store.sizes("experiments/")]
    return {
        key: hashlib.sha256(store.read(key)).hexdigest()
        for key in keys
        if not key.endswith(("build_report.json", "config.yaml"))
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The tree of an undisturbed build, once there is one."""
    return {}


@pytest.fixture
def undisturbed(
    whole: dict[str, dict[str, str]], make_config: ConfigMaker, corpora: Path, tmp_path: Path
) -> dict[str, str]:
    if not whole:
        config = make_config(**cleaned(corpora), store=str(tmp_path / "whole"))
        build(config, workers=1)
        whole["tree"] = tree(open_store(config.store))
    return whole["tree"]


def test_no_batch_waits_for_a_search_for_garbage(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units run without one, so what refers to itself would stay in memory until they end."""
    settings = {**cleaned(corpora), "part_bytes": 1 << 20}
    evaluation = [str(corpora / "pairs.1.jsonl")]
    settings["streams"]["both"]["clean"] |= {"min_language_score": 0.01, "decontaminate": evaluation}
    found = {}
    for batch in (4096, 4096, 8):  # the first one fills caches
        store = tmp_path / f"store{len(found)}"
        for module in (clean, near_units, tokenize):
            monkeypatch.setattr(module, "_BATCH", batch)
        shutil.rmtree(store, ignore_errors=True)
        config = make_config(**settings, store=str(store))
        gc.collect()
        gc.disable()
        try:
            build(config, workers=1)
            found[batch] = gc.collect()
        finally:
            gc.enable()
    assert found[8] < 1.2 * found[4096]


def crash(store: Store, moment: str, folder: Path) -> CrashingStore:
    """The store, where the first process to reach the moment dies and leaves `folder`/died."""
    return CrashingStore(store.url, store, moment, str(folder / "died"))


def in_child(run: Callable[[], object]) -> int:
    """Run something in a forked process; return how it ended, as os.waitpid says."""
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except InputError:
            os._exit(2)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("workers", slow_but([1, 2], [1]))
@pytest.mark.parametrize("moment", slow_but(MOMENTS, ["before a receipt", "before a decision", "before index.json"]))
def test_a_build_that_was_killed_resumes_to_the_same_bytes(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, undisturbed: dict[str, str], moment: str, workers: int
) -> None:
    store = LocalStore(str(tmp_path / "store"))
    config = make_config(**cleaned(corpora), store=store.url)
    crashing = crash(store, moment, tmp_path)
    ended = in_child(lambda: build(config, workers=workers, store=crashing))
    assert (tmp_path / "died").exists()
    assert ended != 0  # by SIGKILL itself, or with the message that a worker died
    build(config, workers=workers)
    assert tree(store) == undisturbed
    assert not list(Path(store.url).rglob(".writing-*"))


def test_a_killed_build_leaves_no_manifest_beside_the_config_of_another_plan(
    make_config: ConfigMaker, tmp_path: Path
) -> None:
    store = LocalStore(str(tmp_path / "store"))
    build(make_config())
    changed = make_config(seed=99)
    assert in_child(lambda: build(changed, store=crash(store, "before the manifest", tmp_path))) == 9
    assert read_built_config(store, "small").seed == 99
    assert store.size("experiments/small/manifest.json") is None
    assert build(changed).manifest.seed == 99


@pytest.mark.parametrize("moment", slow_but(MOMENTS, ["before index.json"]))
def test_a_build_in_a_bucket_that_was_killed_resumes_to_the_same_bytes(
    make_config: ConfigMaker,
    corpora: Path,
    tmp_path: Path,
    undisturbed: dict[str, str],
    object_store: ObjectStore,  # noqa: F811
    moment: str,
) -> None:
    url = f"{object_store.url}/some/store"
    config = make_config(**cleaned(corpora), store=url)
    crashing = crash(open_store(url), moment, tmp_path)
    assert in_child(lambda: build(config, store=crashing)) == 9
    result = build(config)
    assert result.path == f"{url}/experiments/small/manifest.json"
    assert tree(open_store(url)) == undisturbed
    assert not build(config).new


def test_sources_in_a_bucket_give_the_same_streams(
    make_config: ConfigMaker,
    corpora: Path,
    undisturbed: dict[str, str],
    object_store: ObjectStore,  # noqa: F811
) -> None:
    for path in corpora.iterdir():
        object_store.client.put_object(Bucket=object_store.bucket, Key=f"in/{path.name}", Body=path.read_bytes())
    changes = cleaned(corpora)
    changes["streams"]["mono"]["documents"] = [f"{object_store.url}/in/mono.*.jsonl"]
    changes["streams"]["both"]["pairs"] = [f"{object_store.url}/in/pairs.*.jsonl"]
    config = make_config(**changes, store=f"{object_store.url}/out")
    build(config, workers=2)
    there = open_store(config.store)
    shards = {key.rpartition("/")[2]: found for key, found in tree(there).items() if "mono-" in key and ".mds" in key}
    assert shards == {
        key.rpartition("/")[2]: found for key, found in undisturbed.items() if "mono-" in key and ".mds" in key
    }
    assert not build(config).new


@pytest.mark.parametrize("slices", slow_but([2, 3], [2]))
def test_slices_give_the_same_bytes(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, undisturbed: dict[str, str], slices: int
) -> None:
    config = make_config(**cleaned(corpora), store=str(tmp_path / "store"))
    with pytest.raises(OthersNotDoneError) as early:
        build(config, engine=FinishedEngine(slices))
    assert sorted(early.value.left) == list(range(slices))
    finished = 0
    for _ in range(10):  # each round ends when every slice has had its turn
        finished, left = 0, dict[int, dict[int, int]]()
        for number in range(slices):
            try:
                work(config, SliceEngine(number, slices, 1, 0))
                finished += 1
            except OthersNotDoneError as waits:
                left[number] = waits.left
        assert not any(number in others for number, others in left.items())  # a slice does all that it can
        if finished == slices:
            break
    assert finished == slices
    build(config, engine=FinishedEngine(slices))
    assert tree(open_store(config.store)) == undisturbed


class DiesWhileItCounts(PassingStore):
    """Passes everything on; the first worker to begin a folder dies by SIGKILL while it holds the counter's lock."""

    @contextmanager
    def new_folder(self, key: str, last: str) -> Iterator[Callable[[str, bytes], None]]:
        with suppress(FileExistsError):
            os.close(os.open(Path(self.url, "died"), os.O_CREAT | os.O_EXCL))
            executors._progress.get_lock().acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        with self.inner.new_folder(key, last) as add:
            yield add


def test_a_worker_that_was_killed_while_it_counted_leaves_no_build_waiting(
    make_config: ConfigMaker, corpora: Path, undisturbed: dict[str, str]
) -> None:
    config = make_config(**cleaned(corpora))
    store = open_store(config.store)
    Path(config.store).mkdir()
    with pytest.raises(InputError, match="a worker process died, perhaps because memory ran out"):
        build(config, workers=2, store=DiesWhileItCounts(store.url, store))
    build(config, workers=2)
    assert tree(store) == undisturbed


@pytest.mark.slow
def test_slices_that_run_together_wait_for_each_other(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    config = make_config(**cleaned(corpora), store=str(tmp_path / "store"))
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            try:
                work(config, SliceEngine(number, 2, 1, 60))
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    build(config, engine=FinishedEngine(2))
    assert tree(open_store(config.store)) == undisturbed


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], dict[str, int]]:
    """How often each file was hashed since the last call, by any process that this one forks."""
    log, hash_lines = tmp_path / "hashed", splitting.hash_lines

    def logged(file: FoundFile, part_bytes: int) -> list[splitting.Span]:
        with log.open("a") as lines:
            lines.write(f"{Path(file.path).name}\n")
        return hash_lines(file, part_bytes)

    def take() -> dict[str, int]:
        counts = Counter(log.read_text().split()) if log.exists() else Counter[str]()
        log.unlink(missing_ok=True)
        return dict(counts)

    monkeypatch.setattr(splitting, "hash_lines", logged)
    return take


def test_slices_hash_each_source_once_and_notice_a_changed_one(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, hashed: Callable[[], dict[str, int]]
) -> None:
    config = make_config(**cleaned(corpora), store=str(tmp_path / "store"))
    files = {path.name for path in corpora.iterdir() if path.name.startswith(("mono", "pairs", "crowd"))}
    store = open_store(config.store)

    def share(number: int, wait_seconds: float) -> None:
        share_hashes(config, SliceEngine(number, 3, 1, wait_seconds), store)

    children = list[int]()
    for number in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                share(number, 60)
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert hashed() == dict.fromkeys(files, 1)
    together = read_source_hashes(store)
    prepare(config, store)
    assert hashed() == {}
    (corpora / "crowd.jsonl").write_text('{"text": "changed"}\n')
    share(1, 0)  # it does not wait, and hashes what the others have not
    share(0, 0)
    assert hashed() == {"crowd.jsonl": 1}
    store.remove("source_hashes.json")
    prepare(config, store)
    assert hashed() == dict.fromkeys(files, 1)
    alone = read_source_hashes(store)
    assert {key: alone[key] for key in together if "crowd" not in key} == {
        key: value for key, value in together.items() if "crowd" not in key
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, which no other machine can reach."""
    import ray
    from ray.cluster_utils import Cluster

    here = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}
    made = Cluster(initialize_head=True, head_node_args={**here, "include_dashboard": False})
    made.add_node(**here)
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_a_ray_cluster_on_loopback_listens_to_this_machine_only_and_can_be_reached(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, undisturbed: dict[str, str], cluster: Any
) -> None:
    listening = [
        place.laddr.ip
        for process in psutil.Process().children(recursive=True)
        if "ray" in process.name() or "gcs" in process.name()
        for place in process.net_connections("inet")
        if place.status == psutil.CONN_LISTEN
    ]
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    config = make_config(**cleaned(corpora), store=str(tmp_path / "store"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    (tmp_path / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "dataengine", "build", str(tmp_path / "config.yaml"), "--engine", "ray"]
    command += ["--ray-address", cluster.address]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    assert tree(open_store(config.store)) == undisturbed


IN_UNITS = [moment for moment, (operation, _, _) in MOMENTS.items() if operation in ("folder", "add", "published")]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment not in IN_UNITS])
def test_a_build_on_ray_whose_driver_is_killed_resumes_to_the_same_bytes(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, undisturbed: dict[str, str], cluster: Any, moment: str
) -> None:
    store = LocalStore(str(tmp_path / "store"))
    config = make_config(**cleaned(corpora), store=store.url)
    driver = """
import pickle, sys
from dataengine.build.build import build
from dataengine.build.executors import RayEngine
config, store, address = pickle.load(open(sys.argv[1], "rb"))
build(config, engine=RayEngine(address), store=store)
"""
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((config, crash(store, moment, tmp_path), cluster.address)))
    killed = subprocess.run([sys.executable, "-c", driver, str(job)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    build(config, engine=RayEngine(cluster.address))
    assert tree(store) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("moment", IN_UNITS)
def test_a_ray_task_that_dies_is_run_again(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, undisturbed: dict[str, str], cluster: Any, moment: str
) -> None:
    store = LocalStore(str(tmp_path / "store"))
    config = make_config(**cleaned(corpora), store=store.url)
    crashing = crash(store, moment, tmp_path)
    build(config, engine=RayEngine(cluster.address), store=crashing)
    assert (tmp_path / "died").exists()
    assert tree(store) == undisturbed


@pytest.mark.slow
def test_a_ray_node_that_is_lost_changes_nothing(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, undisturbed: dict[str, str], cluster: Any
) -> None:
    store = LocalStore(str(tmp_path / "store"))
    config = make_config(**cleaned(corpora), store=store.url)
    lost = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")

    @dataclass(frozen=True)
    class LosesANode(LocalStore):
        """Removes the node while the first units run."""

        def sizes(self, prefix: str) -> dict[str, int]:
            found = super().sizes(prefix)
            if lost in cluster.worker_nodes and found:
                cluster.remove_node(lost)
            return found

        def __reduce__(self) -> tuple[Any, ...]:
            return LocalStore, (self.url,)

    build(config, engine=RayEngine(cluster.address), store=LosesANode(store.url))
    assert lost not in cluster.worker_nodes
    assert tree(store) == undisturbed


def test_a_worker_that_dies_is_reported(make_config: ConfigMaker, corpora: Path, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "store"))
    config = make_config(**cleaned(corpora), store=store.url)
    with pytest.raises(InputError, match=r"a worker process died.* Run the same command again, with fewer --workers"):
        build(config, workers=2, store=crash(store, "before a receipt", tmp_path))


@pytest.fixture
def another_build(tmp_path: Path) -> Iterator[None]:
    """While another build runs in the store, no file of a unit is removed."""
    with say_running(["streams/other-0123"], LocalStore(str(tmp_path / "store"))):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("another_build")
@pytest.mark.parametrize(
    ("wanted", "undone"),
    [
        ("units/*/receipt.json", []),
        ("units/*/tail.npy", []),
        ("units/*/dropped.npy", []),
        ("units/*/groups.npy", []),
        ("units/*/pairs.npy", []),
        ("units/*/twins.npy", []),
        ("units/*/overfull.npy", []),
        ("units/*/gathered.?????", ["split", "twins.npy"]),
        ("keeps/*.members.npy", ["gathered.*", "near.?????"]),
        ("units/*/near.?????", ["split", "pairs.npy"]),
        ("units/*/near.*.held", ["gathered.*"]),
        ("keeps/*.bits", ["documents.npy", "run.*", "split"]),
        ("units/*/run.?????", ["split", "documents.npy", "groups.npy"]),
        ("units/*/split", ["documents.npy", "groups.npy", "twins.npy"]),
    ],
)
def test_a_damaged_file_of_an_unfinished_build_is_named_or_changes_nothing(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, undisturbed: dict[str, str], wanted: str, undone: list[str]
) -> None:
    config = make_config(**cleaned(corpora), store=str(tmp_path / "store"))
    store = Path(config.store)
    build(config, workers=1)

    def undo() -> None:
        """Take away the units that left such files, and the streams."""
        for kind in undone:
            for path in list(store.glob(f"units/*/{kind}")):
                shutil.rmtree(path.parent, ignore_errors=True)
        shutil.rmtree(store / "streams")

    undo()
    named = 0
    for number, damage in enumerate(["a byte changed", "cut short", "emptied", "removed"]):
        found = [path for path in sorted(store.glob(wanted)) if path.stat().st_size]
        path = found[number * 5 % len(found)]
        content = bytearray(path.read_bytes())
        if damage == "a byte changed":
            content[len(content) * 2 // 3] ^= 4
        path.unlink()
        if damage != "removed":
            path.write_bytes(content[: {"cut short": len(content) - 7, "emptied": 0}.get(damage, len(content))])
        try:
            build(config, workers=1)
        except InputError as refused:
            named += str(refused).startswith((f"{path} is missing or damaged", f"{path}: got "))
            shutil.rmtree(path.parent)
            build(config, workers=1)
        assert tree(open_store(config.store)) == undisturbed
        undo()
    # Missing files may be made again, as decisions of another size are, and shingles are held of parts, too, that have
    # no text to compare.
    assert named >= (1 if wanted.endswith("held") or wanted.startswith("keeps/") else 3)


def test_no_ray_cluster_is_reported_at_once(make_config: ConfigMaker, corpora: Path, tmp_path: Path) -> None:
    config = make_config(**cleaned(corpora), store=str(tmp_path / "store"))
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:9: .* or correct --ray-address"):
        build(config, engine=RayEngine("127.0.0.1:9"))
