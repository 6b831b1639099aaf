"""Read the records of a part in batches, in any format, with reasons for unusable records.

Formats: JSON Lines, TSV, CSV, plain text, Moses (one file per language), TMX, plain or compressed; Parquet and Arrow.

    patterns -> parts.plan_parts -> SourcePart (the input of one unit) -> read_records -> Records"""

from __future__ import annotations

from collections.abc import Generator

from dataengine.records.formats import format_of
from dataengine.records.types import BATCH_CHARACTERS, OnBytes, RecordFormat, Records, SourcePart, add_notes


def read_records(
    part: SourcePart, form: RecordFormat, on_bytes: OnBytes = lambda count: None, size: int = 1000
) -> Generator[Records, None, int]:
    """Yield the records of a part in batches of `size`; return the number of its lines.

    A batch is smaller if its records are long or if many records were unusable, so memory stays flat.

    Raises InputError if the part cannot be read: a truncated file, broken XML, missing columns.
    """
    blocks = format_of(part.format, form).read(part, form, on_bytes)
    held, lines = Records([], tuple([] for _ in form.keys), [], []), 0
    characters = 0
    while True:
        try:
            block = next(blocks)
        except StopIteration as end:
            lines = int(end.value)
            break
        held.lines.extend(block.lines)
        for column, new in zip(held.texts, block.texts, strict=True):
            column.extend(new)
            characters += sum(map(len, new))
        held.labels.extend(block.labels)
        held.rejects.extend(block.rejects)
        add_notes(held.notes, block.notes)
        count = len(held.lines)
        full = count - count % size
        if characters >= BATCH_CHARACTERS or len(held.rejects) >= size:
            full = max(count, 1)
        for first in range(0, full, size):
            yield _take(held, first, first + size)
        if full:
            held = _take(held, full, None)
            characters = sum(sum(map(len, column)) for column in held.texts)
    if held.lines or held.rejects or held.notes:
        yield held
    return lines


def _take(records: Records, start: int, stop: int | None) -> Records:
    """A slice of the records; the first slice carries the unusable ones."""
    return Records(
        records.lines[start:stop],
        tuple(column[start:stop] for column in records.texts),
        records.labels[start:stop],
        [] if start else records.rejects,
        {} if start else records.notes,
    )
