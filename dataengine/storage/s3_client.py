"""Requests to object stores: s3://, gs:// and oci://, all by the S3 protocol.

For s3:// and oci://, credentials come from botocore's usual chain (environment, shared files, roles). The endpoint is
S3_ENDPOINT_URL as in mosaicml-streaming, or AWS_ENDPOINT_URL, or Amazon's. gs:// uses the HMAC keys GCS_KEY and
GCS_SECRET, as mosaicml-streaming does. AWS_MAX_ATTEMPTS limits the attempts of a request.

Tested against SeaweedFS with all three schemes, not against the clouds of Amazon, Google and Oracle.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import lru_cache
from typing import Any

from dataengine.errors import InputError, OutageError
from dataengine.storage.paths import FoundFile, split_url
from dataengine.storage.retry import retry

_GOOGLE = "https://storage.googleapis.com"
_ATTEMPTS = 10  # of a request, with botocore's backoff and jitter between
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
# S3 error code (of HEAD requests only the status is known) -> what happened, what to do.
_MEANINGS = {
    "NoSuchBucket": ("there is no such bucket", "Create it, or correct the URL"),
    "InvalidBucketName": ("the bucket's name is not valid", "Correct the URL"),
    "AccessDenied": (
        "access denied",
        "Check that these credentials may list, read and (for a store) write there, and that the object exists",
    ),
    "SignatureDoesNotMatch": ("the secret key was refused", "Check AWS_SECRET_ACCESS_KEY (for gs:// GCS_SECRET)"),
    "InvalidAccessKeyId": (
        "the access key is not known",
        "Check AWS_ACCESS_KEY_ID (for gs:// GCS_KEY) and the endpoint",
    ),
    "ExpiredToken": ("the credentials have expired", "Renew them"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "Set the clock"),
    "PreconditionFailed": ("it changed while it was being read", "Run again"),
    "InvalidRange": ("it is shorter than expected: it has changed", "Run again"),
    "PermanentRedirect": ("the bucket is in another region", "Set AWS_REGION to the bucket's region"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "Set AWS_REGION to the bucket's region"),
}
# Codes for data that was lost or damaged on the way to the store, or for a request whose answer was lost.
_LOST = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "NoSuchUpload",
        "RequestTimeout",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_STATUS_CODES = {
    "301": "PermanentRedirect",
    "403": "AccessDenied",
    "412": "PreconditionFailed",
    "416": "InvalidRange",
}


def connect(url: str) -> tuple[Any, dict[str, str]]:
    """A client for a URL, shared by all threads of a process, and the arguments that name the object.

    Raises InputError if an environment variable is missing.
    """
    scheme, bucket, key = split_url(url)
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "S3_", "GCS_"))))
    return _make_client(os.getpid(), scheme, settings), {"Bucket": bucket, "Key": key}


@lru_cache(maxsize=8)
def _make_client(pid: int, scheme: str, settings: tuple[tuple[str, str], ...]) -> Any:
    """Make a client. `pid` and the environment are the cache key, so a client does not outlive a fork or a change."""
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
        request_checksum_calculation="when_required",  # requests carry their own checksum
        # Google's and Oracle's interfaces may not support Amazon's newer checksums.
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
    """The endpoint for a scheme; None leaves it to botocore (AWS_ENDPOINT_URL or Amazon's).

    GCS_ENDPOINT_URL replaces Google's endpoint. Raises InputError if an environment variable is missing or wrong.
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
    """The attempts of a client for each request."""
    return int(client.meta.config.retries["total_max_attempts"])


def get_bytes(url: str, start: int = 0, stop: int | None = None, version: str = "") -> bytes:
    """Read the bytes [start, stop) of an object, of one version if given.

    A broken connection is retried as often as botocore retries requests. Raises FileNotFoundError if there is no such
    object, InputError for other errors.
    """
    if start == stop:
        return b""
    client, request = connect(url)
    if start or stop is not None:
        request["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    if version:
        request["IfMatch"] = f'"{version}"'

    def get() -> bytes:
        body = client.get_object(**request)["Body"]
        with closing(body), faults(url):
            return bytes(body.read())

    with faults(url):
        content = retry(get, tries=attempts_of(client))
    if stop is not None and len(content) > stop - start:
        raise InputError(
            f"{url}: asked for {stop - start:,} bytes, the store sent {len(content):,}. It decompresses the object "
            "on the way, as Google's does if Content-Encoding is gzip. Remove that header (gcloud storage objects "
            "update --clear-content-encoding), or copy the data to a local folder."
        )
    if stop is not None and len(content) != stop - start:
        raise InputError(f"{url}: got {len(content):,} bytes of [{start:,}, {stop:,}). It has changed; run again.")
    return content


def stat_object(url: str, version: str = "") -> FoundFile:
    """Size and version of an object. Raises FileNotFoundError if there is none, InputError if it has changed."""
    with faults(url):
        head = head_object(url, **({"IfMatch": f'"{version}"'} if version else {}))
    return FoundFile(url, field_of(head, "ContentLength", url), head.get("ETag", "").strip('"'))


def identify_object(url: str, version: str = "") -> FoundFile:
    """As `stat_object`. Also raises InputError if the store gives no version."""
    found = stat_object(url, version)
    if not found.version:
        raise InputError(
            f"{url}: the store gives no ETag, so a change of the content could not be noticed. Copy the data to a "
            "local folder or to another store."
        )
    return found


def head_object(url: str, **conditions: str) -> Any:
    """The store's answer to HEAD. Call it inside `faults`.

    An answer to HEAD has no body, so a wrong clock looks like a wrong key. After a refusal, a GET asks for the reason.
    """
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]

    client, request = connect(url)
    try:
        return client.head_object(**request, **conditions)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 401, 403):
            client.get_object(**request, Range="bytes=0-0")["Body"].close()  # raises with the store's reason
        raise


