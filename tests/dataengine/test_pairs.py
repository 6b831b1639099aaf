from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.pairs import (
    direction_of,
    exchange_targets,
    first_line,
    format_pair,
    translation_prompt,
    write_pair,
    write_side,
)

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


@given(st.integers(2, 40), st.integers(0, 7), st.integers(0, 2**64 - 1))
def test_exchange_is_a_derangement(count: int, first: int, key: int) -> None:
    pairs = [{"en": f"e{k}", "zh": f"z{k}"} for k in range(count)]
    exchanged = exchange_targets(pairs, first, ["en-zh"], key)
    assert [pair["en"] for pair in exchanged] == [f"e{k}" for k in range(count)]
    assert sorted(pair["zh"] for pair in exchanged) == sorted(f"z{k}" for k in range(count))
    assert all(pair["zh"] != f"z{k}" for k, pair in enumerate(exchanged))


def test_exchange_stays_within_a_direction_and_uses_each_sentence_once() -> None:
    pairs = [{"en": f"e{k}", "zh": f"z{k}"} for k in range(21)]
    exchanged = exchange_targets(pairs, 5, ["en-zh", "zh-en"], 3)
    for k, pair in enumerate(exchanged):
        source, target = ("en", "zh") if (5 + k) % 2 == 0 else ("zh", "en")
        assert pair[source] == pairs[k][source]
        assert pair[target] != pairs[k][target]
    for side in ("en", "zh"):
        assert sorted(pair[side] for pair in exchanged) == sorted(pair[side] for pair in pairs)


def test_a_pair_alone_cannot_exchange() -> None:
    with pytest.raises(ValueError, match="one pair alone in direction en-zh cannot take another's target"):
        exchange_targets([{"en": "a", "zh": "b"}], 0, ["en-zh"], 1)


def test_one_side_keeps_its_label() -> None:
    assert write_side({"en": "a", "zh": "早"}, "zh", LANGUAGES) == "Chinese: 早"
