"""The trainer against a loop of forty lines that shares none of its code: the same losses, step by step.

The loop knows transformers' Llama with labels, torch's AdamW and clipping, and the stock reader of MDS shards. Of this
project it uses the manifest: its numbers and the order of samples, which the log's digests prove. Once more with both
masks: only targets count in the loss, and documents are kept apart.
"""

from __future__ import annotations

import csv
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from streaming import LocalDataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from dataengine.build.build import build
from dataengine.config.load import load_config
from dataengine.schedule.manifest import Manifest
from tests.conftest import slow_but, small_experiment
from tests.end_to_end import ranks
from tests.plain_masks import apart

STEPS, STOPPED_AT, RESTARTED_AT = 40, 20, 14
TRAIN: dict[str, Any] = {
    "learning_rate": 5e-3,
    "min_learning_rate": 5e-4,
    "warmup_steps": 4,
    "decay_steps": 20,
    "betas": [0.85, 0.97],
    "eps": 1e-7,
    "weight_decay": 0.2,
    "clip_norm": 0.8,
    "checkpoint_interval": 16,
    "loader_workers": 0,
    "spike_factor": None,
}


@dataclass(frozen=True)
class Loop:
    """What the independent loop found."""

    config: Path
    digests: list[str]
    losses: list[float]
    norms: list[float]  # before clipping
    rates: list[float]


@pytest.fixture(scope="module", params=slow_but([False, True], [False]), ids=["plain", "masked"])
def loop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path
) -> Loop:
    folder = tmp_path_factory.mktemp("independent")
    experiment, masked = small_experiment(corpora, tokenizer_path, folder), bool(request.param)
    experiment["train"] = {**TRAIN, "document_mask": masked}
    for name in ("en-zh", "both") if masked else ():
        experiment["streams"][name]["loss_on"] = "target"
    experiment["stages"] = [
        {"name": "first", "steps": RESTARTED_AT, "mix": {"mono": 1}},
        {"name": "mixed", "steps": 14, "mix": {"mono": 3, "en-zh": 2, "both": 1}, "restart_learning_rate": True},
        {"name": "last", "steps": STEPS - RESTARTED_AT - 14, "mix": {"en-zh": 1}},
    ]
    path = folder / "independent.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    manifest = build(load_config(path), workers=1).manifest
    return train(path, manifest, folder / "store", experiment["model"], masked=masked)


def train(config: Path, manifest: Manifest, store: Path, sizes: dict[str, int], *, masked: bool) -> Loop:
    """Train on whole batches, on one process, without a stop."""
    streams = [LocalDataset(str(store / stream.remote)) for stream in manifest.streams]
    firsts = np.cumsum([0, *(stream.samples for stream in manifest.streams)])
    model = initial_model(manifest, sizes)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=tuple(TRAIN["betas"]), eps=TRAIN["eps"], weight_decay=TRAIN["weight_decay"]
    )
    digest, found = b"", Loop(config, [], [], [], [])
    for step in range(STEPS):
        ids = manifest.order.sample_ids(step)
        digest = hashlib.sha256(digest + np.int64(step).tobytes() + ids.astype(np.int64).tobytes()).digest()
        samples = [read(streams, firsts, int(one)) for one in ids]
        tokens = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))
        if masked:
            counted = counted_labels(samples)
            assert counted.all() == (step < RESTARTED_AT)  # documents alone, then pairs, too
            loss = masked_loss(model, tokens, counted, manifest.eos_id)
        else:
            loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN["clip_norm"])
        for group in optimizer.param_groups:
            group["lr"] = rate(step - RESTARTED_AT if step >= RESTARTED_AT else step)
        optimizer.step()
        found.digests.append(digest.hex())
        found.losses.append(loss.item())
        found.norms.append(norm.item())
        found.rates.append(optimizer.param_groups[0]["lr"])
    return found


