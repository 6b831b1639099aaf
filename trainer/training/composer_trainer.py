"""Build Composer's Trainer for an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import DataSpec, Trainer
from composer.utils import dist
from torch import Tensor

from dataengine.config.schema import Config
from dataengine.mds.writer import COLUMN, MASK
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.shard_cache import ShardCache
from dataengine.storage.open import open_store
from trainer.data.dataset import ScheduledDataset, make_loader
from trainer.data.prefetch import Prefetcher
from trainer.model.composer_model import TranslationModel, is_sharded, sharding
from trainer.model.initial_weights import draw_weights
from trainer.model.optimizer import make_optimizer
from trainer.model.packed import new_decoder
from trainer.model.pretrained import load_pretrained
from trainer.run.folder import Run
from trainer.run.ranks import Collective
from trainer.training.callbacks.prefetch import Prefetch
from trainer.training.callbacks.protocol import Callback
from trainer.training.callbacks.rng import RestoreRng
from trainer.training.composer_adapter import ComposerState, Destination, adapt
from trainer.training.loggers import make_loggers
from trainer.training.restore import load_state
from trainer.training.resume import Beginning


def join_group(timeout_s: float) -> None:
    """Create torch's process group, of the backend that the Trainer expects; of one rank, too."""
    dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu", timeout=timeout_s)


def make_trainer(
    config: Config,
    manifest: Manifest,
    run: Run,
    group: Collective,
    begin: Beginning,
    callbacks: Sequence[Callback],
    rng: RestoreRng,
    *,
    last: int,
    microbatch: int,
) -> Trainer:
    """Return Composer's Trainer for an experiment, with the checkpoint loaded that the run begins with.

    `rng` is the callback that gets the random states of the checkpoint.
    """
    ranks, on_gpu = group.ranks, torch.cuda.is_available()
    cache = ShardCache(
        open_store(config.store),
        Path(config.cache),
        manifest,
        limit=config.cache_limit,
        outage_limit=config.train.outage_limit,
    )
    dataset = ScheduledDataset(manifest, cache, world_size=ranks.world_size)
    model = TranslationModel(new_decoder(config.model, manifest, config.train))
    if ranks.local_rank == 0:
        callbacks = [*callbacks, Prefetch(Prefetcher(cache, manifest, begin.step))]
    loggers = make_loggers(config, run.folder, begin.step) if ranks.rank == 0 else []
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(
            make_loader(dataset, config.train.loader_workers),
            get_num_tokens_in_batch=_count_tokens,
        ),
        optimizers=make_optimizer(model, config.train, fused=on_gpu),
        max_duration=f"{last}ba",
        device="gpu" if on_gpu else "cpu",
        precision="amp_bf16" if on_gpu else "fp32",  # Composer has no bf16 on CPU
        device_train_microbatch_size=microbatch,  # Composer's "auto" would change the order of sums
        accumulate_train_batch_on_tokens=True,  # a microbatch's share of a step is its share of the tokens that count
        parallelism_config={"fsdp": sharding(config.train)} if is_sharded(ranks.world_size) else None,
        callbacks=[adapt(callback) for callback in callbacks],
        loggers=[Destination(logger) for logger in loggers],
        seed=config.train.seed,
        run_name=config.name.replace("/", "-"),
        progress_bar=False,  # StepLog prints
    )
    if begin.checkpoint:
        state = ComposerState(trainer.state, trainer.logger)
        rng.states = load_state(state, begin.checkpoint, group, restart=begin.restart)
    elif begin.base:
        load_pretrained(model.decoder.hf, begin.base)
    else:
        draw_weights(model.decoder.hf, config.model)  # after sharding: no rank ever holds the whole model
    return trainer


def _count_tokens(batch: dict[str, Tensor]) -> dict[str, Any]:
    """Return the tokens of a batch, and those that count in the loss.

    Composer divides by the latter, over all ranks: a step without any would end in ZeroDivisionError. A billionth of a
    token vanishes in Composer's sum of float32 beside any whole one.
    """
    labels = batch[COLUMN][:, 1:].numel()
    mask = batch.get(MASK)
    return {"total": labels, "loss_generating": labels if mask is None else max(float(mask[:, 1:].sum()), 1e-9)}
