from __future__ import annotations

import pytest

from dataengine.language_codes import base_language, script_subtag


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
