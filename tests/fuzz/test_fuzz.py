"""For any content of a file, readers either read it or raise InputError, never another exception.

More examples: FUZZ_EXAMPLES=20000 python -m pytest tests/fuzz
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataengine.build.build import build
from dataengine.commands.verify import open_stream, verify
from dataengine.config.load import load_config
from dataengine.errors import InputError
from dataengine.mds.provenance import StreamProvenance
from dataengine.mds.summary import NAME, REJECTS, read_rejects, read_summary
from dataengine.records.evaluation_sets import read_set
from dataengine.records.parts import whole_file
from dataengine.records.read import read_records
from dataengine.records.types import RecordFormat
from dataengine.schedule.manifest import read_manifest
from dataengine.storage.open import open_store
from tests.conftest import DEMO, ROOT, ConfigMaker
from tests.trainer import fake_checkpoints
from tests.trainer.fake_checkpoints import complete_checkpoints
from tests.trainer.fake_runs import make_runs
from trainer.reporting.read import read_runs

fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "120")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # the same ones in every `make test`, others if FUZZ_EXAMPLES is set
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PAIRS = [
    {"en": "The FIRST error counts", "zh": "第一条 错误信息才是最重要的"},
    {"en": "Two\tparts, \"quoted\" & <b>bold</b>", "zh": "两个部分"},
    {"en": "", "zh": "空"},
    {"en": "last", "zh": "最后"},
]  # fmt: skip


def check_words(error: InputError, *names: str) -> None:
    """An error says where it is."""
    assert any(name in str(error) for name in names), error


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[float, str, bytes]]:
    """Places, in parts of the whole, and what is done there."""
    pieces = st.one_of(
        st.binary(max_size=6),
        st.sampled_from([b"\n", b"\r", b"\r\n", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b'"', b"{", b"}", b"[", b"]",
                         b"\t", b"<", b">", b"</tuv>", b"&#0;", b"\\ud800", b"1e999", b"-", b":", b" " * 40,
                         "\u2028".encode(), b"null", b"[" * 3000]),
    )  # fmt: skip
    return draw(
        st.lists(
            st.tuples(st.floats(0, 1), st.sampled_from(["insert", "replace", "cut", "repeat"]), pieces), max_size=5
        )
    )


def edit(content: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for place, what, piece in changes:
        at = int(place * len(content))
        if what == "insert":
            content = content[:at] + piece + content[at:]
        elif what == "replace":
            content = content[:at] + piece + content[at + len(piece) :]
        elif what == "cut":
            content = content[:at]
        else:
            content = content[:at] + content[at // 2 :]
    return content[:200_000]


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({key: [pair[key] for pair in PAIRS] for key in ("en", "zh")}), sink)
    return bytes(sink.getvalue().to_pybytes())


def arrow(open_writer: Callable[..., Any]) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.table({key: [pair[key] for pair in PAIRS] for key in ("en", "zh")})
    with open_writer(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue().to_pybytes())


TMX = (
    '<?xml version="1.0" encoding="UTF-8"?><tmx version="1.4"><header/><body>'
    + "".join(
        f'<tu><tuv xml:lang="en"><seg>sentence {n}</seg></tuv>'
        f'<tuv xml:lang="zh-CN"><seg>句子{n}<bpt>x</bpt></seg></tuv></tu>'
        for n in range(4)
    )
    + "</body></tmx>"
).encode()
FILES: dict[str, tuple[bytes, RecordFormat]] = {
    "a.jsonl": (b"".join(orjson.dumps(pair) + b"\n" for pair in PAIRS), RecordFormat(("en", "zh"), one_line=True)),
    "deep.jsonl": (b'{"meta": {"text": "a b"}}\n{"meta": 3}\n{"meta.text": "c"}\n', RecordFormat(("meta.text",))),
    "a.tsv": (
        b"".join(f"{pair['en']}\t{pair['zh']}\n".encode() for pair in PAIRS),
        RecordFormat(("en", "zh"), columns=("en", "zh"), one_line=True),
    ),
    "a.csv": (
        b"en,zh\r\n"
        + b"".join(f'"{pair["en"].replace(chr(34), chr(34) * 2)}","{pair["zh"]}\n"\r\n'.encode() for pair in PAIRS),
        RecordFormat(("en", "zh"), one_line=True),
    ),
    "a.txt": (b"one\n\ntwo\nthree\n\n\nfour", RecordFormat(("text",), split="paragraph")),
    "b.txt": (b"one\ntwo\n", RecordFormat(("text",))),
    "a.tmx": (TMX, RecordFormat(("en", "zh"), languages=("en", "zh"), one_line=True)),
    "a.parquet": (parquet(), RecordFormat(("en", "zh"), one_line=True)),
    "stream.arrow": (arrow(pa.ipc.new_stream), RecordFormat(("en", "zh"), one_line=True)),
    "file.arrow": (arrow(pa.ipc.new_file), RecordFormat(("en", "zh"), one_line=True)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@fuzz
@given(changes=edits(), after=edits())
def test_source_files(name: str, packing: str, changes: Any, after: Any) -> None:
    """Kept records and rejected ones are the file's, each once, in order, and their texts are clean Unicode."""
    content, form = FILES[name]
    if packing and name.endswith((".parquet", ".arrow")):
        return
    content = edit(content, changes)
    lines = content.count(b"\n") + (not content.endswith(b"\n") and bool(content))
    if packing:
        content = gzip.compress(content) if packing == ".gz" else zstandard.compress(content)
        content = edit(content, after)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name + packing)
        path.write_bytes(content)
        seen: list[int] = []
        try:
            for records in read_records(whole_file(path), form, lambda count: None):
                assert {len(texts) for texts in records.texts} <= {len(records.lines)}
                both = sorted([*records.lines, *(reject.line for reject in records.rejects)])
                assert len(set(both)) == len(both)
                assert both[:1] > seen[-1:] or not both
                seen += both
                for texts in records.texts:
                    for text in texts:
                        text.encode()
                        assert text
                for reject in records.rejects:
                    reject.excerpt.encode()
                    assert reject.reason
        except InputError as error:
            check_words(error, path.name)
            return
    if not packing and name.endswith((".jsonl", ".tsv", ".csv", "b.txt")):
        assert len(seen) <= lines


