"""Find and read files on local disk and in object stores, s3://, gs:// and oci://, all by the S3 protocol.

Credentials of s3:// and oci:// come from botocore's usual chain (environment, shared files, roles), their endpoint from
S3_ENDPOINT_URL as in mosaicml-streaming, else from AWS_ENDPOINT_URL, else it is Amazon's. gs:// uses the HMAC keys
GCS_KEY and GCS_SECRET, as mosaicml-streaming does. AWS_MAX_ATTEMPTS limits how often a request is tried.

Tested against SeaweedFS, for all three schemes. Not run against the clouds of Amazon, Google and Oracle themselves.
"""

from __future__ import annotations

import glob
import io
import os
import random
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, BinaryIO

from dataengine.errors import InputError, OutageError

_BLOCK = 8 << 20  # bytes of a ranged GET
_BUFFER = 1 << 20  # bytes
_SCHEMES = ("s3", "gs", "oci")
_GOOGLE = "https://storage.googleapis.com"
_ATTEMPTS = 10  # of a request, with botocore's backoff and jitter between
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60


@dataclass(frozen=True)
class FoundFile:
    """A file or object that exists."""

    path: str  # local path or URL
    size: int  # bytes
    version: str  # of an object: its ETag, without quotes ("": it has none); of a file: see `_version`


def is_url(path: str) -> bool:
    """Whether a path names an object of an object store."""
    return path.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def find_files(pattern: str) -> list[FoundFile]:
    """Files that a path, a URL or a glob of either (`**` too) names, sorted by path; an empty list if there is none.

    `*` stays within a folder and skips names that begin with a dot; `**` enters each real folder once, through links
    too. A file whose name is the pattern itself is what is meant, whatever `*`, `?` and `[` it has; in a glob these
    stand for themselves as `[*]`, `[?]` and `[[]`. Folders and the empty objects that mark them do not count.

    Raises InputError if a place cannot be read, a link leads nowhere, something is neither a file nor a folder (pipe,
    socket, device), or an object has no ETag, without which a change would not be noticed.
    """
    if not is_url(pattern):
        return _find_local(pattern)
    if not glob.has_magic(pattern):
        try:
            return [_identify_object(pattern)]
        except FileNotFoundError:
            return []
    wanted, found = pattern.split("/"), []
    for file in list_objects(pattern[: _first_magic(pattern)]):
        if file.path == pattern:
            found = [file]
            break
        if _matches(file.path.split("/"), wanted):
            found.append(file)
    return sorted((file if file.version else _identify_object(file.path) for file in found), key=lambda file: file.path)


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
            _check_kind(path, status)
            found.append(FoundFile(path, status.st_size, _version(status)))
    return found


def _version(status: os.stat_result) -> str:
    """What differs whenever the content of a file was changed.

    The time of modification can be set back; that of the last change of any kind (ctime) cannot, nor the inode. They
    differ too after a copy, a restored backup, chmod or a new hard link: then the content is hashed once more.
    """
    return f"{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"


def real_file(path: str) -> str:
    """The same for all names of a file: paths written in other ways, links, hard links. A URL stands for itself."""
    if is_url(path):
        return path
    status = _stat(path)
    return path if status is None else f"{status.st_dev}|{status.st_ino}"


def _expand(folder: str, patterns: Sequence[str]) -> Iterator[str]:
    """Paths that match the segments of a glob below a folder, which is "" or ends with "/"; some may be folders."""
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
    """A folder and all below it but hidden ones, each real one once: by its own path, else by the first link to it."""
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
    """What is in a folder, by name and sorted; nothing if there is no such folder."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _cannot_read(folder, error) from None


def _stat(path: str) -> os.stat_result | None:
    """Of a file or folder; None if there is none. Raises InputError if it cannot be read, or is a link to nothing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise InputError(
                f"{path} is a link to {os.readlink(path)}, which is not there. Restore that, or remove the link."
            ) from None
        return None
    except OSError as error:
        raise _cannot_read(path, error) from None


