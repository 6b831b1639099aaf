from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.errors import InputError
from dataengine.hardware.fitting import Work
from dataengine.hardware.gpus import Gpu, find_gpu
from dataengine.hardware.memory import ERROR
from dataengine.hardware.memory import step_bytes as closed_form
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from tests.conftest import ROOT, ConfigMaker
from trainer.model import microbatch
from trainer.model.memory import fake_step_bytes, step_bytes
from trainer.model.microbatch import describe_needs, find_microbatch
from trainer.model.packed import build_decoder

SIZES = ModelConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4
)
MANIFEST = Manifest("m", "t", 1000, 2, 256, 16, 1, 17, 8, (), (Stage("s", 1, {"x": 16}),))


@pytest.mark.parametrize("recompute", [False, True])
def test_two_small_models_give_the_memory_of_a_large_one(*, recompute: bool) -> None:
    predicted, whole = (
        [count(SIZES, MANIFEST, size, shard_ranks=2, recompute=recompute) for size in (2, 4)]
        for count in (step_bytes, fake_step_bytes)
    )
    assert predicted == pytest.approx(whole, rel=0.005)
    assert predicted[1] - predicted[0] == pytest.approx(whole[1] - whole[0], rel=0.05)


def kept_bytes(samples: int, *, recompute: bool) -> int:
    """Bytes of what a forward pass of the run's own decoder keeps for the backward pass, beside the weights."""
    decoder = build_decoder(SIZES, MANIFEST, TrainConfig(activation_checkpointing=recompute)).bfloat16()
    weights = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mean, _ = decoder(torch.zeros((samples, MANIFEST.seq_len + 1), dtype=torch.int64))
    assert mean.requires_grad
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def test_layers_are_wrapped_as_in_the_run() -> None:
    """What a sample keeps in the run's decoder, measured on CPU, with and without layers that are computed again."""
    measured, counted = (
        [function(recompute=False), function(recompute=True)]
        for function in (
            lambda *, recompute: kept_bytes(6, recompute=recompute) - kept_bytes(4, recompute=recompute),
            lambda *, recompute: _step(6, recompute=recompute) - _step(4, recompute=recompute),
        )
    )
    layer_input = 2 * MANIFEST.seq_len * SIZES.hidden_size * 2  # two samples, bf16
    assert measured[1] >= SIZES.num_hidden_layers * layer_input
    assert measured[0] > 5 * measured[1]
    assert counted[0] - counted[1] == pytest.approx(measured[0] - measured[1], rel=0.15)  # and one layer's at a time


def _step(samples: int, *, recompute: bool) -> int:
    return step_bytes(SIZES, MANIFEST, samples, shard_ranks=2, recompute=recompute)


def test_the_papers_model() -> None:
    """On 64 ranks, against the whole model of 22 layers, run likewise (benchmarks/memory.py --whole)."""
    manifest = Manifest("m", "t", 32_000, 2, 2048, 512, 1, 17, 8, (), (Stage("s", 1, {"x": 512}),))
    found = step_bytes(ModelConfig(), manifest, 8, shard_ranks=64, recompute=False)
    assert found / 1e9 == pytest.approx(34.2, abs=0.05)


LADDER = {
    "160M": ModelConfig(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
                        num_key_value_heads=12),
    **{name: load_config(ROOT / f"yamls/ladder/{name}_distributed.yaml").model for name in ("1b", "3b", "7b")},
}  # fmt: skip
LARGE = Manifest("m", "t", 32_000, 2, 2048, 512, 1, 17, 8, (), (Stage("s", 1, {"x": 512}),))


@pytest.mark.parametrize(
    ("vocab_size", "seq_len", "changes", "microbatch", "ranks", "recompute"),
    [
        (8000, 256, {}, 4, 2, False),  # the peak is in the loss
        (8000, 256, {"tie_word_embeddings": True}, 24, 2, True),  # in a later chunk of the loss
        (256, 256, {"hidden_size": 256}, 8, 3, False),  # in the last norm; 3 does not divide the matrices' rows
        (256, 128, {"num_key_value_heads": 1, "intermediate_size": 1024}, 4, 2, True),  # in a layer's feed-forward part
        (128, 16, {"hidden_size": 256}, 1, 2, False),  # in a layer's first norm
        (8000, 16, {}, 1, 2, False),  # in the reduction of the root's gradients
    ],
)
def test_the_closed_form_is_what_pytorch_counts(
    vocab_size: int, seq_len: int, changes: dict[str, object], microbatch: int, ranks: int, *, recompute: bool
) -> None:
    model = SIZES.model_copy(update={"num_hidden_layers": 4, **changes})
    manifest = replace(MANIFEST, vocab_size=vocab_size, seq_len=seq_len)
    found, counted = (
        count(model, manifest, microbatch, shard_ranks=ranks, recompute=recompute)
        for count in (closed_form, fake_step_bytes)
    )
    assert found == pytest.approx(counted, rel=ERROR)


@pytest.mark.slow
@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("ranks", [1, 8, 64])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_closed_form_holds_for_large_models(name: str, ranks: int, *, recompute: bool) -> None:
    """On one rank, torch 2.15 makes no copies for the collectives: up to 1 % less than the closed form."""
    for samples in (1, 4, 16):
        found, counted = (
            count(LADDER[name], LARGE, samples, shard_ranks=ranks, recompute=recompute)
            for count in (closed_form, step_bytes)
        )
        assert found == pytest.approx(counted, rel=ERROR if ranks == 1 else 0.002)


