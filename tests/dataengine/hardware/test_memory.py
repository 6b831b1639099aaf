from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.training import ModelConfig
from dataengine.hardware.memory import step_bytes
from dataengine.hardware.sizes import num_parameters
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage


def sized(batch_size: int = 512, vocab_size: int = 32_000, seq_len: int = 2048) -> Manifest:
    return Manifest("m", "t", vocab_size, 2, seq_len, batch_size, 1, 17, 8, (), (Stage("s", 1, {"x": batch_size}),))


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    heads, shared = draw(st.sampled_from([2, 8, 32])), draw(st.sampled_from([1, 2]))
    return ModelConfig(
        hidden_size=heads * draw(st.sampled_from([32, 128])),
        intermediate_size=64 * draw(st.integers(1, 200)),
        num_hidden_layers=draw(st.integers(1, 40)),
        num_attention_heads=heads,
        num_key_value_heads=heads // shared,
        tie_word_embeddings=draw(st.booleans()),
    )


@given(models(), st.integers(1, 64), st.sampled_from([1, 2, 8, 64, 512]), st.booleans())
def test_memory_falls_with_ranks_and_grows_with_the_microbatch(
    model: ModelConfig, microbatch: int, ranks: int, recompute: bool
) -> None:
    def of(microbatch: int, ranks: int) -> int:
        return step_bytes(model, sized(), microbatch, shard_ranks=ranks, recompute=recompute)

    assert of(microbatch, ranks) > of(microbatch, 2 * ranks)
    assert of(microbatch, ranks) < of(microbatch + 1, ranks)
    state = 16 * num_parameters(model, 32_000)
    assert of(microbatch, ranks) - of(microbatch, 2 * ranks) <= state / ranks  # a rank has at least its half


@given(models(), st.integers(2, 64), st.sampled_from([1, 8, 64]))
def test_recomputation_keeps_one_state_of_a_layer(model: ModelConfig, microbatch: int, ranks: int) -> None:
    """With many layers, it saves nearly all that a layer keeps."""
    saved: Any = [step_bytes(model, sized(), microbatch, shard_ranks=ranks, recompute=it) for it in (False, True)]
    deeper = model.model_copy(update={"num_hidden_layers": model.num_hidden_layers + 100})
    more: Any = [step_bytes(deeper, sized(), microbatch, shard_ranks=ranks, recompute=it) for it in (False, True)]
    tokens, d, f = microbatch * 2048, model.hidden_size, model.intermediate_size
    kv = d // model.num_attention_heads * model.num_key_value_heads
    each = tokens * (18 * d + 8 * f + 4 * kv + 4 * model.num_attention_heads + 8)  # 20 d, of which 2 d stay
    assert more[0] - more[1] - (saved[0] - saved[1]) == pytest.approx(100 * each, rel=0.1)


def test_tinyllama_by_hand() -> None:
    """8 ranks, microbatches of 16: the peak is in the loss, at the last chunk of logits."""
    tokens, parameters = 16 * 2048, 1_100_048_384
    layer = 20 * 2048 + 4 * 256 + 8 * 5632 + 4 * 32 + 8  # bytes that a layer keeps of a token
    logits = 2 * 6 * 4096 * 32_000  # two chunks: bf16 and fp32
    table = 32_000 * 2048
    gathered = 2 * (2 * table + 2048) + 2 * 44_044_288  # embedding, output layer, last norm; the last layer
    by_hand = 2 * parameters + gathered + 22 * layer * tokens + 5 * 2 * 2048 * tokens + logits + 4 * table
    found = step_bytes(ModelConfig(), sized(), 16, shard_ranks=8, recompute=False)
    assert found == pytest.approx(by_hand, rel=1e-4)
    assert found / 1e9 == pytest.approx(67.90, abs=0.005)
