from __future__ import annotations

import datetime
import errno
import glob
import gzip
import io
import multiprocessing
import os
import random
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session

from dataengine.errors import InputError, OutageError
from dataengine.storage import files, find, paths, s3_client
from dataengine.storage.files import open_file
from dataengine.storage.find import find_files
from tests.object_store import ObjectStore, faulty_proxy, object_store

__all__ = ["object_store"]

CONTENT = random.Random(0).randbytes(10_500)
TREE = ["a.txt", "b.json", "c[1].txt", ".hidden.txt", "d/a.txt", "d/e/a.txt", "d/e/f/b.txt", "d/.h/a.txt", "dd/a.txt"]
PATTERNS = ["*.txt", "*", "**", "**/*.txt", "d/**", "d/**/a.txt", "**/e/**/b.txt", "d*/a.*", "[ab].*", "[!a].*"]
PATTERNS += ["?.txt", "c[[]1].txt", ".*", "**.txt", "**/**/a.txt", "d/.h/*", "x*", "d/e"]


@pytest.fixture
def tree(tmp_path: Path, object_store: ObjectStore) -> Path:
    """The same files in a folder and in the bucket, and an object that marks a folder."""
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        put(object_store, name, name.encode())
    put(object_store, "d/", b"")
    return tmp_path


def put(store: ObjectStore, key: str, content: bytes) -> str:
    store.client.put_object(Bucket=store.bucket, Key=key, Body=content)
    return f"{store.url}/{key}"


@pytest.mark.parametrize("path", ["s3://b/k", "gs://b/k", "oci://b/k"])
def test_urls_of_object_stores_are_known(path: str) -> None:
    assert paths.is_url(path)
    assert not paths.is_url(f"./{path}")


def test_globs_find_the_same_in_a_folder_and_in_a_bucket(tree: Path, object_store: ObjectStore) -> None:
    found_any = 0
    for pattern in PATTERNS:
        local = find_files(f"{tree}/{pattern}")
        remote = find_files(f"{object_store.url}/{pattern}")
        names = [file.path.removeprefix(f"{tree}/") for file in local]
        assert names == [file.path.removeprefix(f"{object_store.url}/") for file in remote], pattern
        assert [file.size for file in local] == [file.size for file in remote] == [len(name) for name in names]
        found_any += bool(names)
    assert found_any == len(PATTERNS) - 2


@pytest.mark.parametrize("name", ["d/e/a.txt", "c[1].txt"])
def test_a_path_finds_itself_even_with_the_characters_of_a_glob(
    tree: Path, object_store: ObjectStore, name: str
) -> None:
    for place in (tree, object_store.url):
        (file,) = find_files(f"{place}/{name}")
        assert (file.path, file.size) == (f"{place}/{name}", len(name))
        with open_file(file.path) as content:
            assert content.read() == name.encode()


def test_a_name_comes_before_what_it_matches_as_a_glob(tmp_path: Path, object_store: ObjectStore) -> None:
    for name in ("a[12].txt", "a1.txt", "b*", "bb", "c?", "cc", "d[1", "d"):
        (tmp_path / name).touch()
        put(object_store, name, b"")
    for pattern, names in {
        "a[12].txt": ["a[12].txt"],
        "b*": ["b*"],
        "c?": ["c?"],
        "d[1": ["d[1"],
        "a[[]*": ["a[12].txt"],
        "c[?]": ["c?"],
        "a[13].txt": ["a1.txt"],
    }.items():
        for place in (tmp_path, object_store.url):
            assert [file.path for file in find_files(f"{place}/{pattern}")] == [f"{place}/{name}" for name in names]


def names_below(folder: Path, pattern: str) -> list[str]:
    return [file.path.removeprefix(f"{folder}/") for file in find_files(f"{folder}/{pattern}")]


def test_a_glob_enters_each_real_folder_once_through_links_too(tmp_path: Path) -> None:
    for name in ("data/b/x.txt", "data/c/y.txt", "other/z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data/a").symlink_to("b")  # before the folder itself in order
    (tmp_path / "data/b/loop").symlink_to("..")
    (tmp_path / "data/c/loop").symlink_to(tmp_path / "data/c")
    (tmp_path / "data/l1").symlink_to("../other")
    (tmp_path / "data/l2").symlink_to("../other")
    (tmp_path / "other/back").symlink_to("../data")
    (tmp_path / "data/y.txt").symlink_to("c/y.txt")
    folder = tmp_path / "data"
    assert names_below(folder, "**/*.txt") == names_below(folder, "**") == ["b/x.txt", "c/y.txt", "l1/z.txt", "y.txt"]
    assert names_below(folder, "*/*.txt") == ["a/x.txt", "b/x.txt", "c/y.txt", "l1/z.txt", "l2/z.txt"]
    assert names_below(folder, "**/c/**/*.txt") == ["c/y.txt"]


