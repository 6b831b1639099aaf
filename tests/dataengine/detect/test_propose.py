"""What is detected in files whose content is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dataengine.detect.streams import propose
from dataengine.errors import InputError
from tests.dataengine.detect.corpora import (
    arrow_bytes,
    csv_bytes,
    jsonl,
    parquet_bytes,
    rows,
    text,
    texts,
    tmx,
    tsv,
    write,
)

EN, ZH_EN, ZH = texts()["en"], texts()["en-zh.en"], texts()["en-zh.zh"]
ID_EN, ID = texts()["en-id.en"], texts()["en-id.id"]
N = len(ZH)
NUMBERS = [str(k) for k in range(N)]
URLS = [f"https://example.org/a/very/long/path/of/page-{k}.html" for k in range(N)]
IDS = [f"{k:032x}" for k in range(N)]
UI = ("Open", "Save", "Close", "Help")  # too short for the identifier


class Case(NamedTuple):
    name: str
    files: dict[str, bytes]
    format: str
    kind: str
    keys: tuple[str, ...]
    languages: tuple[str | None, ...]


def docs(name: str, file: str, content: bytes, format: str, key: str, language: str | None) -> Case:
    return Case(name, {file: content}, format, "documents", (key,), (language,))


def pairs(name: str, file: str, content: bytes, format: str, keys: tuple[str, str], languages: tuple[str, str]) -> Case:
    return Case(name, {file: content}, format, "pairs", keys, languages)


def blank(lines: Sequence[str], step: int) -> list[str]:
    """Lines of which every `step`th is blank."""
    return ["" if k % step == 0 else line for k, line in enumerate(lines)]


# fmt: off
CASES = [
    docs("plain jsonl", "mono.en.jsonl.zst", jsonl(rows(["text"], EN)), "jsonl", "text", "en"),
    docs("language by text alone", "a.jsonl", jsonl(rows(["text"], ID)), "jsonl", "text", "id"),
    docs("usual word as name", "this-is-my-data.jsonl", jsonl(rows(["text"], EN)), "jsonl", "text", "en"),
    docs("id in a name is an identifier", "user_id.jsonl", jsonl(rows(["text"], EN)), "jsonl", "text", "en"),
    docs("id in a name is Indonesian", "mono.id.jsonl", jsonl(rows(["text"], ID)), "jsonl", "text", "id"),
    docs("id as a key", "x.jsonl", jsonl(rows(["id", "text"], IDS, EN)), "jsonl", "text", "en"),
    docs("url longer than the text", "x.jsonl", jsonl(rows(["url", "body"], URLS, ZH)), "jsonl", "body", "zh"),
    docs("title and content", "x.jsonl", jsonl(rows(["title", "content"], [t[:30] for t in EN], EN)), "jsonl",
        "content", "en"),
    docs("nested key", "x.jsonl", jsonl(rows(["meta.url", "data.text"], URLS, EN)), "jsonl", "data.text", "en"),
    docs("odd key", "x.jsonl", jsonl(rows(["n", "inhalt"], NUMBERS, EN)), "jsonl", "inhalt", "en"),
    docs("jsonl without a suffix", "dump", jsonl(rows(["text"], EN)), "jsonl", "text", "en"),
    docs("jsonl named .txt", "dump.txt", jsonl(rows(["text"], EN)), "jsonl", "text", "en"),
    docs("lines of text", "news.txt", text(EN), "text", "text", "en"),
    docs("lines of Chinese", "a.txt.gz", text(ZH), "text", "text", "zh"),
    docs("paragraphs", "book.txt", text([line for t in EN for line in (t[:80], t[80:160] or "end", "")]),
        "text", "text", "en"),
    docs("text named by a code", "wiki.zh", text(ZH), "text", "text", "zh"),
    docs("folder named by a code", "id/wiki.txt", text(ID), "text", "text", "id"),
    docs("parquet", "a.parquet", parquet_bytes(rows(["id", "text"], IDS, EN)), "parquet", "text", "en"),
    docs("parquet without a suffix", "a", parquet_bytes(rows(["text"], EN)), "parquet", "text", "en"),
    docs("parquet, nested", "a.parquet", parquet_bytes(rows(["d.body", "d.url"], ZH, URLS)), "parquet", "d.body", "zh"),
    docs("arrow", "data-00000-of-00001.arrow", arrow_bytes(rows(["id", "text"], IDS, EN)), "arrow", "text", "en"),
    docs("arrow without a suffix", "a", arrow_bytes(rows(["m.body"], ZH)), "arrow", "m.body", "zh"),
    docs("tsv with a heading", "a.tsv", tsv([NUMBERS, EN], ["id", "text"]), "tsv", "text", "en"),
    docs("tsv without a heading", "a.tsv", tsv([NUMBERS, EN]), "tsv", "column2", "en"),
    docs("csv with a heading", "a.csv", csv_bytes([NUMBERS, EN], ["id", "text"]), "csv", "text", "en"),
    docs("csv of one column", "a.csv.gz", csv_bytes([ZH], ["text"]), "csv", "text", "zh"),
    docs("csv of several lines", "a.csv", csv_bytes([NUMBERS, [t.replace(" ", "\n\n") for t in EN]], ["id", "body"]),
        "csv", "body", "en"),
    docs("tsv named .csv", "a.csv", tsv([NUMBERS, EN], ["id", "text"]), "tsv", "text", "en"),
    docs("tmx of one language", "a.tmx", tmx({"zh-CN": ZH}), "tmx", "zh-cn", "zh"),
    docs("a name that lies", "mono.fr.jsonl", jsonl(rows(["text"], EN)), "jsonl", "text", "fr"),
    docs("mixed languages", "mix.txt", text([t for row in zip(ZH, ID, EN, strict=True) for t in row]), "text",
        "text", None),
    pairs("codes as keys", "train.jsonl", jsonl(rows(["en", "zh"], ZH_EN, ZH)), "jsonl", ("en", "zh"), ("en", "zh")),
    pairs("id is a language", "train.jsonl.xz", jsonl(rows(["en", "id"], ID_EN, ID)), "jsonl", ("en", "id"),
        ("en", "id")),
    pairs(
        "id is a number", "a.jsonl", jsonl(rows(["id", "en", "zh"], IDS, ZH_EN, ZH)), "jsonl", ("en", "zh"),
        ("en", "zh")
    ),
    pairs(
        "nested codes", "a.json", jsonl(rows(["translation.en", "translation.zh"], ZH_EN, ZH)), "jsonl",
        ("translation.en", "translation.zh"), ("en", "zh"),
    ),
    pairs("Flores keys", "a.jsonl", jsonl(rows(["sentence_eng_Latn", "sentence_zho_Hans"], ZH_EN, ZH)), "jsonl",
        ("sentence_eng_Latn", "sentence_zho_Hans"), ("en", "zh")),
    pairs("English names", "a.jsonl", jsonl(rows(["English", "Chinese"], ZH_EN, ZH)), "jsonl", ("English",
        "Chinese"), ("en", "zh")),
    pairs("src and tgt", "a.jsonl", jsonl(rows(["src", "tgt"], ID_EN, ID)), "jsonl", ("src", "tgt"), ("en", "id")),
    pairs("src and tgt, turned", "a.en-zh.jsonl", jsonl(rows(["src", "tgt"], ZH, ZH_EN)), "jsonl", ("src",
        "tgt"), ("zh", "en")),
    pairs("odd keys", "a.jsonl", jsonl(rows(["q", "w"], ZH, ZH_EN)), "jsonl", ("q", "w"), ("zh", "en")),
    pairs("swapped keys", "a.jsonl", jsonl(rows(["en", "zh"], ZH, ZH_EN)), "jsonl", ("en", "zh"), ("en", "zh")),
    pairs("tsv of codes", "a.tsv", tsv([ZH_EN, ZH], ["en", "zh"]), "tsv", ("en", "zh"), ("en", "zh")),
    pairs("tsv of names", "a.tsv.bz2", tsv([ZH_EN, ZH], ["English", "Chinese"]), "tsv", ("English", "Chinese"),
        ("en", "zh")),
    pairs("bare tsv", "a.tsv", tsv([ID, ID_EN]), "tsv", ("column1", "column2"), ("id", "en")),
    pairs("bare tsv named .txt", "en-zh.txt", tsv([ZH_EN, ZH]), "tsv", ("column1", "column2"), ("en", "zh")),
    pairs("tsv with scores", "a.tsv", tsv([NUMBERS, ZH_EN, ZH]), "tsv", ("column2", "column3"), ("en", "zh")),
    pairs("csv of codes", "a.csv.zst", csv_bytes([ZH_EN, ZH], ["en", "zh"]), "csv", ("en", "zh"), ("en", "zh")),
    pairs("bare csv", "a.csv", csv_bytes([NUMBERS, ID, ID_EN]), "csv", ("column2", "column3"), ("id", "en")),
    pairs("tmx of varieties", "a.tmx.gz", tmx({"en-US": ZH_EN, "zh-CN": ZH}), "tmx", ("en-us", "zh-cn"), ("en", "zh")),
    pairs("tmx of three letters", "a.tmx", tmx({"eng": ZH_EN, "zho": ZH}), "tmx", ("eng", "zho"), ("en", "zh")),
    pairs("parquet of struct", "a.parquet", parquet_bytes(rows(["translation.en", "translation.id"], ID_EN,
        ID)), "parquet",
        ("translation.en", "translation.id"), ("en", "id")),
    pairs("arrow of datasets", "a.arrow", arrow_bytes(rows(["translation.en", "translation.zh"], ZH_EN, ZH)), "arrow",
        ("translation.en", "translation.zh"), ("en", "zh")),
    Case("Moses", {"c.en": text(ZH_EN), "c.zh": text(ZH)}, "moses", "pairs", ("en", "zh"), ("en", "zh")),
    Case("OPUS", {"B.en-id.en.gz": text(ID_EN), "B.en-id.id.gz": text(ID)}, "moses", "pairs", ("en", "id"),
        ("en", "id")),
    Case("twins .txt", {"t.en.txt": text(ZH_EN), "t.zh.txt": text(ZH)}, "moses", "pairs", ("en", "zh"), ("en", "zh")),
    Case("twin folders", {"en/a.txt": text(ID_EN), "id/a.txt": text(ID)}, "moses", "pairs", ("en", "id"), ("en", "id")),
    Case("Moses with blank lines", {"c.en": text(blank(ZH_EN, 7)), "c.zh": text(blank(ZH, 9))}, "moses", "pairs",
        ("en", "zh"), ("en", "zh")),
    docs("short texts", "buttons.txt", text([UI[k % 4] for k in range(40)]), "text", "text", None),
]
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_a_file_holds_is_found(case: Case, tmp_path: Path) -> None:
    found = propose([str(write(tmp_path / "d", case.files))])
    assert not found.unused
    (stream,) = found.streams
    (source,) = stream.sources
    contents = stream.contents
    assert (source.format, contents.kind, contents.keys, contents.languages) == case[2:]


def found_in(folder: Path, files: dict[str, bytes]) -> dict[str, tuple[str | None, ...]]:
    return {stream.name: stream.contents.languages for stream in propose([str(write(folder / "d", files))]).streams}


def test_twins_by_name_that_are_no_translations_are_documents(tmp_path: Path) -> None:
    files = {"wiki.en.txt": text(EN), "wiki.zh.txt": text(ZH)}
    assert found_in(tmp_path, files) == {"mono-en": ("en",), "mono-zh": ("zh",)}


def test_twins_of_almost_as_many_lines_are_named(tmp_path: Path) -> None:
    found = propose([str(write(tmp_path / "d", {"c.en": text(ZH_EN), "c.zh": text(ZH[:-1])}))])
    assert [stream.name for stream in found.streams] == ["mono-en", "mono-zh"]
    ((paths, why),) = found.unused
    assert paths == f"{tmp_path}/d/c.en, {tmp_path}/d/c.zh as pairs"
    assert why == f"they have {N:,}, {N - 1:,} lines; a translation has as many"


def test_three_languages_make_a_stream_for_each_pair_with_english(tmp_path: Path) -> None:
    files = {"t.jsonl": jsonl(rows(["zh", "en", "id"], ZH, ZH_EN, ID))}
    assert found_in(tmp_path, files) == {"en-zh": ("en", "zh"), "en-id": ("en", "id")}


@pytest.mark.parametrize("write_rows", [jsonl, parquet_bytes, arrow_bytes])
def test_lists_of_sentences_are_pairs_and_no_documents(
    tmp_path: Path, write_rows: Callable[[Sequence[Any]], bytes]
) -> None:
    lists = [[[line, line[:40]] for line in column] for column in (ZH_EN, ZH)]
    keys = ["translation.en", "translation.zh"]
    files = {"p": write_rows(rows(keys, *lists)), "m": write_rows(rows(["tags", "text"], lists[0], EN))}
    pairs, documents = sorted(propose([str(write(tmp_path / "d", files))]).streams, key=lambda one: not one.is_pairs)
    assert (pairs.contents.keys, pairs.contents.languages, pairs.contents.lists) == (tuple(keys), ("en", "zh"), True)
    assert (pairs.unusable, documents.contents.keys, documents.contents.lists) == (0, ("text",), False)


def test_records_of_three_languages_that_lack_some_are_left_out_not_unusable(tmp_path: Path) -> None:
    made = rows(["zh", "en", "id"], ZH, ZH_EN, ID)
    for number, row in enumerate(made):
        if number % 4 < 3:
            row[("zh", "en", "id")[number % 4]] = None
    found = propose([str(write(tmp_path / "d", {"t.parquet": parquet_bytes(made)}))]).streams
    assert [(stream.contents.languages, stream.skips, stream.unusable) for stream in found] == [
        (("en", "id"), True, 0), (("en", "zh"), True, 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mono.fr.jsonl", jsonl(rows(["text"], EN)), "the name says fr, but the text looks like en"),
        ("t.jsonl", jsonl(rows(["en", "zh"], ZH, ZH_EN)), "key en says en, but the text looks like zh"),
        ("a.jsonl", jsonl(rows(["text"], EN)), "en is a guess from"),
        ("a.jsonl", jsonl(rows(["x", "y"], ID, ID_EN)), "id of key x is a guess by its text"),
    ],
    ids=["name", "keys", "documents", "pairs"],
)
def test_a_conflict_or_a_guess_is_noted(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (stream,) = propose([str(write(tmp_path, {name: content}) / name)]).streams
    assert any(note.startswith(said) for note in stream.notes), stream.notes


def test_sets_are_for_evaluation_by_direction_and_not_for_training(tmp_path: Path) -> None:
    train, small = jsonl(rows(["en", "zh"], ZH_EN, ZH)), jsonl(rows(["en", "zh"], ZH_EN[:9], ZH[:9]))
    files = {
        "train.jsonl": train,
        "en-zh.dev.jsonl": small,
        "newstest.en": text(ZH_EN[:9]),
        "newstest.zh": text(ZH[:9]),
    }
    folder = write(tmp_path / "d", files)
    found = propose([str(folder)])
    assert [source.path for stream in found.streams for source in stream.sources] == [f"{folder}/train.jsonl"]
    test = {"en": f"{folder}/newstest.en", "zh": f"{folder}/newstest.zh"}
    dev = f"{folder}/en-zh.dev.jsonl"
    assert found.sets == {"dev": {"en-zh": dev, "zh-en": dev}, "test": {"en-zh": test, "zh-en": test}}


def test_a_set_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    files = {
        "train.jsonl": jsonl(rows(["en", "zh"], ZH_EN, ZH)),
        "dev.jsonl": jsonl(rows(["src", "tgt"], ZH_EN[:20], ZH[:20])),
        "valid.txt": text(EN[:20]),
    }
    reasons = dict(propose([str(write(tmp_path / "d", files))]).unused)
    assert "no key '" in reasons[f"{tmp_path}/d/dev.jsonl"]
    assert (
        reasons[f"{tmp_path}/d/valid.txt"]
        == "named like an evaluation set, and holds documents; `evaluate` takes pairs"
    )


def test_each_file_that_cannot_be_used_is_named_with_its_reason(tmp_path: Path) -> None:
    files = {
        "a.jsonl": jsonl(rows(["text"], EN)),
        "array.json": b'[{"text": "one"}]\n',
        "bad.gz": b"",
        "b.zip": b"PK\x03\x04 etc",
        "c.csv": b"a;b\n1;2\n",
        "empty.txt": b"",
        "image.png": b"\x89PNG",
        "long.jsonl": jsonl([{"text": "long " * (1 << 18)}]),
        "numbers.jsonl": jsonl([{"n": k} for k in range(9)]),
        "page.txt": b"<!DOCTYPE html><p>one",
        "README": b"read me",
        "wide.txt": "one two".encode("utf-16"),
    }
    folder = write(tmp_path / "d", files)
    (folder / "\udcff.txt").write_bytes(text(EN))
    (folder / "bad.gz").write_bytes(b"\x1f\x8b\x08 nothing")
    reasons = {Path(path).name: why for path, why in propose([str(folder)]).unused}
    expected = {
        "array.json": "is JSON with one array",
        "bad.gz": "broken archive",
        "b.zip": ".zip is not a supported format",
        "c.csv": "is not CSV: no field ends at a comma",
        "empty.txt": "is empty",
        "image.png": ".png is not a supported format",
        "numbers.jsonl": "no key holds text",
        "page.txt": "is XML, SGML or HTML",
        "README": "not data by its name",
        "wide.txt": "is UTF-16",
        "long.jsonl": "line 1 of ",
        r"\udcff.txt": "its name is not UTF-8",
    }
    assert reasons.keys() == expected.keys()
    assert {name: said for name, said in expected.items() if said not in reasons[name]} == {}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"dev.jsonl": jsonl(rows(["en", "zh"], ZH_EN[:9], ZH[:9]))}, r"dev\.jsonl is named like an evaluation set\."),
        ({"n.jsonl": jsonl([{"n": 1}])}, r"no documents or pairs to train on in .*n\.jsonl: no key holds text"),
    ],
    ids=["a set", "numbers"],
)
def test_nothing_to_train_on_is_an_error(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        propose([str(write(tmp_path / "d", files))])
    with pytest.raises(InputError, match=r"no file .*/none\. Give files, folders"):
        propose([str(tmp_path / "none")])


def test_files_alike_are_one_stream_and_one_glob_where_it_names_no_other(tmp_path: Path) -> None:
    shards = {f"web-{k:02}.jsonl": jsonl(rows(["text"], EN)) for k in range(3)}
    folder = write(tmp_path / "d", shards)
    (stream,) = propose([str(folder)]).streams
    assert stream.paths() == [f"{folder}/web-*.jsonl"]
    (stream,) = propose([f"{folder}/web-00.jsonl", f"{folder}/web-02.jsonl"]).streams
    assert stream.paths() == [f"{folder}/web-00.jsonl", f"{folder}/web-02.jsonl"]
