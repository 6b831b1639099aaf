from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dataengine.errors import InputError
from dataengine.schedule.slots import Schedule, Stage
from dataengine.storage.store import Store
from tests.object_store import ObjectStore, faulty_proxy, object_store
from tests.trainer.fake_checkpoints import NAMES, complete_checkpoints, save, write_files
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.find import (
    all_checkpoints,
    find_checkpoint,
    locate_checkpoint,
    newest_checkpoint,
)
from trainer.checkpoints.marker import (
    MARKER,
    Checkpoint,
    Marker,
    checkpoint_folder,
    checkpoint_key,
    mark_complete,
    read_checkpoint,
)
from trainer.checkpoints.retention import remove_copies, remove_old, set_aside, set_aside_later
from trainer.checkpoints.steps import checkpoint_steps
from trainer.run.folder import Run, open_run

__all__ = ["object_store"]

SCHEDULE = Schedule(1, 1, (Stage("long", 12, {"x": 12}), Stage("short", 5, {"x": 5})))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataengine.storage.retry.pause_s", lambda state: 0.0)


def test_intervals_count_from_each_stages_start() -> None:
    assert checkpoint_steps(SCHEDULE, {"short": 2}, 5, 17) == [5, 10, 12, 14, 16, 17]
    assert checkpoint_steps(SCHEDULE, {}, 100, 17) == [12, 17]


def test_pieces_of_a_stage_count_as_one() -> None:
    pieces = Schedule(1, 1, tuple(Stage("ramp", 2, {"x": 2}) for _ in range(4)))
    assert checkpoint_steps(pieces, {"ramp": 3}, 100, 8) == [3, 6, 8]


def test_the_last_step_is_always_saved() -> None:
    assert checkpoint_steps(SCHEDULE, {"short": 2}, 5, 11) == [5, 10, 11]
    assert checkpoint_steps(SCHEDULE, {}, 5, 1) == [1]


def local(out: Path) -> Run:
    return open_run(str(out), "cache")


def make(out: Path, step: int) -> Path:
    folder = checkpoint_folder(out, step)
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(b"x" * step)
    files = {"__0_0.distcp": step}
    mark_complete(folder, Marker(step=step, plan_id="plan", world_size=2, model={"hidden_size": 8}, files=files))
    return folder


def test_a_marker_reads_back(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(tmp_path, 7, size=100))
    assert (checkpoint.step, checkpoint.plan_id, checkpoint.world_size) == (7, "plan", 2)
    assert (checkpoint.model, checkpoint.files) == ({"hidden_size": 8}, dict(zip(NAMES, (100, 101, 102), strict=True)))
    assert (checkpoint.digest, checkpoint.init, set(checkpoint.hashes)) == ("d" * 64, None, set(NAMES))


def test_a_marker_of_an_older_version_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path, 7)
    fields = json.loads((folder / MARKER).read_text())
    for key in ("hashes", "init", "digest", "finite"):
        del fields[key]
    (folder / MARKER).write_text(json.dumps(fields))
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.hashes, checkpoint.init, checkpoint.digest, checkpoint.finite) == ({}, None, "", False)
    assert fetch_checkpoint(local(tmp_path), checkpoint) == []


def test_the_newest_whole_one_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, 5)
    make(tmp_path, 10)
    (make(tmp_path, 100) / "__0_0.distcp").write_bytes(b"")
    (make(tmp_path, 200) / MARKER).write_text("{")
    unfinished = checkpoint_folder(tmp_path, 300)
    unfinished.mkdir()
    shutil.copytree(checkpoint_folder(tmp_path, 10), checkpoint_folder(tmp_path, 400))
    newest = newest_checkpoint(local(tmp_path))
    assert newest is not None
    assert newest.step == 10
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0].endswith("step-00000100: __0_0.distcp has 0 bytes, not 100: the checkpoint is damaged")
    assert "step-00000200: COMPLETE.json is damaged: " in warnings[1]
    assert warnings[2] == f"passing over {unfinished}: the checkpoint was not finished (no COMPLETE.json)"
    assert "COMPLETE.json is damaged: it names step 10" in warnings[3]
    assert newest_checkpoint(local(tmp_path)) == newest
    assert len(caplog.records) == 4  # each is reported once