@pytest.mark.slow
@pytest.mark.parametrize("name", LADDER)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_plan_and_auto_choose_the_same_microbatch(name: str, *, recompute: bool) -> None:
    train, gpu = TrainConfig(activation_checkpointing=recompute), find_gpu("h100-80")
    planned, chosen = (
        Work(LADDER[name], LARGE, train, 8, count).largest(gpu.room) for count in (closed_form, step_bytes)
    )
    assert planned[0] == chosen[0] > 0
    assert planned[1] == pytest.approx(chosen[1], rel=ERROR)


def made_up_bytes(_: ModelConfig, __: Manifest, size: int, *, shard_ranks: int, recompute: bool) -> int:
    """As the real figures behave, in bytes small enough to read: 160 on the ranks, and 10 a sample, or 2."""
    return 160 // shard_ranks + size * (2 if recompute else 10)


@pytest.fixture
def config(make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> Config:
    """`auto`, in this process and with figures that are made up."""
    monkeypatch.setattr(microbatch, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(microbatch, "step_bytes", made_up_bytes)
    return make_config().model_copy(update={"model": SIZES, "train": TrainConfig(microbatch_size="auto")})


def test_a_size_that_was_found_is_kept(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    # 126 of 140 bytes: 80 + 40.
    assert find_microbatch(config.model, MANIFEST, config.train, tmp_path, 2, Gpu("Small", 140)) == 4
    monkeypatch.delattr(microbatch, "step_bytes")
    assert find_microbatch(config.model, MANIFEST, config.train, tmp_path, 2, Gpu("Small", 140)) == 4
    assert caplog.messages == []


def test_under_other_conditions_a_size_is_chosen_again(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_microbatch(config.model, MANIFEST, config.train, tmp_path, 2, Gpu("Small", 140)) == 4
    assert find_microbatch(config.model, MANIFEST, config.train, tmp_path, 2, Gpu("Large", 180)) == 8
    assert caplog.messages == [
        "conditions of microbatch.json changed (device was Small and is Large; device_bytes was 140 and is 180): chose "
        "the microbatch size again",
        "microbatches have 8 samples from here on, before 4: gradients are summed in another order, so losses differ "
        "in their last bits from those of an unchanged run",
    ]


CHANGES: list[dict[str, object]] = [
    {"activation_checkpointing": True},
    {"compile": True},
    {"attention": "sdpa"},
    {"shard_ranks": 2},
]


@pytest.mark.parametrize("changed", CHANGES)
def test_a_size_holds_for_its_settings(
    changed: dict[str, object], config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    find_microbatch(config.model, MANIFEST, config.train, tmp_path, 4, Gpu("Large", 180))
    train = config.train.model_copy(update=changed)
    find_microbatch(config.model, MANIFEST, train, tmp_path, 4, Gpu("Large", 180))
    ((key, value),) = changed.items()
    now = getattr(config.train, key)
    assert caplog.messages[0].startswith(
        f"conditions of microbatch.json changed (train.{key} was {now} and is {value})"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"size": 2, "device": "Small", "torch": "2.7.0"}', "an earlier version wrote it, without saying what for"),
        (b'{"size": ', "is damaged"),
        (b"[]", "is damaged"),
    ],
)
def test_a_file_without_valid_conditions_is_replaced(
    content: bytes, words: str, config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "microbatch.json"
    path.write_bytes(content)
    assert find_microbatch(config.model, MANIFEST, config.train, tmp_path, 2, Gpu("Large", 180)) == 8
    assert words in caplog.messages[0]
    assert json.loads(path.read_bytes())["size"] == 8


@pytest.mark.parametrize(
    ("memory", "advice"),
    [
        (95, "To make it fit, set train.activation_checkpointing=true, or start 4 ranks."),  # 85.5: 82, 50
        (80, "To make it fit, start 4 ranks."),  # 72: 50
        (30, "To make it fit, start 16 ranks."),  # 27: 20
        (
            13,
            "Neither more ranks nor train.activation_checkpointing would help: use a smaller model or a larger GPU.",
        ),
    ],
)
def test_advice_is_of_what_helps(memory: int, advice: str, config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_microbatch(config.model, MANIFEST, config.train, tmp_path, 2, Gpu("Near", memory))
    assert str(caught.value).startswith(
        "not even one sample fits: a step with one sample takes 0.0 GB, and Near has 0.0"
    )
    assert str(caught.value).endswith(advice)
    assert not (tmp_path / "microbatch.json").exists()


def test_memory_is_reported_without_a_gpu(config: Config) -> None:
    work = Work(config.model, MANIFEST, config.train, 2, made_up_bytes)
    assert describe_needs(work, None, 10) == (
        "memory of a step on a GPU: 90 B with microbatches of 1, 100 B with microbatches of 2, 120 B with microbatches "
        "of 4, 160 B with microbatches of 8"
    )


def test_needs_on_a_gpu_are_of_the_counted_bytes(config: Config) -> None:
    """126 of 140 bytes: 80 + 40 with 4 samples."""
    work = Work(config.model, MANIFEST, config.train, 2, made_up_bytes)
    lines = describe_needs(work, Gpu("Small", 140), 10).splitlines()
    assert lines[:3] == [
        "GPUs        2 x Small with 140 B",
        "memory      120 B at the peak of a step with microbatches of 4 (counted by PyTorch)",
        "microbatch  4 is the largest that leaves a tenth of the memory free",
    ]
    assert [line.split()[0] for line in lines[3:]] == ["operations", "speed"]
    assert lines[-1].endswith("no estimate: the bf16 operations per second of Small are not known")
