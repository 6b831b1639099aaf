"""Sharded checkpoints that are complete or ignored, here and in a bucket, and the newest complete one.

OUT/checkpoints/step-00000040/   __0_0.distcp, __1_0.distcp, .metadata, and, last of all, COMPLETE.json

Needs neither torch nor Composer.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import orjson
import xxhash
from pydantic import TypeAdapter, ValidationError

from dataengine.config.schema import ModelConfig
from dataengine.errors import InputError
from dataengine.schedule.slots import Schedule
from dataengine.schedule.stages import stage_rows
from dataengine.storage import s3_client
from dataengine.storage.atomic import Store, write_file
from trainer.run.folder import Run, lock_folder, open_run

log = logging.getLogger(__name__)

MARKER = "COMPLETE.json"
HOW_TO_TRAIN = "Train first: composer trainer/train.py CONFIG"
_FETCHING = ".fetching-"
_STALE_S = 3600  # a download that wrote nothing for so long is of a dead process
_BLOCK = 32 << 20  # bytes that are read at a time
_ATTEMPTS = 4  # downloads of a file that arrives damaged, or rounds of requests to a store that fails
_TOLD: set[tuple[str, str]] = set()  # what this process has passed over, and why; it may look often


class CheckpointError(InputError):
    """One checkpoint is gone or damaged; others of the run may be whole."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What COMPLETE.json says of a checkpoint. Those of older versions have no hashes, init, digest and finite."""

    step: int  # steps trained; the next one has this number
    plan_id: str
    world_size: int
    model: dict[str, Any]  # the sizes that its weights have
    files: dict[str, int]  # name -> bytes
    hashes: dict[str, str] = field(default_factory=dict)  # name -> xxh64, hexadecimal
    init: dict[str, Any] | None = None  # the checkpoint of another run that this run began with
    digest: str = ""  # of all samples trained on (callbacks.SampleLedger)
    finite: bool = False  # all weights and moments were seen to be finite before they were saved


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Marker):
    """A complete checkpoint: what its marker says, and where its files are."""

    folder: Path  # on this disk: all files if `local`, else where they come to by `fetch_checkpoint`
    local: bool = True
    key: str = ""  # of its folder in the run's bucket; "" if it is not there

    @property
    def place(self) -> str:
        """Its folder, for messages."""
        return str(self.folder) if self.local else f"step {self.step:,} in the bucket ({self.key})"

    @property
    def identity(self) -> str:
        """SHA-256 of what it holds: equal for a copy of it, another one once the step was trained anew."""
        content = orjson.dumps([self.plan_id, self.step, self.hashes or self.files])
        return hashlib.sha256(content).hexdigest()


_READER = TypeAdapter(Marker)


