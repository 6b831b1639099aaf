"""A small Hugging Face hub and a web server on loopback, with faults on demand; both count what they send.

The answers are those that huggingface_hub reads (a test lists and downloads with it). As on the hub, large files are on
another host, behind signed addresses that expire.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from dataengine.storage.hub import forget_commits

_LARGE = 64  # bytes; larger files are stored apart
_PAGE = 3  # entries of a listing on a page


@dataclass
class Fault:
    """Answers to requests whose address matches: `times` are spoilt in one way."""

    match: str
    times: int = 1
    status: int = 0  # answered instead; 0: the right answer is spoilt
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes of the body after which the connection breaks
    delay_s: float = 0.0  # before the answer


@dataclass
class Request:
    """A request that a server answers."""

    method: str
    path: str
    status: int
    authorization: str
    sent: int = 0  # bytes of the body


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that clients close are not worth a line."""


class LoopbackServer(ABC):
    """An HTTP server in a thread. Subclasses answer requests."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer._serve(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def sent(self) -> int:
        """Bytes of the bodies of all answers."""
        return sum(request.sent for request in self.requests)

    def forget(self) -> None:
        """Count from zero again."""
        self.requests.clear()

    def count(self, match: str) -> int:
        """The number of requests whose method and address match."""
        return sum(1 for one in self.requests if re.search(match, f"{one.method} {one.path}"))

    @abstractmethod
    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an answer."""

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        given = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        status, headers, body = self.answer(handler, given)
        cut = None
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.match, f"{handler.command} {handler.path}"):
                fault.times -= 1
                time.sleep(fault.delay_s)
                if fault.status:
                    status, headers, body = fault.status, fault.headers, b"{}"
                cut = fault.cut
                break
        headers = {"Content-Length": str(len(body)), **headers}
        request = Request(handler.command, handler.path, status, handler.headers.get("Authorization", ""))
        self.requests.append(request)
        handler.send_response(status)
        for name, value in headers.items():
            if value:
                handler.send_header(name, value)
        try:
            handler.end_headers()
            _send(handler, b"" if handler.command == "HEAD" else body[:cut], request)
        except ConnectionError:  # the client has seen enough
            handler.close_connection = True
        if cut is not None:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True


def _send(handler: BaseHTTPRequestHandler, content: bytes, request: Request) -> None:
    for at in range(0, len(content), 1 << 16):
        request.sent += len(content[at : at + (1 << 16)])
        handler.wfile.write(content[at : at + (1 << 16)])


