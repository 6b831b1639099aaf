from __future__ import annotations

import pytest

from dataengine.pairs import direction_of, first_line, format_pair, translation_prompt, write_pair

LANGUAGES = {"en": "English", "zh": "Chinese"}


def test_a_pair_has_the_papers_form_in_each_direction() -> None:
    pair = {"en": "Good morning.", "zh": "早上好。"}
    assert write_pair(pair, "en-zh", LANGUAGES) == "English: Good morning.\nChinese: 早上好。"
    assert write_pair(pair, "zh-en", LANGUAGES) == "Chinese: 早上好。\nEnglish: Good morning."
    assert format_pair("A", "a", "B", "b") == "A: a\nB: b"


def test_pairs_take_the_directions_in_turn() -> None:
    assert [direction_of(n, ("en-zh", "zh-en")) for n in range(4)] == ["en-zh", "zh-en", "en-zh", "zh-en"]


def test_zero_shot_prompt() -> None:
    assert translation_prompt("English", "Good morning.", "Chinese") == (
        "Translate this from English to Chinese:\nEnglish: Good morning.\nChinese:"
    )


@pytest.mark.parametrize(
    ("completion", "line"),
    [(" 早上好。\nEnglish: x", "早上好。"), ("\n\n 早", "早"), ("\n\n\n早", ""), ("", ""), ("  ", "")],
)
def test_first_line_that_is_not_blank(completion: str, line: str) -> None:
    assert first_line(completion) == line
