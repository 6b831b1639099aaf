"""Remove old checkpoints, set later ones aside, and lease those in use."""

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
        for checkpoint in list(local_checkpoints(run.folder)[0].values())[:-keep]:
            _remove_folder(checkpoint.folder)
        return
    complete = sorted(bucket_checkpoints(run.store, run.folder, {}))
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
    for later, checkpoint in local_checkpoints(out)[0].items():
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
        found = step_of_folder(folder.name)
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
