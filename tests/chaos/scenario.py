"""One seed of chaos: build, train and evaluate a small experiment while faults drawn from the seed are injected.

The driver does what a user would do: it starts the same command again. If that refused and named what is damaged, it
first restores that from a backup. Everything else is a failure: a hang, a traceback that no kill explains, a refusal
that does not name what is damaged, and above all a result that differs from the undisturbed run's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import yaml

from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from tests.chaos.results import Event, Scenario
from tests.conftest import DEMO, small_experiment, write_corpora
from tests.end_to_end import ranks
from tests.end_to_end.straight import exact
from tests.object_store import ACCESS_KEY, SECRET_KEY, ObjectStore, faulty_proxy, new_bucket, server
from tests.ports import free_port
from trainer.run.log_csv import read_log

DEADLINE_S = 180  # of a command; one that takes longer hangs
_GRACE_S = 10  # for the other ranks once one has failed; then they get SIGTERM, as from Composer's launcher
_PEER_S = 60  # in which all ranks must have ended once one has
_DISK_MB = 192
_PRELOAD = (
    "trainer.train",
    "trainer.training.session",
    "trainer.evaluation.evaluator",
    "dataengine.cli",
    "composer.utils.parallelism",
)
_KEEP_ONE = "train.keep_checkpoints=1"
_DAMAGES = ("a byte changed", "cut short", "emptied", "removed")


class FailureError(Exception):
    """What must not happen; `kind` is hang, crash, unclear, different or secret."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


@dataclass(frozen=True)
class Reference:
    """The results of the undisturbed experiment."""

    manifest: bytes
    log: list[dict[str, str]]
    translations: dict[str, str]


@dataclass
class Ended:
    """How a command ended."""

    codes: list[int | None]
    printed: str
    killed: bool


class Lab:
    """What scenarios share: sources, a warm parent for processes, a server, and the undisturbed results."""

    def __init__(self, folder: Path, *, buckets: bool = True) -> None:
        ranks.CONTEXT.set_forkserver_preload(list(_PRELOAD))
        self.folder = folder
        self.corpora = folder / "corpora"
        self.corpora.mkdir()
        write_corpora(self.corpora)
        self.buckets = buckets
        self.disk_is_small = _can_mount(folder)
        place = folder / "undisturbed"
        run = Experiment(self, place, random.Random(0), None)
        for stage in ("build", "train", "evaluate"):
            ended = run.run(stage)
            assert set(ended.codes) == {0}, ended.printed
        self.reference = Reference(run.manifest(), run.log(), run.translations())

    def scenario(self, seed: int) -> Scenario:
        """Run one seed."""
        chance = random.Random(f"chaos {seed}")
        in_bucket = self.buckets and chance.random() < 0.5
        made = Scenario(seed, "bucket" if in_bucket else "disk")
        begun = time.monotonic()
        folder = self.folder / f"seed-{seed}"
        with contextlib.ExitStack() as stack:
            store = None
            if in_bucket:
                environment = stack.enter_context(pytest.MonkeyPatch.context())
                store = new_bucket(environment)
                environment.setenv("AWS_MAX_ATTEMPTS", "3")
                stack.callback(lambda: store.client.delete_bucket(Bucket=store.bucket))
            small = self.disk_is_small and chance.random() < 0.4
            if small:
                stack.enter_context(_small_disk(folder))
            experiment = Experiment(self, folder, chance, store, disk_is_small=small)
            try:
                with experiment.network():
                    _disturb(experiment, made)
                    _look_for_secrets(experiment)
                    _compare(experiment, self.reference)
            except FailureError as failure:
                made.verdict, made.words = failure.kind, str(failure)
            except Exception:  # of this driver: a seed loses its own result only
                made.verdict, made.words = "broken", traceback.format_exc()
        if made.verdict == "equal":
            shutil.rmtree(folder, ignore_errors=True)
        made.seconds = round(time.monotonic() - begun, 1)
        return made


def _can_mount(folder: Path) -> bool:
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    try:
        with _small_disk(place):
            return True
    except subprocess.CalledProcessError:
        return False


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs at a folder; needs the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(folder)],
                   check=True, capture_output=True)  # fmt: skip
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


