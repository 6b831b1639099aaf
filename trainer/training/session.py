"""One process group's training: agree on where to begin, build Composer's Trainer, run it, bring everything home."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from composer import Callback, DataSpec, Logger, State, Trainer
from composer.utils import dist

from dataengine.config.schema import Config, dump_config
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings, horizon_notes
from dataengine.storage.atomic import open_store, write_file
from trainer.checkpoints.find import Checkpoint, all_checkpoints, fetch_checkpoint, newest_checkpoint, set_aside_later
from trainer.checkpoints.finite import check_finite
from trainer.checkpoints.uploads import Uploader, clear_bucket, resume_uploads
from trainer.data.dataset import ScheduledDataset, make_loader, to_tensors
from trainer.data.shard_cache import Prefetcher, ShardCache
from trainer.data.shared_memory import sweep
from trainer.model.composer_model import build_model, is_sharded, sharding
from trainer.model.flops import device_peak, flops_per_token
from trainer.model.microbatch import choose_microbatch
from trainer.model.optimizer import OptimizerSettings, make_optimizer
from trainer.preflight.check import Ranks, describe, find_init, planned_checkpoints
from trainer.run.folder import SMALL_FILES, Run, open_run
from trainer.run.ranks import cannot_meet
from trainer.run.settings import (
    SETTINGS,
    History,
    dump_history,
    history_before,
    put_aside_damaged,
    read_history,
    settings_from,
    tell_changes,
    with_settings,
)
from trainer.run.signals import asked_to_stop, end_at_once
from trainer.run.step_log import dump_rows, read_whole_rows
from trainer.training.callbacks.save import SaveCheckpoints, load_state
from trainer.training.callbacks.step_log import (
    ClipGradients,
    RestoreRng,
    SampleLedger,
    Speed,
    StepLog,
    StopRequest,
    StreamLosses,
    Watch,
)
from trainer.training.determinism import make_deterministic
from trainer.training.loggers import make_loggers
from trainer.training.pulse import Pulse
from trainer.training.spikes import SpikeDetector

log = logging.getLogger(__name__)

_GROUP_TIMEOUT_S = 900.0  # beside an outage; the pulse is faster (STUCK_S)

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


def run_session(config: Config, manifest: Manifest, run: Run, ranks: Ranks, pulse: Pulse, *, last: int) -> None:
    """Train from where the run stands to step `last`, or until a signal asks to stop. Closes the pulse then."""
    warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
    warnings.filterwarnings("ignore", message=r"\s*The current world size")  # of random states, on a resume
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch's own checkpoint writer
    warnings.filterwarnings("ignore", message="No scheduler")  # OptimizerSettings sets the rate
    end_at_once()
    if config.train.deterministic:
        make_deterministic()
    # Before streaming, which would make a group of its own. The pulse ends a run that hangs long before the timeout,
    # which must be longer than a rank may wait for a bucket.
    timeout_s = config.train.outage_limit + _GROUP_TIMEOUT_S
    try:
        dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu", timeout=timeout_s)
    except torch.distributed.DistError as error:
        raise cannot_meet(error) from None
    pulse.at("finding the checkpoint, and loading it", may_wait=True)
    if ranks.local_rank == 0:
        sweep()
    dist.barrier()
    begin = find_beginning(config, manifest, run, ranks)
    microbatch = choose_microbatch(config, manifest, run.folder, ranks.world_size)
    prepared = together(lambda: prepare_folder(config, manifest, run, begin) if ranks.rank == 0 else None)
    settings = dist.all_gather_object(prepared)[0]
    assert settings is not None  # rank 0's
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
        config, manifest, run, ranks, begin, settings, last=last, microbatch=microbatch, uploader=uploader, stop=stop
    )
    trainer.state.callbacks.insert(0, TellWhere(pulse))
    log.info("%s", describe(config, manifest, ranks.world_size, microbatch, settings=settings, first=begin.step))
    for words in horizon_notes(config, settings, manifest.schedule.steps):
        log.warning("%s", words)
    log.info(
        "%s: %d ranks, %s, steps %d to %d of plan %s",
        config.name,
        ranks.world_size,
        _words(begin),
        begin.step,
        last,
        manifest.plan_id[:12],
    )
    with asked_to_stop(stop.ask) as stopping:
        try:
            trainer.fit()
            pulse.close()
            stopping.alone = True
            trainer.close()
        except BaseException as error:
            pulse.fail(error)  # before this rank's uploads, which may take long
            raise
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
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises, wherever this process is by then
    for process in multiprocessing.active_children():
        process.kill()


def _words(begin: Beginning) -> str:
    if begin.resume:
        return f"resuming from {begin.resume.folder}"
    if begin.init:
        return f"{'restarting' if begin.restart else 'continuing'} from {begin.init.folder}"
    return "a new run"


# Where to begin.


def find_beginning(config: Config, manifest: Manifest, run: Run, ranks: Ranks) -> Beginning:
    """The newest checkpoint of the run that is whole for all ranks, or that of `init`; its files come to this node."""
    resume = agree_on_checkpoint(run, ranks)
    if resume is not None:
        return Beginning(resume, lineage=resume.init)
    if config.init is None:
        return Beginning()
    init, mode = config.init, config.init.mode
    source, found = together(lambda: find_init(config, init, manifest))
    if damage := fetch_whole(source, found, ranks):
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
        damage = fetch_whole(run, chosen, ranks)
        if not damage:
            return chosen
        for words in damage:
            log.warning("passing over %s", words)
        steps.discard(chosen.step)


def fetch_whole(run: Run, checkpoint: Checkpoint, ranks: Ranks) -> list[str]:
    """Bring a checkpoint's files to each node; what any rank found wrong with them, or with the weights in them."""
    share, shares = ranks.local_rank, ranks.local_world_size
    damage = together_all(lambda: fetch_checkpoint(run, checkpoint, share, shares))
    return damage or together_all(lambda: check_finite(checkpoint, share, shares))


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


