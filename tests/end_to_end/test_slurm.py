"""launch/slurm_train.sbatch on two nodes of one machine: a fake `srun` starts real launchers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.end_to_end.straight import Experiment, exact
from tests.launch.fakes import Cluster
from trainer.run.log_csv import read_log

pytestmark = pytest.mark.slow


def free_job() -> str:
    """The number of a job whose port is free: the script makes a port of it."""
    for number in range(1, 10_000):
        with socket.socket() as listener:
            if listener.connect_ex(("127.0.0.1", 20_000 + number)):
                return str(number)
    raise AssertionError("no port is free")


def start(cluster: Cluster, experiment: Experiment, out: Path) -> subprocess.Popen[str]:
    arguments = (str(experiment.config), f"out={out}", "train.checkpoint_interval=1000")
    environment = {"SLURM_JOB_ID": free_job(), "CACHE": str(cluster.folder / "cache"), "OMP_NUM_THREADS": "1"}
    return cluster.start("launch/slurm_train.sbatch", *arguments, cwd=ROOT, **environment)


def test_a_job_near_its_time_limit_saves_is_requeued_and_resumes(experiment: Experiment, tmp_path: Path) -> None:
    cluster, out = Cluster(tmp_path), experiment.folder / "slurm"
    process, log = start(cluster, experiment, out), out / "log.csv"
    while not (log.is_file() and len(read_log(log)) > 4):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for task in cluster.recorded("tasks").split():
        os.killpg(int(task), signal.SIGTERM)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 143, printed
    assert "stopped as requested after " in printed
    assert cluster.recorded("requeued")
    (tmp_path / "requeued").unlink()
    process = start(cluster, experiment, out)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert "resuming from" in printed
    assert not cluster.recorded("requeued")
    assert exact(read_log(log)) == exact(experiment.straight)
