"""The manifest: the streams of a run and its stages in integers. Its sha256 is the run's `plan_id`.

The file is canonical JSON: sorted keys, no spaces, UTF-8. `remote` paths are relative to the store, so a copy of the
store, on another disk or in a bucket, keeps the plan_id.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from dataengine.errors import InputError
from dataengine.mds.types import Stream
from dataengine.schedule.order import RunOrder
from dataengine.schedule.reader import Batches
from dataengine.schedule.slots import Schedule, Stage
from dataengine.storage.open import open_store
from dataengine.storage.paths import is_url, where_it_would_be

VERSION = 3  # with a stage that a balanced tree deals
_VERSION_OF_CHAINS = 2  # without one; such plans keep their plan_id
_VERSIONS = (_VERSION_OF_CHAINS, VERSION)
# What decides the order of samples, besides streams and stages
ORDER_KEYS = ("tokenizer_sha256", "seq_len", "batch_size", "lanes", "seed", "shuffle_block")
_SHOWN = 4  # differences, and streams of a stage, that a message lists


@dataclass(frozen=True)
class Manifest:
    """All that decides the samples of every step of a run."""

    name: str
    """Name of the experiment."""
    tokenizer_sha256: str
    """SHA-256 of the tokenizer file."""
    vocab_size: int
    """Number of token ids."""
    eos_id: int
    """Token id at the end of each document and pair."""
    seq_len: int
    """Tokens that a sample predicts. A sample holds seq_len + 1 ids."""
    batch_size: int
    """Samples of a step, over all ranks."""
    lanes: int
    """Interleaved parts of a batch. Each world size that divides it gets batches of the same mix."""
    seed: int
    """Seed of the order."""
    shuffle_block: int
    """Samples that are shuffled together."""
    streams: tuple[Stream, ...]
    """The streams in the order of their first use."""
    stages: tuple[Stage, ...]
    """The stages in integers."""
    parent: dict[str, Any] | None = None
    """plan_id and step of the run that this one forks from; null without one."""
    version: int = 0
    """Version of the format: 2 if no stage is `balanced`. It follows from the stages."""

    def __post_init__(self) -> None:
        balanced = any(stage.balanced for stage in self.stages)
        object.__setattr__(self, "version", VERSION if balanced else _VERSION_OF_CHAINS)

    @property
    def store(self) -> str:
        """Path or URL of the store that the manifest was read from; empty if unknown. Not in the file."""
        return str(vars(self).get("_store", ""))

    def batches(
        self, start: int = 0, *, rank: int = 0, world_size: int = 1, store: str | Path = "", cache: str | Path = "cache"
    ) -> Batches:
        """The batches of the run from step `start` on, exactly as the trainer reads them: a sequence of `Batch`.

        Of each batch, rank r of `world_size` ranks gets its equal part; the parts of all ranks, in order, are the whole
        batch. Element i is step `start` + i. Elements are read on access, in any order, so this is a map-style dataset
        for PyTorch's DataLoader. Shards in a bucket are downloaded to the folder `cache`. Give `store` if the manifest
        was read from elsewhere, such as a run's folder. Raises InputError for a step or rank that does not exist, and
        for a missing or damaged shard.

            for batch in manifest.batches(start=100):
                inputs, labels = batch.tokens[:, :-1], batch.tokens[:, 1:]
        """
        steps, rank, world_size = self.schedule.steps, index(rank), index(world_size)
        if not 0 <= start <= steps:
            raise InputError(f"start is {start:,}, but the schedule has {steps:,} steps: give one from 0 to {steps:,}")
        if world_size < 1 or self.batch_size % world_size or not 0 <= rank < world_size:
            raise InputError(
                f"rank {rank} of {world_size} ranks: world_size must divide the batch size, {self.batch_size:,}, and "
                "ranks count from 0"
            )
        if not (place := str(store) or self.store):
            raise InputError(
                f"the store of manifest '{self.name}' is unknown. Read the manifest from STORE/experiments, give "
                "`store`, or build it first if it is only planned"
            )
        return Batches(self, range(start, steps), rank, world_size, place, str(cache))

    @cached_property
    def schedule(self) -> Schedule:
        """Steps, stages, and how many samples each stream gives to each step."""
        return Schedule(self.batch_size, self.lanes, self.stages, fork=self.parent["step"] if self.parent else 0)

    @cached_property
    def order(self) -> RunOrder:
        """The sample ids of every step. Ids number the samples of all streams, in the order of `streams`."""
        shards = {stream.name: [shard.samples for shard in stream.shards] for stream in self.streams}
        return RunOrder.build(self.schedule, shards, seed=self.seed, shuffle_block=self.shuffle_block)

    @cached_property
    def content(self) -> bytes:
        """The content of the manifest file."""
        totals = {
            "steps": self.schedule.steps,
            "samples": self.schedule.steps * self.batch_size,
            "tokens": self.schedule.steps * self.batch_size * self.seq_len,
        }
        described = {
            "streams": [_described(stream) for stream in self.streams],
            "stages": [stage.described for stage in self.stages],
        }
        return _canonical(
            {**{field.name: getattr(self, field.name) for field in fields(self)}, **described, "totals": totals}
        )

    @cached_property
    def plan_id(self) -> str:
        """SHA-256 of the manifest file."""
        return hashlib.sha256(self.content).hexdigest()

    def differences(self, other: Manifest, step: int) -> list[str]:
        """Why the steps before `step` differ, in words for a message; only the first of many differences."""
        found = [
            f"{key} was {getattr(self, key)} and is {getattr(other, key)}"
            for key in ORDER_KEYS
            if getattr(self, key) != getattr(other, key)
        ]
        drawn, now = self.schedule.cursors(min(step, self.schedule.steps)), {s.name: s for s in other.streams}
        found += [
            f"stream '{stream.name}' has changed (its sources or settings)"
            for stream in self.streams
            if drawn.get(stream.name)
            and (stream.name not in now or now[stream.name].index_sha256 != stream.index_sha256)
        ]
        for old, new, start in zip(self.stages, other.stages, self.schedule.stage_starts, strict=False):
            lengths = [min(stage.length, step - start) for stage in (old, new)]
            if start < step and (_ratio(old.samples) != _ratio(new.samples) or lengths[0] != lengths[1]):
                found.append(f"stage '{old.name}' was {_words(old, new)} and is {_words(new, old)}")
            elif start < step and old.balanced != new.balanced:
                found.append(_another_rule(old, new))
        return _first(found) or ["the order of streams or stages has changed"]

    def prefix_sha256(self, step: int) -> str:
        """Hash of all that decides the samples of the steps before `step`. Later stages do not count.

        Quotas of the same ratio give the same slots (`Stage.tree`), so only the ratio counts, and a stage may grow.
        """
        begun: list[dict[str, Any]] = [
            {
                "mix": _ratio(stage.samples),
                "until": min(start + stage.length, step),
                **({"balanced": True} if stage.balanced else {}),
            }
            for stage, start in zip(self.stages, self.schedule.stage_starts, strict=True)
            if start < step
        ]
        drawn = {name for stage in begun for name in stage["mix"]}
        first_ids = self.order.first_ids.tolist()
        return hashlib.sha256(
            _canonical(
                {
                    **{key: getattr(self, key) for key in ORDER_KEYS},
                    "stages": begun,
                    "streams": {
                        stream.name: [stream.index_sha256, first_id]
                        for stream, first_id in zip(self.streams, first_ids, strict=False)
                        if stream.name in drawn
                    },
                    "step": step,
                }
            )
        ).hexdigest()


def read_manifest(path: Path | str, remedy: str = "Build again: dataengine build CONFIG") -> Manifest:
    """Read and check the manifest at a path or URL. Raises InputError, with a remedy, if it is missing or damaged."""
    folder, _, name = str(path).rpartition("/")
    try:
        content = open_store(folder).read(name) if is_url(str(path)) else Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"no manifest at {path}: {error.strerror}. Build the streams first: dataengine build CONFIG"
            f"{where_it_would_be(Path(path))}"
        ) from None
    try:
        version = orjson.loads(content)["version"]
        if version in _VERSIONS:
            manifest = _MANIFEST.validate_json(content, strict=True)
            vars(manifest)["_store"] = _store_of(str(path), manifest.name)
            _check(manifest)
            intact = manifest.content == content
    except ValidationError as error:
        first = error.errors()[0]
        words = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path} is damaged: {words}. {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}. {remedy}") from None
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise InputError(f"{path} has version {version}, this program reads {known}. {remedy}")
    if not intact:
        raise InputError(f"{path} has changed since it was written. {remedy}")
    return manifest


_MANIFEST = TypeAdapter(Manifest)


def _store_of(path: str, name: str) -> str:
    """The store that holds a manifest; empty if its path is not that of an experiment in a store."""
    place = path.removesuffix(f"experiments/{name}/manifest.json")
    return "" if place == path or place[-1:] not in ("", "/") else place.rstrip("/") or ("/" if place else ".")


def _check(manifest: Manifest) -> None:
    """Raise ValueError for numbers that no build writes, and for files outside of the store.

    A shard has the same name in the folder that it is downloaded to.
    """
    least = {"seq_len": 1, "batch_size": 1, "lanes": 1, "shuffle_block": 1, "vocab_size": 1, "eos_id": 0, "seed": 0}
    for key, smallest in least.items():
        if getattr(manifest, key) < smallest:
            raise ValueError(f"{key} is {getattr(manifest, key)}")
    for stream in manifest.streams:
        counts = [shard.samples for shard in stream.shards]
        if min(counts, default=1) < 1 or sum(counts) != stream.samples:
            raise ValueError(f"stream '{stream.name}' of {stream.samples} samples has shards of {sum(counts)}")
        for name in {file.basename for shard in stream.shards for file in (shard.raw, shard.stored)}:
            if "/" in name or name in ("", ".", ".."):
                raise ValueError(f"stream '{stream.name}' has a shard named {name!r}")
        if stream.remote.startswith("/") or {"", ".", ".."} & set(stream.remote.split("/")):
            raise ValueError(f"stream '{stream.name}' is at {stream.remote!r}, outside of the store")
    if unknown := set(manifest.schedule.streams) - {stream.name for stream in manifest.streams}:
        raise ValueError(f"its stages draw from {', '.join(sorted(unknown))}, which it does not describe")


def _described(stream: Stream) -> dict[str, Any]:
    """A stream in the file. Without masks it has no `loss_mask`: plans of earlier versions keep their plan_id."""
    described = asdict(stream)
    if not stream.loss_mask:
        del described["loss_mask"]
    return described


def _ratio(samples: Mapping[str, int]) -> dict[str, int]:
    divisor = math.gcd(*samples.values())
    return {name: count // divisor for name, count in samples.items() if count}


def _words(stage: Stage, other: Stage) -> str:
    """A stage in words; the streams that differ from the other stage come first."""
    counts = sorted(stage.samples.items(), key=lambda entry: other.samples.get(entry[0]) == entry[1])
    return f"{stage.length:,} steps of {', '.join(_first([f'{count:,} {name}' for name, count in counts]))}"


def _another_rule(stage: Stage, now: Stage) -> str:
    then, new = (f"a {'balanced tree' if one.balanced else 'chain'}" for one in (stage, now))
    kept = " (a build keeps chains where the store has the earlier manifest.json)" if now.balanced else ""
    return f"the slots of stage '{stage.name}' were dealt by {then} and are by {new}{kept}"


def _first(words: list[str]) -> list[str]:
    """The first few words, and the number of the others."""
    return words if len(words) <= _SHOWN + 1 else [*words[:_SHOWN], f"and {len(words) - _SHOWN:,} more"]


def _canonical(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
