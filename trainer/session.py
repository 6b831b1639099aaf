"""One process group's training: agree on where to begin, build Composer's Trainer, run it, bring everything home."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from composer import Callback, DataSpec, Logger, State, Trainer
from composer.utils import dist

from dataengine.config import Config, dump_config
from dataengine.errors import InputError
from dataengine.manifest import Manifest
from dataengine.storage import open_store, write_file
from trainer.cache import Prefetcher, ShardCache
from trainer.callbacks import (
    ClipGradients,
    RestoreRng,
    SampleLedger,
    Speed,
    StepLog,
    StopRequest,
    StreamLosses,
    Watch,
)
from trainer.checkpoints import (
    Checkpoint,
    all_checkpoints,
    check_model,
    fetch_checkpoint,
    locate_checkpoint,
    newest_checkpoint,
    set_aside_later,
)
from trainer.data import ScheduledDataset, make_loader, to_tensors
from trainer.finite import check_finite
from trainer.loggers import make_loggers
from trainer.microbatch import choose_microbatch
from trainer.model import build_model, sharding
from trainer.optimizer import OptimizerSettings, make_optimizer
from trainer.preflight import Problem, Ranks, describe, planned_checkpoints, raise_problems
from trainer.runs import Run
from trainer.saving import SaveCheckpoints, load_state
from trainer.schedulers import restart_steps
from trainer.settings import SETTINGS, dump_history, put_aside_damaged, with_settings
from trainer.shared_memory import sweep
from trainer.signals import asked_to_stop, end_at_once
from trainer.speed import device_peak, flops_per_token
from trainer.uploads import Uploader, clear_bucket, resume_uploads
from trainer.watch import SpikeDetector

log = logging.getLogger(__name__)

_GROUP_TIMEOUT_S = 600.0  # for which a rank may be late, beside an outage

T = TypeVar("T")


@dataclass(frozen=True)
class Beginning:
    """Where a run begins: at the checkpoint of `resume`, or of another run (`init`), or with new weights (neither)."""

    resume: Checkpoint | None = None
    init: Checkpoint | None = None
    restart: bool = False  # of `init`: take its weights and moments, and begin at step 0
    lineage: dict[str, Any] | None = None  # of `init`, also of a run that is resumed

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What is loaded."""
        return self.resume or self.init

    @property
    def step(self) -> int:
        """The first step that is trained."""
        return self.checkpoint.step if self.checkpoint and not self.restart else 0


def run_session(
    config: Config, manifest: Manifest, run: Run, ranks: Ranks, problems: Sequence[Problem], *, last: int
) -> None:
    """Train from where the run stands to step `last`, or until a signal asks to stop.

    `problems` are what this rank's preflight found; those of all ranks are raised together.
    """
    warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
    warnings.filterwarnings("ignore", message=r"\s*The current world size")  # of random states, on a resume
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch's own checkpoint writer
    warnings.filterwarnings("ignore", message="No scheduler")  # OptimizerSettings sets the rate
    end_at_once()
    # Before streaming, which would make a group of its own. While a rank waits for a bucket the others wait for it.
    timeout_s = config.train.outage_limit + _GROUP_TIMEOUT_S
    dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu", timeout=timeout_s)
    raise_problems(problem for found in dist.all_gather_object(list(problems)) for problem in found)
    if ranks.local_rank == 0:
        sweep()
    dist.barrier()
    begin = find_beginning(config, run, ranks)
    microbatch = choose_microbatch(config, manifest, run.folder, ranks.world_size)
    together(lambda: prepare_folder(config, manifest, run, begin) if ranks.rank == 0 else None)
    uploader = None
    if run.store is not None:
        uploader = Uploader(
            run,
            keep=config.train.keep_checkpoints,
            outage_limit_s=config.train.outage_limit,
            tidy=ranks.local_rank == 0,
        )
        resume_uploads(run, uploader, begin.resume, ranks.local_rank, ranks.local_world_size)
    stop = StopRequest()
    trainer = make_trainer(
        config, manifest, run, ranks, begin, last=last, microbatch=microbatch, uploader=uploader, stop=stop
    )
    log.info("%s", describe(config, manifest, ranks.world_size, microbatch))
    log.info(
        "%s: %d ranks, %s, steps %d to %d of plan %s",
        config.name,
        ranks.world_size,
        _words(begin),
        begin.step,
        last,
        manifest.plan_id[:12],
    )
    try:
        with asked_to_stop(stop.ask):
            trainer.fit()
        trainer.close()
    finally:
        end_workers()
        if uploader is not None:
            uploader.wait()
    if stop.agreed:
        step = int(trainer.state.timestamp.batch)
        log.info("stopped as asked after %d steps, with a checkpoint; the same command goes on", step)
    else:
        log.info("trained %d steps; log %s, checkpoints %s", last, run.folder / "log.csv", f"{run.url}/checkpoints")


