"""A store that counts its requests, and can make each take some time, as a store far away does."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.passing_store import PassingStore


@dataclass(frozen=True)
class CountingStore(PassingStore):
    """Passes everything on to `inner`. Counts requests and bytes by (operation, last part of the key)."""

    delay_s: float = 0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: Any = field(default_factory=threading.Lock)

    def _count(self, operation: str, key: str, size: int = 0) -> None:
        with self._lock:
            self.requests[operation, key.rpartition("/")[2]] += 1
            self.moved[operation, key.rpartition("/")[2]] += size
        time.sleep(self.delay_s)

    def read(self, key: str) -> bytes:
        content = b""
        try:
            content = self.inner.read(key)
        finally:
            self._count("read", key, len(content))
        return content

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        self._count("read", key, stop - start)
        return self.inner.read_range(key, start, stop)

    def size(self, key: str) -> int | None:
        self._count("size", key)
        return self.inner.size(key)

    def sizes(self, prefix: str) -> dict[str, int]:
        found = self.inner.sizes(prefix)
        for _ in range(1 + len(found) // 1000):  # pages
            self._count("list", "")
        return found

    def write(self, key: str, content: bytes) -> None:
        self._count("write", key, len(content))
        self.inner.write(key, content)

    def link(self, source: str, key: str, size: int | None = None) -> None:
        self._count("link", key)
        self.inner.link(source, key, size)

    def remove(self, prefix: str) -> None:
        self._count("remove", prefix)
        self.inner.remove(prefix)

    def remove_files(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._count("remove", key)
        self.inner.remove_files(keys)

    @contextmanager
    def new_folder(self, key: str, last: str) -> Iterator[Callable[[str, bytes], None]]:
        with self.inner.new_folder(key, last) as add:

            def add_counted(name: str, content: bytes) -> None:
                self._count("write", f"{key}/{name}", len(content))
                add(name, content)

            yield add_counted
