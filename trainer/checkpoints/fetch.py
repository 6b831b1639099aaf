"""Fetch the files of a checkpoint from a bucket, and check their sizes and hashes."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import xxhash

from dataengine.errors import DamagedError, InputError, MissingError
from dataengine.storage.retry import retry
from dataengine.storage.store import Store
from trainer.checkpoints.marker import Checkpoint
from trainer.run.folder import Run

log = logging.getLogger(__name__)
_FETCHING = ".fetching-"
_STALE_S = 3600  # a download without a write for this long belongs to a dead process
_BLOCK = 32 << 20  # bytes a read


def hash_file(path: Path) -> str:
    """Return the xxh64 of a file, hexadecimal."""
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch_checkpoint(run: Run, checkpoint: Checkpoint, share: int = 0, shares: int = 1) -> list[str]:
    """Fetch files number `share`, `share + shares` ... of a checkpoint and check their sizes and hashes.

    Hashes local files; downloads missing and damaged ones under a temporary name. Returns the problems of the
    checkpoint as text, so that ranks can agree to fall back to the previous one. Raises InputError if the bucket cannot
    be read or the disk cannot be written, which is not a problem of the checkpoint.
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
    """Return the problem of a local file; None if it is whole."""
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
    """Download a file; return the problem of the bucket's copy, if any."""
    try:
        retry(
            lambda: _download_once(store, checkpoint, name),
            doubted=(DamagedError, MissingError),
            on_failure=lambda error, elapsed_s: log.warning("cannot fetch %s yet: %s", name, error),
        )
    except (DamagedError, MissingError) as error:
        return str(error)
    except InputError as error:
        log.error("cannot fetch %s: %s", name, error)  # also on ranks whose errors are not printed
        raise
    return None


def _download_once(store: Store, checkpoint: Checkpoint, name: str) -> None:
    """Download a file. Raises MissingError or DamagedError if the bucket lacks it or its content differs."""
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
            if problem := _differs(checkpoint, name, digest.hexdigest()):
                raise DamagedError(problem)
            os.replace(temporary, checkpoint.folder / name)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileNotFoundError:
        raise MissingError(f"{name} is not in the bucket") from None
    except OSError as error:
        remedy = "Free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the permissions"
        raise InputError(f"cannot write {checkpoint.folder}: {error.strerror}. {remedy}, then run again.") from None


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(f"{_FETCHING}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
