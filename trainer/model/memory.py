"""What a training step holds in a GPU's memory at its peak, found without a GPU.

PyTorch runs the step on tensors without content, sharded over ranks that are not there, and counts. A whole model of
1.1B takes a minute so; two models of few layers take seconds and give the same, for each layer adds alike. Not in it:
CUDA's context, NCCL, fragments. `compile` and liger's loss are counted as what they replace, which holds no less.
"""

from __future__ import annotations

import multiprocessing
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
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

from dataengine.config.training import ModelConfig
from dataengine.schedule.manifest import Manifest
from trainer.model.decoder import llama_config, new_model
from trainer.model.packed import PackedDecoder, recompute_layers

_FEW_LAYERS = 3  # from here on the step's peak is in the same place, whatever the number of layers
_COUNTED = "counted"

T = TypeVar("T")


def step_bytes(model: ModelConfig, manifest: Manifest, microbatch: int, *, shard_ranks: int, recompute: bool) -> int:
    """Most bytes that a rank holds in a step of several microbatches, parameters and AdamW's moments included.

    Takes the ranks that the parameters are sharded over, and whether layers are computed again (activation
    checkpointing).
    """

    def of_layers(layers: int) -> int:
        sizes = model.model_copy(update={"num_hidden_layers": layers})
        return fake_step_bytes(sizes, manifest, microbatch, shard_ranks=shard_ranks, recompute=recompute)

    layers, few = model.num_hidden_layers, min(model.num_hidden_layers, _FEW_LAYERS)
    peak = of_layers(few)
    return peak if layers == few else peak + (layers - few) * (of_layers(few + 1) - peak)


def largest_fitting(sizes: Sequence[int], needed: Callable[[int], int], room: int) -> int:
    """The largest of ascending sizes that needs no more than there is room for; 0 if none does."""
    number = bisect_right(sizes, room, key=needed)
    return sizes[number - 1] if number else 0


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of this module in a process of its own: it draws random numbers and has ranks of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_hide_devices) as process:
        return process.submit(function, *arguments).result()


def _hide_devices() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def fake_step_bytes(
    model: ModelConfig, manifest: Manifest, microbatch: int, *, shard_ranks: int, recompute: bool
) -> int:
    """The same for the model as it is, which takes a minute for 22 layers."""
    with _ranks(shard_ranks) as mesh, FakeTensorMode():
        decoder = _shard(model, manifest, mesh, recompute=recompute)
        optimizer = torch.optim.AdamW(decoder.parameters(), foreach=False)
        tokens = torch.zeros((microbatch, manifest.seq_len + 1), dtype=torch.int64)
        tracker = FSDPMemTracker(decoder, optimizer)
        with tracker:
            decoder(tokens)[0].backward()
            tracker.reset_mod_stats()
            optimizer.step()  # makes its moments
            decoder(tokens)[0].backward()  # adds to gradients, as the last microbatch of a later step does
        return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


@contextmanager
def _ranks(number: int) -> Iterator[DeviceMesh]:
    """This process as the first of so many ranks, whose collectives do nothing."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    try:
        yield init_device_mesh("cpu", (number,))
    finally:
        distributed.destroy_process_group()


def _shard(model: ModelConfig, manifest: Manifest, mesh: DeviceMesh, *, recompute: bool) -> nn.Module:
    """The decoder as Composer shards it on CUDA (composer/distributed/fsdp2.py, and `composer_model.sharding`)."""
    decoder = PackedDecoder(new_model(llama_config(model, manifest, _COUNTED)))
    sharded = [module for module in decoder.modules() if decoder.fsdp_wrap_fn(module)]
    if recompute:
        recompute_layers(decoder.hf)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*sharded, decoder):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return decoder


class _Attention(torch.autograd.Function):
    """Keeps what attention keeps on CUDA (flash-attn's, and PyTorch's own): its inputs, its output and a sum a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(b, heads, s, d) -> the same, in memory as (b, s, heads, d)."""
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """A gradient of each input."""
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    out: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(_COUNTED, _attend)
