"""Save sharded checkpoints that are complete or ignored, and find the newest complete one.

OUT/checkpoints/step-00000040/   __0_0.distcp, __1_0.distcp, .metadata, and, last of all, COMPLETE.json
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dataengine.config import ModelConfig
from dataengine.errors import InputError
from dataengine.schedule import Schedule
from dataengine.storage import write_file

log = logging.getLogger(__name__)

MARKER = "COMPLETE.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: what its marker says, and its folder."""

    step: int  # steps trained; the next one has this number
    plan_id: str
    world_size: int
    model: dict[str, Any]  # the sizes that its weights have
    files: dict[str, int]  # name -> bytes
    folder: Path


def checkpoint_folder(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return out / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(schedule: Schedule, intervals: Mapping[str, int], default: int, last: int) -> list[int]:
    """Steps after which to save: each stage's interval counted from its start, each stage's end, and the last step.

    `intervals` maps stage names; pieces of one stage in a row count as one.
    """
    steps: set[int] = set()
    start = 0
    for name, pieces in groupby(schedule.stages, key=lambda stage: stage.name):
        end = start + sum(piece.length for piece in pieces)
        steps.update(range(start, end, intervals.get(name, default)))
        steps.add(end)
        start = end
    return sorted({step for step in steps if 0 < step < last} | {last})


def mark_complete(folder: Path, step: int, plan_id: str, world_size: int, model: dict[str, Any]) -> None:
    """Write the marker, once all files of a checkpoint are there."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MARKER}
    fields = asdict(Checkpoint(step, plan_id, world_size, model, files, folder))
    del fields["folder"]
    write_file(folder / MARKER, json.dumps(fields, indent=2).encode())


def complete_checkpoints(out: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first; those that are not are passed over with a warning."""
    found = []
    for folder in sorted((out / "checkpoints").glob("step-*")):
        if not re.fullmatch(r"step-\d{8,}", folder.name):
            continue
        try:
            found.append(read_checkpoint(folder))
        except InputError as error:
            log.warning("passing over %s", error)
    return found


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's marker and check its files. Raises InputError if it is not complete."""
    try:
        fields = json.loads((folder / MARKER).read_bytes())
        checkpoint = Checkpoint(**fields, folder=folder)
    except OSError:
        raise InputError(f"{folder}: the checkpoint was not finished (no {MARKER})") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder}: {MARKER} is damaged: {error}") from None
    for name, size in checkpoint.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise InputError(f"{folder}: {name} has {found} bytes, not {size}: the checkpoint is damaged")
    return checkpoint


def check_model(model: ModelConfig, checkpoint: Checkpoint) -> None:
    """Raise InputError unless a checkpoint's weights have the sizes that the config states."""
    sizes = model.model_dump(mode="json")
    differing = [
        f"{key} was {checkpoint.model.get(key)} and is {sizes[key]}"
        for key in sizes
        if checkpoint.model.get(key) != sizes[key]
    ]
    if differing:
        raise InputError(
            f"{checkpoint.folder} holds another model: {', '.join(differing)}. "
            "Restore these settings under `model`, or give this run another `out`."
        )


def newest_checkpoint(out: Path) -> Checkpoint | None:
    """The checkpoint to resume from, or None for a run that has none yet.

    Raises InputError if there were complete ones and all are damaged: such a run must not start at 0 unasked.
    """
    complete = complete_checkpoints(out)
    if complete:
        return complete[-1]
    damaged = sorted((out / "checkpoints").glob(f"step-*/{MARKER}"))
    if damaged:
        raise InputError(
            f"no checkpoint under {out / 'checkpoints'} is usable, though {len(damaged)} were finished once (the "
            f"newest is {damaged[-1].parent.name}). Restore them, or move {out} away to start at step 0."
        )
    return None


def remove_old(out: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` complete checkpoints; None keeps all."""
    complete = complete_checkpoints(out)
    for checkpoint in complete[: -keep if keep else 0]:
        (checkpoint.folder / MARKER).unlink()  # first, so that a half-removed one is never taken for whole
        shutil.rmtree(checkpoint.folder)
