"""Files in several languages: a stream for each pair, of the records that have both texts. And pairs of documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import Table, parquet

from dataengine.build.build import build
from dataengine.build.prepare import record_format
from dataengine.build.units import identity_of
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.config.streams import PairStream
from dataengine.errors import InputError
from tests.conftest import write_jsonl
from tests.dataengine.build.test_clean import TOKENIZER, config_of, documents_of
from tests.dataengine.detect.corpora import csv_bytes, texts, tsv

CODES = ("en", "zh", "id")
PAIRS = (("en", "zh"), ("en", "id"), ("zh", "id"))
NUMBER = 120


def rows() -> list[dict[str, str | None]]:
    """Records in three languages. Some lack one, and one has a Chinese side that is English."""
    columns = [texts()["en-zh.en"][:NUMBER], texts()["en-zh.zh"][:NUMBER], texts()["en-id.id"][:NUMBER]]
    made: list[dict[str, str | None]] = [dict(zip(CODES, row, strict=True)) for row in zip(*columns, strict=True)]
    for number, row in enumerate(made):
        if number % 4:
            row[CODES[number % 4 - 1]] = None
    made[0]["zh"] = "This side is in English and not in Chinese."
    return made


def write(folder: Path, format: str) -> Path:
    path = folder / f"multi.{format}"
    if format == "parquet":
        parquet.write_table(Table.from_pylist(rows()), path)
    elif format == "jsonl":
        write_jsonl(path, [{code: text for code, text in row.items() if text is not None} for row in rows()])
    else:
        columns = [[row[code] or "" for row in rows()] for code in CODES]
        path.write_bytes((csv_bytes if format == "csv" else tsv)(columns, CODES))
    return path


def streams_of(path: Path) -> dict[str, Any]:
    """What docs/guides/prepare-data.md shows."""
    shown: dict[str, Any] = yaml.safe_load(
        f"""
        en-zh: &multi
          pairs: [{path}]
          missing: skip
          directions: [en-zh, zh-en]
          clean: {{pair_rules: {{max_length_ratio: null}}, dedup: [pair]}}
        en-id: {{<<: *multi, directions: [en-id, id-en]}}
        zh-id: {{<<: *multi, directions: [zh-id, id-zh]}}
        """
    )
    return shown


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "tsv"])
def test_each_pair_of_languages_is_a_stream_of_the_records_that_have_both(tmp_path: Path, format: str) -> None:
    streams = streams_of(write(tmp_path, format))
    config = config_of(
        tmp_path,
        {},
        streams=streams,
        stages=[{"name": "all", "drain": True, "mix": dict.fromkeys(streams, 1)}],
        max_bad_fraction=0,
    )
    built = {one.stream.name: one for one in build(config, workers=1).streams}
    for one, other in PAIRS:
        made = built[f"{one}-{other}"]
        having = [number for number, row in enumerate(rows()) if row[one] and row[other]]
        assert made.records == len(having) == NUMBER // 2
        assert made.rejected == {}
        assert made.dropped.get("wrong_script", 0) == ("zh" in (one, other))
        first = 1 if format in ("parquet", "jsonl") else 2
        kept = {line for _, line in documents_of(config, made)}
        assert len(kept) == made.kept <= len(having)
        assert kept <= {number + first for number in having}
        assert sorted(note.partition(", line ")[0] for note in made.notes) == sorted(
            f"stream '{one}-{other}': a record has no '{code}' and is left out (`missing: skip`) (30 times, first in "
            f"{tmp_path}/multi.{format}"
            for code in (one, other)
        )


def test_the_shown_streams_are_read_from_a_file(tmp_path: Path) -> None:
    """With YAML's `<<`, which takes the keys of another stream."""
    path = tmp_path / "x.yaml"
    base = config_of(tmp_path, {"documents": ["a.jsonl"]}).model_dump(mode="json")
    path.write_text(
        yaml.safe_dump({**base, "streams": {}, "stages": [{"name": "a", "drain": True, "mix": {"zh-id": 1}}]}).replace(
            "streams: {}",
            "streams:\n  en-zh: &multi {pairs: [m.parquet], missing: skip, directions: [en-zh]}\n"
            "  zh-id: {<<: *multi, directions: [zh-id, id-zh]}",
        )
    )
    stream = load_config(path).streams["zh-id"]
    assert isinstance(stream, PairStream)
    assert (stream.pairs, stream.missing, stream.text_keys) == (("m.parquet",), "skip", ("zh", "id"))