class Experiment:
    """The experiment of one scenario: its files, and its three commands."""

    def __init__(
        self, lab: Lab, folder: Path, chance: random.Random, store: ObjectStore | None, *, disk_is_small: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.chance, self.bucket, self.disk_is_small = folder, chance, store, disk_is_small
        values = small_experiment(lab.corpora, DEMO / "tokenizer.model", folder)
        values["train"] |= {"outage_limit": 90}
        values["stages"][0]["checkpoint_interval"] = 2
        values["cache"] = str(folder / "cache")
        if store is not None:
            values |= {"store": f"{store.url}/store", "out": f"{store.url}/run", "shard_compression": "zstd:1"}
        self.store_url, self.out = str(values["store"]), str(values["out"])
        self.config = folder / "experiment.yaml"
        self.config.write_text(yaml.safe_dump(values, sort_keys=False))
        self.moments = random.Random(chance.random())  # of what happens while processes run; it varies
        self.ranks, self.loader_workers = 2, 1
        self.ranks_changed = self.log_damaged = self.nodes_apart = False
        self.network_fault = ""
        self.backups: list[Callable[[], None]] = []
        self.damaged: list[str] = []  # names of damaged files, and of their folders

    # Commands.

    def run(self, stage: str, disturb: Callable[[list[ForkServerProcess]], bool] | None = None,
            *overrides: str) -> Ended:  # fmt: skip
        """Run build, train or evaluate to the end; `disturb` may kill processes, and returns whether it did."""
        printed = self.folder.parent / f"{self.folder.name}.{stage}.txt"  # not on a disk that may be full
        processes, outputs = self.launch(stage, printed, *overrides)
        deadline = time.monotonic() + DEADLINE_S
        killed = disturb(processes) if disturb is not None else False
        first_end = None
        while any(process.is_alive() for process in processes):
            time.sleep(0.05)
            if first_end is None and any(process.exitcode is not None for process in processes):
                first_end = time.monotonic()
            failed = any(process.exitcode for process in processes)
            if failed and first_end and time.monotonic() > first_end + _GRACE_S:
                for process in processes:
                    process.terminate()
            if time.monotonic() > deadline or (first_end and time.monotonic() > first_end + _PEER_S):
                words = "".join(
                    f"\n{path.name}: {path.read_text(errors='replace')[-1500:]}"
                    for path in sorted(printed.parent.glob(f"{printed.name}*"))
                )
                for process in processes:
                    _kill_tree(process.pid or 0)
                raise FailureError("hang", f"{stage} does not end (of the ranks ended: "
                                      f"{[process.exitcode for process in processes]}):{words}")  # fmt: skip
        printed_by_all = "\n".join(path.read_text(errors="replace") for path in outputs if path.is_file())
        return Ended([process.exitcode for process in processes], printed_by_all, killed)

    def launch(self, stage: str, printed: Path, *overrides: str,
               follow: bool = False) -> tuple[list[ForkServerProcess], list[Path]]:  # fmt: skip
        """Start build, train or evaluate; return its processes and the files with what they print."""
        module, arguments, number = {
            "build": ("dataengine.cli", ["build", str(self.config), "--workers", "2"], 1),
            "train": ("trainer.train", [str(self.config), f"train.loader_workers={self.loader_workers}"], self.ranks),
            "evaluate": ("trainer.evaluate", [str(self.config), "--follow" if follow else "--all"], 1),
        }[stage]
        outputs = [printed if rank == 0 else Path(f"{printed}.{rank}") for rank in range(number)]
        port = free_port()
        environments = (
            [ranks.rank_environment(rank, number, port) for rank in range(number)]
            if stage == "train"
            else [ranks.thread_and_bucket()]
        )
        own: list[list[str]] = [[] for _ in range(number)]
        if stage == "train" and self.nodes_apart:
            for rank, environment in enumerate(environments):
                environment |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": str(rank)}
                key = "out" if self.bucket is None else "cache"  # of a run in a bucket each node has its working copy
                own[rank] = [f"{key}={self.folder / f'node{rank}' / key}"] if rank else []
        processes = [
            ranks.CONTEXT.Process(
                target=_command, args=(module, [*arguments, *overrides, *mine], environment, str(path))
            )
            for environment, path, mine in zip(environments, outputs, own, strict=True)
        ]
        for path in outputs:
            path.unlink(missing_ok=True)
        for process in processes:
            process.start()
        return processes, outputs

    # Results.

    def open(self, url: str) -> Store:
        """A store of the experiment, through the real server."""
        return open_store(url)

    def read(self, url: str, key: str) -> bytes:
        """A file of the store or the run."""
        return self.open(url).read(key)

    def manifest(self) -> bytes:
        """Of the build."""
        return self.read(self.store_url, "experiments/small/manifest.json")

    def log(self) -> list[dict[str, str]]:
        """The file of the run, at its final place."""
        path = self.folder / "final-log.csv"
        path.write_bytes(self.read(self.out, "log.csv"))
        return read_log(path)

    def translations(self) -> dict[str, str]:
        """All translations of evaluated checkpoints by their files, and their scores."""
        store, found = self.open(self.out), {}
        for key in sorted(store.sizes("evaluations/")):
            if key.endswith("shot.jsonl"):
                found[key] = store.read(key).decode()
            if key.endswith("results.json"):
                results = json.loads(store.read(key))
                found[key] = str([(one["direction"], one["bleu"]) for one in results["translation"]])
        return found

    # Faults.

    def files(self, url: str, prefix: str) -> list[str]:
        """Keys under a prefix."""
        return sorted(self.open(url).sizes(prefix))

    def damage(self, url: str, key: str, how: str) -> None:
        """Damage a file as a disk, a person or another program would; `restore` undoes that."""
        store = self.open(url)
        before = store.read(key)
        content = bytearray(before)
        if how == "a byte changed" and content:
            content[self.moments.randrange(len(content))] ^= 1 << self.moments.randrange(8)
        elif how == "cut short":
            del content[self.moments.randrange(max(1, len(content))) :]
        elif how == "emptied":
            content.clear()
        if how == "removed":
            store.remove(key)
        else:
            store.write(key, bytes(content))

        def restore() -> None:
            try:
                is_damaged_still = store.read(key) == content
            except FileNotFoundError:
                is_damaged_still = how == "removed"
            if is_damaged_still:
                store.write(key, before)

        self.backups.append(restore)
        folder, _, name = key.rpartition("/")
        self.damaged += [name, folder.rpartition("/")[2]]

    def restore(self) -> None:
        """Bring back what was damaged."""
        while self.backups:
            self.backups.pop()()

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Put a proxy before the server that applies `network_fault`."""
        if self.bucket is None:
            yield
            return

        chance = random.Random(self.chance.random())

        def fault(number: int, method: str, headers: Mapping[str, str]) -> int | str | None:
            kind = self.network_fault
            if kind == "slow":
                time.sleep(chance.random() * 0.3)
            elif kind == "broken" and chance.random() < 0.15:
                return chance.choice([500, 503, "cut", "reset"])
            return None

        with faulty_proxy(self.bucket.endpoint, fault) as (endpoint, _):
            before = os.environ["S3_ENDPOINT_URL"]
            os.environ["S3_ENDPOINT_URL"] = endpoint
            try:
                yield
            finally:
                os.environ["S3_ENDPOINT_URL"] = before


def _command(module: str, arguments: list[str], environment: dict[str, str], printed: str) -> None:
    """A command's `main` in a process forked from the warm parent."""
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    import trainer.evaluation.candidates
    import trainer.run.signals

    trainer.run.signals.WAIT_FOR_RANK_0_S = 3.0  # no launcher ends the others
    trainer.evaluation.candidates._POLL_S = 1
    torch.set_num_threads(1)
    importlib.import_module(module).main(arguments)
    sys.exit(0)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _kill_tree(pid: int) -> None:
    below = _children(pid)
    _kill(pid)
    for child in below:
        _kill_tree(child)


# Faults while a command runs. Each returns whether something was killed.


def _wait(chance: random.Random, experiment: Experiment, processes: Sequence[ForkServerProcess], stage: str) -> None:
    """Wait for a random moment: in training a random number of steps and a little more, otherwise some time."""
    until = time.monotonic() + 40
    rows = chance.randrange(15) if stage == "train" else 0
    while rows and time.monotonic() < until and processes[0].is_alive():
        log = _local_log(experiment)
        with contextlib.suppress(OSError, ValueError, KeyError):
            if log.is_file() and len(log.read_bytes().splitlines()) > rows:
                break
        time.sleep(0.01)
    time.sleep(chance.random() * {"build": 1.5, "train": 0.4, "evaluate": 1.5}[stage])


def _local_log(experiment: Experiment) -> Path:
    if experiment.bucket is None:
        return Path(experiment.out) / "log.csv"
    found = list((experiment.folder / "cache").rglob("log.csv"))
    return found[0] if found else Path("nowhere")


Disturbance = Callable[[list[ForkServerProcess]], bool]


def _killer(experiment: Experiment, stage: str, whom: str) -> Disturbance:
    chance = experiment.moments

    def act(processes: list[ForkServerProcess]) -> bool:
        _wait(chance, experiment, processes, stage)
        victims = list(processes) if whom == "all" else [chance.choice(processes)]
        if whom == "child":
            below = [pid for process in processes for pid in _children(process.pid or 0)]
            return bool(below) and _kill(chance.choice(below))
        alive = [process for process in victims if process.is_alive()]
        for process in alive:
            if whom == "asked":
                os.kill(process.pid or 0, signal.SIGTERM)
            else:
                _kill(process.pid or 0)
        if whom == "one" and alive:  # as the launcher does, when the others have had time to notice
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and any(process.is_alive() for process in processes):
                time.sleep(0.05)
            for process in processes:
                _kill(process.pid or 0)
        return bool(alive)

    return act


def _outage(experiment: Experiment, stage: str) -> Disturbance:
    """The server dies, and is started again some seconds later."""

    def act(processes: list[ForkServerProcess]) -> bool:
        _wait(experiment.moments, experiment, processes, stage)
        server().kill()
        time.sleep(experiment.moments.random() * 5)
        server().start()
        return False

    return act


def _full_disk(experiment: Experiment, stage: str) -> Disturbance:
    """The disk fills up, and is freed once the command has ended."""

    def act(processes: list[ForkServerProcess]) -> bool:
        _wait(experiment.moments, experiment, processes, stage)
        ballast = experiment.folder / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(256))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(process.is_alive() for process in processes):
            time.sleep(0.05)
        ballast.unlink(missing_ok=True)
        return False

    return act


