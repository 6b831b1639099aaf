"""The initial weights of sharded models, on ranks whose collectives do nothing."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Precision
from composer.core.state import _create_device_mesh
from composer.devices import DeviceCPU
from composer.distributed.prepare_distributed import parallelize_composer_model
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from tests.end_to_end.ranks import CONTEXT
from trainer.model.composer_model import TranslationModel, sharding
from trainer.model.initial_weights import draw_weights
from trainer.model.memory import apart
from trainer.model.optimizer import make_optimizer
from trainer.model.packed import build_decoder, new_decoder

SIZES = ModelConfig(
    hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
TIED = SIZES.model_copy(update={"tie_word_embeddings": True})
MANIFEST = Manifest("m", "t", 90, 2, 8, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))


@contextmanager
def rank_of(rank: int, ranks: int) -> Iterator[None]:
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def sharded(sizes: ModelConfig, train: TrainConfig) -> TranslationModel:
    """As Composer's Trainer does it."""
    model = TranslationModel(new_decoder(sizes, MANIFEST, train))
    optimizer = make_optimizer(model, train, fused=False)
    config = sharding(train)
    config.device_mesh = _create_device_mesh(DeviceCPU(), config, None)
    parallelize_composer_model(model, optimizer, config, Precision.FP32)
    draw_weights(model.decoder.hf, sizes)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    return model


CASES: list[tuple[int, ModelConfig, dict[str, Any]]] = [
    (1, SIZES, {}),
    (2, SIZES, {"activation_checkpointing": True, "compile": True}),
    (3, SIZES, {}),  # 20 rows on 3 ranks: 7, 7 and 6
    (8, TIED, {}),  # 10 rows on 8 ranks: the last three have none
    (4, SIZES, {"shard_ranks": 2}),
    (4, TIED, {"shard_ranks": 2, "activation_checkpointing": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2, 7])
def test_each_rank_has_its_shard_of_the_unsharded_model(rank: int) -> None:
    """A process for each rank, because PyTorch keeps the first rank's place in a mesh."""
    with ProcessPoolExecutor(1, CONTEXT) as process:
        assert process.submit(count_equal_shards, rank).result() == sum(rank < ranks for ranks, _, _ in CASES)


def count_equal_shards(rank: int) -> int:
    torch.set_num_threads(1)
    cases = [case for case in CASES if rank < case[0]]
    for ranks, sizes, settings in cases:
        train = TrainConfig(**settings)
        whole, groups = build_decoder(sizes, MANIFEST, train), train.shard_ranks or ranks
        with rank_of(rank, ranks):
            decoder = sharded(sizes, train).decoder
            for (name, expected), (_, found) in zip(whole.named_parameters(), decoder.named_parameters(), strict=True):
                assert isinstance(found, DTensor)
                assert found.device_mesh.ndim == (2 if train.shard_ranks else 1)
                chunks = [*expected.chunk(groups), *[expected[:0]] * groups]
                assert torch.equal(found.to_local(), chunks[rank % groups]), name
            for (name, expected), (_, buffer) in zip(whole.named_buffers(), decoder.named_buffers(), strict=True):
                assert torch.equal(buffer, expected), name
            tied = decoder.hf.lm_head.weight is decoder.hf.model.embed_tokens.weight
            assert tied == sizes.tie_word_embeddings
    return len(cases)


@pytest.mark.slow
def test_a_model_without_weights_takes_no_memory() -> None:
    """In a new process, whose allocator has no freed memory to give."""
    size, made, drawn = apart(resident_bytes)
    assert size > 130e6
    assert made < 0.1 * size
    assert drawn > 0.9 * size


def resident_bytes() -> tuple[int, int, int]:
    """Bytes of a model, and what it adds to this process's memory before and after its weights are drawn."""
    sizes = ModelConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8
    )
    before = resident()
    decoder = new_decoder(sizes, MANIFEST, TrainConfig())
    made = resident() - before
    draw_weights(decoder.hf, sizes)
    return sum(parameter.nbytes for parameter in decoder.parameters()), made, resident() - before


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
