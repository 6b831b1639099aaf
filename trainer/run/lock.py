"""Locks of runs: one training at a time in a folder or a bucket."""

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
    """Lock a run's folder for this process, so that two trainings do not write to it. Creates the folder if needed.

    The kernel holds the lock until the process ends, for any reason; children do not inherit it. On a shared disk with
    locks it also excludes other machines. Raises InputError if another process holds the folder.
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
                "%s is on a file system without locks (%s): a second training in this folder would not be refused. "
                "Start one at a time.",
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
    """Lock a folder among the processes of this machine. `shared` locks exclude only exclusive ones.

    Without `wait`, yields False if another process holds a conflicting lock. The kernel locks the open folder until the
    process ends; no lock file is written. If the file system has no locks, or the folder does not exist, nothing is
    locked. `make` creates a missing folder.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        with suppress(OSError):  # an unwritable disk is reported when files are written
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
        finally:  # also if the previous holder removed the folder: a new one may be there now
            os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    """Try to lock an open folder. True if it is locked, or its file system has no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS):
            raise
    return True


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether an open folder is still the one at this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    return False


def holder_of(run: Run, beat_s: float = 15.0) -> str:
    """Return the error of `hold` and `hold_bucket` if another process holds a run now, else ""; takes no lock."""
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
        "Wait until it ends, stop it, or give this run another `out`."
    )


@contextmanager
def hold_bucket(run: Run, beat_s: float = 15.0) -> Iterator[None]:
    """Lock a run in a bucket for this process, so that two machines do not train it. Does nothing for a local folder.

    Buckets have no locks: the holder rewrites training.lock every `beat_s`. If the file does not change for three times
    as long, its process is dead. If it names this folder, which `hold` has locked, its process is dead, too. Raises
    InputError if another process holds the run. A holder that finds itself replaced ends at once.
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
        """Return whether a dead process left a lock. Raises InputError if a live process holds the run."""
        before = self._read()
        if before and (before.machine, _place(before.holder)) != (self.machine, _place(self.holder)):
            log.info(
                "%s was held by %s: checking for %.0f s whether it still is", self.url, before.holder, 3 * self.beat_s
            )
            time.sleep(3 * self.beat_s)
            if (now := self._read()) and now != before:
                raise self._taken(now)
        return before is not None

    def take(self) -> None:
        before = self.look()
        self._write()
        if not before:  # another process may have started at the same moment; the last writer wins
            time.sleep(min(2.0, self.beat_s))
            if (now := self._read()) and now.number != self.number:
                raise self._taken(now)

    def keep(self, ended: threading.Event) -> None:
        """The thread."""
        while not ended.wait(self.beat_s):
            with suppress(InputError, OSError):  # an outage: the lock is rewritten after it
                if (now := self._read()) and now.number != self.number:
                    print(f"error: {self._taken(now)}", file=sys.stderr, flush=True)
                    os._exit(2)
                self._write()

    def give_back(self) -> None:
        with suppress(InputError):
            if (now := self._read()) and now.number == self.number:
                self.store.remove(_LOCK)

    def _read(self) -> _Holder | None:
        """Return the content of the lock; None if it is missing or damaged."""
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
    """Return node and folder of a holder."""
    return holder.partition(" on ")[2]


def _machine() -> str:
    """Return an id of this machine, which changes at a reboot; empty if the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
