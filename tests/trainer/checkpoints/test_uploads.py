from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from dataengine.errors import InputError
from dataengine.storage.s3 import abort_uploads
from dataengine.storage.store import Store
from tests.object_store import ObjectStore, faulty_proxy, object_store
from tests.trainer.fake_checkpoints import NAMES, complete_checkpoints, describe, save, write_files
from trainer.checkpoints import uploads
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.find import all_checkpoints, newest_checkpoint
from trainer.checkpoints.marker import MARKER, checkpoint_folder, checkpoint_key, mark_complete
from trainer.checkpoints.uploads import Uploader, clear_bucket, resume_uploads
from trainer.run.folder import Run, open_run

__all__ = ["object_store"]

WAIT_S = 60


@pytest.fixture
def run(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run in a bucket; requests are not repeated by botocore, so that faults reach the code under test."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("dataengine.storage.retry.pause_s", lambda state: 0.1)
    monkeypatch.setattr(uploads, "_LOOK_S", 0.1)
    return open_run(f"{object_store.url}/deep/run", str(tmp_path / "cache"))


def store_of(run: Run) -> Store:
    assert run.store is not None
    return run.store


def submit(uploader: Uploader, run: Run, step: int, *, names: tuple[str, ...] = NAMES, size: int = 50_000) -> None:
    """Save a checkpoint and queue it, as the rank that puts the marker and has these files."""
    folder = write_files(run.folder, step, size=size)
    marker = describe(folder, step)
    uploader.submit(step, names, marker.files, mark_complete(folder, marker))


def marked(run: Run) -> list[int]:
    """Steps whose marker is in the bucket."""
    keys = store_of(run).sizes("checkpoints/")
    return [int(key.split("/")[1].removeprefix("step-")) for key in keys if key.endswith(MARKER)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def test_what_is_uploaded_is_found_and_fetched_on_another_machine(run: Run, tmp_path: Path) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "log.csv").write_text("step\n0\n")
    uploader = Uploader(run)
    submit(uploader, run, 5)
    uploader.wait(WAIT_S)
    assert uploader.failure is None
    there = open_run(run.url, str(tmp_path / "there"))
    checkpoint = newest_checkpoint(there)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.local) == (5, False)
    assert fetch_checkpoint(there, checkpoint) == []
    for name in NAMES:
        assert (checkpoint.folder / name).read_bytes() == (run.folder / checkpoint.key / name).read_bytes()
    assert store_of(run).read("log.csv") == b"step\n0\n"


def test_the_marker_waits_for_the_files_of_all_ranks_and_a_newer_checkpoint_for_an_older(run: Run) -> None:
    uploader = Uploader(run)
    submit(uploader, run, 5, names=NAMES[:2])
    submit(uploader, run, 10)
    until(lambda: len(store_of(run).sizes("checkpoints/step-00000005")) == 2)
    time.sleep(0.5)
    assert marked(run) == []
    with pytest.raises(InputError, match=r"^2 uploads to"):
        uploader.wait(0)
    name = f"checkpoints/step-00000005/{NAMES[2]}"
    store_of(run).write(name, b"cut")
    time.sleep(0.5)
    assert marked(run) == []
    store_of(run).write(name, (run.folder / name).read_bytes())
    uploader.wait(WAIT_S)
    assert marked(run) == [5, 10]


RANK = """
import sys
from tests.trainer.fake_checkpoints import NAMES, describe
from trainer.checkpoints.marker import MARKER, checkpoint_folder
from trainer.run.folder import open_run
from trainer.checkpoints.uploads import Uploader
url, cache, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
run = open_run(url, cache)
uploader = Uploader(run, tidy=rank == 0)
for step in (5, 10):
    folder = checkpoint_folder(run.folder, step)
    marker = (folder / MARKER).read_bytes() if rank == 0 else None
    uploader.submit(step, (NAMES[:2], NAMES[2:])[rank], describe(folder, step).files, marker)
print("submitted", flush=True)
uploader.wait(60)
"""


def start_rank(run: Run, rank: int) -> subprocess.Popen[bytes]:
    cache = str(run.folder.parent.parent)
    return subprocess.Popen([sys.executable, "-c", RANK, run.url, cache, str(rank)], stdout=subprocess.PIPE)


@pytest.mark.slow
def test_two_ranks_in_two_processes_complete_one_checkpoint(run: Run) -> None:
    for step in (5, 10):
        save(run.folder, step)
    ranks = [start_rank(run, rank) for rank in range(2)]
    assert [rank.wait(WAIT_S) for rank in ranks] == [0, 0]
    assert [(one.step, bool(one.key), one.local) for one in all_checkpoints(run)] == [
        (5, True, False),
        (10, True, True),
    ]


