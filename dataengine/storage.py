"""Publish files and folders whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_PREFIX = ".writing-"


def write_file(path: Path, content: bytes) -> None:
    """Write a file by a temporary name, fsync and rename: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_PREFIX}{_owner()}-{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder, then make it appear at `path` at once; on an error it vanishes.

    If `path` came into being meanwhile, that folder stays and ours vanishes: both hold the same content, for names
    here derive from what the content is made of.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_PREFIX}{_owner()}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        _sync_folder(temporary)
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(path.parent)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that are no longer alive left half-written in a folder."""
    for path in folder.glob(f"{_PREFIX}*"):
        host, pid, _ = path.name.removeprefix(_PREFIX).split("~", 2)
        if host == _host() and not _alive(int(pid)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _owner() -> str:
    return f"{_host()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"


def _host() -> str:
    return socket.gethostname().replace("~", "_").replace("/", "_")


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