def part_of(handler: BaseHTTPRequestHandler, content: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request with or without a range."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if not found:
        return 200, {}, content
    first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
    if first >= len(content):
        return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
    return 206, {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]


class WebServer(LoopbackServer):
    """Files by path. The headers that identify a version can be chosen, and ranges refused."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.ranges = True
        self.etag = '"{}"'  # with a hash of the content
        self.modified = ""

    def put(self, path: str, content: bytes) -> str:
        """Serve a file; return its URL."""
        self.files[path] = content
        return f"{self.url}{path}"

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an answer."""
        path = unquote(handler.path)
        if path in self.redirects:
            return 302, {"Location": self.redirects[path]}, b""
        if path not in self.files:
            return 404, {}, b"no such file"
        content = self.files[path]
        status, headers, piece = part_of(handler, content) if self.ranges else (200, {}, content)
        tag = self.etag.format(hashlib.md5(content).hexdigest())
        return status, {**headers, "ETag": tag, "Last-Modified": self.modified}, piece


@dataclass
class Repository:
    """A repository of the hub: its commits, and the branches that name them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False  # without a token it does not exist
    gated: bool = False  # no token has access


class Hub(LoopbackServer):
    """A hub with datasets and models by their names, such as "datasets/org/name"."""

    TOKEN = "hf_of_the_tests"

    def __init__(self) -> None:
        super().__init__()
        self.blobs = _Blobs()
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}

    def stop(self) -> None:
        """End both servers."""
        super().stop()
        self.blobs.stop()

    def forget(self) -> None:
        """Count from zero again."""
        super().forget()
        self.blobs.forget()

    @property
    def total(self) -> tuple[int, int]:
        """Requests, and bytes of files and listings, of both hosts."""
        return len(self.requests) + len(self.blobs.requests), self.sent + self.blobs.sent

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Replace the files of a branch; return the commit."""
        repository = self.repositories.setdefault(name, Repository())
        state = json.dumps([(path, git_hash(content)) for path, content in sorted(files.items())])
        commit = hashlib.sha1(f"{branch}{len(repository.commits)}{state}".encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.refs[branch] = commit
        return commit

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an answer."""
        address = urlsplit(handler.path)
        found = re.fullmatch(
            r"(/api)?/(datasets/|models/)?([\w.-]+/[\w.-]+)(?:/(resolve|revision|tree|paths-info)/([^/]+)/?(.*))?",
            address.path,
        )
        if not found:
            return _error(404, "", "no such page")
        name = f"{(found[2] or '').replace('models/', '')}{found[3]}"
        if name in self.renamed:
            return 307, {"Location": handler.path.replace(found[3], self.renamed[name].removeprefix("datasets/"))}, b""
        repository, token = self.repositories.get(name), handler.headers.get("Authorization", "")
        if token not in ("", f"Bearer {self.TOKEN}"):
            return _error(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.private and not token):
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        revision, inner = unquote(found[5] or "main"), unquote(found[6] or "")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        kind = found[4] or "revision"
        if kind == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            return 200, {}, json.dumps({"id": found[3], "sha": commit, "siblings": siblings}).encode()
        if repository.gated:
            return _error(403 if token else 401, "GatedRepo", f"Access to {found[3]} is restricted.")
        if kind == "resolve":
            return self._resolve(handler, files, inner, commit)
        if kind == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            return 200, {}, json.dumps([_entry(path, files[path]) for path in wanted if path in files]).encode()
        return self._list(handler.path, parse_qs(address.query), files, inner)

    def _resolve(
        self, handler: BaseHTTPRequestHandler, files: dict[str, bytes], path: str, commit: str
    ) -> tuple[int, dict[str, str], bytes]:
        if path not in files:
            return _error(404, "EntryNotFound", "Entry not found")
        content, headers = files[path], {"X-Repo-Commit": commit}
        if len(content) < _LARGE:
            status, more, piece = part_of(handler, content)
            return status, {**headers, **more, "ETag": f'"{git_hash(content)}"'}, piece
        sha256 = hashlib.sha256(content).hexdigest()
        large = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"'}
        return 302, {**headers, **large, "Location": self.blobs.sign(sha256, content)}, b""

    def _list(
        self, address: str, query: dict[str, list[str]], files: dict[str, bytes], folder: str
    ) -> tuple[int, dict[str, str], bytes]:
        below = f"{folder}/" if folder else ""
        entries: dict[str, Any] = {}
        for path, content in sorted(files.items()):
            if path.startswith(below):
                names = path.removeprefix(below).split("/")
                for depth in range(1, len(names)):
                    inner = below + "/".join(names[:depth])
                    entries[inner] = {"type": "directory", "oid": git_hash(inner.encode()), "size": 0, "path": inner}
                entries[path] = _entry(path, content)
        if not entries:
            return _error(404, "EntryNotFound", "Entry not found")
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = {path: entry for path, entry in entries.items() if "/" not in path.removeprefix(below)}
        first = int(query.get("cursor", ["0"])[0])
        page = list(entries.values())[first : first + _PAGE]
        headers = {}
        if first + _PAGE < len(entries):
            base = re.sub(r"&cursor=\d+", "", address)
            headers["Link"] = f'<{self.url}{base}{"&" if "?" in base else "?"}cursor={first + _PAGE}>; rel="next"'
        return 200, headers, json.dumps(page).encode()


class _Blobs(LoopbackServer):
    """The host of large files: by signed addresses, with an ETag of its own."""

    def __init__(self) -> None:
        super().__init__("localhost")
        self.contents: dict[str, bytes] = {}
        self.valid: set[str] = set()
        self.expire_after = 1 << 60  # requests after which signatures are not accepted

    def sign(self, sha256: str, content: bytes) -> str:
        """An address of a file."""
        self.contents.setdefault(sha256, content)
        signature = f"{len(self.valid)}"
        self.valid.add(signature)
        return f"{self.url}/{sha256}?signature={signature}"

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an answer."""
        address = urlsplit(handler.path)
        if parse_qs(address.query)["signature"][0] not in self.valid:
            return 403, {}, b"expired"
        self.expire_after -= 1
        if self.expire_after <= 0:
            self.valid.clear()
            self.expire_after = 1 << 60
        return part_of(handler, self.contents[address.path[1:]])


def git_hash(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": git_hash(content), "size": len(content), "path": path}
    if len(content) >= _LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        entry |= {"oid": git_hash(pointer), "xetHash": sha256}
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return entry


def _error(status: int, code: str, said: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": said}, json.dumps({"error": said}).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub without repositories; the environment names it until the test ends."""
    monkeypatch.setenv("HF_TOKEN_PATH", os.devnull)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", os.devnull)
    with running(monkeypatch, Hub()) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        forget_commits()  # of an earlier test's hub at the same port
        yield made


@pytest.fixture
def web_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A web server without files."""
    with running(monkeypatch, WebServer()) as made:
        yield made


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, server: Any) -> Iterator[Any]:
    """End a server after its test, which may ask it whatever earlier tests of this process switched off."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read once, at its import
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setenv("NETRC", os.devnull)
    try:
        yield server
    finally:
        server.stop()
