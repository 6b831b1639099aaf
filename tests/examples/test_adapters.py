"""The examples for other trainers train on the plan, are killed and resumed, and have the losses of plain PyTorch."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

import dataengine
from tests.conftest import ROOT, small_experiment
from tests.examples.test_examples import printed, start

STEPS, KILLED_AT = 14, 12  # checkpoints are made every 10 steps
LINE = re.compile(r"step (\d+): loss ([\d.]+).*digest ([0-9a-f]{64})")
HALVES = (slice(4), slice(4, 8))  # of a batch
ADAPTERS = {"hf_trainer.py": "accelerate", "lightning_module.py": "pytorch_lightning", "grain_source.py": "grain"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> Path:
    """The manifest of a small plan, where of pairs only targets count."""
    folder = tmp_path_factory.mktemp("adapters")
    experiment = small_experiment(corpora, tokenizer_path, folder)
    experiment["streams"]["en-zh"]["loss_on"] = "target"
    stages = [{"name": "only", "steps": STEPS, "mix": {"mono": 1, "en-zh": 1}}]
    (folder / "experiment.yaml").write_text(yaml.safe_dump({**experiment, "stages": stages}))
    config = dataengine.load_config(folder / "experiment.yaml")
    dataengine.build(config, workers=1)
    return Path(config.store) / "experiments" / config.name / "manifest.json"


@pytest.fixture(scope="module")
def plain(path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss of each step in plain PyTorch: the mean over the labels of all samples that count."""
    out = tmp_path_factory.mktemp("plain")
    printed(start("plain_pytorch.py", path, out, STEPS))
    return [float(line) for line in (out / "losses.txt").read_text().splitlines()]


def test_plain_pytorch_learns_the_labels_that_count(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    plain, manifest = import_module("plain_pytorch"), dataengine.read_manifest(path)
    model, batch = plain.small_llama(manifest), manifest.batches()[3]
    assert batch.loss_mask is not None
    counted = torch.from_numpy(batch.loss_mask[:, 1:])
    assert 0 < counted.sum() < counted.numel()
    tokens = torch.from_numpy(batch.tokens)
    losses = cross_entropy(model(tokens[:, :-1]).logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    assert plain.mean_loss(model, batch).item() == pytest.approx(losses[counted].mean().item(), rel=1e-6)
    none = plain.mean_loss(model, replace(batch, loss_mask=np.zeros_like(batch.loss_mask)))
    none.backward()
    assert none.item() == 0
    assert not model.lm_head.weight.grad.any()


def digests(path: Path) -> list[str]:
    """The digest of the plan after each step."""
    found = [""]
    for batch in dataengine.read_manifest(path).batches():
        found.append(dataengine.next_digest(found[-1], batch.step, batch.sample_ids))
    return found[1:]


def killed(process: subprocess.Popen[str]) -> list[str]:
    """Kill a program after the line of a step; return its lines of steps."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines += [line.strip()] if LINE.match(line) else []
        if line.startswith(f"step {KILLED_AT}:"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("example", ADAPTERS)
def test_a_trainer_that_is_killed_and_resumed_is_on_the_plan(
    example: str, path: Path, plain: list[float], tmp_path: Path
) -> None:
    pytest.importorskip(ADAPTERS[example])
    before = killed(start(example, path, tmp_path / "out", STEPS))
    after = [line for line in printed(start(example, path, tmp_path / "out", STEPS)).splitlines() if LINE.match(line)]
    assert (len(before), len(after)) == (KILLED_AT, STEPS - 10)
    assert after[:2] == before[10:]  # trained on twice: the same loss, bit for bit
    check(before[:10] + after, path, plain)


@pytest.mark.slow
@pytest.mark.parametrize("example", ["hf_trainer.py", "lightning_module.py"])
def test_two_ranks_train_on_the_batches_of_one(example: str, path: Path, plain: list[float], tmp_path: Path) -> None:
    pytest.importorskip(ADAPTERS[example])
    lines = printed(start(example, path, tmp_path / "out", STEPS, ranks=2)).splitlines()
    check([line for line in lines if LINE.match(line)], path, plain)


def check(lines: list[str], path: Path, plain: list[float]) -> None:
    """Lines of all steps have the plan's digests and the losses of plain PyTorch."""
    steps, losses, found = zip(*(LINE.match(line).groups() for line in lines), strict=True)
    assert [int(step) for step in steps] == list(range(1, STEPS + 1))
    assert list(found) == digests(path)
    assert [float(loss) for loss in losses] == pytest.approx(plain, abs=1e-4)  # transformers rounds to 4 places


@pytest.mark.slow
def test_the_loader_of_torchtitan_resumes_on_another_number_of_ranks(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchtitan")
    import torch.distributed.checkpoint as dcp
    from torchtitan.components.dataloader import BaseDataLoader

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    settings = import_module("torchtitan_dataloader").PlanDataLoader.Config(manifest=str(path))
    manifest = dataengine.read_manifest(path)

    def loader(rank: int, ranks: int) -> BaseDataLoader:
        runtime = {"tokenizer": None, "seq_len": manifest.seq_len, "snapshot_every_n_steps": 10}
        return settings.build(dp_rank=rank, dp_world_size=ranks, local_batch_size=2, **runtime)

    def tokens(pieces: Iterable[tuple[dict[str, torch.Tensor], torch.Tensor]]) -> torch.Tensor:
        """Inputs beside their labels."""
        return torch.cat([torch.cat([inputs["input"], labels], 1) for inputs, labels in pieces])

    planned = [
        torch.from_numpy(np.concatenate([batch.tokens[:, :-1], batch.labels[:, 1:]], 1)) for batch in manifest.batches()
    ]
    ranks = [loader(rank, 2) for rank in range(2)]
    read = [tokens(islice(rank, 3 * 2)) for rank in ranks]  # 3 steps, in 2 pieces of 2 samples
    assert torch.equal(torch.cat(read), torch.cat([step[part] for part in HALVES for step in planned[:3]]))
    dcp.save({"dataloader": ranks[0]}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    resumed = loader(0, 1)
    dcp.load({"dataloader": resumed}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    assert torch.equal(tokens(resumed), torch.cat(planned[3:]))
