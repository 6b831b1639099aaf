"""Open the store at a path or URL."""

from __future__ import annotations

import os

from dataengine.errors import InputError
from dataengine.storage import paths, s3_client
from dataengine.storage.local import LocalStore
from dataengine.storage.s3 import S3Store
from dataengine.storage.store import Store


def open_store(url: str) -> Store:
    """Open the store in a local folder or at the URL of an object store. It does not have to exist yet.

    Raises InputError if the URL or the environment cannot be used. Stores hold no connections and can be pickled.
    """
    if paths.is_url(url):
        scheme, _, _ = paths.split_url(url)
        s3_client.endpoint_of(scheme)
        return S3Store(url.rstrip("/"))
    if "://" in url:
        raise InputError(
            f"store '{url}': not a kind of store. Give a local folder, or s3://, gs:// or oci://bucket/prefix."
            f"{paths.read_only_hint(url)}"
        )
    if os.path.isfile(url):
        raise InputError(f"{url} is a file, but must be a folder. Correct the path.")
    return LocalStore(url)
