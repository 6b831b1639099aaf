"""Invisible characters and line breaks: which texts are blank, what comparisons ignore, what a terminal may show."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Default_Ignorable_Code_Point of Unicode 15 (DerivedCoreProperties.txt): soft hyphen, zero-width space and joiners,
# byte order mark, marks of writing direction, variation selectors, fillers, tags. They are invisible on their own.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_FIND_INVISIBLE = re.compile(f"[{_INVISIBLE}]+")
_FIND_BLANK = re.compile(rf"[\s{_INVISIBLE}]")
_FIND_VISIBLE = re.compile(rf"[^\s{_INVISIBLE}]")
_FIND_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def without_invisible(text: str) -> str:
    """A text without invisible characters. For comparisons, never for training."""
    return text if text.isascii() else _FIND_INVISIBLE.sub("", text)


def is_blank(text: str) -> bool:
    """Whether a text is empty or consists of white space and invisible characters."""
    return _FIND_VISIBLE.search(text) is None


def all_visible(characters: Iterable[str]) -> bool:
    """Whether none of these characters is white space or invisible."""
    return _FIND_BLANK.search("".join(characters)) is None


def one_line(text: str) -> str:
    """Strip a text, and replace each line break inside, as in `str.splitlines`, by a space.

    This applies to every sentence: of pairs in any format, and of evaluation sets.
    """
    return " ".join(text.strip().splitlines())


def line_feeds(text: str) -> str:
    """Strip a text, and replace each line break inside, as in `str.splitlines`, by a line feed."""
    return "\n".join(text.strip().splitlines())


def escape_controls(text: str) -> str:
    """Escape control characters and marks of writing direction, so that a terminal can show a text of unknown origin.

    Unescaped, a text could move the cursor, change colors, or appear in another order. Tabs and line feeds stay.
    """
    return _FIND_CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
