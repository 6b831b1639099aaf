"""What cleaning drops in real builds, against a plain reference that looks at one record after the other."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.build import clean as cleaning
from dataengine.build import measures, tokenize
from dataengine.build.build import build
from dataengine.build.publish import BuiltStream
from dataengine.cleaning import dedup
from dataengine.cleaning.decontaminate import EvaluationTexts
from dataengine.cleaning.language import score_language
from dataengine.cleaning.minhash import shingle_texts
from dataengine.cleaning.rules import documents as documents_module
from dataengine.cleaning.rules import pairs as pairs_module
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.config.streams import DocumentStream, PairStream, Stream
from dataengine.errors import InputError
from dataengine.mds.provenance import StreamProvenance
from dataengine.mds.reader import SampleReader
from dataengine.mds.types import token_dtype
from dataengine.storage.open import open_store
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO, ConfigMaker, read_texts, write_jsonl, write_pairs

WIDTH = 9  # seq_len 8, to make many samples of little text
DEV = DEMO / "en-zh.dev.jsonl"
PLANTED = json.loads(DEV.read_text(encoding="utf-8").splitlines()[2])  # nine words
TOKENIZER = load_tokenizer(str(DEMO / "tokenizer.model"))

Place = tuple[str, int]  # file, line


def config_of(folder: Path, stream: Mapping[str, Any], **changes: Any) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "store": str(folder / "store"),
            "tokenizer": str(DEMO / "tokenizer.model"),
            "seq_len": WIDTH - 1,
            "batch_size": 1,
            "samples_per_shard": 16,
            "max_bad_fraction": 1,
            "streams": {"s": stream},
            "stages": [{"name": "all", "drain": True, "mix": {"s": 1}}],
            **changes,
        }
    )


def documents(folder: Path, clean: Mapping[str, Any], **stream: Any) -> Config:
    return config_of(folder, {"documents": [str(folder / "*.jsonl")], "clean": clean, **stream})


def pairs(folder: Path, clean: Mapping[str, Any], **stream: Any) -> Config:
    return config_of(
        folder, {"pairs": [str(folder / "*.jsonl")], "directions": ["en-zh", "zh-en"], "clean": clean, **stream}
    )


def build_stream(config: Config, **settings: Any) -> BuiltStream:
    (built,) = build(config, **settings).streams
    return built


def documents_of(config: Config, built: BuiltStream) -> dict[Place, list[tuple[int, ...]]]:
    """The ids, without EOS, of all documents of a stream, those in the remainder too, by their file and line."""
    store, folder = open_store(config.store), Path(config.store, built.stream.remote)
    reader = SampleReader.of_store(store, [built.stream], WIDTH, token_dtype(TOKENIZER.vocab_size))
    tokens = np.concatenate([reader.read(range(built.stream.samples)).ravel(), np.load(folder / "remainder.npy")])
    summary = orjson.loads((folder / "stream.summary").read_bytes())
    flows: dict[int, list[int]] = {}
    for unit, start, inside, count in sorted(summary["segments"], key=lambda row: (row[0], row[2])):
        assert inside == len(flows.setdefault(unit, []))
        flows[unit] += tokens[start : start + count].tolist()
    found: dict[Place, list[tuple[int, ...]]] = {}
    for unit, number in enumerate(summary["packed"]):
        flow, at = flows.pop(unit, []), 0
        for source, line, size in np.load(folder / f"documents.{unit:05d}.npy").tolist():
            part = summary["sources"][number if number is not None else source]
            assert flow[at + size - 1] == TOKENIZER.eos_id
            found.setdefault((part["path"], part["line"] + line - 1), []).append(tuple(flow[at : at + size - 1]))
            at += size
        assert at == len(flow)
    assert not flows
    return found


# --- The reference ---


@dataclass
class Expected:
    """What becomes of a corpus."""

    records: int = 0
    kept: dict[Place, tuple[str, ...]] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def read_plainly(path: Path, stream: Stream, found: Expected) -> Iterator[tuple[Place, tuple[str, ...], str]]:
    """Place, texts and label of each usable record."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        found.records += 1
        try:
            record = json.loads(line)
        except ValueError:
            found.rejected["not JSON"] += 1
            continue
        texts: list[str] = []
        for key in stream.text_keys:
            if key not in record:
                found.rejected[f"no key '{key}'"] += 1
                break
            if not record[key].strip():
                found.rejected[f"'{key}' is empty"] += 1
                break
            texts.append(record[key].strip() if isinstance(stream, PairStream) else record[key])
        else:
            yield (str(path), number), tuple(texts), str(record.get("meta", {}).get("set", ""))


