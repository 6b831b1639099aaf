"""The initial weights of a model, sharded over ranks or not. Needs no Composer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from dataengine.config.training import ModelConfig


@torch.no_grad()
def draw_weights(hf: PreTrainedModel, config: ModelConfig) -> None:
    """Give a model the paper's initial weights (normal, std sqrt(2/5/d); outputs 1/(sqrt(d) layers)).

    They depend on `init_seed` alone. Each rank draws every parameter in turn, whole and on the CPU, and keeps its
    shard: the shards of any number of ranks are those of the unsharded model, bit for bit, and a rank needs memory for
    one whole parameter.
    """
    generator = torch.Generator().manual_seed(config.init_seed)
    std = math.sqrt(2 / 5 / config.hidden_size)
    output_std = 1 / math.sqrt(config.hidden_size) / config.num_hidden_layers
    for name, parameter in hf.named_parameters():  # lists a tied output layer once
        whole = torch.empty(parameter.shape)
        if parameter.dim() == 1:
            nn.init.ones_(whole)  # norms
        else:
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(whole, std=output_std if is_output else std, generator=generator)
        copy_shard(parameter, whole)


def copy_shard(parameter: Tensor, whole: Tensor) -> None:
    """Copy what a parameter of this rank holds of a whole tensor, without communication."""
    if isinstance(parameter, DTensor):
        shard = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(shard.to_local())
    else:
        parameter.copy_(whole)
