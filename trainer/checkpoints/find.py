"""Find the complete checkpoints of a run, on this disk and in its bucket."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from dataengine.errors import DamagedError, InputError, MissingError
from dataengine.storage.store import Store
from trainer.checkpoints.marker import (
    MARKER,
    Checkpoint,
    checkpoint_folder,
    checkpoint_key,
    read_checkpoint,
    read_listed_checkpoint,
    step_of_folder,
)
from trainer.run.folder import Run, open_run

log = logging.getLogger(__name__)
HOW_TO_TRAIN = "Train first: composer trainer/train.py CONFIG"
_TOLD: set[tuple[str, str]] = set()  # what this process has passed over, and why; it may look often


def all_checkpoints(run: Run) -> list[Checkpoint]:
    """The complete checkpoints of a run, here or in its bucket, oldest first; others are passed over with one warning.

    Of a run on several nodes without a shared disk, no node has all files; such a checkpoint counts once it is in the
    bucket. Raises InputError if the bucket cannot be read.
    """
    found, faults = local_checkpoints(run.folder)
    if run.store is not None:
        for step, checkpoint in bucket_checkpoints(run.store, run.folder, faults).items():
            # The bucket's marker counts where there are two: what was not uploaded is later than all that was.
            found[step] = replace(checkpoint, local=step in found and found[step].files == checkpoint.files)
        faults = {place: why for place, why in faults.items() if step_of_folder(place) not in found}
    for place in sorted(faults, key=lambda place: (step_of_folder(place), place)):
        if (place, faults[place]) not in _TOLD:
            log.warning("passing over %s: %s", place, faults[place])
            _TOLD.add((place, faults[place]))
    return [found[step] for step in sorted(found)]


def newest_checkpoint(run: Run, among: Collection[int] | None = None) -> Checkpoint | None:
    """The checkpoint to resume from, or None for a run that has none yet.

    `among` names the steps that may be chosen: those that other nodes see as well, or whose files were found whole.
    Raises InputError if checkpoints were finished and none is usable: such a run must not start at 0 unasked.
    """
    usable = [found for found in all_checkpoints(run) if among is None or found.step in among]
    if usable:
        return usable[-1]
    finished = {path.parent.name for path in run.folder.glob(f"checkpoints/*/{MARKER}")}
    if run.store is not None:
        keys = [key.split("/") for key in run.store.sizes("checkpoints/")]
        finished |= {key[1] for key in keys if key[2:] == [MARKER]}
    if finished:
        raise InputError(
            f"no checkpoint under {run.url}/checkpoints is usable, though {len(finished)} were finished once (the "
            f"newest is {max(finished)}). Restore them, or move {run.url} away to start at step 0."
        )
    return None


def find_checkpoint(run: Run, step: int | None) -> Checkpoint:
    """The complete checkpoint of a step, or the newest one. Raises InputError if there is none."""
    if step is None:
        newest = newest_checkpoint(run)
        if newest is None:
            raise InputError(f"no checkpoint under {run.url}/checkpoints. {HOW_TO_TRAIN}")
        return newest
    found = {checkpoint.step: checkpoint for checkpoint in all_checkpoints(run)}
    if step not in found:
        if checkpoint_folder(run.folder, step).is_dir() and run.store is None:
            read_checkpoint(checkpoint_folder(run.folder, step))  # says what is wrong
        others = f"; it has those of {_list(found)}" if found else ", and no other that is whole"
        raise InputError(f"{run.url} has no checkpoint of {step} steps{others}")
    return found[step]


def locate_checkpoint(place: str, cache: str) -> tuple[Run, Checkpoint]:
    """The run and checkpoint that RUN/checkpoints/step-N names, or RUN for its newest; a folder or a URL."""
    parts = re.fullmatch(r"(.*?)/checkpoints/step-(\d+)/?", place)
    run = open_run(parts[1] if parts else place, cache)
    return run, find_checkpoint(run, int(parts[2]) if parts else None)


def local_checkpoints(out: Path) -> tuple[dict[int, Checkpoint], dict[str, str]]:
    """Complete checkpoints below a run folder by step, and what is wrong with the others by place."""
    found, faults = {}, {}
    for folder in sorted((out / "checkpoints").glob("step-*")):
        if step_of_folder(folder.name) is None:
            continue
        try:
            checkpoint = read_checkpoint(folder)
            found[checkpoint.step] = checkpoint
        except (DamagedError, MissingError) as error:
            faults[str(folder)] = str(error).removeprefix(f"{folder}: ")
    return found, faults


def bucket_checkpoints(store: Store, out: Path, faults: dict[str, str]) -> dict[int, Checkpoint]:
    """The same of a bucket, by one listing; adds to `faults`."""
    found = {}
    for step, sizes in listed_files(store).items():
        key = checkpoint_key(step)
        try:
            found[step] = read_listed_checkpoint(store, key, sizes, out)
        except (DamagedError, MissingError) as error:  # others are of the bucket, not of the checkpoint
            faults[f"{store.url}/{key}"] = str(error)
    return found


def listed_files(store: Store) -> dict[int, dict[str, int]]:
    """The files in the folder of each checkpoint of a bucket, complete or not: step -> name -> bytes."""
    files: dict[int, dict[str, int]] = {}
    for key, size in store.sizes("checkpoints/").items():
        _, folder, *name = key.split("/")
        step = step_of_folder(folder)
        if name and step is not None:
            files.setdefault(step, {})["/".join(name)] = size
    return files


def _list(found: Collection[int]) -> str:
    return ", ".join(map(str, sorted(found)))