def _asked_during_a_save(experiment: Experiment, stage: str) -> Disturbance:
    """All ranks are asked to stop, as by their launcher, while a checkpoint is written."""

    def act(processes: list[ForkServerProcess]) -> bool:
        begun, until = time.time(), time.monotonic() + 60
        while time.monotonic() < until and processes[0].is_alive():
            if any(_is_being_written(folder, begun) for folder in experiment.folder.rglob("checkpoints/step-*")):
                for process in processes:
                    if process.is_alive():
                        os.kill(process.pid or 0, signal.SIGTERM)
                break
            time.sleep(0.002)
        return False

    return act


def _is_being_written(checkpoint: Path, since: float) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return not (checkpoint / "COMPLETE.json").is_file() and checkpoint.stat().st_mtime >= since
    return False


def _second_start(experiment: Experiment, stage: str) -> Disturbance:
    """The same command is started twice at once, for the same `out` or for another one."""

    def act(processes: list[ForkServerProcess]) -> bool:
        same = experiment.moments.random() < 0.5
        elsewhere = [] if same else [f"out={experiment.folder / 'second'}"]
        _beside(experiment, stage, *elsewhere, refusals=("is being trained by",) if same else ())
        shutil.rmtree(experiment.folder / "second", ignore_errors=True)
        return False

    return act


