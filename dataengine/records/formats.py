"""The table of formats: how files of each format are named, split into parts and read.

A new format is a reader in a module of its own and a row here; its name also goes into `StreamConfig.format` (a test
compares them) and into the table of docs/guides/prepare-data.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dataengine.records import archives
from dataengine.records.arrow import MESSAGES, read_arrow
from dataengine.records.csv_records import name_csv_columns, read_csv
from dataengine.records.jsonl import read_jsonl
from dataengine.records.parquet import ROW_GROUPS, read_parquet
from dataengine.records.rows import name_columns, read_text_lines, read_tsv
from dataengine.records.splitting import LINES, Splitter
from dataengine.records.text import read_moses, read_paragraphs
from dataengine.records.tmx import read_tmx
from dataengine.records.types import Blocks, OnBytes, RecordFormat, SourcePart


class Format(NamedTuple):
    """One format of files of records.

    `read` yields blocks of records and returns the number of lines. It yields all records of one chunk of the file
    before it reads the next; the estimate of a dry run depends on that. An unusable record is a reject in its block.
    InputError means that the rest of the file cannot be read.
    """

    read: Callable[[SourcePart, RecordFormat, OnBytes], Blocks]
    suffixes: tuple[str, ...] = ()  # of file names, lower case, before an archive suffix
    splitter: Splitter | None = None  # None: a file is one part
    columns: Callable[[str, str, RecordFormat], tuple[str, ...]] | None = (
        None  # column names of a path, given its first line
    )
    counted: str = "line"  # the unit that record numbers count
    no_record: str = "it is blank"  # why a line may hold no record


MOSES = "moses"  # one file per language; no single file has this format
FORMATS = {
    "jsonl": Format(read_jsonl, (".jsonl", ".ndjson", ".json"), LINES),
    "tsv": Format(read_tsv, (".tsv",), LINES, name_columns, no_record="it is blank, or the heading"),
    "csv": Format(
        read_csv, (".csv",), columns=name_csv_columns, no_record="it is blank, the heading, or inside of a record"
    ),
    "text": Format(read_text_lines, (".txt", ".text"), LINES, no_record="it is blank, or inside of a document"),
    "tmx": Format(read_tmx, (".tmx",), counted="unit"),
    "parquet": Format(read_parquet, (".parquet",), ROW_GROUPS, counted="row"),
    "arrow": Format(read_arrow, (".arrow",), MESSAGES, counted="row"),
    MOSES: Format(read_moses),
}
_PARAGRAPHS = FORMATS["text"]._replace(read=read_paragraphs, splitter=None)
STATED = tuple(name for name, one in FORMATS.items() if one.suffixes)  # allowed values of a stream's `format`
SUFFIXES = tuple(suffix for one in FORMATS.values() for suffix in one.suffixes)


def format_of(name: str, form: RecordFormat) -> Format:
    """The row of a format; for plain text it depends on what a document is."""
    return _PARAGRAPHS if name == "text" and form.split != "line" else FORMATS[name]


def last_suffix(path: str) -> str:
    """The lower-case suffix of a file name, ignoring an archive suffix; "" if there is none."""
    suffixes = [suffix for suffix in Path(path.lower()).suffixes if suffix not in archives.SUFFIXES]
    return suffixes[-1] if suffixes else ""


def format_by_name(path: str) -> str | None:
    """The format given by a file name; None if the name gives none."""
    suffix = last_suffix(path)
    return next((name for name, one in FORMATS.items() if suffix in one.suffixes), None)
