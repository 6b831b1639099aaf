"""A hub of models on loopback: model information and files at a commit, and the ways in which a hub fails."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from dataengine.storage.hub import forget_commits
from tests.hub import LoopbackServer, part_of, running


class ModelHub(LoopbackServer):
    """Folders by name and commit; the first commit of a name is its branch main."""

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, dict[str, Path]] = {}
        self.gated = False  # without a token
        self.failing: list[int] = []  # statuses of the next answers
        self.always = 0  # status of all answers
        self.half = ""  # a file of which every answer ends in the middle
        self.asked: Counter[str] = Counter()  # answers by path

    def add(self, name: str, folder: Path, commit: str) -> None:
        """Publish a folder as the newest commit of a model."""
        self.models[name] = {commit: folder, **self.models.get(name, {})}

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an answer."""
        path = handler.path.partition("?")[0]
        self.asked[path] += 1
        status = self.failing.pop(0) if self.failing else self.always
        if status:
            return status, {}, b"busy"
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None or match[1] not in self.models:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        commits = self.models[match[1]]
        commit = next(iter(commits)) if match[2] in (None, "main") else match[2]
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if api:
            return 200, {}, json.dumps(_describe(match[1], commit, commits[commit])).encode()
        assert file is not None
        stored = commits[commit] / file[3]
        if not stored.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        content = stored.read_bytes()
        status, headers, part = part_of(handler, content)
        headers |= {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if self.half == file[3]:
            headers["Content-Length"], handler.close_connection = str(len(part)), True
            part = part[: len(part) // 2]
        return status, headers, part


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


@pytest.fixture
def model_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """An empty hub with an empty cache, for this process and for ranks (`tests.end_to_end.ranks`)."""
    with running(monkeypatch, ModelHub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        forget_commits()
        yield hub