def test_a_corpus_of_three_files_with_blank_lines_serves_each_pair(tmp_path: Path) -> None:
    """As Flores-200 has it: a file for each language, line by line."""
    for code in CODES:
        lines = [row[code] or "" for row in rows()]
        (tmp_path / f"c.{code}").write_text("".join(f"{line}\n" for line in lines))
    for one, other in PAIRS:
        corpus = {code: str(tmp_path / f"c.{code}") for code in (one, other)}
        stream = {"pairs": [corpus], "directions": [f"{one}-{other}"], "missing": "skip"}
        (built,) = build(config_of(tmp_path, stream, max_bad_fraction=0), workers=1).streams
        assert (built.records, built.rejected) == (NUMBER // 2, {})


def test_a_stream_in_which_no_record_has_both_texts_is_an_error(tmp_path: Path) -> None:
    stream = {
        "pairs": [str(write(tmp_path, "jsonl"))],
        "keys": {"zh": "cn"},
        "directions": ["en-zh"],
        "missing": "skip",
    }
    with pytest.raises(
        InputError, match=r"stream 's': no record of its files has en and cn\. Correct its `keys`, or name"
    ):
        build(config_of(tmp_path, stream), workers=1)


def test_missing_and_cleaning_are_of_two_languages() -> None:
    for more in ({"missing": "skip"}, {"clean": {"pair_rules": {}}}):
        with pytest.raises(
            ValueError, match=r"this stream has 3 \(en, zh, id\): make a stream for each pair, all of the"
        ):
            PairStream.model_validate({"pairs": ["a"], "directions": ["en-zh", "zh-id"], **more})


def build_documents(folder: Path, records: Sequence[dict[str, Any]], **stream: Any) -> list[str]:
    path = write_jsonl(folder / "d.jsonl", records)
    config = config_of(folder, {"pairs": [str(path)], "directions": ["en-zh"], **stream}, max_bad_fraction=0)
    (built,) = build(config, workers=1).streams
    return [TOKENIZER.decode(ids) for _, (ids,) in sorted(documents_of(config, built).items())]


def test_a_pair_of_documents_keeps_its_line_breaks_in_the_shards(tmp_path: Path) -> None:
    records = [
        {"en": "First line.\nSecond line.", "zh": ["第一行。", "第二行。"]},
        {"en": ["Another one.", "With more."], "zh": "另一个。\r\n还有。"},
    ]
    assert build_documents(tmp_path, records, line_breaks="keep") == [
        "English: First line.\nSecond line.\nChinese: 第一行。\n第二行。",
        "English: Another one.\nWith more.\nChinese: 另一个。\n还有。",
    ]
    assert build_documents(tmp_path, records, line_breaks="space", clean={"dedup": ["pair"]}) == [
        "English: First line. Second line.\nChinese: 第一行。第二行。",
        "English: Another one. With more.\nChinese: 另一个。 还有。",
    ]
    with pytest.raises(
        InputError, match=r"'zh' is not a string.*State `line_breaks: keep` \(or space\) if they are lists"
    ):
        build_documents(tmp_path, records)


def test_without_the_new_keys_a_stream_is_what_it_was(tmp_path: Path) -> None:
    """Its identity and its stored config have the same keys as before there were `line_breaks` and `missing`."""
    stated = {"pairs": ["a.jsonl"], "directions": ["en-zh"]}
    config: Config = config_of(tmp_path, stated)
    form = {
        "keys": ["en", "zh"],
        "languages": ["en", "zh"],
        "columns": [],
        "split": "line",
        "label_key": None,
        "one_line": True,
    }
    assert identity_of(record_format(config.streams["s"])) == form
    before = config.model_dump(mode="json")["streams"]["s"]
    assert not {"line_breaks", "missing"} & set(before)
    config = config_of(tmp_path, {**stated, "line_breaks": "keep", "missing": "skip"})
    assert identity_of(record_format(config.streams["s"])) == {**form, "line_breaks": "keep", "skip_missing": True}
    assert config.model_dump(mode="json")["streams"]["s"] == {**before, "line_breaks": "keep", "missing": "skip"}
    assert Config.model_validate(config.model_dump(mode="json")) == config
