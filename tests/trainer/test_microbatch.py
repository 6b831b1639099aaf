from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config import ModelConfig, TrainConfig
from dataengine.manifest import Manifest
from dataengine.schedule import Stage
from trainer.microbatch import held_bytes, largest_microbatch, sample_bytes
from trainer.model import build_model
from trainer.preflight import num_parameters

SIZES = ModelConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=2
)
MANIFEST = Manifest("m", "t", 1000, 2, 16, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))


@given(st.integers(1, 512), st.integers(1, 10**9), st.integers(0, 10**10), st.integers(1, 10**11))
def test_the_largest_divisor_that_leaves_a_tenth_free(of_rank: int, sample: int, held: int, total: int) -> None:
    size = largest_microbatch(of_rank, sample, held, total)
    room = total * 0.9 - held
    fitting = [n for n in range(1, of_rank + 1) if of_rank % n == 0 and n * sample <= room]
    assert size == max(fitting, default=0)


def saved_bytes(model: ModelConfig, samples: int) -> int:
    """Bytes of what a forward pass keeps for the backward pass, beside the weights: measured, on CPU."""
    made = build_model(model, MANIFEST, TrainConfig())
    weights = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = made({"tokens": torch.zeros((samples, 17), dtype=torch.int64)})
        total = sum(kept.values())  # while all of them are alive, so that no address is used twice
    assert outputs[0].requires_grad
    return total


def test_two_small_models_tell_what_a_sample_takes_in_a_large_one() -> None:
    predicted = sample_bytes(SIZES, saved_bytes)
    measured = saved_bytes(SIZES, 6) - saved_bytes(SIZES, 5)
    assert predicted == pytest.approx(measured, rel=0.02)


def test_what_a_rank_holds_by_hand() -> None:
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64
    outer = 2 * 1024 * 64 + 64
    assert num_parameters(SIZES, 1000) == 7 * layer + outer
    assert held_bytes(SIZES, 1000, 4) == (7 * layer + outer) * 4 + (2 * layer + outer) * 6