def end_workers() -> None:
    """End the loader's workers, which take SIGTERM for one to the whole process group (signals.py)."""
    for process in multiprocessing.active_children():
        process.kill()


def _words(begin: Beginning) -> str:
    if begin.resume:
        return f"resuming from {begin.resume.folder}"
    if begin.init:
        return f"{'restarting' if begin.restart else 'continuing'} from {begin.init.folder}"
    return "a new run"


# Where to begin.


def find_beginning(config: Config, run: Run, ranks: Ranks) -> Beginning:
    """The newest checkpoint of the run that is whole for all ranks, or that of `init`; its files come to this node."""
    resume = agree_on_checkpoint(run, ranks)
    if resume is not None:
        return Beginning(resume, lineage=resume.init)
    if config.init is None:
        return Beginning()
    place, mode, cache = config.init.checkpoint, config.init.mode, config.cache
    source, found = together(lambda: locate_checkpoint(place, cache))
    check_model(config.model, found)
    damage = together_all(lambda: fetch_checkpoint(source, found, ranks.local_rank, ranks.local_world_size))
    damage = damage or together_all(lambda: check_finite(found, ranks.local_rank, ranks.local_world_size))
    if damage:
        raise InputError(f"init.checkpoint cannot be used: {'; '.join(damage)}. Name another one.")
    lineage = {
        "checkpoint": f"{source.url}/checkpoints/{found.folder.name}",
        "mode": mode,
        "step": found.step,
        "plan_id": found.plan_id,
        "digest": found.digest,
        "init": found.init,  # what that run began with
    }
    return Beginning(init=found, restart=mode == "restart", lineage=lineage)


def agree_on_checkpoint(run: Run, ranks: Ranks) -> Checkpoint | None:
    """The newest checkpoint that all ranks see, whole to the last bit and finite; None for a new run."""
    seen = dist.all_gather_object({found.step for found in all_checkpoints(run)})
    steps = set.intersection(*seen)
    while True:
        chosen = together(lambda: newest_checkpoint(run, among=steps))
        if chosen is None:
            return None
        damage = together_all(lambda: fetch_checkpoint(run, chosen, ranks.local_rank, ranks.local_world_size))  # noqa: B023
        damage = damage or together_all(lambda: check_finite(chosen, ranks.local_rank, ranks.local_world_size))  # noqa: B023
        if not damage:
            return chosen
        for words in damage:
            log.warning("passing over %s", words)
        steps.discard(chosen.step)


def together(action: Callable[[], T]) -> T:
    """Do something on every rank; if it fails on one, raise its InputError on all, so that none waits for another."""
    result, error = _try(action)
    errors = [words for words in dist.all_gather_object(error) if words]
    if errors:
        raise InputError(errors[0])
    assert not isinstance(result, _Failed)
    return result


def together_all(action: Callable[[], list[str]]) -> list[str]:
    """The same, and what all ranks return, once each."""
    return list(dict.fromkeys(words for part in dist.all_gather_object(together(action)) for words in part))


class _Failed:
    """Stands for the result of what failed."""


def _try(action: Callable[[], T]) -> tuple[T | _Failed, str | None]:
    try:
        return action(), None
    except InputError as error:
        return _Failed(), str(error)


