"""The interface of a store of builds, and writing its files in the background."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

FILES_IN_FLIGHT = 4  # files of a folder that are uploaded at a time
AddFile = Callable[[str, bytes], None]  # takes the name and the content of a file to keep


@dataclass(frozen=True)
class Store(ABC):
    """A place for builds. Keys and prefixes are relative, "a/b/c"; a prefix names a folder, "" the whole store."""

    url: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Content of a file. Raises FileNotFoundError if there is none, InputError if it cannot be read."""

    @abstractmethod
    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, all of them. Raises as `read`, and InputError if it is shorter."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Size of a file in bytes; None if there is none."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Size in bytes of every file below a folder, by key, in the order of the keys."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write or replace a file, whole or not at all. Raises InputError if it cannot be written."""

    @abstractmethod
    def write_from(self, key: str, path: Path) -> None:
        """As `write`, with the content of a local file that nobody changes, of which little is held in memory.

        Raises FileNotFoundError if there is no such local file.
        """

    @abstractmethod
    def link(self, source: str, key: str) -> None:
        """Give the content of `source` a second key, without reading it if possible."""

    @abstractmethod
    def remove(self, prefix: str) -> None:
        """Remove a file or a folder with all below it; nothing happens if there is none."""

    @abstractmethod
    def new_folder(self, key: str, last: str) -> AbstractContextManager[AddFile]:
        """Fill a folder by calls of (name, content); if the file `last` is there, then all are, and are whole.

        On an error in the block, `last` does not appear. Files that are there already, of another attempt, stay. Raises
        InputError if a file cannot be written, and RuntimeError where a store finds other content under its name.
        """

    @abstractmethod
    def remove_leftovers(self, prefix: str) -> None:
        """Remove what dead processes left half-written directly in a folder."""


@contextmanager
def write_in_background(write: AddFile, *, threads: int) -> Iterator[AddFile]:
    """`write` by threads, of at most FILES_IN_FLIGHT files at a time; errors come up at the next file or at the end."""
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
