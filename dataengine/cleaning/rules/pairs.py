"""Cleaning rules for pairs and documents, as column operations: a batch is one buffer of code points, not a loop.

A table gives each of the 0x110000 code points its class (a letter of some script, a digit of some value, white space
...); one `bincount` over a batch counts every class in every text, and most rules are arithmetic on these counts. Where
a rule must look at the text itself (links, markup, repeats, equal sides), a condition on the columns that no offender
escapes first picks the few texts to look at. A decision depends on its own pair or document alone, never on the batch.
Every rule looks at a text as it shows, without invisible characters; only `max_characters` counts these too.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dataengine.characters import without_invisible
from dataengine.text.language_codes import base_language, script_subtag

Bools = NDArray[np.bool_]
Int64s = NDArray[np.int64]
Share = Annotated[float, Field(ge=0, le=1)]

_NUM_CODES = 0x110000  # of Unicode
_BLOCK = 1 << 17  # characters decided at a time; a block's columns stay in the processor's cache


class PairRules(BaseModel):
    """Which sentence pairs are dropped; None or false turns a rule off.

    Sources: OpusFilter 3.3, OpusCleaner 0.7, bicleaner-hardrules 2.10; defaults chosen on software messages and manuals
    in English, Chinese and Indonesian, so that few clean pairs go. In shares of letters, one of Han, kana or Hangul
    counts as three. No rule tells simplified from traditional Chinese: `unicodedata` does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_characters: Annotated[int, Field(ge=0)] | None = 1  # a side
    max_characters: Annotated[int, Field(ge=1)] | None = 2000
    drop_broken_characters: bool = True  # control and private-use characters, U+FFFD, lone surrogates
    min_letter_share: Share | None = 0.4  # letters and marks among the characters that are not white space, a side
    drop_identical_sides: bool = True  # but for case, white space and punctuation
    min_script_share: Share | None = 0.5  # of letters in the scripts of the side's language, if that is a known one
    max_length_ratio: Annotated[float, Field(ge=1)] | None = 3.0  # longer to shorter side, in UTF-8 bytes
    length_slack: Annotated[int, Field(ge=0)] = 20  # UTF-8 bytes that the longer side may have on top
    max_missing_digits: Annotated[int, Field(ge=0)] | None = 2  # of one side that the other may lack; 一九八七 is 1987
    drop_link_mismatch: bool = True  # other hosts of URLs, or other e-mail addresses, on the two sides
    drop_markup: bool = True  # HTML tags, comments and entities, whole or cut off
    max_repeated_share: Share | None = 0.5  # of a side's runs of four characters that occurred in it before
    # Off: of software messages they drop more good pairs than bad ones (docs/rules.md). OpusFilter's: 6, 0.5 and 0.9.
    max_terminal_penalty: Annotated[int, Field(ge=0)] | None = None  # unequal numbers of . ? ! and many on a side
    min_digit_overlap: Share | None = None  # of both sides' digits, those that the other side has too
    max_copied_share: Share | None = None  # of the shorter side, in one piece that the longer side has too