def checkpoint_folder(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return out / checkpoint_key(step)


def checkpoint_key(step: int) -> str:
    """The same in a bucket, below the run's URL."""
    return f"checkpoints/step-{step:08d}"


def checkpoint_steps(schedule: Schedule, intervals: Mapping[str, int], default: int, last: int) -> list[int]:
    """Steps after which to save: each stage's interval counted from its start, each stage's end, and the last step.

    `intervals` maps names of stages that are not a parent's; pieces of one stage in a row count as one.
    """
    steps: set[int] = set()
    for row in stage_rows(schedule):
        end = row.start + row.steps
        interval = intervals.get(row.name, default) if row.start >= schedule.fork else default
        steps.update(range(row.start, end, interval), [end])
    return sorted({step for step in steps if 0 < step < last} | {last})


def mark_complete(folder: Path, marker: Marker) -> bytes:
    """Write the marker, once all files of a checkpoint are there; return its content."""
    content = json.dumps(asdict(marker), indent=2).encode()
    write_file(folder / MARKER, content)
    return content


def hash_file(path: Path) -> str:
    """xxh64 of a file, hexadecimal."""
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# Finding.


def all_checkpoints(run: Run) -> list[Checkpoint]:
    """The complete checkpoints of a run, here or in its bucket, oldest first; others are passed over with one warning.

    Of a run on several nodes without a shared disk, no node has all files; such a checkpoint counts once it is in the
    bucket. Raises InputError if the bucket cannot be read.
    """
    found, faults = _local(run.folder)
    if run.store is not None:
        for step, checkpoint in _in_bucket(run.store, run.folder, faults).items():
            # The bucket's marker counts where there are two: what was not uploaded is later than all that was.
            found[step] = replace(checkpoint, local=step in found and found[step].files == checkpoint.files)
        faults = {place: why for place, why in faults.items() if _step_of(place) not in found}
    for place in sorted(faults, key=lambda place: (_step_of(place), place)):
        if (place, faults[place]) not in _TOLD:
            log.warning("passing over %s: %s", place, faults[place])
            _TOLD.add((place, faults[place]))
    return [found[step] for step in sorted(found)]


def complete_checkpoints(out: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run folder on this disk, as `all_checkpoints`."""
    return all_checkpoints(Run(str(out), out, None))


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


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's marker and check its files' sizes. Raises InputError if it is not complete."""
    try:
        content = (folder / MARKER).read_bytes()
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    except OSError:  # also while it is being removed
        raise InputError(f"{folder}: the checkpoint was not finished (no {MARKER})") from None
    try:
        return Checkpoint(**_check(content, sizes, folder.name), folder=folder)
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None


def _local(out: Path) -> tuple[dict[int, Checkpoint], dict[str, str]]:
    """Complete checkpoints below a run folder by step, and what is wrong with the others by place."""
    found, faults = {}, {}
    for folder in sorted((out / "checkpoints").glob("step-*")):
        if _step_of(folder.name) is None:
            continue
        try:
            checkpoint = read_checkpoint(folder)
            found[checkpoint.step] = checkpoint
        except InputError as error:
            faults[str(folder)] = str(error).removeprefix(f"{folder}: ")
    return found, faults


def _in_bucket(store: Store, out: Path, faults: dict[str, str]) -> dict[int, Checkpoint]:
    """The same of a bucket, by one listing; adds to `faults`."""
    folders: dict[str, dict[str, int]] = {}
    for key, size in store.sizes("checkpoints/").items():
        _, name, *rest = key.split("/")
        if rest and _step_of(name) is not None:
            folders.setdefault(name, {})["/".join(rest)] = size
    found = {}
    for name, sizes in folders.items():
        key = f"checkpoints/{name}"
        try:
            if MARKER not in sizes:
                raise ValueError(f"the checkpoint was not finished (no {MARKER})")
            marker = _read_marker(store, key, sizes)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, InputError):  # the bucket, not the checkpoint
                raise
            faults[f"{store.url}/{key}"] = str(error)
            continue
        found[marker["step"]] = Checkpoint(**marker, folder=out / key, local=False, key=key)
    return found


def _read_marker(store: Store, key: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The fields of a marker that was listed; what is wrong with it is believed at the last of a few looks only."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return _check(store.read(f"{key}/{MARKER}"), sizes, key.rpartition("/")[2])
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, InputError):  # the bucket, which was asked several times
                raise
            s3_client.pause(attempt)
    return _check(store.read(f"{key}/{MARKER}"), sizes, key.rpartition("/")[2])


def _check(content: bytes, sizes: Mapping[str, int], name: str) -> dict[str, Any]:
    """A marker's fields. Raises ValueError, in words, if it is damaged or does not describe the files found."""
    try:
        marker = _READER.validate_json(content)
    except ValidationError as error:
        words = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors()[:3])
        raise ValueError(f"{MARKER} is damaged: {words}") from None
    if marker.step != _step_of(name) or any("/" in file for file in marker.files) or not marker.files:
        raise ValueError(f"{MARKER} is damaged: it is of step {marker.step}, with the files {list(marker.files)[:3]}")
    for file, size in marker.files.items():
        if sizes.get(file) != size:
            raise ValueError(f"{file} has {sizes.get(file)} bytes, not {size}: the checkpoint is damaged")
    return {part.name: getattr(marker, part.name) for part in fields(marker)}


def _step_of(place: str) -> int | None:
    match = re.fullmatch(r"step-(\d{8,})", place.rpartition("/")[2])
    return int(match[1]) if match else None


def _list(found: Collection[int]) -> str:
    return ", ".join(map(str, sorted(found)))


