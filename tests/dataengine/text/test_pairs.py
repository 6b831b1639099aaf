from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.text.pairs import (
    exchange_targets,
    format_pair,
    translation_in,
    translation_prompt,
    write_sides,
)

LANGUAGES = {"en": "English", "zh": "Chinese"}


def test_a_pair_has_the_papers_form() -> None:
    assert format_pair("A", "a", "B", "b") == "A: a\nB: b"


@pytest.mark.parametrize(
    ("source_language", "source", "target_language", "prompt"),
    [
        (
            "English", "Good morning.", "Chinese",
            "Translate this from English to Chinese:\nEnglish: Good morning.\nChinese:",
        ),
        ("Chinese", "早上好。", "English", "Translate this from Chinese to English:\nChinese: 早上好。\nEnglish:"),
        (
            "Indonesian", "Selamat pagi.", "English",
            "Translate this from Indonesian to English:\nIndonesian: Selamat pagi.\nEnglish:",
        ),
        (
            "English", "Good morning.", "Indonesian",
            "Translate this from English to Indonesian:\nEnglish: Good morning.\nIndonesian:",
        ),
    ],
)  # fmt: skip
def test_zero_shot_prompt(source_language: str, source: str, target_language: str, prompt: str) -> None:
    assert translation_prompt(source_language, source, target_language) == prompt


def test_few_shot_prompt_has_its_examples_after_the_first_line_without_blank_lines() -> None:
    shots = [("Good morning.", "早上好。"), ("Thank you.", "谢谢。")]
    assert translation_prompt("English", "Good night.", "Chinese", shots) == (
        "Translate this from English to Chinese:\n"
        "English: Good morning.\nChinese: 早上好。\n"
        "English: Thank you.\nChinese: 谢谢。\n"
        "English: Good night.\nChinese:"
    )


@pytest.mark.parametrize(
    ("completion", "language", "translation"),
    [
        (" 早上好。\nEnglish: x", "Chinese", "早上好。"),
        (" Selamat pagi.", "Indonesian", "Selamat pagi."),
        (" Good morning.\n\nChinese: 晚安", "English", "Good morning."),
        ("\n\n 早", "Chinese", "早"),  # of the first three lines
        ("\n\n\n早", "Chinese", ""),
        ("", "Chinese", ""),
        ("  ", "Chinese", ""),
        (" 早\nChinese: 晚", "Chinese", "早"),  # the label again begins another text
        ("\nChinese: 晚", "Chinese", "晚"),  # but is left out where there was no text before
        ("\n\nChinese: 晚\nx", "Chinese", "晚"),
        ("\n\n\nChinese: 晚", "Chinese", ""),  # beyond three lines
        ("\nChinese:\n晚", "Chinese", ""),  # after a repeated label, that line alone
        ("\nChinese:\nChinese: 晚", "Chinese", ""),
        (" Chinese: 晚", "Chinese", "Chinese: 晚"),  # inside a line it is text
        ("\nEnglish: x", "Chinese", "English: x"),  # another language's label is what the model answered
        (" first\r\nsecond", "English", "first"),
    ],
)
def test_translation_in_a_completion(completion: str, language: str, translation: str) -> None:
    assert translation_in(completion, language) == translation


def columns(count: int) -> dict[str, list[str]]:
    return {"en": [f"e{k}" for k in range(count)], "zh": [f"z{k}" for k in range(count)]}


@given(st.integers(2, 40), st.integers(0, 7), st.integers(0, 2**64 - 1))
def test_exchange_is_a_derangement(count: int, first: int, key: int) -> None:
    pairs = columns(count)
    exchanged = exchange_targets(pairs, first, ["en-zh"], key)
    assert exchanged["en"] == pairs["en"]
    assert sorted(exchanged["zh"]) == sorted(pairs["zh"])
    assert all(was != now for was, now in zip(pairs["zh"], exchanged["zh"], strict=True))


def test_exchange_stays_within_a_direction_and_uses_each_sentence_once() -> None:
    pairs = columns(21)
    exchanged = exchange_targets(pairs, 5, ["en-zh", "zh-en"], 3)
    for k in range(21):
        source, target = ("en", "zh") if (5 + k) % 2 == 0 else ("zh", "en")
        assert exchanged[source][k] == pairs[source][k]
        assert exchanged[target][k] != pairs[target][k]
    assert all(sorted(exchanged[side]) == sorted(pairs[side]) for side in pairs)


def test_a_pair_alone_cannot_exchange() -> None:
    with pytest.raises(ValueError, match="one pair alone in direction en-zh cannot take another's target"):
        exchange_targets({"en": ["a"], "zh": ["b"]}, 0, ["en-zh"], 1)


def test_sides_keep_their_label() -> None:
    texts = write_sides({"en": ["a", "b"], "zh": ["早", "晚"]}, ["zh", "en"], LANGUAGES)
    assert texts == ["Chinese: 早", "English: a", "Chinese: 晚", "English: b"]
