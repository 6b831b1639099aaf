"""Locks of run folders: one training at a time in a folder, or in a bucket."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from dataengine.errors import InputError
from dataengine.storage.store import Store
from trainer.run.folder import Run, parse_json

log = logging.getLogger(__name__)
_LOCK = "training.lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a run's folder for this process, so that two trainings do not write into one; it is made if need be.

    The lock is the kernel's and ends with the process, however that ends; its children do not have it. A shared disk
    passes it on to other machines if it knows locks at all. Raises InputError if another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise InputError(_words_of_holder(folder, file.read())) from None
            log.warning(
                "%s is on a file system without locks (%s): nothing keeps a second training from this folder. Start "
                "one at a time.",
                folder,
                error.strerror or error,
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        yield


@contextmanager
def lock_folder(folder: Path, *, shared: bool = False, wait: bool = True, make: bool = False) -> Iterator[bool]:
    """Lock a folder among the processes of this machine; `shared` locks exclude only one that is not.

    Yields False if another process has a lock that excludes this one, which happens only without `wait`. No file is
    made: the lock is the kernel's, of the open folder, and ends with the process. Where the file system knows no such
    locks, or the folder is gone, nothing is locked; `make`: one that is gone is made.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        with suppress(OSError):  # a disk that cannot be written shows where files are written
            if make:
                folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            yield True
            return
        try:
            free = _lock(descriptor, operation)
            if not free or _is_at(descriptor, folder):
                yield free
                return
        finally:  # also where who had the lock removed the folder: another one may be there now
            os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    """Whether an open folder could be locked, or its file system knows no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS):
            raise
    return True


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether an open folder is still the one of this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    return False


def holder_of(run: Run, beat_s: float = 15.0) -> str:
    """What `hold` and `hold_bucket` would say if another process holds a run now; nothing is taken from it."""
    with suppress(FileNotFoundError), (run.folder / _LOCK).open() as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return _words_of_holder(run.folder, file.read())
    try:
        if run.store is not None:
            _lease(run, run.store, beat_s).look()
    except InputError as error:
        return str(error)
    return ""


def _words_of_holder(place: Path | str, holder: str) -> str:
    return (
        f"{place} is being trained by {holder or 'another process'}. "
        "Wait until it has ended, stop it, or give this run another `out`."
    )


@contextmanager
def hold_bucket(run: Run, beat_s: float = 15.0) -> Iterator[None]:
    """Keep a run in a bucket for this process, so that two machines do not train into one; a folder needs none of it.

    Buckets have no locks: the holder writes training.lock anew every `beat_s`. One that does not change for three times
    as long is of a dead process; one of this folder, which `hold` holds already, is so at once. Raises InputError if
    another process holds the run. A holder that was thought dead, and finds another one, ends at once.
    """
    if run.store is None:
        yield
        return
    lease = _lease(run, run.store, beat_s)
    lease.take()
    ended = threading.Event()
    threading.Thread(target=lease.keep, args=(ended,), name="lease", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        lease.give_back()


def _lease(run: Run, store: Store, beat_s: float) -> _Lease:
    return _Lease(store, run.url, beat_s, f"process {os.getpid()} on {platform.node()}, {run.folder.absolute()}")


@dataclass(frozen=True)
class _Holder:
    """training.lock in a bucket: the process that trains the run."""

    holder: str
    """Process, node and working copy, for messages."""
    machine: str
    """Boot id of the machine."""
    number: str
    """Random number of the process."""
    beat: str
    """Random number that changes every 15 s while the process lives."""


@dataclass
class _Lease:
    store: Store
    url: str
    beat_s: float
    holder: str
    number: str = field(default_factory=lambda: uuid.uuid4().hex)
    machine: str = field(default_factory=lambda: _machine())

    def look(self) -> bool:
        """Whether a process has held the run. Raises InputError if one does."""
        before = self._read()
        if before and (before.machine, _place(before.holder)) != (self.machine, _place(self.holder)):
            log.info("%s was held by %s: looking for %.0f s if it still is", self.url, before.holder, 3 * self.beat_s)
            time.sleep(3 * self.beat_s)
            if (now := self._read()) and now != before:
                raise self._taken(now)
        return before is not None

    def take(self) -> None:
        before = self.look()
        self._write()
        if not before:  # another one may have begun at the same moment; the one that wrote last stays
            time.sleep(min(2.0, self.beat_s))
            if (now := self._read()) and now.number != self.number:
                raise self._taken(now)

    def keep(self, ended: threading.Event) -> None:
        """The thread."""
        while not ended.wait(self.beat_s):
            with suppress(InputError, OSError):  # an outage: it is written again once that is over
                if (now := self._read()) and now.number != self.number:
                    print(f"error: {self._taken(now)}", file=sys.stderr, flush=True)
                    os._exit(2)
                self._write()

    def give_back(self) -> None:
        with suppress(InputError):
            if (now := self._read()) and now.number == self.number:
                self.store.remove(_LOCK)

    def _read(self) -> _Holder | None:
        """What the file says; None if there is none, or none that can be read."""
        try:
            found = parse_json(self.store.read(_LOCK))
            return _Holder(**{key.name: str(found[key.name]) for key in fields(_Holder)})
        except (FileNotFoundError, KeyError, TypeError):
            return None
        except InputError:
            raise
        except ValueError:
            return None

    def _write(self) -> None:
        content = _Holder(self.holder, self.machine, self.number, beat=uuid.uuid4().hex)
        self.store.write(_LOCK, json.dumps(asdict(content)).encode())

    def _taken(self, now: _Holder) -> InputError:
        return InputError(_words_of_holder(self.url, now.holder))


def _place(holder: str) -> str:
    """Node and folder of a holder."""
    return holder.partition(" on ")[2]


def _machine() -> str:
    """What tells this machine from others of its name, until it is started anew; empty where the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
