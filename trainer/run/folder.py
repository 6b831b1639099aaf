"""Run folders: a config's `out`, on this disk or in a bucket with a working copy on this disk. Needs no Composer."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dataengine.build.agreement import disagreements
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.storage.atomic import Store, open_store, write_file
from dataengine.storage.s3_client import is_url
from dataengine.text.tokenizers.load import Tokenizer, load_tokenizer
from trainer.run.settings import SETTINGS

log = logging.getLogger(__name__)

_LOCK = "training.lock"
SMALL_FILES = ("config.yaml", SETTINGS, "manifest.json", "log.csv")  # what a run keeps beside its checkpoints


@dataclass(frozen=True)
class Run:
    """Where a run keeps its files."""

    url: str  # as the user knows it: a folder or the URL of one
    folder: Path  # on this disk; of a run in a bucket, a working copy of its newest files
    store: Store | None  # at the URL of a run in a bucket; None if the folder is the run

    def fetch(self, *names: str) -> None:
        """Bring small files of the bucket to the folder, where they differ; files that the bucket lacks stay.

        A log here that is longer than the one there also stays: the run ended before it was uploaded. Raises
        InputError if the bucket cannot be read.
        """
        if self.store is None:
            return
        for name in names:
            path = self.folder / name
            size = self.store.size(name)
            if size is None or (name.endswith(".csv") and path.is_file() and path.stat().st_size >= size):
                continue
            content = self.store.read(name)
            if not path.is_file() or path.read_bytes() != content:
                write_file(path, content)

    def check_there(self) -> None:
        """Raise InputError if the run was removed from its bucket, and only the working copy is left."""
        if self.store is None or not (self.folder / "manifest.json").is_file():
            return
        if self.store.size("manifest.json") is None:
            raise InputError(
                f"no run at {self.url}: there is no manifest.json, so it was removed. A copy of what was there is in "
                f"{self.folder}: give that folder to look at it, or remove it."
            )

    def publish(self, name: str, content: bytes) -> None:
        """Write a small file here and, of a run in a bucket, there. Raises InputError if that cannot be done."""
        write_file(self.folder / name, content)
        if self.store is not None:
            self.store.write(name, content)


def open_run(out: str, cache: str) -> Run:
    """The run of a config's `out`; it need not exist yet. The folder of a URL lies below `cache`.

    Raises InputError if the URL or the environment cannot be used.
    """
    folder = run_folder(out, cache)
    if "://" not in out:
        return Run(str(folder), folder, None)
    url = out.rstrip("/")
    return Run(url, folder, open_store(url))


def run_folder(out: str, cache: str) -> Path:
    """The folder on this disk of the run of a config's `out`."""
    if "://" not in out:
        return Path(out)
    url = out.rstrip("/")
    words = re.sub(r"[^A-Za-z0-9_]+", "-", url.partition("://")[2])[-60:].strip("-")
    return Path(cache, "runs", f"{words}-{hashlib.sha256(url.encode()).hexdigest()[:8]}")


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
                "one at a time.", folder, error.strerror or error,
            )  # fmt: skip
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
        if before and (before["machine"], _place(before["holder"])) != (self.machine, _place(self.holder)):
            log.info(
                "%s was held by %s: looking for %.0f s if it still is", self.url, before["holder"], 3 * self.beat_s
            )
            time.sleep(3 * self.beat_s)
            if (now := self._read()) and now != before:
                raise self._taken(now)
        return before is not None

    def take(self) -> None:
        before = self.look()
        self._write()
        if not before:  # another one may have begun at the same moment; the one that wrote last stays
            time.sleep(min(2.0, self.beat_s))
            if (now := self._read()) and now["number"] != self.number:
                raise self._taken(now)

    def keep(self, ended: threading.Event) -> None:
        """The thread."""
        while not ended.wait(self.beat_s):
            with suppress(InputError, OSError):  # an outage: it is written again once that is over
                if (now := self._read()) and now["number"] != self.number:
                    print(f"error: {self._taken(now)}", file=sys.stderr, flush=True)
                    os._exit(2)
                self._write()

    def give_back(self) -> None:
        with suppress(InputError):
            if (now := self._read()) and now["number"] == self.number:
                self.store.remove(_LOCK)

    def _read(self) -> dict[str, str] | None:
        """What the file says; None if there is none, or none that can be read."""
        try:
            found = parse_json(self.store.read(_LOCK))
            return {key: str(found[key]) for key in ("holder", "machine", "number", "beat")}
        except (FileNotFoundError, KeyError, TypeError):
            return None
        except InputError:
            raise
        except ValueError:
            return None

    def _write(self) -> None:
        content = {"holder": self.holder, "machine": self.machine, "number": self.number, "beat": uuid.uuid4().hex}
        self.store.write(_LOCK, json.dumps(content).encode())

    def _taken(self, now: dict[str, str]) -> InputError:
        return InputError(_words_of_holder(self.url, now["holder"]))


def _place(holder: str) -> str:
    """Node and folder of a holder."""
    return holder.partition(" on ")[2]


def _machine() -> str:
    """What tells this machine from others of its name, until it is started anew; empty where the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def local_folder(out: str, cache: str) -> Path:
    """The folder of a run for reading, with its small files of the bucket. Raises InputError if there is no run."""
    run = open_run(out, cache)
    run.check_there()
    run.fetch(*SMALL_FILES)
    if is_url(out) and not (run.folder / "manifest.json").is_file():
        raise InputError(f"no run at {out}: there is no manifest.json. Give the `out` of a run that has trained a step")
    return run.folder


def read_run_manifest(folder: Path, url: str = "") -> Manifest:
    """The manifest that a run at `url`, if it is not the folder itself, keeps here.

    Raises InputError if the folder is none of a run, or the manifest is damaged.
    """
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"no run in {url or folder}: there is no manifest.json. Give the `out` of a run that has trained a step"
        )
    return read_manifest(
        folder / "manifest.json",
        "Bring it back from a copy: STORE/experiments/NAME/manifest.json is the same if nothing else was built since.",
    )


def check_config(config: Config, run: Run, manifest: Manifest, tokenizer: Tokenizer | None = None) -> None:
    """Raise InputError, naming each setting of bytes and plan that differs, unless a run was trained with a config.

    Looks at the run's manifest and the config.yaml beside it, which are fetched already. `tokenizer`: the config's, if
    it is loaded already.
    """
    tokenizer = tokenizer or load_tokenizer(config.tokenizer, config.eos_token)
    found = disagreements(config, _trained_config(run.folder), manifest, tokenizer, run.url)
    if len(found) > 1:
        raise InputError("\n".join([f"the config is not that of {run.url}:", *(f"- {text}" for text in found)]))
    if found:
        raise InputError(found[0])


def _trained_config(folder: Path) -> Config | None:
    """OUT/config.yaml; None, with a warning, if it is missing or this version cannot read it."""
    path = folder / "config.yaml"
    try:
        return Config.model_validate(yaml.safe_load(path.read_bytes()))
    except FileNotFoundError:
        reason = "it is missing"
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
    log.warning("%s: %s; the config is compared with the manifest alone", path, reason)
    return None


def parse_json(content: bytes) -> Any:
    """JSON that may be damaged in any way. Raises ValueError for all that is none."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
