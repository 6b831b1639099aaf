from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from dataengine.build.build import build
from dataengine.build.executors import LocalEngine
from dataengine.build.prepare import prepare
from dataengine.build.publish import BuiltStream
from dataengine.build.rounds import run_rounds
from dataengine.build.stream import Cleaned, clean_stream
from dataengine.cli import main
from dataengine.commands import inspect, inspect_samples
from dataengine.commands.inspect import Example
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.reader import SampleReader
from dataengine.mds.summary import read_rejects, read_summary
from dataengine.mds.types import token_dtype
from dataengine.storage.open import open_store
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO, ConfigMaker, read_texts, write_jsonl
from tests.counting_store import CountingStore


@pytest.fixture
def dirty(tmp_path: Path, corpora: Path) -> dict[str, Any]:
    """Streams with unusable, dropped and repeated records, cut into many parts; one is named twice."""
    lines = (corpora / "pairs.1.jsonl").read_bytes().splitlines()
    pairs = [orjson.loads(line) for line in lines]
    mixed: list[Any] = []
    for number, pair in enumerate(pairs):
        mixed.append(pair)
        if number % 40 == 7:
            mixed.append({"en": pair["en"], "zh": pair["en"]})  # identical sides
        if number % 50 == 9:
            mixed.append(pair)  # a duplicate
        if number % 60 == 20:
            mixed.append({"en": "no Chinese"})
    path = write_jsonl(tmp_path / "mixed.jsonl", mixed)
    content = path.read_bytes().splitlines(keepends=True)
    content.insert(100, b"\n")  # blank lines are not records, but count as lines
    content.insert(250, b"{broken\n")
    path.write_bytes(b"".join(content))
    return {
        "part_bytes": 5000,
        "max_bad_fraction": 0.1,
        "streams": {
            "mono": {"documents": [str(corpora / "mono.*.jsonl")]},
            "en-zh": {
                "pairs": [str(path), str(path), str(corpora / "pairs.0.jsonl")],
                "directions": ["en-zh"],
                "clean": {"pair_rules": {}, "dedup": ["pair"]},
            },
        },
        "stages": [{"name": "all", "steps": 4, "mix": {"mono": 1, "en-zh": 1}}],
    }


def clean(config: Config, name: str) -> tuple[Any, Cleaned]:
    prepared = prepare(config, open_store(config.store))
    plan = prepared.streams[name]
    return plan, run_rounds({name: clean_stream(plan, config, prepared.store)}, LocalEngine(1), prepared.store)[name]


def built_stream(config: Config, name: str) -> BuiltStream:
    return next(built for built in build(config).streams if built.stream.name == name)


def describe(config: Config, *, reason: str | None = None, count: int = 2, names: tuple[str, ...] = ("en-zh",)) -> str:
    return inspect.describe_cleaning(
        prepare(config, open_store(config.store)), LocalEngine(1), names=list(names), reason=reason, count=count
    )


def test_every_drop_of_the_build_is_shown_with_its_own_file_and_line(
    make_config: ConfigMaker, dirty: dict[str, Any]
) -> None:
    config = make_config(**dirty)
    plan, cleaned = clean(config, "en-zh")
    assert len(plan.parts) > 20
    found = list(inspect.examples(plan, cleaned, open_store(config.store), count=10**6))
    built = built_stream(config, "en-zh")
    rejects = read_rejects(open_store(config.store), built.stream.remote) or []
    found += [Example(reject.reason, reject.file, reject.line, (reject.excerpt,)) for reject in rejects]
    assert Counter(example.reason for example in found) == built.dropped | built.rejected
    assert {"identical_sides", "duplicate pair"} <= built.dropped.keys()
    assert built.rejected == {"no key 'zh'": 14, "not JSON": 2}
    for example in found:
        line = Path(example.path).read_bytes().split(b"\n")[example.line - 1].decode()
        if example.reason in built.rejected:
            assert example.texts[0].endswith(line)  # after what the parser says
        else:
            record = orjson.loads(line)
            assert example.texts == tuple(" ".join(record[key].split()) for key in ("en", "zh"))
        if example.reason == "identical_sides":
            assert example.texts[0] == example.texts[1]


def test_duplicates_are_those_whose_twin_comes_before(make_config: ConfigMaker, dirty: dict[str, Any]) -> None:
    """The second naming of the file holds nothing but duplicates; the first has every 50th pair twice."""
    config = make_config(**dirty)
    plan, cleaned = clean(config, "en-zh")
    path = dirty["streams"]["en-zh"]["pairs"][0]
    texts = dict(read_texts(Path(path), "en", "zh"))
    found = list(inspect.examples(plan, cleaned, open_store(config.store), reason="duplicate pair", count=8))
    assert len(found) == 8
    for example in found:
        assert texts[example.line] == example.texts
        assert any(texts[line] == example.texts for line in texts if line < example.line)


