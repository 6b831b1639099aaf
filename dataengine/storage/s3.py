"""A store in an object store.

Amazon's S3 and most other stores support conditional writes: a new object never replaces another. Without them (gs://
through Google's S3 interface, some S3-compatible stores), a new object is first looked up and then written. Two writers
at once then write the same bytes, because names derive from the content's inputs.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from dataengine.errors import InputError, OutageError
from dataengine.storage import s3_client
from dataengine.storage.paths import FoundFile
from dataengine.storage.retry import retry
from dataengine.storage.store import FILES_IN_FLIGHT, AddFile, Store, write_in_background

_PAGE = 1000  # objects that a request lists
_PART = 64 << 20  # bytes; larger objects are uploaded in parts of this size
_COPY = 1 << 30  # bytes of a part when copying; S3 copies up to 5 GB at once
_CONFLICTS = 10  # attempts while the store reports another write in progress
# Error codes of stores without conditional writes or SHA-256 checksums.
_UNKNOWN_HEADER = ("NotImplemented", "UnsupportedOperation", "UnsupportedArgument", "InvalidArgument", "InvalidRequest")
_PLAIN: dict[str, object] = {}  # the URLs of such stores


class S3Store(Store):
    """A store at s3://bucket/prefix, gs://... or oci://... (see `s3_client`)."""

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
        return self._sizes(self._list(prefix))

    def sizes_if_few(self, prefix: str, requests: int) -> dict[str, int] | None:
        found = list(islice(self._list(prefix), _PAGE * requests))
        return self._sizes(found) if len(found) < _PAGE * requests else None

    def _list(self, prefix: str) -> Iterator[FoundFile]:
        folder = prefix.rstrip("/")
        return s3_client.list_objects(self._url(f"{folder}/" if folder else ""))

    def _sizes(self, found: Iterable[FoundFile]) -> dict[str, int]:
        return dict(sorted((file.path.removeprefix(self._url("")), file.size) for file in found))

    def write(self, key: str, content: bytes) -> None:
        self._upload(key, content, replace=True)

    def write_from(self, key: str, path: Path) -> None:
        self._upload(key, path, replace=True)

    def link(self, source: str, key: str, size: int | None = None) -> None:
        """See `Store.link`. Copies inside the store; large objects in parts, which only s3:// needs and supports."""
        client, target = s3_client.connect(self._url(key))
        _, origin = s3_client.connect(self._url(source))
        size = s3_client.stat_object(self._url(source)).size if size is None else size
        with s3_client.faults(self._url(source)):
            if size <= _COPY or not self.url.startswith("s3://"):
                client.copy_object(**target, CopySource=origin)
            else:
                _copy_in_parts(client, target, origin, size)

    def remove(self, prefix: str) -> None:
        """See `Store.remove`. Not atomic: a reader may see a part of the folder."""
        folder = prefix.rstrip("/")
        self.remove_files([*self.sizes(folder), *([folder] if folder and self.size(folder) is not None else [])])

    def remove_files(self, keys: Sequence[str]) -> None:
        client, request = s3_client.connect(self._url(""))
        bucket, root = request["Bucket"], request["Key"]
        with s3_client.faults(self._url(keys[0] if keys else "")):
            if not self.url.startswith("s3://"):  # they may not support deletion in batches
                with ThreadPoolExecutor(FILES_IN_FLIGHT) as pool:
                    list(pool.map(lambda key: client.delete_object(Bucket=bucket, Key=root + key), keys))
                return
            for first in range(0, len(keys), 1000):
                batch = {"Objects": [{"Key": root + key} for key in keys[first : first + 1000]], "Quiet": True}
                errors = client.delete_objects(Bucket=bucket, Delete=batch).get("Errors", [])
                if errors:
                    raise InputError(
                        f"cannot remove {self._url(keys[first])}: {errors[0].get('Code')}: {errors[0].get('Message')} "
                        f"({len(errors)} objects). Check that these credentials may delete objects."
                    )

    def freed_by(self, keys: Sequence[str]) -> int:
        sizes = {folder: self.sizes(folder) for folder in {key.partition("/")[0] for key in keys}}
        return sum(sizes[key.partition("/")[0]][key] for key in keys)

    @property
    def copies_links(self) -> bool:
        return True

    @contextmanager
    def new_folder(self, key: str, last: str) -> Iterator[AddFile]:
        held: list[bytes] = []

        def upload(name: str, content: bytes) -> None:
            if name == last:
                held.append(content)
            else:
                self._upload(f"{key}/{name}", content, replace=False)

        with write_in_background(upload, threads=FILES_IN_FLIGHT) as add:
            yield add
        assert held, f"{self._url(key)}: no {last}"
        self._upload(f"{key}/{last}", held[-1], replace=False)

    def remove_leftovers(self, prefix: str) -> None:
        """Do nothing: half-written objects are invisible. A rule of the bucket should abort incomplete uploads."""

    def _upload(self, key: str, content: bytes | Path, *, replace: bool) -> None:
        """Write an object. Without `replace` (bytes only), an existing object stays and must be equal."""
        with s3_client.faults(self._url(key)):
            retry(lambda: self._try_upload(key, content, replace=replace), tries=_CONFLICTS)

    def _try_upload(self, key: str, content: bytes | Path, *, replace: bool) -> None:
        """As `_upload`. Raises OutageError while another write of the object is in progress."""
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        url = self._url(key)
        plain = _is_plain(self.url)
        if plain and not replace and self._is_there(key, content):
            return
        try:
            _put(url, content, new=not replace and not plain, plain=plain)
        except ClientError as error:
            status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
            if not plain and (status == 501 or code in _UNKNOWN_HEADER):
                _make_plain(self.url, code)
                self._try_upload(key, content, replace=replace)
            elif status not in (409, 412):
                raise
            elif status == 409 or not self._is_there(key, content):
                raise OutageError(f"{url}: the store keeps reporting another write in progress. Run again.") from None

    def _is_there(self, key: str, content: bytes | Path) -> bool:
        """Whether an object exists. Raises InputError if it has other content."""
        equal = self._equals(key, content)
        if equal is False:
            raise InputError(
                f"{self._url(key)} exists with other content. It was damaged, or the same input and settings gave "
                "different bytes (nondeterminism). Remove the object and run again; if this returns, find out what "
                "differs between the two runs."
            )
        return equal is not None

    def _equals(self, key: str, content: bytes | Path) -> bool | None:
        """Whether an object has this content; None if there is none."""
        assert isinstance(content, bytes), "files replace existing objects"
        url = self._url(key)
        checksum = {} if _is_plain(self.url) else {"ChecksumMode": "ENABLED"}
        try:
            with s3_client.faults(url):
                head = s3_client.head_object(url, **checksum)
            if s3_client.field_of(head, "ContentLength", url) != len(content):
                return False
            if head.get("ChecksumSHA256") == _checksum(content):
                return True
            return s3_client.get_bytes(url) == content  # no checksum, or one of other parts
        except FileNotFoundError:
            return None


