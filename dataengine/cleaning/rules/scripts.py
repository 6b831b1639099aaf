"""Unicode scripts, and the scripts of each language."""

from __future__ import annotations

from functools import lru_cache

from dataengine.text.language_codes import base_language, script_subtag

# Letters of the main scripts: ranges of Unicode's Scripts.txt (version 15.1), first and last code point. The categories
# of `unicodedata` then pick the letters inside a range. U+30FC and U+FF70, common to both kana, count as Katakana.
SCRIPT_RANGES = {
    "Latin": "41-5A 61-7A AA BA C0-D6 D8-F6 F8-2B8 2E0-2E4 1D00-1D25 1D2C-1D5C 1D62-1D65 1D6B-1D77 1D79-1DBE "
    "1E00-1EFF 2071 207F 2090-209C 212A-212B 2132 214E 2160-2188 2C60-2C7F A722-A787 A78B-A7CA A7D0-A7D9 A7F2-A7FF "
    "AB30-AB5A AB5C-AB64 AB66-AB69 FB00-FB06 FF21-FF3A FF41-FF5A 10780-107BA 1DF00-1DF1E 1DF25-1DF2A",
    "Greek": "370-373 376-37D 37F 386 388-3E1 3F0-3FF 1D26-1D2A 1D5D-1D61 1D66-1D6A 1DBF 1F00-1FFE 2126 AB65",
    "Cyrillic": "400-52F 1C80-1C88 1D2B 1D78 A640-A69F 1E030-1E08F",
    "Armenian": "531-58A FB13-FB17",
    "Hebrew": "591-5F4 FB1D-FB4F",
    "Arabic": "600-604 606-60B 60D-61A 61C-61E 620-63F 641-64A 656-66F 671-6DC 6DE-6FF 750-77F 870-8E1 8E3-8FF "
    "FB50-FDFF FE70-FEFC 1EE00-1EEF1",
    "Devanagari": "900-950 955-963 966-97F A8E0-A8FF",
    "Bengali": "980-9FE",
    "Gurmukhi": "A01-A76",
    "Gujarati": "A81-AFF",
    "Oriya": "B01-B77",
    "Tamil": "B82-BFA 11FC0-11FFF",
    "Telugu": "C00-C7F",
    "Kannada": "C80-CF2",
    "Malayalam": "D00-D7F",
    "Sinhala": "D81-DF4 111E1-111F4",
    "Thai": "E01-E3A E40-E5B",
    "Lao": "E81-EDF",
    "Tibetan": "F00-FD4 FD9-FDA",
    "Myanmar": "1000-109F A9E0-A9FE AA60-AA7F",
    "Georgian": "10A0-10FA 10FC-10FF 1C90-1CBF 2D00-2D2D",
    "Hangul": "1100-11FF 3131-318E 3200-321E 3260-327E A960-A97C AC00-D7FB FFA0-FFDC",
    "Ethiopic": "1200-139F 2D80-2DDE AB01-AB2E 1E7E0-1E7FE",
    "Khmer": "1780-17F9 19E0-19FF",
    "Mongolian": "1800-1801 1804 1806-18AA 11660-1166C",
    "Hiragana": "3041-3096 309D-309F 1B001-1B11F 1B132 1B150-1B152 1F200",
    "Katakana": "30A1-30FA 30FC-30FF 31F0-31FF 32D0-32FE 3300-3357 FF66-FF9D 1AFF0-1AFFE 1B000 1B120-1B122 1B155 "
    "1B164-1B167",
    "Bopomofo": "2EA-2EB 3105-312F 31A0-31BF",
    "Han": "2E80-2FD5 3005 3007 3021-3029 3038-303B 3400-4DBF 4E00-9FFF F900-FAD9 16FE2-16FF1 20000-323AF",
}
# ISO 639-1 codes (a few of 639-3) by the scripts that the language is written in.
_SCRIPT_LANGUAGES = {
    "Latin": "af az bs ca ceb cs cy da de en eo es et eu fi fil fr ga gl ha hr hu id ig is it jv la lb lt lv mg mi ms "
    "mt nb nl nn no oc pl pt ro sk sl so sq sr st su sv sw tk tl tr uz vi xh yo zu",
    "Greek": "el",
    "Cyrillic": "be bg kk ky mk mn ru sr tg tt uk uz",
    "Armenian": "hy",
    "Hebrew": "he iw yi",
    "Arabic": "ar ckb fa ps sd ug ur",
    "Devanagari": "hi mr ne sa",
    "Bengali": "as bn",
    "Gurmukhi": "pa",
    "Gujarati": "gu",
    "Oriya": "or",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Thai": "th",
    "Lao": "lo",
    "Tibetan": "bo dz",
    "Myanmar": "my",
    "Georgian": "ka",
    "Hangul": "ko",
    "Ethiopic": "am ti",
    "Khmer": "km",
    "Mongolian": "mn",
    "Hiragana": "ja",
    "Katakana": "ja",
    "Bopomofo": "zh yue",
    "Han": "ja ko yue zh",
}
# ISO 15924 codes of the scripts, as in zh-Hant or sr_Cyrl.
_SCRIPT_TAGS = {
    "latn": "Latin", "grek": "Greek", "cyrl": "Cyrillic", "armn": "Armenian", "hebr": "Hebrew", "arab": "Arabic",
    "deva": "Devanagari", "beng": "Bengali", "guru": "Gurmukhi", "gujr": "Gujarati", "orya": "Oriya", "taml": "Tamil",
    "telu": "Telugu", "knda": "Kannada", "mlym": "Malayalam", "sinh": "Sinhala", "thai": "Thai", "laoo": "Lao",
    "tibt": "Tibetan", "mymr": "Myanmar", "geor": "Georgian", "hang": "Hangul", "ethi": "Ethiopic", "khmr": "Khmer",
    "mong": "Mongolian", "hira": "Hiragana", "kana": "Katakana", "hrkt": "Hiragana Katakana", "bopo": "Bopomofo",
    "hani": "Han Bopomofo", "hans": "Han Bopomofo", "hant": "Han Bopomofo", "jpan": "Han Hiragana Katakana",
    "kore": "Hangul Han",
}  # fmt: skip
DENSE_SCRIPTS = ("Han", "Hiragana", "Katakana", "Hangul")  # a letter carries about as much as three of an alphabet


def script_ranges(script: str) -> list[tuple[int, int]]:
    """First and last code point of each range of a script."""
    bounds = (piece.partition("-") for piece in SCRIPT_RANGES[script].split())
    return [(int(first, 16), int(last or first, 16)) for first, _, last in bounds]


@lru_cache
def scripts_of(language: str | None) -> tuple[str, ...]:
    """The scripts of a language (`zh`, `zh-TW`, `zho`), or the script that its code names (`sr-Cyrl`).

    Empty if the language is unknown.
    """
    if named := _SCRIPT_TAGS.get(script_subtag(language)):
        return tuple(script for script in _SCRIPT_LANGUAGES if script in named.split())
    code = base_language(language)
    return tuple(script for script, codes in _SCRIPT_LANGUAGES.items() if code in codes.split())
