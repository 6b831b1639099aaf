"""The peak GPU memory of a training step, computed without a GPU.

PyTorch runs the step on fake tensors, sharded over fake ranks, and counts bytes. A whole 1.1B model takes a minute
this way. Two models with few layers take seconds and give the same figure, since each layer adds the same amount. Not
included: the CUDA context, NCCL, fragmentation. `compile` is counted as the code that it replaces, which needs at least
as much. dataengine/hardware/memory.py computes the same in closed form, without torch.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AttentionInterface

from dataengine.config.pretrained import PretrainedModel
from dataengine.config.training import ModelConfig
from dataengine.schedule.manifest import Manifest
from trainer.model.decoder import model_config, new_model
from trainer.model.families import FAMILIES
from trainer.model.packed import PackedDecoder, WholeModel, recompute_layers

_FEW_LAYERS = 3  # from here on, the peak falls at the same point of the step for any number of layers
_COUNTED = "sdpa_counted"  # the name says what `pretrained_config` replaces where scores are capped

T = TypeVar("T")


def step_bytes(model: ModelConfig, manifest: Manifest, microbatch: int, *, shard_ranks: int, recompute: bool) -> int:
    """Return the peak bytes of a rank in a step of several microbatches, parameters and AdamW's moments included.

    `shard_ranks` is the number of ranks that parameters are sharded over; `recompute` is activation checkpointing.
    """

    def of_layers(layers: int) -> int:
        sizes = _with_layers(model, layers)
        return fake_step_bytes(sizes, manifest, microbatch, shard_ranks=shard_ranks, recompute=recompute)

    layers, few = model.num_hidden_layers, min(model.num_hidden_layers, _FEW_LAYERS)
    if not _is_decoder(model):
        few = layers  # its config.json may have other names for its sizes
    peak = of_layers(few)
    return peak if layers == few else peak + (layers - few) * (of_layers(few + 1) - peak)


def _is_decoder(model: ModelConfig) -> bool:
    return not isinstance(model, PretrainedModel) or model.type in FAMILIES


def _with_layers(model: ModelConfig, layers: int) -> ModelConfig:
    """Return a model of another depth."""
    changes: dict[str, Any] = {"num_hidden_layers": layers}
    if isinstance(model, PretrainedModel) and layers != model.num_hidden_layers:
        kinds = model.base.get("layer_types")
        changes["base"] = model.base | changes | ({"layer_types": kinds[:layers]} if kinds else {})
    return model.model_copy(update=changes)


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a separate process, since it draws random numbers and creates a process group."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_hide_devices) as process:
        return process.submit(function, *arguments).result()


def _hide_devices() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def fake_step_bytes(
    model: ModelConfig, manifest: Manifest, microbatch: int, *, shard_ranks: int, recompute: bool
) -> int:
    """Return the peak bytes of the model with all of its layers. Takes a minute for 22 layers."""
    with _ranks(shard_ranks) as mesh, FakeTensorMode():
        decoder = _shard(model, manifest, mesh, recompute=recompute)
        optimizer = torch.optim.AdamW(decoder.parameters(), foreach=False)
        tokens = torch.zeros((microbatch, manifest.seq_len + 1), dtype=torch.int64)
        tracker = FSDPMemTracker(decoder, optimizer)
        with tracker:
            decoder(tokens)[0].backward()
            tracker.reset_mod_stats()
            optimizer.step()  # allocates the moments
            decoder(tokens)[0].backward()  # adds to gradients, as the last microbatch of a later step does
        return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


@contextmanager
def _ranks(number: int) -> Iterator[DeviceMesh]:
    """Make this process rank 0 of `number` ranks whose collectives do nothing."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    try:
        yield init_device_mesh("cpu", (number,))
    finally:
        distributed.destroy_process_group()


def _shard(model: ModelConfig, manifest: Manifest, mesh: DeviceMesh, *, recompute: bool) -> nn.Module:
    """Return the decoder, sharded as Composer does on CUDA (composer/distributed/fsdp2.py and `sharding`)."""
    hf = new_model(model_config(model, manifest, _COUNTED))
    decoder = PackedDecoder(hf) if _is_decoder(model) else WholeModel(hf)
    sharded = [module for module in decoder.modules() if decoder.fsdp_wrap_fn(module)]
    if recompute:
        recompute_layers(decoder.hf)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*sharded, decoder):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return decoder


class _Attention(torch.autograd.Function):
    """Saves what attention on CUDA saves (flash-attn's and PyTorch's): inputs, output and a sum per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map (b, heads, s, d) to the same shape, stored as (b, s, heads, d)."""
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return a gradient for each input."""
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    out: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(_COUNTED, _attend)
