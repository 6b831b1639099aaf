"""A step of a real run, looked at again on one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import orjson
import pytest

from tests.end_to_end.straight import Experiment
from trainer.replay import main
from trainer.run.folder import open_run
from trainer.training.replay import replay


@pytest.mark.parametrize(
    ("step", "catch_up", "weights_of"),
    [(0, False, 0), (2, True, 2), (4, False, 4), (12, False, 12), (15, True, 15)],  # the first checkpoint is of step 4
)
def test_a_replayed_step_has_the_logged_loss_and_gradient(
    experiment: Experiment,
    step: int,
    catch_up: bool,
    weights_of: int,
) -> None:
    made = replay(open_run(str(experiment.folder / "straight"), "unused"), step, catch_up=catch_up)
    row = experiment.straight[step]
    assert made.weights_of == weights_of
    assert made.loss == pytest.approx(float(row["loss"]), rel=1e-4)
    assert made.grad_norm == pytest.approx(float(row["grad_norm"]), rel=1e-3)
    assert [sample.sample_id for sample in made.samples] == experiment.manifest.order.sample_ids(step).tolist()
    assert all(sample.sources and sample.text for sample in made.samples)


def test_the_newest_bad_step_is_shown_with_its_sources(
    experiment: Experiment,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = experiment.folder / "looked_at"
    shutil.copytree(experiment.folder / "straight", out)
    (out / "bad-step-00000005.json").write_bytes(json.dumps({"step": 5, "grad_norm": float("nan")}).encode())
    with pytest.raises(SystemExit) as end:
        main([str(out), "--out", str(tmp_path / "replay.json"), "--top", "3"])
    printed = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert printed[0].startswith("step 5, by the weights after 4 steps: loss ")
    assert printed[0].endswith("(--catch-up first trains the steps between: 1)")
    assert len(printed) == 1 + 1 + 3
    losses = [float(line.split()[3]) for line in printed[2:]]
    assert losses == sorted(losses, reverse=True)
    assert len(orjson.loads((tmp_path / "replay.json").read_bytes())["samples"]) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "has no bad-step file: every step of this run was trained. Name a step with --step"),
        (["--step", "16"], "step 16 is not a step of this run: give 0 to 15"),
    ],
)
def test_a_step_that_is_not_there(
    experiment: Experiment,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(experiment.folder / "straight"), *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
