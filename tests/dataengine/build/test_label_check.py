from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest
from pyarrow import parquet

from dataengine.build import label_check, near_units
from dataengine.build.build import build
from dataengine.build.label_check import check_labels
from dataengine.build.prepare import prepare, stream_notes
from dataengine.cleaning.rules.settings import DocumentRules, PairRules
from dataengine.commands.estimate import describe_estimate
from dataengine.records.parts import plan_parts, whole_file
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.storage.open import open_store
from dataengine.text.language_codes import base_language
from tests.conftest import DEMO, ConfigMaker, read_texts, write_jsonl

ENGLISH = [texts[0] for _, texts in read_texts(DEMO / "mono.en.jsonl.zst", "text")]
EN_ZH = [texts for _, texts in read_texts(DEMO / "en-zh.train.jsonl.zst", "en", "zh")]
EN_ID = [texts for _, texts in read_texts(DEMO / "en-id.train.jsonl.zst", "en", "id")]
GERMAN = [
    "Die Datei konnte nicht geöffnet werden, weil sie von einem anderen Programm verwendet wird.",
    "Wählen Sie aus, welche Spalten in der Tabelle angezeigt werden sollen.",
    "Der Rechner muss neu gestartet werden, damit die Änderungen wirksam werden.",
    "Geben Sie den Namen des Benutzers ein, dem dieser Ordner gehört.",
    "Alle gelöschten Nachrichten werden nach dreißig Tagen endgültig entfernt.",
]
COLUMNS = {
    "en": ENGLISH[:300],
    "zh": [target for _, target in EN_ZH[:1000]],
    "id": [target for _, target in EN_ID[:1000]],
    "de": GERMAN * 20,
    "code": Path(near_units.__file__).read_text(encoding="utf-8").splitlines(),
}
CLOSE = {
    "en": ("en", "eng", "en-GB"),
    "zh": ("zh", "zh-TW", "zho", "yue"),
    "id": ("id", "ms", "ind", "jv"),
    "de": ("de",),
}


def notes_on_documents(path: Path, *languages: str) -> list[str]:
    return check_labels("mono", [whole_file(path)], RecordFormat(("text",)), languages, None)


def notes_on_pairs(part: SourcePart, languages: tuple[str, str]) -> list[str]:
    form = RecordFormat(languages, languages, columns=languages, one_line=True)
    return check_labels("both", [part], form, languages, None)


def write_documents(path: Path, texts: list[str]) -> Path:
    return write_jsonl(path, [{"text": text} for text in texts])


@pytest.mark.parametrize("language", CLOSE)
def test_texts_in_their_language_or_a_close_one_give_no_note(language: str, tmp_path: Path) -> None:
    for code in CLOSE[language]:
        for size in (5, 20, 60, 300):
            texts = random.Random(size).choices(COLUMNS[language], k=size)
            assert notes_on_documents(write_documents(tmp_path / "docs.jsonl", texts), code) == []


@pytest.mark.parametrize("label", ["en", "zh", "id", "de", "deu", "fr"])
@pytest.mark.parametrize("language", ["en", "zh", "id", "de"])
def test_another_language_is_always_found(language: str, label: str, tmp_path: Path) -> None:
    if base_language(label) == language:
        return
    for size in (40, 100):
        texts = random.Random(size).choices(COLUMNS[language], k=size)
        (note,) = notes_on_documents(write_documents(tmp_path / "docs.jsonl", texts), label)
        assert f"should be '{label}', but" in note
        assert f"look like '{language}'" in note


def test_a_note_says_where_what_and_what_to_do(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "docs.jsonl", ["Der \x1b[31mrote\nText " + text for text in GERMAN] * 4)
    assert notes_on_documents(path, "en") == [
        f"stream 'mono': {path} should be 'en', but 6 of 6 excerpts look like 'de' (line 1: "
        '"Der \\x1b[31mrote Text Die Datei konnte nicht geöffnet werden, w"; line 2: '
        '"Der \\x1b[31mrote Text Wählen Sie aus, welche Spalten in der Tab"). '
        "If so, correct streams.mono.language or documents"
    ]


def write_pairs_jsonl(folder: Path, pairs: list[tuple[str, ...]], keys: tuple[str, str]) -> SourcePart:
    return whole_file(write_jsonl(folder / "c.jsonl", [dict(zip(keys, pair, strict=True)) for pair in pairs]))


def write_pairs_tsv(folder: Path, pairs: list[tuple[str, ...]], keys: tuple[str, str]) -> SourcePart:
    (folder / "c.tsv").write_text("".join("\t".join(pair) + "\n" for pair in pairs), encoding="utf-8")
    return whole_file(folder / "c.tsv")


