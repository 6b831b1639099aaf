"""The way out of Composer and streaming: a loop with neither trains as the Trainer does, and takes over its runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from trainer.run.log_csv import read_log

STOPPED_AT = 8
RUNS = {"1 rank": 1, "2 ranks": 2, "2 ranks, begun by Composer": 2}


@pytest.fixture(scope="module")
def logs(experiment: Experiment) -> dict[str, list[dict[str, str]]]:
    """The logs of runs by the plain loop; all ranks are forked from one process."""
    outs = {name: experiment.folder / f"plain {name}" for name in RUNS}
    ranks.train(experiment.config, outs["2 ranks, begun by Composer"], f"train.max_steps={STOPPED_AT}")
    command = [sys.executable, "-m", "tests.end_to_end.plain_loop", str(experiment.config)]
    for name, world_size in RUNS.items():
        command += [str(world_size), str(outs[name])]
    environment = {**os.environ, **ranks.thread_and_bucket(), "PYTHONPATH": str(ROOT)}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stdout + made.stderr
    imported = [line for line in made.stdout.splitlines() if line.startswith("imported:")]
    assert imported == ["imported: torch"] * sum(RUNS.values())  # on no rank composer or streaming
    return {name: read_log(out / "log.csv") for name, out in outs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_loop_without_composer_has_the_samples_and_losses_of_the_trainer(
    experiment: Experiment, logs: dict[str, list[dict[str, str]]], name: str
) -> None:
    """To the last bit on as many ranks; on another number, sums have another order."""
    plain, straight = logs[name], experiment.straight
    if RUNS[name] == 2:
        assert exact(plain) == exact(straight)
    for column in ("step", "stage", "digest", "learning_rate", "samples/mono", "samples/en-zh", "samples/both"):
        assert [row[column] for row in plain] == [row[column] for row in straight]
    for column in ("loss", "loss/mono", "loss/en-zh", "loss/both"):
        ours = [float(row[column] or "nan") for row in plain]
        expected = [float(row[column] or "nan") for row in straight]
        assert ours == pytest.approx(expected, rel=0, abs=2e-6, nan_ok=True)
    norms = [float(row["grad_norm"]) for row in straight]
    assert [float(row["grad_norm"]) for row in plain] == pytest.approx(norms, rel=1e-4)  # sums of float32
    assert float(straight[-1]["loss"]) < float(straight[0]["loss"]) - 0.5  # training changes the losses