def test_counts_are_those_of_the_build(make_config: ConfigMaker, dirty: dict[str, Any]) -> None:
    config = make_config(**dirty)
    shown = describe(config, count=1)
    built = built_stream(config, "en-zh")
    counts = {}
    for line in shown.split("\n\n")[0].splitlines()[1:]:
        name, count = re.fullmatch(r"(.+?)  +([\d,]+)(?: +[\d.]+%)?", line).groups()  # type: ignore[union-attr]
        counts[name.removeprefix("unusable: ")] = int(count.replace(",", ""))
    assert counts == {"read": built.records, "kept": built.kept, **built.rejected, **built.dropped}


def test_one_reason_of_several_streams(make_config: ConfigMaker, dirty: dict[str, Any]) -> None:
    dirty["streams"]["mono"]["clean"] = {"document_rules": {}}
    config = make_config(**dirty)
    shown = describe(config, reason="identical_sides", count=3, names=("mono", "en-zh"))
    assert re.findall(r"^(\S.*): .*, line \d+$", shown, re.MULTILINE) == ["identical_sides"] * 3
    shown = describe(config, reason="not JSON", count=3)
    path = dirty["streams"]["en-zh"]["pairs"][0]
    assert re.findall(r"^not JSON: (.*, line \d+)\n    '.*{broken'$", shown, re.MULTILINE) == [f"{path}, line 251"] * 2
    with pytest.raises(InputError) as error:
        describe(config, reason="length_ration", names=("mono", "en-zh"))
    assert str(error.value).startswith(
        "--reason length_ration: no such reason (did you mean 'length_ratio'?); "
        "those of mono are length, broken_characters, "
    )
    assert "; those of en-zh are length, " in str(error.value)
    assert str(error.value).endswith(", duplicate pair, no key 'zh', not JSON")


@pytest.mark.parametrize("state", ["not built", "built", "built, units removed", "built, source renamed"])
@pytest.mark.parametrize("cleaned", [False, True])
def test_unusable_records_are_shown_of_every_stream(
    make_config: ConfigMaker, tmp_path: Path, state: str, cleaned: bool
) -> None:
    """Whether it is cleaned or not, built or not."""
    lines = [f'{{"text": "document number {n}"}}' for n in range(60)]
    lines[7:7] = ["{broken", "", '{"txt": "x"}', "[1]", "{broken \x1b[31m too"]
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    stream = {"documents": [str(tmp_path / "*.jsonl")], **({"clean": {"dedup": ["text"]}} if cleaned else {})}
    config = make_config(
        part_bytes=150,
        max_bad_fraction=0.5,
        streams={"mono": stream},
        stages=[{"name": "a", "steps": 1, "mix": {"mono": 1}}],
    )
    if state != "not built":
        build(config)
    if state == "built, units removed":
        shutil.rmtree(Path(config.store, "units"))
    if state == "built, source renamed":
        path = path.rename(tmp_path / "renamed.jsonl")
    units = Path(config.store, "units")
    before = set(units.glob("*")) if units.exists() else set()
    shown = describe(config, count=1, names=("mono",)).splitlines()
    counts = [re.sub("  +", " | ", line) for line in shown[: shown.index("")]]
    assert counts == [
        "mono | records | share",
        "read | 64",
        "unusable: not JSON | 2 | 3.125%",
        "unusable: no key 'text' | 1 | 1.562%",
        "unusable: not a JSON object | 1 | 1.562%",
        "kept | 60 | 93.750%",
        *([] if cleaned else ["no cleaning is configured (streams.mono.clean)"]),
    ]
    reasons = [line for line in shown if line.endswith(tuple("0123456789")) and ", line " in line]
    assert reasons == [
        f"not JSON: {path}, line 8", f"no key 'text': {path}, line 10", f"not a JSON object: {path}, line 11"
    ]  # fmt: skip
    if state.startswith("built") and not cleaned:
        assert (set(units.glob("*")) if units.exists() else set()) == before  # what is known is not read again