def write_pairs_parquet(folder: Path, pairs: list[tuple[str, ...]], keys: tuple[str, str]) -> SourcePart:
    columns = zip(*pairs, strict=True)
    parquet.write_table(
        pyarrow.table({key: list(column) for key, column in zip(keys, columns, strict=True)}), folder / "c.parquet"
    )
    return whole_file(folder / "c.parquet")


def write_pairs_tmx(folder: Path, pairs: list[tuple[str, ...]], keys: tuple[str, str]) -> SourcePart:
    from xml.sax.saxutils import escape

    units = "".join(
        "<tu>" + "".join(f'<tuv xml:lang="{key}"><seg>{escape(text)}</seg></tuv>' for key, text in
                         zip(keys, pair, strict=True)) + "</tu>" for pair in pairs
    )  # fmt: skip
    (folder / "c.tmx").write_text(f"<tmx><body>{units}</body></tmx>", encoding="utf-8")
    return whole_file(folder / "c.tmx")


def write_pairs_moses(folder: Path, pairs: list[tuple[str, ...]], keys: tuple[str, str]) -> SourcePart:
    for key, column in zip(keys, zip(*pairs, strict=True), strict=True):
        (folder / f"c.{key}").write_text("".join(f"{text}\n" for text in column), encoding="utf-8")
    paths = {key: str(folder / f"c.{key}") for key in keys}
    parts, _ = plan_parts([paths], "both", RecordFormat(keys), format=None, part_bytes=10**9, hashes={}, threads=1)
    return parts[0]


Writer = Callable[[Path, list[tuple[str, ...]], tuple[str, str]], SourcePart]


@pytest.mark.parametrize(
    "write", [write_pairs_jsonl, write_pairs_tsv, write_pairs_parquet, write_pairs_tmx, write_pairs_moses]
)
@pytest.mark.parametrize("size", [30, 1000])
@pytest.mark.parametrize("languages", [("en", "zh"), ("en", "id")])
def test_exchanged_sides_are_found_in_every_format(
    write: Writer, size: int, languages: tuple[str, str], tmp_path: Path
) -> None:
    pairs = [pair for pair in (EN_ZH if "zh" in languages else EN_ID) if not "".join(pair).count("\t")][-size:]
    source, target = languages
    assert notes_on_pairs(write(tmp_path, pairs, languages), languages) == []
    exchanged = [pair[::-1] for pair in pairs]
    (note,) = notes_on_pairs(write(tmp_path, exchanged, languages), languages)
    assert f"look exchanged: {source} holds {target} and {target} holds {source} (" in note
    advice = "exchange the two paths" if write is write_pairs_moses else "streams.both.keys: {"
    assert advice in note


def test_the_advice_for_exchanged_sides_helps(tmp_path: Path) -> None:
    part = write_pairs_jsonl(tmp_path, EN_ZH[:100], ("zh", "en"))
    (note,) = notes_on_pairs(part, ("en", "zh"))
    assert note.endswith("If so, set streams.both.keys: {en: zh, zh: en}")
    form = RecordFormat(("zh", "en"), ("en", "zh"), one_line=True)
    assert check_labels("both", [part], form, ("en", "zh"), None) == []


def test_one_wrong_side_is_named_alone(tmp_path: Path) -> None:
    pairs = [(source, target) for (source, _), (_, target) in zip(EN_ZH[:500], EN_ID[:500], strict=True)]
    (note,) = notes_on_pairs(write_pairs_jsonl(tmp_path, pairs, ("en", "zh")), ("en", "zh"))
    assert f"stream 'both': side zh of {tmp_path}/c.jsonl should be 'zh', but" in note
    assert "look like 'id'" in note
    assert note.endswith("If so, correct streams.both.pairs or keys")


def plan(pattern: str, part_bytes: int = 10**9) -> list[SourcePart]:
    parts, _ = plan_parts(
        [pattern], "mono", RecordFormat(("text",)), format=None, part_bytes=part_bytes, hashes={}, threads=1
    )
    return parts


def test_the_wrong_one_of_some_files_is_found(tmp_path: Path) -> None:
    for k in range(8):
        write_documents(tmp_path / f"{k}.jsonl", COLUMNS["de" if k == 5 else "en"][:100])
    (note,) = check_labels("mono", plan(f"{tmp_path}/*.jsonl"), RecordFormat(("text",)), ("en",), None)
    assert f"{tmp_path}/5.jsonl should be 'en'" in note