def _check_kind(path: str, status: os.stat_result) -> None:
    """Raise InputError for what is neither a file nor a folder: reading it may wait for ever, and gives no end."""
    mode = status.st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise InputError(f"{path} is {kind}, not a file. Files are read more than once: write one, and name that.")


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether path segments match those of a glob; `**` stands for any number of folders."""
    if not patterns or not names:
        return not names and all(pattern == "**" for pattern in patterns)
    name, pattern = names[0], patterns[0]
    if name.startswith(".") and not pattern.startswith("."):
        return pattern == "**" and _matches(names, patterns[1:])
    if pattern == "**":
        return _matches(names, patterns[1:]) or _matches(names[1:], patterns)
    return fnmatchcase(name, pattern) and _matches(names[1:], patterns[1:])


def open_file(path: str, start: int = 0, stop: int | None = None, version: str = "") -> BinaryIO:
    """Open the bytes [start, stop) of a file or object as a seekable stream, whose positions count from `start`.

    A range that passes the end stops there. An object is read in blocks of 8 MiB, the next one ahead in a thread while
    reading goes forward; all of them are of one version, `version` if given (of files it is ignored). Raises InputError
    on opening if the file cannot be read, and while reading if an object fails or was changed.
    """
    if is_url(path):
        try:
            found = _identify_object(path, version)
        except FileNotFoundError as error:
            raise InputError(f"{error}. Correct the path.") from None
        end = found.size if stop is None else min(stop, found.size)
        return io.BufferedReader(_ObjectRange(path, start, max(start, end), found.version), _BUFFER)
    try:
        _check_kind(path, os.stat(path))  # opening a pipe would wait
        file = open(path, "rb", buffering=0)  # noqa: SIM115
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _cannot_read(path, error) from None
    end = size if stop is None else min(stop, size)
    return io.BufferedReader(_FileRange(path, file, start, max(start, end)), _BUFFER)


class _Range(io.RawIOBase):
    """Bytes [start, stop) of something; subclasses read them at the position."""

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

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            self._file.seek(self._start + self._position)
            count = self._file.readinto(view[: self._left(len(view))]) or 0
        except OSError as error:
            raise _cannot_read(self._path, error) from None
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _ObjectRange(_Range):
    def __init__(self, url: str, start: int, stop: int, version: str) -> None:
        super().__init__(start, stop)
        self._url = url
        self._version = version
        self._pool = ThreadPoolExecutor(1)  # its thread starts with the first task
        self._number = -1  # of the block held
        self._block = b""
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = self._left(len(view))
        if wanted == 0:
            return 0
        number, offset = divmod(self._position, _BLOCK)
        if number != self._number:
            self._load(number)
        part = memoryview(self._block)[offset : offset + wanted]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _load(self, number: int) -> None:
        forward = number == self._number + 1
        if self._ahead is not None and self._ahead[0] == number:
            self._block = self._ahead[1].result()
        else:
            self._block = self._fetch(number)
        self._number = number
        self._ahead = None
        if forward and (number + 1) * _BLOCK < self._size:
            self._ahead = number + 1, self._pool.submit(self._fetch, number + 1)

    def _fetch(self, number: int) -> bytes:
        first = number * _BLOCK
        wanted = min(_BLOCK, self._size - first)
        begin = self._start + first
        try:
            return get_bytes(self._url, begin, begin + wanted, self._version)
        except FileNotFoundError:
            raise InputError(f"{self._url}: it was removed while it was read. Put it back and run again.") from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._block = b""
        super().close()


# What storage shares.


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and key (or prefix) of a URL. Raises InputError if it has no bucket."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not url.isascii() and url.encode(errors="replace").decode() != url:
        raise InputError(f"{url!a} is not UTF-8, as names of objects are. Correct the URL.")
    if scheme not in _SCHEMES or not bucket:
        raise InputError(
            f"'{url}' is not the URL of an object. Write {' or '.join(f'{s}://bucket/…' for s in _SCHEMES)}."
        )
    return scheme, bucket, key


def connect(url: str) -> tuple[Any, dict[str, str]]:
    """A client for a URL, the same one for all threads of a process, and the arguments that name its object.

    Raises InputError if the environment lacks what the scheme needs.
    """
    scheme, bucket, key = split_url(url)
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "S3_", "GCS_"))))
    return _make_client(os.getpid(), scheme, settings), {"Bucket": bucket, "Key": key}


@lru_cache(maxsize=8)
def _make_client(pid: int, scheme: str, settings: tuple[tuple[str, str], ...]) -> Any:
    """`pid` and `settings` (of the environment) are the cache's key: clients do not outlive a fork or a change."""
    from botocore.config import Config  # type: ignore[import-untyped]
    from botocore.session import get_session  # type: ignore[import-untyped]

    variables = dict(settings)
    session = get_session()
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=32,
        retries={
            "mode": "standard",
            "total_max_attempts": session.get_config_variable("max_attempts") or _ATTEMPTS,
        },
        request_checksum_calculation="when_required",  # we give our own
        # Google's and Oracle's interfaces may not know Amazon's newer checksums.
        response_checksum_validation="when_supported" if scheme == "s3" else "when_required",
    )
    place = {"endpoint_url": endpoint_of(scheme), "region_name": variables.get("AWS_REGION") or None}
    if scheme == "gs":
        place |= {
            "region_name": "auto",
            "aws_access_key_id": variables["GCS_KEY"],
            "aws_secret_access_key": variables["GCS_SECRET"],
        }
    with faults(f"{scheme}://"):
        return session.create_client("s3", config=config, **place)


