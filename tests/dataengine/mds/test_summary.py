"""Files beside a stream's shards: other readers ignore them, older forms are read, and damage is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import xxhash
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory, merge_index

from dataengine.build.build import BuildResult, build
from dataengine.commands.export import export
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.provenance import StreamProvenance
from dataengine.mds.reader import SampleReader
from dataengine.mds.summary import Summary, encode_summary, read_rejects, read_summary
from dataengine.mds.types import token_dtype
from dataengine.mds.writer import ShardFormat
from dataengine.storage.open import open_store
from tests.conftest import ConfigMaker, write_jsonl
from tests.object_store import ObjectStore, object_store  # noqa: F401


@pytest.fixture
def built(make_config: ConfigMaker, tmp_path: Path) -> tuple[Config, BuildResult]:
    """Streams of which one has unusable records."""
    path = write_jsonl(tmp_path / "docs.jsonl", [{"text": f"document number {n}"} for n in range(300)] + [{"txt": "x"}])
    config = make_config(
        streams={
            "mono": {"documents": [str(path)]},
            "en-zh": {"pairs": [str(tmp_path.parent / "pairs.jsonl")], "directions": ["en-zh"]},
        },
        stages=[{"name": "all", "drain": True, "mix": {"mono": "by_size", "en-zh": "by_size"}}],
        max_bad_fraction=0.1,
    )
    write_jsonl(tmp_path.parent / "pairs.jsonl", [{"en": f"sentence {n}", "zh": f"句子 {n}"} for n in range(200)])
    return config, build(config)


def stock_samples(folder: Path, remote: str | None = None) -> list[list[int]]:
    """All samples of a folder as the stock class reads them."""
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), remote=remote, batch_size=1, shuffle=False, validate_hash="xxh64")
    return [dataset[k]["tokens"].tolist() for k in range(len(dataset))]


def own_samples(config: Config, result: BuildResult) -> dict[str, list[list[int]]]:
    """All samples of each stream."""
    manifest, store = result.manifest, open_store(config.store)
    return {
        stream.name: SampleReader.of_store(store, [stream], manifest.seq_len + 1, token_dtype(manifest.vocab_size))
        .read(range(stream.samples))
        .tolist()
        for stream in manifest.streams
    }


def test_a_merged_index_of_streams_is_read_by_the_stock_class(built: tuple[Config, BuildResult]) -> None:
    config, result = built
    expected = own_samples(config, result)
    folder = Path(config.store, "streams")
    assert list(folder.glob("*/rejects.jsonl"))
    merge_index(str(folder), keep_local=True)
    shards = json.loads((folder / "index.json").read_bytes())["shards"]
    order = list(dict.fromkeys(shard["raw_data"]["basename"].partition("/")[0] for shard in shards))
    by_folder = {Path(stream.remote).name: stream.name for stream in result.manifest.streams}
    assert sorted(order) == sorted(by_folder)
    assert stock_samples(folder) == [sample for name in order for sample in expected[by_folder[name]]]


def test_streams_in_a_bucket_are_merged_and_read_by_the_stock_class(
    built: tuple[Config, BuildResult],
    tmp_path: Path,
    object_store: ObjectStore,  # noqa: F811
) -> None:
    config, result = built
    store, url = open_store(config.store), f"{object_store.url}/streams"
    for key in store.sizes("streams/"):
        open_store(object_store.url).write(key, store.read(key))
    merge_index((str(tmp_path / "merged"), url))
    expected = own_samples(config, result)
    for stream in result.manifest.streams:
        remote = f"{object_store.url}/{stream.remote}"
        assert stock_samples(tmp_path / stream.name, remote) == expected[stream.name]
    assert sorted(stock_samples(tmp_path / "all", url)) == sorted(one for own in expected.values() for one in own)


def test_a_merged_index_of_exports_is_read_by_the_stock_class(
    built: tuple[Config, BuildResult], tmp_path: Path
) -> None:
    config, result = built
    store, half = open_store(config.store), result.manifest.schedule.steps // 2
    whole: list[list[int]] = []
    for number, steps in enumerate(((0, half), (half, result.manifest.schedule.steps))):
        target = open_store(str(tmp_path / f"exports/{number}"))
        export(result.manifest, store, ShardFormat(20), target, *steps)
        whole += stock_samples(Path(target.url))
    merge_index([str(tmp_path / f"exports/{number}/index.json") for number in (0, 1)], str(tmp_path / "exports"))
    assert stock_samples(tmp_path / "exports") == whole
    (tmp_path / "exports/index.json").unlink()
    merge_index(str(tmp_path / "exports"))
    assert sorted(stock_samples(tmp_path / "exports")) == sorted(whole)


def test_no_name_but_the_index_is_one_that_stock_tools_take_for_an_index(built: tuple[Config, BuildResult]) -> None:
    for path in Path(built[0].store, "streams").rglob("*"):
        assert path.is_dir() or path.name == "index.json" or not path.name.endswith("json")


def as_before(store: str, remote: str) -> Path:
    """Turn a stream's summary into that of an earlier version."""
    path = Path(store, remote, "stream.summary")
    fields = orjson.loads(path.read_bytes())
    del fields["xxh3"]
    fields["rejects"] = {"docs.jsonl": "units/0123/rejects.jsonl"}
    (path.parent / "rejects.jsonl").unlink(missing_ok=True)
    path.unlink()
    former = path.with_name("stream.json")
    former.write_bytes(orjson.dumps(fields, option=orjson.OPT_INDENT_2))
    return former