@pytest.mark.parametrize("marker", [{"step": 5}, {"step": "five"}, {"files": {"a": "b"}}, {"files": {}}, []])
def test_a_damaged_only_checkpoint_is_an_error(tmp_path: Path, marker: object) -> None:
    checkpoint_folder(tmp_path, 3).mkdir(parents=True)
    assert newest_checkpoint(local(tmp_path)) is None  # it was never finished, so nothing is lost at step 0
    path = make(tmp_path, 5) / MARKER
    whole = json.loads(path.read_text()) if marker != {"step": 5} else {}
    path.write_text(json.dumps({**whole, **marker} if isinstance(marker, dict) else marker))
    with pytest.raises(InputError, match=r"no checkpoint under .* is usable, though 1 were finished"):
        newest_checkpoint(local(tmp_path))


def test_retention(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make(tmp_path, step)
    remove_old(local(tmp_path), None)
    assert len(complete_checkpoints(tmp_path)) == 3
    remove_old(local(tmp_path), 2)
    assert [checkpoint.step for checkpoint in complete_checkpoints(tmp_path)] == [2, 3]
    remove_old(local(tmp_path), 5)
    assert [checkpoint.step for checkpoint in complete_checkpoints(tmp_path)] == [2, 3]


def test_a_place_names_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        make(tmp_path / "run", step)
    for place, step in (("run", 2), ("run/checkpoints/step-00000001", 1), ("run/checkpoints/step-00000002/", 2)):
        run, checkpoint = locate_checkpoint(str(tmp_path / place), "cache")
        assert (run.folder, checkpoint.step) == (tmp_path / "run", step)
    with pytest.raises(InputError, match="run has no checkpoint of 3 steps; it has those of 1, 2"):
        find_checkpoint(local(tmp_path / "run"), 3)
    with pytest.raises(InputError, match=r"no checkpoint under .*/none/checkpoints\. Train first"):
        find_checkpoint(local(tmp_path / "none"), None)


def test_a_file_whose_content_changed_is_a_problem_of_its_share(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    flip(folder / "__1_0.distcp")
    checkpoint = read_checkpoint(folder)  # sizes are as they were
    assert [len(fetch_checkpoint(local(tmp_path), checkpoint, share, 3)) for share in range(3)] == [0, 0, 1]
    [problem] = fetch_checkpoint(local(tmp_path), checkpoint)
    assert problem.startswith(f"{folder}: __1_0.distcp has the hash ")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# In a bucket.


@pytest.fixture
def run(object_store: ObjectStore, tmp_path: Path) -> Run:
    """A run in a bucket."""
    return open_run(f"{object_store.url}/deep/run", str(tmp_path))


def store_of(run: Run) -> Store:
    assert run.store is not None
    return run.store


def upload(run: Run, step: int) -> None:
    """A checkpoint that is in the bucket only."""
    folder = save(run.folder, step)
    for path in folder.iterdir():
        store_of(run).write(f"{checkpoint_key(step)}/{path.name}", path.read_bytes())
    shutil.rmtree(folder)


def newest(run: Run) -> Checkpoint:
    found = newest_checkpoint(run)
    assert found is not None
    return found


def test_a_new_run_in_a_bucket_has_no_checkpoint(run: Run) -> None:
    assert newest_checkpoint(run) is None


def test_a_checkpoint_of_the_bucket_is_fetched_by_shares(run: Run, tmp_path: Path) -> None:
    upload(run, 5)
    upload(run, 10)
    checkpoint = newest(run)
    assert (checkpoint.step, checkpoint.local, checkpoint.key) == (10, False, "checkpoints/step-00000010")
    for share in (1, 0):
        assert fetch_checkpoint(run, checkpoint, share, 2) == []
    original = write_files(tmp_path / "again", 10)
    for name in NAMES:
        assert (checkpoint.folder / name).read_bytes() == (original / name).read_bytes()
    assert sorted(path.name for path in checkpoint.folder.iterdir()) == sorted(NAMES)


def test_what_is_not_whole_in_the_bucket_is_passed_over_with_the_reason(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 10, 20, 30, 40):
        upload(run, step)
    store = store_of(run)
    store.write("checkpoints/step-00000010/__0_0.distcp", b"cut")
    store.remove("checkpoints/step-00000020/.metadata")
    store.write(f"checkpoints/step-00000030/{MARKER}", b"{")
    store.remove(f"checkpoints/step-00000040/{MARKER}")  # crashed before it
    assert newest(run).step == 5
    url = f"{run.url}/checkpoints"
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0] == (
        f"passing over {url}/step-00000010: __0_0.distcp has 3 bytes, not 50001: the checkpoint is damaged"
    )
    assert warnings[1] == (
        f"passing over {url}/step-00000020: .metadata has None bytes, not 50000: the checkpoint is damaged"
    )
    assert warnings[2].startswith(f"passing over {url}/step-00000030: COMPLETE.json is damaged: ")
    assert warnings[3] == f"passing over {url}/step-00000040: the checkpoint was not finished (no COMPLETE.json)"
    store.remove("checkpoints/step-00000005/.metadata")
    with pytest.raises(InputError, match=r"no checkpoint under s3://.* is usable, though 4 were finished"):
        newest(run)
    with pytest.raises(InputError, match=r"run has no checkpoint of 5 steps, and no other complete one$"):
        find_checkpoint(run, 5)


def test_here_and_in_the_bucket_are_one_list(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    for step in (5, 10):
        upload(run, step)
    save(run.folder, 10)
    save(run.folder, 15)
    write_files(run.folder, 5, names=NAMES[:2])  # of a node without the other's disk
    assert [(one.step, one.local, bool(one.key)) for one in all_checkpoints(run)] == [
        (5, False, True),
        (10, True, True),
        (15, True, False),
    ]
    assert not caplog.records
    assert newest(run).step == 15
    chosen = newest_checkpoint(run, among={5, 10})
    assert chosen is not None
    assert chosen.step == 10


def test_a_node_with_some_of_the_files_does_not_count(run: Run) -> None:
    upload(run, 5)
    (save(run.folder, 10) / "__1_0.distcp").unlink()
    assert newest(run).step == 5


def test_a_damaged_copy_is_fetched_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    upload(run, 10)
    folder = save(run.folder, 10)
    flip(folder / "__1_0.distcp")
    (folder / "__0_0.distcp").write_bytes(b"cut")
    assert fetch_checkpoint(run, newest(run)) == []
    assert "__1_0.distcp has the hash" in caplog.text
    checkpoint = read_checkpoint(folder)
    assert fetch_checkpoint(Run(run.url, run.folder, None), checkpoint) == []


def test_damage_in_the_bucket_is_reported_and_the_one_before_is_used(run: Run) -> None:
    upload(run, 5)
    upload(run, 10)
    content = bytearray(store_of(run).read("checkpoints/step-00000010/__0_0.distcp"))
    content[7] ^= 1
    store_of(run).write("checkpoints/step-00000010/__0_0.distcp", bytes(content))
    checkpoint = newest(run)
    [problem] = fetch_checkpoint(run, checkpoint)
    assert problem.startswith("step 10 in the bucket (checkpoints/step-00000010): __0_0.distcp has the hash ")
    assert not list(checkpoint.folder.glob("*0_0*"))
    before = newest_checkpoint(run, among={5})
    assert before is not None
    assert fetch_checkpoint(run, before) == []


@pytest.mark.parametrize("fault", [503, "cut"])
def test_fetching_survives_a_store_that_fails_for_a_while(
    run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, fault: int | str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    upload(run, 10)
    checkpoint = newest(run)

    def fail(number: int, method: str, headers: Mapping[str, str]) -> int | str | None:
        return fault if number in (0, 1, 3) else None

    with faulty_proxy(object_store.endpoint, fail) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        assert fetch_checkpoint(run, checkpoint) == []


@pytest.mark.parametrize("missing", [1, 2, 3, 4])
def test_one_answer_that_an_object_is_not_there_is_not_believed(
    run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """GET 0 is the listing and 1 the marker of 5; then come the marker and the files of 10."""
    upload(run, 5)
    upload(run, 10)
    gets = iter(range(100))

    def fail(number: int, method: str, headers: Mapping[str, str]) -> int | None:
        return 404 if method == "GET" and next(gets) == missing + 1 else None

    with faulty_proxy(object_store.endpoint, fail) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        checkpoint = newest(run)
        assert checkpoint.step == 10
        assert fetch_checkpoint(run, checkpoint) == []


def test_a_file_that_stays_away_is_reported(run: Run) -> None:
    upload(run, 10)
    checkpoint = newest(run)
    store_of(run).remove("checkpoints/step-00000010/__0_0.distcp")
    assert fetch_checkpoint(run, checkpoint) == [f"{checkpoint.place}: __0_0.distcp is not in the bucket"]


def test_a_finished_checkpoint_is_set_aside_and_an_unfinished_one_goes(tmp_path: Path) -> None:
    finished, unfinished = save(tmp_path, 5), write_files(tmp_path, 10)
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    for folder in (finished, unfinished, checkpoint_folder(tmp_path, 15)):
        set_aside(folder)
        assert not folder.exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["aside-step-00000005"]
    aside = finished.with_name("aside-step-00000005")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert complete_checkpoints(tmp_path) == []
    set_aside(save(tmp_path, 5))
    assert finished.with_name("aside-step-00000005-2").is_dir()
    with pytest.raises(InputError, match="2 were finished"):  # a run does not start over on top of them
        newest_checkpoint(local(tmp_path))


def test_retention_keeps_what_is_saved_after_a_later_one_was_passed_over(tmp_path: Path) -> None:
    for step in (8, 12, 16):
        save(tmp_path, step)
    set_aside_later(tmp_path, 12)  # 16 is damaged: the run resumes from 12
    save(tmp_path, 14)
    remove_old(local(tmp_path), 1)
    assert [found.step for found in complete_checkpoints(tmp_path)] == [14]
    assert (tmp_path / "checkpoints" / "aside-step-00000016" / MARKER).is_file()


def test_a_store_that_cannot_be_read_is_not_a_fault_of_the_checkpoint(
    run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    upload(run, 10)
    checkpoint = newest(run)
    with faulty_proxy(object_store.endpoint, lambda *request: 503) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        with pytest.raises(InputError, match="failing or too busy"):
            newest_checkpoint(run)
        with pytest.raises(InputError, match="failing or too busy"):
            fetch_checkpoint(run, checkpoint)
    assert not list(checkpoint.folder.iterdir())


def test_a_refusal_is_not_tried_again(run: Run, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(run, 10)
    checkpoint = newest(run)
    with faulty_proxy(object_store.endpoint, lambda *request: 403) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        with pytest.raises(InputError, match=r"access denied \(\w+[^)]*\)\. Check that these credentials may [^.]*\.$"):
            fetch_checkpoint(run, checkpoint)
    assert methods == ["GET"]


def test_retention_in_a_bucket_and_of_copies(run: Run) -> None:
    for step in (5, 10, 15):
        upload(run, step)
        save(run.folder, step)
    remove_old(run, None)
    assert len(all_checkpoints(run)) == 3
    remove_old(run, 2)
    assert [one.step for one in all_checkpoints(run) if one.key] == [10, 15]
    assert not store_of(run).sizes("checkpoints/step-00000005")
    assert [one.step for one in complete_checkpoints(run.folder)] == [5, 10, 15]
    remove_copies(run, 15)
    assert [one.step for one in complete_checkpoints(run.folder)] == [15]


def test_neither_torch_nor_composer_is_imported() -> None:
    slow = {"torch", "composer", "numpy.distutils"}
    code = f"import sys, trainer.checkpoints.uploads\nsys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
