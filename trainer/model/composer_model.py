"""What Composer trains, and how its parameters lie on the ranks."""

from __future__ import annotations

from typing import cast

import torch
from composer.models import ComposerModel
from composer.utils.parallelism import FSDP2Config
from torch import Tensor

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.mds.writer import COLUMN
from dataengine.schedule.manifest import Manifest
from trainer.model.packed import PackedDecoder, build_decoder


class TranslationModel(ComposerModel):
    """What Composer trains: a batch in, the mean loss and the losses of the samples out."""

    def __init__(self, decoder: PackedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), and that of each sample, shape (b,), without gradient."""
        return cast(tuple[Tensor, Tensor], self.decoder(batch[COLUMN]))

    def loss(self, outputs: tuple[Tensor, Tensor], batch: dict[str, Tensor]) -> Tensor:
        """All samples have as many targets, so the mean over samples is the mean over tokens."""
        return outputs[0]


def build_model(config: ModelConfig, manifest: Manifest, train: TrainConfig) -> TranslationModel:
    """A new model; see `build_decoder`."""
    return TranslationModel(build_decoder(config, manifest, train))


class _Sharding(FSDP2Config):
    """Composer makes the mesh of ranks from these two; its FSDP2Config has no setting for them."""

    shard_ranks: int = -1  # all

    @property
    def data_parallel_shard_degree(self) -> int:
        return self.shard_ranks

    @property
    def data_parallel_replicate_degree(self) -> int | None:
        return None if self.shard_ranks == -1 else -1  # as many as are needed


def is_sharded(world_size: int) -> bool:
    """Whether FSDP2 holds the parameters. On CUDA it does so on one rank too, so that the precision is that of many.

    There it keeps bf16 between the layers, where autocast alone would keep fp32. On one CPU it would only cost time.
    """
    return world_size > 1 or torch.cuda.is_available()


def sharding(train: TrainConfig) -> FSDP2Config:
    """How parameters lie on the ranks: FSDP over all, or hybrid (HSDP), sharded in groups of `shard_ranks`.

    On CUDA parameters are gathered as bf16 and gradients reduced as fp32; buffers, such as the frequencies of the
    rotary embedding, stay fp32 (composer/distributed/fsdp2.py). Hybrid sharding has not been run: it needs CUDA.
    """
    made = _Sharding()
    made.shard_ranks = train.shard_ranks or -1
    return made