def test_if_a_file_is_wrong_the_others_are_looked_at_as_well(tmp_path: Path) -> None:
    wrong = [0, 1, *range(3, 40, 4)]
    for k in range(40):
        write_documents(tmp_path / f"{k:02}.jsonl", COLUMNS["de" if k in wrong else "en"][:40])
    notes = check_labels("mono", plan(f"{tmp_path}/*.jsonl"), RecordFormat(("text",)), ("en",), None)
    assert len(notes) == 9
    names = {f"{k:02}.jsonl" for k in range(40) if any(f"/{k:02}.jsonl" in note for note in notes)}
    assert names == {f"{k:02}.jsonl" for k in wrong}
    assert notes[-1].startswith(f"stream 'mono': {len(wrong) - 8} more files look wrong: {tmp_path}/")


def test_a_note_says_how_many_files_were_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_check, "_MORE_FILES", 4)
    for k in range(40):
        write_documents(tmp_path / f"{k:02}.jsonl", COLUMNS["en" if k else "de"][:40])
    notes = check_labels("mono", plan(f"{tmp_path}/*.jsonl"), RecordFormat(("text",)), ("en",), None)
    assert notes[1:] == ["stream 'mono': checked 20 of 40 files; others may be wrong, too"]
    write_documents(tmp_path / "00.jsonl", COLUMNS["en"][:40])
    assert check_labels("mono", plan(f"{tmp_path}/*.jsonl"), RecordFormat(("text",)), ("en",), None) == []


def test_the_advice_for_one_file_with_exchanged_sides_leaves_the_others_alone(tmp_path: Path) -> None:
    for k in range(3):
        keys = ("en", "zh") if k else ("zh", "en")
        write_jsonl(tmp_path / f"{k}.jsonl", [dict(zip(keys, pair, strict=True)) for pair in EN_ZH[:60]])
    form = RecordFormat(("en", "zh"), ("en", "zh"), one_line=True)
    parts, _ = plan_parts([f"{tmp_path}/*.jsonl"], "both", form, format=None, part_bytes=10**9, hashes={}, threads=1)
    (note,) = check_labels("both", parts, form, ("en", "zh"), None)
    assert f"{tmp_path}/0.jsonl look exchanged" in note
    assert note.endswith("If so, give this file a stream of its own with keys: {en: zh, zh: en}")


def test_each_of_some_folders_is_looked_at(tmp_path: Path) -> None:
    for folder, files in (("many", 60), ("one", 1), ("some", 20)):
        (tmp_path / folder).mkdir()
        for k in range(files):
            write_documents(tmp_path / folder / f"{k}.jsonl", COLUMNS["de" if folder == "one" else "en"][:40])
    (note,) = check_labels("mono", plan(f"{tmp_path}/*/*.jsonl"), RecordFormat(("text",)), ("en",), None)
    assert f"{tmp_path}/one/0.jsonl should be 'en'" in note


def test_a_file_with_an_unusual_beginning_is_checked_in_several_places(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "docs.jsonl", COLUMNS["en"][:10] + COLUMNS["de"] * 20)
    parts = plan(str(path), 20_000)
    assert len(parts) > 5
    (note,) = check_labels("mono", parts, RecordFormat(("text",)), ("en",), None)
    assert "look like 'de'" in note


@pytest.mark.parametrize("language", ["en", "", "ha"])
def test_code_and_what_the_model_does_not_know_give_no_note(language: str, tmp_path: Path) -> None:
    assert notes_on_documents(write_documents(tmp_path / "code.jsonl", COLUMNS["code"]), language) == []
    mixed = [f"{code} {text}" for code, text in zip(COLUMNS["code"], COLUMNS["en"], strict=False)]
    assert notes_on_documents(write_documents(tmp_path / "mixed.jsonl", mixed), language) == []


def test_a_language_that_only_its_script_identifies_is_checked(tmp_path: Path) -> None:
    (note,) = notes_on_documents(write_documents(tmp_path / "docs.jsonl", COLUMNS["zh"]), "ha")  # Hausa, in Latin
    assert "should be 'ha'" in note
    symbols = ["□□□ 12.5 %, ████ 37"] * 100  # no letters
    assert notes_on_documents(write_documents(tmp_path / "symbols.jsonl", symbols), "zh") == []


def test_plain_text_is_checked_by_lines_for_any_kind_of_document(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(GERMAN * 10), encoding="utf-8")
    for split in ("line", "paragraph", "file"):
        form = RecordFormat(("text",), split=split)
        (note,) = check_labels("mono", [whole_file(path)], form, ("en",), None)
        assert "look like 'de'" in note


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"not JSON\n" * 50, b'{"other": 1}\n' * 5000])
def test_what_cannot_be_read_gives_no_note(content: bytes, tmp_path: Path) -> None:
    for name in ("docs.jsonl", "docs.jsonl.zst", "docs.jsonl.gz"):
        (tmp_path / name).write_bytes(content)
        assert notes_on_documents(tmp_path / name, "en") == []
    assert check_labels("mono", [SourcePart((str(tmp_path / "gone.jsonl"),), ("",), "jsonl", 0, 1, 1, "")],
                        RecordFormat(("text",)), ("en",), None) == []  # fmt: skip