def initial_model(manifest: Manifest, sizes: dict[str, int]) -> LlamaForCausalLM:
    """Normal weights of std sqrt(2 / 5 / d), those of what leaves a block 1 / (sqrt(d) layers); norms of ones."""
    rows = math.ceil(manifest.vocab_size / 64) * 64
    settings = LlamaConfig(vocab_size=rows, max_position_embeddings=manifest.seq_len, rms_norm_eps=1e-5, **sizes)
    model, generator = LlamaForCausalLM(settings), torch.Generator().manual_seed(3407)
    width, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    for name, weight in model.named_parameters():
        leaves = "o_proj" in name or "down_proj" in name
        std = 1 / (math.sqrt(width) * layers) if leaves else math.sqrt(2 / 5 / width)
        drawn = torch.empty(weight.shape).normal_(0, std, generator=generator) if weight.dim() == 2 else 1.0
        with torch.no_grad():
            weight.copy_(torch.as_tensor(drawn))
    return model.train()


def masked_loss(model: LlamaForCausalLM, tokens: Tensor, counted: Tensor, eos_id: int) -> Tensor:
    """The mean over the labels that count, shape (b, seq_len), by logits of documents that do not see each other."""
    inputs = tokens[:, :-1]
    mask, positions = apart(inputs, eos_id)
    logits = model(input_ids=inputs, attention_mask=mask, position_ids=positions).logits.flatten(0, 1)
    labels = tokens[:, 1:].masked_fill(~counted, -100).flatten()
    return cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / counted.sum()


def counted_labels(samples: list[dict[str, NDArray[Any]]]) -> Tensor:
    """Which labels count, shape (b, seq_len): all of a stream without masks."""
    width = len(samples[0]["tokens"])
    bits = [sample.get("loss_mask", np.full(width, 0xFF, np.uint8)) for sample in samples]
    return torch.from_numpy(np.stack([np.unpackbits(one, count=width)[1:] for one in bits]).astype(np.bool_))


def read(streams: list[LocalDataset], firsts: NDArray[np.int64], sample_id: int) -> dict[str, NDArray[Any]]:
    """A sample of the streams in a row: its tokens, shape (seq_len + 1,), and its mask, if it has one, in bits."""
    number = int(np.searchsorted(firsts, sample_id, side="right")) - 1
    sample: dict[str, NDArray[Any]] = streams[number][sample_id - int(firsts[number])]
    return sample


def rate(step: int) -> float:
    """Four steps up, sixteen down a cosine, then flat."""
    high, low = TRAIN["learning_rate"], TRAIN["min_learning_rate"]
    if step < 4:
        return float(high * (step + 1) / 4)
    return float(low + (high - low) * 0.5 * (1 + math.cos(math.pi * min((step - 4) / 16, 1))))


@pytest.mark.parametrize("world_size", slow_but([1, 2], [2]))
@pytest.mark.parametrize("microbatch", slow_but([2, 3], [3]))  # 3 divides the samples of no rank
def test_the_trainer_has_the_losses_of_a_loop_that_shares_no_code(
    loop: Loop, world_size: int, microbatch: int, tmp_path: Path
) -> None:
    out, size = tmp_path / "run", f"train.microbatch_size={microbatch}"
    ranks.train(loop.config, out, size, f"train.max_steps={STOPPED_AT}", ranks=world_size)
    ranks.train(loop.config, out, size, ranks=world_size)
    assert f"steps {STOPPED_AT} to {STEPS}" in ranks.printed(out)
    with (out / "log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    assert [row["digest"] for row in log] == loop.digests
    assert [float(row["learning_rate"]) for row in log] == pytest.approx(loop.rates, rel=1e-12)
    assert [float(row["loss"]) for row in log] == pytest.approx(loop.losses, rel=0, abs=2e-6)
    assert [float(row["grad_norm"]) for row in log] == pytest.approx(loop.norms, rel=1e-4)  # sums of float32
    assert sum(norm > TRAIN["clip_norm"] for norm in loop.norms) > STEPS / 4  # clipping takes part
    assert loop.losses[RESTARTED_AT - 1] < loop.losses[0] - 0.5  # and so does learning
