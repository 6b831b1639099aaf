"""Files on web servers, read by HTTP: those of https:// and http:// URLs, and for `hub` those of the Hugging Face hub.

Proxies, certificates and passwords (~/.netrc) are those of requests. A server's 429 and 5xx answers, broken connections
and timeouts are tried again as `retry` says, after the pause that the server asks for; a file goes on where the
connection broke.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from http.client import responses
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from dataengine.errors import InputError, OutageError, note
from dataengine.storage.paths import FoundFile
from dataengine.storage.retry import retry

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

_TRIES = 10  # of a request, as for object stores
_TIMEOUTS_S = (10, 60)  # to connect, and between two pieces of an answer
_LONGEST_WAIT_S = 300  # that a server may ask for; the hub counts requests in windows of 300 s
_TELL_S = 10  # longer waits are told
_REDIRECTS = 10
_NO_HOST = "Name or service not known|nodename nor servname"  # Linux, macOS; not "Temporary failure in name resolution"
_PIECE = 1 << 16  # bytes
_OUTAGES = (408, 425, 429)  # and 5xx
_EXPIRED = (401, 403, 404, 410)  # answers of a signed address after its time

T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """What a server says about a file."""

    size: int  # bytes
    version: str
    location: str  # where redirects lead: the address of its bytes
    ranges: bool  # False: the server sends whole files only
    stated: bool = True  # whether each later answer states the version
    token: str = ""  # for this address


def identify_web_file(url: str) -> FoundFile:
    """Size and version of a file at an https:// or http:// URL.

    Raises FileNotFoundError if there is none, InputError if it cannot be read or its changes could not be noticed.
    """
    seen = until_answered(partial(_look, url))
    return FoundFile(url, seen.size, seen.version, seen.ranges)


def open_web_file(url: str, version: str = "") -> WebFile:
    """A file at an https:// or http:// URL. Raises as `identify_web_file`, and InputError for another version."""
    return WebFile(url, version, partial(_look, url))


