"""JSON Lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import orjson

from dataengine.characters import is_blank
from dataengine.records.json_lines import DoubledKeys, has_not_finite, refuse_other_json
from dataengine.records.lines import BYTE_ORDER_MARK, LONGEST_LINE, line_blocks
from dataengine.records.types import Blocks, OnBytes, RecordFormat, Records, SourcePart
from dataengine.records.usable import MISSING, RecordBlock, all_usable, excerpt_of, label_text


def read_jsonl(part: SourcePart, form: RecordFormat, on_bytes: OnBytes) -> Blocks:
    keys = _JsonKeys.of(form)
    number = 0
    for lines in line_blocks(part, 0, on_bytes):
        if number == 0 and part.start == 0:
            refuse_other_json(part.paths[0], b"\n".join(line or b"" for line in lines[:8]))
        yield _parse_jsonl_at_once(lines, number, form, keys) or _parse_jsonl_each(lines, number, form, keys)
        number += len(lines)
    return number


def _getter(key: str) -> Callable[[Any], Any]:
    """A function that gets a key's value from a record. It raises KeyError or TypeError if there is none."""
    if "." not in key:
        return itemgetter(key)

    def get(record: Any) -> Any:
        if key in record:
            return record[key]
        for name in key.split("."):
            record = record[name]
        return record

    return get


def _getter_of_all(keys: Sequence[str]) -> Callable[[Any], Any]:
    """A function that gets the values of several keys as a tuple; for one key, its value."""
    if len(keys) == 1:
        return _getter(keys[0])
    if not any("." in key for key in keys):
        return itemgetter(*keys)
    each = list(map(_getter, keys))
    return lambda record: tuple(one(record) for one in each)


@dataclass(frozen=True)
class _JsonKeys:
    """Getters for the texts and the label of a JSON record, and the search for duplicate keys."""

    texts: tuple[Callable[[Any], Any], ...]
    label: Callable[[Any], Any] | None
    doubled: DoubledKeys
    all: Callable[[Any], Any]  # of a record, a tuple of the texts and the label; of one text alone, that
    count: int  # of texts and labels

    @staticmethod
    def of(form: RecordFormat) -> _JsonKeys:
        """The keys of a record format."""
        names = [*form.keys, *([form.label_key] if form.label_key else [])]
        label = _getter(form.label_key) if form.label_key else None
        return _JsonKeys(tuple(map(_getter, form.keys)), label, DoubledKeys(names), _getter_of_all(names), len(names))


def _parse_jsonl_at_once(
    lines: Sequence[bytes | None], before: int, form: RecordFormat, keys: _JsonKeys
) -> Records | None:
    """A block in which every line is a usable record; else None."""
    try:
        # Each record is freed before the next is parsed, so that its memory is still in the cache.
        found = list(map(keys.all, map(orjson.loads, lines)))  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError):
        return None
    if keys.doubled.among(lines):  # type: ignore[arg-type]
        return None
    columns, texts = _transpose(found, keys.count), len(keys.texts)
    return all_usable(columns[:texts], columns[texts] if keys.label is not None else [], before, form)


def _transpose(rows: list[Any], count: int) -> list[list[Any]]:
    """The `count` columns of rows; of one, the values are the rows."""
    if count == 1:
        return [rows]
    values = list(chain.from_iterable(rows))
    return [values[place::count] for place in range(count)]


def _parse_jsonl_each(lines: Sequence[bytes | None], before: int, form: RecordFormat, keys: _JsonKeys) -> Records:
    """A block line by line."""
    block = RecordBlock(form)
    for number, line in enumerate(lines, before + 1):
        if line is None:
            block.reject(number, f"longer than {LONGEST_LINE >> 20} MiB", "")
            continue
        line = line.removeprefix(BYTE_ORDER_MARK)  # files may have been concatenated
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            text = block.decode(number, line)
            if text is None or is_blank(text):
                continue
            if has_not_finite(line):
                block.reject(number, "NaN or Infinity, which are not JSON (write null)", excerpt_of(line))
            else:
                block.reject(number, "not JSON", f"{error}: {excerpt_of(line)}")
            continue
        if not isinstance(record, dict):
            block.reject(number, "not a JSON object", excerpt_of(line))
            continue
        if key := keys.doubled.find(line):
            block.reject(number, f"key '{key}' stands twice", excerpt_of(line))
            continue
        texts: list[Any] = []
        for one in keys.texts:
            try:
                texts.append(one(record))
            except (KeyError, TypeError):
                texts.append(MISSING)
        name = ""
        if keys.label is not None:
            try:
                name = label_text(keys.label(record))
            except (KeyError, TypeError):
                name = ""
        block.add(number, texts, name, line)
    return block.records
