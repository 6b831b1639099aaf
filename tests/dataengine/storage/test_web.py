"""Sources on web servers: one version, each byte once, and servers without ranges, validators or patience."""

from __future__ import annotations

import gzip
import random
import socket
from pathlib import Path

import pytest
import requests
from urllib3 import HTTPSConnectionPool
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import MaxRetryError, NameResolutionError

from dataengine.errors import InputError, OutageError
from dataengine.records.parts import plan_parts, whole_file
from dataengine.records.read import read_records
from dataengine.records.types import RecordFormat
from dataengine.storage import files, web
from dataengine.storage.files import open_file
from dataengine.storage.find import find_files
from tests.hub import Fault, WebServer, web_server

__all__ = ["web_server"]

CONTENT = random.Random(0).randbytes(10_500)
DATE = "Sun, 29 Nov 2026 10:00:00 GMT"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK", 1000)
    monkeypatch.setattr(files, "_BUFFER", 64)
    monkeypatch.setattr("dataengine.storage.retry.pause_s", lambda state: 0.0)


def read(url: str, version: str = "") -> bytes:
    with open_file(url, version=version) as file:
        return file.read()


def version_of(url: str) -> str:
    (file,) = find_files(url)
    return file.version


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_is_found_and_each_byte_is_sent_once(web_server: WebServer, ranges: bool) -> None:
    web_server.ranges = ranges
    url = web_server.put("/some/file.bin", CONTENT)
    (file,) = find_files(url)
    assert (file.path, file.size, file.ranges) == (url, len(CONTENT), ranges)
    web_server.forget()
    assert read(url, file.version) == CONTENT
    looked = 1 if ranges else len(CONTENT)  # a whole file is asked for to see it, and not received
    assert web_server.sent <= len(CONTENT) + looked
    assert len(web_server.requests) == (12 if ranges else 2)


def test_ranges_and_seeks_read_what_a_local_file_reads(web_server: WebServer, tmp_path: Path) -> None:
    url, path = web_server.put("/f", CONTENT), tmp_path / "f"
    path.write_bytes(CONTENT)
    chance = random.Random(4)
    for start, stop in ((0, None), (300, 7000), (10_000, 20_000), (10_500, None)):
        with open_file(url, start, stop) as remote, open_file(str(path), start, stop) as local:
            for _ in range(30):
                position, count = chance.randrange(11_000), chance.randrange(3000)
                assert remote.seek(position) == local.seek(position)
                assert remote.read(count) == local.read(count)


def test_an_empty_file_and_a_missing_one(web_server: WebServer) -> None:
    url = web_server.put("/empty", b"")
    assert [file.size for file in find_files(url)] == [0]
    assert read(url) == b""
    assert find_files(f"{web_server.url}/none") == []
    with pytest.raises(InputError, match=r"/none: no such file\. Correct the path"):
        read(f"{web_server.url}/none")


def test_the_version_is_the_strong_etag_else_the_time_and_always_of_one_url(web_server: WebServer) -> None:
    web_server.modified = DATE
    url, other = web_server.put("/a", b"one"), web_server.put("/b", b"one")
    strong = version_of(url)
    assert version_of(other) != strong  # an ETag says nothing of another URL
    web_server.modified = "Sun, 29 Nov 2026 11:00:00 GMT"
    assert version_of(url) == strong
    web_server.put("/a", b"two")
    assert version_of(url) != strong
    for tag in ("", 'W/"weak"'):
        web_server.etag, web_server.modified = tag, DATE
        before = version_of(url)
        web_server.modified = "Sun, 29 Nov 2026 11:00:00 GMT"
        assert version_of(url) != before


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_a_server_that_identifies_no_version_is_refused(web_server: WebServer, tag: str) -> None:
    web_server.etag = tag
    with pytest.raises(InputError, match=r"neither an ETag nor Last-Modified.* Download the file"):
        find_files(web_server.put("/a", b"one"))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", ['"{}"', ""])
def test_a_file_that_changes_while_it_is_read_is_refused(web_server: WebServer, ranges: bool, etag: str) -> None:
    web_server.ranges, web_server.etag, web_server.modified = ranges, etag, DATE
    url = web_server.put("/f", CONTENT)
    with open_file(url) as file:
        assert file.read(10) == CONTENT[:10]
        web_server.put("/f", CONTENT[::-1])
        web_server.modified = "Sun, 29 Nov 2026 11:00:00 GMT"
        if ranges:
            with pytest.raises(InputError, match=r"/f: it changed after it was found\. Run again"):
                file.read()
        else:
            assert file.read() == CONTENT[10:]  # one answer is of one version
    web_server.put("/f", CONTENT + b"more")
    with pytest.raises(InputError, match=r"/f: it changed after it was found\. Run again"):
        read(url, version_of(url).replace(DATE, "before") + "x")


