"""A hub of models on loopback: model information and files at a commit, and the ways in which a hub fails."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dataengine.storage.hub import forget_commits


@dataclass
class ModelHub:
    """Folders by name and commit; the first commit of a name is its branch main."""

    models: dict[str, dict[str, Path]] = field(default_factory=dict)
    url: str = ""
    gated: bool = False  # without a token
    failing: list[int] = field(default_factory=list)  # statuses of the next answers
    always: int = 0  # status of all answers
    half: str = ""  # a file of which every answer ends in the middle
    asked: Counter[str] = field(default_factory=Counter)  # answers by path

    def add(self, name: str, folder: Path, commit: str) -> None:
        """Publish a folder as the newest commit of a model."""
        self.models[name] = {commit: folder, **self.models.get(name, {})}

    def answer(self, path: str, start: int, end: int | None) -> tuple[int, dict[str, str], bytes, int]:
        """Status, headers, content and whole length."""
        self.asked[path] += 1
        status = self.failing.pop(0) if self.failing else self.always
        if status:
            return status, {}, b"busy", 4
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None or match[1] not in self.models:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"", 0
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"", 0
        commits = self.models[match[1]]
        commit = next(iter(commits)) if match[2] in (None, "main") else match[2]
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"", 0
        if api:
            content = json.dumps(_describe(match[1], commit, commits[commit])).encode()
            return 200, {"Content-Type": "application/json"}, content, len(content)
        assert file is not None
        stored = commits[commit] / file[3]
        if not stored.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"", 0
        content = stored.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        part = content[start : None if end is None else end + 1]
        if start or end is not None:
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        if self.half == file[3]:
            return 200, headers, part[: len(part) // 2], len(part)
        return 206 if "Content-Range" in headers else 200, headers, part, len(part)


def _describe(name: str, commit: str, folder: Path) -> dict[str, Any]:
    siblings = [
        {
            "rfilename": path.name,
            "size": path.stat().st_size,
            "blobId": "0" * 40,
            "lfs": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": 1, "pointerSize": 1}
            if path.suffix == ".safetensors"
            else None,
        }
        for path in sorted(folder.iterdir())
    ]
    return {"_id": "0", "id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0,
            "likes": 0, "siblings": siblings}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ModelHub

    def do_GET(self) -> None:
        self._respond(body=True)

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _respond(self, *, body: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2]) if asked[2] else None) if asked else (0, None)
        status, headers, content, length = self.hub.answer(self.path.partition("?")[0], start, end)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
            if len(content) < length:
                self.close_connection = True


@pytest.fixture
def model_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """An empty hub with an empty cache, for this process and for ranks (`tests.end_to_end.ranks`)."""
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        forget_commits()
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        yield hub


@contextmanager
def serving() -> Iterator[ModelHub]:
    """Serve a hub on loopback."""
    hub = ModelHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
