from __future__ import annotations

import math
import sys
from functools import partial
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity, profile
from transformers import AttentionInterface, LlamaForCausalLM

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from trainer.model import attention, loss, packed
from trainer.model.composer_model import build_model, sharding
from trainer.model.decoder import llama_config

SIZES = ModelConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
MANIFEST = Manifest("m", "t", 1000, 2, 16, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))


def test_loss_is_that_of_transformers_on_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(SIZES, MANIFEST, TrainConfig())
    tokens = torch.randint(0, 1000, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, whole = model({"tokens": tokens})
        expected = [model.decoder.hf(input_ids=row[None], labels=row[None]).loss.item() for row in tokens]
    assert whole.shape == (3,)
    assert mean.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert whole.tolist() == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 7)
    model({"tokens": tokens})[0].backward()
    chunked = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.decoder.hf(input_ids=tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(chunked[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_initial_weights_are_the_papers_and_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_model(SIZES, MANIFEST, TrainConfig()).decoder.hf.state_dict()
    torch.manual_seed(2)
    second = build_model(SIZES, MANIFEST, TrainConfig()).decoder.hf.state_dict()
    other = build_model(SIZES.model_copy(update={"init_seed": 4}), MANIFEST, TrainConfig()).decoder.hf.state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        if weight.dim() == 1:
            assert torch.all(weight == 1)
            continue
        assert not torch.equal(weight, other[name])
        outputs = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 1 / math.sqrt(64) / 2 if outputs else math.sqrt(2 / 5 / 64)
        assert weight.std().item() == pytest.approx(std, rel=0.06)


def test_vocabulary_is_padded_to_64_and_ties_hold() -> None:
    hf = build_model(SIZES.model_copy(update={"tie_word_embeddings": True}), MANIFEST, TrainConfig()).decoder.hf
    assert hf.config.vocab_size == 1024
    assert hf.lm_head.weight is hf.model.embed_tokens.weight
    assert hf.model.embed_tokens.weight.std().item() == pytest.approx(math.sqrt(2 / 5 / 64), rel=0.06)


def test_the_papers_model_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        manifest = Manifest("m", "t", 32_000, 2, 2048, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))
        hf = LlamaForCausalLM(llama_config(ModelConfig(), manifest, "sdpa"))
    assert sum(p.numel() for p in hf.parameters()) == 1_100_048_384


def test_attention_falls_back_to_sdpa_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    if not torch.cuda.is_available():
        assert build_model(SIZES, MANIFEST, TrainConfig()).decoder.hf.config._attn_implementation == "sdpa_on_cpu"
        assert caplog.messages == ["attention: sdpa (no CUDA device)"]


@pytest.mark.parametrize(("shard_ranks", "degrees"), [(None, (-1, None)), (8, (8, -1))])
def test_sharding_over_all_ranks_or_in_groups(shard_ranks: int | None, degrees: tuple[int, int | None]) -> None:
    """As composer.core.state._create_device_mesh reads it: -1 is what is left of the ranks, None no replicas."""
    made = sharding(TrainConfig(shard_ranks=shard_ranks))
    assert (made.data_parallel_shard_degree, made.data_parallel_replicate_degree) == degrees


def test_the_loss_with_its_gradients_made_ahead_is_exact() -> None:
    """Against autograd, in double precision, also scaled and in parts."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn((50, 8), generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn((30, 8), generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 30, (50,), generator=generator)
    mean, each = loss.MeanCrossEntropy.apply(states, weight, labels)
    expected = torch.nn.functional.cross_entropy(states @ weight.t(), labels)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-6)
    assert each.shape == (50,)
    assert not each.requires_grad
    ours = torch.autograd.grad(mean * 0.3, (states, weight))
    theirs = torch.autograd.grad(expected * 0.3, (states, weight))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-8)


def test_layers_that_are_computed_again_have_the_same_names_and_gradients() -> None:
    tokens = torch.randint(0, 1000, (3, 17), generator=torch.Generator().manual_seed(0))
    models = [build_model(SIZES, MANIFEST, TrainConfig(activation_checkpointing=again)) for again in (False, True)]
    for model in models:
        model({"tokens": tokens})[0].backward()
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    for (name, one), (other_name, other) in zip(*(model.named_parameters() for model in models), strict=True):
        assert other_name.replace("_checkpoint_wrapped_module.", "") == name
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_takes_the_flash_kernel_on_cpu(kv_heads: int) -> None:
    sizes = SIZES.model_copy(update={"num_key_value_heads": kv_heads})
    model = build_model(sizes, MANIFEST, TrainConfig(attention="sdpa"))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        model({"tokens": torch.zeros((2, 17), dtype=torch.int64)})[0].backward()
    found = {event.key for event in profiled.key_averages() if "_attention_" in event.key}
    flash = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert found == {flash, f"{flash}_backward"}


def test_attention_is_called_causal_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any kernel of transformers, such as flash-attn's, is given this; it repeats keys and values itself."""
    calls: list[tuple[Any, ...]] = []

    def stub(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        calls.append((query.shape, key.shape, value.shape, mask, settings["scaling"], settings["dropout"]))
        assert module.is_causal
        assert settings.get("position_ids") is None
        return query.transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "stub", stub)
    monkeypatch.setattr(packed, "choose_attention", lambda configured: "stub")
    build_model(SIZES, MANIFEST, TrainConfig())({"tokens": torch.zeros((3, 17), dtype=torch.int64)})
    assert calls == [((3, 4, 16, 16), (3, 2, 16, 16), (3, 2, 16, 16), None, 0.25, 0.0)] * 2


def test_flash_attn_4_is_not_taken_for_flash_attn_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is installed in a folder of the same name, and transformers refuses it as flash_attention_2."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert attention.choose_attention("auto") == "sdpa"
    (tmp_path / "flash_attn" / "flash_attn_interface.py").touch()
    invalidate_caches()
    assert attention.choose_attention("auto") == "flash_attention_2"
    sys.modules.pop("flash_attn.flash_attn_interface")
    sys.modules.pop("flash_attn")


def test_cudnn_is_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another kernel in the place of cuDNN's, which has none for CPU: that one runs, in the backward pass too."""
    train = TrainConfig(attention="cudnn", activation_checkpointing=True)
    tokens = {"tokens": torch.zeros((2, 17), dtype=torch.int64)}
    model = build_model(SIZES, MANIFEST, train)
    with pytest.raises(RuntimeError, match="No viable backend"):
        model(tokens)
    monkeypatch.setattr(attention, "_CUDNN_ALONE", [SDPBackend.MATH])
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        model(tokens)[0].backward()
    found = {event.key: event.count for event in profiled.key_averages() if "dot_product_attention" in event.key}
    assert found == dict.fromkeys(("aten::scaled_dot_product_attention", "aten::_scaled_dot_product_attention_math"), 4)


def test_reasons_against_cudnn_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = attention.cudnn_refusal(SIZES, 16, "cpu")
    assert reason is not None
    assert reason.startswith("No viable backend for scaled_dot_product_attention was found.")
    monkeypatch.setattr(attention, "_CUDNN_ALONE", [SDPBackend.MATH])
    assert attention.cudnn_refusal(SIZES, 16, "cpu") is None
    warned = [
        "Flash attention kernel not used because:",
        "Flash attention has been runtime disabled.",
        "CuDNN attention kernel not used because: (Triggered internally at sdp_utils.cpp:700.)",
        "head_dim should be no more than 128 (Triggered internally at sdp_utils.cpp:400.)",
    ]
    assert attention._reason("No available kernel.\nTrace", warned) == (
        "No available kernel. head_dim should be no more than 128"
    )
    assert attention._reason("No available kernel.", []) == "No available kernel."


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["sdpa", "cudnn"])
def test_compiled_layers_are_one_graph(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers share it, and another microbatch adds one of any size. Without the compiler behind the graph."""
    counter = CompileCounter()
    monkeypatch.setattr(attention, "_CUDNN_ALONE", [SDPBackend.MATH])
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    sizes = SIZES.model_copy(update={"num_hidden_layers": 3})
    compiled = build_model(sizes, MANIFEST, TrainConfig(compile=True, attention=kernel))
    plain = build_model(sizes, MANIFEST, TrainConfig(attention=kernel))
    for samples, graphs in ((4, 1), (2, 2), (3, 2)):
        tokens = {"tokens": torch.arange(samples * 17).reshape(samples, 17)}
        mean = compiled(tokens)[0]
        mean.backward()
        assert counter.frame_count == graphs
        assert mean.item() == plain(tokens)[0].item()


def test_gradients_of_the_loss_in_bf16_are_near_what_bf16_can_hold() -> None:
    """At most twice as far from the exact ones as these are when they are rounded to bf16."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn((256, 64), generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn((500, 64), generator=generator) / 8).bfloat16().requires_grad_()
    labels = torch.randint(0, 500, (256,), generator=generator)
    loss.MeanCrossEntropy.apply(states, weight, labels)[0].backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (states, weight)]
    torch.nn.functional.cross_entropy(exact[0] @ exact[1].t(), labels).backward()
    for own, reference in zip((states, weight), exact, strict=True):
        assert own.grad is not None
        assert reference.grad is not None
        floor = (reference.grad.bfloat16().double() - reference.grad).norm()
        assert (own.grad.double() - reference.grad).norm() <= 2 * floor
