"""A run that begins with another run's checkpoint: what it takes from it, by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dataengine.build.build import build
from dataengine.config.load import load_config
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import learning_rate
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact, open_dataset, refusal
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.audit import audit
from trainer.checkpoints.marker import checkpoint_folder
from trainer.model.composer_model import build_model
from trainer.model.decoder import load_weights
from trainer.run.log_csv import next_digest

STAGES = "stages=[{name: second, steps: 6, mix: {both: 1}}]"
SETTINGS = ["train.learning_rate=0.02", "train.warmup_steps=3", "train.betas=[0.8, 0.9]", "train.weight_decay=0.0"]


def load_all(out: Path, step: int, folder: Path) -> Any:
    """Everything of a checkpoint, on one process."""
    path = folder / f"{out.name}-{step}.pt"
    dcp_to_torch_save(checkpoint_folder(out, step), path)
    return torch.load(path, weights_only=False)


def moments(saved: Any) -> dict[str, dict[str, torch.Tensor]]:
    """AdamW's state of each parameter, by its name."""
    optimizers: Any = saved["state"]["optimizers"]
    states: dict[str, dict[str, torch.Tensor]] = optimizers["AdamW"]["state"]
    return states


def test_restart_takes_weights_and_moments_and_begins_its_own_plan(
    experiment: Experiment,
    tmp_path: Path,
) -> None:
    straight, out = experiment.folder / "straight", experiment.folder / "second"
    init = f"init={{checkpoint: {checkpoint_folder(straight, 12)}, mode: restart}}"
    changes = ["name=second", STAGES, *SETTINGS, init]
    child = build(load_config(experiment.config, changes), workers=1).manifest
    config = load_config(experiment.config, changes)
    log = ranks.train(experiment.config, out, *changes, "train.checkpoint_interval=1")
    assert "restarting from " in ranks.printed(out)

    # Its own data from sample 0, its own rates from the warm-up.
    digest = ""
    for step, row in enumerate(log):
        digest = next_digest(digest, step, child.order.sample_ids(step))
        assert row["digest"] == digest
        assert float(row["learning_rate"]) == learning_rate(step, config.train)
    assert float(log[0]["learning_rate"]) == pytest.approx(0.02 / 3)
    assert len(log) == 6

    # The first loss is that of the first stage's weights.
    model: Any = build_model(config.model, child, config.train).decoder.hf
    load_weights(model, complete_checkpoints(straight)[3])
    dataset = open_dataset(child, config.store)
    tokens = torch.from_numpy(np.stack([dataset[int(i)]["tokens"] for i in child.order.sample_ids(0)]).astype(np.int64))
    with torch.no_grad():
        logits = model.eval()(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert float(log[0]["loss"]) == pytest.approx(loss, rel=1e-5)

    # The moments continue: both updates hold for one and the same gradient, with this stage's betas.
    before, after = moments(load_all(straight, 12, tmp_path)), moments(load_all(out, 1, tmp_path))
    assert before.keys() == after.keys()
    for name, was in before.items():
        now = after[name]
        assert float(now["step"]) == float(was["step"]) + 1 == 13
        gradient = (now["exp_avg"] - 0.8 * was["exp_avg"]) / 0.2
        squared = (now["exp_avg_sq"] - 0.9 * was["exp_avg_sq"]) / 0.1
        torch.testing.assert_close(squared, gradient**2, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_a_crash_inside_the_second_stage_resumes_there(experiment: Experiment) -> None:
    straight, out = experiment.folder / "straight", experiment.folder / "second_killed"
    init = f"init={{checkpoint: {straight}, mode: restart}}"  # its newest
    changes = ["name=second", STAGES, *SETTINGS, init, "train.checkpoint_interval=2"]
    build(load_config(experiment.config, changes), workers=1)
    whole = ranks.train(experiment.config, experiment.folder / "second_whole", *changes)
    ranks.kill_at(ranks.start(experiment.config, out, *changes), out, 5)
    log = ranks.train(experiment.config, out, *changes)
    assert "resuming from" in ranks.printed(out)
    assert exact(log) == exact(whole)
    lineage = json.loads((checkpoint_folder(out, 6) / "COMPLETE.json").read_text())["init"]
    assert lineage == {
        "checkpoint": f"{straight}/checkpoints/step-00000016",
        "mode": "restart",
        "step": 16,
        "plan_id": experiment.manifest.plan_id,
        "digest": experiment.straight[-1]["digest"],
        "init": None,
    }


@pytest.mark.slow
def test_continue_takes_over_everything_and_repeats_nothing(
    experiment: Experiment,
    capsys: pytest.CaptureFixture[str],
) -> None:
    straight, out = experiment.folder / "straight", experiment.folder / "continued"
    parent = f"parent={{manifest: {straight}/manifest.json, step: 10}}"
    stages = "stages=[{name: other, steps: 4, mix: {mono: 1, both: 3}}]"
    init = f"init={{checkpoint: {straight}/checkpoints/step-00000010, mode: continue}}"
    changes = ["name=continued", parent, stages, init]
    child: Manifest = build(load_config(experiment.config, changes), workers=1).manifest
    log = ranks.train(experiment.config, out, *changes)
    assert "continuing from " in ranks.printed(out)
    assert "steps 10 to 14" in ranks.printed(out)
    assert exact(log[:10]) == exact(experiment.straight[:10])  # its parent's
    assert [row["stage"] for row in log[10:]] == ["other"] * 4
    config = load_config(experiment.config, changes)
    assert [float(row["learning_rate"]) for row in log] == [learning_rate(step, config.train) for step in range(14)]
    drawn = np.concatenate([child.order.sample_ids(step) for step in range(14)])
    assert len(np.unique(drawn)) == len(drawn)
    audit(out)
    assert "14 steps, every digest in the log matches plan" in capsys.readouterr().out


def test_a_checkpoint_of_another_step_does_not_continue(experiment: Experiment) -> None:
    straight, out = experiment.folder / "straight", experiment.folder / "wrong_step"
    parent = f"parent={{manifest: {straight}/manifest.json, step: 10}}"
    init = f"init={{checkpoint: {straight}/checkpoints/step-00000012, mode: continue}}"
    changes = ["name=wrong", parent, "stages=[{name: other, steps: 4, mix: {mono: 1, both: 3}}]", init]
    build(load_config(experiment.config, changes), workers=1)
    assert refusal(experiment, out, *changes) == (
        f"init.checkpoint {straight}/checkpoints/step-00000012 is of step 12, but with init.mode `continue` "
        "training resumes at parent.step, 10. Name the checkpoint of that step, or build with parent.step=12."
    )


@pytest.mark.slow
def test_a_changed_rate_counts_from_the_next_step(experiment: Experiment) -> None:
    out = experiment.folder / "other_rate"
    ranks.train(experiment.config, out, "train.max_steps=8")
    log = ranks.train(experiment.config, out, "train.learning_rate=0.02")
    config = load_config(experiment.config, ["train.learning_rate=0.02"])
    for step in range(8, 16):
        assert float(log[step]["learning_rate"]) == learning_rate(step, config.train)
