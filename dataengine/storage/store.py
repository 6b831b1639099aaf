"""The interface of a store, and writing its files in the background."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

FILES_IN_FLIGHT = 4  # files of a folder that are uploaded at a time
AddFile = Callable[[str, bytes], None]  # takes the name and content of a file


@dataclass(frozen=True)
class Store(ABC):
    """A place for builds. Keys and prefixes are relative paths such as "a/b/c"; the prefix "" is the whole store."""

    url: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Read a file. Raises FileNotFoundError if there is none, InputError if it cannot be read."""

    @abstractmethod
    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Read all bytes [start, stop) of a file. Raises as `read`, and InputError if the file is shorter."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Size of a file in bytes; None if there is none."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Size in bytes of every file below a folder, by key, sorted by key."""

    def sizes_if_few(self, prefix: str, requests: int) -> dict[str, int] | None:
        """As `sizes`, if it takes at most this many requests; else None. On a disk, names are as cheap to look up."""
        return None

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write or replace a file, whole or not at all. Raises InputError if it cannot be written."""

    @abstractmethod
    def write_from(self, key: str, path: Path) -> None:
        """As `write`, with the content of a local file that does not change meanwhile. Uses little memory.

        Raises FileNotFoundError if the local file does not exist.
        """

    @abstractmethod
    def link(self, source: str, key: str, size: int | None = None) -> None:
        """Give the content of `source` a second key, without reading it if possible. In a bucket, a known size saves a
        request."""

    @abstractmethod
    def remove(self, prefix: str) -> None:
        """Remove a file, or a folder with everything below it, if it exists."""

    @abstractmethod
    def remove_files(self, keys: Sequence[str]) -> None:
        """Remove files, if they exist, and folders that are then empty."""

    @abstractmethod
    def freed_by(self, keys: Sequence[str]) -> int:
        """The bytes that removing files frees."""

    @property
    @abstractmethod
    def copies_links(self) -> bool:
        """Whether `link` makes a copy, which needs space of its own."""

    @abstractmethod
    def new_folder(self, key: str, last: str) -> AbstractContextManager[AddFile]:
        """Fill a folder by calls of (name, content). Once the file `last` exists, all files exist and are complete.

        After an error in the block, `last` does not exist. Files of earlier attempts stay. Raises InputError if a file
        cannot be written, or an object store already has other content under its name.
        """

    @abstractmethod
    def remove_leftovers(self, prefix: str) -> None:
        """Remove half-written files of dead processes directly in a folder."""


@contextmanager
def write_in_background(write: AddFile, *, threads: int) -> Iterator[AddFile]:
    """Call `write` in threads, at most FILES_IN_FLIGHT files at a time. Errors appear at the next file or the end."""
    running: set[Future[None]] = set()

    def settle(at_most: int) -> None:
        while len(running) > at_most:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                running.remove(done)
                done.result()

    def add(name: str, content: bytes) -> None:
        settle(FILES_IN_FLIGHT - 1)
        running.add(pool.submit(write, name, content))

    with ThreadPoolExecutor(threads) as pool:
        yield add
        settle(0)