def _followed(experiment: Experiment, stage: str) -> Disturbance:
    """An evaluation follows a training that keeps one checkpoint."""

    def act(processes: list[ForkServerProcess]) -> bool:
        until = time.monotonic() + 60
        while time.monotonic() < until and processes[0].is_alive():
            if list(experiment.folder.rglob("checkpoints/step-*/COMPLETE.json")):
                break
            time.sleep(0.05)
        _beside(experiment, "evaluate", _KEEP_ONE, follow=True)
        return False

    return act


def _beside(
    experiment: Experiment, stage: str, *overrides: str, refusals: Sequence[str] = (), follow: bool = False
) -> None:
    """Run a command to its end beside another one. It must end well, or be refused with one of these texts."""
    printed = experiment.folder.parent / f"{experiment.folder.name}.beside.txt"
    processes, outputs = experiment.launch(stage, printed, *overrides, follow=follow)
    deadline = time.monotonic() + DEADLINE_S - 30
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            _kill_tree(process.pid or 0)
    words = "\n".join(path.read_text(errors="replace") for path in outputs if path.is_file())
    expected = [*refusals, *filter(None, experiment.damaged)]
    if set(codes) != {0} and not (set(codes) == {2} and any(refusal in words for refusal in expected)):
        kind = "hang" if None in codes else "crash"
        raise FailureError(kind, f"{stage} beside another command: exit codes {codes}:\n{words[-2000:]}")


