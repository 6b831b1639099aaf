"""Parquet: columns and fields of struct columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from dataengine.errors import InputError
from dataengine.records import archives
from dataengine.records.splitting import Span, Splitter, hash_lines
from dataengine.records.types import (
    BATCH_CHARACTERS,
    TO_THE_END,
    Blocks,
    OnBytes,
    RecordFormat,
    Records,
    SourcePart,
)
from dataengine.records.usable import RecordBlock, all_usable, label_text
from dataengine.storage.files import open_file
from dataengine.storage.paths import FoundFile, is_remote

_PARQUET_BUFFER = 8 << 20  # bytes read at a time per column


def _said(error: Exception) -> str:
    return str(error).rstrip(". \n")


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
        raise InputError(f"{path} is not a Parquet file, or is truncated: {_said(error)}. Fetch it again.") from None


def read_parquet(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    import pyarrow

    path, number = part.paths[0], 0
    with open_file(path, version=part.versions[0]) as source:
        file = open_parquet(path, source)
        types = {**dict(_fields(file.schema_arrow)), **{field.name: field.type for field in file.schema_arrow}}
        top, nested = Counter(file.schema_arrow.names), Counter(name for name, _ in _fields(file.schema_arrow))
        for key in form.keys:
            if key not in types:
                raise InputError(f"{path}: no column '{key}'; it has {', '.join(types)}. {_correct_keys(form)}")
            way, counts = ([key], top) if key in top else (_way_to(key), nested)
            if twice := [name for name in way if counts[name] > 1]:
                raise InputError(
                    f"{path}: {counts[twice[0]]} columns are named '{twice[0]}'. Write the file again with one of them."
                )
            if not _is_text(types[key]):
                raise InputError(f"{path}: column '{key}' is {types[key]}, not text. {_correct_keys(form)}")
        if form.label_key and form.label_key not in types:
            raise InputError(
                f"{path}: no column '{form.label_key}'; it has {', '.join(types)}. Correct the stream's `subsets.key`."
            )
        columns = [*form.keys, *([form.label_key] if form.label_key else [])]
        groups = list(range(file.num_row_groups))[part.start : None if part.stop == TO_THE_END else part.stop]
        rows, size = (
            sum(getattr(file.metadata.row_group(k), name) for k in groups) for name in ("num_rows", "total_byte_size")
        )
        step = max(1, min(1024, BATCH_CHARACTERS * rows // max(size, 1)))
        try:
            batches = file.iter_batches(step, row_groups=groups, columns=columns, use_threads=False) if rows else ()
            for batch in batches:
                values = [_values(_column(batch, str(key))) for key in columns]
                before, number = number, number + len(batch)
                on_bytes(part.size * number // rows - part.size * before // rows)
                yield _parse_table(values, before, form)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path}: broken after {number:,} rows: {_said(error)}. Fetch the file again.") from None
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


def _correct_keys(form: RecordFormat) -> str:
    return f"Correct the stream's `{'keys' if len(form.keys) > 1 or form.languages else 'text_key'}`."


def _parse_table(values: Sequence[list[Any]], before: int, form: RecordFormat) -> Records:
    """Records from columns: one per key, then the labels if there are any."""
    columns, rest = values[: len(form.keys)], values[len(form.keys) :]
    labels = [label_text(label) for label in rest[0]] if rest else [""] * len(columns[0])
    if block := all_usable(columns, labels if form.label_key else [], before, form):
        return block
    each = RecordBlock(form)
    for row, (label, *texts) in enumerate(zip(labels, *columns, strict=True), before + 1):
        each.add(row, texts, label, dict(zip(form.keys, texts, strict=True)))
    return each.records


def _fields(fields: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of each field of a schema, including the fields of struct columns."""
    from pyarrow import types

    for one in fields:
        yield prefix + one.name, one.type
        if types.is_struct(one.type):
            yield from _fields(one.type, f"{prefix}{one.name}.")


def _way_to(key: str) -> list[str]:
    """The columns on the path of a dotted key: a, a.b, a.b.c."""
    names = key.split(".")
    return [".".join(names[:depth]) for depth in range(1, len(names) + 1)]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _column(batch: Any, key: str) -> Any:
    """A column, or a field of a struct column by its dotted key; null where the struct is null."""
    from pyarrow import compute

    if key in batch.schema.names:
        return batch.column(key)
    first, *rest = key.split(".")
    return compute.struct_field(batch.column(first), rest)


def _values(array: Any) -> list[Any]:
    """The values of a column; bytes for a text that is not UTF-8, since Parquet does not check it."""
    import pyarrow

    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [_decoded(value) for value in array.cast(pyarrow.string()).cast(pyarrow.binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return value
