"""A run with both masks, of documents and of the loss: by the Trainer, by the plain loop, and replayed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import distributed, nn
from torch.nn.functional import cross_entropy

from dataengine.build.build import build
from dataengine.config.load import load_config
from dataengine.config.training import TrainConfig
from tests.conftest import ROOT, small_experiment
from tests.end_to_end import plain_loop, ranks
from tests.end_to_end.straight import Experiment, exact
from tests.trainer.training.test_composer_trainer import MANIFEST, SIZES, batch
from trainer.audit import main as audit
from trainer.model.packed import build_decoder
from trainer.run.folder import open_run
from trainer.run.log_csv import read_log
from trainer.training.callbacks.gradients import ClipGradients
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


@pytest.mark.parametrize("microbatch", [1, 2, 4])
def test_a_rank_without_labels_that_count_takes_part_in_a_step(microbatch: int, tmp_path: Path) -> None:
    """The gradient of 2 ranks, sharded, against that of transformers on the whole batch; none of rank 0 counts."""
    with ProcessPoolExecutor(2, ranks.CONTEXT) as processes:
        work = [processes.submit(step_of_rank, rank, microbatch, tmp_path / "store") for rank in (0, 1)]
        (loss, gradients), other = (one.result(timeout=240) for one in work)
    content, model = batch("some"), build_decoder(SIZES, MANIFEST, TrainConfig())
    content["loss_mask"][:2, 1:] = False
    labels = content["tokens"][:, 1:].masked_fill(~content["loss_mask"][:, 1:], -100)
    logits = model.hf(input_ids=content["tokens"][:, :-1]).logits.flatten(0, 1)
    expected = cross_entropy(logits, labels.flatten(), ignore_index=-100)
    expected.backward()
    assert loss == other[0] == pytest.approx(expected.item(), rel=1e-6)
    for own, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(own, parameter.grad.numpy(), rtol=1e-4, atol=1e-7)


def step_of_rank(rank: int, microbatch: int, store: Path) -> tuple[float, list[NDArray[np.float32]]]:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = nn.ModuleDict({"decoder": build_decoder(SIZES, MANIFEST, TrainConfig())})
    plain_loop.shard(model["decoder"])
    clip = ClipGradients(max_norm=1e9)  # it corrects gloo's sums
    loop = plain_loop.Loop(model, torch.optim.SGD(model.parameters(), lr=0.0), [clip], 0)
    loop.run_event("fit_start")
    content = batch("some")
    content["loss_mask"][:2, 1:] = False
    loop.train({name: part.chunk(2)[rank] for name, part in content.items()}, microbatch)
    gradients = [parameter.grad.full_tensor().numpy() for parameter in model.parameters()]
    distributed.barrier()
    return loop.loss, gradients