def reason_by_itself(texts: tuple[str, ...], label: str, stream: Stream) -> str | None:
    """Why a record is dropped, regardless of the others."""
    clean = stream.clean
    if clean.subsets and label in clean.subsets.drop:
        return "subset"
    names, number = documents_module.DOCUMENT_RULES, 0
    if isinstance(stream, DocumentStream) and stream.clean.document_rules:
        number = int(documents_module.check_documents(texts, stream.language, stream.clean.document_rules)[0])
    if isinstance(stream, PairStream) and stream.clean.pair_rules:
        codes, names = (stream.codes[0], stream.codes[1]), pairs_module.PAIR_RULES
        number = int(pairs_module.check_pairs([texts[0]], [texts[1]], codes, stream.clean.pair_rules)[0])
    if number:
        return names[number - 1]
    if clean.min_language_score:
        for text, code in zip(texts, stream.codes, strict=True):
            if code and score_language([text], code)[0] < clean.min_language_score:
                return f"language {code}"
    if clean.decontaminate:
        evaluation = EvaluationTexts.load(clean.decontaminate)
        if any(evaluation.contaminated([text])[0] for text in texts):
            return "evaluation text"
    return None


def keys_of(texts: tuple[str, ...], stream: Stream) -> list[tuple[str, object]]:
    """Reason and key of everything by which a record may repeat an earlier one."""
    normal = tuple(dedup.normalize(text) for text in texts)
    found: list[tuple[str, object]] = []
    for kind in stream.clean.dedup:
        value = normal if kind == "pair" else normal[0] if kind == "text" else normal[stream.codes.index(kind)]
        found.append((f"duplicate {kind}", value))
    return found


def clean_plainly(paths: Sequence[Path], stream: Stream) -> Expected:
    found = Expected()
    seen: set[tuple[str, object]] = set()
    likely: list[set[int]] = []  # shingles of those that are kept
    for path in paths:
        for place, texts, label in read_plainly(path, stream, found):
            reason = reason_by_itself(texts, label, stream)
            if reason is None:
                keys = keys_of(texts, stream)
                reason = next((kind for kind, key in keys if (kind, key) in seen), None)
                if reason is None:
                    seen.update(keys)
            if reason is None and stream.clean.near_dedup:
                shingles = set(shingle_texts([" ".join(texts)]).hashes.tolist())
                least = stream.clean.near_dedup
                if shingles and any(len(shingles & kept) >= least * len(shingles | kept) for kept in likely):
                    reason = "near duplicate"
                elif shingles:
                    likely.append(shingles)
            if reason is None:
                found.kept[place] = texts
            else:
                found.dropped[reason] += 1
    return found


def expected_documents(kept: Mapping[Place, tuple[str, ...]], config: Config) -> dict[Place, list[tuple[int, ...]]]:
    """The ids of what is kept; directions of pairs alternate among the kept ones of a part, so that either is right."""
    stream, found = config.streams["s"], {}
    for place, texts in kept.items():
        if isinstance(stream, PairStream):
            columns = dict(zip(stream.codes, ([text] for text in texts), strict=True))
            written = [write_pairs(columns, n, stream.directions, config.languages)[0] for n in range(2)]
        else:
            written = list(texts)
        found[place] = [tuple(ids) for ids in TOKENIZER.encode(written)]
    return found


