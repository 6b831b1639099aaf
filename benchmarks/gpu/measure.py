"""Train some steps with the trainer of a run, and measure them."""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.train_step import prepare  # first: sets the environment of a single rank

import torch  # isort: skip
from benchmarks.gpu.syncs import SyncCounter
from dataengine.hardware.flops import flops_per_token
from trainer.model.device import device_peak
from trainer.training.callbacks.protocol import Callback, State
from trainer.training.callbacks.save import SaveCheckpoints
from trainer.training.composer_adapter import Adapter, adapt
from trainer.training.composer_trainer import join_group
from trainer.training.session import end_workers


@dataclass(eq=False)
class Steps(Callback):
    """Measure the steps after the first `warm`; count the syncs of the first of them if there is a counter."""

    warm: int
    counter: SyncCounter | None = None
    ends: list[float] = field(default_factory=list)  # of the step before the first measured one, and of each
    losses: list[float] = field(default_factory=list)  # of all steps
    peak: int = 0  # bytes, of measured steps

    def batch_checkpoint(self, state: State) -> None:
        """The last event of a step."""
        done = state.step
        if self.counter and done == self.warm + 1:
            self.counter.stop()
        self.losses.append(state.loss)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
            if done == self.warm:
                torch.cuda.reset_peak_memory_stats()
        if done >= self.warm:
            self.ends.append(time.perf_counter())
        if self.counter and done == self.warm:
            self.counter.start()


def answer(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a run of `steps` steps; {"out_of_memory": True} if a step does not fit.

    Keys of the settings: `folder`, `experiment` (keys of its YAML), `vocab_size`, `steps`, `warm` (steps that are not
    measured) and `syncs` (whether to count those of a step).
    """
    warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
    folder = Path(settings["folder"])
    folder.mkdir(parents=True)
    steps = Steps(settings["warm"], SyncCounter() if settings["syncs"] else None)
    join_group(timeout_s=900)
    try:
        config, manifest, microbatch, trainer = prepare(
            settings["experiment"], folder, settings["steps"], settings["vocab_size"]
        )
        adapters = [one for one in trainer.state.callbacks if isinstance(one, Adapter)]
        kept = [one for one in adapters if not isinstance(one.callback, SaveCheckpoints)]  # 13 GB for 1.1B
        trainer.state.callbacks = [*kept, adapt(steps)]
        trainer.fit()
        trainer.close()
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": True, "error": str(error)}
    finally:
        end_workers()
    seconds = [end - begin for begin, end in zip(steps.ends, steps.ends[1:], strict=False)]
    rate = manifest.batch_size * manifest.seq_len / statistics.median(seconds)
    return {
        "tokens_per_second": rate,
        "flops_per_token": flops_per_token(config.model, manifest.vocab_size, manifest.seq_len),
        "device_flops": device_peak(),
        "microbatch": microbatch,
        "losses": steps.losses,
        "step_seconds": seconds,
        "peak_bytes": steps.peak,
        "syncs": dict(steps.counter.places) if steps.counter else None,
    }
