"""What killed runs leave in shared memory goes; what live ones use stays. In folders of the test, by real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from trainer.data.shared_memory import sweep

_FORK = multiprocessing.get_context("fork")


def leave(shm: Path, temp: Path, number: int) -> list[Path]:
    """Blocks and a lock as streaming names them."""
    paths = [shm / f"{number:06d}_barrier", shm / f"{number:06d}_locals", temp / f"{number:06d}_barrier_filelock"]
    for path in paths:
        path.write_bytes(b"12345678")
    return paths


def hold(path: Path, held: Event) -> None:
    file = path.open("rb")
    held.set()
    signal.pause()
    file.close()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("shm", "temp"):
        (tmp_path / name).mkdir()
    return tmp_path / "shm", tmp_path / "temp"


def test_blocks_of_the_dead_go_and_those_of_the_living_stay(folders: tuple[Path, Path]) -> None:
    shm, temp = folders
    dead, live = leave(shm, temp, 0), leave(shm, temp, 1)
    (shm / "000002_other").write_bytes(b"")  # no name of streaming's
    held = _FORK.Event()
    process = _FORK.Process(target=hold, args=(live[0], held), daemon=True)
    process.start()
    assert held.wait(30)
    assert sweep(shm, temp) == dead
    assert all(path.exists() for path in live)
    assert (shm / "000002_other").exists()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert sweep(shm, temp) == live
    assert sweep(shm, temp) == []


def test_a_block_that_is_mapped_counts_as_used(folders: tuple[Path, Path]) -> None:
    import mmap

    shm, temp = folders
    paths = leave(shm, temp, 7)
    with paths[0].open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 8)
    assert sweep(shm, temp) == []
    mapped.close()
    assert sweep(shm, temp) == paths
