"""Which texts of records are usable, reasons for the others, and excerpts of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any

import orjson

from dataengine.characters import all_visible, is_blank, line_feeds, one_line
from dataengine.records.lines import LONGEST_LINE
from dataengine.records.types import RecordFormat, Records, Reject, add_notes
from dataengine.text.language_codes import base_language

MISSING = object()
_NO_SPACE = ("zh", "ja", "yue", "wuu", "lzh")  # languages without spaces between sentences; Thai and Korean have them
Shown = bytes | str | Mapping[str, Any] | Callable[[], Mapping[str, Any]]  # source of an excerpt


def all_usable(columns: Sequence[list[Any]], labels: list[Any], before: int, form: RecordFormat) -> Records | None:
    """All records, after `before` lines, if each is usable; else None. Equals adding each to a RecordBlock."""
    if form.line_breaks:
        columns = [[join_sentences(one, form, k) for one in column] for k, column in enumerate(columns)]
    try:
        "".join(labels)
        cleaned = [_clean_column(column, form) for column in columns]
    except TypeError:
        return None
    if any(column is None for column in cleaned):
        return None
    return Records(list(range(before + 1, before + len(columns[0]) + 1)), tuple(cleaned), labels, [])  # type: ignore[arg-type]


def _clean_column(texts: list[str], form: RecordFormat) -> list[str] | None:
    """The texts, normalized as the stream wants; None if one is empty or has a NUL. Raises TypeError if one is not a
    string."""
    if not form.one_line:  # texts may be long: check them without a copy
        return texts if not any(map(str.__contains__, texts, repeat("\0"))) and _all_show(texts) else None
    stripped = list(map(str.strip, texts))
    if not _all_show(stripped):
        return None
    joined = "".join(stripped)
    if "\0" in joined:
        return None
    return stripped if len(joined.splitlines()) == 1 else list(map(_normal(form), stripped))


def _normal(form: RecordFormat) -> Callable[[str], str]:
    """What is done to a usable text before it is stored, for pairs."""
    return line_feeds if form.line_breaks == "keep" else one_line


def join_sentences(value: Any, form: RecordFormat, column: int) -> Any:
    """The text of a list of sentences; any other value as it is."""
    if not isinstance(value, list) or not value or any(type(sentence) is not str for sentence in value):
        return value
    if form.line_breaks == "keep":
        return "\n".join(map(str.strip, value))
    code = base_language(form.languages[column]) if form.languages else ""
    return ("" if code in _NO_SPACE else " ").join(filter(None, map(str.strip, value)))


def _all_show(texts: list[str]) -> bool:
    """Whether no text is blank. Checks the few distinct first characters first, which nearly always decide."""
    return all(texts) and (all_visible(set(map(itemgetter(0), texts))) or not any(map(is_blank, texts)))


def label_text(value: Any) -> str:
    return "" if value is None else str(value)


class RecordBlock:
    """Records that are checked one by one."""

    def __init__(self, form: RecordFormat) -> None:
        self._form = form
        self.records = Records([], tuple([] for _ in form.keys), [], [])

    def reject(self, line: int, reason: str, excerpt: str) -> None:
        """Add an unusable record."""
        self.records.rejects.append(Reject(line, reason, excerpt))

    def add(self, line: int, texts: Sequence[Any], label: str, shown: Shown) -> bool:
        """Add a record, or reject it with the reason; return whether it is usable."""
        if self._form.line_breaks:
            texts = [join_sentences(text, self._form, column) for column, text in enumerate(texts)]
        for key, text in zip(self._form.keys, texts, strict=True) if self._form.skip_missing else ():
            if text is MISSING or text is None or text == [] or (isinstance(text, str) and is_blank(text)):
                skipped = f"a record has no '{key}' and is left out (`missing: skip`)"
                add_notes(self.records.notes, {skipped: (1, line, excerpt_of(shown))})
                return False
        for key, text in zip(self._form.keys, texts, strict=True):
            if reason := _fault(text, key, lists=bool(self._form.line_breaks)):
                self.reject(line, reason, excerpt_of(shown))
                return False
        self.records.lines.append(line)
        for column, text in zip(self.records.texts, texts, strict=True):
            column.append(_normal(self._form)(text) if self._form.one_line else text)
        if self._form.label_key is not None:
            self.records.labels.append(label)
        return True

    def decode(self, line: int, content: bytes | None) -> str | None:
        """A line as text; rejects the line and returns None if it is unusable."""
        if content is None:
            self.reject(line, f"longer than {LONGEST_LINE >> 20} MiB", "")
            return None
        try:
            return content.decode()
        except UnicodeDecodeError as fault:
            self.reject(line, "not UTF-8", f"byte {fault.start}: {excerpt_of(content)}")
            return None


def _fault(text: Any, key: str, *, lists: bool) -> str | None:
    if text is MISSING:
        return f"no key '{key}'"
    if text is None:
        return f"'{key}' is null"
    if isinstance(text, bytes):
        return "not UTF-8"
    if lists and isinstance(text, list):
        return f"'{key}' is a list that holds something else than texts" if text else f"'{key}' is an empty list"
    if not isinstance(text, str):
        return f"'{key}' is not a string"
    if not "!" <= text[:1] <= "~" and is_blank(text):
        return f"'{key}' is empty"
    if "\0" in text:
        return f"'{key}' has a NUL character"
    return None


def excerpt_of(shown: Shown, length: int = 200) -> str:
    if callable(shown):
        shown = shown()
    if isinstance(shown, Mapping):
        shown = orjson.dumps({key: value for key, value in shown.items() if value is not MISSING}, default=repr)
    return shown[:length].decode(errors="replace") if isinstance(shown, bytes) else shown[:length]