def test_globs_of_relative_paths_keep_their_way_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    for name in ("a.txt", "d/b.txt", "d/e/c.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for pattern in (
        "*.txt",
        "./*.txt",
        "**/*.txt",
        "./**/*.txt",
        "d/*.txt",
        "d//*.txt",
        "*/e/*",
        "d/../*.txt",
        "[d]/*",
    ):
        assert [file.path for file in find_files(pattern)] == sorted(
            path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)
        ), pattern
    assert find_files("d/*/") == []


@pytest.mark.parametrize("pattern", ["gone.txt", "*.txt", "**/*.txt", "*/x.txt", "**/*.json"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"{tmp_path}/gone.txt is a link to nowhere, which does not exist. Restore"):
        find_files(f"{tmp_path}/{pattern}")


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("a.txt")
    for pattern in ("a.txt", "*.txt", "**/*.txt"):
        with pytest.raises(InputError, match=rf"cannot read {tmp_path}/a.txt: Too many levels of symbolic links"):
            find_files(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
def test_what_is_neither_file_nor_folder_is_named_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.txt"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a socket":
            listener.bind(str(path))
        else:
            path.symlink_to(os.devnull)
        for look in (lambda: find_files(str(path)), lambda: find_files(f"{tmp_path}/*"), lambda: open_file(str(path))):
            with pytest.raises(InputError, match=f"{path} is {kind}, not a file. Sources are read more than once"):
                look()
        assert find_files(f"{tmp_path}/*.json") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("pattern", ["**/*.txt", "*/*.txt", "*/a.txt"])
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.txt").touch()
    (tmp_path / "d").chmod(0)
    try:
        with pytest.raises(InputError, match=rf"cannot read {tmp_path}/d.*: Permission denied"):
            find_files(f"{tmp_path}/{pattern}")
    finally:
        (tmp_path / "d").chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    listing = os.scandir

    def refuse(path: str) -> Any:
        if path.rstrip("/").endswith("/d"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for pattern in ("**/*.txt", "*/*.txt"):
        with pytest.raises(InputError, match=rf"cannot read {tmp_path}/d/: Permission denied"):
            find_files(f"{tmp_path}/{pattern}")


def test_names_that_are_not_utf_8_are_found_and_opened(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"d\xff")).mkdir()
    path = tmp_path / os.fsdecode(b"d\xff/\xe9.txt")
    path.write_bytes(b"text")
    for pattern in ("*/*.txt", "**/*.txt", os.fsdecode(b"d\xff/*")):
        assert [file.path for file in find_files(f"{tmp_path}/{pattern}")] == [str(path)]
    with open_file(str(path)) as file:
        assert file.read() == b"text"
    with pytest.raises(InputError, match=r"'s3://b/\\udcff' is not UTF-8, and object names must be"):
        find_files(os.fsdecode(b"s3://b/\xff"))


def test_all_names_of_a_file_are_one_real_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).write_bytes(b"x")
    Path("link").symlink_to("a")
    os.link("a", "hard")
    assert len({find.real_file(name) for name in ("a", "./a", f"{tmp_path}/a", "link", "hard")}) == 1
    assert find.real_file("a") != find.real_file("b")
    assert find.real_file("s3://b/k") == "s3://b/k"


def test_what_is_not_there_is_not_found(tree: Path, object_store: ObjectStore) -> None:
    for place in (str(tree), object_store.url):
        assert find_files(f"{place}/none.txt") == find_files(f"{place}/d") == find_files(f"{place}/none/*") == []


def test_listing_goes_through_all_pages(object_store: ObjectStore) -> None:
    keys = [f"many/{number:05d}.jsonl" for number in range(1200)]
    for key in keys:
        put(object_store, key, b"x")
    put(object_store, "many/other", b"x")
    assert [file.path for file in find_files(f"{object_store.url}/many/*.jsonl")] == [
        f"{object_store.url}/{key}" for key in keys
    ]


def test_the_version_changes_with_the_content(tmp_path: Path, object_store: ObjectStore) -> None:
    versions: set[str] = set()
    for content in (b"one", b"two"):
        url = put(object_store, "k", content)
        path = tmp_path / "k"
        path.write_bytes(content)
        os.utime(path, ns=(0, content[0]))
        versions |= {find_files(url)[0].version, find_files(f"{url[:-1]}*")[0].version}
        versions.add(find_files(str(path))[0].version)
    assert len(versions) == 4  # of an object the listing says the same as the object itself


@pytest.mark.parametrize("how", ["written over", "replaced"])
def test_a_file_changed_with_size_and_time_restored_is_another_version(tmp_path: Path, how: str) -> None:
    path = tmp_path / "k"
    path.write_bytes(b"one")
    before, (first,) = path.stat(), find_files(str(path))
    assert find_files(str(path)) == [first]
    time.sleep(0.02)  # the clock of files ticks every few milliseconds
    if how == "written over":
        path.write_bytes(b"two")
    else:
        (tmp_path / "new").write_bytes(b"two")
        os.replace(tmp_path / "new", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (second,) = find_files(str(path))
    assert (second.size, path.stat().st_mtime_ns) == (first.size, before.st_mtime_ns)
    assert second.version != first.version


def test_a_store_without_etags_holds_no_sources(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(object_store, "k", b"text")
    with faulty_proxy(object_store.endpoint, lambda *_: None, etags=False) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        for reach in (lambda: find_files(url), lambda: find_files(f"{object_store.url}/*"), lambda: open_file(url)):
            with pytest.raises(InputError, match=rf"{url}: the store gives no ETag, so a change of the content"):
                reach()
        assert s3_client.get_bytes(url) == b"text"
        assert s3_client.stat_object(url) == paths.FoundFile(url, 4, "")
        assert list(s3_client.list_objects(url)) == [paths.FoundFile(url, 4, "")]


@pytest.fixture(params=["file", "object"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """CONTENT as a file, and as an object read in small blocks."""
    monkeypatch.setattr(files, "_BLOCK", 1000)
    monkeypatch.setattr(files, "_BUFFER", 64)
    if request.param == "object":
        return put(request.getfixturevalue("object_store"), "content", CONTENT)
    (tmp_path / "content").write_bytes(CONTENT)
    return str(tmp_path / "content")


RANGES = [(0, None), (0, 10_500), (1, 10_499), (999, 3001), (1000, 2000), (10_499, None), (10_000, 99_999), (5, 5)]


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_a_range_reads_like_a_file_of_its_bytes(path: str, start: int, stop: int | None) -> None:
    expected = CONTENT[start:stop]
    with open_file(path, start, stop) as file:
        assert file.read() == expected
        assert file.read() == b""
    twin, choices = io.BytesIO(expected), random.Random(start)
    with open_file(path, start, stop) as file:
        assert file.seekable()
        assert file.seek(0, io.SEEK_END) == len(expected)
        assert file.seek(0) == twin.seek(0)
        for _ in range(60):
            if choices.random() < 0.4:
                position = choices.randrange(len(expected) + 20)
                assert file.seek(position) == twin.seek(position)
            size = choices.choice([1, 10, 63, 64, 65, 999, 1000, 2500])
            assert file.read(size) == twin.read(size)
            assert file.tell() == twin.tell()
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)


def test_lines_come_in_order_over_the_borders_of_blocks(path: str) -> None:
    with open_file(path) as file:
        assert list(file) == list(io.BytesIO(CONTENT))


def test_an_empty_object_reads_as_nothing(object_store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (put(object_store, "empty", b""), str(tmp_path / "empty")):
        with open_file(path) as file:
            assert file.read() == file.read(10) == b""


def test_reading_forward_fetches_one_block_ahead_and_jumping_none(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK", 1000)
    monkeypatch.setattr(files, "_BUFFER", 64)
    url = put(object_store, "content", CONTENT)
    with faulty_proxy(object_store.endpoint, lambda *request: None) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        with open_file(url) as file:
            assert file.read(10) == CONTENT[:10]
            deadline = time.monotonic() + 20
            while len(methods) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
            assert methods == ["HEAD", "GET", "GET"]
            file.seek(5000)
            assert file.read(10) == CONTENT[5000:5010]
            time.sleep(0.3)
            assert methods == ["HEAD", "GET", "GET", "GET"]
            assert file.read(5500) == CONTENT[5010:]


@pytest.mark.parametrize("given", [True, False])
def test_an_object_that_changes_while_it_is_read_is_an_error(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.setattr(files, "_BLOCK", 1000)
    url = put(object_store, "k", CONTENT)
    with open_file(url, version=find_files(url)[0].version if given else "") as file:
        put(object_store, "k", CONTENT[::-1])
        with pytest.raises(InputError, match=f"{url}: it changed while it was being read .*Run again"):
            file.read()


def test_an_object_of_another_version_is_not_opened(object_store: ObjectStore) -> None:
    url = put(object_store, "k", b"one")
    version = find_files(url)[0].version
    put(object_store, "k", b"two")
    with pytest.raises(InputError, match="it changed while"):
        open_file(url, version=version)


def test_an_object_that_is_removed_while_it_is_read_is_an_error(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK", 1000)
    url = put(object_store, "k", CONTENT)
    with open_file(url) as file:
        object_store.client.delete_object(Bucket=object_store.bucket, Key="k")
        with pytest.raises(InputError, match="it was removed while it was being read"):
            file.read()


def test_opening_what_is_not_there_says_where(object_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{object_store.url}/none: no such object. Correct the path."):
        open_file(f"{object_store.url}/none")
    with pytest.raises(InputError, match=f"cannot read {tmp_path}/none: No such file or directory"):
        open_file(f"{tmp_path}/none")
    with pytest.raises(InputError, match=f"cannot read {tmp_path}: Is a directory"):
        open_file(str(tmp_path))


def test_a_child_process_reads_by_its_own_connection(object_store: ObjectStore) -> None:
    url = put(object_store, "k", CONTENT)
    with open_file(url) as file:
        assert file.read(10) == CONTENT[:10]  # the parent has a client, and a connection in its pool
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(s3_client.get_bytes, [url] * 6) == [CONTENT] * 6


def refusal(url: str) -> str:
    """The one text with which all ways to reach an object fail."""
    texts = set()
    for reach in (lambda: find_files(f"{url}/*"), lambda: s3_client.get_bytes(f"{url}/k")):
        with pytest.raises(InputError) as caught:
            reach()
        texts.add(str(caught.value).partition(": ")[2])
    assert len(texts) == 1, texts
    return texts.pop()


def test_a_wrong_secret_is_named(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    text = refusal(object_store.url)
    assert "the secret key was refused (SignatureDoesNotMatch" in text
    assert "Check AWS_SECRET_ACCESS_KEY" in text
    with pytest.raises(InputError, match=r"the secret key was refused"):  # HEAD says 403 alone, so GET is asked
        open_file(f"{object_store.url}/k")


def test_a_wrong_clock_is_named_for_any_request(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(object_store, "k", b"text")
    late = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(hours=3)
    with monkeypatch.context() as patch, faulty_proxy(object_store.endpoint, lambda *_: None) as (endpoint, methods):
        patch.setattr("botocore.auth.get_current_datetime", lambda *_: late)
        patch.setenv("S3_ENDPOINT_URL", endpoint)
        for reach in (find_files, open_file, s3_client.get_bytes, lambda url: find_files(f"{url}*")):
            with pytest.raises(
                InputError, match=r"this machine's clock is wrong \(RequestTimeTooSkewed.*Set the clock"
            ):
                reach(url)
    assert methods == ["HEAD", "GET", "HEAD", "GET", "GET", "GET"]


def test_a_refusal_of_head_that_get_does_not_share_stays(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(object_store, "k", b"text")
    fault = lambda number, method, headers: 403 if method == "HEAD" else None  # noqa: E731
    with faulty_proxy(object_store.endpoint, fault) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        with pytest.raises(InputError, match=r"access denied \(403.*Check that these credentials"):
            open_file(url)
    assert methods == ["HEAD", "GET"]


def test_an_unknown_key_is_named(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody-knows-this-key")
    assert "Check AWS_ACCESS_KEY_ID" in refusal(object_store.url)


def test_absent_credentials_are_named(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials" in refusal(object_store.url)
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal(object_store.url)


def test_a_missing_bucket_is_named(object_store: ObjectStore) -> None:
    assert "there is no such bucket (NoSuchBucket" in refusal(f"{object_store.url}-none")


def test_an_endpoint_where_nobody_listens_is_an_error_after_all_attempts(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    tried: list[str] = []
    send = URLLib3Session.send

    def counted(session: URLLib3Session, request: Any) -> Any:
        tried.append(request.method)
        return send(session, request)

    monkeypatch.setattr(URLLib3Session, "send", counted)
    for reach in (find_files, open_file, s3_client.get_bytes):
        tried.clear()
        with pytest.raises(InputError, match=r"the store cannot be reached.*Check S3_ENDPOINT_URL"):
            reach(f"{object_store.url}/k")
        assert len(tried) == 2


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, "InternalError", OutageError),
        (503, "SlowDown", OutageError),
        (429, "TooManyRequests", OutageError),
        (400, "RequestTimeout", OutageError),
        (400, "BadDigest", OutageError),
        (404, "NoSuchUpload", OutageError),
        (404, "NoSuchKey", FileNotFoundError),
        (404, "NoSuchBucket", InputError),
        (403, "AccessDenied", InputError),
        (400, "InvalidArgument", InputError),
    ],
)
def test_an_outage_is_distinguished_from_a_refusal(status: int, code: str, kind: type[Exception]) -> None:
    answer = {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert type(s3_client.explain(ClientError(answer, "PutObject"), "s3://b/k")) is kind


def test_a_store_that_fails_twice_is_asked_again(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(object_store, "k", CONTENT)
    with faulty_proxy(object_store.endpoint, lambda number, *_: 503 if number < 2 else None) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        assert s3_client.get_bytes(url) == CONTENT
    assert methods == ["GET"] * 3


def test_a_connection_that_breaks_in_the_body_is_made_again(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(object_store, "k", CONTENT)
    with faulty_proxy(object_store.endpoint, lambda number, *_: "cut" if number < 2 else None) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        assert s3_client.get_bytes(url, 100, 9000) == CONTENT[100:9000]
    assert methods == ["GET"] * 3


@pytest.mark.parametrize(
    ("fault", "text"), [(503, "the store is failing or too busy"), ("cut", "the store cannot be reached")]
)
def test_a_store_that_never_works_is_an_error_after_all_attempts(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, fault: Any, text: str
) -> None:
    url = put(object_store, "k", CONTENT)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with faulty_proxy(object_store.endpoint, lambda *request: fault) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        with pytest.raises(InputError, match=text):
            s3_client.get_bytes(url)
    assert len(methods) == 2


class Unpacking(BaseHTTPRequestHandler):
    """A store that reports the size of a packed object, but always sends it unpacked and whole."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(len(gzip.compress(CONTENT * 9)), b"")

    def do_GET(self) -> None:
        self._answer(len(CONTENT * 9), CONTENT * 9)

    def _answer(self, size: int, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", '"v1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_store_that_unpacks_an_object_is_reported(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Unpacking) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        message = r"b/k\.jsonl\.gz: asked for .* bytes, the store sent 94,500\. It decompresses the object on the way"
        with open_file("s3://b/k.jsonl.gz") as file, pytest.raises(InputError, match=message):
            file.read()
        server.shutdown()


def test_an_object_with_a_content_encoding_is_read_as_it_is(object_store: ObjectStore) -> None:
    content = gzip.compress(CONTENT)
    object_store.client.put_object(Bucket=object_store.bucket, Key="k.gz", Body=content, ContentEncoding="gzip")
    with open_file(f"{object_store.url}/k.gz") as file:
        assert file.read() == content


def test_ten_attempts_are_made_unless_the_environment_says_otherwise(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3_client.attempts_of(s3_client.connect(object_store.url)[0]) == 10
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    assert s3_client.attempts_of(s3_client.connect(object_store.url)[0]) == 3


def test_other_schemes_say_what_they_need(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCS_KEY", "k")
    with pytest.raises(InputError, match=r"gs:// needs .* GCS_KEY and GCS_SECRET; GCS_SECRET missing"):
        find_files("gs://bucket/*")
    monkeypatch.delenv("S3_ENDPOINT_URL")
    with pytest.raises(InputError, match="oci:// needs the environment variable S3_ENDPOINT_URL"):
        open_file("oci://bucket/k")
    with pytest.raises(InputError, match="'s3:///k' is not the URL of an object"):
        find_files("s3:///k")


def test_google_is_asked_unless_another_endpoint_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCS_KEY", "k")
    monkeypatch.setenv("GCS_SECRET", "s")
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("GCS_ENDPOINT_URL", raising=False)
    client, _ = s3_client.connect("gs://bucket/k")
    assert client.meta.endpoint_url == "https://storage.googleapis.com"


def test_an_endpoint_without_a_scheme_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT_URL", "127.0.0.1:8333")
    with pytest.raises(
        InputError, match=r"S3_ENDPOINT_URL is 127\.0\.0\.1:8333: it must begin with http:// or https://"
    ):
        find_files("s3://bucket/*")
