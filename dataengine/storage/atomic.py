"""Publish files and folders whole or not at all, on local disk or in an object store.

Amazon's S3 and most others know conditional writes: a new object never replaces another. Where they are not known
(gs:// by Google's S3 interface, some S3-compatible stores) a new object is first looked for and then put; two writers
at once put the same bytes there, for the names of what is built derive from what the content is made of.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import hashlib
import os
import re
import shutil
import socket
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from dataengine.errors import InputError, naming
from dataengine.storage import s3_client

_PREFIX = ".writing-"
_PART = 64 << 20  # bytes; larger objects are uploaded in parts of so many
_COPY = 1 << 30  # bytes; S3 copies objects of up to 5 GB at once, larger ones in parts of up to so many
_IN_FLIGHT = 4  # files of a folder that are uploaded at a time
_ABANDONED_S = 86_400  # of a writer that cannot be asked: it wrote nothing for so long
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2
_CONFLICTS = 10  # attempts while the store says that another write is under way

AddFile = Callable[[str, bytes], None]


def write_file(path: Path, content: bytes) -> None:
    """Write a file by a temporary name, fsync and rename: readers see the old content or the new, never a part."""
    with new_file(path) as file:
        file.write(content)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """The same for a file that is written in parts: on an error it does not appear, or stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def where_it_would_be(path: Path) -> str:
    """Of a relative path whose store is not there, either: it may be that this is the wrong working directory."""
    missing = next((folder for folder in reversed(path.parents) if not folder.exists()), path)
    if path.is_absolute() or {"experiments", "streams"} & set(missing.parts) or missing == path:
        return ""
    return f". There is no folder {missing.absolute()}: relative paths begin at the working directory, {Path.cwd()}"


def refuse_url(path: Path) -> None:
    """Raise InputError for a URL, which would become a folder `s3:` of the working directory."""
    if re.match(r"\w+:/", str(path)):  # `Path` keeps one slash of two
        raise InputError(f"cannot write {path}: it is a URL. Give a path on this machine, and upload the file.")


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """A file that a user wants, whole or not at all; what is no regular file (a pipe, /dev/stdout) is written as it is.

    Raises InputError for a folder or a URL.
    """
    refuse_url(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder. Give the path of a file.")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with naming(path), path.open("wb") as file:
            yield file
    else:
        with new_file(path) as file:
            yield file


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a temporary folder, then make it appear at `path` at once; on an error it vanishes.

    If `path` came into being meanwhile, that folder stays and ours vanishes: both hold the same content, for names
    here derive from what the content is made of. With `replace` ours stays, and the other one vanishes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
        for file in temporary.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _publish(temporary, path, replace=replace)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, path: Path, *, replace: bool = False) -> None:
    """Make a filled folder, its files on the disk, appear at `path`, unless there is one that is not to be replaced."""
    _sync_folder(temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
        if replace:
            _exchange(temporary, path)
    _sync_folder(path.parent)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders of one parent swap names: at once, where Linux and the file system can."""
    with suppress(AttributeError):  # only Linux has it
        if ctypes.CDLL(None).renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
            return
    aside = _temporary(other)
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are no longer alive left half-written in a folder.

    Whether one is alive shows only among those that share our process numbers; what others write (another machine, or
    another container of this one, even under the same host name) is taken for left over when a day has passed since it
    was last written to.
    """
    for path in folder.glob(f"{_PREFIX}*"):
        owner, _, rest = path.name.removeprefix(_PREFIX).partition("~")
        pid = rest.partition("~")[0]
        ours = owner == _owner() and pid.isdecimal()
        if not _alive(int(pid)) if ours else _last_write(path) < time.time() - _ABANDONED_S:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name beside `path` for what is not whole yet; it says whose it is."""
    return path.with_name(f"{_PREFIX}{_owner()}~{os.getpid()}~{uuid.uuid4().hex[:8]}-{path.name}")


def _owner() -> str:
    """Equal for processes whose numbers can be compared: of one host, one boot of it, and one PID namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux has these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text()[:8])
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "+".join(parts).replace("~", "_").replace("/", "_")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks the kernel: /proc may be that of another namespace
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _last_write(path: Path) -> float:
    """When a file, or a folder or a file in it, was last written to, in seconds; now if it is gone.

    By ctime: what has a second name, or was renamed to go, has the time of modification of what it was.
    """
    try:
        inside = path.iterdir() if path.is_dir() else ()
        return max(status.st_ctime for status in map(Path.lstat, [path, *inside]))
    except FileNotFoundError:
        return time.time()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_store(url: str) -> Store:
    """The store at a local folder or below the URL of an object store; it need not exist yet.

    Raises InputError if the URL or the environment cannot be used. A store holds no connection, so it can be pickled.
    """
    if s3_client.is_url(url):
        scheme, _, _ = s3_client.split_url(url)
        s3_client.endpoint_of(scheme)
        return S3Store(url.rstrip("/"))
    if "://" in url:
        raise InputError(
            f"store '{url}': not a kind of store. Give a local folder, or s3://, gs:// or oci://bucket/prefix."
        )
    if os.path.isfile(url):
        raise InputError(f"{url} is a file, and a folder is wanted here. Correct the path.")
    return LocalStore(url)


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


