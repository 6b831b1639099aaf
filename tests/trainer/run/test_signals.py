"""Which rank ends first, and on which signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trainer.evaluate
import trainer.train
from tests.conftest import ROOT

WAITING_RANK = """
import signal
from trainer.run.signals import let_rank_0_end_first

signal.signal(signal.SIGTERM, lambda number, frame: print("heard"))  # as Composer sets one
print("waiting", flush=True)
let_rank_0_end_first()
"""


def test_a_failed_rank_waits_until_the_launcher_ends_it() -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING_RANK], cwd=ROOT, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "waiting\n"
        assert rank.poll() is None
        while rank.poll() is None:  # the first may come before the handler is gone
            rank.terminate()
        assert rank.returncode == -signal.SIGTERM


# As composer/cli/launcher.py does: what it is asked by raises, it says so, asks its rank, waits, and kills.
LAUNCHER = """
import signal, subprocess, sys, time, traceback

rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: sys.exit(128 + number))
try:
    while rank.poll() is None:
        time.sleep(0.1)
except:
    traceback.print_exc()
    rank.terminate()
    time.sleep(5)
    rank.kill()
sys.exit(rank.wait())
"""
SLOW_RANK = """
import os, time
from pathlib import Path
from trainer.run import signals

signals.END_LAUNCHER_S = 3.0
asked = []
with signals.asked_to_stop(lambda: asked.append(time.monotonic())):
    Path("rank").write_text(str(os.getpid()))
    while not asked or time.monotonic() < asked[0] + 9:
        time.sleep(0.05)
Path("saved").touch()
"""


@pytest.mark.parametrize(
    ("whom", "code"), [("rank", 0), ("launcher", 128 + signal.SIGTERM), ("launcher, then rank", 128 + signal.SIGTERM)]
)
def test_only_a_launcher_that_was_asked_itself_is_ended(tmp_path: Path, whom: str, code: int) -> None:
    """One that was not asked waits for its rank, as long as that takes; a SIGTERM would begin its countdown."""
    (tmp_path / "composer").write_text(LAUNCHER)
    command = [sys.executable, str(tmp_path / "composer"), SLOW_RANK]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOCAL_WORLD_SIZE": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        while not (tmp_path / "rank").is_file() or not (tmp_path / "rank").read_text():
            assert launcher.poll() is None
            time.sleep(0.05)
        rank = int((tmp_path / "rank").read_text())
        if whom.startswith("launcher"):
            launcher.terminate()
            time.sleep(2.5)
        if whom.endswith("rank"):
            os.kill(rank, signal.SIGTERM)
        launcher.communicate(timeout=60)  # until the rank has ended, too
        assert launcher.returncode == code
    assert (tmp_path / "saved").is_file()


@pytest.mark.parametrize("module", [trainer.train, trainer.evaluate])
@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_alone_speaks_and_ends_at_once(
    module: object, rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(module, "let_rank_0_end_first", lambda: waits.append(rank))
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(SystemExit) as ended:
        module.main(["none.yaml"])  # type: ignore[attr-defined]
    assert ended.value.code == 2
    assert ("error: cannot read config none.yaml" in capsys.readouterr().err) == (rank == 0)
    assert waits == ([] if rank == 0 else [1])
