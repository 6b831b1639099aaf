"""JSON Lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _JsonKeys:
    """Getters for the texts and the label of a JSON record, and the search for duplicate keys."""

    texts: tuple[Callable[[Any], Any], ...]
    label: Callable[[Any], Any] | None
    doubled: DoubledKeys

    @staticmethod
    def of(form: RecordFormat) -> _JsonKeys:
        """The keys of a record format."""
        names = [*form.keys, *([form.label_key] if form.label_key else [])]
        label = _getter(form.label_key) if form.label_key else None
        return _JsonKeys(tuple(map(_getter, form.keys)), label, DoubledKeys(names))


def _parse_jsonl_at_once(
    lines: Sequence[bytes | None], before: int, form: RecordFormat, keys: _JsonKeys
) -> Records | None:
    """A block in which every line is a usable record; else None."""
    try:
        values = list(map(orjson.loads, lines))  # type: ignore[arg-type]
        columns = [list(map(one, values)) for one in keys.texts]
        labels = list(map(keys.label, values)) if keys.label is not None else []
    except (ValueError, KeyError, TypeError):
        return None
    if keys.doubled.among(lines):  # type: ignore[arg-type]
        return None
    return all_usable(columns, labels, before, form)


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
