"""The callbacks of a run, in their order at every event."""

from __future__ import annotations

from dataengine.config.schema import Config
from dataengine.hardware.flops import flops_per_token
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings
from trainer.checkpoints.steps import planned_checkpoints
from trainer.checkpoints.uploads import Uploader
from trainer.model.device import device_peak
from trainer.run.folder import Run
from trainer.run.ranks import ProcessGroup
from trainer.training.callbacks.gradients import ClipGradients
from trainer.training.callbacks.ledger import SampleLedger
from trainer.training.callbacks.losses import StreamLosses
from trainer.training.callbacks.protocol import Callback
from trainer.training.callbacks.rng import RestoreRng
from trainer.training.callbacks.save import SaveCheckpoints
from trainer.training.callbacks.settings import OptimizerSettings
from trainer.training.callbacks.spikes import Watch
from trainer.training.callbacks.step_log import Speed, StepLog
from trainer.training.callbacks.stop import StopRequest, StopWhenAsked
from trainer.training.resume import Beginning
from trainer.training.spikes import SpikeDetector


def make_callbacks(
    config: Config,
    manifest: Manifest,
    run: Run,
    group: ProcessGroup,
    begin: Beginning,
    settings: Settings,
    rng: RestoreRng,
    *,
    last: int,
    uploader: Uploader | None,
    stop: StopRequest,
) -> list[Callback]:
    """Return the callbacks of this rank; `rng` gets the random states of a loaded checkpoint later."""
    ranks = group.ranks
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
        group.beside(config.train.outage_limit),
        run,
        manifest,
        config.model.model_dump(mode="json"),
        planned_checkpoints(config, manifest),
        config.train.keep_checkpoints,
        ledger=ledger,
        failed=stop.ask,
        uploader=uploader,
        init=begin.lineage,
    )
    allowed = config.train.max_skipped_steps if config.train.on_bad_step == "skip" else None
    watch = Watch(group, run.folder, manifest, ledger, losses, clip, detector, save.newest, allowed)
    return [
        OptimizerSettings(settings),
        rng,
        ledger,
        clip,
        losses,
        watch,
        *([step_log] if ranks.rank == 0 else []),
        save,
        StopWhenAsked(stop, save),
    ]