SETS: dict[str, tuple[bytes, str]] = {
    "dev.jsonl": (b"".join(orjson.dumps(pair) + b"\n" for pair in PAIRS if pair["en"]), "en-zh"),
    "dev.tsv": (b"en\tzh\none\t\xe4\xb8\x80\n", "en-zh"),
    "dev.csv": (b'en,zh\n"one, two","\xe4\xb8\x80\n"\n', "en-zh"),
    "dev.xml": (
        b'<dataset id="t"><doc id="a" origlang="en"><src lang="en"><p><seg id="1">one</seg></p></src>'
        b'<ref lang="zh" translator="A"><p><seg id="1">\xe4\xb8\x80</seg></p></ref></doc></dataset>',
        "en-zh",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@fuzz
@given(changes=edits())
def test_evaluation_sets(name: str, changes: Any) -> None:
    content, direction = SETS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(edit(content, changes))
        try:
            found = read_set(str(path), direction)
        except InputError as error:
            check_words(error, name)
            return
    assert len(found.sources) == len(found.references) > 0


CONFIGS = sorted(path for path in (ROOT / "yamls").rglob("*.yaml") if "base" not in path.parts)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=6),
              st.sampled_from(["2.1B", "all", "rest", "by_size", "s3:/x", "s3://x", "en-zh", "{", "mono"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


def try_to_load(path: Path, overrides: list[str] | None = None) -> None:
    try:
        load_config(path, overrides or [])
    except InputError as error:
        check_words(error, "")


@fuzz
@given(which=st.integers(0, len(CONFIGS) - 1), changes=edits())
def test_configs_of_damaged_text(which: int, changes: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "experiment.yaml")
        content = CONFIGS[which].read_bytes().replace(b"base: ", f"base: {CONFIGS[which].parent}/".encode())
        path.write_bytes(edit(content, changes))
        try_to_load(path)


@fuzz
@given(which=st.integers(0, len(CONFIGS) - 1), place=st.lists(st.integers(0, 30), max_size=5), value=values)
def test_configs_of_wrong_values(which: int, place: list[int], value: Any) -> None:
    """Any value at any key."""
    document: Any = yaml.safe_load((ROOT / "yamls/base/mini.yaml").read_bytes())
    document |= {"name": "fuzz", "stages": [{"name": "a", "steps": 3, "mix": {"mono": 1, "en-zh": "2"}}]}
    inner = document
    for number in place[:-1]:
        children = [
            child for child in (inner.values() if isinstance(inner, dict) else inner) if isinstance(child, dict | list)
        ]
        if not children:
            break
        inner = children[number % len(children)]
    if inner:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        inner[keys[(place or [0])[-1] % len(keys)]] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "experiment.yaml")
        path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
        try_to_load(path)


@fuzz
@given(st.text(max_size=40), values)
def test_overrides(text: str, value: Any) -> None:
    path = ROOT / "yamls/mini/uni_en_zh.yaml"
    for override in (text, f"train.{text}={value}", f"{text}={text}", f"stages={value}"):
        try_to_load(path, [override])


@pytest.fixture
def manifest_content(make_config: ConfigMaker) -> bytes:
    return build(make_config(), workers=1).manifest.content


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def test_manifests(manifest_content: bytes, tmp_path: Path) -> None:
    """A manifest of other values is refused, or is one with a usable order."""
    path = tmp_path / "manifest.json"
    original = json.loads(manifest_content)
    all_places = places(original)

    @fuzz
    @given(number=st.integers(0, len(all_places) - 1), value=values)
    def of_wrong_values(number: int, value: Any) -> None:
        document = json.loads(manifest_content)
        inner = document
        *above, last = all_places[number] or ("totals",)
        for key in above:
            inner = inner[key]
        inner[last] = value
        try:
            path.write_bytes(orjson.dumps(document, option=orjson.OPT_SORT_KEYS))
        except (TypeError, orjson.JSONEncodeError):
            return
        check()

    @fuzz
    @given(changes=edits())
    def of_damaged_text(changes: Any) -> None:
        path.write_bytes(edit(manifest_content, changes))
        check()

    def check() -> None:
        try:
            found = read_manifest(path)
        except InputError as error:
            check_words(error, "manifest.json")
            return
        assert found.content == path.read_bytes()
        found.order.sample_ids(0)

    of_wrong_values()
    of_damaged_text()


@pytest.mark.parametrize("name", ["../../outside.mds", "/etc/passwd", "..", ""])
@pytest.mark.parametrize("where", ["basename", "remote"])
def test_no_path_of_a_manifest_leaves_its_root(manifest_content: bytes, tmp_path: Path, name: str, where: str) -> None:
    document = json.loads(manifest_content)
    if where == "remote":
        document["streams"][0]["remote"] = name
    else:
        document["streams"][0]["shards"][0]["raw"]["basename"] = name
    path = tmp_path / "manifest.json"
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_SORT_KEYS))
    with pytest.raises(InputError, match="damaged: stream"):
        read_manifest(path)


