"""CSV by RFC 4180."""

from __future__ import annotations

import csv
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import repeat, takewhile
from operator import attrgetter, itemgetter

from dataengine.characters import is_blank
from dataengine.errors import InputError
from dataengine.records import tsv_heading
from dataengine.records.csv_joiner import STRAY, Joined, Joiner, is_record
from dataengine.records.lines import BYTE_ORDER_MARK, LONGEST_LINE, line_blocks
from dataengine.records.rows import HEADING_OBEYED, HEADING_ROWS, heading_unread
from dataengine.records.types import Blocks, OnBytes, RecordFormat, Records, SourcePart, add_notes
from dataengine.records.usable import RecordBlock, all_usable, excerpt_of

RETURN = "a carriage return outside of quotes"
MANY_LINES = (
    "a field in quotes holds line breaks, and each of its lines could be a record: look whether its first quote is "
    "text; such a quote is doubled, in a field in quotes"
)
_MARK = BYTE_ORDER_MARK.decode()


def name_csv_columns(path: str, first_line: str, form: RecordFormat) -> tuple[str, ...]:
    """The column names of a CSV, given its first line."""
    return _resolve(path, first_line, form, form.columns).names


def _resolve(path: str, first_line: str, form: RecordFormat, stated: tuple[str, ...]) -> tsv_heading.Columns:
    return tsv_heading.resolve_columns(path, first_line, form.keys, stated, form.label_key, split_fields)


def split_fields(content: str) -> list[str]:
    """The fields of a record; none if the text is not a record."""
    return _parse([content])[0] if content and is_record(content.encode(errors="replace")) else []


def _parse(rows: Sequence[str]) -> list[list[str]]:
    """The fields of records without line ends. Raises csv.Error if one is not a record."""
    csv.field_size_limit(LONGEST_LINE)
    return list(csv.reader(rows, strict=True))


