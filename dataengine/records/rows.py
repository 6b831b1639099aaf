"""TSV, and plain text with one document per line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat, takewhile
from operator import itemgetter

from dataengine.characters import is_blank
from dataengine.errors import InputError
from dataengine.records import tsv_heading
from dataengine.records.lines import line_blocks
from dataengine.records.types import Blocks, OnBytes, RecordFormat, Records, SourcePart, add_notes
from dataengine.records.usable import RecordBlock, all_usable, excerpt_of

HEADING_OBEYED = "a heading names other columns than `columns`, or in another order: the heading is obeyed"
HEADING_ROWS = 200  # inspected below a possible heading


def name_columns(path: str, first_line: str, form: RecordFormat) -> tuple[str, ...]:
    """The column names of a TSV, given its first line."""
    return _resolve(path, first_line, form, form.columns).names


def _resolve(path: str, first_line: str, form: RecordFormat, stated: tuple[str, ...]) -> tsv_heading.Columns:
    return tsv_heading.resolve_columns(path, first_line, form.keys, stated, form.label_key)


def read_text_lines(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """Plain text with one document per line."""
    path, number = part.paths[0], 0
    if len(form.keys) > 1:
        raise InputError(
            f"{path}: plain text has one text a line, and {', '.join(form.keys)} are wanted. Give a file for each "
            "language, as {" + ", ".join(f"{name}: PATH" for name in form.keys) + "}, or state the stream's `format`."
        )
    rows = _Rows(form, path, ())
    for lines in line_blocks(part, 0, on_bytes):
        yield rows.parse(lines, number)
        number += len(lines)
    return number


def read_tsv(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    """The rows of a TSV, without its heading."""
    path, number = part.paths[0], 0
    rows = _Rows(form, path, part.columns) if part.columns else None
    begun = part.start > 0  # past the first line that is not blank, which may be a heading
    for lines in line_blocks(part, 0, on_bytes):
        if not begun:
            blank = sum(1 for _ in takewhile(_is_blank_line, lines))
            begun, number, lines = blank < len(lines), number + blank, lines[blank:]
            if begun:
                line = _decode_heading(lines[0])
                columns = _resolve(path, line, form, part.columns or form.columns)
                rows = _Rows(form, path, part.columns or columns.names)
                if columns.in_heading and columns.names == rows.names:
                    number, lines = number + 1, lines[1:]
                    if form.columns and form.columns != rows.names:
                        yield Records([], tuple([] for _ in form.keys), [], [], {HEADING_OBEYED: (1, number, line)})
                elif said := heading_unread(lines[: HEADING_ROWS + 1], form, rows.names):
                    notes = {said: (1, number + 1, excerpt_of(line))}
                    yield Records([], tuple([] for _ in form.keys), [], [], notes)
        if rows is None and lines:
            rows = _Rows(form, path, name_columns(path, "", form))
        if rows is not None and lines:
            yield rows.parse(lines, number)
        number += len(lines)
    return number


def _is_blank_line(line: bytes | None) -> bool:
    return line is not None and is_blank(line.decode(errors="replace"))


def _decode_heading(line: bytes | None) -> str:
    """A possible heading as text; "" for a line that cannot be one."""
    try:
        return (line or b"").decode().removesuffix("\r")
    except UnicodeDecodeError:
        return ""


def heading_unread(lines: Sequence[bytes | None], form: RecordFormat, names: Sequence[str]) -> str:
    """A note if the first of these lines looks like a heading but is read as a record; else ""."""
    first, *rows = map(_decode_heading, lines)
    called = tsv_heading.unread_heading(first, rows, names, form.keys)
    if not called:
        return ""
    pairs = ", ".join(f"{code}: {cell}" for code, cell in zip(form.languages, called, strict=False))
    keys = f"keys: {{{pairs}}}" if form.languages else f"text_key: {called[0]}"
    return f"a first line looks like a heading and is read as a record; if it is one, set {keys}, and no `columns`"


class _Rows:
    """Parse lines of a TSV with these columns, or of plain text if `names` is empty."""

    def __init__(self, form: RecordFormat, path: str, names: tuple[str, ...]) -> None:
        self.names = names
        self._form, self._path = form, path
        self._heading = "\t".join(names)
        self._sizes = {len(self._heading), len(self._heading) + 1}  # with a byte order mark if files were concatenated
        self._places = [names.index(key) for key in form.keys] if names else [0]
        self._label = names.index(form.label_key) if form.label_key in names else None

    def parse(self, lines: Sequence[bytes | None], before: int) -> Records:
        """The records of a block, after `before` lines. Raises InputError for another heading with another order."""
        return self._parse_at_once(lines, before) or self._parse_each(lines, before)

    def _parse_at_once(self, lines: Sequence[bytes | None], before: int) -> Records | None:
        """A block in which every line is a usable record; else None."""
        try:
            rows = list(map(bytes.decode, lines))  # type: ignore[arg-type]
        except (TypeError, UnicodeDecodeError):
            return None
        if any(map(str.endswith, rows, repeat("\r"))):
            rows = [row.removesuffix("\r") for row in rows]
        if not self.names:
            return all_usable([rows], [""] * len(rows) if self._form.label_key else [], before, self._form)
        if self._sizes & set(map(len, rows)) and any(map(self._is_heading, rows)):
            return None
        cells = [row.split("\t") for row in rows]
        if set(map(len, cells)) != {len(self.names)}:
            return None
        labels = [row[self._label] if self._label is not None else "" for row in cells] if self._form.label_key else []
        columns = [list(map(itemgetter(place), cells)) for place in self._places]
        block = all_usable(columns, labels, before, self._form)
        if block is not None:
            self._note_quotes(block, block.lines, rows)
        return block

    def _parse_each(self, lines: Sequence[bytes | None], before: int) -> Records:
        """A block line by line."""
        block = RecordBlock(self._form)
        used: list[str] = []
        for number, content in enumerate(lines, before + 1):
            line = block.decode(number, content)
            if line is None or is_blank(line):
                continue
            line = line.removesuffix("\r")
            cells = line.split("\t") if self.names else [line]
            bare = line.removeprefix("\ufeff") if len(line) in self._sizes else ""
            if self.names and len(cells) != len(self.names):
                block.reject(number, f"{len(cells)} columns instead of {len(self.names)}", excerpt_of(line))
            elif self.names and tsv_heading.is_other_heading(bare, self.names):
                raise InputError(
                    f"{self._path}: within the file is another heading ({', '.join(cells)}) than that of the lines "
                    f"before ({', '.join(self.names)}), so its columns change their order. Cut the file in two there."
                )
            elif self.names and bare == self._heading:
                block.reject(number, "a heading, not a record", excerpt_of(line))
            else:
                label = "" if self._label is None else cells[self._label]
                if block.add(number, [cells[place] for place in self._places], label, line):
                    used.append(line)
        if self.names:
            self._note_quotes(block.records, block.records.lines, used)
        return block.records

    def _is_heading(self, row: str) -> bool:
        if len(row) not in self._sizes:
            return False
        bare = row.removeprefix("\ufeff")
        return bare == self._heading or tsv_heading.is_other_heading(bare, self.names)

    def _note_quotes(self, records: Records, lines: Sequence[int], rows: Sequence[str]) -> None:
        if found := tsv_heading.quoted_rows(rows):
            add_notes(records.notes, {tsv_heading.QUOTED: (len(found), lines[found[0]], excerpt_of(rows[found[0]]))})