# The course of a scenario.


@dataclass(frozen=True)
class Fault:
    """A kind of fault of a stage: what is done while it runs, or to files before it."""

    name: str
    during: Callable[[Experiment, str], Disturbance] | None = None
    before: Callable[[Experiment], bool] | None = None  # returns whether there was something to damage
    names: tuple[str, ...] = ()  # what a refusal must name
    bucket_only: bool = False
    small_disk_only: bool = False
    overrides: tuple[str, ...] = ()
    network: str = ""


def _damage(url: Callable[[Experiment], str], wanted: Callable[[str], bool]) -> Callable[[Experiment], bool]:
    def act(experiment: Experiment) -> bool:
        keys = [key for key in experiment.files(url(experiment), "") if wanted(key)]
        if not keys:
            return False
        key = experiment.chance.choice(keys)
        experiment.damage(url(experiment), key, experiment.chance.choice(_DAMAGES))
        return True

    return act


def _damage_cache(experiment: Experiment) -> bool:
    """A shard that a node has fetched."""
    found = [path for path in (experiment.folder / "cache").rglob("*.mds*") if path.is_file()]
    if not found:
        return False
    path = experiment.chance.choice(sorted(found))
    experiment.damage(str(path.parent), path.name, experiment.chance.choice(_DAMAGES))
    return True


def _other_ranks(experiment: Experiment) -> bool:
    experiment.ranks = experiment.chance.choice([1, 4])
    experiment.ranks_changed = True
    return True


def _nodes_apart(experiment: Experiment) -> bool:
    """Each rank is a separate node, without the folder of the other."""
    experiment.nodes_apart = experiment.ranks > 1
    return experiment.nodes_apart


def _other_workers(experiment: Experiment) -> bool:
    experiment.loader_workers = experiment.chance.choice([0, 2])
    return True


def _store(experiment: Experiment) -> str:
    return experiment.store_url


def _run(experiment: Experiment) -> str:
    return experiment.out