class DocumentRules(BaseModel):
    """Which documents are dropped; None or false turns a rule off.

    Sources: Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020, section 2.2) and FineWeb (Penedo et al. 2024),
    counted in characters instead of words where the language may have no spaces. Defaults are milder than theirs. In
    shares of letters, one of Han, kana or Hangul counts as three.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_characters: Annotated[int, Field(ge=0)] | None = 10
    max_characters: Annotated[int, Field(ge=1)] | None = 1_000_000
    max_broken_share: Share | None = 0.001  # control and private-use characters, U+FFFD, lone surrogates
    min_letter_share: Share | None = 0.5  # letters and marks among the characters that are not white space
    max_symbol_share: Share | None = 0.15  # symbols, `#` and the ellipsis, of the same
    min_script_share: Share | None = 0.5  # of letters in the scripts of the language, if that is a known one
    # Mean characters, as of English words: wider where a language has shorter or longer ones (`word_length_bounds`).
    min_word_length: Annotated[float, Field(ge=0)] | None = 3.0  # languages with spaces only
    max_word_length: Annotated[float, Field(gt=0)] | None = 12.0
    max_ellipsis_lines: Share | None = 0.3  # lines that end with an ellipsis, if two or more do
    max_repeated_lines: Share | None = 0.3  # characters in lines that stood in the document before
    drop_curly_braces: bool = False  # C4: a sign of code
    drop_lorem_ipsum: bool = False  # C4: a sign of a page without content


# Letters of the main scripts: ranges of Unicode's Scripts.txt (version 14), first and last code point. The categories
# of `unicodedata` then pick the letters inside a range. U+30FC and U+FF70, common to both kana, count as Katakana.
_SCRIPT_RANGES = {
    "Latin": "41-5A 61-7A AA BA C0-D6 D8-F6 F8-2B8 2E0-2E4 1D00-1D25 1D2C-1D5C 1D62-1D65 1D6B-1D77 1D79-1DBE "
    "1E00-1EFF 2071 207F 2090-209C 212A-212B 2132 214E 2160-2188 2C60-2C7F A722-A787 A78B-A7CA A7D0-A7D9 A7F2-A7FF "
    "AB30-AB5A AB5C-AB64 AB66-AB69 FB00-FB06 FF21-FF3A FF41-FF5A 10780-107BA 1DF00-1DF1E",
    "Greek": "370-373 376-37D 37F 386 388-3E1 3F0-3FF 1D26-1D2A 1D5D-1D61 1D66-1D6A 1DBF 1F00-1FFE 2126 AB65",
    "Cyrillic": "400-52F 1C80-1C88 1D2B 1D78 A640-A69F",
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
    "Hiragana": "3041-3096 309D-309F 1B001-1B11F 1B150-1B152 1F200",
    "Katakana": "30A1-30FA 30FC-30FF 31F0-31FF 32D0-32FE 3300-3357 FF66-FF9D 1AFF0-1AFFE 1B000 1B120-1B122 1B164-1B167",
    "Bopomofo": "2EA-2EB 3105-312F 31A0-31BF",
    "Han": "2E80-2FD5 3005 3007 3021-3029 3038-303B 3400-4DBF 4E00-9FFF F900-FAD9 16FE2-16FF1 20000-3134A",
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
DENSE_SCRIPTS = ("Han", "Hiragana", "Katakana", "Hangul")  # a letter says about what three of an alphabet do
# Scripts written without spaces between words.
_UNSPACED = {"Bopomofo", "Han", "Hiragana", "Katakana", "Khmer", "Lao", "Myanmar", "Thai", "Tibetan"}
# Mean length of a word where it is far from the 5.3 characters of English, in messages of Debian's programs.
_ENGLISH_WORD = 5.3
_WORD_LENGTHS = {
    "ko": 3.5, "vi": 3.6, "pa": 4.4, "hi": 4.4, "de": 7.2, "lt": 7.2, "ug": 7.4, "eu": 7.5, "te": 7.7, "ka": 7.9,
    "kn": 7.9, "uz": 7.9, "ta": 8.0, "xh": 8.2, "fi": 8.6, "ml": 9.3,
}  # fmt: skip

# The classes of code points. Each has exactly one; those of letters come last.
_SINGLES = "<>&;@:/{#…"
_OTHER, _SPACE, _BROKEN, _MARK, _SYMBOL, _INVISIBLE = range(6)
_DIGIT = 6  # and the nine after it, by value
_SINGLE = {character: _DIGIT + 10 + k for k, character in enumerate(_SINGLES)}
_LETTER = _DIGIT + 10 + len(_SINGLES)  # of no script in the table
_SCRIPTS = {script: _LETTER + 1 + k for k, script in enumerate(_SCRIPT_RANGES)}
_DENSE = [_SCRIPTS[script] for script in DENSE_SCRIPTS]
_NUM_CLASSES = _LETTER + 1 + len(_SCRIPTS)


def script_ranges(script: str) -> list[tuple[int, int]]:
    """First and last code point of each range of a script."""
    bounds = (piece.partition("-") for piece in _SCRIPT_RANGES[script].split())
    return [(int(first, 16), int(last or first, 16)) for first, _, last in bounds]


@lru_cache
def scripts_of(language: str | None) -> tuple[str, ...]:
    """The scripts that a language (`zh`, `zh-TW`, `zho`) is written in, or the one that its code names (`sr-Cyrl`).

    None if it is unknown.
    """
    if named := _SCRIPT_TAGS.get(script_subtag(language)):
        return tuple(script for script in _SCRIPT_LANGUAGES if script in named.split())
    code = base_language(language)
    return tuple(script for script, codes in _SCRIPT_LANGUAGES.items() if code in codes.split())


@lru_cache(maxsize=1)
def _class_table() -> NDArray[np.uint8]:
    """The class of each code point, uint8 of shape (0x110000,); takes about 0.1 s, once a process."""
    classes = defaultdict(lambda: _OTHER, {"Cc": _BROKEN, "Co": _BROKEN, "Cs": _BROKEN, "Nd": _DIGIT})
    classes.update({"Zs": _SPACE, "Zl": _SPACE, "Zp": _SPACE, "Mn": _MARK, "Mc": _MARK, "Me": _MARK})
    classes.update(dict.fromkeys(["Lu", "Ll", "Lt", "Lm", "Lo"], _LETTER))
    classes.update(dict.fromkeys(["Sc", "Sk", "Sm", "So"], _SYMBOL))
    categories = map(unicodedata.category, map(chr, range(_NUM_CODES)))
    table = np.fromiter(map(classes.__getitem__, categories), np.uint8, _NUM_CODES)
    for code in range(0xA0):  # control characters end here; some are white space
        if chr(code).isspace():
            table[code] = _SPACE
    table[0xFFFD] = _BROKEN
    for code in np.flatnonzero(table == _DIGIT).tolist():
        table[code] += unicodedata.decimal(chr(code))
    for character, number in _SINGLE.items():
        table[ord(character)] = number
    for script, number in _SCRIPTS.items():
        for first, last in script_ranges(script):
            letters = table[first : last + 1]
            letters[letters == _LETTER] = number
    table[_invisible()] = _INVISIBLE
    return table


@lru_cache(maxsize=1)
def _invisible() -> Bools:
    """Which code points show nothing, shape (0x110000,)."""
    shown = without_invisible("".join(map(chr, range(_NUM_CODES))))
    invisible = np.ones(_NUM_CODES, np.bool_)
    invisible[np.frombuffer(shown.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))] = False
    return invisible


@lru_cache(maxsize=1)
def _fold_table() -> NDArray[np.uint32]:
    """A number for each code point, such that texts that `fold` to the same have equal sums; shape (0x110000,).

    `str.casefold` maps each character alone, so the sum over a text is the sum over what it folds to.
    """
    codes = np.arange(_NUM_CODES, dtype=np.uint32)
    mixed = (codes ^ (codes >> np.uint32(7))) * np.uint32(0x2C1B3C6D)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x297A2D39)
    mixed[~np.fromiter(map(str.isalnum, map(chr, range(_NUM_CODES))), np.bool_, _NUM_CODES) | _invisible()] = 0
    table = mixed.copy()
    for code in range(0x1F000):  # no character above has case
        folded = chr(code).casefold()
        if folded != chr(code):
            table[code] = mixed[list(map(ord, folded))].sum(dtype=np.uint32)
    return table


def fold(text: str) -> str:
    """A text without case, white space, punctuation, marks and invisible characters: so equal sides are found."""
    return re.sub(r"[\W_]+", "", without_invisible(text).casefold())


class _Column:
    """Texts as they show, end to end in one array, a line feed after each, and the classes counted in each text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        content = "\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass")
        self.codes = np.frombuffer(content, np.dtype("<u4"))  # (all characters,)
        self.lengths = self.whole_lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self.owners = np.repeat(np.arange(len(texts)), self.lengths + 1)  # the text of each character
        self.classes = _class_table()[self.codes]
        keys = self.classes * np.int64(len(texts)) + self.owners
        counts = np.bincount(keys, minlength=_NUM_CLASSES * len(texts))
        self.counts: Int64s = counts.reshape(_NUM_CLASSES, len(texts))
        if self.counts[_INVISIBLE].any():
            self._leave_out_invisible()
        self.starts = np.cumsum(self.lengths + 1) - self.lengths - 1

    def _leave_out_invisible(self) -> None:
        shown = self.classes != _INVISIBLE
        self.codes, self.owners, self.classes = self.codes[shown], self.owners[shown], self.classes[shown]
        self.lengths = self.whole_lengths - self.counts[_INVISIBLE]
        self.texts = list(self.texts)
        for number in np.flatnonzero(self.counts[_INVISIBLE]).tolist():
            self.texts[number] = without_invisible(self.texts[number])

    def wrong_length(self, least: int | None, most: int | None) -> Bools:
        """Too few characters that show, or too many of all."""
        return _outside(self.lengths, least, None) | _outside(self.whole_lengths, None, most)

    def total(self, values: Bools) -> Int64s:
        """For how many characters of each text something holds."""
        totals: Int64s = np.add.reduceat(values, self.starts, dtype=np.int64)
        return totals

    def of_classes(self, classes: slice | list[int]) -> Int64s:
        """Characters of some classes in each text; of a class named twice, twice their number."""
        totals: Int64s = self.counts[classes].sum(axis=0)
        return totals

    def count(self, characters: str) -> Int64s:
        """How often some of the characters that have a class of their own occur in each text."""
        return self.of_classes([_SINGLE[character] for character in characters])

    @cached_property
    def solid(self) -> Int64s:
        """Characters that are not white space."""
        return self.lengths + 1 - self.of_classes([_SPACE])  # the line feed after it is white space too

    @cached_property
    def dense(self) -> Int64s:
        """Letters of dense scripts."""
        return self.of_classes(_DENSE)

    @cached_property
    def letters(self) -> Int64s:
        """Letters, those of dense scripts counted as three."""
        return self.of_classes(slice(_LETTER, None)) + 2 * self.dense

    def few_letters(self, share: float) -> Bools:
        """Letters and marks are too few among the characters that are not white space; a dense letter is three."""
        few: Bools = self.letters + self.counts[_MARK] < share * (self.solid + 2 * self.dense)
        return few

    def wrong_script(self, language: str | None, share: float) -> Bools:
        """Letters of the language's scripts are too few among all letters; a dense letter is three.

        So a Chinese sentence may name a Latin word or two, as UTF-8, in which a Han letter takes three bytes, suggests.
        """
        if not scripts_of(language):
            return np.zeros(len(self.texts), np.bool_)
        wrong: Bools = self.letters_of(language) < share * self.letters
        return wrong

    def letters_of(self, language: str | None) -> Int64s:
        """Letters of the language's scripts, those of dense scripts counted as three."""
        scripts = [_SCRIPTS[script] for script in scripts_of(language)]
        dense = [script for script in scripts if script in _DENSE]
        return self.of_classes(scripts + dense + dense)


