from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from dataengine.config.streams import StreamConfig
from dataengine.records.formats import FORMATS, STATED, SUFFIXES, Format, format_by_name, format_of
from dataengine.records.lines import line_blocks
from dataengine.records.parts import lines_before, plan_parts, whole_file
from dataengine.records.read import read_records
from dataengine.records.splitting import LINES
from dataengine.records.types import Blocks, OnBytes, RecordFormat, SourcePart
from dataengine.records.usable import RecordBlock

FORM = RecordFormat(("text",))


def test_a_config_may_state_each_format_that_a_single_file_can_have() -> None:
    stated, none = get_args(StreamConfig.model_fields["format"].annotation)
    assert (set(get_args(stated)), none) == (set(STATED), type(None))


def test_no_two_formats_have_one_suffix() -> None:
    assert len(set(SUFFIXES)) == len(SUFFIXES)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jsonl", "jsonl"),
        ("a.JSON.GZ", "jsonl"),
        ("s3://bucket/a.b/c.tsv.zst", "tsv"),
        ("a.txt.xz", "text"),
        ("a.tmx.bz2", "tmx"),
        ("a.parquet", "parquet"),
        ("data-00000-of-00001.arrow", "arrow"),
        ("a.csv", "csv"),
        ("a.xls", None),
        ("jsonl", None),
        ("a.gz", None),
    ],
)
def test_a_name_says_its_format(name: str, format: str | None) -> None:
    assert format_by_name(name) == format


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("split", ["line", "paragraph", "file"])
def test_only_plain_text_is_cut_and_read_by_what_a_document_is(name: str, split: str) -> None:
    row = format_of(name, RecordFormat(("text",), split=split))
    assert (row == FORMATS[name]) == (name != "text" or split == "line")
    assert (row.splitter is LINES) == (name in ("jsonl", "tsv") or (name == "text" and split == "line"))


def read_backwards(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """Lines with their characters in reverse order."""
    number = 0
    for lines in line_blocks(part, 0, on_bytes):
        block = RecordBlock(form)
        for number, line in enumerate(lines, number + 1):  # noqa: B020 (counting continues)
            block.add(number, [(line or b"").decode()[::-1]], "", "")
        yield block.records
    return number


def test_a_format_is_one_reader_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "backwards", Format(read_backwards, (".back",), LINES))
    path = tmp_path / "a.back"
    path.write_text("eno\nowt\neerht\n")
    parts, _ = plan_parts([str(path)], "s", FORM, format=None, part_bytes=5, hashes={}, threads=1)
    assert [lines_before(part) for part in parts] == [0, 2]
    for cut in (parts, [whole_file(path)]):
        assert [text for part in cut for batch in read_records(part, FORM) for text in batch.texts[0]] == [
            "one",
            "two",
            "three",
        ]
