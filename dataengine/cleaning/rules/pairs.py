"""Cleaning rules for sentence pairs, as column operations. Suspects are checked one by one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Bools, Int64s
from dataengine.cleaning.rules.columns import (
    BROKEN_CLASS,
    DIGIT_CLASS,
    NUM_CODE_POINTS,
    TextColumn,
    confirm_suspects,
    fold,
    fold_table,
    note_first_drop,
    text_blocks,
)
from dataengine.cleaning.rules.digits import digits_differ, few_digits_in_common, without_arguments
from dataengine.cleaning.rules.settings import PairRules


class _Pairs(TextColumn):
    """Pairs as one column: all sources, then all targets."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str], languages: tuple[str, str]) -> None:
        super().__init__([*sources, *targets])
        self.size = len(sources)
        self.languages = languages

    def either(self, of_texts: Bools) -> Bools:
        """True for a pair if true for one of its sides."""
        return of_texts[: self.size] | of_texts[self.size :]

    def sides(self, pair: int) -> tuple[str, str]:
        return self.texts[pair], self.texts[pair + self.size]


def _pair_length(pairs: _Pairs, rules: PairRules) -> Bools:
    return pairs.either(pairs.wrong_length(rules.min_characters, rules.max_characters))


def _pair_broken_characters(pairs: _Pairs, rules: PairRules) -> Bools | None:
    return pairs.either(pairs.counts[BROKEN_CLASS] > 0) if rules.drop_broken_characters else None


def _pair_few_letters(pairs: _Pairs, rules: PairRules) -> Bools | None:
    return None if rules.min_letter_share is None else pairs.either(pairs.few_letters(rules.min_letter_share))