def test_a_code_that_cannot_be_checked_is_named(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "docs.jsonl", COLUMNS["zh"])
    unknown = "is not a language code that can be checked, so its texts are not checked"
    assert notes_on_documents(path, "chinese") == [f"stream 'mono': 'chinese' {unknown}. Chinese is zh"]
    assert notes_on_documents(path, "cn") == [f"stream 'mono': 'cn' {unknown}. Chinese is zh"]
    assert notes_on_documents(path, "xx") == [f"stream 'mono': 'xx' {unknown}"]
    form = RecordFormat(("en", "ch"), ("en", "ch"))
    assert check_labels("both", [], form, ("en", "ch"), None, {"en": "English", "ch": "Chinese"}) == [
        "stream 'both': 'ch' is not a language code that can be checked, so side ch of its pairs is not checked. "
        "Chinese is zh"
    ]


def test_a_rule_that_does_not_apply_to_a_language_is_named() -> None:
    documents, pairs = RecordFormat(("text",)), RecordFormat(("en", "xx"), ("en", "xx"))
    rules = DocumentRules().model_dump(mode="json")
    words = "the scripts of language '{}' are not known, so min_script_share, min_word_length and max_word_length "
    assert check_labels("mono", [], documents, ("xyz",), rules)[1:] == [
        f"stream 'mono': {words.format('xyz')}do not apply to it. Name its script if they should, as in language: "
        "xyz-Latn"
    ]
    for code in ("chinese", "cn", "klingon"):
        assert check_labels("mono", [], documents, (code,), rules)[1:] == [
            f"stream 'mono': {words.format(code)}do not apply to it"
        ]
    assert check_labels("both", [], pairs, ("en", "xx"), PairRules().model_dump(mode="json"))[1:] == [
        "stream 'both': the scripts of language 'xx' are not known, so min_script_share does not apply to it"
    ]
    for language in ("en", "zho", "zh-TW", "xyz-Latn", ""):
        assert check_labels("mono", [], documents, (language,), rules) == []
    off = DocumentRules(min_script_share=None, min_word_length=None, max_word_length=None).model_dump(mode="json")
    assert len(check_labels("mono", [], documents, ("xyz",), off)) == 1


def german_as_english(folder: Path, **changes: Any) -> dict[str, Any]:
    path = write_documents(folder / "docs.jsonl", [f"{k}: {text}" for k in range(40) for text in GERMAN])
    return {
        "streams": {"mono": {"documents": [str(path)], **changes}},
        "stages": [{"name": "all", "steps": 2, "mix": {"mono": 1}}],
    }


def test_a_build_prints_a_note_once_and_makes_the_same_bytes(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = f"note: stream 'mono': {tmp_path}/docs.jsonl should be 'en', but"
    first = build(make_config(**german_as_english(tmp_path, language="en")))
    assert capsys.readouterr().err.count(note) == 1
    again = build(make_config(**german_as_english(tmp_path, language="en")))
    assert not again.new
    assert "note" not in capsys.readouterr().err
    unlabelled = build(make_config(store=str(tmp_path / "other"), **german_as_english(tmp_path)))
    assert "note" not in capsys.readouterr().err
    assert first.manifest.content == again.manifest.content == unlabelled.manifest.content


def test_a_dry_run_shows_the_note_as_well(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config(**german_as_english(tmp_path, language="en"))
    words = describe_estimate(prepare(config, open_store(config.store)), workers=1)
    assert f"note: stream 'mono': {tmp_path}/docs.jsonl should be 'en', but" in words


def test_a_reused_stream_that_is_labelled_otherwise_is_looked_at(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = f"stream 'mono': {tmp_path}/docs.jsonl should be 'en', but"
    report = Path(make_config().store) / "experiments" / "small" / "build_report.json"
    build(make_config(**german_as_english(tmp_path, language="de")))
    assert orjson.loads(report.read_bytes())["streams"][0]["notes"] == []
    assert "note" not in capsys.readouterr().err
    config = make_config(**german_as_english(tmp_path, language="en"))
    assert not build(config).new
    assert capsys.readouterr().err.count(note) == 1
    (said,) = orjson.loads(report.read_bytes())["streams"][0]["notes"]
    assert said.startswith(note)
    build(config)
    assert "note" not in capsys.readouterr().err
    assert stream_notes(prepare(config, open_store(config.store)), ["mono"]) == [said]
