"""Which rank ends first, and on which signal."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import trainer.evaluate
import trainer.train
from tests.conftest import ROOT

WAITING_RANK = """
import signal
from trainer.signals import let_rank_0_end_first

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
