"""Remove old checkpoints, rename later ones, and protect those in use."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dataengine.errors import InputError
from dataengine.storage.store import Store
from trainer.checkpoints.find import bucket_checkpoints, local_checkpoints
from trainer.checkpoints.marker import MARKER, Checkpoint, checkpoint_key, step_of_folder
from trainer.run.folder import Run
from trainer.run.lock import lock_folder

log = logging.getLogger(__name__)


@contextmanager
def lease(checkpoint: Checkpoint) -> Iterator[None]:
    """Keep trainings on this machine from removing a checkpoint's folder; those on other machines may."""
    try:
        with lock_folder(checkpoint.folder, shared=True, make=bool(checkpoint.key)):
            yield
    finally:
        with suppress(OSError):  # removes a folder that stayed empty; others raise
            checkpoint.folder.rmdir()


def remove_old(run: Run, keep: int | None) -> None:
    """Remove all but the newest `keep` complete checkpoints; None keeps all. For a run in a bucket, removes them there.

    `remove_copies` removes the local copies of a run in a bucket.
    """
    if keep is None:
        return
    if run.store is None:
        for checkpoint in list(local_checkpoints(run.folder)[0].values())[:-keep]:
            _remove_folder(checkpoint.folder)
        return
    complete = sorted(bucket_checkpoints(run.store, run.folder, {}))
    for step in complete[:-keep]:
        remove_in_bucket(run.store, step)


def remove_in_bucket(store: Store, step: int) -> None:
    """Remove a checkpoint from a bucket, its marker first, so that a half-removed one never counts as complete."""
    store.remove(f"{checkpoint_key(step)}/{MARKER}")
    store.remove(checkpoint_key(step))


def set_aside(folder: Path) -> None:
    """Free a checkpoint's folder name: rename a finished one, which may be whole; remove an unfinished one."""
    if not (folder / MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed during a save
        return
    aside = folder.with_name(_aside_name(folder.name, {path.name for path in folder.parent.iterdir()}))
    with suppress(FileNotFoundError):  # another node on a shared disk was faster
        folder.rename(aside)
    log.warning("%s was passed over and renamed to %s. Remove it if you do not need it", folder, aside)


def set_aside_later(out: Path, step: int) -> None:
    """Rename checkpoints later than the one that a run resumes from: otherwise retention would keep them as the newest.

    All ranks have passed them over. `out` is a run folder that is not a working copy of a bucket.
    """
    for later, checkpoint in local_checkpoints(out)[0].items():
        if later > step:
            set_aside(checkpoint.folder)


def set_aside_in_bucket(store: Store, step: int) -> None:
    """Rename a checkpoint in a bucket: copy one with a marker, its marker last, then remove the original.

    Raises InputError, before anything is removed, if the bucket cannot be read or written.
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
                    f"{store.url}/{found} is listed but cannot be read, so {key} was not renamed. Run again."
                ) from None
        log.warning("%s/%s was passed over and renamed to %s. Remove it if you do not need it", store.url, key, aside)
    else:
        log.warning("removing %s/%s, which was not finished", store.url, key)
    remove_in_bucket(store, step)


def _aside_name(name: str, taken: Collection[str]) -> str:
    """Return aside-step-00000040, or a free name with a number, so that nothing is overwritten."""
    names = (f"aside-{name}{number}" for number in ("", *(f"-{n}" for n in range(2, 10**6))))
    return next(free for free in names if free not in taken)


def remove_copies(run: Run, step: int) -> None:
    """Remove local checkpoints older than that of `step`, which is in the bucket."""
    for folder in (run.folder / "checkpoints").glob("step-*"):
        found = step_of_folder(folder.name)
        if found is not None and found < step:
            _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    """Remove a local checkpoint, unless it is in use: then a later call removes it."""
    with lock_folder(folder, wait=False) as free:
        if not free:
            log.info("%s is in use: it is removed with a later checkpoint", folder)
            return
        (folder / MARKER).unlink(missing_ok=True)  # first, as in a bucket
        shutil.rmtree(folder)