class WebFile:
    """One version of a file on a server, read by ranges; if the server has none, from the beginning on."""

    def __init__(self, url: str, version: str, look: Callable[[], Look]) -> None:
        self._url, self._look = url, look
        self._seen: Look | None = until_answered(look)
        self.size, self.version = self._seen.size, version or self._seen.version
        self._ranges = self._seen.ranges
        self._whole: tuple[Response, int] | None = None  # an answer without ranges, and its position
        self._closed = False
        self._check(self._seen)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), for one thread at a time if the server has no ranges."""
        received = bytearray()
        if not self._ranges and start not in (0, self._whole[1] if self._whole else 0):
            raise InputError(
                f"{self._url}: the server sends whole files only, and this one has to be read in pieces. Download it "
                "(curl -LO URL), and name the file instead."
            )
        fill = self._fill if self._ranges else self._fill_from_whole
        until_answered(partial(fill, received, start, stop))
        return bytes(received)

    def close(self) -> None:
        """Close the connection. It may be called while another thread reads."""
        self._closed = True
        self._end_whole()

    def _end_whole(self) -> None:
        if self._whole is not None:
            self._whole[0].close()
            self._whole = None

    def _fill(self, received: bytearray, start: int, stop: int) -> None:
        """Receive what is missing of [start, stop). What arrives before a fault stays."""
        at = start + len(received)
        with closing(self._ask(f"bytes={at}-{stop - 1}")) as answer:
            if answer.status_code == 416 or _total_of(answer) not in (None, self.size):
                raise self._changed()
            if answer.status_code != 206 or _start_of(answer) != at:
                raise OutageError(f"{self._url}: asked for bytes from {at:,}, the server sent others. Run again later.")
            _receive(answer, received, stop - start, self._url)

    def _fill_from_whole(self, received: bytearray, start: int, stop: int) -> None:
        """As `_fill`, from the answer that the last block came from, or from a new one."""
        at = start + len(received)
        if self._whole is None or self._whole[1] != at:
            self._end_whole()
            self._whole = self._ask(), 0
        answer, place = self._whole
        self._whole = None
        try:
            while place < at:
                place += _receive(answer, bytearray(), min(_PIECE, at - place), self._url)
            _receive(answer, received, stop - start, self._url)
        except BaseException:
            answer.close()
            raise
        self._whole = answer, stop
        if self._closed:
            self._end_whole()

    def _ask(self, ranges: str = "") -> Response:
        seen = self._seen or self._look()
        self._check(seen)
        answer = ask(seen.location, token=seen.token, Range=ranges)
        if answer.status_code in _EXPIRED and seen.location != self._url:
            answer.close()
            self._seen = None
            raise OutageError(f"{self._url}: the address that it redirects to has expired. Run again.")
        if answer.status_code not in (200, 206, 416):
            raise refusal(self._url, answer)
        if seen.stated and answer.status_code != 416 and _version_of(self._url, answer.headers) != self.version:
            answer.close()
            raise self._changed()
        self._seen = seen
        return answer

    def _check(self, seen: Look) -> None:
        if (seen.size, seen.version) != (self.size, self.version):
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(f"{self._url}: it changed after it was found. Run again.")


def until_answered(action: Callable[[], T]) -> T:
    """The result of `action`, which is tried again after an outage."""
    return retry(action, tries=_TRIES, on_failure=_tell)


def _look(url: str) -> Look:
    """Ask for the first byte: some servers refuse HEAD, and the answer shows whether they send ranges."""
    if urlsplit(url).username is not None:
        raise InputError("a URL with a password would be recorded in the store. Write the password into ~/.netrc.")
    with closing(ask(url, Range="bytes=0-0")) as answer:
        if answer.status_code in (404, 410):
            raise FileNotFoundError(f"{url}: no such file")
        if answer.status_code not in (200, 206, 416):
            raise refusal(url, answer)
        size, version = _total_of(answer), _version_of(url, answer.headers)
        if size is None:
            raise InputError(f"{url}: the server does not tell the size. Download the file, and name it instead.")
        if not version:
            raise InputError(
                f"{url}: the server gives neither an ETag nor Last-Modified, so a change of the content could not be "
                "noticed. Download the file, and name it instead."
            )
        return Look(size, version, answer.url, answer.status_code != 200)


def _version_of(url: str, headers: Mapping[str, str]) -> str:
    """A text that differs for other content: by the strong ETag, else by Last-Modified; "" without both.

    An ETag tells apart only the versions of one URL, so it holds the URL.
    """
    tag = headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return f"{url} {tag}"
    changed = headers.get("Last-Modified", "")
    return f"{url} {tag or '-'} {changed}" if changed else ""


def _total_of(answer: Response) -> int | None:
    """The size of the whole file that an answer states."""
    if answer.status_code in (206, 416):
        found = re.search(r"/(\d+)\s*$", answer.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _start_of(answer: Response) -> int | None:
    found = re.match(r"bytes\s+(\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _receive(answer: Response, received: bytearray, wanted: int, url: str) -> int:
    """Append stored bytes until there are `wanted`, which it returns. Raises OutageError if the connection breaks."""
    from urllib3.exceptions import HTTPError

    try:
        while len(received) < wanted and (
            piece := answer.raw.read(min(_PIECE, wanted - len(received)), decode_content=False)
        ):
            received += piece
    except (HTTPError, OSError) as error:
        raise unreachable(url, error) from None
    if len(received) < wanted:
        raise OutageError(f"{url}: the connection ended {wanted - len(received):,} bytes early. Run again later.")
    return wanted


def ask(url: str, method: str = "GET", *, token: str = "", follow: bool = True, **headers: str) -> Response:
    """One attempt at a request; close its answer. It has any status but those of an outage, which raise OutageError.

    The token goes to no other host. The content comes as it is stored.
    """
    from requests import RequestException

    def with_token(request: PreparedRequest) -> PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    wanted = {"Accept-Encoding": "identity", **{name: value for name, value in headers.items() if value}}
    try:
        answer = _session(os.getpid()).request(
            method,
            url,
            headers=wanted,
            auth=with_token if token else None,
            stream=True,
            timeout=_TIMEOUTS_S,
            allow_redirects=follow,
        )
    except (RequestException, ValueError) as error:
        raise unreachable(url, error) from None
    if is_outage(answer.status_code):
        answer.close()
        raise _outage(url, answer)
    return answer


@lru_cache(maxsize=2)
def _session(pid: int) -> Session:
    """Connections of this process. `pid` is the cache key, so that they do not outlive a fork."""
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.max_redirects = _REDIRECTS
    session.headers["User-Agent"] = "dataengine"
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=32))
    return session


def is_outage(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in _OUTAGES or status >= 500


def refusal(url: str, answer: Any) -> InputError:
    """An error for an answer that is neither content nor an outage. Closes the answer."""
    answer.close()
    said = f"{answer.status_code} {responses.get(answer.status_code, '')}".strip()
    remedy = "Correct the URL"
    if answer.status_code in (401, 403):
        host = urlsplit(url).hostname
        remedy = f"Correct the URL, write a password for {host} into ~/.netrc, or download the file and name it instead"
    return InputError(f"{url}: the server refused ({said}). {remedy}.")


def _outage(url: str, answer: Response) -> InputError:
    said = f"{answer.status_code} {responses.get(answer.status_code, '')}".strip()
    what = "too many requests" if answer.status_code == 429 else "the server is failing"
    wait_s = _wait_of(answer.headers)
    if wait_s > _LONGEST_WAIT_S:
        return InputError(f"{url}: {what} ({said}). The server asks to wait {wait_s:,.0f} s: run again then.")
    error = OutageError(f"{url}: {what} ({said}). Run again later.")
    error.wait_s = wait_s
    return error


def _wait_of(headers: Mapping[str, str]) -> float:
    """The seconds that a server asks to wait: by Retry-After, or by the hub's RateLimit if nothing remains; else 0."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - parsedate_to_datetime(headers["Date"])).total_seconds())
    except (KeyError, ValueError, TypeError):
        limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
        return float(limit[1]) if limit else 0.0


