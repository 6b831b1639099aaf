"""Open a file or an object, or a range of it, as a seekable stream."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from dataengine.errors import InputError
from dataengine.storage.hub import open_hub_file
from dataengine.storage.paths import cannot_read, check_file_kind, is_hub, is_url, is_web
from dataengine.storage.s3_client import get_bytes, identify_object
from dataengine.storage.web import open_web_file

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 8 << 20  # bytes of a ranged GET
_BUFFER = 1 << 20  # bytes


def open_file(path: str, start: int = 0, stop: int | None = None, version: str = "") -> BinaryIO:
    """Open the bytes [start, stop) of a file or object as a seekable stream. Positions count from `start`.

    A range beyond the end stops at the end. URLs are read in blocks of 8 MiB, less after a seek; a thread fetches the
    next block while reading goes forward. All blocks are of one version: `version` if given (ignored for files). Raises
    InputError when opening if the file cannot be read, and when reading if a URL fails or has changed.
    """
    if is_hub(path) or is_web(path):
        try:
            remote = open_hub_file(path, version) if is_hub(path) else open_web_file(path, version)
        except FileNotFoundError as error:
            raise InputError(f"{error}. Correct the path.") from None
        end = remote.size if stop is None else min(stop, remote.size)
        return io.BufferedReader(_UrlRange(start, max(start, end), remote.read, remote.close), _BUFFER)
    if is_url(path):
        try:
            found = identify_object(path, version)
        except FileNotFoundError as error:
            raise InputError(f"{error}. Correct the path.") from None
        end = found.size if stop is None else min(stop, found.size)
        read = partial(_read_object, path, found.version)
        return io.BufferedReader(_UrlRange(start, max(start, end), read), _BUFFER)
    try:
        check_file_kind(path, os.stat(path))  # opening a pipe would wait
        file = open(path, "rb", buffering=0)  # noqa: SIM115
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise cannot_read(path, error) from None
    end = size if stop is None else min(stop, size)
    return io.BufferedReader(_FileRange(path, file, start, max(start, end)), _BUFFER)


class _Range(io.RawIOBase):
    """Bytes [start, stop) of a file or object. Subclasses implement reading."""

    def __init__(self, start: int, stop: int) -> None:
        self._start = start
        self._size = stop - start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"negative position {position}")
        self._position = position
        return position

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(_BLOCK) or b"", b""))

    def _left(self, wanted: int) -> int:
        return max(0, min(wanted, self._size - self._position))


class _FileRange(_Range):
    def __init__(self, path: str, file: io.FileIO, start: int, stop: int) -> None:
        super().__init__(start, stop)
        self._path = path
        self._file = file

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        try:
            self._file.seek(self._start + self._position)
            count = self._file.readinto(view[: self._left(len(view))]) or 0
        except OSError as error:
            raise cannot_read(self._path, error) from None
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_object(url: str, version: str, start: int, stop: int) -> bytes:
    try:
        return get_bytes(url, start, stop, version)
    except FileNotFoundError:
        raise InputError(f"{url}: it was removed while it was being read. Restore it and run again.") from None


class _UrlRange(_Range):
    """A range of an object or of a file on a server; `read` gets the bytes [start, stop) of the whole."""

    def __init__(
        self, start: int, stop: int, read: Callable[[int, int], bytes], close: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(start, stop)
        self._read, self._close = read, close
        self._pool = ThreadPoolExecutor(1)  # its thread starts with the first task
        self._first = 0  # position of the current block
        self._block = b""
        self._run = 0  # blocks read one after the other; -1 after a seek
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        wanted = self._left(len(view))
        if wanted == 0:
            return 0
        if not self._first <= self._position < self._first + len(self._block):
            self._load(wanted)
        offset = self._position - self._first
        part = memoryview(self._block)[offset : offset + wanted]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _load(self, wanted: int) -> None:
        """Load the block at the position: a full one after another, only what is wanted after a seek."""
        first = self._position
        forward = first == self._first + len(self._block)
        if self._ahead is not None and self._ahead[0] == first:
            self._block = self._ahead[1].result()
        else:
            self._block = self._fetch(first, _BLOCK if forward else min(wanted, _BLOCK))
        self._first, self._run, self._ahead = first, self._run + 1 if forward else -1, None
        after = first + len(self._block)
        if self._run > 0 and after < self._size:
            self._ahead = after, self._pool.submit(self._fetch, after, _BLOCK)

    def _fetch(self, first: int, size: int) -> bytes:
        return self._read(self._start + first, self._start + min(first + size, self._size))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._close()
        self._block = b""
        super().close()
