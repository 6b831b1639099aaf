"""Remove the shared memory and lock files of killed runs of streaming.

A StreamingDataset names its blocks by a number, which trainer.data.dataset draws at random and streaming itself takes
as the first free one: /dev/shm/000003_locals, 000003_barrier and so on, and /tmp/000003_barrier_filelock. A killed run
leaves them behind.

A number is in use if any process has one of its blocks mapped or open. Blocks are compared by device and inode, because
a process in a container may see them under another path. Do not call this in containers that share /dev/shm but not
their process ids: they cannot see each other's processes.
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
    """Remove this user's blocks and lock files whose number no live process uses; return the removed paths.

    Removes nothing if a process of this user cannot be inspected. Call it on the first rank of a node, before any
    dataset exists on it, while the node's other ranks wait. Sweeps on one machine exclude each other.
    """
    temp = temp or Path(tempfile.gettempdir())
    removed = []
    try:
        with FileLock(temp / f"streaming-sweep-{os.getuid()}.lock", timeout=_LOCK_TIMEOUT_S):
            for found in _find_stale(shm, temp):
                try:
                    now = found.path.lstat()
                    if (now.st_dev, now.st_ino) == found.inode:  # not created again meanwhile
                        found.path.unlink()
                        removed.append(found.path)
                except FileNotFoundError:
                    continue  # its owner's resource tracker was faster
    except Timeout:
        log.warning("%s is locked by another run: shared memory of killed runs is not removed now", temp)
    if removed:
        log.info("removed %d blocks and locks of killed runs from %s and %s", len(removed), shm, temp)
    return removed


def _find_stale(shm: Path, temp: Path) -> list[_Found]:
    blocks, locks = _by_number(shm, _BLOCKS), _by_number(temp, _LOCKS)
    if not blocks and not locks:
        return []
    wanted = {found.inode for group in (*blocks.values(), *locks.values()) for found in group}
    try:
        live = {inode for pid in _pids() for inode in _inodes(pid, wanted)}
    except PermissionError as error:
        log.warning("cannot see which shared memory is in use (%s): removing none", error)
        return []
    groups = {number: [*blocks.get(number, []), *locks.get(number, [])] for number in {*blocks, *locks}}
    return [found for _, group in sorted(groups.items()) if not any(f.inode in live for f in group) for found in group]


def _by_number(folder: Path, names: tuple[str, ...]) -> dict[int, list[_Found]]:
    """Return this user's plain files with names of streaming, by number."""
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
    """Yield the files in `wanted` that a process has mapped or open.

    Yields nothing for a process that has ended, of another user (who cannot open this user's files), or that is not
    Python (a container's first process often cannot be inspected). Raises PermissionError for a Python process of this
    user that cannot be inspected.
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
