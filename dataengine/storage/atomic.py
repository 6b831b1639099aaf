"""Write files and folders on local disk whole or not at all, and remove leftovers of dead processes."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from dataengine.errors import InputError, naming
from dataengine.storage.paths import refuse_url

WRITING_PREFIX = ".writing-"
_ABANDONED_S = 86_400  # a writer on another machine counts as dead if it wrote nothing for this long
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2


def write_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, fsync and rename. Readers see the old content or the new, never a part."""
    with new_file(path) as file:
        file.write(content)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """As `write_file`, for a file that is written in parts. On an error, the file at `path` does not change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """Open an output file, to be written whole or not at all.

    A pipe, or another path that is not a regular file such as /dev/stdout, is written directly. Raises InputError for a
    folder or a URL.
    """
    refuse_url(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder. Give the path of a file.")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with naming(path), path.open("wb") as file:
            yield file
    else:
        with new_file(path) as file:
            yield file


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a temporary folder, then publish it at `path` at once. On an error, it is removed.

    If another process has created `path` meanwhile, that folder stays and this one is removed: both have the same
    content, because names derive from the content's inputs. With `replace`, this one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
        for file in temporary.iterdir():
            _sync(file)
        publish_folder(temporary, path, replace=replace)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, path: Path, *, replace: bool = False) -> None:
    """Publish a filled folder, whose files are synced, at `path`. An existing folder stays unless `replace` is set."""
    _sync(temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
        if replace:
            _exchange(temporary, path)
    _sync(path.parent)


def _exchange(first: Path, second: Path) -> None:
    """Swap the names of two folders in one parent, atomically where Linux and the file system support it."""
    with suppress(AttributeError):  # only Linux has it
        if ctypes.CDLL(None).renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
            return
    aside = temporary_path(second)
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link, or a copy if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_leftovers(folder: Path) -> None:
    """Remove half-written files and folders of dead processes from a folder.

    Only processes of the same machine and container can be checked. The files of other machines and containers, even
    under the same host name, are removed a day after the last write.
    """
    for path in folder.glob(f"{WRITING_PREFIX}*"):
        dead = is_dead(path.name.removeprefix(WRITING_PREFIX))
        if dead is True or (dead is None and _last_write(path) < time.time() - _ABANDONED_S):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A temporary name beside `path`, which names the process that writes."""
    return path.with_name(f"{WRITING_PREFIX}{owner_and_pid()}~{uuid.uuid4().hex[:8]}-{path.name}")


def owner_and_pid() -> str:
    """The beginning of a name that says which process chose it."""
    return f"{_owner()}~{os.getpid()}"


def is_dead(name: str) -> bool | None:
    """Whether the process has ended whose `owner_and_pid` begins a name; None if it is of another machine."""
    owner, _, rest = name.partition("~")
    pid = rest.partition("~")[0]
    return not _alive(int(pid)) if owner == _owner() and pid.isdecimal() else None


def _owner() -> str:
    """An id of the host, its boot and the PID namespace. Process numbers are comparable where it is equal."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux has these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text()[:8])
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "+".join(parts).replace("~", "_").replace("/", "_")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # the kernel knows: /proc may belong to another namespace
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _last_write(path: Path) -> float:
    """Time of the last write, in seconds, to a file, or to a folder or a file in it; now if it is gone.

    This is the ctime: a hard link or a renamed file keeps the modification time of its origin.
    """
    try:
        inside = path.iterdir() if path.is_dir() else ()
        return max(status.st_ctime for status in map(Path.lstat, [path, *inside]))
    except FileNotFoundError:
        return time.time()


def _sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
