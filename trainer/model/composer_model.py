"""The model that Composer trains, and how its parameters are sharded over ranks."""

from __future__ import annotations

from typing import cast

import torch
from composer.models import ComposerModel
from composer.utils.parallelism import FSDP2Config
from torch import Tensor

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.mds.writer import COLUMN, MASK
from dataengine.schedule.manifest import Manifest
from trainer.model.packed import PackedDecoder, build_decoder


class TranslationModel(ComposerModel):
    """The model that Composer trains: takes a batch, returns the mean loss and the loss of each sample."""

    def __init__(self, decoder: PackedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean loss, shape (), and the loss of each sample, shape (b,), without gradient."""
        return cast(tuple[Tensor, Tensor], self.decoder(batch[COLUMN], batch.get(MASK)))

    def loss(self, outputs: tuple[Tensor, Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss over the tokens that count."""
        return outputs[0]


def build_model(config: ModelConfig, manifest: Manifest, train: TrainConfig) -> TranslationModel:
    """Return a new model; see `build_decoder`."""
    return TranslationModel(build_decoder(config, manifest, train))


class _Sharding(FSDP2Config):
    """Composer builds the device mesh from these two properties; its FSDP2Config has no setting for them."""

    shard_ranks: int = -1  # all

    @property
    def data_parallel_shard_degree(self) -> int:
        return self.shard_ranks

    @property
    def data_parallel_replicate_degree(self) -> int | None:
        return None if self.shard_ranks == -1 else -1  # as many as are needed


def is_sharded(world_size: int) -> bool:
    """Return whether FSDP2 shards the parameters.

    On CUDA this includes a single rank, for the same precision as on many: FSDP2 keeps bf16 between layers, autocast
    alone keeps fp32. On a single CPU rank FSDP2 would only cost time.
    """
    return world_size > 1 or torch.cuda.is_available()


def sharding(train: TrainConfig) -> FSDP2Config:
    """Return the sharding: FSDP over all ranks, or hybrid (HSDP) in groups of `shard_ranks`.

    On CUDA, parameters are gathered in bf16 and gradients are reduced in fp32. Buffers, such as the rotary
    frequencies, stay fp32 (composer/distributed/fsdp2.py). Hybrid sharding needs CUDA and has not been run.
    """
    made = _Sharding()
    made.shard_ranks = train.shard_ranks or -1
    return made
