"""The records of a CSV by RFC 4180, in which a field in quotes may hold line breaks.

A line with an odd number of quotes begins a record of several lines, and the next such line ends it. If the lines
between make no record, the first of them alone is unusable, and reading goes on with the second. So a wrong quote costs
the line where it stands, not those below it, and no line is looked at more than twice.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from dataengine.records.lines import BYTE_ORDER_MARK, LONGEST_LINE
from dataengine.records.types import Reject
from dataengine.records.usable import excerpt_of

UNCLOSED = "a quote that opens in this line is not closed"
STRAY = "a quote within a field that does not begin with one, or text after the quote that ends a field"

_FIELD = rb'(?:"(?:[^"]++|"")*+"|[^",\r\n]*+)'
_RECORD = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+\r?")
_OPENING = re.compile(rb"(?:" + _FIELD + rb',)*+"(?:[^"]++|"")*+')  # a line that begins a field and does not end it


def is_record(content: bytes) -> bool:
    """Whether lines, without the last line end, are one record."""
    return _RECORD.fullmatch(content) is not None


class Joined(NamedTuple):
    """Records, and lines that belong to none."""

    numbers: list[int]  # of the first line of each record
    contents: list[bytes | None]  # None for a line that is too long
    rejects: list[Reject]

    def without(self, count: int) -> Joined:
        """All but the first `count` records."""
        return Joined(self.numbers[count:], self.contents[count:], self.rejects)


class Joiner:
    """Join the lines of a file to records. Holds the lines of a record that is not complete."""

    def __init__(self) -> None:
        self.number = 1  # of the next line
        self._held: list[bytes | None] = []
        self._size = 0  # bytes of the held lines

    def feed(self, lines: list[bytes | None], *, last: bool = False) -> Joined:
        """Take the next lines; return the records that end in them. `last`: there are no more."""
        held, first = len(self._held), self.number - len(self._held)
        self.number += len(lines)
        lines, self._held = self._held + lines, []
        odd = [False] * held + [line is None or line.count(b'"') % 2 == 1 for line in lines[held:]]
        odd[:held] = [True, *odd[1:held]] if held else []
        joined, at = Joined([], [], []), 0
        while at < len(lines):
            end = self._end(lines, odd, at, held, last)
            if end is None:
                self._held = lines[at:]
                break
            if isinstance(end, str):
                joined.rejects.append(Reject(first + at, end, excerpt_of(lines[at] or b"")))
                at += 1
                continue
            joined.numbers.append(first + at)
            joined.contents.append(lines[at] if at == end else b"\n".join(lines[at : end + 1]))  # type: ignore[arg-type]
            at = end + 1
        return joined

    def _end(self, lines: list[bytes | None], odd: list[bool], at: int, held: int, last: bool) -> int | str | None:
        """The last line of the record that begins in line `at`, or why none does; None if the end is not there yet."""
        line = lines[at]
        if line is None or not odd[at]:
            return at
        if not _OPENING.fullmatch(line.removeprefix(BYTE_ORDER_MARK)):
            return STRAY
        known = self._size if at == 0 and held else 0
        try:
            end = odd.index(True, max(at + 1, held))
        except ValueError:
            self._size = known + sum(map(len, lines[max(at, held) if known else at :]))  # type: ignore[arg-type]
            return UNCLOSED if last or self._size > LONGEST_LINE else None
        record = lines[at : end + 1]
        if None in record or sum(map(len, record)) > LONGEST_LINE:  # type: ignore[arg-type]
            return UNCLOSED
        return end if is_record(b"\n".join(record).removeprefix(BYTE_ORDER_MARK)) else UNCLOSED  # type: ignore[arg-type]
