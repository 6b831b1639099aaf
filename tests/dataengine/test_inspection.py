from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from dataengine import inspection
from dataengine.build import BuiltStream, Cleaned, build, clean_stream, prepare, run_rounds
from dataengine.cli import main
from dataengine.config import Config, dump_config
from dataengine.engines import LocalEngine
from dataengine.errors import InputError
from dataengine.storage import open_store
from dataengine.streams import StreamReader
from dataengine.tokens import load_tokenizer, token_dtype
from tests.conftest import DEMO, ConfigMaker, read_texts, write_jsonl


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
    content.insert(100, b"\n")  # blank lines are no records, but count as lines
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
    return inspection.describe_cleaning(
        prepare(config, open_store(config.store)), LocalEngine(1), names=list(names), reason=reason, count=count
    )


def test_every_drop_of_the_build_is_shown_with_its_own_file_and_line(
    make_config: ConfigMaker, dirty: dict[str, Any]
) -> None:
    config = make_config(**dirty)
    plan, cleaned = clean(config, "en-zh")
    assert len(plan.parts) > 20
    found = list(inspection.examples(plan, cleaned, open_store(config.store), count=10**6))
    built = built_stream(config, "en-zh")
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
    found = list(inspection.examples(plan, cleaned, open_store(config.store), reason="duplicate pair", count=8))
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
        "--reason length_ration: no such reason; those of mono are length, broken_characters, "
    )
    assert "; those of en-zh are length, " in str(error.value)
    assert str(error.value).endswith(", duplicate pair, no key 'zh', not JSON")


def test_a_stream_without_cleaning(make_config: ConfigMaker, dirty: dict[str, Any]) -> None:
    config = make_config(**dirty)
    assert describe(config, names=("mono",)) == "mono: no cleaning is configured (streams.mono.clean)"


def test_inspecting_first_spares_the_build_its_cleaning(make_config: ConfigMaker, dirty: dict[str, Any]) -> None:
    config = make_config(**dirty)
    describe(config)
    units = {path: path.stat().st_mtime_ns for path in Path(config.store, "units").glob("*/receipt.json")}
    build(config)
    assert units.items() <= {path: path.stat().st_mtime_ns for path in Path(config.store).rglob("receipt.json")}.items()


@pytest.mark.parametrize("name", ["mono", "en-zh"])
def test_a_sample_is_shown_as_its_text_with_the_lines_that_it_comes_from(
    make_config: ConfigMaker, dirty: dict[str, Any], name: str
) -> None:
    config = make_config(**dirty)
    manifest = build(config).manifest
    stream = next(stream for stream in manifest.streams if stream.name == name)
    tokenizer = load_tokenizer(config.tokenizer)
    reader = StreamReader(open_store(config.store), stream, 33, token_dtype(manifest.vocab_size))
    for sample in (0, 5, stream.samples - 1):
        head, *lines = inspection.describe_sample(manifest, config, name, sample).split("\n")
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
        inspection.describe_sample(manifest, config, name, stream.samples)


def test_a_line_is_found_in_the_samples_that_show_it(
    make_config: ConfigMaker, dirty: dict[str, Any], corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = make_config(**dirty), corpora / "mono.1.jsonl"
    manifest, store = build(config).manifest, open_store(config.store)
    shown = inspection.describe_line(manifest, store, f"{path}:33")
    samples = [int(number) for number in shown.removeprefix("mono: samples ").split(", ")]
    stream = next(stream for stream in manifest.streams if stream.name == "mono")
    for sample in range(stream.samples):
        text = inspection.describe_sample(manifest, config, "mono", sample)
        assert (f"{path}, line 33: " in text) == (sample in samples)
    monkeypatch.chdir(corpora)
    assert inspection.describe_line(manifest, store, "./mono.1.jsonl:33") == shown
    assert inspection.describe_line(manifest, store, "mono.1.jsonl:7000") == (
        "mono: in no sample (see below)\nIn no sample is what is past the end of the file, blank, unusable, dropped by "
        "cleaning, or in the tokens that fill no sample."
    )


@pytest.mark.parametrize("place", ["docs.jsonl", "docs.jsonl:", ":3", "docs.jsonl:x", "docs.jsonl:0"])
def test_a_line_must_be_named_as_one(make_config: ConfigMaker, place: str) -> None:
    config = make_config()
    with pytest.raises(InputError, match=rf"--line {place} is not of the form FILE:LINE with lines from 1 on"):
        inspection.describe_line(build(config).manifest, open_store(config.store), place)


def test_a_file_that_is_no_source_is_told(make_config: ConfigMaker, corpora: Path) -> None:
    config = make_config()
    with pytest.raises(InputError) as error:
        inspection.describe_line(build(config).manifest, open_store(config.store), f"{DEMO}/sources.tsv:3")
    sources = ", ".join(str(corpora / f"{name}.{k}.jsonl") for name in ("mono", "pairs") for k in (0, 1))
    assert str(error.value) == f"{DEMO}/sources.tsv is no source of 'small'; they are {sources}"


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
