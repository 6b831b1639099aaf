"""A checkpoint that is read stays; one that was removed is said to be gone."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from dataengine.errors import InputError
from tests.trainer.fake_checkpoints import complete_checkpoints, save
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.find import all_checkpoints
from trainer.checkpoints.marker import read_checkpoint
from trainer.checkpoints.retention import lease, remove_copies, remove_old
from trainer.run.folder import Run
from trainer.run.lock import lock_folder

FORK = multiprocessing.get_context("fork")


def steps(run: Run) -> list[int]:
    return [checkpoint.step for checkpoint in complete_checkpoints(run.folder)]


def read_until(folder: Path, begun: Event, done: Event) -> None:
    with lease(read_checkpoint(folder)):
        begun.set()
        done.wait(60)


@pytest.mark.parametrize("by", ["remove_old", "remove_copies"])
def test_a_checkpoint_that_another_process_reads_goes_with_a_later_one(tmp_path: Path, by: str) -> None:
    folders = [save(tmp_path, step) for step in (10, 20, 30)]
    run = Run(str(tmp_path), tmp_path, None)
    begun, done = FORK.Event(), FORK.Event()
    reader = FORK.Process(target=read_until, args=(folders[0], begun, done))
    reader.start()
    assert begun.wait(60)

    def remove() -> None:
        remove_old(run, 1) if by == "remove_old" else remove_copies(run, 30)

    remove()
    assert steps(run) == [10, 30]
    assert fetch_checkpoint(run, all_checkpoints(run)[0]) == []  # whole
    done.set()
    reader.join(60)
    remove()
    assert steps(run) == [30]


def test_readers_do_not_exclude_each_other(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(tmp_path, 10))
    with lease(checkpoint), lease(checkpoint), lock_folder(checkpoint.folder, wait=False) as free:
        assert not free
    with lock_folder(checkpoint.folder, wait=False) as free:
        assert free
    with lock_folder(tmp_path / "none", wait=False) as free:
        assert free


def remove_slowly(folder: Path, begun: Event, done: Event) -> None:
    with lock_folder(folder):
        begun.set()
        done.wait(60)
        time.sleep(0.5)  # the other one waits by now
        shutil.rmtree(folder)


def test_who_waited_for_a_removal_holds_the_folder_that_it_makes_again(tmp_path: Path) -> None:
    """As an evaluation that fetches a checkpoint to where a training removes its copy at that moment."""
    here = read_checkpoint(save(tmp_path, 10))
    in_bucket = replace(here, key=f"checkpoints/{here.folder.name}")
    for checkpoint, is_held in ((in_bucket, True), (here, False)):
        here.folder.mkdir(exist_ok=True)
        begun, done = FORK.Event(), FORK.Event()
        remover = FORK.Process(target=remove_slowly, args=(here.folder, begun, done))
        remover.start()
        assert begun.wait(60)
        done.set()
        with lease(checkpoint):
            assert here.folder.is_dir() == is_held
            remove_copies(Run(str(tmp_path), tmp_path, None), 30)
            assert here.folder.is_dir() == is_held
        remover.join(60)
        assert not here.folder.exists()


def test_a_checkpoint_that_was_removed_is_gone_and_leaves_no_folder(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(tmp_path, 10))
    shutil.rmtree(checkpoint.folder)
    with lease(checkpoint):
        assert fetch_checkpoint(Run(str(tmp_path), tmp_path, None), checkpoint) == [f"{checkpoint.folder} was removed"]
    assert not checkpoint.folder.exists()


def test_a_checkpoint_that_goes_while_it_is_listed_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = save(tmp_path, 10), Path.is_file

    def removed_meanwhile(path: Path) -> bool:
        there = whole(path)
        path.unlink()
        return there

    monkeypatch.setattr(Path, "is_file", removed_meanwhile)
    with pytest.raises(InputError, match="was not finished"):
        read_checkpoint(folder)
