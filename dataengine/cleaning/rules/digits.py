"""Digits that a text and its translation share, including Chinese numerals."""

from __future__ import annotations

import re
from collections import Counter

# Chinese digits and their values: common, financial, Japanese and older ones, and those of twenty, thirty and forty.
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
_HAN_COUNTED = tuple("月日号號年分秒")  # except in 第一 and before these


def han_numbers(text: str) -> list[Counter[int]]:
    """The digits except zeros of each number in Chinese numerals.

    Zeros do not count, so 一九八七 and 一千九百八十七 have the digits of 1987, 十二 of 12, 一万二千 of 12,000. 半 after
    an hour is 30 (三点半: 3:30), otherwise 0.5. 一刻 is 15 and 三刻 45 minutes. Numerals that are mostly words do not
    count.
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
    """The digits except zeros of a number in Chinese numerals. A unit without a digit before it means one (十二)."""
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
    """The number of digits of each side that the other side lacks.

    Digits of every script count by value, one by one, without zeros. So 12,000 agrees with 1.2万, and 12/25/2020 with
    2020年12月25日. A number in Chinese numerals matches digits that it lacks on its side if all its digits are among
    them; numbers with most digits come first. It needs no match itself, because 一 may be a word on the other side.
    """
    digits, others = (Counter(int(digit) for digit in re.findall(r"\d", text)) for text in (source, target))
    digits[0] = others[0] = 0
    return _left(digits - others, target), _left(others - digits, source)


def _left(missing: Counter[int], other_side: str) -> int:
    """The number of digits that a side lacks, also in Chinese numerals."""
    if missing:
        for number in sorted(han_numbers(other_side), key=Counter.total, reverse=True):
            if number <= missing:
                missing -= number
    return missing.total()


def digits_differ(source: str, target: str, max_missing: int) -> bool:
    """Each side has a digit that the other lacks, or one side has more than `max_missing` such digits.

    So a few digits may be words on the other side (October 1, 10月1日).
    """
    missing, surplus = differing_digits(source, target)
    return (missing > 0 and surplus > 0) or max(missing, surplus) > max_missing


def without_arguments(text: str) -> str:
    """A text without the numbers of reordered printf arguments, such as `%2$s`."""
    return re.sub(r"%[1-9]\$", "%", text)


def few_digits_in_common(source: str, target: str, min_overlap: float) -> bool:
    """Too few digits of both sides are also on the other side, counted as in `differing_digits`.

    OpusFilter's NonZeroNumeralsFilter also compares their order, which translations change.
    """
    digits = sum(character.isdecimal() and int(character) > 0 for character in source + target)
    return sum(differing_digits(source, target)) > (1 - min_overlap) * digits
