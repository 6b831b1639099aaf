"""Sources on the hub: what globs find, which version is read, what is counted, and every refusal in one paragraph."""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import pytest

from dataengine.errors import InputError, OutageError
from dataengine.storage import find, web
from dataengine.storage.files import open_file
from dataengine.storage.find import find_files
from dataengine.storage.hub import forget_commits, parse_hub_path
from dataengine.storage.open import open_store
from tests.hub import Fault, Hub, git_hash, hub

__all__ = ["hub"]

NAME = "datasets/org/corpus"
FILES = {
    "README.md": b"# of the corpus\n",
    ".gitattributes": b"*.bin filter=lfs\n",
    "a.txt": b"a\n",
    "data/a b#1.jsonl": b'{"text": "one"}\n',
    "data/large.jsonl": b'{"text": "large"}\n' * 100,
    "data/deep/er/c.jsonl": b'{"text": "three"}\n',
    "data/empty.jsonl": b"",
    "other/d.jsonl": b'{"text": "four"}\n',
}
PATTERNS = ["*.txt", "*", "**", "**/*.jsonl", "data/*.jsonl", "data/**", "data/*/*/*.jsonl", "*/d.*", "[ao]*", "x/*"]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that servers asked to wait, of each pause; none is waited for."""
    asked: list[float] = []

    def pause_s(state: object) -> float:
        asked.append(getattr(state.outcome.exception(), "wait_s", 0.0))  # type: ignore[attr-defined]
        return 0.0

    monkeypatch.setattr("dataengine.storage.retry.pause_s", pause_s)
    return asked


def read(url: str, version: str = "") -> bytes:
    with open_file(url, version=version) as file:
        return file.read()


def test_globs_find_the_same_on_the_hub_and_in_a_folder(hub: Hub, tmp_path: Path) -> None:
    commit = hub.commit(NAME, FILES)
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for pattern in PATTERNS:
        local = [(file.path.removeprefix(f"{tmp_path}/"), file.size) for file in find_files(f"{tmp_path}/{pattern}")]
        root = f"hf://{NAME}@{commit}/"
        found = find_files(f"hf://{NAME}/{pattern}")
        assert [(file.path.removeprefix(root), file.size) for file in found] == local, pattern
        for file in found:
            content = FILES[file.path.removeprefix(root)]
            assert read(file.path, file.version) == content
            assert find_files(file.path) == [file]  # the listing and the file itself state the same hash
            assert file.version in (f"git:{git_hash(content)}", f"sha256:{hashlib.sha256(content).hexdigest()}")


def test_huggingface_hub_sees_the_same_files(hub: Hub, tmp_path: Path) -> None:
    """The hub of these tests answers as its official client expects."""
    from huggingface_hub import HfApi, hf_hub_download

    commit = hub.commit(NAME, FILES)
    api = HfApi(endpoint=hub.url, token=False)
    assert api.repo_info("org/corpus", repo_type="dataset", revision="main").sha == commit
    entries = api.list_repo_tree("org/corpus", repo_type="dataset", recursive=True, revision=commit)
    theirs = {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}
    ours = find_files(f"hf://{NAME}/**") + find_files(f"hf://{NAME}/.*")
    assert {parse_hub_path(file.path).inner: file.size for file in ours} == {
        path: entry.size for path, entry in theirs.items()
    }
    for file in ours:
        entry = theirs[parse_hub_path(file.path).inner]
        assert file.version == (f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}")
    path = hf_hub_download(
        "org/corpus", "data/a b#1.jsonl", repo_type="dataset", endpoint=hub.url, cache_dir=tmp_path, token=False
    )
    assert Path(path).read_bytes() == read(f"hf://{NAME}/data/a b#1.jsonl") == FILES["data/a b#1.jsonl"]


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("hf://datasets/o/n/a/b.txt", ("datasets/", "o/n", "main", "a/b.txt")),
        ("hf://datasets/o/n@v1.0/a.txt", ("datasets/", "o/n", "v1.0", "a.txt")),
        ("hf://datasets/o/n@refs/convert/parquet/default/x.parquet",
         ("datasets/", "o/n", "refs/convert/parquet", "default/x.parquet")),
        ("hf://datasets/o/n@refs%2Fpr%2F1/*.txt", ("datasets/", "o/n", "refs/pr/1", "*.txt")),
        ("hf://o/n@a%2Fb/x.txt", ("", "o/n", "a/b", "x.txt")),
        ("hf://o/n/tokenizer.json", ("", "o/n", "main", "tokenizer.json")),
        ("hf://datasets/o/n", ("datasets/", "o/n", "main", "")),
    ],
)  # fmt: skip
def test_the_parts_of_a_url(url: str, parts: tuple[str, ...]) -> None:
    place = parse_hub_path(url)
    assert (place.datasets, place.repository, place.revision, place.inner) == parts
    assert parse_hub_path(str(place)) == place


@pytest.mark.parametrize(
    "url", ["hf://", "hf://datasets/squad", "hf://spaces/o/n/x", "hf:///a/b", "hf://datasets/o/@v/x"]
)
def test_a_url_without_a_repository_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"Write hf://datasets/ORG/NAME/PATH"):
        find_files(url)


def test_branches_tags_and_commits_are_read_from_their_commit(hub: Hub) -> None:
    first = hub.commit(NAME, {"a.txt": b"1"})
    hub.repositories[NAME].refs |= {"v1": first, "refs/convert/parquet": first}
    second = hub.commit(NAME, {"a.txt": b"2"})
    for revision, content in {"": b"2", "@main": b"2", "@v1": b"1", f"@{first}": b"1", f"@{second}": b"2"}.items():
        assert read(f"hf://{NAME}{revision}/a.txt") == content
    assert read(f"hf://{NAME}@refs/convert/parquet/a.txt") == b"1"


def test_a_branch_is_resolved_once_and_a_commit_never(hub: Hub) -> None:
    commit = hub.commit(NAME, FILES)
    for _ in range(3):
        for pattern in ("*.txt", "data/*", "a.txt"):
            find_files(f"hf://{NAME}/{pattern}")
            find_files(f"hf://{NAME}@{commit}/{pattern}")
    assert hub.count("/revision/") == 1
    (before,) = find_files(f"hf://{NAME}/a.txt")
    hub.commit(NAME, {**FILES, "a.txt": b"new\n"})
    assert find_files(f"hf://{NAME}/a.txt") == [before]
    assert read(before.path, before.version) == read(f"hf://{NAME}/a.txt") == b"a\n"
    forget_commits()  # the next command
    assert read(f"hf://{NAME}/a.txt") == b"new\n"
    assert read(before.path, before.version) == b"a\n"


def test_every_byte_of_a_large_file_is_sent_once_and_the_hub_is_asked_once(hub: Hub) -> None:
    content = random.Random(1).randbytes(20 << 20)
    hub.commit(NAME, {"x.bin": content})
    (file,) = find_files(f"hf://{NAME}/x.bin")
    hub.forget()
    assert read(file.path, file.version) == content
    assert ([one.method for one in hub.requests], len(hub.blobs.requests)) == (["HEAD"], 3)
    assert hub.blobs.sent == len(content)


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(NAME, FILES)
    hub.repositories[NAME].private = True
    monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
    for name in ("a.txt", "data/large.jsonl"):
        assert read(f"hf://{NAME}/{name}") == FILES[name]
    assert {one.authorization for one in hub.requests} == {f"Bearer {Hub.TOKEN}"}
    assert [one.authorization for one in hub.blobs.requests] == [""]


def test_a_renamed_repository_is_read(hub: Hub) -> None:
    hub.commit("datasets/new/name", FILES)
    hub.renamed["datasets/org/corpus"] = "datasets/new/name"
    for name in ("a.txt", "data/large.jsonl"):
        assert read(f"hf://{NAME}/{name}") == FILES[name]
    assert len(find_files(f"hf://{NAME}/**")) == len(FILES) - 1


def test_signed_addresses_may_expire_while_a_file_is_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataengine.storage.files._BLOCK", 1000)
    content = random.Random(2).randbytes(9500)
    hub.commit(NAME, {"x.bin": content})
    hub.blobs.expire_after = 4
    assert read(f"hf://{NAME}/x.bin") == content
    assert hub.count("HEAD") == 2
    assert sum(one.sent for one in hub.blobs.requests if one.status == 206) == len(content)


REFUSALS = {
    "no repository": (
        "hf://datasets/org/none/*",
        "no dataset http.*/datasets/org/none, or it is private: then",
    ),
    "a model": ("hf://org/none/*", r"no model .*The files of a dataset are hf://datasets/org/none/"),
    "no revision": (
        "hf://datasets/org/corpus@v9/*",
        r"no branch, tag or commit 'v9'. Correct the revision, or",
    ),
    "private": ("hf://datasets/org/private/*", r"or it is private: then log in \(hf auth login, or set HF_TOKEN\)"),
    "gated": ("hf://datasets/org/gated/*", r"gated\. Accept its terms on http.*/datasets/org/gated, and log in"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_paragraph_that_says_what_to_do(hub: Hub, case: str) -> None:
    for name in ("corpus", "private", "gated"):
        hub.commit(f"datasets/org/{name}", FILES)
    hub.repositories["datasets/org/private"].private = hub.repositories["datasets/org/gated"].gated = True
    url, words = REFUSALS[case]
    with pytest.raises(InputError, match=words) as raised:
        find_files(url)
    assert not isinstance(raised.value, OutageError)
    assert "\n" not in str(raised.value)
    assert len(hub.requests) <= 2  # nothing is tried again


def test_an_unknown_token_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(NAME, FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(InputError, match=r"does not know the token\. Renew it") as raised:
        find_files(f"hf://{NAME}/*")
    assert "hf_old" not in str(raised.value)


def test_a_file_that_is_missing_is_an_empty_find_with_the_nearest_name(hub: Hub) -> None:
    hub.commit(NAME, FILES)
    assert find_files(f"hf://{NAME}/data/larg.jsonl") == find_files(f"hf://{NAME}/nothing/*") == []
    assert find.nearest_file(f"hf://{NAME}/data/larg.jsonl").startswith(" (did you mean 'data/large.jsonl'?)")
    assert "it has README.md, a.txt" in find.nearest_file(f"hf://{NAME}/zzz/*.parquet")
    assert find.nearest_file("/no/such/*") == ""
    with pytest.raises(InputError, match=r"larg\.jsonl: no such file\. Correct the path"):
        read(f"hf://{NAME}/data/larg.jsonl")


@pytest.mark.parametrize("match", ["/revision/", "/tree/", "HEAD .*/resolve/", "GET /[0-9a-f]{64}"])
@pytest.mark.parametrize("fault", [Fault("", 9, 500), Fault("", 9, 429, {"Retry-After": "7"}), Fault("", 9, 503)])
def test_outages_are_waited_for(hub: Hub, pauses: list[float], match: str, fault: Fault) -> None:
    hub.commit(NAME, FILES)
    for server in (hub, hub.blobs):
        server.faults.append(Fault(match, fault.times, fault.status, fault.headers))
    (file,) = find_files(f"hf://{NAME}/data/la*.jsonl")
    assert read(file.path, file.version) == FILES["data/large.jsonl"]
    assert pauses == [7.0 if fault.status == 429 else 0.0] * 9


def test_the_hubs_own_header_for_limits_is_obeyed(hub: Hub, pauses: list[float]) -> None:
    hub.commit(NAME, FILES)
    hub.faults.append(Fault("/revision/", 2, 429, {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"api";q=500'}))
    assert find_files(f"hf://{NAME}/a.txt")
    assert pauses == [55.0, 55.0]


@pytest.mark.parametrize(
    ("fault", "words", "requests"),
    [
        (Fault("", 99, 500), r"the server is failing \(500.*It was tried 10 times", 10),
        (Fault("", 99, 429), r"too many requests \(429.*It was tried 10 times", 10),
        (Fault("", 99, 429, {"Retry-After": "3600"}), r"asks to wait 3,600 s: run again then\.", 1),
        (Fault("", 99, 403, {"X-Error-Message": "no"}), r"the hub forbids it \(no\)\. See http", 1),
        (Fault("", 99, 418), r"the server refused \(418", 1),
        (Fault("", 99, 200), r"does not answer as the hub does\. Check HF_ENDPOINT", 1),
    ],
)
def test_lasting_faults_are_said(hub: Hub, fault: Fault, words: str, requests: int) -> None:
    hub.commit(NAME, FILES)
    hub.faults.append(fault)
    with pytest.raises(InputError, match=words):
        find_files(f"hf://{NAME}/**")
    assert len(hub.requests) == requests


def test_a_cut_file_goes_on_where_it_ended(hub: Hub) -> None:
    content = random.Random(3).randbytes(300_000)
    hub.commit(NAME, {"x.bin": content})
    hub.blobs.faults.append(Fault("", 4, cut=70_000))
    assert read(f"hf://{NAME}/x.bin") == content
    assert hub.blobs.sent == len(content)
    assert len(hub.blobs.requests) == 5


def test_a_file_that_is_always_cut_is_said(hub: Hub) -> None:
    hub.commit(NAME, {"x.bin": b"x" * 1000})
    hub.blobs.faults.append(Fault("", 99, cut=0))
    with pytest.raises(OutageError, match=r"x\.bin: (the connection ended|.*cannot be reached).* tried 10 times"):
        read(f"hf://{NAME}/x.bin")


def test_a_listing_that_is_cut_is_asked_for_again(hub: Hub) -> None:
    hub.commit(NAME, FILES)
    hub.faults.append(Fault("/tree/", 2, cut=10))
    assert len(find_files(f"hf://{NAME}/**")) == len(FILES) - 1


def test_slow_answers_are_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_TIMEOUTS_S", (0.1, 0.05))
    monkeypatch.setattr(web, "_TRIES", 2)
    hub.commit(NAME, FILES)
    hub.faults.append(Fault("/revision/", 2, delay_s=0.5))
    with pytest.raises(OutageError, match=r"cannot be reached \(.*timed out.*\)\. Check the network"):
        find_files(f"hf://{NAME}/*")


def test_another_content_under_the_same_commit_is_refused(hub: Hub) -> None:
    commit = hub.commit(NAME, FILES)
    (file,) = find_files(f"hf://{NAME}/data/large.jsonl")
    hub.repositories[NAME].commits[commit]["data/large.jsonl"] = FILES["data/large.jsonl"].replace(b"large", b"other")
    with pytest.raises(InputError, match=r"large\.jsonl: it changed after it was found\. Run again"):
        read(file.path, file.version)


def test_no_network_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_TRIES", 2)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutageError, match=r"127\.0\.0\.1 cannot be reached .* Check the network and HTTPS_PROXY"):
        find_files(f"hf://{NAME}/*")


def test_offline_mode_is_obeyed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids requests"):
        find_files(f"hf://{NAME}/*")
    assert not hub.requests


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(InputError, match=r"hf:// needs huggingface_hub: pip install huggingface-hub"):
        find_files(f"hf://{NAME}/*")


@pytest.mark.parametrize("url", ["hf://datasets/org/corpus/out", "https://host/out"])
def test_urls_that_are_only_read_are_no_stores(url: str) -> None:
    with pytest.raises(
        InputError, match=r"Give a local folder, or s3://.*(hf upload|Web servers are only read)"
    ) as raised:
        open_store(url)
    assert "\n" not in str(raised.value)
