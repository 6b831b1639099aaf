"""`train.microbatch_size: auto`: the largest microbatch that fits a GPU, chosen once per run.

The memory of a step is computed without a GPU (memory.py) and compared with the smallest device of the run. The run's
folder keeps the size and the conditions it was chosen for, so that a resume sums gradients in the same order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.errors import InputError
from dataengine.hardware.cost import describe_cost
from dataengine.hardware.fitting import NO_GPU_TO_MEASURE, Work
from dataengine.hardware.gpus import Gpu
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import write_file
from dataengine.tables import size_words
from trainer.model.device import own_gpu
from trainer.model.memory import apart, step_bytes
from trainer.run.ranks import Collective

log = logging.getLogger(__name__)

_LARGEST = 300 * 10**9  # bytes; larger steps need no exact figure


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
    gpus = group.gather(own_gpu())
    if None in gpus:
        raise InputError(NO_GPU_TO_MEASURE)
    smallest = min((gpu for gpu in gpus if gpu), key=lambda gpu: gpu.memory)
    return group.run_on_rank0(lambda: find_microbatch(model, manifest, train, folder, world_size, smallest))


def find_microbatch(
    model: ModelConfig, manifest: Manifest, train: TrainConfig, folder: Path, world_size: int, gpu: Gpu
) -> int:
    """Return the size kept in the run's folder if its conditions are the same; else choose a new one and keep it.

    Raises InputError if not even one sample fits.
    """
    path, terms = folder / "microbatch.json", _terms(model, manifest, train, world_size, gpu)
    kept = _read(path)
    changes = _changes(kept, terms)
    if kept is not None and not changes:
        log.info("microbatches of %d, chosen earlier for this run on %s", kept["size"], gpu.name)
        return int(kept["size"])
    work = Work(model, manifest, train, world_size, step_bytes)
    size, needed = apart(work.largest, gpu.room)
    if size == 0:
        raise InputError(apart(work.refusal, gpu))
    write_file(path, json.dumps(asdict(_Kept(size, needed, terms)), indent=2).encode())
    log.info("microbatches of %d: a step takes %.1f of %.1f GB", size, needed / 1e9, gpu.memory / 1e9)
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


def _terms(model: ModelConfig, manifest: Manifest, train: TrainConfig, world_size: int, gpu: Gpu) -> dict[str, Any]:
    """Return the conditions that a size is valid for."""
    settings = ("activation_checkpointing", "attention", "compile", "shard_ranks")
    sizes = model.model_dump(mode="json", exclude={"init_seed"})
    return {
        "device": gpu.name,
        "device_bytes": gpu.memory,
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


def describe_needs(work: Work, gpu: Gpu | None, steps: int) -> str:
    """Return what the run needs of GPUs of a kind; without one, one line: a step's memory by microbatch size."""
    if gpu:
        return "\n".join(apart(describe_cost, work, gpu, steps))
    configured = work.train.microbatch_size
    sizes = work.sizes if configured == "auto" else [min(configured, work.sizes[-1])]
    needed = apart(_of_sizes, work, sizes)
    figures = ", ".join(f"{size_words(count)} with microbatches of {size}" for size, count in needed.items())
    return f"memory of a step on a GPU: {figures}"


def _of_sizes(work: Work, sizes: Sequence[int]) -> dict[int, int]:
    """Return the bytes of steps of ascending sizes, up to the first that exceeds every GPU."""
    needed: dict[int, int] = {}
    for size in sizes:
        needed[size] = work.bytes_of(size)
        if needed[size] > _LARGEST:
            break
    return needed
