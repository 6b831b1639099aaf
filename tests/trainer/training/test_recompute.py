from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from tests.groups import group_of_one
from trainer.model.composer_model import build_model
from trainer.training.recompute import pass_in_bf16

SIZES = ModelConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
MANIFEST = Manifest("m", "t", 1000, 2, 16, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))


@pytest.fixture
def mesh_of_one() -> Iterator[DeviceMesh]:
    with group_of_one():
        yield init_device_mesh("cpu", (1,))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_step_once_more_has_the_precision_of_the_run_on_cuda(
    *, tied: bool, recompute: bool, mesh_of_one: DeviceMesh
) -> None:
    """To the last bit, on CPU: losses and gradients of FSDP with bf16, over two microbatches."""
    sizes = SIZES.model_copy(update={"tie_word_embeddings": tied})
    own, run = (
        build_model(sizes, MANIFEST, TrainConfig(activation_checkpointing=again)) for again in (recompute, False)
    )
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*filter(run.decoder.fsdp_wrap_fn, run.modules()), run):
        fully_shard(module, mesh=mesh_of_one, mp_policy=policy)
    tokens = torch.randint(0, 1000, (4, 17), generator=torch.Generator().manual_seed(0))
    for part in tokens.split(2):
        mean, losses = run({"tokens": part})
        (mean * 0.5).backward()
        assert torch.equal(pass_in_bf16(own.decoder, part, 0.5), losses)
    for parameter, sharded in zip(own.parameters(), run.parameters(), strict=True):
        assert parameter.grad is not None
        assert sharded.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, sharded.grad.full_tensor())  # type: ignore[attr-defined]
