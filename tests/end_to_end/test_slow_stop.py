"""Composer's launcher kills its ranks some seconds after it was asked to end; a step and a save may take longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.run.log_csv import read_log

pytestmark = pytest.mark.slow

STEP_S = float(os.environ.get("SLOW_STEP_S", "8"))  # 40 with LAUNCHER_WAITS_S=30 is the case as it is in life
LAUNCHER_WAITS_S = float(os.environ.get("LAUNCHER_WAITS_S", "4"))

# Composer's launcher as it is, but for the time that it gives its ranks.
LAUNCHER = f"""
import datetime, sys
from composer.cli import launcher
launcher.CLEANUP_TIMEOUT = datetime.timedelta(seconds={LAUNCHER_WAITS_S})
sys.exit(launcher.main())
"""
# In step 6 rank 1 takes long, and rank 0 waits for it inside a collective.
RANK = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import trainer.training.callbacks.step_log, trainer.run.signals, trainer.train

trainer.run.signals.END_LAUNCHER_S = {LAUNCHER_WAITS_S / 2}
own = trainer.training.callbacks.ledger.SampleLedger.batch_start

def batch_start(self, state):
    own(self, state)
    if state.step == 6 and os.environ["RANK"] == "1":
        Path(os.environ["SLOW"]).touch()
        time.sleep({STEP_S})

trainer.training.callbacks.ledger.SampleLedger.batch_start = batch_start
trainer.train.main()
"""


@pytest.mark.parametrize("how", ["SIGTERM to the launcher", "Ctrl-C to all"])
def test_a_step_that_takes_longer_than_the_launcher_waits_is_finished_and_saved(
    experiment: Experiment, tmp_path: Path, how: str
) -> None:
    (tmp_path / "composer").write_text(LAUNCHER)
    (tmp_path / "train.py").write_text(RANK)
    out, slow = tmp_path / "run", tmp_path / "slow"
    arguments = [str(tmp_path / "train.py"), str(experiment.config), f"out={out}", "train.checkpoint_interval=1000"]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "composer"), "-n", "2", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SLOW": str(slow)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not slow.exists():
        assert process.poll() is None
        time.sleep(0.05)
    if how == "Ctrl-C to all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    printed, _ = process.communicate(timeout=300)  # until the last rank has closed it
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM), printed  # sent away, it killed no process
    assert complete_checkpoints(out)[-1].step == len(read_log(out / "log.csv")) == 7, printed
    assert "stopped as requested after 7 steps, with a checkpoint" in printed
    log = ranks.train(experiment.config, out)
    assert "steps 7 to 16" in ranks.printed(out)
    assert exact(log) == exact(experiment.straight)
