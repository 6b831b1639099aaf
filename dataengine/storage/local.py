"""A store in a local or mounted folder."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dataengine.errors import InputError
from dataengine.storage.atomic import (
    WRITING_PREFIX,
    link_file,
    new_file,
    publish_folder,
    remove_leftovers,
    temporary_path,
    write_file,
)
from dataengine.storage.store import AddFile, Store, write_in_background

_BUFFER = 64 << 20  # bytes that are copied at a time


class LocalStore(Store):
    """A store in a local or mounted folder. Folders are published by renaming, so they are complete or absent."""

    def path(self, key: str) -> Path:
        """The path of a file in the store."""
        return Path(self.url, key)

    def read(self, key: str) -> bytes:
        with _reading(self.path(key)):
            return self.path(key).read_bytes()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        path = self.path(key)
        with _reading(path), path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start)
        if len(content) != stop - start:
            raise InputError(
                f"{path}: got {len(content):,} bytes of [{start:,}, {stop:,}). It has changed; build again."
            )
        return content

    def size(self, key: str) -> int | None:
        try:
            with _reading(self.path(key)):
                return self.path(key).stat().st_size
        except FileNotFoundError:
            return None

    def sizes(self, prefix: str) -> dict[str, int]:
        folder = prefix.rstrip("/")
        with _reading(self.path(folder)):
            return dict(sorted(_walk(self.path(folder), f"{folder}/" if folder else "")))

    def write(self, key: str, content: bytes) -> None:
        with _writing(self.path(key)):
            write_file(self.path(key), content)

    def write_from(self, key: str, path: Path) -> None:
        target = self.path(key)
        with path.open("rb") as source, _writing(target), new_file(target) as file:
            shutil.copyfileobj(source, file, _BUFFER)

    def link(self, source: str, key: str, size: int | None = None) -> None:
        """See `Store.link`. The name survives a power loss once another file is written to the folder."""
        path = self.path(key)
        temporary = temporary_path(path)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                link_file(self.path(source), temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)  # it still exists if both were names of one file

    def remove(self, prefix: str) -> None:
        path = self.path(prefix.rstrip("/"))
        with _writing(path):
            if path.is_dir():
                gone = temporary_path(path)
                os.rename(path, gone)  # readers must not see a part of the folder
                shutil.rmtree(gone)
            else:
                path.unlink(missing_ok=True)

    def remove_files(self, keys: Sequence[str]) -> None:
        for key in keys:
            with _writing(self.path(key)):
                self.path(key).unlink(missing_ok=True)
        for folder in {self.path(key).parent for key in keys}:
            with suppress(OSError):  # it is not empty
                folder.rmdir()

    def freed_by(self, keys: Sequence[str]) -> int:
        found = [self.path(key).stat() for key in keys]
        names = Counter((status.st_dev, status.st_ino) for status in found)  # the names of a file that go
        sizes = {
            (one.st_dev, one.st_ino): one.st_size for one in found if names[one.st_dev, one.st_ino] == one.st_nlink
        }
        return sum(sizes.values())

    @property
    def copies_links(self) -> bool:
        return False

    @contextmanager
    def new_folder(self, key: str, last: str) -> Iterator[AddFile]:
        path = self.path(key)
        temporary = temporary_path(path)
        with _writing(path):
            temporary.mkdir(parents=True)

        def write(name: str, content: bytes) -> None:
            with _writing(path / name), (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        try:
            with write_in_background(write, threads=1) as add:  # the caller does not wait for writes and fsync
                yield add
            assert (temporary / last).exists(), f"{path}: no {last}"
            with _writing(path):
                # without its last file, it was left by an interrupted copy, or is made again while others read it
                publish_folder(temporary, path, replace=path.is_dir() and not (path / last).exists())
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove_leftovers(self, prefix: str) -> None:
        with _writing(self.path(prefix)):
            remove_leftovers(self.path(prefix))


def _walk(folder: Path | str, prefix: str) -> Iterator[tuple[str, int]]:
    """Key and size of every file below a folder, except half-written ones."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return  # removed meanwhile, or not yet created
    except NotADirectoryError:
        raise InputError(
            f"{folder} should be a folder, but it or a parent is a file. Correct the path, or move the file."
        ) from None
    for entry in entries:
        if entry.name.startswith(WRITING_PREFIX):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield prefix + entry.name, entry.stat().st_size


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}. Check the path and its permissions."
        ) from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Free space" if full else "Check the path and its permissions"
        raise InputError(
            f"cannot write {path}: {error.strerror or error}. {remedy}, or choose another store; then run again."
        ) from None
