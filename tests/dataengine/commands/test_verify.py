from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest

from dataengine.build.build import BuildResult, build
from dataengine.cli import main
from dataengine.commands.verify import open_stream, verify
from dataengine.config.load import dump_config, load_config
from dataengine.errors import InputError
from dataengine.mds.reader import SampleReader
from dataengine.mds.types import token_dtype
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from tests.conftest import ConfigMaker
from tests.object_store import ObjectStore, object_store  # noqa: F401

FORMATS = {
    "plain": {},
    "compressed": {"shard_compression": "zstd:1", "shard_hashes": ["sha256", "xxh64"]},
}


@dataclass(frozen=True)
class Built:
    """A finished build and its store."""

    store: Store
    result: BuildResult
    config_path: Path

    @property
    def shard_keys(self) -> list[str]:
        return [f"{s.remote}/{shard.stored.basename}" for s in self.result.manifest.streams for shard in s.shards]

    def problems(self) -> list[str]:
        return verify(self.store, self.result.manifest.streams)[0]


@pytest.fixture(params=[(form, where) for form in FORMATS for where in ("local", "bucket")], ids="-".join)
def built(
    request: pytest.FixtureRequest,
    make_config: ConfigMaker,
    tmp_path: Path,
    object_store: ObjectStore,  # noqa: F811
) -> Built:
    form, where = request.param
    url = str(tmp_path / "store") if where == "local" else f"{object_store.url}/a/store"
    config = make_config(**FORMATS[form], store=url)
    path = tmp_path / "built.yaml"
    path.write_text(dump_config(config))
    return Built(open_store(url), build(config), path)


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_whole_build_is_fine(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = built.store.sizes("streams/")
    shards = [key for key in sizes if ".mds" in key]
    assert shards == sorted(built.shard_keys)
    total = sum(sizes[key] for key in shards)
    assert verify(built.store, built.result.manifest.streams) == ([], len(shards), total)
    assert run("verify", built.config_path) == 0
    assert (
        capsys.readouterr().out == f"{len(shards):,} shards, {total:,} bytes: all unchanged since they were written\n"
    )


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_flipped_bit_names_the_shard_and_the_others_are_still_checked(
    built: Built, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    keys = built.shard_keys
    for key in (keys[1], keys[-1]):
        content = built.store.read(key)
        built.store.write(key, flip(content, place % len(content)))
    problems = built.problems()
    assert [problem.split(" is damaged: ")[0] for problem in problems] == [
        f"{built.store.url}/{key}" for key in (keys[1], keys[-1])
    ]
    assert run("verify", built.config_path) == 2
    error = capsys.readouterr().err
    assert f"error: {built.store.url}/{keys[1]} is damaged: " in error
    assert f"\n2 problems in {len(keys)} shards. Remove the folders of the streams named here, and " in error
    assert error.endswith(f"then build again: dataengine build {built.config_path}\n")


def test_the_advice_fixes_a_damaged_store(built: Built) -> None:
    before = {key: built.store.read(key) for key in built.shard_keys}
    for key in built.shard_keys[:2]:
        if (path := Path(built.store.url, key)).exists():
            with path.open("r+b") as file:  # in place, as a disk would: the unit's file is the same one
                file.write(b"damaged")
        else:
            built.store.write(key, b"damaged" + before[key][7:])
    assert len(built.problems()) == 2
    built.store.remove(f"{built.result.manifest.streams[0].remote}/")
    built.store.remove("units/")
    build(load_config(built.config_path))
    assert built.problems() == []
    assert {key: built.store.read(key) for key in built.shard_keys} == before


def test_a_missing_shard_and_a_changed_index_are_named(built: Built) -> None:
    first, *_, last = built.result.manifest.streams
    index = f"{first.remote}/index.json"
    built.store.write(index, built.store.read(index).replace(b'"samples": ', b'"samples":  ', 1))
    gone = f"{last.remote}/{last.shards[0].stored.basename}"
    built.store.remove(gone)
    url = built.store.url
    assert built.problems() == [
        f"{url}/{index} is not the one that the manifest was made with",
        f"{url}/{gone} is missing",
    ]
    built.store.remove(index)
    assert built.problems()[0] == f"{url}/{index} is missing"


def test_a_folder_of_a_stream_is_checked_without_a_manifest(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    stream = built.result.manifest.streams[0]
    folder = f"{built.store.url}/{stream.remote}"
    store, found = open_stream(folder + "/")
    assert (found.samples, found.shards) == (stream.samples, stream.shards)
    assert verify(store, [found]) == ([], len(stream.shards), sum(shard.stored.bytes for shard in stream.shards))
    key = f"{stream.remote}/{stream.shards[-1].stored.basename}"
    built.store.write(key, flip(built.store.read(key), 500))
    assert run("verify", folder) == 2
    assert f"{stream.shards[-1].stored.basename} is damaged: its " in capsys.readouterr().err


def test_a_content_that_is_not_what_was_compressed_is_noticed(make_config: ConfigMaker) -> None:
    """The hash of the stored file alone would not show it: a stream whose raw hash differs."""
    config = make_config(**FORMATS["compressed"])
    store, stream = open_store(config.store), build(config).manifest.streams[0]
    index = store.read(f"{stream.remote}/index.json")
    raw = stream.shards[0].raw.hashes["sha256"]
    store.write(f"{stream.remote}/index.json", index.replace(raw.encode(), b"0" * 64))
    below, found = open_stream(f"{config.store}/{stream.remote}")
    (problem,) = verify(below, [found])[0]
    assert problem.endswith("shard.00000.mds.zstd is damaged: its decompressed content has changed")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no index.json in FOLDER. Name a config (.yaml), or the folder of one stream, such as "),
        (lambda folder: (folder / "index.json").write_text("{"), "FOLDER/index.json is damaged: "),
        (lambda folder: (folder / "index.json").write_text('{"version": 2}'), "FOLDER/index.json is damaged: shards: "),
    ],
)
def test_a_folder_that_is_not_a_stream(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError) as error:
        open_stream(str(tmp_path))
    assert str(error.value).startswith(message.replace("FOLDER", str(tmp_path)))


def test_relative_folders(make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    stream = build(config).manifest.streams[0]
    folder = Path(config.store, stream.remote)
    monkeypatch.chdir(folder.parent)
    assert open_stream(folder.name)[1].samples == stream.samples


def test_settings_with_a_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", tmp_path, "store=x") == 2
    assert capsys.readouterr().err == f"error: settings (store=x) go with a config; {tmp_path} is a folder\n"


@pytest.mark.parametrize("name", ["stream.summary", "documents.00000.npy", "remainder.npy"])
@pytest.mark.parametrize("damage", ["removed", "flipped", "a folder"])
def test_what_says_where_documents_come_from_is_checked(make_config: ConfigMaker, name: str, damage: str) -> None:
    config = make_config()
    store, streams = open_store(config.store), build(config).manifest.streams
    path = Path(config.store, streams[0].remote, name)
    content = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(flip(content, len(content) // 2))
    if damage == "a folder":
        path.mkdir()
    (problem,) = verify(store, streams)[0]
    words = {"removed": "is missing", "flipped": "is damaged: ", "a folder": "Is a directory"}
    assert str(path) in problem
    assert words[damage] in problem


def test_shards_and_index_alone_are_a_whole_stream(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    stream = build(config).manifest.streams[0]
    for path in Path(config.store, stream.remote).iterdir():
        if path.name == "index.json" or path.suffix == ".mds":
            (tmp_path / "copy").mkdir(exist_ok=True)
            (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    store, found = open_stream(str(tmp_path / "copy"))
    assert verify(store, [found])[0] == []
    (tmp_path / "copy" / "index.json").unlink()
    with pytest.raises(InputError, match=r"no index\.json in .*/copy: this stream is not finished, or"):
        open_stream(str(tmp_path / "copy"))


def test_shards_without_hashes_are_compared_by_size_and_that_is_said(
    make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    stream = build(config).manifest.streams[0]
    folder = Path(config.store, stream.remote)
    index = orjson.loads((folder / "index.json").read_bytes())
    for shard in index["shards"]:
        shard["raw_data"]["hashes"] = {}
    (folder / "index.json").write_bytes(orjson.dumps(index))
    assert run("verify", folder) == 0
    count = len(stream.shards)
    assert f"note: {count} of these shards were written without hashes" in capsys.readouterr().err
    shard = folder / "shard.00000.mds"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert run("verify", folder) == 2
    assert f"has {len(content) - 1:,} bytes, and {len(content):,} were written" in capsys.readouterr().err
    index["shards"][0]["raw_data"]["hashes"] = {"no-such": "0"}
    (folder / "index.json").write_bytes(orjson.dumps(index))
    with pytest.raises(InputError, match=r"index\.json names the hash 'no-such', which this program cannot compute"):
        open_stream(str(folder))


@pytest.mark.parametrize("damage", ["cut", "header", "removed", "a folder"])
def test_a_damaged_shard_that_is_looked_at_is_named(make_config: ConfigMaker, damage: str) -> None:
    config = make_config()
    manifest = build(config).manifest
    stream = manifest.streams[0]
    path = Path(config.store, stream.remote, "shard.00000.mds")
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "removed":
        path.write_bytes(content[:1000] if damage == "cut" else b"\xff" * 8 + content[8:])
    unhashed = [replace(shard, raw=replace(shard.raw, hashes={})) for shard in stream.shards]
    for known in (stream, replace(stream, shards=tuple(unhashed))):
        reader = SampleReader.of_store(open_store(config.store), [known], 33, token_dtype(manifest.vocab_size))
        with pytest.raises(InputError) as error:
            reader.read([0])
        assert str(path) in str(error.value)
        assert str(error.value).endswith("See all that is damaged, and what to do: dataengine verify CONFIG")