def check_build(config: Config) -> Expected:
    """Build, and compare everything that is counted and kept with the reference."""
    stream = config.streams["s"]
    (pattern,) = stream.paths
    paths = sorted(Path(str(pattern)).parent.glob(Path(str(pattern)).name))
    expected = clean_plainly(paths, stream)
    documents = expected_documents(expected.kept, config)
    try:
        result = build(config)
    except InputError as error:
        message = str(error)
        if not expected.records:
            assert message.endswith("its files contain no records. Name other files in streams.s.")
        elif expected.rejected.total() == expected.records:
            all_of_them = f"all {expected.records:,} records are" if expected.records > 1 else "the only record is"
            assert message.startswith(f"stream 's': {all_of_them} unusable (")
        elif not expected.kept:
            assert message.startswith(f"stream 's': cleaning drops all {expected.dropped.total():,} usable records (")
        else:
            assert sum(len(ids[0]) + 1 for ids in documents.values()) < 3 * WIDTH
            assert "too few for one sample" in message
        return expected
    (built,) = result.streams
    report = orjson.loads(Path(result.path).with_name("build_report.json").read_bytes())["streams"][0]
    summary = orjson.loads(Path(config.store, built.stream.remote, "stream.summary").read_bytes())
    for records, kept, rejected, dropped in (
        (built.records, built.kept, built.rejected, built.dropped),
        *((told["records"], told["kept"], told["rejected"], told["dropped"]) for told in (report, summary)),
    ):
        assert records == expected.records == kept + sum(rejected.values()) + sum(dropped.values())
        assert kept == len(expected.kept)
        assert rejected == expected.rejected
        assert dropped == expected.dropped
    assert built.tokens == report["tokens"] == summary["tokens"]
    assert built.remainder == report["remainder_tokens"] == summary["remainder"] < WIDTH
    assert built.tokens == built.stream.samples * WIDTH + built.remainder
    found = documents_of(config, built)
    assert found.keys() == documents.keys()
    assert all(len(ids) == 1 and ids[0] in documents[place] for place, ids in found.items())
    assert sum(len(ids[0]) + 1 for ids in found.values()) == built.tokens
    return expected


# --- The law ---

LINES = {
    "documents": [
        "The window manager could not be started because another one is running already.",
        "  the WINDOW manager could not be started because another one is running already.  ",
        "The window manager could not be started because another one is running now, it seems.",
        "Le gestionnaire de fenêtres ne peut pas démarrer, car il y en a déjà un autre qui tourne.",
        "窗口管理器无法启动，因为另一个窗口管理器已经在运行。",
        "one line\none line\none line\nand one more line",
        "12 34 56 78 ::: ### $$$ %%%",
        "short",
        "Fine.",
        str(PLANTED["en"]),
    ],
    "en": [
        "Open the file",
        "open the FILE",
        "The window manager could not be started because another one is running already.",
        "Le gestionnaire de fenêtres ne peut pas démarrer, car il y en a déjà un autre qui tourne.",
        "<b>Save</b> the file 17 as http://example.org/a",
        str(PLANTED["en"]),
    ],
    "zh": [
        "打开文件",
        "打开这个文件",
        "窗口管理器无法启动，因为另一个窗口管理器已经在运行。",
        "Open the file",
        "保存文件",
    ],
}
BROKEN = st.sampled_from(
    ["{broken", '{"other": 1}', '{"text": " ", "en": "", "zh": "x"}', '{"en": "x", "zh": " "}', ""]
)
LABELS = st.sampled_from([{}, {"meta": {"set": "web"}}, {"meta": {"set": "code"}}, {"meta": {}}])


def files_of(records: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[list[str]]]:
    line = st.builds(lambda record, label: json.dumps({**record, **label}, ensure_ascii=False), records, LABELS)
    lines = st.lists(st.one_of(line, line, line, line, line, BROKEN), max_size=25)
    return st.lists(lines, min_size=1, max_size=3)


