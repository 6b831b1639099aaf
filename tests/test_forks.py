"""Processes that tests fork."""

from __future__ import annotations

import gc
import os
from pathlib import Path


class Costly:
    """What another process must not destroy, such as a process group with threads. In a circle: garbage, not freed."""

    def __init__(self, path: Path) -> None:
        self.own, self.path, self.pid = self, path, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.pid:
            self.path.touch()


def test_a_forked_process_destroys_no_garbage_of_its_parent(tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        Costly(tmp_path / "destroyed")
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        gc.enable()
    assert not (tmp_path / "destroyed").exists()
