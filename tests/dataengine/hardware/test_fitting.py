from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.hardware.fitting import Work, largest_fitting
from dataengine.hardware.gpus import Gpu, find_gpu
from dataengine.hardware.memory import step_bytes
from tests.dataengine.hardware.test_memory import sized


@given(st.lists(st.integers(1, 512), min_size=1, unique=True), st.integers(0, 10**9), st.integers(0, 10**9))
def test_the_largest_size_that_fits(sizes: list[int], each: int, room: int) -> None:
    size = largest_fitting(sorted(sizes), lambda number: 1000 + number * each, room)
    assert size == max((number for number in sizes if 1000 + number * each <= room), default=0)


def test_the_largest_divisor_of_a_ranks_samples_that_leaves_a_tenth_free() -> None:
    """67.9 of 84.9 GB with 16, 131.6 GB with 32; 384 samples on 8 ranks are 48 on each: 24 needs 99.8 GB."""
    gpu = find_gpu("h100-80")
    assert Work(ModelConfig(), sized(512), TrainConfig(), 8, step_bytes).largest(gpu.room)[0] == 16
    assert Work(ModelConfig(), sized(384), TrainConfig(), 8, step_bytes).largest(gpu.room)[0] == 16
    assert Work(ModelConfig(), sized(392), TrainConfig(), 8, step_bytes).largest(gpu.room)[0] == 7


@pytest.mark.parametrize(
    ("changes", "ranks", "words"),
    [
        ({}, 8, "To make it fit, set train.activation_checkpointing=true, or start 16 ranks."),
        ({"shard_ranks": 8}, 16, "set train.activation_checkpointing=true, or set train.shard_ranks=16."),
        ({}, 1, "To make it fit, start 16 ranks."),
    ],
)
def test_if_nothing_fits_the_advice_helps(changes: dict[str, int], ranks: int, words: str) -> None:
    model = ModelConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32
    )
    refusal = Work(model, sized(), TrainConfig(**changes), ranks, step_bytes).refusal(Gpu("A", 28 * 10**9))
    assert refusal.startswith("not even one sample fits: a step with one sample takes ")
    assert refusal.endswith(words)