def _is_plain(url: str) -> bool:
    return url.startswith("gs://") or url in _PLAIN


def _make_plain(url: str, code: str) -> None:
    mine = object()
    if _PLAIN.setdefault(url, mine) is mine:  # the first of several threads
        print(
            f"{url}: this store does not support conditional writes ({code}); writing without them.",
            file=sys.stderr,
            flush=True,
        )


def _put(url: str, content: bytes | Path, *, new: bool, plain: bool) -> None:
    """Write an object with a digest that the store checks, in parts if it is large. `new` fails (412) if it exists."""
    client, request = s3_client.connect(url)
    condition = {"IfNoneMatch": "*"} if new else {}
    if (content.stat().st_size if isinstance(content, Path) else len(content)) <= _PART:
        whole = content.read_bytes() if isinstance(content, Path) else content
        client.put_object(**request, Body=whole, **_digest(whole, plain), **condition)
        return
    made = client.create_multipart_upload(**request, **({} if plain else {"ChecksumAlgorithm": "SHA256"}))
    request["UploadId"] = made["UploadId"]
    try:
        uploaded: list[dict[str, object]] = []
        for number, part in enumerate(_parts(content), start=1):
            digest = _digest(part, plain)
            answer = client.upload_part(**request, PartNumber=number, Body=bytes(part), **digest)
            checksum = {} if plain else {"ChecksumSHA256": digest["ChecksumSHA256"]}
            uploaded.append({"PartNumber": number, "ETag": s3_client.field_of(answer, "ETag", url), **checksum})
        client.complete_multipart_upload(**request, MultipartUpload={"Parts": uploaded}, **condition)
    except BaseException:
        with suppress(Exception):  # the first error matters more
            client.abort_multipart_upload(**request)
        raise


def abort_uploads(store: Store, age: timedelta) -> int:
    """Abort multipart uploads of an s3:// store that are older than `age`. Return their number."""
    if not store.url.startswith("s3://"):
        return 0
    client, request = s3_client.connect(f"{store.url}/")
    before, count = datetime.now(UTC) - age, 0
    with s3_client.faults(store.url):
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=request["Bucket"], Prefix=request["Key"])
        for entry in [entry for page in pages for entry in page.get("Uploads", ())]:
            if entry["Initiated"] < before:
                client.abort_multipart_upload(Bucket=request["Bucket"], Key=entry["Key"], UploadId=entry["UploadId"])
                count += 1
    return count


def _copy_in_parts(client: Any, target: dict[str, str], origin: dict[str, str], size: int) -> None:
    """Copy a large object inside an s3:// store."""
    request = {**target, "UploadId": client.create_multipart_upload(**target)["UploadId"]}
    try:
        parts = []
        for number, start in enumerate(range(0, size, _COPY), start=1):
            part = f"bytes={start}-{min(start + _COPY, size) - 1}"
            answer = client.upload_part_copy(**request, PartNumber=number, CopySource=origin, CopySourceRange=part)
            parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
        client.complete_multipart_upload(**request, MultipartUpload={"Parts": parts})
    except BaseException:
        with suppress(Exception):  # the first error matters more
            client.abort_multipart_upload(**request)
        raise


def _parts(content: bytes | Path) -> Iterator[bytes | memoryview]:
    """The parts in which content is uploaded. A file is read part by part."""
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
    """The checksum that S3 reports for an object written by `_put`. In parts: a hash of hashes, and their number."""
    digests = [hashlib.sha256(part).digest() for part in _parts(content)]
    if len(digests) == 1:
        return base64.b64encode(digests[0]).decode()
    return f"{base64.b64encode(hashlib.sha256(b''.join(digests)).digest()).decode()}-{len(digests)}"
