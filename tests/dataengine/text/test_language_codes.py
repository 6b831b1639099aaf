from __future__ import annotations

import re

import pytest

from dataengine.cleaning.language import is_known
from dataengine.cleaning.rules.scripts import scripts_of
from dataengine.config.fields import LANGUAGE_PATTERN
from dataengine.text.language_codes import NAMES, base_language, meant_language, script_subtag
from dataengine.text.language_names import ENGLISH_NAMES


@pytest.mark.parametrize(
    ("code", "language"),
    [
        *[(code, "zh") for code in ("zh", "ZH", "zh-TW", "zh_CN", "zh-Hant-HK", "zho", "chi", "cmn", "zho_Hans")],
        *[(code, "yue") for code in ("yue", "yue-HK", "zh-yue", "zh-yue-Hant-HK")],
        *[(code, "pt") for code in ("pt-BR", "por", "pt-419")],
        *[(code, "de") for code in ("deu", "ger", "de-CH-1996", "de-AT")],
        *[(code, "id") for code in ("ind", "in", "ind_Latn")],
        *[("zsm", "ms"), ("may", "ms"), ("pes_Arab", "fa"), ("swh", "sw"), ("nob", "nb"), ("nor", "no")],
        *[("iw", "he"), ("als_Latn", "sq"), ("ceb", "ceb"), ("xx", "xx"), ("", ""), (None, "")],
    ],
)
def test_the_language_of_a_code(code: str | None, language: str) -> None:
    assert base_language(code) == language
    assert base_language(base_language(code)) == language


def test_the_script_that_a_code_names() -> None:
    codes = ("zh-Hant-TW", "sr_Cyrl", "zh-TW", "pt-419", "sl-rozaj", "de", "", None)
    assert [script_subtag(code) for code in codes] == ["hant", "cyrl", "", "", "", "", "", ""]


@pytest.mark.parametrize(
    ("code", "name", "meant"),
    [
        *[(code, "", "Chinese is zh") for code in ("cn", "CN", "chinese", "Chinese", "chinese-Hans", "chinesse")],
        ("ch", "Chinese", "Chinese is zh"),
        ("ch", "Chinese (simplified)", "Chinese is zh"),
        ("jp", "", "Japanese is ja"),
        ("bahasa", "Indonesian", "Indonesian is id"),
        *[(code, "", "") for code in ("ch", "xx", "", "tw", "klingon")],
    ],
)
def test_what_an_unknown_code_may_mean(code: str, name: str, meant: str) -> None:
    assert meant_language(code, name) == meant


def test_every_name_has_a_code_that_is_checked() -> None:
    assert all(is_known(code) or scripts_of(code) for code in NAMES)
    assert len(set(NAMES.values())) == len(NAMES) == 131


def test_every_language_has_a_name_of_its_own_that_fits_on_one_line_of_a_prompt() -> None:
    assert len(set(ENGLISH_NAMES.values())) == len(ENGLISH_NAMES) == 184
    assert all(re.fullmatch(LANGUAGE_PATTERN, code) for code in ENGLISH_NAMES)
    assert all(
        name == name.strip() and name.replace("-", " ").replace(" ", "").isalpha() for name in ENGLISH_NAMES.values()
    )
    assert (ENGLISH_NAMES["en"], ENGLISH_NAMES["zh"], ENGLISH_NAMES["id"]) == ("English", "Chinese", "Indonesian")