def prepare_folder(config: Config, manifest: Manifest, run: Run, begin: Beginning) -> Settings:
    """Write the run's manifest, config and settings, and clear its bucket of what it will write anew.

    A run that continues another one also gets the log and the settings of the steps before. Returns the settings that
    it goes on with.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    if begin.resume is None and begin.init is not None and not begin.restart:
        assert begin.lineage is not None
        source = open_run(begin.lineage["checkpoint"].rpartition("/checkpoints/")[0], config.cache)
        history = take_over(source, run.folder, begin.step)
    else:  # by the manifest and the config of then, before they are replaced
        history = put_aside_damaged(run.folder) if begin.step else []
    tell_changes(history, begin.step, config, manifest.schedule)
    settings = settings_from(history, begin.step, config, manifest.schedule)
    run.publish(SETTINGS, dump_history(with_settings(history, begin.step, settings)))
    run.publish("manifest.json", manifest.content)
    run.publish("config.yaml", dump_config(config).encode())
    if run.store is not None:
        clear_bucket(run, begin.resume)
    else:
        set_aside_later(run.folder, begin.resume.step if begin.resume else 0)
    return settings


def take_over(source: Run, folder: Path, step: int) -> History:
    """Copy the log of another run's steps before `step`; return the settings of these steps."""
    source.fetch(*SMALL_FILES)
    path = source.folder / "log.csv"
    rows, problem = read_whole_rows(path) if path.is_file() else ([], "")
    if problem:
        log.warning("%s is damaged: %s. What is whole before that is taken over", path, problem)
    if rows:
        write_file(folder / "log.csv", dump_rows((row for row in rows if int(row["step"]) < step), list(rows[0])))
    else:
        log.warning("%s has no log.csv: this run's begins at step %d", source.url, step)
    history = history_before(read_history(source.folder), step)
    if not history:
        log.warning("%s has no %s: this run's begins at step %d", source.url, SETTINGS, step)
    return history


# Composer's Trainer.


class TellWhere(Callback):
    """Tell the pulse where this rank stands, before other callbacks do their part."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._trained = False  # the first step may compile, and tune itself

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """The loader waits for a bucket as long as train.outage_limit allows."""
        self._pulse.at(f"waiting for the batch of step {int(state.timestamp.batch):,}", may_wait=True)

    def batch_start(self, state: State, logger: Logger) -> None:
        """The loader has given a batch."""
        self._pulse.at(f"training step {int(state.timestamp.batch):,}", may_wait=not self._trained)

    def after_loss(self, state: State, logger: Logger) -> None:
        """A half of a microbatch is done."""
        self.batch_start(state, logger)

    def after_backward(self, state: State, logger: Logger) -> None:
        """The other half is done."""
        self.batch_start(state, logger)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """A checkpoint may be saved now, on a slow disk."""
        self._trained = True
        self._pulse.at(f"saving step {int(state.timestamp.batch):,}", may_wait=True)


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
    settings: Settings,
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
        OptimizerSettings(settings),
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
        device_train_microbatch_size=microbatch,  # Composer's "auto" changes the sums, and so the floats
        parallelism_config={"fsdp": sharding(config.train)} if is_sharded(ranks.world_size) else None,
        callbacks=callbacks,
        loggers=make_loggers(config, run.folder, begin.step),
        seed=config.train.seed,
        run_name=config.name.replace("/", "-"),
        progress_bar=False,  # StepLog prints
    )
    if begin.checkpoint:
        load_state(trainer, begin.checkpoint, restart=begin.restart)
    return trainer