def read_csv(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """The records of a CSV, without its heading. A record has the number of its first line."""
    joiner = Joiner()
    rows: _Rows | None = None
    for lines in line_blocks(part, 0, on_bytes):
        joined = joiner.feed(lines)
        if rows is None:
            joined = joined.without(sum(1 for _ in takewhile(_is_blank, joined.contents)))
            if joined.numbers:
                rows, joined = yield from _begin(part, form, joined)
        yield _parse_block(rows, joined, form)
    joined = joiner.feed([], last=True)
    if rows is None and joined.numbers:  # the heading is within a record that is not closed
        rows, joined = yield from _begin(part, form, joined)
    yield _parse_block(rows, joined, form)
    return joiner.number - 1


def _is_blank(content: bytes | None) -> bool:
    return content is not None and is_blank(content.decode(errors="replace"))


def _begin(part: SourcePart, form: RecordFormat, joined: Joined) -> Generator[Records, None, tuple[_Rows, Joined]]:
    """The columns by the first record, which may be a heading, and the records without it. Yields what is noted."""
    first, *below = [_decode_heading(content) for content in joined.contents[: HEADING_ROWS + 1]]
    columns = _resolve(part.paths[0], first, form, part.columns or form.columns)
    rows = _Rows(form, part.paths[0], part.columns or columns.names)
    noted = ""
    if columns.in_heading and columns.names == rows.names:
        joined = joined.without(1)
        noted = HEADING_OBEYED if form.columns and form.columns != rows.names else ""
    else:
        noted = heading_unread(["\t".join(split_fields(row)).encode() for row in (first, *below)], form, rows.names)
    if noted:
        number = joined.numbers[0] if joined.numbers else 1
        yield Records([], tuple([] for _ in form.keys), [], [], {noted: (1, number, excerpt_of(first))})
    return rows, joined


def _decode_heading(content: bytes | None) -> str:
    """A possible heading as text; "" for content that cannot be one."""
    try:
        return (content or b"").decode().removesuffix("\r")
    except UnicodeDecodeError:
        return ""


def _parse_block(rows: _Rows | None, joined: Joined, form: RecordFormat) -> Records:
    found = rows.parse(joined) if rows is not None else RecordBlock(form).records
    return replace(found, rejects=sorted([*joined.rejects, *found.rejects], key=attrgetter("line")))


class _Rows:
    """Parse the records of a CSV with these columns."""

    def __init__(self, form: RecordFormat, path: str, names: tuple[str, ...]) -> None:
        self.names = names
        self._form, self._path = form, path
        self._small = {name.casefold() for name in names}
        self._places = [names.index(key) for key in form.keys]
        self._label = names.index(form.label_key) if form.label_key in names else None

    def parse(self, joined: Joined) -> Records:
        """The records of a block. Raises InputError for another heading with another order."""
        found = self._parse_at_once(joined) or self._parse_each(joined)
        kept = set(found.lines) if any(b"\n" in (content or b"") for content in joined.contents) else set()
        for number, content in zip(joined.numbers, joined.contents, strict=True):
            if number in kept and content and self._looks_split(content):
                add_notes(found.notes, {MANY_LINES: (1, number, excerpt_of(content))})
        return found

    def _looks_split(self, content: bytes) -> bool:
        """Whether each line of a record of several lines could be a record by its number of commas."""
        lines = content.split(b"\n")
        return len(lines) > 1 < len(self.names) and {line.count(b",") for line in lines} == {len(self.names) - 1}

    def _parse_at_once(self, joined: Joined) -> Records | None:
        """A block in which each record is usable; else None."""
        try:
            texts = [content.decode().removesuffix("\r") for content in joined.contents]  # type: ignore[union-attr]
            rows = _parse(texts)
        except (AttributeError, UnicodeDecodeError, csv.Error):
            return None
        if len(rows) != len(texts) or set(map(len, rows)) != {len(self.names)}:
            return None
        if any(map(str.startswith, texts, repeat(_MARK))) or any(map(self._is_heading, rows)):
            return None
        if '"' in "".join(map("".join, rows)):
            quoted = [text for text, row in zip(texts, rows, strict=True) if '"' in "".join(row)]
            if not all(is_record(text.encode()) for text in quoted):
                return None
        labels = [row[self._label] if self._label is not None else "" for row in rows] if self._form.label_key else []
        block = all_usable([list(map(itemgetter(place), rows)) for place in self._places], labels, 0, self._form)
        return block and replace(block, lines=joined.numbers)

    def _parse_each(self, joined: Joined) -> Records:
        """A block record by record."""
        block = RecordBlock(self._form)
        for number, content in zip(joined.numbers, joined.contents, strict=True):
            text = block.decode(number, content and content.removeprefix(BYTE_ORDER_MARK))
            if text is None or is_blank(text):
                continue
            text = text.removesuffix("\r")
            if not is_record(text.encode()):
                block.reject(number, STRAY if '"' in text else RETURN, excerpt_of(text))
                continue
            (row,) = _parse([text])
            shown = f"{text.count(chr(10)) + 1} lines: {text}" if "\n" in text else text
            if len(row) != len(self.names):
                block.reject(number, f"{len(row)} columns instead of {len(self.names)}", excerpt_of(shown))
            elif tuple(row) == self.names:
                block.reject(number, "a heading, not a record", excerpt_of(text))
            elif self._is_heading(row):
                raise InputError(
                    f"{self._path}: within the file is another heading ({', '.join(row)}) than that of the lines "
                    f"before ({', '.join(self.names)}), so its columns change their order. Cut the file in two there."
                )
            else:
                label = "" if self._label is None else row[self._label]
                block.add(number, [row[place] for place in self._places], label, text)
        return block.records

    def _is_heading(self, row: Sequence[str]) -> bool:
        """Whether a record is the heading, or the heading in another order or case."""
        if row[0].casefold() not in self._small:
            return False
        return tuple(row) == self.names or tsv_heading.is_other_heading("\t".join(row), self.names)