class LocalStore(Store):
    """A store in a local (or mounted) folder; folders appear by renaming, so they are there whole or not at all."""

    def path(self, key: str) -> Path:
        """Where a file of the store is."""
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
                f"{path}: got {len(content):,} bytes of [{start:,}, {stop:,}). It was changed; build again."
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
        with path.open("rb") as source, _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = _temporary(target)
            try:
                with temporary.open("wb") as file:
                    shutil.copyfileobj(source, file, _PART)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)

    def link(self, source: str, key: str) -> None:
        """As stated; the name is safe from power loss once a file was written into the same folder afterwards."""
        path = self.path(key)
        temporary = _temporary(path)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                link_file(self.path(source), temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)  # there still if both were names of one file

    def remove(self, prefix: str) -> None:
        path = self.path(prefix.rstrip("/"))
        with _writing(path):
            if path.is_dir():
                gone = _temporary(path)
                os.rename(path, gone)  # a folder must not be seen in parts
                shutil.rmtree(gone)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def new_folder(self, key: str, last: str) -> Iterator[AddFile]:
        path = self.path(key)
        temporary = _temporary(path)
        with _writing(path):
            temporary.mkdir(parents=True)

        def write(name: str, content: bytes) -> None:
            with _writing(path / name), (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        try:
            with _in_background(write, threads=1) as add:  # writing and fsync cost the caller no time
                yield add
            assert (temporary / last).exists(), f"{path}: no {last}"
            with _writing(path):
                if path.is_dir() and not (path / last).exists():  # a copy that was cut short, not ours
                    self.remove(key)
                _publish(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove_leftovers(self, prefix: str) -> None:
        with _writing(self.path(prefix)):
            remove_leftovers(self.path(prefix))


@contextmanager
def _in_background(write: AddFile, *, threads: int) -> Iterator[AddFile]:
    """`write` by threads, of at most _IN_FLIGHT files at a time; errors come up at the next file or at the end."""
    running: set[Future[None]] = set()

    def settle(at_most: int) -> None:
        while len(running) > at_most:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                running.remove(done)
                done.result()

    def add(name: str, content: bytes) -> None:
        settle(_IN_FLIGHT - 1)
        running.add(pool.submit(write, name, content))

    with ThreadPoolExecutor(threads) as pool:
        yield add
        settle(0)


def _walk(folder: Path | str, prefix: str) -> Iterator[tuple[str, int]]:
    """Key and size of every file below a folder that exists, without what is half-written."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return  # removed while we look, or not there yet
    except NotADirectoryError:
        raise InputError(
            f"{folder} should be a folder, but it or a part of its path is a file. Correct the path, or move the file."
        ) from None
    for entry in entries:
        if entry.name.startswith(_PREFIX):
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
        raise FileNotFoundError(f"{path}: there is no such file") from None
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


class S3Store(Store):
    """A store below s3://bucket/prefix, or the same of gs:// or oci:// (see `objects`)."""

    def _url(self, key: str) -> str:
        return f"{self.url}/{key}"

    def read(self, key: str) -> bytes:
        return s3_client.get_bytes(self._url(key))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        return s3_client.get_bytes(self._url(key), start, stop)

    def size(self, key: str) -> int | None:
        try:
            return s3_client.stat_object(self._url(key)).size
        except FileNotFoundError:
            return None

    def sizes(self, prefix: str) -> dict[str, int]:
        folder = prefix.rstrip("/")
        found = s3_client.list_objects(self._url(f"{folder}/" if folder else ""))
        return dict(sorted((file.path.removeprefix(self._url("")), file.size) for file in found))

    def write(self, key: str, content: bytes) -> None:
        self._upload(key, content, replace=True)

    def write_from(self, key: str, path: Path) -> None:
        self._upload(key, path, replace=True)

    def link(self, source: str, key: str) -> None:
        """Copy inside the store; large objects in parts, which s3:// alone asks for and knows."""
        client, target = s3_client.connect(self._url(key))
        _, origin = s3_client.connect(self._url(source))
        size = s3_client.stat_object(self._url(source)).size
        with s3_client.faults(self._url(source)):
            if size <= _COPY or not self.url.startswith("s3://"):
                client.copy_object(**target, CopySource=origin)
            else:
                _copy_in_parts(client, target, origin, size)

    def remove(self, prefix: str) -> None:
        """As stated, but not at once: a reader may see a part of the folder."""
        folder = prefix.rstrip("/")
        keys = [*self.sizes(folder), *([folder] if folder and self.size(folder) is not None else [])]
        client, request = s3_client.connect(self._url(""))
        bucket, root = request["Bucket"], request["Key"]
        with s3_client.faults(self._url(prefix)):
            if not self.url.startswith("s3://"):  # they may not know deletion in batches
                with ThreadPoolExecutor(_IN_FLIGHT) as pool:
                    list(pool.map(lambda key: client.delete_object(Bucket=bucket, Key=root + key), keys))
                return
            for first in range(0, len(keys), 1000):
                batch = {"Objects": [{"Key": root + key} for key in keys[first : first + 1000]], "Quiet": True}
                errors = client.delete_objects(Bucket=bucket, Delete=batch).get("Errors", [])
                if errors:
                    raise InputError(
                        f"cannot remove {self._url(prefix)}: {errors[0].get('Code')}: {errors[0].get('Message')} "
                        f"({len(errors)} objects). Check that these credentials may delete there."
                    )

    @contextmanager
    def new_folder(self, key: str, last: str) -> Iterator[AddFile]:
        held: list[bytes] = []

        def upload(name: str, content: bytes) -> None:
            if name == last:
                held.append(content)
            else:
                self._upload(f"{key}/{name}", content, replace=False)

        with _in_background(upload, threads=_IN_FLIGHT) as add:
            yield add
        assert held, f"{self._url(key)}: no {last}"
        self._upload(f"{key}/{last}", held[-1], replace=False)

    def remove_leftovers(self, prefix: str) -> None:
        """Nothing: a half-written object is never seen; a rule of the bucket should abort incomplete uploads."""

    def _upload(self, key: str, content: bytes | Path, *, replace: bool) -> None:
        """Put an object. If not `replace` (of bytes only), one that is there stays, and must be equal."""
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        url = self._url(key)
        with s3_client.faults(url):
            for attempt in range(_CONFLICTS):
                plain = _is_plain(self.url)
                equal = self._equals(key, content) if plain and not replace else None
                if equal is None:
                    try:
                        _put(url, content, new=not replace and not plain, plain=plain)
                        return
                    except ClientError as error:
                        status, code = (
                            error.response["ResponseMetadata"]["HTTPStatusCode"],
                            error.response["Error"]["Code"],
                        )
                        if not plain and (status == 501 or code in _UNKNOWN_HEADER):
                            _make_plain(self.url, code)
                            continue
                        if status == 409:  # another write of it is under way
                            s3_client.pause(attempt)
                            continue
                        if status != 412:
                            raise
                    equal = self._equals(key, content)
                if equal:
                    return
                if equal is False:
                    raise RuntimeError(
                        f"{url}: other content is there under this name: nondeterminism. The same input and settings "
                        "gave different bytes; remove the object and find out what differed between the two runs."
                    )
        raise InputError(f"{url}: the store kept saying that another write is under way. Run again.")

    def _equals(self, key: str, content: bytes | Path) -> bool | None:
        """Whether an object has this content; None if there is none."""
        assert isinstance(content, bytes), "files replace what is there"
        url = self._url(key)
        checksum = {} if _is_plain(self.url) else {"ChecksumMode": "ENABLED"}
        try:
            with s3_client.faults(url):
                head = s3_client.head_object(url, **checksum)
            if s3_client.field_of(head, "ContentLength", url) != len(content):
                return False
            if head.get("ChecksumSHA256") == _checksum(content):
                return True
            return s3_client.get_bytes(url) == content  # no checksum, or of other parts
        except FileNotFoundError:
            return None


# Error codes of stores that do not know conditional writes or SHA-256 checksums.
_UNKNOWN_HEADER = ("NotImplemented", "UnsupportedOperation", "UnsupportedArgument", "InvalidArgument", "InvalidRequest")

_PLAIN: dict[str, object] = {}  # stores that turned out to be of those


def _is_plain(url: str) -> bool:
    return url.startswith("gs://") or url in _PLAIN


def _make_plain(url: str, code: str) -> None:
    mine = object()
    if _PLAIN.setdefault(url, mine) is mine:  # the first of several threads
        print(
            f"{url}: this store does not know conditional writes ({code}); writing without.",
            file=sys.stderr,
            flush=True,
        )


def _put(url: str, content: bytes | Path, *, new: bool, plain: bool) -> None:
    """Put an object, in parts if it is large, with a digest that the store checks; `new` fails (412) if it is there."""
    client, request = s3_client.connect(url)
    condition = {"IfNoneMatch": "*"} if new else {}
    if (content.stat().st_size if isinstance(content, Path) else len(content)) <= _PART:
        whole = content.read_bytes() if isinstance(content, Path) else content
        client.put_object(**request, Body=whole, **_digest(whole, plain), **condition)
        return
    made = client.create_multipart_upload(**request, **({} if plain else {"ChecksumAlgorithm": "SHA256"}))
    request["UploadId"] = made["UploadId"]
    try:
        uploaded: list[dict[str, Any]] = []
        for number, part in enumerate(_parts(content), start=1):
            digest = _digest(part, plain)
            answer = client.upload_part(**request, PartNumber=number, Body=bytes(part), **digest)
            checksum = {} if plain else {"ChecksumSHA256": digest["ChecksumSHA256"]}
            uploaded.append({"PartNumber": number, "ETag": s3_client.field_of(answer, "ETag", url), **checksum})
        client.complete_multipart_upload(**request, MultipartUpload={"Parts": uploaded}, **condition)
    except BaseException:
        with suppress(Exception):  # what went wrong matters more
            client.abort_multipart_upload(**request)
        raise


def _copy_in_parts(client: Any, target: dict[str, str], origin: dict[str, str], size: int) -> None:
    """Copy a large object inside a store of s3://."""
    request = {**target, "UploadId": client.create_multipart_upload(**target)["UploadId"]}
    try:
        parts = []
        for number, start in enumerate(range(0, size, _COPY), start=1):
            part = f"bytes={start}-{min(start + _COPY, size) - 1}"
            answer = client.upload_part_copy(**request, PartNumber=number, CopySource=origin, CopySourceRange=part)
            parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
        client.complete_multipart_upload(**request, MultipartUpload={"Parts": parts})
    except BaseException:
        with suppress(Exception):  # what went wrong matters more
            client.abort_multipart_upload(**request)
        raise


def _parts(content: bytes | Path) -> Iterator[bytes | memoryview]:
    """What an object of this content is uploaded in; a file is read as the parts are asked for."""
    if isinstance(content, bytes):
        yield from (memoryview(content)[at : at + _PART] for at in range(0, max(1, len(content)), _PART))
        return
    with content.open("rb") as file:
        yield from iter(lambda: file.read(_PART), b"")


def _digest(part: bytes | memoryview, plain: bool) -> dict[str, str]:
    if plain:
        return {"ContentMD5": base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()}
    return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": base64.b64encode(hashlib.sha256(part).digest()).decode()}


def _checksum(content: bytes) -> str:
    """The checksum that S3 reports of an object that `_put` made: in parts, the one of theirs and their number."""
    digests = [hashlib.sha256(part).digest() for part in _parts(content)]
    if len(digests) == 1:
        return base64.b64encode(digests[0]).decode()
    return f"{base64.b64encode(hashlib.sha256(b''.join(digests)).digest()).decode()}-{len(digests)}"