def test_files_beside_shards(make_config: ConfigMaker, tmp_path: Path) -> None:
    """A damaged summary, of this version or an earlier one, list of unusable records or index is named, or is read."""
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": "one"}\n' * 90 + "{broken\n")
    config = make_config(
        streams={"mono": {"documents": [str(path)]}},
        stages=[{"name": "only", "drain": True, "mix": {"mono": 1}}],
        batch_size=1,
        max_bad_fraction=0.1,
    )
    (stream,) = build(config, workers=1).manifest.streams
    store, folder = open_store(config.store), stream.remote
    contents = {name: store.read(f"{folder}/{name}") for name in (NAME, REJECTS, "index.json")}
    fields = orjson.loads(contents[NAME])
    former = {key: value for key, value in fields.items() if key != "xxh3"}
    contents["stream.json"] = orjson.dumps(former)
    all_places = places(former)[1:]

    def check(name: str, content: bytes) -> None:
        for other in (NAME, "stream.json"):
            store.remove(f"{folder}/{other}")
        for written in {name, NAME} - {"stream.json"} if name != "stream.json" else {name}:
            store.write(f"{folder}/{written}", content if written == name else contents[written])
        try:
            for row in read_rejects(store, folder) or []:
                assert row.line
            summary = read_summary(store, folder)
            assert summary == read_summary(store, folder)
            if name == NAME:
                assert summary.tokens == former["tokens"]
            for origin in StreamProvenance(store, folder, 33).origins(0):
                assert origin.num_tokens
            below, found = open_stream(f"{config.store}/{folder}")
            verify(below, [found])
        except InputError as error:
            check_words(error, name, "documents.")
        store.write(f"{folder}/{name}", contents[name])

    @fuzz
    @given(name=st.sampled_from(sorted(contents)), changes=edits())
    def of_damaged_text(name: str, changes: Any) -> None:
        check(name, edit(contents[name], changes))

    @fuzz
    @given(number=st.integers(0, len(all_places) - 1), value=values)
    def of_wrong_values(number: int, value: Any) -> None:
        document = json.loads(contents["stream.json"])
        inner = document
        *above, last = all_places[number]
        for key in above:
            inner = inner[key]
        inner[last] = value
        try:
            content = orjson.dumps(document)
        except (TypeError, orjson.JSONEncodeError):
            return
        check("stream.json", content)

    of_damaged_text()
    of_wrong_values()


def test_markers_of_checkpoints(tmp_path: Path) -> None:
    """A damaged marker is that of no checkpoint."""
    folder = fake_checkpoints.save(tmp_path, 4, size=100)
    marker = folder / "COMPLETE.json"
    content = marker.read_bytes()

    @fuzz
    @given(changes=edits())
    def of_damaged_text(changes: Any) -> None:
        marker.write_bytes(edit(content, changes))
        for found in complete_checkpoints(tmp_path):
            assert found.step == 4

    of_damaged_text()


def test_logs_and_results(tmp_path: Path) -> None:
    """The report names a damaged file of a run, or reads it."""
    (run,) = make_runs(tmp_path, ("no_parallel",))
    names = ("log.csv", "manifest.json", "config.yaml", "settings.jsonl", "chosen.json")
    for path in (*(run / name for name in names), *run.glob("evaluations/*/results.json")):
        content = path.read_bytes()

        @fuzz
        @given(path=st.just(path), content=st.just(content), changes=edits())
        def of_damaged_text(path: Path, content: bytes, changes: Any) -> None:
            path.write_bytes(edit(content, changes))
            try:
                (found,) = read_runs([str(run)], str(tmp_path / "cache"))
                only_begun = path.name == "log.csv" and path.read_bytes().count(b"\n") <= 1  # no step is left to read
                assert found.steps or only_begun
                assert found.final_losses is not None
                assert all(found.kind(stream) and found.language("en") for stream in found.streams)
            except InputError as error:
                check_words(error, str(run), path.name)

        of_damaged_text()
        path.write_bytes(content)


def test_the_demonstration_sets_are_read() -> None:
    """So that a reader that refuses everything does not pass."""
    assert len(read_set(str(DEMO / "en-zh.dev.jsonl"), "en-zh").sources) > 50
