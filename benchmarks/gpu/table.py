"""Rows of the check: a figure seen beside the expected one, and a verdict. Imports nothing slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "off", "failed", "not run", "-"]  # "-": a figure without an expectation

_COUNTED: tuple[Verdict, ...] = ("ok", "off", "failed", "not run")
_WIDTHS = (40, 30, 30)  # of the columns before the verdict


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    part: str
    what: str
    verdict: Verdict
    seen: str = ""
    expected: str = ""
    value: float | None = None  # the figure seen, for the JSON file
    source: str = ""  # of the expectation
    detail: str = ""  # lines below the row: the error, or a list


@dataclass(frozen=True)
class Figure:
    """A number with its form and unit."""

    value: float
    form: str = ",.0f"
    unit: str = ""

    def words(self, value: float | None = None) -> str:
        """Return this number, or another one in the same form."""
        return f"{self.value if value is None else value:{self.form}}{self.unit}"


def near(part: str, what: str, seen: Figure, expected: float, *, within: float, source: str) -> Row:
    """Return a row for a figure that may differ from the expected one by a share of it."""
    holds = abs(seen.value - expected) <= within * abs(expected)
    return _of(part, what, seen, f"{seen.words(expected)} ± {100 * within:g} %", holds, source)


def at_least(part: str, what: str, seen: Figure, limit: float, *, source: str) -> Row:
    """Return a row for a figure with a lower limit."""
    return _of(part, what, seen, f"at least {seen.words(limit)}", seen.value >= limit, source)


def at_most(part: str, what: str, seen: Figure, limit: float, *, source: str, detail: str = "") -> Row:
    """Return a row for a figure with an upper limit."""
    return _of(part, what, seen, f"at most {seen.words(limit)}", seen.value <= limit, source, detail)


def one_of(part: str, what: str, seen: Figure, expected: Sequence[float], *, source: str) -> Row:
    """Return a row for a figure that must be one of several."""
    words = " or ".join(seen.words(one) for one in dict.fromkeys(expected))
    return _of(part, what, seen, words, seen.value in expected, source)


def equal(part: str, what: str, seen: str, expected: str, *, source: str) -> Row:
    """Return a row for a text that must be the expected one."""
    verdict: Verdict = "ok" if seen == expected else "off"
    return Row(part=part, what=what, seen=seen, expected=expected, verdict=verdict, source=source)


def figure(part: str, what: str, seen: Figure) -> Row:
    """Return a row for a figure without an expectation."""
    return Row(part=part, what=what, seen=seen.words(), verdict="-", value=seen.value)


def not_run(part: str, what: str, reason: str) -> Row:
    """Return a row for what could not be measured here."""
    return Row(part=part, what=what, seen=reason, verdict="not run")


def failed(part: str, what: str, error: str) -> Row:
    """Return a row for an error; its text stands below."""
    return Row(part=part, what=what, seen="an error, see below", verdict="failed", detail=error)


def _of(part: str, what: str, seen: Figure, expected: str, holds: bool, source: str, detail: str = "") -> Row:
    verdict: Verdict = "ok" if holds else "off"  # a NaN holds nothing
    return Row(
        part=part,
        what=what,
        seen=seen.words(),
        expected=expected,
        verdict=verdict,
        value=seen.value,
        source=source,
        detail=detail,
    )


def columns(*words: str) -> str:
    """Return the words of the columns before the verdict, and the verdict."""
    padded = [f"{word:{width}}" for word, width in zip(words, _WIDTHS, strict=False)]
    return "  ".join([*padded, *words[len(_WIDTHS) :]]).rstrip()


HEADING = columns("", "seen", "expected", "verdict")


def line(row: Row) -> str:
    """Return a row as it is printed, with its detail below."""
    text = columns(f"{row.part}  {row.what}".strip(), row.seen, row.expected, row.verdict)
    return "\n".join([text, *(f"       {one}" for one in row.detail.splitlines())])


def summary(rows: Iterable[Row]) -> str:
    """Return how many rows have which verdict."""
    counts = Counter(row.verdict for row in rows)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _COUNTED)


def holds(rows: Iterable[Row]) -> bool:
    """Return whether something was as expected, and nothing is off or failed."""
    verdicts = {row.verdict for row in rows}
    return "ok" in verdicts and not verdicts & {"off", "failed"}