def _faults() -> dict[str, list[Fault]]:
    def kill(name: str, whom: str) -> Fault:
        return Fault(name, during=lambda experiment, stage: _killer(experiment, stage, whom))

    network = [
        Fault("server killed and started", during=_outage, bucket_only=True, names=("s3://", "bucket")),
        Fault("connections broken", bucket_only=True, network="broken", names=("s3://", "bucket")),
        Fault("connections slow", bucket_only=True, network="slow"),
    ]
    disk = [
        Fault("disk full", during=_full_disk, small_disk_only=True, names=("No space left", "disk is full", "room"))
    ]

    def files(name: str, url: Callable[[Experiment], str], wanted: Callable[[str], bool]) -> Fault:
        return Fault(name, before=_damage(url, wanted))

    return {
        "build": [
            kill("build killed", "all"),
            kill("build worker killed", "child"),
            files("unit's file damaged", _store, lambda key: key.startswith("units/")),
            *network,
            *disk,
        ],
        "train": [
            kill("rank killed", "one"),
            kill("all ranks killed", "all"),
            kill("loader worker killed", "child"),
            kill("rank asked to stop", "asked"),
            files("built shard damaged", _store, lambda key: key.startswith("streams/") and ".mds" in key),
            files("stream's index damaged", _store, lambda key: key.startswith("streams/") and ".mds" not in key),
            files("manifest damaged", _store, lambda key: key == "experiments/small/manifest.json"),
            files("checkpoint damaged", _run, lambda key: key.startswith("checkpoints/") and "COMPLETE" not in key),
            files("checkpoint's marker damaged", _run, lambda key: key.endswith("COMPLETE.json")),
            files("run's manifest or config damaged", _run, lambda key: key in ("manifest.json", "config.yaml")),
            Fault("log damaged", before=_damage_log),
            Fault("cached shard damaged", before=_damage_cache, bucket_only=True),
            Fault("node without the shared folder", before=_nodes_apart, names=("is not shared by all nodes",)),
            Fault("two starts at once", during=_second_start, names=("is being trained by",)),
            Fault("asked to stop during a save", during=_asked_during_a_save),
            Fault("retention beside an evaluation", during=_followed, overrides=(_KEEP_ONE,)),
            Fault("other number of ranks", before=_other_ranks),
            Fault("other number of loader workers", before=_other_workers),
            *network,
            *disk,
        ],
        "evaluate": [
            kill("evaluation killed", "all"),
            files("results damaged", _run, lambda key: key.startswith("evaluations/")),
            files("newest checkpoint damaged", _run, lambda key: key.startswith("checkpoints/step-00000016/")),
            *network,
            *disk,
        ],
    }  # fmt: skip


def _damage_log(experiment: Experiment) -> bool:
    """The log loses its end, or all; a changed digit in it is not noticed (docs/internals/reliability.md)."""
    if "log.csv" not in experiment.files(experiment.out, ""):
        return False
    experiment.damage(experiment.out, "log.csv", experiment.chance.choice(_DAMAGES[1:]))
    experiment.log_damaged = True
    return True


FAULTS = _faults()


def _disturb(experiment: Experiment, made: Scenario) -> None:
    """All three stages, each with up to three faults; at least one fault in total."""
    chance = experiment.chance
    for stage in ("build", "train", "evaluate"):
        fitting = [
            fault
            for fault in FAULTS[stage]
            if (experiment.bucket or not fault.bucket_only) and (experiment.disk_is_small or not fault.small_disk_only)
        ]
        number = chance.choice({"build": [0, 1, 1, 2], "train": [1, 2, 2, 3], "evaluate": [0, 1, 1]}[stage])
        for fault in chance.sample(fitting, number):
            if fault.before and chance.random() < 0.85:  # there is something to damage
                _begin(experiment, stage)
            made.events.append(Event(f"{stage}: {fault.name}", _inject(experiment, stage, fault)))
        if stage == "build" or experiment.chance.random() < 0.3:  # a finished command says so, and changes nothing
            _to_the_end(experiment, stage)
        _to_the_end(experiment, stage)


def _begin(experiment: Experiment, stage: str) -> None:
    """Do a part of a stage."""
    if stage == "build":
        experiment.run(stage, _killer(experiment, stage, "all"))
    else:
        steps = [f"train.max_steps={experiment.chance.randrange(3, 15)}"] if stage == "train" else []
        _to_the_end(experiment, stage, *steps)


def _inject(experiment: Experiment, stage: str, fault: Fault) -> str:
    """Inject a fault into a stage; return its outcome, in a word or two."""
    if fault.before is not None and not fault.before(experiment):
        return "not reached"
    experiment.network_fault = fault.network
    ended = experiment.run(stage, fault.during(experiment, stage) if fault.during else None, *fault.overrides)
    experiment.network_fault, experiment.nodes_apart = "", False
    names = [*fault.names, *experiment.damaged]  # also earlier
    outcome = _judge(stage, fault.name, ended, names)
    if outcome == "refused":
        experiment.restore()
    elif stage == "evaluate" and outcome == "went on" and not _has_last(experiment):  # a checkpoint was passed over
        if not any(name and name in ended.printed for name in names):
            raise FailureError("unclear", f"{fault.name}: no mention of {names}:\n{ended.printed[-1500:]}")
        experiment.restore()
    return outcome


