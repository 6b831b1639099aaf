"""Whole files of repositories on the Hugging Face hub, in the cache of huggingface_hub: models and tokenizers.

HF_HOME and HF_HUB_CACHE are those of huggingface_hub, which is imported late: it is slow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dataengine.errors import InputError, OutageError
from dataengine.storage.hub import HubPath, OfflineError, endpoint, explain, hub_address, is_name, offline
from dataengine.storage.retry import TRIES, retry
from dataengine.storage.web import is_outage

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit."""

    commit: str
    hashes: Mapping[str, str | None]  # by name: the SHA-256 that the hub states; it does for large files


def is_on_hub(model: str) -> bool:
    """Whether `init.hf` names a model on the hub: org/model, unless a folder of this name exists."""
    return is_name(model) and not Path(model).is_dir()


def address_of(model: str, revision: str | None) -> str:
    """The address of a model: its folder, or hf://org/model@revision."""
    return hub_address(model, revision) if is_on_hub(model) else model


def place_of(model: str, revision: str | None, file: str = "") -> HubPath:
    """A model on the hub, or a file of it."""
    return HubPath("", model, revision or "main", file)


def look_up(place: HubPath) -> Listing:
    """The commit that a revision means now, and the files of its repository. Without a hub, those of the cache.

    A copy in the cache must have the file that `place` names, or the config.json of a model. Raises InputError if there
    is no such repository or revision, or access is denied; OutageError if the hub fails.
    """
    from huggingface_hub import HfApi, constants

    def ask() -> Listing:
        if constants.HF_HUB_OFFLINE:
            raise _offline(place)
        info = HfApi(endpoint()).repo_info
        found: Any = info(place.repository, repo_type=_kind(place), revision=place.revision, files_metadata=True)
        hashes = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in found.siblings or ()}
        return Listing(str(found.sha), hashes)

    try:
        return _retried(ask, place)
    except (OutageError, OfflineError):
        cached = _cached(place)
        if cached is None:
            raise
        logging.getLogger(__name__).warning(
            "the hub gives no answer: using the copy of %s at %s in the cache", place.repository, cached.commit
        )
        return cached


def fetch(place: HubPath) -> Path:
    """The local copy of a file at a commit; downloaded unless the cache has it.

    Raises InputError like `look_up`.
    """
    from huggingface_hub import hf_hub_download

    download = partial(hf_hub_download, repo_type=_kind(place), cache_dir=_cache(), endpoint=endpoint())
    action = partial(download, place.repository, place.inner, revision=place.revision)
    return Path(_retried(action, place, tries=2))  # the library retries, too


def cached_file(place: HubPath) -> Path | None:
    """The local copy of a file, if the cache has it."""
    from huggingface_hub import try_to_load_from_cache

    where = {"revision": place.revision, "cache_dir": _cache(), "repo_type": _kind(place)}
    found = try_to_load_from_cache(place.repository, place.inner, **where)
    return Path(found) if isinstance(found, str) else None


def read_header(place: HubPath) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a remote safetensors file, from its first bytes."""
    from huggingface_hub import HfApi

    read = HfApi(endpoint()).parse_safetensors_file_metadata
    found: Any = _retried(partial(read, place.repository, place.inner, revision=place.revision), place)
    return {key: (str(tensor.dtype), tuple(tensor.shape)) for key, tensor in found.tensors.items()}


def _kind(place: HubPath) -> str:
    return "dataset" if place.datasets else "model"


def _cache() -> str | None:
    return os.environ.get("HF_HUB_CACHE") or None


def _cached(place: HubPath) -> Listing | None:
    inner = place.inner or "config.json"
    found = cached_file(replace(place, inner=inner))
    if found is None:
        return None
    folder = found.parents[inner.count("/")]
    return Listing(folder.name, {str(path.relative_to(folder)): None for path in folder.rglob("*") if path.is_file()})


def _retried(action: Callable[[], T], place: HubPath, tries: int = TRIES) -> T:
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


def _refuse(error: BaseException, place: HubPath) -> NoReturn:
    """Raise OutageError for what may succeed later, and InputError with what to do for the rest."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    chain = _causes(error)
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        raise _offline(place) from None
    busy = next((one for one in chain if getattr(one, "response", None) is not None), chain[-1])
    answer: Any = getattr(busy, "response", None)
    if answer is None or is_outage(answer.status_code):
        raise OutageError(f"{place}: the hub does not give it ({_first_line(busy)}). Run again later.") from None
    reason = explain(place, answer)
    raise (reason if isinstance(reason, InputError) else InputError(f"{reason}. Name another revision.")) from None


def _offline(place: HubPath) -> OfflineError:
    return offline(place, f"download it first: hf download {place.repository} --revision COMMIT")


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(". ")
