"""Files in repositories of the Hugging Face hub: hf://datasets/ORG/NAME@REVISION/PATH, or hf://ORG/NAME for a model's.

A branch or tag is resolved to its commit once per command, and all files are read from that commit. The hub states the
sha256 of large files and git's hash of small ones, so content is identified without reading it.

The token and the hub's address are those of huggingface_hub: HF_TOKEN, the file that `hf auth login` writes,
HF_ENDPOINT. The requests are those of its functions list_repo_tree and get_hf_file_metadata; `web` makes them, because
huggingface_hub 0.36 lists without a time limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from http.client import responses
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

import orjson

from dataengine.errors import InputError, OutageError, did_you_mean
from dataengine.storage.paths import HUB, FoundFile
from dataengine.storage.web import Look, WebFile, ask, refusal, unreachable, until_answered

if TYPE_CHECKING:
    from requests import Response

_NAME = r"(?!(?:spaces|buckets|models|datasets)/)[a-zA-Z0-9_-][a-zA-Z0-9_.-]*/[a-zA-Z0-9_.-]+"
_REVISION = r"refs/(?:convert|pr)/[^/]+|[^/]+"
_URL = re.compile(rf"{HUB}(datasets/)?({_NAME})(?:@({_REVISION}))?(?:/(.*))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_COMMITS: dict[tuple[str, HubPath], str] = {}  # what branches and tags mean, in this command


class OfflineError(InputError):
    """The hub is switched off (HF_HUB_OFFLINE)."""


@dataclass(frozen=True)
class HubPath:
    """A place in a repository."""

    datasets: str  # "datasets/", or "" for a model's repository
    repository: str  # ORG/NAME
    revision: str  # branch, tag or commit
    inner: str  # path in the repository

    def __str__(self) -> str:
        return f"{hub_address(self.datasets + self.repository, self.revision)}{'/' * bool(self.inner)}{self.inner}"

    @property
    def page(self) -> str:
        """The address of the repository."""
        return f"{endpoint()}/{self.datasets}{self.repository}"

    def api(self, kind: str, *more: str) -> str:
        """The address of a request about the repository."""
        names = "/".join(quote(name) for name in more if name)
        about = f"{endpoint()}/api/{self.datasets or 'models/'}{self.repository}/{kind}/{quote(self.revision, safe='')}"
        return f"{about}/{names}" if names else about

    def pinned(self, ask: Callable[[HubPath], str] | None = None) -> HubPath:
        """The same place in the commit that the revision names now; `ask` finds that of a repository."""
        if is_commit(self.revision):
            return self
        key = (endpoint(), replace(self, inner=""))
        if key not in _COMMITS:
            _COMMITS[key] = (ask or _resolve)(key[1])
        return replace(self, revision=_COMMITS[key])


def is_name(text: str) -> bool:
    """Whether a text is the name of a repository: ORG/NAME."""
    return re.fullmatch(_NAME, text) is not None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit, which never moves."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def hub_address(name: str, revision: str | None) -> str:
    """The address of a repository: hf://ORG/NAME@REVISION."""
    whole = revision and (revision if re.fullmatch(_REVISION, revision) else quote(revision, safe=""))
    return f"{HUB}{name}@{whole}" if whole else f"{HUB}{name}"


def parse_hub_path(url: str) -> HubPath:
    """The parts of an hf:// URL, which may be a glob. Raises InputError if it names no repository."""
    found = _URL.fullmatch(url)
    if found is None:
        raise InputError(
            f"'{url}' is not a path on the hub. Write hf://datasets/ORG/NAME/PATH, with a revision "
            "hf://datasets/ORG/NAME@REVISION/PATH, or hf://ORG/NAME/PATH for the repository of a model."
        )
    return HubPath(found[1] or "", found[2], (found[3] or "main").replace("%2F", "/"), found[4] or "")


def endpoint() -> str:
    """The address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or _constants().ENDPOINT).rstrip("/")


def _constants() -> ModuleType:
    try:
        from huggingface_hub import constants
    except ImportError:
        raise InputError("hf:// needs huggingface_hub: pip install huggingface-hub") from None
    return constants


def _token() -> str:
    from huggingface_hub import get_token

    return get_token() or ""


def _ask(place: HubPath, url: str, method: str = "GET", follow: bool = True) -> Response:
    """The answer of the hub. Raises FileNotFoundError for a missing file or folder, InputError for other refusals."""
    if _constants().HF_HUB_OFFLINE:
        raise offline(place, "name local files")
    answer = ask(url, method, token=_token(), follow=follow)
    if answer.status_code >= 400:
        answer.close()
        raise explain(place, answer)
    return answer


def _get_json(place: HubPath, url: str) -> tuple[Any, str | None]:
    """The hub's answer as a JSON value, and the address of the next page."""
    from requests import RequestException

    with closing(_ask(place, url)) as answer:
        try:
            return orjson.loads(answer.content), answer.links.get("next", {}).get("url")
        except RequestException as error:
            raise unreachable(url, error) from None
        except orjson.JSONDecodeError:
            raise _no_hub(place) from None


def _no_hub(place: HubPath) -> InputError:
    return InputError(f"{place}: {endpoint()} does not answer as the hub does. Check HF_ENDPOINT.")


def offline(place: HubPath, remedy: str) -> OfflineError:
    return OfflineError(f"{place}: HF_HUB_OFFLINE forbids requests to the hub. Unset it, or {remedy}.")


