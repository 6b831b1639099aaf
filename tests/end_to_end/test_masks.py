"""A run with both masks, of documents and of the loss: by the Trainer, by the plain loop, and replayed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dataengine.build.build import build
from dataengine.config.load import load_config
from tests.conftest import ROOT, small_experiment
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from trainer.audit import main as audit
from trainer.run.folder import open_run
from trainer.run.log_csv import read_log
from trainer.training.replay import replay

pytestmark = pytest.mark.slow
MASKED_UNTIL = 10


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> Experiment:
    """Trained on 2 ranks without interruption."""
    folder = tmp_path_factory.mktemp("masked")
    experiment = small_experiment(corpora, tokenizer_path, folder)
    experiment["train"]["document_mask"] = True
    experiment["streams"]["en-zh"]["loss_on"] = "target"  # those of `both` count whole
    path = folder / "masked.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    manifest = build(load_config(path), workers=1).manifest
    return Experiment(path, folder, manifest, ranks.train(path, folder / "straight"))


def test_the_plain_loop_has_the_samples_and_losses_of_the_trainer(masked: Experiment) -> None:
    """To the last bit on as many ranks."""
    outs = {world_size: masked.folder / f"plain{world_size}" for world_size in (1, 2)}
    command = [sys.executable, "-m", "tests.end_to_end.plain_loop", str(masked.config)]
    command += [str(part) for one in outs.items() for part in one]
    environment = {**os.environ, **ranks.thread_and_bucket(), "PYTHONPATH": str(ROOT)}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stdout + made.stderr
    alone, together = (read_log(out / "log.csv") for out in outs.values())
    assert exact(together) == exact(masked.straight)
    assert [row["digest"] for row in alone] == [row["digest"] for row in together]
    for column in ("loss", "loss/mono", "loss/en-zh", "loss/both"):
        ours, expected = ([float(row[column] or "nan") for row in log] for log in (alone, masked.straight))
        assert ours == pytest.approx(expected, rel=0, abs=2e-6, nan_ok=True)


@pytest.mark.parametrize(("step", "catch_up"), [(4, False), (8, True), (12, False)])
def test_a_replayed_step_has_the_logged_loss_and_gradient(masked: Experiment, step: int, catch_up: bool) -> None:
    """Of documents alone, of a mix, and of pairs alone."""
    made, row = (
        replay(open_run(str(masked.folder / "straight"), "unused"), step, catch_up=catch_up),
        masked.straight[step],
    )
    assert made.loss == pytest.approx(float(row["loss"]), rel=1e-5)
    assert made.grad_norm == pytest.approx(float(row["grad_norm"]), rel=1e-4)


def test_the_document_mask_is_a_setting_of_each_step(masked: Experiment) -> None:
    """Begun with the mask, continued without it: warned of, recorded, and a replay has the setting of its step."""
    out = masked.folder / "changed"
    ranks.train(masked.config, out, f"train.max_steps={MASKED_UNTIL}")
    log = ranks.train(masked.config, out, "train.document_mask=false")
    assert "train.document_mask was True until now and is False from here on" in ranks.printed(out)
    assert exact(log)[:MASKED_UNTIL] == exact(masked.straight)[:MASKED_UNTIL]
    assert log[MASKED_UNTIL]["loss"] != masked.straight[MASKED_UNTIL]["loss"]
    for step in (8, MASKED_UNTIL):
        made = replay(open_run(str(out), "unused"), step, catch_up=True)
        assert made.loss == pytest.approx(float(log[step]["loss"]), rel=1e-5)
    old = masked.folder / "before"
    shutil.copytree(out, old)
    (old / "settings.jsonl").write_text((old / "settings.jsonl").read_text().replace('"document_mask":false,', ""))
    assert (
        replay(open_run(str(old), "unused"), MASKED_UNTIL, catch_up=True).loss == made.loss
    )  # a line of a version without the key
    with pytest.raises(SystemExit) as end:
        audit([str(out)])
    assert end.value.code == 0