def field_of(answer: Mapping[str, Any], name: str, url: str) -> Any:
    """A field that a store's answer must have. Raises InputError if it does not."""
    if name not in answer:
        raise InputError(f"{url}: the store's answer has no {name}. Check that the endpoint is an S3 store.")
    return answer[name]


def list_objects(prefix: str) -> Iterator[FoundFile]:
    """Objects whose URL begins with `prefix`, without the empty ones that mark folders."""
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
    """Turn exceptions of botocore into InputError, or into FileNotFoundError for a missing object."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (BotoCoreError, ClientError, HTTPError) as error:
        raise explain(error, url) from None


def explain(error: Exception, url: str) -> Exception:
    """Translate an exception of botocore or urllib3."""
    from botocore import exceptions as kinds  # type: ignore[import-untyped]
    from urllib3.exceptions import HTTPError

    if isinstance(error, kinds.ClientError):
        answer = error.response.get("Error", {})
        code, said = str(answer.get("Code", "")), str(answer.get("Message", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in ("NoSuchKey", "NotFound", "404"):
            return FileNotFoundError(f"{url}: no such object")
        outage = status >= 500 or status in (408, 429) or code in _LOST
        unknown = (
            ("the store is failing or too busy, after all attempts", "Run again later")
            if outage
            else ("the store refused", "Check the URL, the endpoint and the credentials")
        )
        happened, remedy = _MEANINGS.get(_STATUS_CODES.get(code, code), unknown)
        kind = OutageError if outage else InputError
        return kind(f"{url}: {happened} ({f'{code}: {said}' if said else code}). {remedy}.")
    if isinstance(error, kinds.NoCredentialsError | kinds.PartialCredentialsError | kinds.CredentialRetrievalError):
        return InputError(
            f"{url}: no credentials ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use "
            "a role."
        )
    if isinstance(error, kinds.FlexibleChecksumError):
        return OutageError(
            f"{url}: the received data does not match its checksum ({error}). Run again, or write the object again."
        )
    if isinstance(error, kinds.HTTPClientError | kinds.ConnectionError | kinds.IncompleteReadError | HTTPError):
        return OutageError(
            f"{url}: the store cannot be reached, after all attempts ({error}). "
            "Check S3_ENDPOINT_URL (for gs:// GCS_ENDPOINT_URL) and the network, then run again."
        )
    return InputError(f"{url}: {error}. Check the URL, the endpoint and the credentials.")