def explain(place: HubPath, answer: Any) -> Exception:
    """Translate a refusal, of requests or httpx, by its headers, as huggingface_hub does."""
    code, said = answer.headers.get("X-Error-Code", ""), answer.headers.get("X-Error-Message", "")
    log_in = "log in (hf auth login, or set HF_TOKEN)"
    what = "dataset" if place.datasets else "model"
    if code == "EntryNotFound":
        return FileNotFoundError(f"{place}: no such file")
    if code == "RevisionNotFound":
        return InputError(
            f"{place}: {place.page} has no branch, tag or commit '{place.revision}'. Correct the revision, or name a "
            "local copy."
        )
    if code == "GatedRepo":
        return InputError(f"{place}: the {what} is gated. Accept its terms on {place.page}, and {log_in}.")
    if answer.status_code == 401 and "Invalid credentials" in said:
        return InputError(f"{place}: the hub does not know the token. Renew it, and {log_in}.")
    if code == "RepoNotFound" or answer.status_code in (401, 404):
        private = "this account may not read it" if _token() else f"it is private: then {log_in}"
        other = "" if place.datasets else f" The files of a dataset are hf://datasets/{place.repository}/..."
        return InputError(f"{place}: there is no {what} {place.page}, or {private}. Correct the name.{other}")
    if answer.status_code == 403:
        why = said or responses.get(answer.status_code)
        return InputError(
            f"{place}: the hub forbids it ({why}). See {place.page}, and {log_in} with a token that may read it."
        )
    return refusal(str(place), answer)


def _resolve(place: HubPath) -> str:
    """The commit that a branch or tag names."""
    url = f"{place.api('revision')}?expand=sha"
    try:
        return str(until_answered(partial(_get_json, place, url))[0]["sha"])
    except (FileNotFoundError, KeyError, TypeError):
        raise _no_hub(place) from None


def forget_commits() -> None:
    """Let the next command of this process resolve branches again."""
    _COMMITS.clear()


def identify_hub_file(url: str) -> FoundFile:
    """Size and content hash of a file, its path with the commit. Raises FileNotFoundError if there is none."""
    place = parse_hub_path(url).pinned()
    if not place.inner:
        raise FileNotFoundError(f"{url}: no such file")
    seen = until_answered(partial(_look, place))
    return FoundFile(str(place), seen.size, seen.version)


def open_hub_file(url: str, version: str = "") -> WebFile:
    """A file of one commit. Raises as `identify_hub_file`, and InputError if it has another hash than `version`."""
    place = parse_hub_path(url).pinned()
    return WebFile(str(place), version, partial(_look, place))


def list_hub_files(place: HubPath, folder: str, *, below: bool) -> Iterator[FoundFile]:
    """The files in a folder of a commit, with `below` also those of all folders in it; none if there is no folder."""
    url: str | None = f"{place.api('tree', *folder.split('/'))}?recursive={'true' if below else 'false'}&expand=false"
    try:
        while url:
            entries, url = until_answered(partial(_get_json, place, url))
            for entry in entries:
                if entry["type"] == "file":
                    large = entry.get("lfs")
                    version = _version_of(large["oid"] if large else entry["oid"])
                    yield FoundFile(str(replace(place, inner=entry["path"])), entry["size"], version)
    except FileNotFoundError:
        return
    except (KeyError, TypeError):
        raise _no_hub(place) from None


def nearest_hub_file(url: str) -> str:
    """A hint for a path or glob that names no file: the nearest name among the files of its repository."""
    place = parse_hub_path(url).pinned()
    return nearest_name(place, (parse_hub_path(file.path).inner for file in list_hub_files(place, "", below=True)))


def nearest_name(place: HubPath, files: Iterable[str]) -> str:
    """A hint for a place that is none of the files of its repository."""
    names = [name for name in files if not name.startswith(".")]
    words = did_you_mean(place.inner, names) or (f" (it has {', '.join(names[:8])})" if names else " (it has no files)")
    return f"{words} in commit {place.revision[:12]} of {place.page}"


def _version_of(tag: str) -> str:
    """The content hash of a file by its ETag: sha256 of a large file, git's sha1 of a small one."""
    tag = tag.removeprefix("W/").strip('"')
    return f"{'sha256' if len(tag) == 64 else 'git'}:{tag}"


def _look(place: HubPath) -> Look:
    """Ask for a file's size, hash and address, which for large files is on another host and signed."""
    url = f"{place.page}/resolve/{quote(place.revision, safe='')}/{quote(place.inner)}"
    for _ in range(5):
        with closing(_ask(place, url, "HEAD", follow=False)) as answer:
            headers = answer.headers
            location = urljoin(url, headers.get("Location", url))
            own = urlsplit(location).netloc == urlsplit(url).netloc
            size = headers.get("X-Linked-Size") or (headers.get("Content-Length") if not answer.is_redirect else None)
            tag = headers.get("X-Linked-ETag") or headers.get("ETag")
            if answer.is_redirect and own:
                url = location  # the repository was renamed
                continue
        if size is None or tag is None:
            raise _no_hub(place)
        token = _token() if own else ""
        return Look(int(size), _version_of(tag), location, ranges=True, stated=False, token=token)
    raise OutageError(f"{place}: the hub redirects in circles. Run again later.")
