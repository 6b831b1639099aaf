"""Parquet: row groups."""

from __future__ import annotations

from typing import Any, BinaryIO

from dataengine.errors import InputError
from dataengine.records import archives
from dataengine.records.columns import column_of, find_columns, parse_table, said_of, values_of
from dataengine.records.splitting import Span, Splitter, hash_lines
from dataengine.records.types import (
    BATCH_CHARACTERS,
    TO_THE_END,
    Blocks,
    OnBytes,
    RecordFormat,
    SourcePart,
)
from dataengine.storage.files import open_file
from dataengine.storage.paths import FoundFile, is_remote

_PARQUET_BUFFER = 8 << 20  # bytes read at a time per column


def open_parquet(path: str, source: BinaryIO) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(source, buffer_size=_PARQUET_BUFFER, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        source.seek(0)
        head = source.read(archives.HEAD)
        archives.refuse_others(path, head)
        if kind := archives.archive_kind(head):
            raise InputError(f"{path} is compressed by {kind} as a whole. Decompress it.") from None
        raise InputError(f"{path} is not a Parquet file, or is truncated: {said_of(error)}. Fetch it again.") from None


def read_parquet(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    import pyarrow

    path, number = part.paths[0], 0
    with open_file(path, version=part.versions[0]) as source:
        file = open_parquet(path, source)
        columns = find_columns(path, file.schema_arrow, form)
        groups = list(range(file.num_row_groups))[part.start : None if part.stop == TO_THE_END else part.stop]
        rows, size = (
            sum(getattr(file.metadata.row_group(k), name) for k in groups) for name in ("num_rows", "total_byte_size")
        )
        step = max(1, min(1024, BATCH_CHARACTERS * rows // max(size, 1)))
        try:
            batches = file.iter_batches(step, row_groups=groups, columns=columns, use_threads=False) if rows else ()
            for batch in batches:
                values = [values_of(column_of(batch, key)) for key in columns]
                before, number = number, number + len(batch)
                on_bytes(part.size * number // rows - part.size * before // rows)
                yield parse_table(values, before, form)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path}: broken after {number:,} rows: {said_of(error)}. Fetch the file again.") from None
    return number


def _split_row_groups(file: FoundFile, part_bytes: int) -> list[Span]:
    """Ranges of row groups: first, and one past the last."""
    remote = is_remote(file.path)
    content = f"{file.version}|{file.size}" if remote else hash_lines(file, file.size + 1)[0].digest
    with open_file(file.path, version=file.version if remote else "") as source:
        metadata = open_parquet(file.path, source).metadata
    sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    runs: list[tuple[int, int, int]] = []
    for number, size in enumerate(sizes):
        first, before = number, 0
        if runs and (not part_bytes or runs[-1][2] + size <= part_bytes):
            first, _, before = runs.pop()
        runs.append((first, number + 1, before + size))
    return [Span(first, end, size, f"{content}|{first}|{end}") for first, end, size in runs or [(0, 0, 0)]]


def _count_rows_before(part: SourcePart) -> int:
    with open_file(part.paths[0], version=part.versions[0]) as source:
        metadata = open_parquet(part.paths[0], source).metadata
    return sum(int(metadata.row_group(number).num_rows) for number in range(part.start))


ROW_GROUPS = Splitter(_split_row_groups, _count_rows_before)
