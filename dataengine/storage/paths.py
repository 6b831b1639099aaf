"""Paths and URLs: what they name, and the errors for those that cannot be used."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from dataengine.errors import InputError

_SCHEMES = ("s3", "gs", "oci")
_WEB = ("https://", "http://")
HUB = "hf://"


def where_it_would_be(path: Path) -> str:
    """A hint for a relative path whose store does not exist: the working directory may be the wrong one."""
    missing = next((folder for folder in reversed(path.parents) if not folder.exists()), path)
    if path.is_absolute() or {"experiments", "streams"} & set(missing.parts) or missing == path:
        return ""
    return f". There is no folder {missing.absolute()}: relative paths begin at the working directory, {Path.cwd()}"


def refuse_url(path: Path) -> None:
    """Raise InputError for a URL, which would otherwise create a folder `s3:` in the working directory."""
    if re.match(r"\w+:/", str(path)):  # `Path` keeps one slash of two
        raise InputError(f"cannot write {path}: it is a URL. Give a path on this machine, and upload the file.")


@dataclass(frozen=True)
class FoundFile:
    """A file or object that exists."""

    path: str  # local path or URL
    size: int  # bytes
    version: str  # an object's ETag without quotes ("": it has none); for others see `find._version`, `hub`, `web`
    ranges: bool = True  # False: its server sends it as a whole only


def is_url(path: str) -> bool:
    """Whether a path is the URL of an object store."""
    return path.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def is_web(path: str) -> bool:
    """Whether a path is the URL of a file on a web server."""
    return path.startswith(_WEB)


def is_hub(path: str) -> bool:
    """Whether a path is in a repository of the Hugging Face hub."""
    return path.startswith(HUB)


def is_remote(path: str) -> bool:
    """Whether a path is a URL that sources are read from."""
    return is_url(path) or is_web(path) or is_hub(path)


def read_only_hint(path: str) -> str:
    """A hint for a URL that is read and never written; "" for others."""
    if is_hub(path):
        return " The hub is only read. To publish what was built or exported, upload its folder (hf upload)."
    return " Web servers are only read." if is_web(path) else ""


def check_file_kind(path: str, status: os.stat_result) -> None:
    """Raise InputError for a pipe, socket or device: reading it may never end."""
    mode = status.st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise InputError(f"{path} is {kind}, not a file. Sources are read more than once: write the data to a file first.")


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and key (or prefix) of a URL. Raises InputError if it has no bucket."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not url.isascii() and url.encode(errors="replace").decode() != url:
        raise InputError(f"{url!a} is not UTF-8, and object names must be. Correct the URL.")
    if scheme not in _SCHEMES or not bucket:
        raise InputError(
            f"'{url}' is not the URL of an object. Write {' or '.join(f'{s}://bucket/…' for s in _SCHEMES)}."
        )
    return scheme, bucket, key


def cannot_read(path: str, error: OSError) -> InputError:
    return InputError(f"cannot read {path}: {error.strerror or error}. Check the path and its permissions.")