def check_model(model: ModelConfig, checkpoint: Checkpoint, *, resume: bool = False) -> None:
    """Raise InputError unless a checkpoint's weights have the sizes that the config states.

    `resume`: its run goes on, so its weights must also be those that the config's `init_seed` began with.
    """
    if differing := model_differences(model, checkpoint):
        raise InputError(
            f"{checkpoint.place} holds another model: {', '.join(differing)}. "
            "Restore these settings under `model`, or give this run another `out`."
        )
    seed = checkpoint.model.get("init_seed", model.init_seed)
    if resume and checkpoint.init is None and seed != model.init_seed:
        raise InputError(
            f"model.init_seed is {model.init_seed}, but the run of {checkpoint.place} began with the weights of seed "
            f"{seed}. Set model.init_seed={seed} to go on with it, or give this run another `out`."
        )


def model_differences(model: ModelConfig, marker: Marker) -> list[str]:
    """What makes a checkpoint's weights those of another model, in words.

    `init_seed` does not: whatever the weights began with, they are loaded.
    """
    sizes, before = model.model_dump(mode="json"), marker.model
    return [
        f"{key} was {before.get(key)} and is {sizes.get(key)}"
        for key in dict.fromkeys([*sizes, *before])
        if key != "init_seed" and before.get(key) != sizes.get(key)
    ]


# Fetching.


def fetch_checkpoint(run: Run, checkpoint: Checkpoint, share: int = 0, shares: int = 1) -> list[str]:
    """Make files number `share`, `share + shares` ... of a checkpoint local and check them: size and hash.

    Files that are here are hashed; those that are absent or damaged come from the bucket, by a temporary name. Returns
    what is wrong with the checkpoint, in words, so that ranks can agree to fall back to the one before. Raises
    InputError if the bucket cannot be read or the disk not be written: that is no fault of the checkpoint.
    """
    if not checkpoint.key and not checkpoint.folder.is_dir():
        return [f"{checkpoint.place} was removed"]
    checkpoint.folder.mkdir(parents=True, exist_ok=True)
    if share == 0:
        _remove_stale(checkpoint.folder)
    problems = []
    for name in sorted(checkpoint.files)[share::shares]:
        problem = _problem(checkpoint, name, checkpoint.folder / name)
        if problem is not None and checkpoint.key and run.store is not None:
            if (checkpoint.folder / name).exists():
                log.warning("%s: %s; fetching it again", checkpoint.folder, problem)
            problem = _download(run.store, checkpoint, name)
        if problem is not None:
            problems.append(f"{checkpoint.place}: {problem}")
    return problems


def _problem(checkpoint: Checkpoint, name: str, path: Path) -> str | None:
    """What is wrong with a file here; None if it is whole."""
    try:
        size = path.stat().st_size if path.is_file() else None
        if size != checkpoint.files[name]:
            return f"{name} is missing" if size is None else f"{name} has {size} bytes, not {checkpoint.files[name]}"
        return _differs(checkpoint, name, hash_file(path))
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"


def _differs(checkpoint: Checkpoint, name: str, found: str) -> str | None:
    if checkpoint.hashes.get(name, found) == found:
        return None
    return f"{name} has the hash {found}, not {checkpoint.hashes[name]}: its content is damaged"


