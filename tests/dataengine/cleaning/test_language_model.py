"""The model for many texts at once has the bits of fastText, asked text by text."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dataengine.cleaning import language as module
from dataengine.cleaning.language import score_language
from dataengine.cleaning.language_model import LanguageModel, _exp

DEMO = Path(__file__).parents[3] / "demo/data"
ODD = [
    "\u00ad",
    "\u200b",
    "\u200c",
    "\u1680",
    "\u3000",
    "\ufeff",
    "\u0130",
    "\U0001f600",
    "\u0e17",
    "\x85",
    "\n",
    "<",
    ">",
]
LANGUAGES = ["en", "zh", "id", "sr", "fil", "ja", "fa", "yue"]


def one_by_one(texts: list[str], language: str) -> NDArray[np.float32]:
    """The score of each text by a call of fastText."""
    model, accepted = module._load_model(), module._labels(language)
    scores = np.full(len(texts), np.nan, np.float32)
    for number, text in enumerate(texts):
        letters = module._letters(text)
        if letters is not None:
            labels, probabilities = model.predict(letters, k=-1, threshold=0.01)
            scores[number] = sum(p for label, p in zip(labels, probabilities, strict=True) if label in accepted)
    return np.minimum(scores, np.float32(1))


def bits(scores: NDArray[np.float32]) -> list[int]:
    return scores.view(np.uint32).tolist()  # type: ignore[no-any-return]


def read_demo(name: str, key: str, count: int) -> list[str]:
    with zstandard.open(DEMO / name, "rt", encoding="utf-8") as file:
        return [orjson.loads(line)[key] for line, _ in zip(file, range(count), strict=False)]


def test_this_machine_judges_many_texts_at_once() -> None:
    assert module._fast_model() is not None


@pytest.mark.parametrize(
    ("name", "key"),
    [("en-id.train", "en"), ("en-id.train", "id"), ("en-zh.train", "zh"), ("mono.en", "text")],
)
def test_scores_of_real_texts_have_the_bits_of_fasttext(name: str, key: str) -> None:
    texts = read_demo(f"{name}.jsonl.zst", key, 1500 if name != "mono.en" else 300)
    for language in ("en", "zh", "id"):
        assert bits(score_language(texts, language)) == bits(one_by_one(texts, language))


def test_scores_of_odd_texts_have_the_bits_of_fasttext() -> None:
    chance = random.Random(5)
    words = [
        word for word in module._fast_model().vocabulary if len(word) < 20
    ]  # of every language that the model knows
    texts = []
    for _ in range(600):
        pieces = [chance.choice(words) for _ in range(chance.randint(2, 30))]
        pieces += [chance.choice(ODD) for _ in range(chance.randint(0, 3))]
        pieces += ["".join(chance.choices(words, k=6)), chr(chance.randrange(0x20, 0xD800))] * chance.randint(0, 1)
        chance.shuffle(pieces)
        text = chance.choice([" ", " ", ", ", ""]).join(pieces)
        texts.append(chance.choice([text, text, text.upper(), text * 40]))
    for language in LANGUAGES:
        assert bits(score_language(texts, language)) == bits(one_by_one(texts, language))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=90), max_size=8), st.sampled_from(LANGUAGES))
def test_scores_of_any_texts_have_the_bits_of_fasttext(texts: list[str], language: str) -> None:
    assert bits(score_language(texts, language)) == bits(one_by_one(texts, language))


def test_a_score_does_not_depend_on_the_texts_before() -> None:
    texts = read_demo("en-id.train.jsonl.zst", "id", 400)
    whole = score_language(texts, "id")
    model = LanguageModel(module._model_file().read_bytes())
    model._words._num_words = len(model._words._hashes)  # full: forgets
    lines = [line for line in module._all_letters(texts) if line is not None]
    sums = np.minimum(model.probabilities(lines, module._labels("id"), 0.01).astype(np.float32), np.float32(1))
    assert bits(sums) == bits(whole[~np.isnan(whole)])
    assert bits(np.concatenate([score_language([text], "id") for text in texts[:50]])) == bits(whole[:50])


def test_another_arithmetic_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the model for many texts, fastText itself is asked, and scores are the same."""
    texts = read_demo("en-id.train.jsonl.zst", "id", 100)
    whole = score_language(texts, "id")
    module._fast_model.cache_clear()
    try:
        monkeypatch.setattr("dataengine.cleaning.language_model._SMALL", 1.1e-5)
        assert module._fast_model() is None
        assert bits(score_language(texts, "id")) == bits(whole)
    finally:
        module._fast_model.cache_clear()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 0.5, 20.25, -20.25, -87.0, 88.0, 1e-8])
def test_exp_is_within_a_bit_of_the_right_one(value: float) -> None:
    near = np.float32(math.exp(value))
    found = _exp(np.array([value], np.float32))[0]
    assert found in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf)))
