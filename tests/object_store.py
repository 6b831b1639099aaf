"""A real object store for tests: one SeaweedFS server on loopback for the whole run, a new bucket for each test."""

from __future__ import annotations

import atexit
import functools
import http.client
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports

ACCESS_KEY, SECRET_KEY = "test-access-key-1234", "test-secret-key-of-usual-length-12345678"
_START_TIMEOUT_S = 60
_PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
_numbers = count()
_deleted: set[str] = set()  # buckets of tests that have ended


@dataclass(frozen=True)
class ObjectStore:
    """A bucket of the server, and a client that knows nothing of the code under test."""

    endpoint: str
    bucket: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def keys(self) -> list[str]:
        """All keys of the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A new bucket; the environment names the server and its keys until the test ends."""
    made = new_bucket(monkeypatch)
    yield made
    made.client.delete_bucket(Bucket=made.bucket)  # with all in it: each holds seven of the server's volumes
    _deleted.add(made.bucket)


def new_bucket(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A new bucket, as the fixture gives; undoing `monkeypatch` restores the environment."""
    endpoint, client = server().endpoint, server().client
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_", "GCS_")) and name != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no role is looked for on the network
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bucket = f"test-{next(_numbers)}"
    client.create_bucket(Bucket=bucket)
    return ObjectStore(endpoint, bucket, client)


class Server:
    """A SeaweedFS server with a folder and ports of its own; it is killed when this process ends."""

    def __init__(self) -> None:
        stack = ExitStack()
        atexit.register(stack.close)
        self._folder = Path(tempfile.mkdtemp(prefix="weed-"))  # short, for names of sockets
        stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        (self._folder / "s3.json").write_text(
            json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]})
        )
        (self._folder / "data").mkdir()
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self._log = stack.enter_context((self._folder / "log").open("wb"))
        self.start()
        stack.callback(self.kill)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        flags = {
            f"{name.split('.')[0]}.port{'.grpc' if '.grpc' in name else ''}": port for name, port in self._ports.items()
        }
        self._process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("weed")),
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                f"-dir={self._folder / 'data'}",
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=256",
                "-volume.max=3000",
                "-s3",
                f"-s3.config={self._folder / 's3.json'}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                *(f"-{name}={port}" for name, port in flags.items()),
            ],
            cwd=self._folder,
            env={**os.environ, "TMPDIR": str(self._folder), "HOME": str(self._folder)},
            stdout=self._log,
            stderr=self._log,
        )
        self.client = _wait_for(self.endpoint, self._process, self._folder / "log")

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


@functools.cache  # the fixture may be imported by several test modules: still one server
def server() -> Server:
    """The server of this process."""
    return Server()


def _wait_for(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> Any:
    from botocore.config import Config  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
    from botocore.session import Session  # type: ignore[import-untyped]

    client = Session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=60),
    )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            client.list_buckets()
            return client
        except (BotoCoreError, ClientError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}") from None
            time.sleep(0.1)


Fault = Callable[[int, str, Mapping[str, str]], int | str | None]


@contextmanager
def faulty_proxy(target: str, fault: Fault, *, etags: bool = True, only: str = "") -> Iterator[tuple[str, list[str]]]:
    """Pass requests on to the server at `target`; yield the endpoint, and the methods of the requests so far.

    `fault` takes the number of a request (from 0), its method and its headers; it returns the status of an error to
    answer with, "cut" to break the connection in the middle of the body, "reset" to reset it before, or None. Without
    `etags` they are taken out of all answers. With `only`, requests to other buckets get 404 and do not count: threads
    of earlier tests may still try theirs.
    """
    methods: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_all(self) -> None:
            bucket = self.path.split("/")[1]
            if bucket in _deleted or not bucket.startswith("test-") or (only and bucket != only):
                self.send_error(404)
                return
            number = len(methods)
            methods.append(self.command)
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = fault(number, self.command, dict(self.headers.items()))
            if isinstance(answer, int):
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if answer == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            server = http.client.HTTPConnection(target.removeprefix("http://"), timeout=30)
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name != "Expect":
                    server.putheader(name, value)
            server.endheaders(content)
            reply = server.getresponse()
            body = reply.read()
            server.close()
            left_out = ["transfer-encoding", "connection", "content-length", "date", "server"]
            if not etags:
                left_out.append("etag")
                body = re.sub(rb"<ETag>.*?</ETag>", b"", body)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in left_out:
                    self.send_header(name, value)
            length = reply.headers["Content-Length"] if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer == "cut" else body)
            self.close_connection = answer == "cut"

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_all  # noqa: N815

        def log_message(self, *words: object) -> None:
            pass

    class Proxy(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A side that hangs up is what proxies like this are for."""

    with Proxy(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}", methods
        finally:
            proxy.shutdown()
            thread.join()
