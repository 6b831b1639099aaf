"""`train.microbatch_size: auto`: the largest microbatch that fits a GPU, chosen once per run.

The memory of a step is computed without a GPU (memory.py) and compared with the smallest device of the run. The run's
folder keeps the size and the conditions it was chosen for, so that a resume sums gradients in the same order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import write_file
from dataengine.tables import size_words
from trainer.model.memory import apart, largest_fitting, step_bytes
from trainer.model.sizes import NO_GPU_TO_MEASURE, divisors
from trainer.run.ranks import Collective

log = logging.getLogger(__name__)

_FREE = 0.1  # share of the device's memory left for the CUDA context, NCCL and fragmentation
_LARGEST = 200 * 10**9  # bytes; larger steps need no exact figure


@dataclass(frozen=True)
class Device:
    """A GPU."""

    name: str
    memory: int  # bytes

    @property
    def room(self) -> int:
        """Bytes available to a step."""
        return int(self.memory * (1 - _FREE))


@dataclass(frozen=True)
class _Kept:
    """microbatch.json: the microbatch that was found for a run."""

    size: int
    """Samples that a rank computes at a time."""
    step_bytes: int
    """Memory of a step with this size, in bytes."""
    terms: dict[str, Any]
    """What the size holds for: device, number of ranks, sizes of model and batch, settings. If one changes, the size is
    computed again."""


def choose_microbatch(
    model: ModelConfig, manifest: Manifest, train: TrainConfig, folder: Path, group: Collective
) -> int:
    """Return the microbatch size; the choice of `auto` is kept in the run's folder. All ranks call this.

    Raises InputError on all ranks for `auto` without a GPU, or if not even one sample fits.
    """
    configured, world_size = train.microbatch_size, group.ranks.world_size
    if configured != "auto":
        return min(configured, manifest.batch_size // world_size)
    devices = group.gather(_own_device())
    if None in devices:
        raise InputError(NO_GPU_TO_MEASURE)
    smallest = min((device for device in devices if device), key=lambda device: device.memory)
    return group.run_on_rank0(lambda: find_microbatch(model, manifest, train, folder, world_size, smallest))


def _own_device() -> Device | None:
    if not torch.cuda.is_available():
        return None
    return Device(torch.cuda.get_device_name(), torch.cuda.get_device_properties().total_memory)


def find_microbatch(
    model: ModelConfig, manifest: Manifest, train: TrainConfig, folder: Path, world_size: int, device: Device
) -> int:
    """Return the size kept in the run's folder if its conditions are the same; else choose a new one and keep it.

    Raises InputError if not even one sample fits.
    """
    path, terms = folder / "microbatch.json", _terms(model, manifest, train, world_size, device)
    kept = _read(path)
    changes = _changes(kept, terms)
    if kept is not None and not changes:
        log.info("microbatches of %d, chosen earlier for this run on %s", kept["size"], device.name)
        return int(kept["size"])
    size, needed = apart(largest_microbatch, model, manifest, train, world_size, device.room)
    if size == 0:
        raise InputError(
            f"not even one sample fits: a step with one sample takes {needed / 1e9:.1f} GB, and {device.name} has "
            f"{device.memory / 1e9:.1f} GB, of which a tenth stays free. "
            + apart(_advise, model, manifest, train, world_size, device.room)
        )
    write_file(path, json.dumps(asdict(_Kept(size, needed, terms)), indent=2).encode())
    log.info("microbatches of %d: a step takes %.1f of %.1f GB", size, needed / 1e9, device.memory / 1e9)
    if kept is not None:
        log.warning("conditions of microbatch.json changed (%s): chose the microbatch size again", "; ".join(changes))
        if kept["size"] != size:
            log.warning(
                "microbatches have %d samples from here on, before %s: gradients are summed in another order, so "
                "losses differ in their last bits from those of an unchanged run",
                size,
                kept["size"],
            )
    return size


def _terms(
    model: ModelConfig, manifest: Manifest, train: TrainConfig, world_size: int, device: Device
) -> dict[str, Any]:
    """Return the conditions that a size is valid for."""
    settings = ("activation_checkpointing", "attention", "compile", "shard_ranks")
    sizes = model.model_dump(mode="json", exclude={"init_seed"})
    return {
        "device": device.name,
        "device_bytes": device.memory,
        "ranks": world_size,
        "batch_size": manifest.batch_size,
        "seq_len": manifest.seq_len,
        "vocab_size": manifest.vocab_size,
        **{f"model.{key}": value for key, value in sizes.items()},
        **{f"train.{key}": getattr(train, key) for key in settings},
        "torch": torch.__version__,
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Read microbatch.json; return None if it is missing or unreadable."""
    try:
        kept = json.loads(path.read_bytes())
        return {"size": int(kept["size"]), "terms": dict(kept.get("terms", {}))}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s) and is written again", path, error)
        return None


