from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dataengine.errors import InputError
from dataengine.storage import atomic, s3
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from tests.object_store import ACCESS_KEY, SECRET_KEY, ObjectStore, faulty_proxy, object_store

__all__ = ["object_store"]

CONTENT = bytes(range(256)) * 40


@pytest.fixture(params=["local", "s3", "gs", "oci"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store of each kind, below a prefix, with a neighbour that none of its operations may touch."""
    if request.param == "local":
        url, neighbour = str(tmp_path / "store"), open_store(str(tmp_path / "store2"))
    else:
        found: ObjectStore = request.getfixturevalue("object_store")
        monkeypatch.setenv("GCS_KEY", ACCESS_KEY)
        monkeypatch.setenv("GCS_SECRET", SECRET_KEY)
        monkeypatch.setenv("GCS_ENDPOINT_URL", found.endpoint)
        url = f"{request.param}://{found.bucket}/deep/store"
        neighbour = open_store(f"{request.param}://{found.bucket}/deep/store2")
    neighbour.write("units/1/a", b"neighbour")
    yield open_store(url)
    assert neighbour.sizes("") == {"units/1/a": 9}


def fill(store: Store, key: str, files: dict[str, bytes], last: str = "receipt.json") -> None:
    with store.new_folder(key, last=last) as add:
        for name, content in files.items():
            add(name, content)


def folder_of(store: Store, key: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{key}/"): store.read(name) for name in store.sizes(key)}


FILES = {"shard.00000.mds": CONTENT, "receipt.json": b"{}", "shard.00001.mds": CONTENT[:100], "empty": b""}


def test_what_is_written_reads_back(store: Store) -> None:
    assert store.sizes("") == store.sizes("none/") == {}
    store.write("a/b/c", CONTENT)
    store.write("a/d", b"first")
    store.write("a/d", b"")
    assert store.read("a/b/c") == CONTENT
    assert store.read("a/d") == b""
    assert store.read_range("a/b/c", 300, 1000) == CONTENT[300:1000]
    assert store.read_range("a/b/c", 7, 7) == b""
    assert store.size("a/b/c") == len(CONTENT)
    assert store.sizes("") == store.sizes("a") == store.sizes("a/") == {"a/b/c": len(CONTENT), "a/d": 0}
    assert store.sizes("a/b/") == {"a/b/c": len(CONTENT)}


def test_a_local_file_is_written_in_parts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART", 5 << 20)  # the least that S3 allows
    for content in (b"", CONTENT, CONTENT * 1100):
        (tmp_path / "source").write_bytes(content)
        store.write_from("a/b", tmp_path / "source")
        assert store.read("a/b") == content
        assert store.sizes("") == {"a/b": len(content)}
    with pytest.raises(FileNotFoundError, match="none"):
        store.write_from("a/b", tmp_path / "none")
    assert store.size("a/b") == len(content)


def test_what_is_absent_is_said_to_be(store: Store) -> None:
    store.write("a/b", CONTENT)
    assert store.size("a/c") is None
    assert store.size("a/b/c") is None
    for key in ("a/c", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=key):
            store.read(key)
        with pytest.raises(FileNotFoundError, match=key):
            store.read_range(key, 0, 10)
    with pytest.raises(InputError, match="a/b"):
        store.read_range("a/b", 100, len(CONTENT) + 1)


def test_a_filled_folder_is_there_whole_and_filling_it_again_is_fine(store: Store) -> None:
    for _ in range(2):
        fill(store, "units/1", FILES)
        assert folder_of(store, "units/1") == FILES
    assert set(store.sizes("")) == {f"units/1/{name}" for name in FILES}


def test_an_error_in_the_block_leaves_no_last_file(store: Store) -> None:
    def fail() -> None:
        with store.new_folder("units/1", last="receipt.json") as add:
            for name, content in FILES.items():
                add(name, content)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.size("units/1/receipt.json") is None
    fill(store, "units/1", FILES)
    assert folder_of(store, "units/1") == FILES


def test_a_folder_without_its_last_file_is_completed(store: Store) -> None:
    store.write("units/1/empty", b"")
    fill(store, "units/1", FILES)
    assert folder_of(store, "units/1") == FILES


def test_a_link_has_the_content_and_outlives_its_source(store: Store) -> None:
    store.write("a/b", CONTENT)
    store.write("c/d", b"other")
    store.link("a/b", "c/d")
    store.link("a/b", "c/d")
    store.write("a/b", b"changed")
    store.remove("a")
    assert store.sizes("") == {"c/d": len(CONTENT)}
    assert store.read("c/d") == CONTENT


def test_removing_takes_a_file_or_a_folder_and_no_other(store: Store) -> None:
    for key in ("a/1/x", "a/1/y/z", "a/12", "a/13/x", "b"):
        store.write(key, b"x")
    store.remove("a/1")
    assert set(store.sizes("")) == {"a/12", "a/13/x", "b"}
    store.remove("a/13/")
    store.remove("b")
    store.remove("none")
    assert set(store.sizes("")) == {"a/12"}


def test_a_store_travels_to_other_processes(store: Store) -> None:
    store.write("a", CONTENT)
    twin = pickle.loads(pickle.dumps(store))
    assert twin == store
    assert twin.read("a") == CONTENT


def test_leftovers_of_dead_processes_go_and_are_never_listed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    store = open_store(str(tmp_path))
    store.write("units/1/a", b"")
    theirs = tmp_path / "units" / atomic.temporary_path(Path("x")).name.replace(f"~{os.getpid()}~", f"~{process.pid}~")
    ours = tmp_path / "units" / atomic.temporary_path(Path("x")).name
    for folder in (theirs, ours):
        folder.mkdir()
        (folder / "part").touch()
    assert set(store.sizes("")) == {"units/1/a"}
    store.remove_leftovers("units/")
    store.remove_leftovers("none")
    assert ours.exists()
    assert not theirs.exists()


OTHERS = ["host~123~0a1b2c3d-x", "", "~", "host~none~0a-x", "host~-1~0a-x", "host", "a~b~c~d"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_others_write_is_left_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    path = tmp_path / f".writing-{name.replace('host', socket.gethostname())}"
    if kind == "folder":
        path.mkdir()
    (path / "part" if kind == "folder" else path).touch()
    os.utime(path, (0, 0))  # as a second name of something old
    now = time.time()
    for passed, there in ((0, True), (86_000, True), (86_500, False)):
        monkeypatch.setattr(time, "time", lambda at=now + passed: at)
        open_store(str(tmp_path)).remove_leftovers("")
        assert path.exists() == there


def test_a_folder_in_use_is_not_old_while_files_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".writing-host~1~0a-x"
    path.mkdir()
    monkeypatch.setattr(atomic, "_ABANDONED_S", 0.3)
    time.sleep(0.4)
    (path / "part").touch()
    atomic.remove_leftovers(tmp_path)
    assert path.exists()
    time.sleep(0.4)
    atomic.remove_leftovers(tmp_path)
    assert not path.exists()


WRITER = """
import os, sys
from dataengine.storage.open import open_store
with open_store(sys.argv[1]).new_folder("units/1", last="receipt.json") as add:
    add("receipt.json", b"{}")
    print(os.getpid(), flush=True)
    sys.stdin.readline()
"""
REMOVER = """
import sys
from dataengine.storage.open import open_store
open_store(sys.argv[1]).remove_leftovers("units/")
"""


@pytest.mark.parametrize("writer_inside", [True, False])
@pytest.mark.parametrize("proc", [[], ["--mount-proc"]])
def test_builds_in_two_pid_namespaces_leave_each_other_alone(
    tmp_path: Path, writer_inside: bool, proc: list[str]
) -> None:
    namespace = ["unshare", "--pid", "--fork", *proc]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespaces here")
    start = [sys.executable, "-c"]
    writer = [*(namespace if writer_inside else []), *start, WRITER, str(tmp_path)]
    remover = [*([] if writer_inside else namespace), *start, REMOVER, str(tmp_path)]
    with subprocess.Popen(writer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert (int(process.stdout.readline()) < 10) == writer_inside
        subprocess.run(remover, check=True)
        process.stdin.write("\n")
    assert process.returncode == 0
    assert open_store(str(tmp_path)).sizes("") == {"units/1/receipt.json": 2}


def test_in_a_pid_namespace_the_dead_are_distinguished_from_the_living(tmp_path: Path) -> None:
    """Under unshare without its own /proc, whose numbers are those of the namespace outside."""
    code = f"""
import os, sys, subprocess
from pathlib import Path
from dataengine.storage import atomic
child = subprocess.Popen([sys.executable, "-c", ""])
child.wait()
for pid in (os.getpid(), child.pid):
    name = atomic.temporary_path(Path({str(tmp_path)!r}, "x")).name.replace(f"~{{os.getpid()}}~", f"~{{pid}}~")
    Path({str(tmp_path)!r}, name).touch()
atomic.remove_leftovers(Path({str(tmp_path)!r}))
[left] = Path({str(tmp_path)!r}).iterdir()
assert f"~{{os.getpid()}}~" in left.name
"""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("no PID namespaces here")
    subprocess.run(["unshare", "--pid", "--fork", sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("size", [6, 7, 12])
def test_a_large_object_is_linked_in_parts(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3, "_COPY", 6 << 20)  # bytes; the least that a part may have is 5 MiB
    content = os.urandom(size << 20)
    store = open_store(f"{object_store.url}/deep")
    store.write("a/b", content)
    store.link("a/b", "c/d")
    assert store.read("c/d") == content
    etag = object_store.client.head_object(Bucket=object_store.bucket, Key="deep/c/d")["ETag"]
    assert etag.strip('"').endswith("-2") == (size > 6)


@pytest.mark.parametrize("size", [None, 6])
def test_a_link_to_a_missing_object_says_so(object_store: ObjectStore, size: int | None) -> None:
    store = open_store(object_store.url)
    with pytest.raises(FileNotFoundError, match="a/b: no such object"):
        store.link("a/b", "c/d", size)
    assert store.sizes("") == {}


def test_a_link_of_a_local_store_takes_no_room(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("a", CONTENT)
    store.link("a", "b/c")
    assert (tmp_path / "a").samefile(tmp_path / "b" / "c")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["c"]


# Races and crashes.


def race(store: Store, contents: list[bytes]) -> list[BaseException | None]:
    """Fill one folder from as many threads at once; what became of each."""
    barrier = threading.Barrier(len(contents))

    def attempt(content: bytes) -> BaseException | None:
        barrier.wait()
        try:
            fill(store, "units/1", {"shard": content, "receipt.json": b"{}"})
        except InputError as error:
            return error
        return None

    with ThreadPoolExecutor(len(contents)) as pool:
        return list(pool.map(attempt, contents))


def test_equal_attempts_at_once_all_succeed(store: Store) -> None:
    assert race(store, [CONTENT] * 8) == [None] * 8
    assert folder_of(store, "units/1") == {"shard": CONTENT, "receipt.json": b"{}"}


def test_of_different_attempts_at_once_one_wins_and_the_others_say_so(object_store: ObjectStore) -> None:
    store = open_store(f"{object_store.url}/store")
    contents = [CONTENT[number:] for number in range(8)]
    outcomes = race(store, contents)
    [winner] = [content for content, error in zip(contents, outcomes, strict=True) if error is None]
    assert store.read("units/1/shard") == winner
    for error in filter(None, outcomes):
        assert f"{object_store.url}/store/units/1/shard exists with other content" in str(error)
        assert "nondeterminism" in str(error)


CHILD = """
import sys
from dataengine.storage.open import open_store
with open_store(sys.argv[1]).new_folder("units/1", last="receipt.json") as add:
    add("receipt.json", b"{}")
    for number in range(100):
        add(f"shard.{number}", bytes([number]) * 100_000)
        print(number, flush=True)
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_killed_writer_leaves_no_last_file_and_a_second_run_completes(
    kind: str, object_store: ObjectStore, tmp_path: Path
) -> None:
    url = f"{object_store.url}/store" if kind == "s3" else str(tmp_path)
    command = [sys.executable, "-c", CHILD, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(12):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    store = open_store(url)
    found = store.sizes("units/1/")
    assert len(found) == 0 if kind == "local" else 4 <= len(found) < 100
    assert "units/1/receipt.json" not in found
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    store.remove_leftovers("units")
    expected = {f"shard.{number}": bytes([number]) * 100_000 for number in range(100)}
    assert folder_of(store, "units/1") == {"receipt.json": b"{}", **expected}
    assert kind == "s3" or [path.name for path in (tmp_path / "units").iterdir()] == ["1"]


def test_the_last_file_is_put_after_all_others(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fault_at = {2}

    def fault(number: int, method: str, headers: Mapping[str, str]) -> int | None:
        return 403 if number in fault_at else None

    with faulty_proxy(object_store.endpoint, fault) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        store = open_store(object_store.url)
        with pytest.raises(InputError, match=f"{object_store.url}/u/.*: access denied"):
            fill(store, "u", {"receipt.json": b"{}", "a": b"a", "b": b"b", "c": b"c", "d": b"d"})
    keys = object_store.keys()
    assert len(keys) == 3
    assert "u/receipt.json" not in keys


def test_four_files_at_most_are_uploaded_at_a_time(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, running, seen = threading.Lock(), 0, []

    def fault(number: int, method: str, headers: Mapping[str, str]) -> None:
        nonlocal running
        with lock:
            running += 1
            seen.append(running)
        time.sleep(0.1)
        with lock:
            running -= 1

    with faulty_proxy(object_store.endpoint, fault) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        given = []
        with open_store(object_store.url).new_folder("u", last="last") as add:
            for number in range(12):
                add(f"{number}", b"x")
                given.append(number + 1 - len(seen))
            add("last", b"x")
    assert max(seen) == 4
    assert max(given) <= 4  # adding waits: no more than four are held in memory


# Stores that fail.


def test_a_busy_store_is_asked_again(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {0: 503, 1: 409, 2: 500, 3: 409}
    with faulty_proxy(object_store.endpoint, lambda number, *_: faults.get(number)) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        fill(open_store(object_store.url), "u", {"a": CONTENT, "receipt.json": b"{}"})
    assert methods == ["PUT"] * 6
    assert folder_of(open_store(object_store.url), "u") == {"a": CONTENT, "receipt.json": b"{}"}


def test_a_put_whose_answer_was_lost_is_found_done(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first put reaches the store, its answer is an error; the second meets the first's object."""
    store = open_store(object_store.url)

    def fault(number: int, method: str, headers: Mapping[str, str]) -> int | None:
        if number == 0:
            object_store.client.put_object(Bucket=object_store.bucket, Key="u/a", Body=CONTENT)
            return 503
        return None

    with faulty_proxy(object_store.endpoint, fault) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        fill(store, "u", {"a": CONTENT, "receipt.json": b"{}"})
    assert methods[:3] == ["PUT", "PUT", "HEAD"]
    assert store.read("u/a") == CONTENT


def test_a_store_that_never_works_is_an_error_after_all_attempts(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with faulty_proxy(object_store.endpoint, lambda *request: 503) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        with pytest.raises(InputError, match=r"s3://.*/u/a: the store is failing or too busy.*Run again later"):
            fill(open_store(object_store.url), "u", {"a": CONTENT, "receipt.json": b"{}"})
    assert methods == ["PUT"] * 2


@pytest.mark.parametrize("status", [501, 403])
def test_a_store_without_conditional_writes_is_written_without_after_saying_so(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    def fault(number: int, method: str, headers: Mapping[str, str]) -> int | None:
        return status if "If-None-Match" in headers else None

    store = open_store(f"{object_store.url}/store")
    monkeypatch.setattr(s3, "_PLAIN", {})
    with faulty_proxy(object_store.endpoint, fault) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        if status == 403:  # a refusal of another kind is not a reason
            with pytest.raises(InputError, match="access denied"):
                fill(store, "u", FILES)
            return
        fill(store, "u", FILES)
        fill(store, "u", FILES)
        with pytest.raises(InputError, match="nondeterminism"):
            fill(store, "u", {**FILES, "empty": b"x"})
    assert folder_of(store, "u") == FILES
    text = capfd.readouterr().err
    assert text.count("does not support conditional writes") == 1
    assert f"{object_store.url}/store: " in text


def test_large_objects_go_in_parts_and_are_compared_too(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART", 5 << 20)
    large = CONTENT * 1100
    assert 10 << 20 < len(large) < 15 << 20
    for scheme in ("s3", "gs"):
        monkeypatch.setenv("GCS_KEY", ACCESS_KEY)
        monkeypatch.setenv("GCS_SECRET", SECRET_KEY)
        monkeypatch.setenv("GCS_ENDPOINT_URL", object_store.endpoint)
        store = open_store(f"{scheme}://{object_store.bucket}/{scheme}")
        for _ in range(2):
            fill(store, "u", {"large": large, "receipt.json": b"{}"})
        assert store.read("u/large") == large
        head = object_store.client.head_object(Bucket=object_store.bucket, Key=f"{scheme}/u/large")
        assert head["ETag"].strip('"').endswith("-3")
        with pytest.raises(InputError, match="nondeterminism"):
            fill(store, "u", {"large": large[:-1] + b"x", "receipt.json": b"{}"})
        monkeypatch.setattr(s3, "_PART", 6 << 20)  # parts of another size: the bytes are compared
        fill(store, "u", {"large": large, "receipt.json": b"{}"})
        monkeypatch.setattr(s3, "_PART", 5 << 20)
    uploads = object_store.client.list_multipart_uploads(Bucket=object_store.bucket)
    assert not uploads.get("Uploads")


def test_a_damaged_upload_is_refused_by_the_store(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = s3._digest
    monkeypatch.setattr(s3, "_digest", lambda content, plain: digest(bytes(content) + b"x", plain))
    with pytest.raises(
        InputError, match=f"{object_store.url}/a: .*(BadDigest|InvalidDigest|XAmzContentChecksumMismatch)"
    ):
        open_store(object_store.url).write("a", CONTENT)
    assert object_store.keys() == []


def test_a_store_without_etags_takes_all_but_uploads_in_parts(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(object_store.endpoint, lambda *_: None, etags=False) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        store = open_store(object_store.url)
        for _ in range(2):
            fill(store, "u", FILES)
        assert folder_of(store, "u") == FILES
        assert store.size("u/empty") == 0
        monkeypatch.setattr(s3, "_PART", 5 << 20)
        with pytest.raises(InputError, match=rf"{object_store.url}/large: the store's answer has no ETag. Check that"):
            store.write("large", CONTENT * 600)
    assert not object_store.keys().count("large")


@pytest.mark.parametrize("action", ["read", "sizes", "remove"])
def test_a_missing_bucket_is_an_error(object_store: ObjectStore, action: str) -> None:
    store = open_store(f"{object_store.url}-none")
    with pytest.raises(InputError, match=f"{object_store.url}-none/.*: there is no such bucket.*Create it"):
        getattr(store, action)("a")


def test_a_wrong_secret_is_an_error_everywhere(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(object_store.url)
    store.write("a", b"a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for attempt in (
        lambda: store.write("b", b""),
        lambda: fill(store, "u", FILES),
        lambda: store.read("a"),
        lambda: store.link("a", "b"),
        lambda: store.sizes(""),
    ):
        with pytest.raises(InputError, match="the secret key was refused"):
            attempt()
    with pytest.raises(InputError, match="the secret key was refused"):
        store.size("a")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://", "'s3://' is not the URL of an object"),
        ("oci://bucket/a", "oci:// needs the environment variable S3_ENDPOINT_URL"),
        ("gs://bucket/a", "GCS_KEY and GCS_SECRET missing"),
        ("azure://a/b", "store 'azure://a/b': not a kind of store"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_refused_at_once(url: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("S3_ENDPOINT_URL", "GCS_KEY", "GCS_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=re.escape(text)):
        open_store(url)


def test_a_file_in_place_of_a_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file" / "store"))
    for attempt in (lambda: store.write("a", b"x"), lambda: fill(store, "u", FILES)):
        with pytest.raises(InputError, match=r"cannot write .*/file/store/.*: Not a directory.*choose another store"):
            attempt()
    with pytest.raises(InputError, match="Is a directory"):
        open_store(str(tmp_path)).read(".")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"Permission denied\. Check the path and its permissions"):
        open_store(str(tmp_path / "store")).write("a", b"x")


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from dataengine.errors import InputError
from dataengine.storage.open import open_store
store = open_store(sys.argv[1])
store.write("fits", bytes(1000))
for attempt in ("write", "folder"):
    try:
        if attempt == "write":
            store.write("kept", bytes(1001))
        else:
            with store.new_folder("units/1", last="receipt.json") as add:
                add("receipt.json", b"{}")
                add("shard", bytes(1001))
    except InputError as error:
        print(error)
"""


def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("kept", bytes(5000))
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert (
        first == f"cannot write {tmp_path}/kept: File too large. Free space, or choose another store; then run again."
    )
    assert second.startswith(f"cannot write {tmp_path}/units/1/shard: File too large. Free space")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"fits", "kept", "units"}
    assert store.sizes("") == {"fits": 1000, "kept": 5000}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_by_a_whole_one_only(
    tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not at_once:  # as where the system cannot exchange names
        monkeypatch.setattr("dataengine.storage.atomic.ctypes.CDLL", lambda _: None)
    folder = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic.new_folder(folder, replace=True) as new:
            (new / name).write_text(name)

    def interrupted() -> None:
        with atomic.new_folder(folder, replace=True) as new:
            (new / "third").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with atomic.new_folder(folder) as new:  # the one that is there stays
        (new / "fourth").write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/second"]


@pytest.mark.parametrize("url", ["s3://bucket/lines.jsonl", "http://host/page.html"])
def test_a_file_for_the_user_is_not_written_to_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="it is a URL"), atomic.output_file(Path(url)):
        pass
    assert list(tmp_path.iterdir()) == []
