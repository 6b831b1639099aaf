"""Errors in JSON Lines: arrays, multi-line records, NaN, duplicate keys."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from dataengine.errors import InputError

_ARRAY = re.compile(rb"\s*\[\s*\{")
_INDENTED = re.compile(rb'\s*\{[ \t]*\r?\n\s*"')
_NOT_FINITE = re.compile(rb"NaN|Infinity")


def refuse_other_json(path: str, head: bytes) -> None:
    """Raise InputError if the beginning of a file is JSON without one record per line."""
    what = "one array" if _ARRAY.match(head) else "records over several lines" if _INDENTED.match(head) else ""
    if what:
        program = ".[]" if what == "one array" else "."
        raise InputError(
            f"{path} is JSON with {what}, not JSON Lines, which has one object a line. "
            f"Convert it (jq -c '{program}' FILE)."
        )


def has_not_finite(line: bytes) -> bool:
    """Whether NaN or Infinity is the only reason why a line is not JSON."""
    if not _NOT_FINITE.search(line):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class DoubledKeys:
    """Find records with a duplicate key: one of its values would be lost."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = list(dict.fromkeys(keys))
        names = dict.fromkeys(name for key in self._keys for name in (key, *key.split(".")))
        single = [key for key in self._keys if "." not in key]
        self._quoted = [_quoted(name) for name in (single if single == self._keys else names)]
        self._as_key = [re.compile(b"(?:" + b"|".join(map(re.escape, forms)) + rb")\s*:") for forms in self._quoted]

    def among(self, lines: Sequence[bytes]) -> bool:
        """Whether a record may have a duplicate key. May return true without one, rarely; never false with one."""
        for forms, as_key in zip(self._quoted, self._as_key, strict=True):
            count = sum(sum(map(bytes.count, lines, repeat(form))) for form in forms)
            if count > len(lines) and any(len(as_key.findall(line)) > 1 for line in lines):
                return True
        return False

    def find(self, line: bytes) -> str | None:
        """The duplicate key of a record; None if there is none."""
        if not self.among([line]):
            return None
        try:
            record = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError):
            return None
        return next((key for key in self._keys if _is_doubled(record, key)), None)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as a list of all its keys and values."""


def _quoted(name: str) -> list[bytes]:
    """A key as JSON writes it: in Unicode and in ASCII."""
    return list(dict.fromkeys(json.dumps(name, ensure_ascii=ascii).encode(errors="replace") for ascii in (False, True)))


def _is_doubled(record: Any, key: str) -> bool:
    """Whether a record's key, or a key on its path, is a duplicate in its object."""
    literal = isinstance(record, _Pairs) and any(name == key for name, _ in record)
    for name in [key] if literal else key.split("."):
        if not isinstance(record, _Pairs):
            return False
        values = [value for one, value in record if one == name]
        if len(values) > 1:
            return True
        record = values[0] if values else None
    return False
