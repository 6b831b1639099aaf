"""Find the files or objects that a path, a URL or a glob names."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from dataengine.errors import InputError
from dataengine.storage import hub, web
from dataengine.storage.paths import FoundFile, cannot_read, check_file_kind, is_hub, is_remote, is_url, is_web
from dataengine.storage.s3_client import identify_object, list_objects


def find_files(pattern: str) -> list[FoundFile]:
    """Files that match a path, a URL or a glob of either, including `**`. Sorted by path; empty if there are none.

    Paths on the hub come with the commit that their revision names. Files on web servers have no globs.

    `*` stays within a folder and skips names that begin with a dot. `**` enters each real folder once, also through
    links. A file whose name equals the pattern is the only match, also if it contains `*`, `?` or `[`. In a glob,
    `[*]`, `[?]` and `[[]` match these characters. Folders, and the empty objects that mark them, do not count.

    Raises InputError if a place cannot be read, a link is broken, something is not a file or folder (pipe, socket,
    device), or an object has no ETag, which is needed to notice changes.
    """
    if is_hub(pattern):
        return _find_on_hub(pattern)
    if is_web(pattern):
        return _find_on_web(pattern)
    if not is_url(pattern):
        return _find_local(pattern)
    if not glob.has_magic(pattern):
        try:
            return [identify_object(pattern)]
        except FileNotFoundError:
            return []
    wanted, found = pattern.split("/"), []
    for file in list_objects(pattern[: _first_magic(pattern)]):
        if file.path == pattern:
            found = [file]
            break
        if _matches(file.path.split("/"), wanted):
            found.append(file)
    return sorted((file if file.version else identify_object(file.path) for file in found), key=lambda file: file.path)


def nearest_file(pattern: str) -> str:
    """A hint for the end of a message about a path or glob that names no file: names that are there; else ""."""
    return hub.nearest_hub_file(pattern) if is_hub(pattern) else ""


def _find_on_hub(pattern: str) -> list[FoundFile]:
    place = hub.parse_hub_path(pattern).pinned()
    if not glob.has_magic(place.inner):
        try:
            return [hub.identify_hub_file(str(place))]
        except FileNotFoundError:
            return []
    folder = place.inner[: _first_magic(place.inner)].rpartition("/")[0]
    rest = place.inner[len(folder) :].strip("/")
    files = sorted(hub.list_hub_files(place, folder, below="/" in rest or "**" in rest), key=lambda file: file.path)
    wanted = str(place).split("/")
    exact = [file for file in files if file.path == str(place)]
    return exact or [file for file in files if _matches(file.path.split("/"), wanted)]


def _find_on_web(url: str) -> list[FoundFile]:
    if re.search(r"[*\[\]]", url.partition("://")[2].partition("/")[2]):
        raise InputError(f"{url}: a web server does not list its files. Name each file by its URL, without * and [].")
    try:
        return [web.identify_web_file(url)]
    except FileNotFoundError:
        return []


def _first_magic(pattern: str) -> int:
    return re.search(r"[*?\[]", pattern).start()  # type: ignore[union-attr]


def _find_local(pattern: str) -> list[FoundFile]:
    paths = [pattern]
    if glob.has_magic(pattern) and not os.path.isfile(pattern):
        folder, slash, _ = pattern[: _first_magic(pattern)].rpartition("/")
        *between, last = pattern[len(folder + slash) :].split("/")
        start = folder.rstrip("/") + slash
        paths = sorted(set(_expand(start, [*filter(None, between), last])))
    found = []
    for path in paths:
        status = _stat(path)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            check_file_kind(path, status)
            found.append(FoundFile(path, status.st_size, _version(status)))
    return found


def _version(status: os.stat_result) -> str:
    """A text that differs whenever the content of a file has changed.

    The modification time can be set back, but ctime and inode cannot. They also differ after a copy, a restored backup,
    chmod or a new hard link; the content is then hashed again.
    """
    return f"{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"


def real_file(path: str) -> str:
    """An id that is equal for all names of a file: other spellings of the path, links, hard links. A URL is its own."""
    if is_remote(path):
        return path
    status = _stat(path)
    return path if status is None else f"{status.st_dev}|{status.st_ino}"


def _expand(folder: str, patterns: Sequence[str]) -> Iterator[str]:
    """Paths that match the segments of a glob below a folder ("" or ending with "/"). Some may be folders."""
    pattern, rest = patterns[0], patterns[1:]
    if pattern == "**":
        for inner in _folders_below(folder):
            yield from _expand(inner, rest or ["*"])
        return
    names = [pattern]
    if glob.has_magic(pattern):
        shown = [name for name in _entries(folder) if pattern.startswith(".") or not name.startswith(".")]
        names = [name for name in shown if fnmatchcase(name, pattern)]
    for name in names:
        if not rest:
            yield folder + name
        elif (status := _stat(folder + name)) is not None and stat.S_ISDIR(status.st_mode):
            yield from _expand(f"{folder}{name}/", rest)


def _folders_below(folder: str) -> Iterator[str]:
    """A folder and all folders below it that are not hidden, each once: by its own path, or by the first link to it."""
    seen: set[tuple[int, int]] = set()
    waiting, links = [folder], list[str]()
    while waiting or links:
        path = waiting.pop() if waiting else links.pop(0)
        status = _stat(path or ".")
        if status is None or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield path
        for name, entry in _entries(path).items():
            if name.startswith("."):
                continue
            if entry.is_symlink():
                target = _stat(path + name)
                if target is not None and stat.S_ISDIR(target.st_mode):
                    links.append(f"{path}{name}/")
            elif entry.is_dir():
                waiting.append(f"{path}{name}/")


def _entries(folder: str) -> dict[str, os.DirEntry[str]]:
    """The entries of a folder by name, sorted; empty if there is no such folder."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise cannot_read(folder, error) from None


def _stat(path: str) -> os.stat_result | None:
    """Status of a file or folder; None if there is none. Raises InputError for unreadable paths and broken links."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise InputError(
                f"{path} is a link to {os.readlink(path)}, which does not exist. Restore it, or remove the link."
            ) from None
        return None
    except OSError as error:
        raise cannot_read(path, error) from None


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether path segments match the segments of a glob. `**` matches any number of folders."""
    if not patterns or not names:
        return not names and all(pattern == "**" for pattern in patterns)
    name, pattern = names[0], patterns[0]
    if name.startswith(".") and not pattern.startswith("."):
        return pattern == "**" and _matches(names, patterns[1:])
    if pattern == "**":
        return _matches(names, patterns[1:]) or _matches(names[1:], patterns)
    return fnmatchcase(name, pattern) and _matches(names[1:], patterns[1:])
