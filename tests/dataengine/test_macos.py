"""The data engine without what only Linux has. macOS itself is not at hand: its absences are, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataengine.build.build import build
from dataengine.build.executors import default_workers
from dataengine.storage.open import open_store
from tests.conftest import ROOT, ConfigMaker
from tests.dataengine.build.test_executors import cleaned, tree

# Python runs this at its start, in spawned workers, too.
ABSENCES = """\
import ctypes, multiprocessing.heap, os, resource, sys

for name in (
    "copy_file_range", "eventfd", "fdatasync", "getrandom", "memfd_create", "pidfd_open", "pipe2", "posix_fadvise",
    "posix_fallocate", "sched_getaffinity", "sched_setaffinity", "splice", "sync_file_range", "O_DIRECT", "O_TMPFILE",
):
    if hasattr(os, name):
        delattr(os, name)
os.cpu_count = lambda: 2
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name in ("mallopt", "renameat2"):
            raise AttributeError(name)
        return super().__getattr__(name)


def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/sys/", "/dev/shm")):
        raise FileNotFoundError(arguments[0])


multiprocessing.heap.Arena._dir_candidates = []  # as Python itself has it there
ctypes.CDLL = Library
sys.addaudithook(refuse)
with open(os.environ["STARTED"], "a") as file:
    print(*sys.argv[1:2], file=file)
"""


def test_all_processors_are_used_where_none_are_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_workers() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert default_workers() == 12


@pytest.mark.slow
def test_a_build_without_what_macos_lacks_has_the_same_bytes(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path
) -> None:
    """By two spawned workers and with macOS's 256 open files; then commands that read what was built."""
    config = make_config(**cleaned(corpora), store=str(tmp_path / "linux"))
    build(config, workers=1)
    (tmp_path / "absences").mkdir()
    (tmp_path / "absences/sitecustomize.py").write_text(ABSENCES)
    environment = {
        "PYTHONPATH": f"{tmp_path}/absences:{ROOT}",
        "STARTED": f"{tmp_path}/started",
        "HOME": str(tmp_path),
        "PATH": os.defpath,
    }
    for command in ("build", "verify", "plan"):
        words = [str(tmp_path / "experiment.yaml"), f"store={tmp_path / 'macos'}"]
        ended = subprocess.run(
            [sys.executable, "-m", "dataengine", command, *words], env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "started").read_text().count("--multiprocessing-fork\n") >= 2
    linux, macos = (tree(open_store(str(tmp_path / name))) for name in ("linux", "macos"))
    assert macos == linux
