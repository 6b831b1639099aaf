"""Models on the Hugging Face hub: which commit a name means, and its files in the cache of huggingface_hub.

HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and the token are those of huggingface_hub, which is imported late: it is slow.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dataengine.errors import InputError, OutageError
from dataengine.storage.retry import TRIES, retry

SCHEME = "hf://"
_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)  # the same request may succeed later

T = TypeVar("T")


class OfflineError(InputError):
    """The hub is switched off, and the cache lacks a file."""


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit."""

    commit: str
    hashes: Mapping[str, str | None]  # by name: the SHA-256 that the hub states; it does for large files


def is_on_hub(model: str) -> bool:
    """Whether `init.hf` names a model on the hub: org/model, unless a folder of this name exists."""
    return _NAME.fullmatch(model) is not None and not Path(model).is_dir()


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit, which never moves."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def address_of(model: str, revision: str | None) -> str:
    """The address of a model: its folder, or hf://org/model@revision."""
    if not is_on_hub(model):
        return model
    return f"{SCHEME}{model}@{revision}" if revision else f"{SCHEME}{model}"


def is_address(text: str) -> bool:
    """Whether a text is the address of a model on the hub, not of a file there."""
    return text.startswith(SCHEME) and _NAME.fullmatch(text.removeprefix(SCHEME).partition("@")[0]) is not None


def split_address(address: str) -> tuple[str, str | None]:
    """Name and revision of hf://org/model@revision."""
    name, _, revision = address.removeprefix(SCHEME).partition("@")
    if _NAME.fullmatch(name) is None:
        raise InputError(f"{address} is not a model on the hub. Write hf://org/model or hf://org/model@revision.")
    return name, revision or None


def look_up(name: str, revision: str | None) -> Listing:
    """The commit that a revision (default: the newest) means now, and its files. Without a hub, those of the cache.

    Raises InputError if there is no such model or revision, or access is denied; OutageError if the hub fails.
    """
    from huggingface_hub import HfApi, constants

    def ask() -> Listing:
        if constants.HF_HUB_OFFLINE:
            raise _offline(_place(name, revision))
        found: Any = HfApi(_endpoint()).model_info(name, revision=revision, files_metadata=True)
        hashes = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in found.siblings or ()}
        return Listing(str(found.sha), hashes)

    try:
        return _retried(ask, _place(name, revision))
    except (OutageError, OfflineError):
        cached = _cached(name, revision)
        if cached is None:
            raise
        logging.getLogger(__name__).warning(
            "the hub gives no answer: using the copy of %s at %s in the cache", name, cached.commit
        )
        return cached


def fetch(name: str, commit: str, file: str) -> Path:
    """The local copy of a file at a commit; downloaded unless the cache has it.

    Raises InputError like `look_up`.
    """
    from huggingface_hub import hf_hub_download

    download = partial(hf_hub_download, name, file, revision=commit, cache_dir=_cache(), endpoint=_endpoint())
    return Path(_retried(download, f"{file} of {_place(name, commit)}", tries=2))  # the library retries, too


def cached_file(name: str, commit: str, file: str) -> Path | None:
    """The local copy of a file at a commit, if the cache has it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=commit, cache_dir=_cache())
    return Path(found) if isinstance(found, str) else None


def read_header(name: str, commit: str, file: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a remote safetensors file, from its first bytes."""
    from huggingface_hub import HfApi

    read = partial(HfApi(_endpoint()).parse_safetensors_file_metadata, name, file, revision=commit)
    found: Any = _retried(read, f"{file} of {_place(name, commit)}")
    return {key: (str(tensor.dtype), tuple(tensor.shape)) for key, tensor in found.tensors.items()}


def _endpoint() -> str | None:
    """The hub. The library reads this variable only once, when it is first imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _cache() -> str | None:
    return os.environ.get("HF_HUB_CACHE") or None


def _cached(name: str, revision: str | None) -> Listing | None:
    config = cached_file(name, revision or "main", "config.json")
    if config is None:
        return None
    folder = config.parent
    return Listing(folder.name, {str(path.relative_to(folder)): None for path in folder.rglob("*") if path.is_file()})


def _place(name: str, revision: str | None) -> str:
    return f"{name} at revision {revision}" if revision else name


def _retried(action: Callable[[], T], place: str, tries: int = TRIES) -> T:
    """Call the library; retry what may succeed later. Raises InputError with the reason."""

    def attempt() -> T:
        try:
            return action()
        except InputError:
            raise
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            _refuse(error, place)
        except Exception as error:  # httpx and huggingface_hub 2 have bases of their own
            if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub", "requests")):
                raise
            _refuse(error, place)

    return retry(attempt, tries=tries)


def _refuse(error: BaseException, place: str) -> NoReturn:
    """Raise OutageError for what may succeed later, and InputError with what to do for the rest."""
    import huggingface_hub.errors as hub

    chain = list(_causes(error))
    hidden = "Log in with `hf auth login`, or set HF_TOKEN to a token of an account that may read it"
    if any(isinstance(one, hub.OfflineModeIsEnabled) for one in chain):
        raise _offline(place) from None
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(one, hub.GatedRepoError) or status == 403:
            raise InputError(
                f"{place} is gated on the hub: accept its conditions on its page there. {hidden}."
            ) from None
        if isinstance(one, hub.RevisionNotFoundError):
            raise InputError(
                f"the hub has no {place}: the revision does not exist, or does not exist any more. Set `init.revision` "
                "to a commit of the model's history, or restore a copy of the model and give its folder as `init.hf`."
            ) from None
        if isinstance(one, hub.RepositoryNotFoundError) or status == 401:
            raise InputError(
                f"the hub has no {place}, or hides it without a token. Check the name. If it is private or gated: "
                f"{hidden[0].lower()}{hidden[1:]}."
            ) from None
        if isinstance(one, hub.EntryNotFoundError) and not isinstance(one, hub.LocalEntryNotFoundError):
            raise InputError(f"the hub has no {place}. Name another model or revision.") from None
        if status is not None and status not in _BUSY:
            raise InputError(f"the hub refuses {place}: {_first_line(one)}.") from None
    busy = next((one for one in chain if getattr(one, "response", None) is not None), chain[-1])
    raise OutageError(f"the hub does not give {place}: {_first_line(busy)}.") from None


def _offline(place: str) -> OfflineError:
    return OfflineError(
        f"{place} is not in the cache, and the hub is switched off (HF_HUB_OFFLINE). Unset it, or download the model "
        "first: hf download ORG/MODEL --revision COMMIT."
    )


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(". ")