def script_shares(texts: Sequence[str], language: str | None) -> NDArray[np.float64]:
    """The share of each text's letters that are of the language's scripts, a dense letter as three; shape (n,).

    NaN for a text without letters; 0 for all if the scripts are not known.
    """
    if not texts:
        return np.empty(0)
    column = _Column(texts)
    with np.errstate(invalid="ignore"):
        return np.divide(column.letters_of(language), column.letters)


class _Pairs(_Column):
    """Pairs as one column: all sources, then all targets."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str], languages: tuple[str, str]) -> None:
        super().__init__([*sources, *targets])
        self.size = len(sources)
        self.languages = languages

    def either(self, of_texts: Bools) -> Bools:
        """What holds for a pair if it holds for one of its sides."""
        return of_texts[: self.size] | of_texts[self.size :]

    def sides(self, pair: int) -> tuple[str, str]:
        return self.texts[pair], self.texts[pair + self.size]


def _pair_length(pairs: _Pairs, rules: PairRules) -> Bools:
    return pairs.either(pairs.wrong_length(rules.min_characters, rules.max_characters))


def _pair_broken_characters(pairs: _Pairs, rules: PairRules) -> Bools | None:
    return pairs.either(pairs.counts[_BROKEN] > 0) if rules.drop_broken_characters else None


def _pair_few_letters(pairs: _Pairs, rules: PairRules) -> Bools | None:
    return None if rules.min_letter_share is None else pairs.either(pairs.few_letters(rules.min_letter_share))


def _pair_identical_sides(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """The sides have the same letters and digits in the same order, and at least one."""
    if not rules.drop_identical_sides:
        return None
    sums = np.add.reduceat(_fold_table()[pairs.codes], pairs.starts)  # uint32, wraps
    alike = sums[: pairs.size] == sums[pairs.size :]

    def identical(pair: int) -> bool:
        source, target = map(fold, pairs.sides(pair))
        return source == target != ""

    return _confirm(alike, identical)


def _pair_wrong_script(pairs: _Pairs, rules: PairRules) -> Bools | None:
    if rules.min_script_share is None:
        return None
    source, target = (pairs.wrong_script(language, rules.min_script_share) for language in pairs.languages)
    return source[: pairs.size] | target[pairs.size :]


def _pair_length_ratio(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """One side is too much longer than the other, in UTF-8 bytes.

    A Han letter takes three bytes and says about as much as three Latin ones (English and Chinese sides of software
    messages: 50 and 54 bytes in the mean, but 50 and 18 characters), so one ratio does for all pairs of languages.
    """
    if rules.max_length_ratio is None:
        return None
    sizes = pairs.lengths.copy()
    for first in (0x80, 0x800, 0x10000):  # each takes a byte more
        sizes += pairs.total(pairs.codes >= first)
    source, target = sizes[: pairs.size], sizes[pairs.size :]
    shorter, longer = np.minimum(source, target), np.maximum(source, target)
    return longer > rules.max_length_ratio * shorter + rules.length_slack


# Chinese digits with their values: usual, financial, Japanese and older ones, and those for twenty, thirty and forty.
_HAN_DIGITS = dict(
    zip(
        "〇零○一壹壱弌幺二贰貳弐弍两兩廿三叁參叄参弎卅四肆卌五伍六陆陸七柒八捌九玖",
        [int(value) for value in "0001111122222222333333344455666778899"],
        strict=True,
    )
)
_HAN_TENS, _HAN_UNITS = "十拾百佰千仟", "百佰千仟万萬亿億兆"
_HAN_NUMERALS = "".join(_HAN_DIGITS) + "十拾" + _HAN_UNITS
_HAN_NUMBER = re.compile(
    rf"万一|十分(?![钟鐘之])|[{_HAN_UNITS}]+(?![{_HAN_NUMERALS}])"  # words: 百分之, 千万, 百度
    rf"|(?P<quarters>[一三])刻|(?P<clock>[点點时時])\s*半|(?P<half>半)|(?P<run>[{_HAN_NUMERALS}]+)"
)
_HAN_WORDS = tuple("一幺参參陆陸伍拾")  # alone these are mostly words (一个 "a", 参数 "parameter"),
_HAN_COUNTED = tuple("月日号號年分秒")  # but for 第一 and before these


def han_numbers(text: str) -> list[Counter[int]]:
    """The digits but zeros of each number that a text writes in Chinese numerals.

    Since zeros do not count, 一九八七 and 一千九百八十七 are the digits of 1987, 十二 of 12, 一万二千 of 12,000. 半
    after an hour is 30 (三点半: 3:30), else 0.5; 一刻 is 15 and 三刻 45 minutes. What is mostly a word is left out.
    """
    numbers = []
    for found in _HAN_NUMBER.finditer(text):
        digits: Counter[int] = Counter()
        if found["quarters"]:
            digits.update((1, 5) if found["quarters"] == "一" else (4, 5))
        elif found["clock"] or found["half"]:
            digits[3 if found["clock"] else 5] += 1
        elif (run := found["run"]) and (
            run not in _HAN_WORDS or text[: found.start()].endswith("第") or text.startswith(_HAN_COUNTED, found.end())
        ):
            digits = _han_digits(run)
        if digits:
            numbers.append(digits)
    return numbers


def _han_digits(run: str) -> Counter[int]:
    """The digits but zeros of a number in Chinese numerals; a unit without a digit before it is one of it (十二)."""
    digits: Counter[int] = Counter()
    before = ""
    for character in run:
        value = _HAN_DIGITS.get(character)
        if value is None and (not before or (character in _HAN_TENS and not _HAN_DIGITS.get(before))):
            value = 1
        if value:
            digits[value] += 1
        before = character
    return digits


def differing_digits(source: str, target: str) -> tuple[int, int]:
    """How many digits of each side the other side lacks.

    Digits of every script count by their value, each by itself, zeros not at all: so 12,000 agrees with 1.2万 and
    12/25/2020 with 2020年12月25日. A number in Chinese numerals stands for digits of the other side if all of its own
    are wanted there, those with most digits first; it wants none itself, as 一 may be a word on the other side.
    """
    digits, others = (Counter(int(digit) for digit in re.findall(r"\d", text)) for text in (source, target))
    digits[0] = others[0] = 0
    return _left(digits - others, target), _left(others - digits, source)


def _left(missing: Counter[int], other_side: str) -> int:
    """How many of the digits that a side lacks it does not write in Chinese numerals either."""
    if missing:
        for number in sorted(han_numbers(other_side), key=Counter.total, reverse=True):
            if number <= missing:
                missing -= number
    return missing.total()


def digits_differ(source: str, target: str, max_missing: int) -> bool:
    """Each side has a digit that the other lacks, or one has more than `max_missing` that the other lacks.

    So a few digits may be words on the other side (October 1, 10月1日).
    """
    missing, surplus = differing_digits(source, target)
    return (missing > 0 and surplus > 0) or max(missing, surplus) > max_missing


def without_arguments(text: str) -> str:
    """A text without the numbers that printf's arguments get where a translation takes them out of turn: `%2$s`."""
    return re.sub(r"%[1-9]\$", "%", text)


