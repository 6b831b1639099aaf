"""The table of formats: how the files of each are named, cut into parts and read.

A new format is a reader in a module of its own and a row here; its name also goes into `StreamConfig.format` (a test
compares them) and into the table of docs/guides/prepare-data.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dataengine.records import archives
from dataengine.records.jsonl import read_jsonl
from dataengine.records.parquet import ROW_GROUPS, read_parquet
from dataengine.records.rows import name_columns, read_text_lines, read_tsv
from dataengine.records.splitting import LINES, Splitter
from dataengine.records.text import read_moses, read_paragraphs
from dataengine.records.tmx import read_tmx
from dataengine.records.types import Blocks, OnBytes, RecordFormat, SourcePart


class Format(NamedTuple):
    """One format of files of records.

    `read` yields blocks of records, and all of one chunk of the file before it reads on (a dry run's estimate counts on
    it); it returns the number of lines. A record that cannot be used is a reject in its block; InputError is for a file
    of which the rest cannot be read.
    """

    read: Callable[[SourcePart, RecordFormat, OnBytes], Blocks]
    suffixes: tuple[str, ...] = ()  # of names, in small letters, before that of an archive
    splitter: Splitter | None = None  # None: a file is one part
    columns: Callable[[str, str, RecordFormat], tuple[str, ...]] | None = None  # of a path by its first line
    counted: str = "line"  # what the number of a record counts in its file
    no_record: str = "it is blank"  # why there may be no record where there is a line


MOSES = "moses"  # a file for each language; no single file is named so
FORMATS = {
    "jsonl": Format(read_jsonl, (".jsonl", ".ndjson", ".json"), LINES),
    "tsv": Format(read_tsv, (".tsv",), LINES, name_columns, no_record="it is blank, or the heading"),
    "text": Format(read_text_lines, (".txt", ".text"), LINES, no_record="it is blank, or inside of a document"),
    "tmx": Format(read_tmx, (".tmx",), counted="unit"),
    "parquet": Format(read_parquet, (".parquet",), ROW_GROUPS, counted="row"),
    MOSES: Format(read_moses),
}
_PARAGRAPHS = FORMATS["text"]._replace(read=read_paragraphs, splitter=None)
STATED = tuple(name for name, one in FORMATS.items() if one.suffixes)  # what a stream's `format` may be
SUFFIXES = tuple(suffix for one in FORMATS.values() for suffix in one.suffixes)


def format_of(name: str, form: RecordFormat) -> Format:
    """The row of a format: that of plain text goes by what a document is."""
    return _PARAGRAPHS if name == "text" and form.split != "line" else FORMATS[name]


def last_suffix(path: str) -> str:
    """What the name of a file ends in but for the suffix of an archive, in small letters; "" for nothing."""
    suffixes = [suffix for suffix in Path(path.lower()).suffixes if suffix not in archives.SUFFIXES]
    return suffixes[-1] if suffixes else ""


def format_by_name(path: str) -> str | None:
    """The format that the name of a file says; None if it says none."""
    suffix = last_suffix(path)
    return next((name for name, one in FORMATS.items() if suffix in one.suffixes), None)