COMMON = {
    "near_dedup": st.sampled_from([None, None, 0.5]),
    "min_language_score": st.sampled_from([None, None, 0.3]),
    "subsets": st.sampled_from([None, None, {"key": "meta.set", "drop": ["code"]}]),
    "decontaminate": st.sampled_from([[], [], [str(DEV)]]),
}
DOCUMENT_CLEAN = st.fixed_dictionaries(
    {
        "document_rules": st.sampled_from([None, {}, {"max_characters": 80, "min_letter_share": None}]),
        "dedup": st.sampled_from([[], ["text"]]),
        **COMMON,
    }
)
PAIR_CLEAN = st.fixed_dictionaries(
    {
        "pair_rules": st.sampled_from([None, {}, {"max_characters": 60, "drop_markup": False}]),
        "dedup": st.lists(st.sampled_from(["pair", "en", "zh"]), unique=True),
        **COMMON,
    }
)
PART_BYTES = st.sampled_from([1, 150, 600, 10**9])
SIZES = st.sampled_from([{}, {"_BATCH": 3, "RUN_KEYS": 5, "RANGE_KEYS": 7}])


def check_in_pieces(config: Config, part_bytes: int, sizes: Mapping[str, int]) -> None:
    """Check a build of parts of a number of bytes, with small batches, runs and ranges if `sizes` says so."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(measures if name == "RUN_KEYS" else cleaning, name, size)
        if sizes:
            patch.setattr(tokenize, "_BATCH", 3)
        check_build(config.model_copy(update={"part_bytes": part_bytes}))


def write_files(folder: Path, files: Sequence[Sequence[str]]) -> None:
    for number, lines in enumerate(files):
        (folder / f"{number}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@settings(max_examples=25)
@given(
    files_of(st.fixed_dictionaries({"text": st.sampled_from(LINES["documents"])})),
    DOCUMENT_CLEAN,
    st.sampled_from([None, "en"]),
    PART_BYTES,
    SIZES,
)
def test_every_document_is_kept_or_counted_as_a_plain_reference_does(
    files: list[list[str]], clean: dict[str, Any], language: str | None, part_bytes: int, sizes: dict[str, int]
) -> None:
    if language is None:
        clean = {**clean, "min_language_score": None}
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name), files)
        check_in_pieces(documents(Path(name), clean, language=language), part_bytes, sizes)


@settings(max_examples=25)
@given(
    files_of(st.fixed_dictionaries({"en": st.sampled_from(LINES["en"]), "zh": st.sampled_from(LINES["zh"])})),
    PAIR_CLEAN,
    PART_BYTES,
    SIZES,
)
def test_every_pair_is_kept_or_counted_as_a_plain_reference_does(
    files: list[list[str]], clean: dict[str, Any], part_bytes: int, sizes: dict[str, int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name), files)
        check_in_pieces(pairs(Path(name), clean), part_bytes, sizes)


def test_every_reason_occurs_in_a_build_as_in_the_reference(tmp_path: Path) -> None:
    """The corpora of the law are rich enough: all kinds of reasons at once."""
    record = {"en": LINES["en"][2], "zh": LINES["zh"][2]}
    write_jsonl(
        tmp_path / "a.jsonl",
        [
            record,
            {**record, "meta": {"set": "code"}},
            {**record, "en": LINES["en"][3]},
            {**record, "en": record["en"].upper()},
            {"en": "Open it", "zh": record["zh"]},
            {"en": record["en"], "zh": "窗口管理器无法启动"},
            {"en": PLANTED["en"], "zh": "别的译文"},
            {"en": "Open <b>it</b>", "zh": "打开"},
            {"en": "One", "zh": "One"},
            {"en": "", "zh": "One"},
        ],
    )
    clean = {
        "subsets": {"key": "meta.set", "drop": ["code"]},
        "pair_rules": {"max_length_ratio": None},
        "min_language_score": 0.3,
        "decontaminate": [str(DEV)],
        "dedup": ["pair", "zh", "en"],
    }
    expected = check_build(pairs(tmp_path, clean))
    assert expected.dropped == {
        "subset": 1,
        "language en": 1,
        "duplicate pair": 1,
        "duplicate zh": 1,
        "duplicate en": 1,
        "evaluation text": 1,
        "markup": 1,
        "identical_sides": 1,
    }
    assert expected.rejected == {"'en' is empty": 1}
    assert len(expected.kept) == 1


# --- Parts and workers ---


def copy_corpora(corpora: Path, folder: Path, kind: str) -> None:
    """Real records in two files, a third of them twice; of pairs also sides with another side, and near twins."""
    for path in corpora.glob(f"{kind}.*.jsonl"):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        made = [*records, *records[::3]]
        if kind == "pairs":
            made += [{**record, "zh": other["zh"]} for record, other in zip(records[::20], records[1::20], strict=True)]
            made += [{**record, "en": record["en"] + " now"} for record in records if 100 < len(record["en"]) < 140]
        write_jsonl(folder / path.name, made)


def test_what_is_dropped_does_not_depend_on_the_parts(corpora: Path, tmp_path: Path) -> None:
    copy_corpora(corpora, tmp_path, "pairs")
    config = pairs(tmp_path, {"pair_rules": {"max_characters": 150}, "dedup": ["pair", "en"], "near_dedup": 0.7})
    found = []
    for part_bytes in (2_000, 30_000, 10**9):
        built = build_stream(config.model_copy(update={"part_bytes": part_bytes}))
        found.append((built.dropped, sorted(documents_of(config, built)), built.new))
    assert found[0] == found[1] == found[2]
    assert {"length", "duplicate pair", "duplicate en", "near duplicate"} <= found[0][0].keys()


def test_bytes_of_a_cleaned_stream_do_not_depend_on_workers(corpora: Path, tmp_path: Path) -> None:
    copy_corpora(corpora, tmp_path, "pairs")
    trees = []
    for workers in (1, 2):
        config = pairs(tmp_path, {"pair_rules": {}, "dedup": ["pair", "zh"]}).model_copy(
            update={"part_bytes": 20_000, "store": str(tmp_path / f"store{workers}")}
        )
        build(config, workers=workers)
        trees.append(
            {
                str(path.relative_to(config.store)): path.read_bytes()
                for folder in ("streams", "units", "keeps")
                for path in Path(config.store, folder).rglob("*")
                if path.is_file()
            }
        )
    assert trees[0] == trees[1]
    assert len([name for name in trees[0] if name.endswith("dropped.npy")]) > 4
    assert any(name.startswith("keeps/") for name in trees[0])


def test_a_file_named_twice_is_dropped_the_second_time(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"document number {n}"} for n in range(20)])
    config = config_of(tmp_path, {"documents": [str(path), str(path)], "clean": {"dedup": ["text"]}})
    built = build_stream(config.model_copy(update={"part_bytes": 100}))
    assert (built.kept, built.dropped) == (20, {"duplicate text": 20})
    assert sorted(documents_of(config, built)) == [(str(path), n) for n in range(1, 21)]


# --- What is done again ---


def units(config: Config) -> Counter[str]:
    """How many units of each kind the store holds."""
    kinds = {"dropped.npy": "clean", "groups.npy": "compare", "documents.npy": "documents"}
    found = Counter(kinds[p.name] for p in Path(config.store, "units").glob("*/*.npy") if p.name in kinds)
    found["all"] = len(list(Path(config.store, "units").iterdir()))
    return found


def test_a_changed_rule_rebuilds_only_what_it_touches(make_config: ConfigMaker, corpora: Path) -> None:
    def config(least: int) -> Config:
        mono = {"documents": [str(corpora / "mono.*.jsonl")]}
        return make_config(
            streams={
                "one": {**mono, "clean": {"document_rules": {"min_characters": least}}},
                "two": {**mono, "text_key": "text", "clean": {"document_rules": {"max_characters": 1000}}},
            },
            stages=[{"name": "all", "drain": True, "mix": {"one": "by_size", "two": "by_size"}}],
        )

    lengths = {
        path.name: sorted(len(text) for _, (text,) in read_texts(path, "text")) for path in corpora.glob("mono.*.jsonl")
    }
    shortest = {name: sizes[0] for name, sizes in lengths.items()}
    low = min(shortest, key=lambda name: shortest[name])  # the file with the shortest document of all
    (other,) = set(shortest) - {low}
    first = build(config(1))
    before = units(config(1))
    assert before["clean"] == 4  # two files a stream
    assert [built.new for built in build(config(2)).streams] == [True, False]
    again = units(config(1))
    assert again["clean"] == before["clean"] + 2  # the rule is another, the decisions are not:
    assert again["documents"] == before["documents"]  # no text is tokenized again
    assert again["all"] == before["all"] + 2

    assert shortest[low] < shortest[other]
    third = build(config(shortest[low] + 1))  # drops from one file
    assert [built.new for built in third.streams] == [True, False]
    assert third.streams[0].dropped == {"length": lengths[low].count(shortest[low])}
    assert third.streams[1] == BuiltStream(**{**vars(first.streams[1]), "new": False})
    assert units(config(1))["documents"] == before["documents"] + 1
    assert units(config(1))["clean"] == again["clean"] + 2


def test_cleaning_that_drops_nothing_shares_units_with_no_cleaning(make_config: ConfigMaker, corpora: Path) -> None:
    def config(clean: dict[str, Any]) -> Config:
        return make_config(
            streams={"mono": {"documents": [str(corpora / "mono.*.jsonl")], "clean": clean}},
            stages=[{"name": "all", "steps": 2, "mix": {"mono": 1}}],
        )

    plain = build_stream(config({}))
    before = units(config({}))
    assert before["clean"] == 0
    cleanings: list[dict[str, Any]] = [{"document_rules": {"min_characters": 2}}, {"dedup": ["text"]}]
    for number, clean in enumerate(cleanings, 1):
        cleaned = build_stream(config(clean))
        assert cleaned.dropped == {}
        assert cleaned.new
        assert cleaned.stream.shards == plain.stream.shards
        assert cleaned.stream.remote != plain.stream.remote
        found = units(config(clean))
        assert found["clean"] == 2 * number
        assert found["documents"] == before["documents"]


# --- What drops ---


@pytest.mark.parametrize("part_bytes", [1, 10**6])
def test_subsets_are_dropped_by_a_nested_key(tmp_path: Path, part_bytes: int) -> None:
    labels = ["Github", "Web", None, 7, "Github", "github"]
    records = [{"text": f"document number {n}", "meta": {"set": label}} for n, label in enumerate(labels)]
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [*records, {"text": "document without a label"}, {"text": "a literal key", "meta.set": "Github"}],
    )
    config = documents(tmp_path, {"subsets": {"key": "meta.set", "drop": ["Github", "7"]}})
    built = build_stream(config.model_copy(update={"part_bytes": part_bytes}))
    assert built.dropped == {"subset": 4}
    assert [line for _, line in sorted(documents_of(config, built))] == [2, 3, 6, 7]
    assert {name for name, _ in documents_of(config, built)} == {str(path)}


def test_texts_of_another_language_are_dropped(tmp_path: Path) -> None:
    other = LINES["documents"][3]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in (LINES["documents"][0], other, "Ok.", other)])
    built = build_stream(documents(tmp_path, {"min_language_score": 0.2}, language="en"))
    assert (built.kept, built.dropped) == (2, {"language en": 2})  # "Ok." is too short to judge


def test_planted_evaluation_text_is_dropped(corpora: Path, tmp_path: Path) -> None:
    lines = (corpora / "pairs.0.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    planted = {"en": PLANTED["en"].upper(), "zh": "别的译文"}
    lines.insert(17, json.dumps(planted))
    write_files(tmp_path, [lines])
    config = pairs(tmp_path, {"decontaminate": [str(DEV)]})
    expected = check_build(config)
    assert expected.dropped == {"evaluation text": 1}
    assert (str(tmp_path / "0.jsonl"), 18) not in expected.kept


def test_changed_evaluation_texts_make_another_stream(tmp_path: Path) -> None:
    texts = [f"The window number {n} is open and cannot be closed by any means." for n in range(20)]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    evaluation = tmp_path / "evaluation.txt"
    config = documents(tmp_path, {"decontaminate": [str(evaluation)]})
    found = []
    for text in (texts[0], texts[0], texts[1], f"{texts[1]}\n{texts[2]}"):
        evaluation.write_text(text + "\n")
        built = build_stream(config)
        found.append((built.new, built.dropped, sorted(line for _, line in documents_of(config, built))[:3]))
    assert found == [
        (True, {"evaluation text": 1}, [2, 3, 4]),
        (False, {"evaluation text": 1}, [2, 3, 4]),
        (True, {"evaluation text": 1}, [1, 3, 4]),
        (True, {"evaluation text": 2}, [1, 4, 5]),
    ]
    assert units(config)["clean"] == 3


# --- Provenance ---


@pytest.mark.parametrize("part_bytes", [3_000, 10**9])
@pytest.mark.parametrize("kind", ["documents", "pairs"])
def test_samples_of_a_cleaned_stream_name_their_lines(
    corpora: Path, tmp_path: Path, kind: str, part_bytes: int
) -> None:
    copy_corpora(corpora, tmp_path, "mono" if kind == "documents" else "pairs")
    for path in tmp_path.glob("*.jsonl"):
        lines = path.read_bytes().splitlines()
        path.write_bytes(b"\n".join([b"{broken", *lines[:7], b"", b"{}", *lines[7:]]) + b"\n")
    if kind == "documents":
        config = documents(tmp_path, {"document_rules": {"max_characters": 1500}, "dedup": ["text"]}, language="en")
    else:
        config = pairs(tmp_path, {"pair_rules": {"max_characters": 150}, "dedup": ["pair"], "near_dedup": 0.7})
    config = config.model_copy(update={"part_bytes": part_bytes})
    built = build_stream(config)
    assert len(built.dropped) > 1
    expected = expected_documents(clean_plainly(sorted(tmp_path.glob("*.jsonl")), config.streams["s"]).kept, config)
    store = open_store(config.store)
    reader = SampleReader.of_store(store, [built.stream], WIDTH, token_dtype(TOKENIZER.vocab_size))
    provenance = StreamProvenance(store, built.stream.remote, WIDTH)
    samples = reader.read(range(built.stream.samples)).tolist()
    places = set()
    for sample, tokens in enumerate(samples):
        at = 0
        for origin in provenance.origins(sample):
            place = (origin.path, origin.line)
            part = tokens[at : at + origin.num_tokens]
            first, last = origin.first_token, origin.first_token + origin.num_tokens
            assert any([*ids, TOKENIZER.eos_id][first:last] == part for ids in expected[place])
            at += origin.num_tokens
            places.add(place)
        assert at == WIDTH
    assert len(expected) - len(places) <= WIDTH  # those in the remainder alone
    for place in list(places)[::29]:
        assert provenance.samples_of(*place).size
    dropped = next((str(path), line) for path in tmp_path.glob("*.jsonl") for line in range(1, 999)
                   if (str(path), line) not in expected)  # fmt: skip
    assert not provenance.samples_of(*dropped).size


# --- Errors ---


def test_a_stream_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*({"text": f"a{n}"} for n in range(3)), {"text": "12345678910"}, {"text": ""}])
    with pytest.raises(InputError) as error:
        build(documents(tmp_path, {"document_rules": {"min_characters": 10}}))
    assert str(error.value) == (
        "stream 's': cleaning drops all 4 usable records (3 length, 1 few_letters), and 1 more is unusable. Look at "
        "them (dataengine inspect CONFIG --stream s) and loosen streams.s.clean."
    )


def test_too_many_unusable_records_fail_before_anything_is_compared(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "one"}, {"text": ""}])
    config = documents(tmp_path, {"dedup": ["text"]}).model_copy(update={"max_bad_fraction": 0.1, "part_bytes": 15})
    with pytest.raises(InputError, match=f"1 of 3 records are unusable .* The first: {path}, line 3: 'text' is empty"):
        build(config)
    assert units(config)["compare"] == 0


def test_an_evaluation_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    with pytest.raises(InputError) as error:
        build(documents(tmp_path, {"decontaminate": [str(tmp_path / "none.txt")]}))
    assert (
        str(error.value)
        == f"`decontaminate` of stream 's': no file matches {tmp_path / 'none.txt'}. Correct the paths."
    )


def test_a_language_that_cannot_be_identified_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    with pytest.raises(InputError, match=r"language 'xx' is not one of the \d+ that language identification knows"):
        build(documents(tmp_path, {"min_language_score": 0.5}, language="xx"))
    with pytest.raises(
        InputError, match=r"language 'cn' is not one of .* knows \(did you mean 'zh'\?\)\. Use the code"
    ):
        build(documents(tmp_path, {"min_language_score": 0.5}, language="cn"))


DOCUMENTS = "documents: [a.jsonl]"
PAIRS = "pairs: [a.jsonl]\n    directions: [en-zh]"


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (f"{DOCUMENTS}\n    clean: {{dedup: [pair]}}", "line 4: streams.s: clean.dedup: pair: expected some of text."),
        (f"{PAIRS}\n    clean: {{dedup: [text, en, id]}}", "line 4: streams.s: clean.dedup: text, id: expected some of "
         "pair, en, zh."),
        ("pairs: [a.jsonl]\n    sides: [zh]\n    clean: {pair_rules: {}}", "line 4: streams.s: cleaning compares two "
         "languages: add `keys` for both, such as {en: en, zh: zh}."),
        ("pairs: [a.jsonl]\n    directions: [en-zh, en-id]\n    clean: {pair_rules: {}}", "line 4: streams.s: cleaning "
         "compares two languages, and this stream has 3 (en, zh, id): make a stream for each pair, all of the "
         "same files."),
        (f"{DOCUMENTS}\n    clean:\n      near_dedup: 1.5", "line 7: streams.s.clean.near_dedup: expected a number "
         "less than 1, got 1.5."),
        (f"{DOCUMENTS}\n    clean:\n      min_language_score: 0", "line 7: streams.s.clean.min_language_score: "
         "expected a number greater than 0, got 0."),
        (f"{DOCUMENTS}\n    clean:\n      subsets:\n        drop: [x]", "line 7: key 'streams.s.clean.subsets.key' is "
         "missing. Add it."),
        (f"{PAIRS}\n    clean:\n      pair_rules:\n        max_length_ratio: 0.5", "line 9: "
         "streams.s.clean.pair_rules.max_length_ratio: expected a number greater than or equal to 1, got 0.5."),
        (f"{PAIRS}\n    scores: {{model: m, thresholds: {{en-id: 0.4}}}}", "line 4: streams.s: scores.thresholds: "
         "en-id is not a direction of en and zh."),
        (f"{PAIRS}\n    scores: {{model: m, thresholds: {{}}}}", "line 7: streams.s.scores.thresholds: dictionary "
         "should have at least 1 item after validation, not 0, got {}."),
    ],
)  # fmt: skip
def test_mistakes_in_the_config_are_named(tmp_path: Path, stream: str, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        f"name: x\ntokenizer: t.model\nstreams:\n  s:\n    {stream}\n"
        "stages: [{name: all, drain: true, mix: {s: 1}}]\n"
    )
    with pytest.raises(InputError) as error:
        load_config(path)
    assert str(error.value) == f"{path}, {expected}"


def test_a_mistyped_rule_is_named_with_those_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        f"name: x\ntokenizer: t.model\nstreams:\n  s:\n    {PAIRS}\n    clean:\n      pair_rules:\n"
        "        max_lenght_ratio: 2\nstages: [{name: all, drain: true, mix: {s: 1}}]\n"
    )
    with pytest.raises(InputError) as error:
        load_config(path)
    assert str(error.value).startswith(
        f"{path}, line 9: unknown key 'streams.s.clean.pair_rules.max_lenght_ratio' (did you mean 'max_length_ratio'?)."
        " Known keys here: min_characters, max_characters, drop_broken_characters, "
    )
