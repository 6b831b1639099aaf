"""Train in one process group: run Composer's Trainer from the run's first open step, and finish all uploads."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import warnings
from functools import partial

import torch

from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from trainer.checkpoints.uploads import Uploader, resume_uploads
from trainer.data.shared_memory import sweep
from trainer.model.microbatch import choose_microbatch
from trainer.preflight.describe import describe
from trainer.run.folder import Run
from trainer.run.ranks import GROUP_TIMEOUT_S, ProcessGroup, Ranks, cannot_meet, count_ranks
from trainer.run.signals import asked_to_stop, end_at_once
from trainer.training.callbacks.make import make_callbacks
from trainer.training.callbacks.pulse import TellWhere
from trainer.training.callbacks.rng import RestoreRng
from trainer.training.callbacks.save import SaveCheckpoints
from trainer.training.callbacks.stop import StopRequest
from trainer.training.composer_trainer import join_group, make_trainer
from trainer.training.determinism import make_deterministic
from trainer.training.pulse import Pulse
from trainer.training.resume import Beginning, find_beginning, prepare_folder

log = logging.getLogger(__name__)
_LAST_SAVE_S = 60.0  # for a checkpoint that is being written when a rank fails


def run_session(config: Config, manifest: Manifest, run: Run, ranks: Ranks, pulse: Pulse, *, last: int) -> None:
    """Train from the run's current step to step `last`, or until a signal asks to stop. Closes the pulse at the end."""
    warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch's own checkpoint writer
    warnings.filterwarnings("ignore", message="No scheduler")  # OptimizerSettings sets the rate
    end_at_once()
    if config.train.deterministic:
        make_deterministic()
    # Before streaming, which would create its own group. The timeout must exceed the time a rank may wait for a bucket;
    # the pulse ends a run that hangs long before it.
    timeout_s = config.train.outage_limit + GROUP_TIMEOUT_S
    try:
        join_group(timeout_s)
    except torch.distributed.DistError as error:
        raise cannot_meet(error) from None
    pulse.at("finding the checkpoint, and loading it", may_wait=True)
    group = ProcessGroup(ranks)
    group.run_on_all(lambda: sweep() if ranks.local_rank == 0 else None)
    begin = find_beginning(config, manifest, run, group)
    microbatch = choose_microbatch(config.model, manifest, config.train, run.folder, group)
    settings = group.run_on_rank0(lambda: prepare_folder(config, manifest, run, begin))
    uploader = None
    if run.store is not None:
        uploader = Uploader(
            run,
            keep=config.train.keep_checkpoints,
            outage_limit_s=config.train.outage_limit,
            tidy=ranks.local_rank == 0,
        )
        resume_uploads(run, uploader, begin.resume, ranks.local_rank, ranks.local_world_size)
    rng, stop = RestoreRng(ranks.rank), StopRequest()
    callbacks = make_callbacks(
        config, manifest, run, group, begin, settings, rng, last=last, uploader=uploader, stop=stop
    )
    save = next(callback for callback in callbacks if isinstance(callback, SaveCheckpoints))
    pulse.before_end = partial(save.settle, _LAST_SAVE_S)  # all ranks write it together
    callbacks = [TellWhere(pulse), *callbacks]
    trainer = make_trainer(config, manifest, run, group, begin, callbacks, rng, last=last, microbatch=microbatch)
    log.info("%s", describe(config, manifest, ranks.world_size, microbatch, settings=settings, first=begin.step))
    log.info(
        "%s: %s, %s, steps %d to %d of plan %s",
        config.name,
        count_ranks(ranks.world_size),
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
            pulse.fail(error)  # before this rank's checkpoint and uploads, which may take a while
            save.settle(_LAST_SAVE_S)
            raise
        finally:
            end_workers()
            if uploader is not None:
                uploader.wait()
    if stop.agreed:
        step = int(trainer.state.timestamp.batch)
        log.info("stopped as requested after %d steps, with a checkpoint; run the same command again to resume", step)
    else:
        log.info("trained %d steps; log %s, checkpoints %s", last, run.folder / "log.csv", f"{run.url}/checkpoints")


def end_workers() -> None:
    """Kill the loader's workers: they ignore SIGTERM, as if sent to the process group (`leave_signals_to_parent`)."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise at any point of this process
    for process in multiprocessing.active_children():
        process.kill()


def _words(begin: Beginning) -> str:
    if begin.resume:
        return f"resuming from {begin.resume.folder}"
    if begin.init:
        return f"{'restarting' if begin.restart else 'continuing'} from {begin.init.folder}"
    return f"beginning with {begin.base.place}" if begin.base else "a new run"
