"""Errors in JSON Lines: arrays, multi-line records, NaN, duplicate keys."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import InputError

_ARRAY = re.compile(rb"\s*\[\s*\{")
_INDENTED = re.compile(rb'\s*\{[ \t]*\r?\n\s*"')
_NOT_FINITE = re.compile(rb"NaN|Infinity")
_WINDOW = 1 << 17  # bytes searched at a time: what is found so far stays in the cache


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
        joined = np.frombuffer(b"\n".join(lines), np.uint8)  # no quoted key has a line feed
        for forms, as_key in zip(self._quoted, self._as_key, strict=True):
            count = sum(_count(joined, form) for form in forms)
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


def _count(content: NDArray[np.uint8], wanted: bytes) -> int:
    """How often bytes stand in others, also where they overlap. For short ones 3 times as fast as `bytes.count`."""
    count, last = 0, len(content) - len(wanted) + 1
    for first in range(0, last, _WINDOW):
        size = min(_WINDOW, last - first)
        found = content[first : first + size] == wanted[0]
        for place, byte in enumerate(wanted[1:], first + 1):
            found &= content[place : place + size] == byte
        count += int(np.count_nonzero(found))
    return count


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