def endpoint_of(scheme: str) -> str | None:
    """The endpoint to use for a scheme; None leaves it to botocore (AWS_ENDPOINT_URL or Amazon's).

    GCS_ENDPOINT_URL replaces Google's endpoint. Raises InputError if the environment lacks what the scheme needs.
    """
    given = os.environ.get("S3_ENDPOINT_URL") or None
    for name in ("S3_ENDPOINT_URL", "GCS_ENDPOINT_URL", "AWS_ENDPOINT_URL"):
        if (url := os.environ.get(name)) and not url.startswith(("http://", "https://")):
            raise InputError(f"the environment variable {name} is {url}: it must begin with http:// or https://")
    if scheme == "oci" and given is None:
        raise InputError(
            "oci:// needs the environment variable S3_ENDPOINT_URL: Oracle's S3-compatible endpoint, "
            "https://NAMESPACE.compat.objectstorage.REGION.oraclecloud.com. Set it, with AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY of a customer secret key."
        )
    if scheme == "gs":
        missing = [name for name in ("GCS_KEY", "GCS_SECRET") if not os.environ.get(name)]
        if missing:
            raise InputError(
                f"gs:// needs the environment variables GCS_KEY and GCS_SECRET; {' and '.join(missing)} missing. "
                "Make an HMAC key in the settings of Cloud Storage and set both."
            )
        return os.environ.get("GCS_ENDPOINT_URL") or _GOOGLE
    return given


def attempts_of(client: Any) -> int:
    """How often a client tries a request."""
    return int(client.meta.config.retries["total_max_attempts"])


def pause(attempt: int) -> None:
    """Wait before another attempt: twice as long each time, by chance between nothing and that, 20 s at most."""
    time.sleep(random.SystemRandom().random() * min(20.0, 0.1 * 2**attempt))


def get_bytes(url: str, start: int = 0, stop: int | None = None, version: str = "") -> bytes:
    """Bytes [start, stop) of an object, of one version if given.

    A connection that breaks in the middle is tried again, as botocore tries requests again. Raises FileNotFoundError
    if there is no such object, else InputError.
    """
    from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError  # type: ignore[import-untyped]
    from urllib3.exceptions import HTTPError

    if start == stop:
        return b""
    client, request = connect(url)
    if start or stop is not None:
        request["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    if version:
        request["IfMatch"] = f'"{version}"'
    last = attempts_of(client) - 1
    for attempt in range(last + 1):
        with faults(url):
            body = client.get_object(**request)["Body"]
            try:
                content = bytes(body.read())
                break
            except (FlexibleChecksumError, HTTPClientError, HTTPError, IncompleteReadError):
                body.close()
                if attempt == last:
                    raise
        pause(attempt)
    if stop is not None and len(content) > stop - start:
        raise InputError(
            f"{url}: asked for {stop - start:,} bytes, the store sent {len(content):,}. It unpacks the object on the "
            "way, as Google's does where Content-Encoding is gzip. Take that off the object (gcloud storage objects "
            "update --clear-content-encoding), or copy the data to a local folder."
        )
    if stop is not None and len(content) != stop - start:
        raise InputError(f"{url}: got {len(content):,} bytes of [{start:,}, {stop:,}). It was changed; run again.")
    return content


def stat_object(url: str, version: str = "") -> FoundFile:
    """Size and version of an object. Raises FileNotFoundError if there is none, InputError if it changed."""
    with faults(url):
        head = head_object(url, **({"IfMatch": f'"{version}"'} if version else {}))
    return FoundFile(url, field_of(head, "ContentLength", url), head.get("ETag", "").strip('"'))


def _identify_object(url: str, version: str = "") -> FoundFile:
    """As `stat_object`; InputError too if the store gives no version."""
    found = stat_object(url, version)
    if not found.version:
        raise InputError(
            f"{url}: the store gives no ETag, by which a change of its content would be noticed. Copy the data to a "
            "local folder or to another store."
        )
    return found


def head_object(url: str, **conditions: str) -> Any:
    """The store's answer to HEAD, inside of `faults`.

    An answer to HEAD has no text, so that a wrong clock looks like a wrong key: after a refusal GET is asked once.
    """
    from botocore.exceptions import ClientError

    client, request = connect(url)
    try:
        return client.head_object(**request, **conditions)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 401, 403):
            client.get_object(**request, Range="bytes=0-0")["Body"].close()  # raises what the store says
        raise


