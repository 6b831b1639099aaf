"""Records from columns of Arrow arrays: columns and fields of struct columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dataengine.errors import InputError
from dataengine.records.types import RecordFormat, Records
from dataengine.records.usable import RecordBlock, all_usable, label_text


def find_columns(path: str, schema: Any, form: RecordFormat) -> list[str]:
    """The columns of the texts and of the label. Raises InputError if one is missing, doubled or not text."""
    types = {**dict(fields_of(schema)), **{field.name: field.type for field in schema}}
    top, nested = Counter(schema.names), Counter(name for name, _ in fields_of(schema))
    for key in form.keys:
        if key not in types:
            raise InputError(f"{path}: no column '{key}'; it has {', '.join(types)}. {_correct_keys(form)}")
        way, counts = ([key], top) if key in top else (_way_to(key), nested)
        if twice := [name for name in way if counts[name] > 1]:
            raise InputError(
                f"{path}: {counts[twice[0]]} columns are named '{twice[0]}'. Write the file again with one of them."
            )
        if not _is_text(types[key]) and not (form.line_breaks and _is_list_of_texts(types[key])):
            listed = _is_list_of_texts(types[key]) and form.languages
            advice = "State the stream's `line_breaks`: keep or space." if listed else _correct_keys(form)
            raise InputError(f"{path}: column '{key}' is {types[key]}, not text. {advice}")
    if form.label_key and form.label_key not in types:
        raise InputError(
            f"{path}: no column '{form.label_key}'; it has {', '.join(types)}. Correct the stream's `subsets.key`."
        )
    return [*form.keys, *([form.label_key] if form.label_key else [])]


def said_of(error: Exception) -> str:
    """The words of an error of pyarrow, without a full stop."""
    return str(error).rstrip(". \n")


def _correct_keys(form: RecordFormat) -> str:
    return f"Correct the stream's `{'keys' if len(form.keys) > 1 or form.languages else 'text_key'}`."


def parse_table(values: Sequence[list[Any]], before: int, form: RecordFormat) -> Records:
    """Records from columns: one per key, then the labels if there are any."""
    columns, rest = values[: len(form.keys)], values[len(form.keys) :]
    labels = [label_text(label) for label in rest[0]] if rest else [""] * len(columns[0])
    if block := all_usable(columns, labels if form.label_key else [], before, form):
        return block
    each = RecordBlock(form)
    for row, (label, *texts) in enumerate(zip(labels, *columns, strict=True), before + 1):
        each.add(row, texts, label, dict(zip(form.keys, texts, strict=True)))
    return each.records


def fields_of(fields: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of each field of a schema, including the fields of struct columns."""
    from pyarrow import types

    for one in fields:
        yield prefix + one.name, one.type
        if types.is_struct(one.type):
            yield from fields_of(one.type, f"{prefix}{one.name}.")


def _way_to(key: str) -> list[str]:
    """The columns on the path of a dotted key: a, a.b, a.b.c."""
    names = key.split(".")
    return [".".join(names[:depth]) for depth in range(1, len(names) + 1)]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list_of_texts(kind: Any) -> bool:
    from pyarrow import types

    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(is_one(kind) for is_one in lists) and _is_text(kind.value_type)


def column_of(batch: Any, key: str) -> Any:
    """A column, or a field of a struct column by its dotted key; null where the struct is null."""
    from pyarrow import compute

    if key in batch.schema.names:
        return batch.column(key)
    first, *rest = key.split(".")
    return compute.struct_field(batch.column(first), rest)


def values_of(array: Any) -> list[Any]:
    """The values of a column; bytes for a text that is not UTF-8, since Parquet does not check it."""
    import pyarrow

    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        if _is_list_of_texts(array.type):
            return list(map(_decoded_list, array))
        return [_decoded(value) for value in array.cast(pyarrow.string()).cast(pyarrow.binary()).to_pylist()]


def _decoded_list(value: Any) -> list[str] | bytes | None:
    try:
        return value.as_py()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return b""


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return value
