"""Remove what killed runs of streaming left in shared memory, and their lock files.

A StreamingDataset names its blocks by a number (drawn in trainer.data.dataset; streaming's own is the first that
is free): /dev/shm/000003_locals, 000003_barrier and so on, and /tmp/000003_barrier_filelock. A killed run leaves them.

A number belongs to a live run if any process has one of its blocks mapped or open; the blocks are looked up by device
and inode, as a process in a container may see them under another path. Of containers that share /dev/shm but not their
process numbers, the others' processes cannot be seen: there, do not call this.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

_SHM = Path("/dev/shm")
_BLOCKS = (  # streaming/base/constant.py
    "locals",
    "barrier",
    "next_epoch",
    "cache_usage",
    "shard_states",
    "shard_access_times",
    "resume",
    "epoch_shape",
    "epoch_data",
)
_LOCKS = ("barrier_filelock", "cache_filelock")
_LOCK_TIMEOUT_S = 60.0

_Inode = tuple[int, int]  # device, inode


@dataclass(frozen=True)
class _Found:
    path: Path
    inode: _Inode


def sweep(shm: Path = _SHM, temp: Path | None = None) -> list[Path]:
    """Remove the blocks and lock files of this user whose number no live process uses; return what was removed.

    Nothing is removed if a process of this user cannot be looked into. Call it on the first rank of a node, before any
    dataset exists on it, while the node's other ranks wait. Two sweeps on one machine follow each other.
    """
    temp = temp or Path(tempfile.gettempdir())
    removed = []
    try:
        with FileLock(temp / f"streaming-sweep-{os.getuid()}.lock", timeout=_LOCK_TIMEOUT_S):
            for found in _find_stale(shm, temp):
                try:
                    now = found.path.lstat()
                    if (now.st_dev, now.st_ino) == found.inode:  # not made anew meanwhile
                        found.path.unlink()
                        removed.append(found.path)
                except FileNotFoundError:
                    continue  # its owner's resource tracker was faster
    except Timeout:
        log.warning("%s is held by another run: shared memory of killed runs stays for now", temp)
    if removed:
        log.info("removed %d blocks and locks that killed runs left in %s and %s", len(removed), shm, temp)
    return removed


def _find_stale(shm: Path, temp: Path) -> list[_Found]:
    blocks, locks = _by_number(shm, _BLOCKS), _by_number(temp, _LOCKS)
    if not blocks and not locks:
        return []
    wanted = {found.inode for group in (*blocks.values(), *locks.values()) for found in group}
    try:
        live = {inode for pid in _pids() for inode in _inodes(pid, wanted)}
    except PermissionError as error:
        log.warning("cannot tell whose shared memory is in use (%s): leaving it", error)
        return []
    groups = {number: [*blocks.get(number, []), *locks.get(number, [])] for number in {*blocks, *locks}}
    return [found for _, group in sorted(groups.items()) if not any(f.inode in live for f in group) for found in group]


def _by_number(folder: Path, names: tuple[str, ...]) -> dict[int, list[_Found]]:
    """The plain files of this user whose names are streaming's, by their number."""
    groups = defaultdict(list)
    pattern = re.compile(rf"(\d{{6,}})_({'|'.join(names)})")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:  # no shared memory as files on this system
        return {}
    for entry in entries:
        match = pattern.fullmatch(entry.name)
        if match is None or not entry.is_file(follow_symlinks=False):
            continue
        try:
            stat = os.lstat(entry.path)
        except FileNotFoundError:
            continue
        if stat.st_uid == os.getuid():
            groups[int(match[1])].append(_Found(Path(entry.path), (stat.st_dev, stat.st_ino)))
    return dict(groups)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _inodes(pid: int, wanted: set[_Inode]) -> Iterator[_Inode]:
    """Which of the files a process has mapped or open.

    A process that has ended has none, nor has one of another user, who may not open what is this user's alone, nor one
    that is not Python (a container's first process often may not be looked into). Raises PermissionError for a Python
    process of this user that may not be looked into.
    """
    folder = Path("/proc", str(pid))
    try:
        for line in (folder / "maps").read_text(errors="replace").splitlines():
            _, _, _, device, inode, *_ = line.split(maxsplit=5)
            major, minor = (int(part, 16) for part in device.split(":"))
            if (found := (os.makedev(major, minor), int(inode))) in wanted:
                yield found
        for name in os.listdir(folder / "fd"):
            try:
                stat = os.stat(folder / "fd" / name)
            except FileNotFoundError:
                continue  # closed meanwhile
            if (found := (stat.st_dev, stat.st_ino)) in wanted:
                yield found
    except (FileNotFoundError, ProcessLookupError):
        return
    except PermissionError:
        try:
            name = (folder / "comm").read_text()  # "pt_data_worker": PyTorch's loaders
            if folder.stat().st_uid == os.getuid() and ("python" in name or name.startswith("pt_")):
                raise
        except (FileNotFoundError, ProcessLookupError):
            return
