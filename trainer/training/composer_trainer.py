"""Build Composer's Trainer for an experiment."""

from __future__ import annotations

from pathlib import Path

import torch
from composer import Callback, DataSpec, Trainer

from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings
from dataengine.schedule.shard_cache import ShardCache
from dataengine.storage.open import open_store
from trainer.checkpoints.steps import planned_checkpoints
from trainer.checkpoints.uploads import Uploader
from trainer.data.dataset import ScheduledDataset, make_loader, to_tensors
from trainer.data.prefetch import Prefetcher
from trainer.model.composer_model import TranslationModel, is_sharded, sharding
from trainer.model.flops import device_peak, flops_per_token
from trainer.model.initial_weights import draw_weights
from trainer.model.optimizer import OptimizerSettings, make_optimizer
from trainer.model.packed import new_decoder
from trainer.run.folder import Run
from trainer.run.ranks import Collective
from trainer.training.callbacks.gradients import ClipGradients
from trainer.training.callbacks.ledger import SampleLedger
from trainer.training.callbacks.losses import StreamLosses
from trainer.training.callbacks.prefetch import Prefetch
from trainer.training.callbacks.rng import RestoreRng
from trainer.training.callbacks.save import SaveCheckpoints
from trainer.training.callbacks.spikes import Watch
from trainer.training.callbacks.step_log import Speed, StepLog
from trainer.training.callbacks.stop import StopRequest, StopWhenAsked
from trainer.training.loggers import make_loggers
from trainer.training.restore import load_state
from trainer.training.resume import Beginning
from trainer.training.spikes import SpikeDetector


def make_trainer(
    config: Config,
    manifest: Manifest,
    run: Run,
    group: Collective,
    begin: Beginning,
    settings: Settings,
    *,
    last: int,
    microbatch: int,
    uploader: Uploader | None,
    stop: StopRequest,
) -> Trainer:
    """Return Composer's Trainer for an experiment, with the checkpoint loaded that the run begins with."""
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
    ledger, clip = SampleLedger(manifest, ranks.rank), ClipGradients(config.train.clip_norm)
    losses = StreamLosses(manifest, ledger, stop)
    names = [stream.name for stream in manifest.streams]
    detector = SpikeDetector(names, config.train.spike_factor, config.train.spike_window)
    peak = device_peak()
    speed = Speed(
        flops_per_token(config.model, manifest.vocab_size, manifest.seq_len), peak and peak * ranks.world_size
    )
    step_log = StepLog(run.folder, manifest, ledger, clip, losses, speed, interval=config.train.log_interval, last=last)
    save = SaveCheckpoints(
        group,
        run,
        manifest,
        config.model.model_dump(mode="json"),
        planned_checkpoints(config, manifest),
        config.train.keep_checkpoints,
        ledger=ledger,
        uploader=uploader,
        init=begin.lineage,
    )
    allowed = config.train.max_skipped_steps if config.train.on_bad_step == "skip" else None
    watch = Watch(group, run.folder, manifest, ledger, losses, clip, detector, save.newest, allowed)
    callbacks: list[Callback] = [
        OptimizerSettings(settings),
        RestoreRng(),
        ledger,
        clip,
        losses,
        watch,
        *([step_log] if ranks.rank == 0 else []),
        save,
        StopWhenAsked(stop, save),
    ]
    if ranks.local_rank == 0:
        callbacks.append(Prefetch(Prefetcher(cache, manifest, begin.step)))
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(
            make_loader(dataset, config.train.loader_workers),
            batch_transforms=to_tensors,
            get_num_tokens_in_batch=lambda batch: batch["tokens"][:, 1:].numel(),
        ),
        optimizers=make_optimizer(model, config.train, fused=on_gpu),
        max_duration=f"{last}ba",
        device="gpu" if on_gpu else "cpu",
        precision="amp_bf16" if on_gpu else "fp32",  # Composer has no bf16 on CPU
        device_train_microbatch_size=microbatch,  # Composer's "auto" would change the order of sums
        parallelism_config={"fsdp": sharding(config.train)} if is_sharded(ranks.world_size) else None,
        callbacks=callbacks,
        loggers=make_loggers(config, run.folder, begin.step) if ranks.rank == 0 else [],
        seed=config.train.seed,
        run_name=config.name.replace("/", "-"),
        progress_bar=False,  # StepLog prints
    )
    if begin.checkpoint:
        load_state(trainer, begin.checkpoint, restart=begin.restart)
    else:
        draw_weights(model.decoder.hf, config.model)  # after sharding: no rank ever holds the whole model
    return trainer