def test_a_summary_of_an_earlier_version_is_read(built: tuple[Config, BuildResult]) -> None:
    config, result = built
    store = open_store(config.store)
    before = {stream.remote: read_summary(store, stream.remote) for stream in result.manifest.streams}
    origins = {}
    for stream in result.manifest.streams:
        origins[stream.remote] = list(StreamProvenance(store, stream.remote, 33).origins(0))
        as_before(config.store, stream.remote)
        assert read_summary(store, stream.remote) == before[stream.remote]
        assert list(StreamProvenance(store, stream.remote, 33).origins(0)) == origins[stream.remote]
    again = build(config)
    assert not again.new
    assert [built.rejected for built in again.streams] == [built.rejected for built in result.streams]
    assert [built.rejects for built in again.streams] == [None, None]


REMEDY = "Remove {url}/{folder}, and {url}/units, which may hold the same damage, and build again."


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is damaged: "),
        (lambda content: b"", "is damaged: "),
        (lambda content: b"[]", "is damaged: "),
        (lambda content: b"\xff\xfe", "is damaged: "),
        (lambda content: content.replace(b'"records": 301', b'"records": 300'), "is damaged: its hash differs"),
        (lambda content: content.replace(b'"xxh3"', b'"more": 1, "xxh3"'), "is damaged: its hash differs"),
        (None, "is missing"),
    ],
)
def test_a_damaged_summary_is_named_with_what_to_do(
    built: tuple[Config, BuildResult], damage: Any, message: str
) -> None:
    config, result = built
    (folder,) = (stream.remote for stream in result.manifest.streams if stream.name == "mono")
    path = Path(config.store, folder, "stream.summary")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as error:
        build(config)
    assert str(error.value).startswith(f"{path} {message}")
    assert str(error.value).endswith(REMEDY.format(url=config.store, folder=folder))
    shutil.rmtree(path.parent)  # the advice helps
    shutil.rmtree(Path(config.store, "units"))
    assert build(config).manifest == result.manifest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("records", -1),
        ("records", "many"),
        ("sources.0.line", 0),
        ("sources.0.lines", -3),
        ("sources.0.line", 2**63),
        ("segments.0.2", 2**64 - 1),
        ("sources.0.path", None),
        ("segments.0.0", 7),
        ("segments.0.3", -5),
        ("segments.0.1", 2),
        ("segments.0", [1, 2]),
        ("segments", []),
        ("packed.0", 9),
        ("shards.0.samples", -2),
        ("shards.0.raw", {}),
        ("rejected", {"x": -1}),
        ("tokens", 1),
    ],
)
def test_numbers_that_no_build_writes_are_damage(built: tuple[Config, BuildResult], path: str, value: Any) -> None:
    """In summaries of earlier versions, which have no hash."""
    config, result = built
    (folder,) = (stream.remote for stream in result.manifest.streams if stream.name == "mono")
    former = as_before(config.store, folder)
    document = orjson.loads(former.read_bytes())
    *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = document
    for key in above:
        inner = inner[key]
    inner[last] = value
    former.write_bytes(orjson.dumps(document))
    with pytest.raises(InputError, match=r"stream\.json is damaged: .*\. Remove .*, and build again\."):
        read_summary(open_store(config.store), folder)


def test_damaged_documents_and_rejects_are_named(built: tuple[Config, BuildResult]) -> None:
    config, result = built
    store = open_store(config.store)
    (folder,) = (stream.remote for stream in result.manifest.streams if stream.name == "mono")
    provenance = StreamProvenance(store, folder, 33)
    documents = Path(config.store, folder, "documents.00000.npy")
    content = documents.read_bytes()
    for damaged in (content[:-20], b"", content[:200] + bytes([content[200] ^ 1]) + content[201:]):
        documents.unlink()
        documents.write_bytes(damaged)
        with pytest.raises(InputError, match=r"documents\.00000\.npy is missing or damaged\. Remove .*/units, "):
            list(provenance.origins(0))
    documents.unlink()
    with pytest.raises(InputError, match=r"documents\.00000\.npy is missing or damaged\. Remove .*/units, "):
        list(provenance.origins(0))
    rejects = Path(config.store, folder, "rejects.jsonl")
    assert [reject.line for reject in read_rejects(store, folder) or []] == [301]
    for damaged in (b"{", b'{"file": "a", "line": "x", "reason": "b", "excerpt": "c"}\n', b"\xff"):
        rejects.write_bytes(damaged)
        with pytest.raises(InputError, match=r"rejects\.jsonl is damaged\. Remove "):
            read_rejects(store, folder)


def test_a_summary_is_read_as_it_was_written() -> None:
    summary = Summary((), (), (), "0", (), 3, 0, {"a": 1}, {"b": 2}, 0, 0)
    content = encode_summary(summary)

    class Holds:
        url = "store"

        def read(self, key: str) -> bytes:
            assert key == "streams/a/stream.summary"
            return content

    store: Any = Holds()
    assert read_summary(store, "streams/a") == summary
    fields = orjson.loads(content)
    del fields["notes"], fields["xxh3"]  # as before there were notes
    content = orjson.dumps({**fields, "xxh3": xxhash.xxh3_64_hexdigest(orjson.dumps(fields))})
    assert read_summary(store, "streams/a") == summary
    content = encode_summary(replace(summary, notes=("a", "b")))
    assert read_summary(store, "streams/a").notes == ("a", "b")
    content = encode_summary(replace(summary, kept=-1))
    with pytest.raises(InputError, match=r"stream\.summary is damaged: a number in it is negative"):
        read_summary(store, "streams/a")
