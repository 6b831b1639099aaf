"""Write files and folders of a local disk whole or not at all, and remove what dead processes left."""

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
_ABANDONED_S = 86_400  # of a writer that cannot be asked: it wrote nothing for so long
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2


def write_file(path: Path, content: bytes) -> None:
    """Write a file by a temporary name, fsync and rename: readers see the old content or the new, never a part."""
    with new_file(path) as file:
        file.write(content)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """The same for a file that is written in parts: on an error it does not appear, or stays as it was."""
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
    """A file that a user wants, whole or not at all; what is no regular file (a pipe, /dev/stdout) is written as it is.

    Raises InputError for a folder or a URL.
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
    """Fill a temporary folder, then make it appear at `path` at once; on an error it vanishes.

    If `path` came into being meanwhile, that folder stays and ours vanishes: both hold the same content, for names
    here derive from what the content is made of. With `replace` ours stays, and the other one vanishes.
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
    """Make a filled folder, its files on the disk, appear at `path`, unless there is one that is not to be replaced."""
    _sync(temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
        if replace:
            _exchange(temporary, path)
    _sync(path.parent)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders of one parent swap names: at once, where Linux and the file system can."""
    with suppress(AttributeError):  # only Linux has it
        if ctypes.CDLL(None).renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
            return
    aside = temporary_path(other)
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are no longer alive left half-written in a folder.

    Whether one is alive shows only among those that share our process numbers; what others write (another machine, or
    another container of this one, even under the same host name) is taken for left over when a day has passed since it
    was last written to.
    """
    for path in folder.glob(f"{WRITING_PREFIX}*"):
        owner, _, rest = path.name.removeprefix(WRITING_PREFIX).partition("~")
        pid = rest.partition("~")[0]
        ours = owner == _owner() and pid.isdecimal()
        if not _alive(int(pid)) if ours else _last_write(path) < time.time() - _ABANDONED_S:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A name beside `path` for what is not whole yet; it says whose it is."""
    return path.with_name(f"{WRITING_PREFIX}{_owner()}~{os.getpid()}~{uuid.uuid4().hex[:8]}-{path.name}")


def _owner() -> str:
    """Equal for processes whose numbers can be compared: of one host, one boot of it, and one PID namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux has these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text()[:8])
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "+".join(parts).replace("~", "_").replace("/", "_")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks the kernel: /proc may be that of another namespace
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _last_write(path: Path) -> float:
    """When a file, or a folder or a file in it, was last written to, in seconds; now if it is gone.

    By ctime: what has a second name, or was renamed to go, has the time of modification of what it was.
    """
    try:
        inside = path.iterdir() if path.is_dir() else ()
        return max(status.st_ctime for status in map(Path.lstat, [path, *inside]))
    except FileNotFoundError:
        return time.time()


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