def _changes(kept: Mapping[str, Any] | None, terms: Mapping[str, Any]) -> list[str]:
    if kept is None:
        return []
    then = kept["terms"]
    if not then:
        return ["an earlier version wrote it, without saying what for"]
    return [f"{key} was {then.get(key)} and is {now}" for key, now in terms.items() if then.get(key) != now]


def largest_microbatch(
    model: ModelConfig, manifest: Manifest, train: TrainConfig, world_size: int, room: int
) -> tuple[int, int]:
    """Return the largest divisor of a rank's samples that fits, and its bytes; 0 and the bytes of 1 if none fits."""

    @cache
    def needed(size: int) -> int:
        return planned_bytes(model, manifest, train, world_size, size)

    size = largest_fitting(divisors(manifest.batch_size // world_size), needed, room)
    return size, needed(size or 1)


def planned_bytes(model: ModelConfig, manifest: Manifest, train: TrainConfig, world_size: int, size: int) -> int:
    """Return the bytes of a step on a GPU with microbatches of a size."""
    ranks, recompute = train.shard_ranks or world_size, train.activation_checkpointing
    return step_bytes(model, manifest, size, shard_ranks=ranks, recompute=recompute)


def _advise(model: ModelConfig, manifest: Manifest, train: TrainConfig, world_size: int, room: int) -> str:
    """Return advice: changes that would each make one sample fit."""

    def fits(ranks: int, *, recompute: bool) -> bool:
        return step_bytes(model, manifest, 1, shard_ranks=ranks, recompute=recompute) <= room

    ranks, recompute = train.shard_ranks or world_size, train.activation_checkpointing
    ways = []
    if not recompute and fits(ranks, recompute=True):
        ways.append("set train.activation_checkpointing=true")
    groups = [n for n in divisors(world_size) if n > ranks] if train.shard_ranks else []
    more = [n for n in divisors(manifest.batch_size) if n > world_size] if not train.shard_ranks else []
    if enough := next((n for n in groups or more if fits(n, recompute=recompute)), None):
        ways.append(f"set train.shard_ranks={enough}" if groups else f"start {enough} ranks")
    if not ways:
        return "Neither more ranks nor train.activation_checkpointing would help: use a smaller model or a larger GPU."
    return f"To make it fit, {', or '.join(ways)}."


def describe_memory(model: ModelConfig, manifest: Manifest, train: TrainConfig, world_size: int) -> str:
    """Return one line: the memory of a step by microbatch size, and the memory of this machine's GPU."""
    configured, of_rank = train.microbatch_size, manifest.batch_size // world_size
    sizes = divisors(of_rank) if configured == "auto" else [min(configured, of_rank)]
    needed = apart(_of_sizes, model, manifest, train, world_size, sizes)
    figures = ", ".join(f"{size_words(count)} with microbatches of {size}" for size, count in needed.items())
    device = _own_device()
    here = f"; {device.name} has {size_words(device.memory)}, of which a tenth stays free" if device else ""
    return f"memory of a step on a GPU: {figures}{here}"


def _of_sizes(
    model: ModelConfig, manifest: Manifest, train: TrainConfig, world_size: int, sizes: Sequence[int]
) -> dict[int, int]:
    """Return the bytes of steps of ascending sizes, up to the first that exceeds every GPU."""
    needed: dict[int, int] = {}
    for size in sizes:
        needed[size] = planned_bytes(model, manifest, train, world_size, size)
        if needed[size] > _LARGEST:
            break
    return needed
