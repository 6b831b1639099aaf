"""The small experiment, trained without interruption: what every other run of it is compared with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataengine.config.load import load_config
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.shard_cache import ShardCache
from dataengine.storage.open import open_store
from trainer.data.dataset import ScheduledDataset
from trainer.train import train


@dataclass(frozen=True)
class Experiment:
    config: Path
    folder: Path
    manifest: Manifest
    straight: list[dict[str, str]]  # the log of an uninterrupted run on 2 ranks, in folder / "straight"


EXACT = ("step", "stage", "loss", "loss/mono", "loss/en-zh", "loss/both", "learning_rate", "grad_norm", "digest")


def exact(log: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """What must be equal to the last bit; a log holds shortest decimals, which read back as the same floats."""
    return [tuple(row.get(column, "") for column in EXACT) for row in log]


def copy_run(experiment: Experiment, name: str) -> Path:
    out = experiment.folder / name
    shutil.copytree(experiment.folder / "straight", out)
    return out


def refusal(experiment: Experiment, out: Path, *overrides: str) -> str:
    """Start a run in this process that is refused; return the message, which a rank prints after `error: `."""
    with pytest.raises(InputError) as error:
        train(lambda: load_config(experiment.config, [f"out={out}", *overrides]))
    return str(error.value)


def open_dataset(manifest: Manifest, store: str) -> ScheduledDataset:
    cache = ShardCache(open_store(store), Path("unused"), manifest, limit=None, outage_limit=1)
    return ScheduledDataset(manifest, cache, world_size=1)
