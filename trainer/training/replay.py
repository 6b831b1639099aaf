"""Rebuild a step of a run: its samples, and their losses under the nearest weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.provenance import StreamProvenance
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import planned_settings
from dataengine.schedule.reader import PlannedSamples, PlanReader
from dataengine.storage.open import open_store
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.find import all_checkpoints, locate_checkpoint
from trainer.checkpoints.marker import Checkpoint
from trainer.checkpoints.retention import lease
from trainer.run.base import with_run_base
from trainer.run.folder import SMALL_FILES, Run, check_config, parse_json, read_run_manifest
from trainer.run.log_csv import read_log, skipped_steps
from trainer.run.settings import read_history, settings_at


@dataclass(frozen=True)
class Sample:
    """A sample of a replayed step."""

    slot: int
    """Position in the batch."""
    stream: str
    """Stream of the sample."""
    sample_id: int
    """Number of the sample over all streams."""
    loss: float | None
    """Loss with the weights of `weights_of`; null without weights, 0 if none of its tokens counts."""
    sources: list[str]
    """FILE:LINE of each document in the sample."""
    text: str
    """Text of the sample."""


@dataclass(frozen=True)
class Replay:
    """A step with its samples and losses, trained or not."""

    step: int
    """The replayed step."""
    weights_of: int | None
    """Steps that the weights were trained for; null if there is no checkpoint at or before the step."""
    loss: float | None
    """Mean loss of the batch; null without weights."""
    grad_norm: float | None
    """Gradient norm before clipping; null without weights."""
    samples: list[Sample]
    """The samples in slot order."""


def replay(run: Run, step: int | None = None, *, catch_up: bool = False) -> Replay:
    """Rebuild a step of a run. Raises InputError if the run, its streams or the step do not exist."""
    run.check_there()
    run.fetch(*SMALL_FILES)
    manifest = read_run_manifest(run.folder, run.url)
    config = with_run_base(load_config(run.folder / "config.yaml"), run)
    history = read_history(run.folder)
    check_config(config, run, manifest)
    step = newest_bad_step(run.folder) if step is None else step
    if not 0 <= step < manifest.schedule.steps:
        raise InputError(f"step {step} is not a step of this run: give 0 to {manifest.schedule.steps - 1:,}")
    reader = PlanReader.of_store(manifest, open_store(config.store))
    batch = reader.read(step)
    samples = list(describe(config, manifest, batch))
    of_run, checkpoint, reached = find_weights(run, config, step)
    if reached > step:
        return Replay(step, None, None, None, samples)
    with lease(checkpoint) if checkpoint else nullcontext():
        if checkpoint and (problems := fetch_checkpoint(of_run, checkpoint)):
            raise InputError(f"{problems[0]}. Remove this checkpoint, or restore it.")
        from trainer.training.recompute import Recomputation

        trained = Recomputation(config, manifest, checkpoint, reached)
    planned = planned_settings(config, manifest.schedule)
    if catch_up:
        log_file = run.folder / "log.csv"
        skipped = skipped_steps(read_log(log_file)) if log_file.is_file() else {}
        for number in tqdm(range(reached, step), desc="catching up", unit="step", disable=None):
            if number in skipped:
                trained.skip()
            else:
                trained.train(reader.read(number), settings_at(history, number) or planned)
        reached = step
    losses, norm = trained.measure(batch, settings_at(history, step) or planned)
    samples = [replace(sample, loss=loss) for sample, loss in zip(samples, losses, strict=True)]
    weights = None if batch.loss_mask is None or not batch.counted.any() else batch.counted
    return Replay(step, reached, float(np.average(losses, weights=weights)), norm, samples)


def find_weights(run: Run, config: Config, step: int) -> tuple[Run, Checkpoint | None, int]:
    """Find the newest weights at or before a step. Return their run, the checkpoint, and the step they were used for.

    Before the first checkpoint, these are the weights that the run began with: those of `init.checkpoint`, or others,
    which are in no checkpoint (None).
    """
    older = [checkpoint for checkpoint in all_checkpoints(run) if checkpoint.step <= step]
    if older:
        return run, older[-1], older[-1].step
    if config.init is None or config.init.checkpoint is None:
        return run, None, 0
    of_run, found = locate_checkpoint(config.init.checkpoint, config.cache)
    return of_run, found, config.first_step


def newest_bad_step(folder: Path) -> int:
    """Return the step of the newest bad-step file. Raises InputError if there is none."""
    found = sorted(folder.glob("bad-step-*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"{folder} has no bad-step file: every step of this run was trained. Name a step with --step")
    try:
        return int(parse_json(found[-1].read_bytes())["step"])  # may hold NaN, which orjson does not read
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{found[-1]} is damaged ({error}). Remove it, or name a step with --step") from None


def describe(config: Config, manifest: Manifest, batch: PlannedSamples) -> Iterator[Sample]:
    """Yield the samples of a batch with their source lines, in slot order."""
    store, tokenizer = open_store(config.store), load_tokenizer(config.tokenizer, config.eos_token)
    provenance = [StreamProvenance(store, stream.remote, manifest.seq_len + 1) for stream in manifest.streams]
    first_ids = manifest.order.first_ids.tolist()
    rows = zip(batch.tokens.tolist(), batch.sample_ids.tolist(), batch.streams.tolist(), strict=True)
    for slot, (tokens, sample_id, number) in enumerate(rows):
        sources = [
            f"{origin.path}:{origin.line}" for origin in provenance[number].origins(sample_id - first_ids[number])
        ]
        yield Sample(slot, manifest.streams[number].name, sample_id, None, sources, tokenizer.decode(tokens))
