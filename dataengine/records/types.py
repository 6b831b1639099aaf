"""The part of a source that a unit reads, how records are found in it, and the records."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

BATCH_CHARACTERS = 1 << 24  # a batch ends here, so that books do not fill the memory
TO_THE_END = -1  # where a part ends whose file was not looked at
OnBytes = Callable[[int], None]  # hears of bytes read


@dataclass(frozen=True)
class SourcePart:
    """A piece of a source that one unit reads: a whole file, lines in a byte range, or row groups of Parquet."""

    # One file, or for Moses one a language in the order of the records' keys.
    paths: tuple[str, ...] = field(metadata={"identity": False})
    versions: tuple[str, ...] = field(metadata={"identity": False})  # of remote files, which must not change meanwhile
    format: str  # a name of formats.FORMATS
    start: int  # bytes, at the begin of a line; or the number of the first row group
    stop: int  # exclusive, or TO_THE_END
    size: int = field(metadata={"identity": False})  # bytes to read, for progress
    digest: str  # identity of the content
    columns: tuple[str, ...] = ()  # TSV: their names, as the file's heading has them, or else the stream


@dataclass(frozen=True)
class RecordFormat:
    """How records are found in files."""

    keys: tuple[str, ...]  # of a record's texts; a dotted key goes into nested objects, unless it is a key itself
    languages: tuple[str, ...] = ()  # TMX: the language of each key, for keys that are not codes of languages
    columns: tuple[str, ...] = ()  # TSV: their names in files without a heading
    split: str = "line"  # plain text: a document is a "line", a "paragraph" or the "file"
    label_key: str | None = None  # of the name of a record's subset
    one_line: bool = False  # white space around a text goes, a line break inside becomes a space


@dataclass(frozen=True)
class Reject:
    """A record that cannot be used, and why; its line counts from 1 in its part."""

    line: int
    reason: str
    excerpt: str


Notes = dict[str, tuple[int, int, str]]  # what is to be said of usable records -> count, first line, excerpt


@dataclass(frozen=True)
class Records:
    """Consecutive usable records of a part, and the unusable ones among them."""

    lines: list[int]  # in the part, from 1: line, row of Parquet, unit of TMX, first line of a paragraph
    texts: tuple[list[str], ...]  # a list for each key
    labels: list[str]  # "" where a record has none; empty if there is no label_key
    rejects: list[Reject]
    notes: Notes = field(default_factory=dict)


def add_notes(notes: Notes, more: Notes) -> None:
    """Add the counts of later records to `notes`."""
    for said, (count, line, excerpt) in more.items():
        before = notes.get(said, (0, line, excerpt))
        notes[said] = (before[0] + count, *before[1:])


Blocks = Generator[Records, None, int]