def _download(store: Store, checkpoint: Checkpoint, name: str) -> str | None:
    """Fetch a file; return what is wrong with the one in the bucket, if anything is."""
    problem: str | None = None
    for attempt in range(_ATTEMPTS):
        try:
            descriptor, temporary = tempfile.mkstemp(dir=checkpoint.folder, prefix=_FETCHING)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    digest = xxhash.xxh64()
                    for start in range(0, checkpoint.files[name], _BLOCK):
                        stop = min(start + _BLOCK, checkpoint.files[name])
                        block = store.read_range(f"{checkpoint.key}/{name}", start, stop)
                        digest.update(block)
                        file.write(block)
                problem = _differs(checkpoint, name, digest.hexdigest())
                if problem is None:
                    os.replace(temporary, checkpoint.folder / name)
                    return None
            finally:
                Path(temporary).unlink(missing_ok=True)
        except FileNotFoundError:  # asked again: a store may miss an object for a moment
            problem = f"{name} is not in the bucket"
        except OSError as error:
            remedy = "Free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the permissions"
            raise InputError(f"cannot write {checkpoint.folder}: {error.strerror}. {remedy}, then run again.") from None
        except InputError as error:
            if attempt == _ATTEMPTS - 1:
                log.error("cannot fetch %s: %s", name, error)  # also of ranks whose errors are not printed
                raise
            log.warning("cannot fetch %s yet: %s", name, error)
        s3_client.pause(attempt + 3)
    return problem


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(f"{_FETCHING}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


# Retention.


@contextmanager
def lease(checkpoint: Checkpoint) -> Iterator[None]:
    """Inside the block no training of this machine removes the checkpoint's folder; one of another machine may."""
    try:
        with lock_folder(checkpoint.folder, shared=True, make=bool(checkpoint.key)):
            yield
    finally:
        with suppress(OSError):  # of a folder that was made for nothing; others are not empty
            checkpoint.folder.rmdir()


def remove_old(run: Run, keep: int | None) -> None:
    """Remove all but the newest `keep` complete checkpoints; None keeps all. Of a run in a bucket, those there.

    Copies on this disk of a run in a bucket go by `remove_copies`.
    """
    if keep is None:
        return
    if run.store is None:
        for checkpoint in list(_local(run.folder)[0].values())[:-keep]:
            _remove_folder(checkpoint.folder)
        return
    complete = sorted(_in_bucket(run.store, run.folder, {}))
    for step in complete[:-keep]:
        remove_in_bucket(run.store, step)


def remove_in_bucket(store: Store, step: int) -> None:
    """Remove a checkpoint from a bucket, its marker first, so that a half-removed one is never taken for whole."""
    store.remove(f"{checkpoint_key(step)}/{MARKER}")
    store.remove(checkpoint_key(step))


def set_aside(folder: Path) -> None:
    """Make room at a checkpoint's folder: a finished one gets another name, for it may be whole; the rest goes."""
    if not (folder / MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # an unfinished one of a run that was killed while it saved
        return
    aside = folder.with_name(_aside_name(folder.name, {path.name for path in folder.parent.iterdir()}))
    with suppress(FileNotFoundError):  # another node of a shared disk was faster
        folder.rename(aside)
    log.warning("%s was passed over; it is now %s. Remove it once it is not wanted", folder, aside)


def set_aside_later(out: Path, step: int) -> None:
    """Set aside what is later than the checkpoint that a run goes on from: else retention would keep it as the newest.

    All ranks passed it over; `out` is a run folder that is not a working copy of a bucket.
    """
    for later, checkpoint in _local(out)[0].items():
        if later > step:
            set_aside(checkpoint.folder)


def set_aside_in_bucket(store: Store, step: int) -> None:
    """The same in a bucket: a checkpoint that has a marker is copied, its marker last, before it is removed there.

    Raises InputError if the bucket cannot be read or written; nothing was removed then.
    """
    key = checkpoint_key(step)
    if store.size(f"{key}/{MARKER}") is not None:
        names = {found.split("/")[1] for found in store.sizes("checkpoints/")}
        aside = f"checkpoints/{_aside_name(key.rpartition('/')[2], names)}"
        files = store.sizes(key)
        for found in sorted(files, key=lambda found: found.endswith(MARKER)):
            try:
                store.link(found, found.replace(key, aside, 1))
            except FileNotFoundError:
                raise InputError(
                    f"{store.url}/{found} is listed and cannot be read, so {key} was not set aside. Run again."
                ) from None
        log.warning("%s/%s was passed over; it is now %s. Remove it once it is not wanted", store.url, key, aside)
    else:
        log.warning("removing %s/%s, which was not finished", store.url, key)
    remove_in_bucket(store, step)


def _aside_name(name: str, taken: Collection[str]) -> str:
    """aside-step-00000040, or with a number behind it: nothing that was set aside before is lost."""
    names = (f"aside-{name}{number}" for number in ("", *(f"-{n}" for n in range(2, 10**6))))
    return next(free for free in names if free not in taken)


def remove_copies(run: Run, step: int) -> None:
    """Remove from this disk what is older than the checkpoint of `step`, which is in the bucket."""
    for folder in (run.folder / "checkpoints").glob("step-*"):
        found = _step_of(folder.name)
        if found is not None and found < step:
            _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    """Remove a checkpoint here, unless it is leased: then it goes with a later one."""
    with lock_folder(folder, wait=False) as free:
        if not free:
            log.info("%s is being read: it goes with a later checkpoint", folder)
            return
        (folder / MARKER).unlink(missing_ok=True)  # first, as in a bucket
        shutil.rmtree(folder)
