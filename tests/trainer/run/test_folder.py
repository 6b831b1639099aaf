from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dataengine.errors import InputError
from dataengine.storage.store import Store
from tests.object_store import ObjectStore, object_store
from trainer import audit, report
from trainer.run.folder import SMALL_FILES, Run, local_folder, open_run
from trainer.run.lock import hold, hold_bucket

__all__ = ["object_store"]


def test_a_local_out_is_its_own_folder(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "run"), "cache")
    assert (run.url, run.folder, run.store) == (str(tmp_path / "run"), tmp_path / "run", None)
    run.fetch("log.csv")
    run.publish("log.csv", b"step\n")
    assert (tmp_path / "run" / "log.csv").read_bytes() == b"step\n"
    assert local_folder(run.url, "cache") == run.folder


def test_a_url_has_a_folder_of_its_own_below_the_cache(object_store: ObjectStore, tmp_path: Path) -> None:
    names = [open_run(f"{object_store.url}/{name}", str(tmp_path)).folder for name in ("a/b", "a-b", "a/b/")]
    assert names[0] == names[2] != names[1]
    assert names[0].parent == tmp_path / "runs"
    assert names[0].name.startswith(f"{object_store.bucket}-a-b-")


def test_an_unknown_kind_of_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="azure://a/b': not a kind of store"):
        open_run("azure://a/b", str(tmp_path))


def test_small_files_come_to_another_machine(object_store: ObjectStore, tmp_path: Path) -> None:
    here, there = (open_run(f"{object_store.url}/run", str(tmp_path / name)) for name in ("here", "there"))
    here.publish("config.yaml", b"seed: 1\n")
    here.publish("log.csv", b"step\n0\n1\n")
    there.fetch(*SMALL_FILES)
    assert (there.folder / "config.yaml").read_bytes() == b"seed: 1\n"
    assert (there.folder / "log.csv").read_bytes() == b"step\n0\n1\n"
    assert not (there.folder / "manifest.json").exists()


def test_the_longer_log_counts_and_the_config_of_the_bucket(object_store: ObjectStore, tmp_path: Path) -> None:
    run = open_run(f"{object_store.url}/run", str(tmp_path))
    run.publish("log.csv", b"step\n0\n")
    run.publish("config.yaml", b"seed: 2\n")
    (run.folder / "log.csv").write_bytes(b"step\n0\n1\n")
    (run.folder / "config.yaml").write_bytes(b"seed: 1, an older one\n")
    run.fetch(*SMALL_FILES)
    assert (run.folder / "log.csv").read_bytes() == b"step\n0\n1\n"
    assert (run.folder / "config.yaml").read_bytes() == b"seed: 2\n"
    (run.folder / "log.csv").write_bytes(b"step\n")
    run.fetch(*SMALL_FILES)
    assert (run.folder / "log.csv").read_bytes() == b"step\n0\n"


@pytest.mark.parametrize("tool", [audit, report])
def test_a_url_without_a_run_is_said_to_have_none(
    object_store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: object
) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main([f"{object_store.url}/none", "--cache", str(tmp_path)])  # type: ignore[attr-defined]
    assert ended.value.code == 2
    assert f"error: no run at {object_store.url}/none: there is no manifest.json" in capsys.readouterr().err


def test_a_disk_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockf(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("trainer.run.lock.fcntl.lockf", lockf)
    with hold(tmp_path):
        assert caplog.messages == [
            f"{tmp_path} is on a file system without locks (No locks available): a second training in this "
            "folder would not be refused. Start one at a time."
        ]


def test_a_bucket_is_trained_into_from_one_machine(object_store: ObjectStore, tmp_path: Path) -> None:
    here, there = (open_run(f"{object_store.url}/run", str(tmp_path / name)) for name in ("here", "there"))
    words = r"/run is being trained by process \d+ on .*here/runs/.* Wait until"
    with hold_bucket(here, 0.2), pytest.raises(InputError, match=words), hold_bucket(there, 0.2):
        pass
    assert object_store.keys() == []
    with hold_bucket(there, 0.2):
        assert object_store.keys() == ["run/training.lock"]


def test_machines_of_one_name_and_folder_are_two(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As virtual machines of one image: the second one must not take the run from the first, which would end."""
    run = open_run(f"{object_store.url}/run", str(tmp_path))
    with hold_bucket(run, 0.2):
        monkeypatch.setattr("trainer.run.lock._machine", lambda: "another")
        with pytest.raises(InputError, match="is being trained by"), hold_bucket(run, 0.2):
            pass


def test_a_holder_outlasts_an_outage(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(f"{object_store.url}/run", str(tmp_path))
    faults: list[Exception] = [InputError("no answer"), ConnectionResetError("reset"), FileNotFoundError("no bucket")]
    read, failed = type(run.store).read, []

    def break_down(store: Store, key: str) -> bytes:
        if faults and threading.current_thread().name == "lease":
            failed.append(faults.pop())
            raise failed[-1]
        return bytes(read(store, key))

    monkeypatch.setattr(type(run.store), "read", break_down)
    with hold_bucket(run, 0.1):
        assert run.store is not None
        while len(failed) < 3:
            time.sleep(0.05)
        before = run.store.read("training.lock")
        while run.store.read("training.lock") == before:  # else the test hangs: it is written no more
            time.sleep(0.05)


@pytest.mark.parametrize("place", ["here", "there"])
def test_a_bucket_of_a_killed_training_is_free(object_store: ObjectStore, tmp_path: Path, place: str) -> None:
    """At once for the same folder, which `hold` keeps; else once no process writes any more."""
    killed, run = (open_run(f"{object_store.url}/run", str(tmp_path / name)) for name in ("here", place))
    process = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(killed,))
    process.start()
    process.join()
    assert object_store.keys() == ["run/training.lock"]
    begun = time.monotonic()
    with hold_bucket(run, 0.5):
        assert (time.monotonic() - begun >= 1.5) == (place == "there")
    assert object_store.keys() == []


def _hold_and_die(run: Run) -> None:
    with hold_bucket(run, 0.5):
        os._exit(1)


def test_of_two_that_begin_at_once_one_stays(object_store: ObjectStore, tmp_path: Path) -> None:
    runs = [open_run(f"{object_store.url}/run", str(tmp_path / name)) for name in ("here", "there")]
    both = threading.Barrier(2)

    def begin(run: Run) -> str:
        both.wait()
        try:
            with hold_bucket(run, 5.0):  # a machine under load may write a second later than the other
                both.wait(30)
                return "held"
        except InputError as error:
            both.wait(30)
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        found = sorted(pool.map(begin, runs))
    assert "is being trained by" in found[0] or "is being trained by" in found[1]
    assert found.count("held") == 1
