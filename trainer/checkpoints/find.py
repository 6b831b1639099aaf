"""Find the complete checkpoints of a run, local and in its bucket."""

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
HOW_TO_TRAIN = "Train first: composer -n RANKS trainer/train.py CONFIG"
_TOLD: set[tuple[str, str]] = (
    set()
)  # checkpoints passed over, with the reason, that this process has logged; it may look often


def all_checkpoints(run: Run) -> list[Checkpoint]:
    """Return the complete checkpoints of a run, local or in its bucket, oldest first.

    Passes over others with one warning each.

    On several nodes without a shared disk, no node has all files. Such a checkpoint counts once it is in the bucket.
    Raises InputError if the bucket cannot be read.
    """
    found, faults = local_checkpoints(run.folder)
    if run.store is not None:
        for step, checkpoint in bucket_checkpoints(run.store, run.folder, faults).items():
            # Of two markers the bucket's counts: a checkpoint that was not uploaded is newer than all that were.
            found[step] = replace(checkpoint, local=step in found and found[step].files == checkpoint.files)
        faults = {place: why for place, why in faults.items() if step_of_folder(place) not in found}
    for place in sorted(faults, key=lambda place: (step_of_folder(place), place)):
        if (place, faults[place]) not in _TOLD:
            log.warning("passing over %s: %s", place, faults[place])
            _TOLD.add((place, faults[place]))
    return [found[step] for step in sorted(found)]


def newest_checkpoint(run: Run, among: Collection[int] | None = None) -> Checkpoint | None:
    """Return the checkpoint to resume from; None for a run without any.

    `among`: the eligible steps, such as those that all nodes see or whose files are whole. Raises InputError if
    checkpoints were finished and none is usable: such a run must not start over by itself.
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
            f"no checkpoint under {run.url}/checkpoints is usable, though {len(finished)} were finished (the newest "
            f"is {max(finished)}). Restore them, or move {run.url} away to start at step 0."
        )
    return None


def find_checkpoint(run: Run, step: int | None) -> Checkpoint:
    """Return the complete checkpoint of a step, or the newest one. Raises InputError if there is none."""
    if step is None:
        newest = newest_checkpoint(run)
        if newest is None:
            raise InputError(f"no checkpoint under {run.url}/checkpoints. {HOW_TO_TRAIN}")
        return newest
    found = {checkpoint.step: checkpoint for checkpoint in all_checkpoints(run)}
    if step not in found:
        if checkpoint_folder(run.folder, step).is_dir() and run.store is None:
            read_checkpoint(checkpoint_folder(run.folder, step))  # raises the reason
        others = f"; it has those of {_list(found)}" if found else ", and no other complete one"
        raise InputError(f"{run.url} has no checkpoint of {step} steps{others}")
    return found[step]


def locate_checkpoint(place: str, cache: str) -> tuple[Run, Checkpoint]:
    """Return the run and checkpoint at RUN/checkpoints/step-N, or the newest at RUN. Takes a folder or a URL."""
    parts = re.fullmatch(r"(.*?)/checkpoints/step-(\d+)/?", place)
    run = open_run(parts[1] if parts else place, cache)
    return run, find_checkpoint(run, int(parts[2]) if parts else None)


def local_checkpoints(out: Path) -> tuple[dict[int, Checkpoint], dict[str, str]]:
    """Return complete checkpoints under a run folder by step, and the problems of others by place."""
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
    """Return complete checkpoints of a bucket by step, from one listing; adds problems of others to `faults`."""
    found = {}
    for step, sizes in listed_files(store).items():
        key = checkpoint_key(step)
        try:
            found[step] = read_listed_checkpoint(store, key, sizes, out)
        except (DamagedError, MissingError) as error:  # other errors concern the bucket, not the checkpoint
            faults[f"{store.url}/{key}"] = str(error)
    return found


def listed_files(store: Store) -> dict[int, dict[str, int]]:
    """List the files of each checkpoint in a bucket, complete or not: step -> name -> bytes."""
    files: dict[int, dict[str, int]] = {}
    for key, size in store.sizes("checkpoints/").items():
        _, folder, *name = key.split("/")
        step = step_of_folder(folder)
        if name and step is not None:
            files.setdefault(step, {})["/".join(name)] = size
    return files


def _list(found: Collection[int]) -> str:
    return ", ".join(map(str, sorted(found)))
