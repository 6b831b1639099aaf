from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.characters import escape_controls, is_blank, one_line, without_invisible

INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u202e\u2060\u2066\ufe0f\ufeff\U000e0041"


def test_invisible_characters_are_left_out_wherever_they_stand() -> None:
    for character in INVISIBLE:
        assert without_invisible(f"{character}Trans{character}lation{character}") == "Translation"
        assert is_blank(character)
        assert is_blank(f" {character}\n{character}\t")
        assert not is_blank(f"{character}.")
    assert is_blank("")
    assert is_blank("\u3000 \u2028")
    assert not is_blank("0")


def test_format_characters_that_show_are_kept() -> None:
    """Signs around Arabic numbers and the like are format characters by category, and are seen."""
    shown = "\u0600\u06dd\u070f\u08e2\U000110bd"
    assert {unicodedata.category(character) for character in shown} == {"Cf"}
    assert without_invisible(shown) == shown
    assert not any(map(is_blank, shown))


def test_every_other_format_character_is_invisible() -> None:
    """By category Cf, but those that show and the annotation marks (U+FFF9 to U+FFFB, not ignorable by Unicode)."""
    kept = {0x0600, 0x0601, 0x0602, 0x0603, 0x0604, 0x0605, 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2}
    kept |= {0xFFF9, 0xFFFA, 0xFFFB, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
    formats = {code for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"}
    assert {code for code in formats if not is_blank(chr(code))} == kept & formats


@given(st.text())
def test_what_is_left_out_decides_nothing_about_blankness(text: str) -> None:
    assert is_blank(text) == (not without_invisible(text).strip())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_every_line_break_inside_a_sentence_becomes_a_space(end: str) -> None:
    assert one_line(f" {end}one{end}two {end}") == "one two"


def test_controls_are_escaped_and_text_is_not() -> None:
    assert escape_controls("a\x1b[31mred\u202e\tb\nc\r") == "a\\x1b[31mred\\u202e\tb\nc\\r"
    assert escape_controls("打开 Größe 👍🏽") == "打开 Größe 👍🏽"