def prepare_folder(config: Config, manifest: Manifest, run: Run, begin: Beginning) -> None:
    """Write the run's manifest, config and settings, and clear its bucket of what it will write anew.

    A run that continues another one also gets the log and the settings of those steps.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    run.publish("manifest.json", manifest.content)
    if begin.resume is None and begin.init is not None and not begin.restart:
        assert begin.lineage is not None
        source = open_store(begin.lineage["checkpoint"].rpartition("/checkpoints/")[0])
        for name in ("log.csv", SETTINGS):
            try:
                write_file(run.folder / name, source.read(name))
            except FileNotFoundError:
                log.warning("%s has no %s: this run's begins at step %d", source.url, name, begin.step)
    history = put_aside_damaged(run.folder) if begin.step else []
    run.publish(SETTINGS, dump_history(with_settings(history, begin.step, config.train)))
    run.publish("config.yaml", dump_config(config).encode())
    if run.store is not None:
        clear_bucket(run, begin.resume)
    else:
        set_aside_later(run.folder, begin.resume.step if begin.resume else 0)


# Composer's Trainer.


class Prefetch(Callback):
    """Tell the prefetcher of the node where the run stands."""

    def __init__(self, prefetcher: Prefetcher) -> None:
        self._prefetcher = prefetcher

    def batch_start(self, state: State, logger: Logger) -> None:
        """Shards of the steps from here on are wanted."""
        self._prefetcher.advance(int(state.timestamp.batch))

    def close(self, state: State, logger: Logger) -> None:
        """End its thread."""
        self._prefetcher.close()


class StopWhenAsked(Callback):
    """Once all ranks know that one was asked to stop: save, and end the training after this step."""

    def __init__(self, stop: StopRequest, save: SaveCheckpoints) -> None:
        self._stop, self._save = stop, save

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After all of a step's events."""
        if self._stop.agreed:
            self._save.save_now(state)
            state.stop_training()


def make_trainer(
    config: Config,
    manifest: Manifest,
    run: Run,
    ranks: Ranks,
    begin: Beginning,
    *,
    last: int,
    microbatch: int,
    uploader: Uploader | None,
    stop: StopRequest,
) -> Trainer:
    """Composer's Trainer for an experiment, loaded from the checkpoint that the run begins with."""
    on_gpu = torch.cuda.is_available()
    cache = ShardCache(
        open_store(config.store),
        Path(config.cache),
        manifest,
        limit=config.cache_limit,
        outage_limit=config.train.outage_limit,
    )
    dataset = ScheduledDataset(manifest, cache, world_size=ranks.world_size)
    model = build_model(config.model, manifest, config.train)
    restarts = restart_steps(manifest.schedule, {stage.name for stage in config.stages if stage.restart_learning_rate})
    settings = OptimizerSettings(config.train, restarts)
    ledger, clip = SampleLedger(manifest), ClipGradients(config.train.clip_norm)
    losses = StreamLosses(manifest, ledger, stop)
    names = [stream.name for stream in manifest.streams]
    detector = SpikeDetector(names, config.train.spike_factor, config.train.spike_window)
    speed = Speed(flops_per_token(config.model, manifest.vocab_size, manifest.seq_len), device_peak())
    step_log = StepLog(run.folder, manifest, ledger, clip, losses, speed, interval=config.train.log_interval, last=last)
    save = SaveCheckpoints(
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
    watch = Watch(run.folder, manifest, ledger, losses, clip, detector, save.newest, allowed)
    callbacks: list[Callback] = [
        settings,
        RestoreRng(),
        ledger,
        clip,
        losses,
        watch,
        step_log,
        save,
        StopWhenAsked(stop, save),
    ]
    if ranks.local_rank == 0:
        callbacks.append(Prefetch(Prefetcher(cache, manifest)))
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
        device_train_microbatch_size=microbatch,  # Composer's "auto" changes the sums, and so the floats
        # FSDP2, which also runs on CPU; on one rank it would only cost time.
        parallelism_config={"fsdp": sharding(config.train)} if ranks.world_size > 1 else None,
        callbacks=callbacks,
        loggers=make_loggers(config, run.folder, begin.step),
        seed=config.train.seed,
        run_name=config.name.replace("/", "-"),
        progress_bar=False,  # StepLog prints
    )
    if begin.checkpoint:
        load_state(trainer, begin.checkpoint, restart=begin.restart)
    return trainer
