"""A store that kills the process which uses it at a named moment, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.passing_store import PassingStore

# Each moment: what is done, a part of the file's key, and whether it is done before the process dies.
MOMENTS = {
    "a unit begins": ("folder", "units/", False),
    "before a unit's first shard": ("add", ".mds", False),
    "after a unit's first shard": ("add", ".mds", True),
    "after a run": ("add", "run.00000", True),
    "before a receipt": ("add", "receipt.json", False),
    "after a unit is published": ("published", "units/", True),
    "before a unit's runs go": ("removed", "/run.", False),
    "while a unit's runs go": ("removed", "/run.", True),
    "before a decision": ("write", "keeps/", False),
    "after a decision": ("write", "keeps/", True),
    "before a stream's shard": ("link", ".mds", False),
    "after a stream's shard": ("link", ".mds", True),
    "before stream.summary": ("write", "stream.summary", False),
    "before index.json": ("write", "index.json", False),
    "after index.json": ("write", "index.json", True),
    "before the manifest": ("write", "manifest.json", False),
    "after the manifest": ("write", "manifest.json", True),
}


@dataclass(frozen=True)
class CrashingStore(PassingStore):
    """Passes everything on to `inner`; the first process to reach the moment dies by SIGKILL. `marker` is a file."""

    moment: str
    marker: str

    def _reach(self, operation: str, key: str, done: bool) -> None:
        wanted, key_part, when = MOMENTS[self.moment]
        if operation == wanted and key_part in key and done == when:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, key: str, content: bytes) -> None:
        self._reach("write", key, False)
        self.inner.write(key, content)
        self._reach("write", key, True)

    def link(self, source: str, key: str, size: int | None = None) -> None:
        self._reach("link", key, False)
        self.inner.link(source, key, size)
        self._reach("link", key, True)

    def remove_files(self, keys: Sequence[str]) -> None:
        self._reach("removed", keys[0] if keys else "", False)
        self.inner.remove_files(keys[: len(keys) // 2])
        self._reach("removed", keys[0] if keys else "", True)
        self.inner.remove_files(keys)

    @contextmanager
    def new_folder(self, key: str, last: str) -> Iterator[Callable[[str, bytes], None]]:
        with self.inner.new_folder(key, last) as add:

            def add_or_die(name: str, content: bytes) -> None:
                self._reach("add", name, False)
                add(name, content)
                self._reach("add", name, True)

            self._reach("folder", key, False)
            yield add_or_die
        self._reach("published", key, True)