def field_of(answer: Mapping[str, Any], name: str, url: str) -> Any:
    """A field that a store's answer must have. Raises InputError if it does not."""
    if name not in answer:
        raise InputError(f"{url}: the store's answer has no {name}. Check that the endpoint is that of an S3 store.")
    return answer[name]


def list_objects(prefix: str) -> Iterator[FoundFile]:
    """Objects whose URL begins with `prefix`, in pages of 1,000; not the empty ones that mark folders."""
    client, request = connect(prefix)
    root = prefix.removesuffix(request["Key"])
    with faults(prefix):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=request["Bucket"], Prefix=request["Key"])
        for page in pages:
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    url = root + entry["Key"]
                    yield FoundFile(url, field_of(entry, "Size", url), entry.get("ETag", "").strip('"'))


@contextmanager
def faults(url: str) -> Iterator[None]:
    """Turn what botocore raises into InputError, or FileNotFoundError for an object that is not there."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (BotoCoreError, ClientError, HTTPError) as error:
        raise explain(error, url) from None


# Codes of S3's errors (of HEAD requests only the status is known) -> what happened, what to do.
_MEANINGS = {
    "NoSuchBucket": ("there is no such bucket", "Create it, or correct the URL"),
    "InvalidBucketName": ("the bucket's name is not valid", "Correct the URL"),
    "AccessDenied": (
        "access denied",
        "Check that these credentials may list, read and, for a store, write there, and that the object exists",
    ),
    "SignatureDoesNotMatch": ("the secret key was refused", "Check AWS_SECRET_ACCESS_KEY (of gs:// GCS_SECRET)"),
    "InvalidAccessKeyId": (
        "the access key is not known",
        "Check AWS_ACCESS_KEY_ID (of gs:// GCS_KEY) and the endpoint",
    ),
    "ExpiredToken": ("the credentials have expired", "Renew them"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "Set the clock"),
    "PreconditionFailed": ("it was changed while it was read", "Run again"),
    "InvalidRange": ("it is shorter than expected; it was changed", "Run again"),
    "PermanentRedirect": ("the bucket is in another region", "Set AWS_REGION to the bucket's"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "Set AWS_REGION to the bucket's"),
}
_STATUS_CODES = {
    "301": "PermanentRedirect",
    "403": "AccessDenied",
    "412": "PreconditionFailed",
    "416": "InvalidRange",
}


def explain(error: Exception, url: str) -> Exception:
    """What to raise for an exception of botocore or urllib3."""
    from botocore import exceptions as kinds  # type: ignore[import-untyped]

    if isinstance(error, kinds.ClientError):
        answer = error.response.get("Error", {})
        code, said = str(answer.get("Code", "")), str(answer.get("Message", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in ("NoSuchKey", "NotFound", "404"):
            return FileNotFoundError(f"{url}: there is no such object")
        meaning = _MEANINGS.get(_STATUS_CODES.get(code, code))
        if meaning is None and (status >= 500 or status == 429):
            meaning = "the store is failing or too busy, also after all attempts", "Run again later"
        happened, remedy = meaning or ("the store refused", "Check the URL, the endpoint and the credentials")
        kind = OutageError if status >= 500 or status == 429 else InputError
        return kind(f"{url}: {happened} ({f'{code}: {said}' if said else code}). {remedy}.")
    if isinstance(error, kinds.NoCredentialsError | kinds.PartialCredentialsError | kinds.CredentialRetrievalError):
        return InputError(
            f"{url}: no credentials ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run "
            "under a role."
        )
    if isinstance(error, kinds.FlexibleChecksumError):
        return OutageError(f"{url}: what arrived does not match its checksum ({error}). Run again, or write it anew.")
    if isinstance(error, kinds.HTTPClientError | kinds.ConnectionError | kinds.IncompleteReadError):
        return OutageError(
            f"{url}: the store cannot be reached, also after all attempts ({error}). "
            "Check S3_ENDPOINT_URL (of gs:// GCS_ENDPOINT_URL) and the network, then run again."
        )
    return InputError(f"{url}: {error}. Check the URL, the endpoint and the credentials.")


def _cannot_read(path: str, error: OSError) -> InputError:
    return InputError(f"cannot read {path}: {error.strerror or error}. Check the path and its permissions.")