def _tell(error: BaseException, elapsed_s: float) -> None:
    """Tell why nothing happens, when it takes long."""
    wait_s = error.wait_s if isinstance(error, OutageError) else 0.0
    if max(wait_s, elapsed_s) >= _TELL_S:
        asked = f"; the server asks to wait {wait_s:,.0f} s" if wait_s else ""
        note(f"{str(error).partition('. ')[0]}{asked}; trying again")


def unreachable(url: str, error: Exception) -> InputError:
    """Translate an exception of requests or urllib3."""
    from requests import TooManyRedirects
    from requests.exceptions import SSLError

    host, said = urlsplit(url).hostname, str(getattr(next(iter(error.args), None), "reason", error))
    said = said.rpartition("): ")[2]  # after the name of a connection
    if isinstance(error, SSLError) and "EOF" not in said:  # EOF: the connection broke
        return InputError(
            f"{url}: no secure connection to {host} ({said}). Check this machine's clock, or name the certificates "
            "(REQUESTS_CA_BUNDLE) if a proxy replaces them."
        )
    if isinstance(error, TooManyRedirects):
        return InputError(f"{url}: more than {_REDIRECTS} redirects. Correct the URL.")
    if isinstance(error, ValueError):
        return InputError(f"{url} is not a URL that can be read ({said}). Correct it.")
    if re.search(_NO_HOST, said):
        return InputError(f"{url}: there is no host {host} ({said}). Correct the URL, or check the network.")
    return OutageError(f"{url}: {host} cannot be reached ({said}). Check the network and HTTPS_PROXY, then run again.")