def _has_last(experiment: Experiment) -> bool:
    return any("step-00000016" in key for key in experiment.files(experiment.out, "evaluations/"))


def _judge(stage: str, fault: str, ended: Ended, names: Sequence[str]) -> str:
    if set(ended.codes) == {0}:
        return "went on"
    if ended.killed:
        return "started again"
    last = ended.printed[-3000:]
    message = ended.printed[ended.printed.find("error: ") :] if "error: " in ended.printed else ""
    if 2 not in ended.codes or not message:
        raise FailureError("crash", f"{stage}, {fault}: exit codes {ended.codes}:\n{last}")
    if set(ended.codes) == {2} and "Traceback" in ended.printed:
        raise FailureError("crash", f"{stage}, {fault}: a traceback:\n{last}")
    if names and not any(name and name in message for name in names):
        raise FailureError("unclear", f"{stage}, {fault}: the message names none of {names}:\n{message[:1500]}")
    return "refused"


def _to_the_end(experiment: Experiment, stage: str, *overrides: str) -> None:
    """The command without a new fault; damage of an earlier one may still be refused once, and is then restored."""
    ended = experiment.run(stage, None, *overrides)
    for _ in range(5):
        if "Run again later" not in ended.printed:
            break
        time.sleep(2)  # a server that has just started again
        ended = experiment.run(stage, None, *overrides)
    if set(ended.codes) == {2} and experiment.backups:
        experiment.restore()
        ended = experiment.run(stage, None, *overrides)
    if set(ended.codes) != {0}:
        raise FailureError("crash", f"{stage}, undisturbed: exit codes {ended.codes}:\n{ended.printed[-3000:]}")


def _look_for_secrets(experiment: Experiment) -> None:
    """Check that nothing printed or written contains the server's keys."""
    written = {str(path): path.read_bytes() for path in experiment.folder.rglob("*") if path.is_file()}
    written |= {str(path): path.read_bytes() for path in experiment.folder.parent.glob(f"{experiment.folder.name}.*")}
    if experiment.bucket is not None:
        client, bucket = experiment.bucket.client, experiment.bucket.bucket
        for key in experiment.bucket.keys():  # noqa: SIM118 (no dict)
            written[key] = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    for name, content in written.items():
        if SECRET_KEY.encode() in content or ACCESS_KEY.encode() in content:
            raise FailureError("secret", f"{name} holds the server's keys")


def _compare(experiment: Experiment, reference: Reference) -> None:
    """Check everything that must be the same."""
    ours, theirs = experiment.log(), reference.log
    experiment.restore()  # what was damaged after the last command that reads it
    if experiment.bucket is None and experiment.manifest() != reference.manifest:
        raise FailureError("different", "the manifest")
    if (
        experiment.log_damaged
    ):  # its lost rows are reported at the resume, and do not come back; checkpoints have the digest
        kept = {row["step"] for row in ours}
        theirs = [row for row in theirs if row["step"] in kept]
        marker = json.loads(experiment.read(experiment.out, "checkpoints/step-00000016/COMPLETE.json"))
        if marker["digest"] != reference.log[-1]["digest"]:
            raise FailureError("different", "the digest of samples in the last checkpoint")
    if [row["digest"] for row in ours] != [row["digest"] for row in theirs]:
        raise FailureError("different", "the digests of samples")
    if experiment.ranks_changed:
        return  # sums over another number of ranks round differently
    if exact(ours) != exact(theirs):
        raise FailureError("different", "the losses")
    found = experiment.translations()
    # Kills and stops lead to more checkpoints, damage to fewer.
    for key, content in reference.translations.items():
        if found.get(key, content) != content or (key not in found and "step-00000016" in key):
            raise FailureError("different", key)