def _pair_digit_mismatch(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """`digits_differ` for the texts as they stand, and also for them `without_arguments`."""
    most = rules.max_missing_digits
    if most is None:
        return None
    digits = pairs.counts[_DIGIT + 1 : _DIGIT + 10]
    surplus = digits[:, : pairs.size] - digits[:, pairs.size :]
    source, target = np.maximum(surplus, 0).sum(axis=0), np.maximum(-surplus, 0).sum(axis=0)
    # Chinese numerals make less of a difference, never more.
    differ = ((source > 0) & (target > 0)) | (np.maximum(source, target) > most)

    def differ_indeed(pair: int) -> bool:
        source, target = pairs.sides(pair)
        return digits_differ(source, target, most) and digits_differ(
            without_arguments(source), without_arguments(target), most
        )

    return _confirm(differ, differ_indeed)


def few_digits_in_common(source: str, target: str, min_overlap: float) -> bool:
    """Of the digits of both sides too few are on the other side too, counted as `differing_digits` does.

    OpusFilter's NonZeroNumeralsFilter asks for their order as well, which translations change.
    """
    digits = sum(character.isdecimal() and int(character) > 0 for character in source + target)
    return sum(differing_digits(source, target)) > (1 - min_overlap) * digits


def _pair_surplus_digits(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """`few_digits_in_common` for the texts as they stand, and also for them `without_arguments`."""
    least = rules.min_digit_overlap
    if least is None:
        return None
    digits = pairs.counts[_DIGIT + 1 : _DIGIT + 10]
    source, target = digits[:, : pairs.size], digits[:, pairs.size :]
    few = np.abs(source - target).sum(axis=0) > (1 - least) * (source + target).sum(axis=0)

    def few_indeed(pair: int) -> bool:
        source, target = pairs.sides(pair)
        return few_digits_in_common(source, target, least) and few_digits_in_common(
            without_arguments(source), without_arguments(target), least
        )

    return _confirm(few, few_indeed)


TERMINALS = ".?!…。．｡？！؟۔।॥։።"  # the first four are OpusFilter's


@lru_cache(maxsize=1)
def _terminal_table() -> Bools:
    """Which code points end a sentence, shape (0x110000,)."""
    table = np.zeros(_NUM_CODES, np.bool_)
    table[list(map(ord, TERMINALS))] = True
    return table


def _pair_terminal_punctuation(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """The difference of the sides' numbers of marks that end sentences, and those of each beyond one, are too many.

    OpusFilter's TerminalPunctuationFilter (Vázquez et al. 2019), whose score is -log(1 + this): -2 is between 6 and 7.
    """
    if rules.max_terminal_penalty is None:
        return None
    marks = pairs.total(_terminal_table()[pairs.codes])
    source, target = marks[: pairs.size], marks[pairs.size :]
    penalty: Int64s = np.abs(source - target) + np.maximum(source - 1, 0) + np.maximum(target - 1, 0)
    return penalty > rules.max_terminal_penalty


def copies(source: str, target: str, max_share: float) -> bool:
    """More than a share of the shorter side's characters stand in one piece on the longer side too.

    As OpusFilter's LongestCommonSubstringFilter, and case counts as there.
    """
    shorter, longer = sorted((source, target), key=len)
    size = math.floor(max_share * len(shorter)) + 1
    pieces = {shorter[k : k + size] for k in range(len(shorter) - size + 1)}
    return any(longer[k : k + size] in pieces for k in range(len(longer) - size + 1)) if pieces else False


def _pair_copied_text(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """Suspects are pairs whose sides have so many couples of characters in common as a long piece has.

    Couples are counted in a few slots; two on one slot make more in common, never less.
    """
    share = rules.max_copied_share
    if share is None:
        return None
    slots, texts = 64, len(pairs.texts)
    couples = pairs.codes * np.uint32(0x85EBCA6B)
    couples[:-1] += pairs.codes[1:]
    places = (couples * np.uint32(0xC2B2AE35)) >> np.uint32(26)
    counts = np.bincount(pairs.owners * slots + places, minlength=slots * texts).reshape(texts, slots)
    common = np.minimum(counts[: pairs.size], counts[pairs.size :]).sum(axis=1)
    shorter = np.minimum(pairs.lengths[: pairs.size], pairs.lengths[pairs.size :])
    suspects = (common >= np.floor(share * shorter)) & (shorter > 0)
    return _confirm(suspects, lambda pair: copies(*pairs.sides(pair), share))


_URL = re.compile(r"\b(?:https?|ftp)://([a-z0-9.-]+)", re.IGNORECASE | re.ASCII)
_EMAIL = re.compile(r"[a-z0-9._%+-]{1,64}@[a-z0-9-]+(?:\.[a-z0-9-]+)+", re.IGNORECASE | re.ASCII)


def find_links(text: str) -> Counter[str]:
    """E-mail addresses and the hosts of URLs in lower case; of a host the last two labels, as sites are localised."""
    hosts = (".".join(host.lower().strip(".").split(".")[-2:]) for host in _URL.findall(text))
    return Counter([*hosts, *(address.lower() for address in _EMAIL.findall(text))])


def _pair_link_mismatch(pairs: _Pairs, rules: PairRules) -> Bools | None:
    if not rules.drop_link_mismatch:
        return None
    suspects = (pairs.count("@") > 0) | ((pairs.count("/") > 1) & (pairs.count(":") > 0))

    def mismatch(pair: int) -> bool:
        source, target = map(find_links, pairs.sides(pair))
        return source != target

    return _confirm(pairs.either(suspects), mismatch)


_TAGS = (
    "a|abbr|b|big|blockquote|body|br|button|center|code|dd|div|dl|dt|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|"
    "label|li|link|meta|ol|option|p|pre|s|script|select|small|span|strike|strong|style|sub|sup|table|tbody|td|textarea|"
    "th|thead|tr|tt|u|ul|video"
)
_MARKUP = re.compile(
    rf"</?(?:{_TAGS})(?:\s*/?>|\s+[a-z-]+=)|<!--|<!\[CDATA\[|<!DOCTYPE"
    r"|&(?:amp|lt|gt|quot|apos|nbsp|copy|reg|trade|hellip|[mn]dash|[lr][ds]?aquo|[lr][ds]quo|bull|middot|times);"
    r"|&#(?:\d{1,7}|x[0-9a-f]{1,6});",
    re.IGNORECASE | re.ASCII,
)


def has_markup(text: str) -> bool:
    """An HTML tag (whole, or cut off after an attribute's name), comment or entity is in the text."""
    return _MARKUP.search(text) is not None


def _pair_markup(pairs: _Pairs, rules: PairRules) -> Bools | None:
    if not rules.drop_markup:
        return None
    suspects = (pairs.count("<") > 0) | ((pairs.count("&") > 0) & (pairs.count(";") > 0))
    return pairs.either(_confirm(suspects, lambda text: has_markup(pairs.texts[text])))


_GRAM = 4  # characters


def repeats(text: str, max_share: float) -> bool:
    """More than a share of a text's runs of four characters occurred in it before: `buy now, buy now, buy now`."""
    windows = len(text) - _GRAM + 1
    return len({text[k : k + _GRAM] for k in range(windows)}) < (1 - max_share) * windows


def _pair_repetition(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """Suspects are texts with few different runs; two that fall on one slot of a table make them fewer, never more."""
    share = rules.max_repeated_share
    if share is None:
        return None
    size = len(pairs.codes)
    bits = min((8 * size).bit_length(), 24)
    salts = np.arange(1, len(pairs.texts) + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)
    couples = pairs.codes * np.uint32(0x85EBCA6B)
    couples[:-1] += pairs.codes[1:]
    runs = couples * np.uint32(0xC2B2AE35)
    runs[:-2] += couples[2:]
    runs += np.repeat(salts, pairs.lengths + 1)
    runs ^= runs >> np.uint32(15)
    slots = (runs * np.uint32(0x2C1B3C6D)) >> np.uint32(32 - bits)
    places = np.arange(size, dtype=np.int32)
    last = np.empty(1 << bits, np.int32)
    last[slots] = places
    different = pairs.total(last[slots] == places)  # counts the four runs, too, that leave the text
    suspects = different < (1 - share) * (pairs.lengths - _GRAM + 1) + _GRAM
    return pairs.either(_confirm(suspects, lambda text: repeats(pairs.texts[text], share)))


def _outside(values: Int64s | NDArray[np.float64], least: float | None, most: float | None) -> Bools:
    found = np.zeros(len(values), np.bool_)
    if least is not None:
        found |= values < least
    if most is not None:
        found |= values > most
    return found


def _confirm(suspects: Bools, offends: Callable[[int], bool]) -> Bools:
    """Those of the suspects that do offend."""
    found = np.zeros(len(suspects), np.bool_)
    for number in np.flatnonzero(suspects).tolist():
        found[number] = offends(number)
    return found


# In the order of application.
_PAIR_CHECKS: dict[str, Callable[[_Pairs, PairRules], Bools | None]] = {
    "length": _pair_length,
    "broken_characters": _pair_broken_characters,
    "few_letters": _pair_few_letters,
    "identical_sides": _pair_identical_sides,
    "wrong_script": _pair_wrong_script,
    "length_ratio": _pair_length_ratio,
    "digit_mismatch": _pair_digit_mismatch,
    "link_mismatch": _pair_link_mismatch,
    "markup": _pair_markup,
    "repetition": _pair_repetition,
    "terminal_punctuation": _pair_terminal_punctuation,
    "surplus_digits": _pair_surplus_digits,
    "copied_text": _pair_copied_text,
}
PAIR_RULES: tuple[str, ...] = tuple(_PAIR_CHECKS)


def check_pairs(
    sources: Sequence[str], targets: Sequence[str], languages: tuple[str, str], rules: PairRules
) -> NDArray[np.uint8]:
    """Decide on each pair: 0 if it is kept, else 1 + the index in PAIR_RULES of the first rule that drops it; (n,)."""
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets: each source needs a target")
    lengths = [len(source) + len(target) for source, target in zip(sources, targets, strict=True)]
    decided = np.zeros(len(lengths), np.uint8)
    for start, stop in _blocks(lengths):
        pairs = _Pairs(sources[start:stop], targets[start:stop], languages)
        drops = [check(pairs, rules) for check in _PAIR_CHECKS.values()]
        _note_first(decided[start:stop], drops)
    return decided


class _Documents(_Column):
    """Documents as one column, and their lines: what ends with a line feed and is not blank."""

    def __init__(self, texts: Sequence[str], language: str | None) -> None:
        super().__init__(texts)
        self.language = language

    @cached_property
    def lines(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """Of each line the position of its line feed, its document, its characters that are not white space, and a sum
        that equal lines share."""
        ends = np.flatnonzero(self.codes == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        solid = np.add.reduceat(self.classes != _SPACE, starts, dtype=np.int64)
        sums = np.add.reduceat(_fold_table()[self.codes], starts).astype(np.int64)
        kept = solid > 0
        return ends[kept], self.owners[ends[kept]], solid[kept], sums[kept]

    def count_lines(self, documents: Int64s) -> Int64s:
        return np.bincount(documents, minlength=len(self.texts))


def _document_length(documents: _Documents, rules: DocumentRules) -> Bools:
    return documents.wrong_length(rules.min_characters, rules.max_characters)


def _document_broken_characters(documents: _Documents, rules: DocumentRules) -> Bools | None:
    share = rules.max_broken_share
    return None if share is None else documents.counts[_BROKEN] > share * documents.solid


def _document_few_letters(documents: _Documents, rules: DocumentRules) -> Bools | None:
    return None if rules.min_letter_share is None else documents.few_letters(rules.min_letter_share)


def _document_symbols(documents: _Documents, rules: DocumentRules) -> Bools | None:
    if rules.max_symbol_share is None:
        return None
    symbols = documents.of_classes([_SYMBOL]) + documents.count("<>#…")
    many: Bools = symbols > rules.max_symbol_share * documents.solid
    return many


def _document_wrong_script(documents: _Documents, rules: DocumentRules) -> Bools | None:
    share = rules.min_script_share
    return None if share is None else documents.wrong_script(documents.language, share)


def _document_word_length(documents: _Documents, rules: DocumentRules) -> Bools | None:
    if _UNSPACED.issuperset(scripts_of(documents.language)):  # or the language is unknown
        return None
    space = documents.classes == _SPACE
    begins = ~space
    begins[1:] &= space[:-1]
    words = documents.total(begins)
    means = documents.solid / np.maximum(words, 1)
    return (words > 0) & _outside(means, *word_length_bounds(documents.language, rules))


def word_length_bounds(language: str | None, rules: DocumentRules) -> tuple[float | None, float | None]:
    """The least and the most mean length of a word in a language: the rules' bounds, wider where words are usually
    shorter or longer than in English."""
    usual = _WORD_LENGTHS.get(base_language(language), _ENGLISH_WORD) / _ENGLISH_WORD
    least, most = rules.min_word_length, rules.max_word_length
    return least and least * min(usual, 1.0), most and most * max(usual, 1.0)


def _document_ellipsis_lines(documents: _Documents, rules: DocumentRules) -> Bools | None:
    if rules.max_ellipsis_lines is None:
        return None
    dot, ellipsis = documents.codes == ord("."), documents.codes == ord("…")
    behind = np.zeros(len(dot), np.bool_)  # an ellipsis ends right before this character
    behind[1:] = ellipsis[:-1]
    behind[3:] |= dot[:-3] & dot[1:-2] & dot[2:-1]
    ends, owners, _, _ = documents.lines
    ending = documents.count_lines(owners[behind[ends]])
    many: Bools = (ending > 1) & (ending > rules.max_ellipsis_lines * documents.count_lines(owners))
    return many


def repeats_lines(text: str, max_share: float) -> bool:
    """More than a share of a text's characters, white space aside, stand in lines that occurred in it before."""
    seen: set[str] = set()
    whole = repeated = 0
    for line in map(str.strip, text.split("\n")):
        size = len("".join(line.split()))
        whole += size
        repeated += size if line in seen else 0
        seen.add(line)
    return repeated > max_share * whole


def _document_repeated_lines(documents: _Documents, rules: DocumentRules) -> Bools | None:
    """Suspects are documents with many lines of equal sums: all equal lines, and some others."""
    share = rules.max_repeated_lines
    if share is None:
        return None
    _, owners, solid, sums = documents.lines
    _, first = np.unique(owners << 32 | sums, return_index=True)
    again = solid.copy()
    again[first] = 0
    repeated = np.zeros(len(documents.texts), np.int64)
    np.add.at(repeated, owners, again)
    suspects = repeated > share * documents.solid
    return _confirm(suspects, lambda text: repeats_lines(documents.texts[text], share))


def _document_curly_braces(documents: _Documents, rules: DocumentRules) -> Bools | None:
    return documents.count("{") > 0 if rules.drop_curly_braces else None


def _document_lorem_ipsum(documents: _Documents, rules: DocumentRules) -> Bools | None:
    if not rules.drop_lorem_ipsum:
        return None
    return np.fromiter(("lorem ipsum" in text.lower() for text in documents.texts), np.bool_, len(documents.texts))


# In the order of application.
_DOCUMENT_CHECKS: dict[str, Callable[[_Documents, DocumentRules], Bools | None]] = {
    "length": _document_length,
    "broken_characters": _document_broken_characters,
    "few_letters": _document_few_letters,
    "symbols": _document_symbols,
    "wrong_script": _document_wrong_script,
    "word_length": _document_word_length,
    "ellipsis_lines": _document_ellipsis_lines,
    "repeated_lines": _document_repeated_lines,
    "curly_braces": _document_curly_braces,
    "lorem_ipsum": _document_lorem_ipsum,
}
DOCUMENT_RULES: tuple[str, ...] = tuple(_DOCUMENT_CHECKS)


def check_documents(texts: Sequence[str], language: str | None, rules: DocumentRules) -> NDArray[np.uint8]:
    """Decide on each document: 0 if it is kept, else 1 + the index in DOCUMENT_RULES of the first rule; shape (n,).

    Without a language, or with an unknown one, `wrong_script` and `word_length` do not apply.
    """
    decided = np.zeros(len(texts), np.uint8)
    for start, stop in _blocks(list(map(len, texts))):
        documents = _Documents(texts[start:stop], language)
        drops = [check(documents, rules) for check in _DOCUMENT_CHECKS.values()]
        _note_first(decided[start:stop], drops)
    return decided


def _note_first(decided: NDArray[np.uint8], drops: Sequence[Bools | None]) -> None:
    """Write 1 + the number of the first rule that drops it for each text that some rule drops."""
    for number in reversed(range(len(drops))):
        drop = drops[number]
        if drop is not None:
            decided[drop] = number + 1


def _blocks(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut texts of so many characters into runs of at most `_BLOCK` characters, or one text."""
    start = size = 0
    for stop, length in enumerate(lengths):
        if stop > start and size + length > _BLOCK:
            yield start, stop
            start, size = stop, 0
        size += length
    if start < len(lengths):
        yield start, len(lengths)