def test_an_outage_does_not_stop_training_and_is_got_over(
    run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out_of_order = True

    def fault(number: int, method: str, headers: Mapping[str, str]) -> int | None:
        return 503 if out_of_order or number % 5 == 0 else None

    with faulty_proxy(object_store.endpoint, fault) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        uploader = Uploader(run, keep=2)
        for step in (5, 10, 15):
            submit(uploader, run, step)  # returns, though the store does not work
        until(lambda: len(methods) > 5)
        with pytest.raises(InputError, match=r"^3 uploads to"):
            uploader.wait(0)
        assert uploader.failure is None
        assert [one.step for one in complete_checkpoints(run.folder)] == [5, 10, 15]  # none goes before it is there
        out_of_order = False
        uploader.wait(WAIT_S)
        monkeypatch.setenv("S3_ENDPOINT_URL", object_store.endpoint)
    assert uploader.failure is None
    assert marked(run)[-2:] == [10, 15]
    assert [one.step for one in complete_checkpoints(run.folder)] == [15]
    assert len([r for r in caplog.records if "Retrying for 3600 s; training continues" in r.getMessage()]) == 1
    assert "works again after" in caplog.text


def test_a_store_that_never_works_is_given_up_and_said(
    run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(object_store.endpoint, lambda *request: 503) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        uploader = Uploader(run, outage_limit_s=1)
        submit(uploader, run, 5)
        with pytest.raises(InputError) as raised:
            uploader.wait(WAIT_S)
    assert str(raised.value) == uploader.failure
    assert f"step 5 could not be uploaded to {run.url}: {run.url}/checkpoints/step-00000005/" in str(raised.value)
    assert "the store is failing or too busy" in str(raised.value)
    assert f"The checkpoints are in {run.folder}; run the same command again to upload them" in str(raised.value)
    uploader.submit(10, (), {}, b"")  # is kept on disk, and nothing hangs
    assert len(complete_checkpoints(run.folder)) == 1


def test_a_bucket_that_refuses_for_a_while_is_waited_for(
    run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key may be renewed meanwhile; no training ends for it."""
    with faulty_proxy(object_store.endpoint, lambda number, *_: 403 if number < 5 else None) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        uploader = Uploader(run)
        submit(uploader, run, 5)
        uploader.wait(WAIT_S)
        assert uploader.failure is None
    assert methods[:5] == ["PUT"] * 5
    assert [one.step for one in all_checkpoints(run) if one.key] == [5]


def test_files_of_another_rank_that_never_come_are_given_up(run: Run) -> None:
    uploader = Uploader(run, outage_limit_s=1)
    submit(uploader, run, 5, names=NAMES[:2])
    with pytest.raises(InputError, match=r"1 of 3 files of other ranks did not arrive \(__1_0.distcp\)"):
        uploader.wait(WAIT_S)
    assert marked(run) == []


def test_a_file_that_is_gone_is_given_up_at_once(run: Run) -> None:
    uploader = Uploader(run)
    uploader.submit(5, ["__0_0.distcp"], {"__0_0.distcp": 5}, b"")
    with pytest.raises(InputError, match=r"step 5 could not be uploaded .*step-00000005/__0_0.distcp is gone"):
        uploader.wait(WAIT_S)


def test_waiting_has_an_end(run: Run) -> None:
    uploader = Uploader(run)
    submit(uploader, run, 5, names=())
    with pytest.raises(InputError, match=r"1 uploads to s3://.* are not finished after 0.2 s"):
        uploader.wait(0.2)


def test_a_local_run_has_nothing_to_upload(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing to upload"):
        Uploader(open_run(str(tmp_path), "cache"))


def test_retention_continues_after_a_resume(run: Run) -> None:
    for steps in ((5, 10, 15), (20, 25)):  # an uploader of a new process does not know the steps before
        uploader = Uploader(run, keep=2)
        for step in steps:
            submit(uploader, run, step)
        uploader.wait(WAIT_S)
        assert marked(run) == list(steps[-2:])
        assert [one.step for one in complete_checkpoints(run.folder)] == [steps[-1]]
    assert {key.split("/")[1] for key in store_of(run).sizes("checkpoints")} == {"step-00000020", "step-00000025"}


def test_all_stay_in_the_bucket_if_none_is_to_go(run: Run) -> None:
    uploader = Uploader(run, keep=None)
    for step in (5, 10):
        submit(uploader, run, step)
    uploader.wait(WAIT_S)
    assert marked(run) == [5, 10]


def test_a_node_without_the_marker_removes_its_copies_once_the_marker_is_there(run: Run, tmp_path: Path) -> None:
    other = open_run(run.url, str(tmp_path / "other node"))
    first, second = Uploader(run), Uploader(other)
    for step in (5, 10):
        folder = write_files(other.folder, step)
        marker = describe(folder, step)
        mark_complete(folder, marker)
        (folder / NAMES[0]).unlink()
        (folder / NAMES[1]).unlink()
        second.submit(step, NAMES[2:], marker.files)
    second.wait(WAIT_S)
    time.sleep(0.3)
    assert checkpoint_folder(other.folder, 5).is_dir()  # the other node may have lost its own
    for step in (5, 10):
        submit(first, run, step, names=NAMES[:2])
    first.wait(WAIT_S)
    until(lambda: not checkpoint_folder(other.folder, 5).exists())
    assert (checkpoint_folder(other.folder, 10) / NAMES[2]).is_file()
    assert [(one.step, one.local) for one in all_checkpoints(other)] == [(5, False), (10, False)]


def test_a_killed_process_is_made_good_by_the_next(
    run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 never uploads; rank 0 is killed while the second file of step 10 is on its way."""
    uploader = Uploader(run)
    submit(uploader, run, 1)
    uploader.wait(WAIT_S)
    for step in (5, 10):
        save(run.folder, step)
    hung: list[int] = []

    def hang(number: int, method: str, headers: Mapping[str, str]) -> None:
        if number == 1:
            hung.append(number)
            time.sleep(2)

    with faulty_proxy(object_store.endpoint, hang) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        process = start_rank(run, 0)
        until(lambda: bool(hung))
        process.send_signal(signal.SIGKILL)
        process.wait()
        monkeypatch.setenv("S3_ENDPOINT_URL", object_store.endpoint)
    assert marked(run) == [1]
    newest = newest_checkpoint(run)
    assert newest is not None
    assert (newest.step, newest.local, newest.key) == (10, True, "")
    clear_bucket(run, newest)
    ranks = [Uploader(run, tidy=share == 0) for share in range(2)]
    for share, uploader in enumerate(ranks):
        resume_uploads(run, uploader, newest, share, 2)
    for uploader in ranks:
        uploader.wait(WAIT_S)
    assert [(one.step, bool(one.key)) for one in all_checkpoints(run)] == [(1, True), (5, True), (10, True)]
    resume_uploads(run, ranks[0], newest)
    ranks[0].wait(0)  # nothing was queued


def test_what_is_later_than_the_resume_is_set_aside_and_what_is_unfinished_goes(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = Uploader(run)
    for step in (5, 10, 15):
        submit(uploader, run, step)
    uploader.wait(WAIT_S)
    store = store_of(run)
    store.remove(f"{checkpoint_key(5)}/{MARKER}")  # half removed
    save(run.folder, 12)
    store.write(f"{checkpoint_key(12)}/{NAMES[0]}", b"begun by a process that was killed")
    found = {one.step: one for one in all_checkpoints(run)}
    files = {name: store.read(f"{checkpoint_key(15)}/{name}") for name in (*NAMES, MARKER)}
    clear_bucket(run, found[12])
    folders = {key.split("/")[1] for key in store.sizes("checkpoints")}
    assert folders == {"step-00000010", "step-00000012", "aside-step-00000015"}
    assert f"removing {run.url}/checkpoints/step-00000005, which was not finished" in caplog.text
    assert (
        f"{run.url}/checkpoints/step-00000015 was passed over and renamed to checkpoints/aside-step-00000015"
        in caplog.text
    )
    assert {name: store.read(f"checkpoints/aside-step-00000015/{name}") for name in files} == files


def test_a_second_one_set_aside_leaves_the_first(run: Run) -> None:
    for content in (b"first", b"second"):
        store_of(run).write(f"{checkpoint_key(15)}/{MARKER}", content)
        clear_bucket(run, None)
    assert store_of(run).read(f"checkpoints/aside-step-00000015/{MARKER}") == b"first"
    assert store_of(run).read(f"checkpoints/aside-step-00000015-2/{MARKER}") == b"second"
    with pytest.raises(InputError, match="2 were finished"):  # a run does not start over on top of them
        newest_checkpoint(run)


def test_a_checkpoint_that_cannot_be_copied_stays(
    run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader = Uploader(run)
    submit(uploader, run, 15)
    uploader.wait(WAIT_S)
    puts = iter(range(100))

    def fault(number: int, method: str, headers: Mapping[str, str]) -> int | None:
        return 404 if method == "PUT" and next(puts) == 1 else None

    with faulty_proxy(object_store.endpoint, fault) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        with pytest.raises(InputError, match=r"is listed but cannot be read, so checkpoints/step-00000015 was not"):
            clear_bucket(run, None)
    monkeypatch.setenv("S3_ENDPOINT_URL", object_store.endpoint)
    assert [one.step for one in all_checkpoints(run)] == [15]
    clear_bucket(run, None)
    folders = {key.split("/")[1] for key in store_of(run).sizes("checkpoints")}
    assert folders == {"aside-step-00000015", "aside-step-00000015-2"}  # the first is a part of a copy
    assert len(store_of(run).sizes("checkpoints/aside-step-00000015-2")) == len(NAMES) + 1


def test_uploads_that_were_cut_short_are_aborted_once_they_are_old(run: Run, object_store: ObjectStore) -> None:
    for key in ("deep/run/checkpoints/step-00000005/__0_0.distcp", "deep/run2/x"):
        object_store.client.create_multipart_upload(Bucket=object_store.bucket, Key=key)
    assert abort_uploads(store_of(run), timedelta(days=1)) == 0
    assert abort_uploads(store_of(run), timedelta(seconds=-5)) == 1
    left = object_store.client.list_multipart_uploads(Bucket=object_store.bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["deep/run2/x"]
