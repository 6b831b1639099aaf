"""Shards of a store as arrays, mapped in place or downloaded to a folder of the node first.

CACHE/<stream's folder>/shard.00000.mds      a raw shard; it gets this name after its hashes are checked
CACHE/<stream's folder>/index.json
CACHE/.locks/00 ...                          held while a shard is downloaded, or while shards are removed

All processes of a node share the folder: ranks, their loader workers, prefetchers, and other runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from numpy.typing import NDArray

from dataengine.errors import DamagedError, InputError, MissingError
from dataengine.mds.reader import can_be_mapped, is_index_of, map_shard, read_index, read_raw_shard
from dataengine.mds.types import Stream, hash_bytes, token_dtype
from dataengine.storage.retry import retry
from dataengine.storage.store import Store
from dataengine.tables import size_words

if TYPE_CHECKING:
    from dataengine.schedule.manifest import Manifest

log = logging.getLogger(__name__)
_LOCKS = 256
_SAY_S = 30.0  # between equal lines of a log
_SPARE = 1 << 30  # bytes of the disk that stay free where no limit is set
_FETCHING = ".fetching-"
_STALE_S = 3600
_THRASH = 3  # downloads of one shard by one process that mean that the cache is too small
SHARDS_MAPPED = 256  # by each loader worker; a mapping costs an open file


class ShardCache:
    """The shards of the streams of a manifest. An uncompressed local store is read in place, without a copy.

    `limit` is the bytes of shards to keep in `folder`; None leaves 1 GB of the disk free. `outage_limit` is the
    number of seconds to retry while the store fails; None for a few attempts. Can be pickled, and used after a fork.
    """

    def __init__(
        self, store: Store, folder: Path, manifest: Manifest, *, limit: int | None, outage_limit: float | None
    ) -> None:
        self._store, self._manifest, self._outage_limit = store, manifest, outage_limit
        self._width, self._dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
        self._in_place = store if can_be_mapped(store, manifest.streams) else None
        self._folder, self._limit = folder, limit
        self._fetched: dict[tuple[int, int], int] = {}  # downloads of each shard by this process
        self._said = -float("inf")  # time of the last message about a failing store
        if self._in_place is None and limit is not None and limit < cache_floor(manifest):
            raise InputError(
                f"cache_limit is {size_words(limit)}, but the steps of this plan need "
                f"{size_words(cache_floor(manifest))} of shards at a time. Set it to {cache_floor(manifest)} or more, "
                "or leave it out."
            )

    @property
    def remote(self) -> bool:
        """Whether shards are downloaded."""
        return self._in_place is None

    def index_folder(self, number: int) -> Path:
        """A folder with the index.json of a stream. Raises InputError if it is missing or not that of the manifest."""
        stream = self._manifest.streams[number]
        if self._in_place is not None:
            folder = self._in_place.path(stream.remote)
            read_index(self._store, stream)
            return folder
        folder = self._folder / stream.remote
        path = folder / "index.json"
        with self._lock(path):
            for left in folder.glob(f"{_FETCHING}*"):  # of a killed process
                if time.time() - left.stat().st_mtime > _STALE_S:
                    left.unlink(missing_ok=True)
            if not path.is_file() or not is_index_of(stream, path.read_bytes()):
                _write(path, self._retry(lambda: read_index(self._store, stream)))
        return folder

    def map(self, number: int, shard: int) -> NDArray[Any]:
        """The samples of a shard of stream `number`, as `map_shard` gives them, downloaded first if needed.

        The shard is hashed, in the cache or in place: 16 MB take 2 ms. A damaged one in the cache is downloaded again.
        Raises InputError if a shard in place is damaged or missing.
        """
        stream = self._manifest.streams[number]
        basename = stream.shards[shard].raw.basename
        if self._in_place is not None:
            path = self._in_place.path(f"{stream.remote}/{basename}")
            if problem := _damage(path, stream, shard):
                kind = DamagedError if path.is_file() else MissingError
                raise kind(f"{path} {problem}. Restore it, or remove its folder and build again.")
            return map_shard(path, self._width, self._dtype, loss_mask=stream.loss_mask)
        path = self._folder / stream.remote / basename
        while True:
            self.fetch(number, shard)
            with contextlib.suppress(FileNotFoundError):  # evicted just now
                # stays readable after an eviction
                mapped = map_shard(path, self._width, self._dtype, loss_mask=stream.loss_mask)
                if self._whole(path, stream, shard):
                    os.utime(path)
                    return mapped

    def fetch(self, number: int, shard: int) -> None:
        """Download a shard unless it is on this disk. Raises InputError if that is not possible."""
        stream = self._manifest.streams[number]
        raw = stream.shards[shard].raw
        path = self._folder / stream.remote / raw.basename
        if self._in_place is not None or _size(path) == raw.bytes:
            return
        with self._lock(path):
            if _size(path) == raw.bytes:  # another process was faster
                return
            content = self._retry(lambda: read_raw_shard(self._store, stream, shard))
            self._make_room(len(content), path)
            _write(path, content)
        self._fetched[number, shard] = self._fetched.get((number, shard), 0) + 1
        if self._fetched[number, shard] == _THRASH:
            log.warning(
                "%s was fetched %d times by this process: the cache evicts shards still in use. Raise cache_limit.",
                path,
                _THRASH,
            )

    def _whole(self, path: Path, stream: Stream, shard: int) -> bool:
        """Whether a cached shard is whole. Removes a damaged one."""
        if _damage(path, stream, shard) is None:
            return True
        log.warning("%s is damaged on this disk; fetching it again", path)
        path.unlink(missing_ok=True)
        return False

    def _retry(self, read: Callable[[], bytes]) -> bytes:
        """Read from the store. Retries if the store fails or the content is damaged."""
        return retry(read, outage_limit=self._outage_limit, doubted=(DamagedError,), on_failure=self._say)

    def _say(self, error: BaseException, elapsed_s: float) -> None:
        if time.monotonic() - self._said > _SAY_S:
            self._said = time.monotonic()
            log.warning("waiting for the store, %.0f s so far: %s", elapsed_s, error)

    @contextlib.contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        """A lock on a shard between processes. The kernel releases the lock of a killed process."""
        folder = self._folder / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{zlib.crc32(str(path).encode()) % _LOCKS:02x}"):
                yield
        except OSError as error:
            raise InputError(
                f"cannot write the cache {self._folder}: {error.strerror or error}. Free space or check the "
                "permissions, or set another `cache`; then run again."
            ) from None

    def _make_room(self, needed: int, path: Path) -> None:
        """Remove the least recently mapped shards until there is room for one of `needed` bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._limit is None and shutil.disk_usage(path.parent).free > needed + _SPARE:
            return
        with FileLock(self._folder / ".locks" / "eviction"):
            held = sorted(self._held())
            total = sum(size for _, size, _ in held)
            free = shutil.disk_usage(path.parent).free
            for _, size, oldest in held:
                if (total + needed <= self._limit) if self._limit is not None else (free > needed + _SPARE):
                    return
                oldest.unlink(missing_ok=True)
                total, free = total - size, free + size

    def _held(self) -> Iterator[tuple[float, int, Path]]:
        """Time of the last mapping, size in bytes, and path of each cached shard."""
        for path in self._folder.rglob("*.mds"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path


def cache_floor(manifest: Manifest) -> int:
    """Bytes of the shards that can be in use at the same time, in a stage and the next one.

    Samples are shuffled inside blocks of `shuffle_block`. So for every lane, a stream needs the shards of the current
    block and of the next one, which is prefetched, plus one shard at either end.
    """
    needs = {}
    for stream in manifest.streams:
        sizes = sorted((shard.raw.bytes for shard in stream.shards), reverse=True)
        samples = max((shard.samples for shard in stream.shards), default=1)
        at_once = manifest.lanes * (2 * -(-manifest.shuffle_block // samples) + 2)
        needs[stream.name] = sum(sizes[:at_once])
    stages = [{name for name, count in stage.samples.items() if count} for stage in manifest.stages]
    return max(
        sum(needs[name] for name in names | after) for names, after in zip(stages, [*stages[1:], set()], strict=True)
    )


def _damage(path: Path, stream: Stream, shard: int) -> str | None:
    """The problem with the content of a raw shard, by the fastest of its hashes; None if it is whole."""
    raw = stream.shards[shard].raw
    algorithm, expected = min(raw.hashes.items(), key=lambda entry: not entry[0].startswith("xxh"))
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "is missing"
    if len(content) != raw.bytes:
        return f"is damaged: it has {len(content)} bytes, not {raw.bytes}"
    found = hash_bytes(content, algorithm)
    return None if found == expected else f"is damaged: its {algorithm} is {found}, and {expected} was written"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name. No fsync: the file is checked on use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_FETCHING)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