def test_redirects_are_followed_once_for_each_opening(web_server: WebServer) -> None:
    web_server.put("/real", CONTENT)
    web_server.redirects["/link"] = f"{web_server.url}/real"
    url = f"{web_server.url}/link"
    (file,) = find_files(url)
    web_server.forget()
    assert (file.path, read(url, file.version)) == (url, CONTENT)
    assert web_server.count("/link") == 1
    web_server.redirects["/circle"] = f"{web_server.url}/circle"
    with pytest.raises(InputError, match=r"more than 10 redirects\. Correct the URL"):
        find_files(f"{web_server.url}/circle")


def test_content_comes_as_it_is_stored(web_server: WebServer) -> None:
    url = web_server.put("/a.jsonl.gz", gzip.compress(b'{"text": "one"}\n'))
    (batch,) = read_records(whole_file(url), RecordFormat(("text",)))
    assert batch.texts == (["one"],)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_of_lines_is_split_where_the_server_has_ranges(web_server: WebServer, ranges: bool) -> None:
    web_server.ranges = ranges
    lines = [b'{"text": "%d"}' % number for number in range(500)]
    url = web_server.put("/a.jsonl", b"\n".join(lines))
    form = RecordFormat(("text",))
    parts, _ = plan_parts([url], "s", form, format=None, part_bytes=2000, hashes={}, threads=2)
    assert len(parts) == (4 if ranges else 1)
    texts = [text for part in parts for batch in read_records(part, form) for text in batch.texts[0]]
    assert texts == [str(number) for number in range(500)]


def test_a_format_that_needs_ranges_says_so(web_server: WebServer) -> None:
    web_server.ranges = False
    url = web_server.put("/a.parquet", CONTENT * 20)  # pyarrow reads the last 64 KiB first
    with pytest.raises(InputError, match=r"the server sends whole files only.*Download it \(curl -LO URL\)"):
        plan_parts([url], "s", RecordFormat(("text",)), format=None, part_bytes=2000, hashes={}, threads=2)


@pytest.mark.parametrize("url", ["https://host/*.txt", "http://host/a/[ab].txt", "https://host/**"])
def test_a_glob_says_that_servers_do_not_list(url: str) -> None:
    with pytest.raises(InputError, match="a web server does not list its files"):
        find_files(url)


def test_a_question_mark_begins_a_query(web_server: WebServer) -> None:
    assert find_files(web_server.put("/file?download=1", CONTENT))[0].size == len(CONTENT)


def test_a_password_in_a_url_is_refused_without_showing_it() -> None:
    with pytest.raises(InputError, match=r"~/\.netrc") as raised:
        find_files("https://me:secret@host/file")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_file_goes_on_where_it_ended(web_server: WebServer, ranges: bool) -> None:
    web_server.ranges = ranges
    url = web_server.put("/f", CONTENT)
    version = version_of(url)
    web_server.forget()
    web_server.faults += [Fault("GET", 1, cut=5000) if not ranges else Fault("GET", 3, cut=400)]
    web_server.faults[0].times += not ranges  # looking does not read the content
    assert read(url, version) == CONTENT


@pytest.mark.parametrize("status", [429, 500, 503])
def test_outages_pass(web_server: WebServer, status: int) -> None:
    web_server.faults.append(Fault("GET", 5, status))
    assert read(web_server.put("/f", CONTENT)) == CONTENT


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"the server refused \(401.*write a password for 127\.0\.0\.1 into ~/\.netrc"),
        (403, r"the server refused \(403"),
        (400, r"the server refused \(400 Bad Request\)\. Correct the URL\.$"),
        (500, r"the server is failing \(500 .*It was tried 10 times"),
    ],
)
def test_refusals_and_lasting_outages_are_said(web_server: WebServer, status: int, words: str) -> None:
    web_server.faults.append(Fault("GET", 99, status))
    with pytest.raises(InputError, match=words) as raised:
        find_files(web_server.put("/f", CONTENT))
    assert "\n" not in str(raised.value)
    assert len(web_server.requests) == (10 if status == 500 else 1)


def test_a_server_without_tls_is_said(web_server: WebServer) -> None:
    url = web_server.put("/f", CONTENT).replace("http://", "https://")
    with pytest.raises(InputError, match=r"no secure connection to 127\.0\.0\.1") as raised:
        find_files(url)
    assert not isinstance(raised.value, OutageError)


def test_an_unknown_host_is_said_at_once() -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    reason = NameResolutionError("none", HTTPSConnection("none"), unknown)
    error = requests.ConnectionError(MaxRetryError(HTTPSConnectionPool("none"), "/f", reason))
    said = web.unreachable("https://none/f", error)
    assert not isinstance(said, OutageError)
    assert str(said).startswith("https://none/f: there is no host none (Failed to resolve 'none' (")


def test_slow_servers_and_dead_ones_are_given_up(web_server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_TIMEOUTS_S", (0.1, 0.05))
    monkeypatch.setattr(web, "_TRIES", 2)
    url = web_server.put("/f", CONTENT)
    web_server.faults.append(Fault("GET", 2, delay_s=0.5))
    with pytest.raises(OutageError, match=r"cannot be reached \(.*timed out.* tried 2 times"):
        find_files(url)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(OutageError, match=r"127\.0\.0\.1 cannot be reached .*tried 2 times"):
        find_files(f"http://127.0.0.1:{port}/f")
