"""The manifest: the streams of a run and its stages in integers. Its sha256 is the run's `plan_id`.

Canonical JSON: keys sorted, no spaces, UTF-8. `remote` paths are relative to the store, so that a copied store, on
another disk or in a bucket, keeps its plan_id.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from dataengine.config import StageConfig
from dataengine.errors import InputError
from dataengine.order import RunOrder
from dataengine.schedule import Schedule, Stage, apportion
from dataengine.shards import Shard

VERSION = 1


@dataclass(frozen=True)
class Stream:
    """A built stream: `remote` is its folder in the store, `tokens` counts those in its samples."""

    name: str
    remote: str
    index_sha256: str
    samples: int
    tokens: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Manifest:
    """All that decides which sample stands where in a run."""

    name: str
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int
    seq_len: int
    batch_size: int
    lanes: int
    seed: int
    shuffle_block: int
    streams: tuple[Stream, ...]
    stages: tuple[Stage, ...]
    parent: dict[str, Any] | None = None
    version: int = VERSION

    @cached_property
    def schedule(self) -> Schedule:
        """The stages as arithmetic."""
        return Schedule(self.batch_size, self.lanes, self.stages)

    @cached_property
    def order(self) -> RunOrder:
        """The samples of every step. Sample ids number the streams' samples in the order of `streams`."""
        shards = {stream.name: [shard.samples for shard in stream.shards] for stream in self.streams}
        return RunOrder.build(self.schedule, shards, seed=self.seed, shuffle_block=self.shuffle_block)

    @cached_property
    def content(self) -> bytes:
        """The manifest file."""
        totals = {
            "steps": self.schedule.steps,
            "samples": self.schedule.steps * self.batch_size,
            "tokens": self.schedule.steps * self.batch_size * self.seq_len,
        }
        return _canonical({**asdict(self), "totals": totals})

    @cached_property
    def plan_id(self) -> str:
        """sha256 of the manifest file."""
        return hashlib.sha256(self.content).hexdigest()

    def prefix_sha256(self, step: int) -> str:
        """Hash of all that decides the samples of the steps before `step`: stages not begun by then are left out."""
        begun = [stage for stage, start in zip(self.stages, self.schedule.stage_starts, strict=True) if start < step]
        drawn = {name for stage in begun for name in stage.samples}
        return hashlib.sha256(
            _canonical(
                {
                    "tokenizer_sha256": self.tokenizer_sha256,
                    "seq_len": self.seq_len,
                    "batch_size": self.batch_size,
                    "lanes": self.lanes,
                    "seed": self.seed,
                    "shuffle_block": self.shuffle_block,
                    "stages": [asdict(stage) for stage in begun],
                    "streams": {s.name: s.index_sha256 for s in self.streams if s.name in drawn},
                    "step": step,
                }
            )
        ).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest. Raises InputError if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"no manifest at {path}: {error.strerror}. Build the streams first: dataengine build CONFIG"
        ) from None
    try:
        fields = orjson.loads(content)
        version = fields["version"]
        if version == VERSION:
            fields.pop("totals")
            fields["streams"] = tuple(
                Stream(**{**stream, "shards": tuple(Shard(**shard) for shard in stream["shards"])})
                for stream in fields["streams"]
            )
            fields["stages"] = tuple(Stage(**stage) for stage in fields["stages"])
            manifest = Manifest(**fields)
            intact = manifest.content == content
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}. Build again: dataengine build CONFIG") from None
    if version != VERSION:
        raise InputError(f"{path} has version {version}, this program reads {VERSION}. Build again with it.")
    if not intact:
        raise InputError(f"{path} is not as it was written. Build again: dataengine build CONFIG")
    return manifest


def resolve_stages(
    stages: Sequence[StageConfig],
    available: Mapping[str, int],
    passes: Mapping[str, int],
    *,
    batch_size: int,
    lanes: int,
    seq_len: int,
) -> tuple[Stage, ...]:
    """Turn the stages that a config states into integers.

    `available` gives each stream's samples; a stream may be drawn from `passes` times, each lane taking an equal
    range. Mixes are split by largest remainder in units of one sample a lane, so sums are exact. Raises InputError
    if a stream has too little, naming what is asked and what there is.
    """
    left = {name: available[name] // lanes * passes[name] for name in available}  # samples a lane
    resolved = []
    for stage in stages:
        names, weights = list(stage.mix), list(stage.mix.values())
        width = batch_size // lanes
        if stage.drain:
            steps = _drain_steps(weights, [left[name] for name in names], width)
        elif stage.tokens is not None:
            steps = stage.tokens // (batch_size * seq_len)
        else:
            steps = stage.steps or 0
        if steps < 1:
            reason = "its streams have no full batch left" if stage.drain else "its tokens fill no batch"
            raise InputError(
                f"stage '{stage.name}' has no step: {reason} of {batch_size} samples x {seq_len} tokens. "
                "Ask for more tokens, add sources, or lower batch_size."
            )
        quotas = apportion(weights, steps * width)
        for name, quota in zip(names, quotas, strict=True):
            if quota > left[name]:
                raise InputError(_too_small(stage.name, name, quota, left, available, passes, lanes, seq_len))
            left[name] -= quota
        samples = {name: quota * lanes for name, quota in zip(names, quotas, strict=True)}
        resolved.append(Stage(stage.name, steps, samples))
    return tuple(resolved)


def _drain_steps(weights: Sequence[float], left: Sequence[int], width: int) -> int:
    """The most steps of `width` samples whose split by weight fits into what is left."""
    total = math.fsum(weights)
    # Largest remainder gives more than the share less one, so a share may exceed what is left by less than one.
    steps = int(min((count + 1) * total / weight for count, weight in zip(left, weights, strict=True)) / width) + 1
    while steps and any(q > n for q, n in zip(apportion(weights, steps * width), left, strict=True)):
        steps -= 1
    return steps


def _too_small(
    stage: str,
    name: str,
    quota: int,
    left: Mapping[str, int],
    available: Mapping[str, int],
    passes: Mapping[str, int],
    lanes: int,
    seq_len: int,
) -> str:
    have, want = left[name] * lanes, quota * lanes
    used = available[name] // lanes * lanes * passes[name] - have
    needed = -(-(used + want) // max(available[name] // lanes * lanes, 1))
    return (
        f"stream '{name}' is too small: stage '{stage}' draws {want:,} samples ({want * seq_len:,} tokens), but it has "
        f"{have:,} left ({available[name]:,} samples x {passes[name]} pass(es), {used:,} drawn by earlier stages). "
        f"Add sources to streams.{name}, shorten the stage, lower its weight, or repeat the stream with "
        f"streams.{name}.passes: {needed}."
    )


def _canonical(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