def _pair_identical_sides(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """The sides have the same letters and digits in the same order, and at least one."""
    if not rules.drop_identical_sides:
        return None
    sums = np.add.reduceat(fold_table()[pairs.codes], pairs.starts)  # uint32, wraps
    alike = sums[: pairs.size] == sums[pairs.size :]

    def identical(pair: int) -> bool:
        source, target = map(fold, pairs.sides(pair))
        return source == target != ""

    return confirm_suspects(alike, identical)


def _pair_wrong_script(pairs: _Pairs, rules: PairRules) -> Bools | None:
    if rules.min_script_share is None:
        return None
    source, target = (pairs.wrong_script(language, rules.min_script_share) for language in pairs.languages)
    return source[: pairs.size] | target[pairs.size :]


def _pair_length_ratio(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """One side is too much longer than the other, in UTF-8 bytes.

    A Han letter takes three bytes and carries about as much as three Latin ones, so one ratio works for all language
    pairs. English and Chinese sides of software messages have 50 and 54 bytes on average, but 50 and 18 characters.
    """
    if rules.max_length_ratio is None:
        return None
    sizes = pairs.lengths.copy()
    for first in (0x80, 0x800, 0x10000):  # each takes a byte more
        sizes += pairs.total(pairs.codes >= first)
    source, target = sizes[: pairs.size], sizes[pairs.size :]
    shorter, longer = np.minimum(source, target), np.maximum(source, target)
    return longer > rules.max_length_ratio * shorter + rules.length_slack


def _pair_digit_mismatch(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """`digits_differ` for the texts, and also for the texts `without_arguments`."""
    most = rules.max_missing_digits
    if most is None:
        return None
    digits = pairs.counts[DIGIT_CLASS + 1 : DIGIT_CLASS + 10]
    surplus = digits[:, : pairs.size] - digits[:, pairs.size :]
    source, target = np.maximum(surplus, 0).sum(axis=0), np.maximum(-surplus, 0).sum(axis=0)
    # Chinese numerals can only reduce the difference.
    differ = ((source > 0) & (target > 0)) | (np.maximum(source, target) > most)

    def differ_indeed(pair: int) -> bool:
        source, target = pairs.sides(pair)
        return digits_differ(source, target, most) and digits_differ(
            without_arguments(source), without_arguments(target), most
        )

    return confirm_suspects(differ, differ_indeed)


def _pair_surplus_digits(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """`few_digits_in_common` for the texts, and also for the texts `without_arguments`."""
    least = rules.min_digit_overlap
    if least is None:
        return None
    digits = pairs.counts[DIGIT_CLASS + 1 : DIGIT_CLASS + 10]
    source, target = digits[:, : pairs.size], digits[:, pairs.size :]
    few = np.abs(source - target).sum(axis=0) > (1 - least) * (source + target).sum(axis=0)

    def few_indeed(pair: int) -> bool:
        source, target = pairs.sides(pair)
        return few_digits_in_common(source, target, least) and few_digits_in_common(
            without_arguments(source), without_arguments(target), least
        )

    return confirm_suspects(few, few_indeed)


TERMINALS = ".?!…。．｡？！؟۔।॥։።"  # the first four are OpusFilter's


@lru_cache(maxsize=1)
def _terminal_table() -> Bools:
    """Which code points end a sentence, shape (0x110000,)."""
    table = np.zeros(NUM_CODE_POINTS, np.bool_)
    table[list(map(ord, TERMINALS))] = True
    return table


def _pair_terminal_punctuation(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """Too many sentence-final marks: the difference of both sides, plus those beyond the first on each side.

    OpusFilter's TerminalPunctuationFilter (Vázquez et al. 2019), whose score is -log(1 + this): -2 is between 6 and 7.
    """
    if rules.max_terminal_penalty is None:
        return None
    marks = pairs.total(_terminal_table()[pairs.codes])
    source, target = marks[: pairs.size], marks[pairs.size :]
    penalty: Int64s = np.abs(source - target) + np.maximum(source - 1, 0) + np.maximum(target - 1, 0)
    return penalty > rules.max_terminal_penalty


def copies(source: str, target: str, max_share: float) -> bool:
    """More than a share of the shorter side's characters is one piece that the longer side also contains.

    Like OpusFilter's LongestCommonSubstringFilter, case-sensitive.
    """
    shorter, longer = sorted((source, target), key=len)
    size = math.floor(max_share * len(shorter)) + 1
    pieces = {shorter[k : k + size] for k in range(len(shorter) - size + 1)}
    return any(longer[k : k + size] in pieces for k in range(len(longer) - size + 1)) if pieces else False


def _pair_copied_text(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """Suspects are pairs whose sides share as many character bigrams as a long piece has.

    Bigrams are counted in a few slots. A collision can only raise the number of shared ones.
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
    return confirm_suspects(suspects, lambda pair: copies(*pairs.sides(pair), share))


_URL = re.compile(r"\b(?:https?|ftp)://([a-z0-9.-]+)", re.IGNORECASE | re.ASCII)
_EMAIL = re.compile(r"[a-z0-9._%+-]{1,64}@[a-z0-9-]+(?:\.[a-z0-9-]+)+", re.IGNORECASE | re.ASCII)


def find_links(text: str) -> Counter[str]:
    """E-mail addresses and hosts of URLs in lower case. Of a host the last two labels, as sites are localized."""
    hosts = (".".join(host.lower().strip(".").split(".")[-2:]) for host in _URL.findall(text))
    return Counter([*hosts, *(address.lower() for address in _EMAIL.findall(text))])


def _pair_link_mismatch(pairs: _Pairs, rules: PairRules) -> Bools | None:
    if not rules.drop_link_mismatch:
        return None
    suspects = (pairs.count("@") > 0) | ((pairs.count("/") > 1) & (pairs.count(":") > 0))

    def mismatch(pair: int) -> bool:
        source, target = map(find_links, pairs.sides(pair))
        return source != target

    return confirm_suspects(pairs.either(suspects), mismatch)


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
    """The text contains an HTML tag (whole, or cut off after the name of an attribute), comment or entity."""
    return _MARKUP.search(text) is not None


def _pair_markup(pairs: _Pairs, rules: PairRules) -> Bools | None:
    if not rules.drop_markup:
        return None
    suspects = (pairs.count("<") > 0) | ((pairs.count("&") > 0) & (pairs.count(";") > 0))
    return pairs.either(confirm_suspects(suspects, lambda text: has_markup(pairs.texts[text])))


_GRAM = 4  # characters


def repeats(text: str, max_share: float) -> bool:
    """More than a share of a text's 4-grams of characters occurred before: `buy now, buy now, buy now`."""
    windows = len(text) - _GRAM + 1
    return len({text[k : k + _GRAM] for k in range(windows)}) < (1 - max_share) * windows


def _pair_repetition(pairs: _Pairs, rules: PairRules) -> Bools | None:
    """Suspects are texts with few different 4-grams. Collisions in the table can only lower the number."""
    share = rules.max_repeated_share
    if share is None:
        return None
    size = len(pairs.codes)
    bits = min((2 * size).bit_length(), 24)
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
    different = pairs.total(last[slots] == places)  # also counts the four 4-grams that reach beyond the text
    suspects = different < (1 - share) * (pairs.lengths - _GRAM + 1) + _GRAM
    return pairs.either(confirm_suspects(suspects, lambda text: repeats(pairs.texts[text], share)))


# In the order of application.
# A new rule needs a key in settings.py, the same rule in plain Python in benchmarks/rules.py (tests compare them), and
# a line in docs/reference/rules.md. It changes the identity of every stream with `pair_rules`.
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
    """Decide on each pair: 0 to keep it, else 1 + the index in PAIR_RULES of the first rule that drops it; (n,)."""
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets: each source needs a target")
    lengths = [len(source) + len(target) for source, target in zip(sources, targets, strict=True)]
    decided = np.zeros(len(lengths), np.uint8)
    for start, stop in text_blocks(lengths):
        pairs = _Pairs(sources[start:stop], targets[start:stop], languages)
        drops = [check(pairs, rules) for check in _PAIR_CHECKS.values()]
        note_first_drop(decided[start:stop], drops)
    return decided
