"""A part of a source, how its records are found, and the records."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal

from dataengine.json_files import IF_SET

BATCH_CHARACTERS = 1 << 24  # a batch ends here, to bound memory for long documents
TO_THE_END = -1  # the end of a part whose file was not inspected
OnBytes = Callable[[int], None]  # called with the number of bytes read


@dataclass(frozen=True)
class SourcePart:
    """The input of one unit: a whole file, the lines or Arrow messages of a byte range, or Parquet row groups."""

    # One file; for Moses one file per language, in the order of the records' keys.
    paths: tuple[str, ...] = field(metadata={"identity": False})
    versions: tuple[str, ...] = field(
        metadata={"identity": False}
    )  # of remote files, which must not change during the build
    format: str  # a name of formats.FORMATS
    start: int  # byte offset at the start of a line or message, or the first row group
    stop: int  # exclusive, or TO_THE_END
    size: int = field(metadata={"identity": False})  # bytes to read, for progress
    digest: str  # identifies the content
    columns: tuple[str, ...] = ()  # TSV, CSV: column names from the file's heading, else from the stream


@dataclass(frozen=True)
class RecordFormat:
    """How records are found in files."""

    keys: tuple[str, ...]  # of a record's texts; a dotted key reaches into nested objects unless it exists literally
    languages: tuple[str, ...] = ()  # TMX: the language of each key, for keys that are not language codes
    columns: tuple[str, ...] = ()  # TSV, CSV: column names of files without a heading
    split: str = "line"  # plain text: a document is a "line", a "paragraph" or the "file"
    label_key: str | None = None  # the key of a record's subset name
    one_line: bool = False  # strip white space around a text; inner line breaks become spaces
    # Lists of sentences are joined, and line breaks become spaces ("space") or line feeds ("keep"). "": no lists
    line_breaks: Literal["", "space", "keep"] = field(default="", metadata=IF_SET)
    skip_missing: bool = field(default=False, metadata=IF_SET)  # a record without one of its texts is not unusable


@dataclass(frozen=True)
class Reject:
    """An unusable record and the reason; lines count from 1 within the part."""

    line: int
    reason: str
    excerpt: str


Notes = dict[str, tuple[int, int, str]]  # message about usable records -> count, first line, excerpt


@dataclass(frozen=True)
class Records:
    """Consecutive usable records of a part, and the unusable ones among them."""

    lines: list[int]  # numbers within the part, from 1: line, row of Parquet or Arrow, TMX unit, first of several
    texts: tuple[list[str], ...]  # one list per key
    labels: list[str]  # "" for a record without one; empty list if there is no label_key
    rejects: list[Reject]
    notes: Notes = field(default_factory=dict)


def add_notes(notes: Notes, more: Notes) -> None:
    """Add the counts of later records to `notes`."""
    for said, (count, line, excerpt) in more.items():
        before = notes.get(said, (0, line, excerpt))
        notes[said] = (before[0] + count, *before[1:])


Blocks = Generator[Records, None, int]