def test_a_stream_that_the_build_refuses_can_be_inspected(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", [{"txt": "x"}] * 3)
    for clean in ({}, {"clean": {"dedup": ["text"]}}):
        config = make_config(
            streams={"mono": {"documents": [str(path)], **clean}},
            stages=[{"name": "a", "steps": 1, "mix": {"mono": 1}}],
        )
        with pytest.raises(InputError, match="all 3 records are unusable"):
            build(config)
        shown = describe(config, count=1, names=("mono",))
        assert f"no key 'text': {path}, line 1" in shown
        assert re.search(r"unusable: no key 'text' +3 +100.000%\nkept +0 +0.000%", shown)


def test_inspecting_first_spares_the_build_its_cleaning(make_config: ConfigMaker, dirty: dict[str, Any]) -> None:
    config = make_config(**dirty)
    describe(config)
    units = {path: path.stat().st_mtime_ns for path in Path(config.store, "units").glob("*/dropped.npy")}
    assert units
    build(config)
    assert units == {path: path.stat().st_mtime_ns for path in Path(config.store, "units").glob("*/dropped.npy")}


@pytest.mark.parametrize("name", ["mono", "en-zh"])
def test_a_sample_is_shown_as_its_text_with_the_lines_that_it_comes_from(
    make_config: ConfigMaker, dirty: dict[str, Any], name: str
) -> None:
    config = make_config(**dirty)
    manifest = build(config).manifest
    stream = next(stream for stream in manifest.streams if stream.name == name)
    store, tokenizer = open_store(config.store), load_tokenizer(config.tokenizer)
    reader = SampleReader.of_store(store, [stream], 33, token_dtype(manifest.vocab_size))
    for sample in (0, 5, stream.samples - 1):
        head, *lines = inspect_samples.describe_sample(manifest, store, tokenizer, name, sample).split("\n")
        assert head == f"stream {name}, sample {sample}: 33 tokens"
        tokens, at = reader.read([sample])[0].tolist(), 0
        parts = re.split(r"\n(?=/\S+, line \d+: )", "\n" + "\n".join(lines))[1:]
        for part in parts:
            origin, *shown = part.split("\n")
            path, line, count, first = re.fullmatch(r"(.+), line (\d+): (\d+) tokens from token (\d+)", origin).groups()  # type: ignore[union-attr]
            text = "\n".join(row.removeprefix("  | ") for row in shown)
            assert text == tokenizer.decode(tokens[at : at + int(count)])
            at += int(count)
            record = orjson.loads(Path(path).read_bytes().split(b"\n")[int(line) - 1])
            whole = record["text"] if name == "mono" else f"English: {record['en']}\nChinese: {record['zh']}"
            ids = [*tokenizer.encode([whole])[0], tokenizer.eos_id]
            assert ids[int(first) : int(first) + int(count)] == tokens[at - int(count) : at]
        assert at == 33
    with pytest.raises(InputError, match=rf"stream '{name}' has samples 0 to {stream.samples - 1:,}"):
        inspect_samples.describe_sample(manifest, store, tokenizer, name, stream.samples)


def test_a_line_is_found_in_the_samples_that_show_it(
    make_config: ConfigMaker, dirty: dict[str, Any], corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = make_config(**dirty), corpora / "mono.1.jsonl"
    manifest, store = build(config).manifest, open_store(config.store)
    shown = inspect_samples.describe_line(manifest, store, f"{path}:33")
    samples = [int(number) for number in shown.removeprefix("mono: samples ").split(", ")]
    stream = next(stream for stream in manifest.streams if stream.name == "mono")
    tokenizer = load_tokenizer(config.tokenizer)
    for sample in range(stream.samples):
        text = inspect_samples.describe_sample(manifest, store, tokenizer, "mono", sample)
        assert (f"{path}, line 33: " in text) == (sample in samples)
    monkeypatch.chdir(corpora)
    assert inspect_samples.describe_line(manifest, store, "./mono.1.jsonl:33") == shown
    assert inspect_samples.describe_line(manifest, store, "mono.1.jsonl:7000") == (
        "mono: in no sample (see below)\nA line is in no sample if it is past the end of the file, blank, unusable, "
        "dropped by cleaning, or in the remainder, which fills no sample."
    )


def test_a_line_of_documents_needs_as_many_requests_whatever_the_number_of_parts(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path
) -> None:
    found = []
    for part_bytes in (10**9, 10_000, 2000):
        config = make_config(
            streams={"mono": {"documents": [str(corpora / "mono.*.jsonl")]}},
            stages=[{"name": "all", "steps": 4, "mix": {"mono": 1}}],
            part_bytes=part_bytes,
            store=str(tmp_path / f"store {part_bytes}"),
        )
        manifest, store = build(config).manifest, open_store(config.store)
        parts = len(read_summary(store, manifest.streams[0].remote).sources)
        for line in (1, 33):
            counting = CountingStore(store.url, store)
            shown = inspect_samples.describe_line(manifest, counting, f"{corpora / 'mono.1.jsonl'}:{line}")
            assert shown.startswith("mono: samples ")
            found.append((parts, counting.requests.total()))
    assert found[-1][0] > 5 * found[0][0]
    assert len({requests for _, requests in found}) == 1


def test_a_line_in_no_sample_is_explained(make_config: ConfigMaker, dirty: dict[str, Any], corpora: Path) -> None:
    config = make_config(**dirty)
    manifest, store = build(config).manifest, open_store(config.store)
    prepared, path = prepare(config, store), Path(dirty["streams"]["en-zh"]["pairs"][0])

    def why(place: str) -> str:
        return inspect_samples.describe_line(manifest, store, place, prepared, LocalEngine(1))

    lines = path.read_bytes().splitlines()
    broken = next(number for number, line in enumerate(lines, 1) if b"no Chinese" in line)
    same = [
        number for number, line in enumerate(lines, 1)
        if line.startswith(b'{"en"') and (pair := orjson.loads(line)).get("zh") == pair["en"]
    ]  # fmt: skip
    assert why(f"{path}:{broken}").splitlines() == ["en-zh: in no sample: unusable: no key 'zh'"]
    assert why(f"{path}:101").splitlines() == ["en-zh: in no sample: it is blank"]
    assert why(f"{path}:251").splitlines() == ["en-zh: in no sample: unusable: not JSON"]
    assert why(f"{path}:{same[2]}").splitlines() == ["en-zh: in no sample: dropped: identical_sides"]
    assert why(f"{path}:99999").splitlines() == [f"en-zh: in no sample: the file has {len(lines):,} lines"]


def test_sources_that_changed_since_the_build_are_reported(
    make_config: ConfigMaker, tmp_path: Path, corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes((corpora / "mono.0.jsonl").read_bytes())
    config = make_config(
        streams={"mono": {"documents": [str(source)]}}, stages=[{"name": "a", "drain": True, "mix": {"mono": 1}}]
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    build(config)
    with source.open("ab") as file:
        file.write(b'{"text": "one more"}\n')
    for arguments in (["--line", f"{source}:3"], ["--stream", "mono", "--sample", "0"]):
        with pytest.raises(SystemExit):
            main(["inspect", str(path), *arguments])
        assert capsys.readouterr().err == (
            "note: the sources of mono have changed since the build; this shows them as they were then. "
            f"Build again: dataengine build {path}\n"
        )


def test_a_renamed_source_goes_by_its_new_name_and_by_its_old_one(
    make_config: ConfigMaker, tmp_path: Path, corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    names = ("a.jsonl", "b.jsonl", "c.jsonl")
    for name, source in zip(names, ("mono.0.jsonl", "mono.1.jsonl", "pairs.0.jsonl"), strict=True):
        (folder / name).write_bytes((corpora / source).read_bytes())

    def config_of(*documents: str) -> Path:
        config = make_config(
            streams={
                "mono": {"documents": [str(folder / name) for name in documents[:2]]},
                "zh": {"documents": [str(folder / documents[2])], "text_key": "zh"},
            },
            stages=[{"name": "a", "drain": True, "mix": {"mono": 1, "zh": 1}}],
        )
        path = tmp_path / "config.yaml"
        path.write_text(dump_config(config))
        return path

    def run(path: Path, *arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            main([arguments[0], str(path), *arguments[1:]])
        assert stop.value.code == 0
        printed = capsys.readouterr()
        return printed.out, printed.err

    before = config_of(*names)
    assert "manifest " in run(before, "build")[0]
    found = {name: run(before, "inspect", "--line", f"{folder / name}:7")[0] for name in names}
    assert len(set(found.values())) == 3
    # b takes the name of a, and a and c get new ones.
    for old, new in (("a.jsonl", "new-a.jsonl"), ("b.jsonl", "a.jsonl"), ("c.jsonl", "new-c.jsonl")):
        (folder / old).rename(folder / new)
    after = config_of("new-a.jsonl", "a.jsonl", "new-c.jsonl")
    assert run(after, "build")[0].startswith("nothing to do: ")
    now = {"new-a.jsonl": "a.jsonl", "a.jsonl": "b.jsonl", "b.jsonl": "b.jsonl", "new-c.jsonl": "c.jsonl",
           "c.jsonl": "c.jsonl"}  # fmt: skip
    for name, was in now.items():
        assert run(after, "inspect", "--line", f"{folder / name}:7") == (found[was], "")
    shown, _ = run(after, "inspect", "--stream", "zh", "--sample", "0")
    assert f"{folder / 'new-c.jsonl'}, line " in shown
    assert f"{folder / 'c.jsonl'}, line " not in shown
    # Without the sources, what was written down at the build remains.
    (folder / "new-c.jsonl").unlink()
    shown, notes = run(after, "inspect", "--line", f"{folder / 'c.jsonl'}:7")
    assert shown == found["c.jsonl"]
    assert notes.startswith("note: file names are those at the time of the build, since the sources cannot be ")


def test_both_files_of_a_moses_pair_are_sources(make_config: ConfigMaker, tmp_path: Path) -> None:
    for code in ("en", "zh"):
        (tmp_path / f"corpus.{code}").write_text("".join(f"{code} sentence {n}\n" for n in range(200)))
    config = make_config(
        streams={
            "en-zh": {"pairs": [{c: str(tmp_path / f"corpus.{c}") for c in ("en", "zh")}], "directions": ["en-zh"]}
        },
        stages=[{"name": "a", "drain": True, "mix": {"en-zh": 1}}],
    )
    manifest, store = build(config).manifest, open_store(config.store)
    prepared = prepare(config, store)
    one, other = (
        inspect_samples.describe_line(manifest, store, f"{tmp_path / f'corpus.{code}'}:7", prepared)
        for code in ("en", "zh")
    )
    assert one == other
    assert one.startswith("en-zh: samples ")


@pytest.mark.parametrize("place", ["docs.jsonl", "docs.jsonl:", ":3", "docs.jsonl:x", "docs.jsonl:0"])
def test_a_line_must_be_named_as_one(make_config: ConfigMaker, place: str) -> None:
    config = make_config()
    with pytest.raises(InputError, match=rf"--line {place} is not of the form FILE:LINE with lines from 1 on"):
        inspect_samples.describe_line(build(config).manifest, open_store(config.store), place)


def test_a_file_that_is_not_a_source_is_reported(make_config: ConfigMaker, corpora: Path) -> None:
    config = make_config()
    with pytest.raises(InputError) as error:
        inspect_samples.describe_line(build(config).manifest, open_store(config.store), f"{DEMO}/sources.tsv:3")
    sources = ", ".join(str(corpora / f"{name}.{k}.jsonl") for name in ("mono", "pairs") for k in (0, 1))
    assert str(error.value) == f"{DEMO}/sources.tsv is not a source of 'small'; they are {sources}"


def test_the_command(make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config()
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))

    def run(*more: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["inspect", str(path), *more])
        assert isinstance(stop.value.code, int)
        printed = capsys.readouterr()
        return stop.value.code, printed.out + printed.err

    assert run("--stream", "mono", "--sample", "1") == (
        2, f"error: 'small' is not built in {config.store}. Build it first: dataengine build {path}\n"
    )  # fmt: skip
    build(config)
    assert run("--stream", "mono", "--sample", "1")[1].startswith("stream mono, sample 1: 33 tokens\n")
    assert run("--sample", "1") == (
        2, "error: --sample needs the --stream whose sample it is, one of mono, en-zh, both\n"
    )  # fmt: skip
    assert run("--stream", "en-hz") == (2, "error: --stream en-hz: the stages use mono, en-zh, both\n")
    assert "must be a number from 1 on, got -1" in run("--count", "-1")[1]


def test_a_near_duplicate_is_shown_with_the_record_that_is_kept_for_it(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    """One word of thirty differs: 5 of 26 shingles; blank lines and the cut into parts do not shift the lines."""
    texts = [" ".join(f"w{number}x{k}" for k in range(30)) for number in range(40)]
    twin = texts[7].replace("w7x12", "changed")
    first = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    first.write_text("\n\n" + first.read_text())
    second = write_jsonl(tmp_path / "b.jsonl", [{"text": text} for text in ("something else", twin)])
    stream = {"documents": [str(first), str(second)], "clean": {"near_dedup": 0.6}}
    config = make_config(
        streams={"mono": stream}, stages=[{"name": "all", "steps": 1, "mix": {"mono": 1}}], part_bytes=2000
    )
    shown = describe(config, names=("mono",)).splitlines()
    at = shown.index(f"near duplicate: {second}, line 2")
    assert shown[at + 1].startswith("    'w7x0 w7x1 ")
    assert shown[at + 2] == f"  {21 / 31:.3f} alike, and kept: {first}, line {7 + 3}"
    assert shown[at + 3].startswith("    'w7x0 w7x1 ")
    assert sum(line.startswith("near duplicate: ") for line in shown) == 1
