"""A store that passes everything on to another one. Subclasses change what they are about."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from dataengine.storage.store import AddFile, Store


@dataclass(frozen=True)
class PassingStore(Store):
    """Passes everything on to `inner`."""

    inner: Store

    def read(self, key: str) -> bytes:
        return self.inner.read(key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        return self.inner.read_range(key, start, stop)

    def size(self, key: str) -> int | None:
        return self.inner.size(key)

    def sizes(self, prefix: str) -> dict[str, int]:
        return self.inner.sizes(prefix)

    def write(self, key: str, content: bytes) -> None:
        self.inner.write(key, content)

    def write_from(self, key: str, path: Path) -> None:
        self.write(key, path.read_bytes())

    def link(self, source: str, key: str, size: int | None = None) -> None:
        self.inner.link(source, key, size)

    def remove(self, prefix: str) -> None:
        self.inner.remove(prefix)

    def remove_files(self, keys: Sequence[str]) -> None:
        self.inner.remove_files(keys)

    def freed_by(self, keys: Sequence[str]) -> int:
        return self.inner.freed_by(keys)

    @property
    def copies_links(self) -> bool:
        return self.inner.copies_links

    def remove_leftovers(self, prefix: str) -> None:
        self.inner.remove_leftovers(prefix)

    def new_folder(self, key: str, last: str) -> AbstractContextManager[AddFile]:
        return self.inner.new_folder(key, last)
