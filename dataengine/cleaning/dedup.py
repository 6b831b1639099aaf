"""Exact duplicates: keys that units compute for their records, and the reduce that finds every later occurrence.

    texts, pairs -> keys (per part) -> ranges of the key space -> groups of records with one key -> duplicates

A record is a duplicate if it shares a key with an earlier record that is kept. The canonical order is that of parts,
then that of records in a part. So for every dropped text an equal one stays.

Near duplicates are in `near_duplicates`, which shares `normalize` and `hash_grams`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dataengine.arrays import Bools, Int64s, UInt32s, UInt64s
from dataengine.characters import without_invisible
from dataengine.permutation import hash_numbers

# 24 bytes without padding, so equal keys are equal bytes. `high` and `low` are a 128-bit hash. `record` is the record's
# number in its part. `kind` names the hashed part of the record; the hash covers it, too, so keys of two kinds differ.
KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("record", "<u4"), ("kind", "<u4")])
# A record, and a group of records with the same key.
GROUPED = np.dtype([("group", "<u4"), ("part", "<u4"), ("record", "<u4"), ("kind", "<u4")])
Keys = NDArray[np.void]  # of dtype KEY, shape (n,)
_SEED = 17
_NO_KIND = np.uint32(0xFFFFFFFF)
_ROUNDS = 64  # of the reduce, which decide many records at once; the rest is decided one by one
_GROUP = 1 << 17  # characters processed at a time: they fit the processor's cache
_USUAL_SIZE = 2 * _GROUP
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
# Forms that NFKC replaces and that nearly every Chinese text has.
_FULL_WIDTH = (*zip("，：；！？（）\u3000", ",:;!?() ", strict=True), ("…", "..."))
WORD_WEIGHT = 4
# Weight of a token by class: a word; a Chinese or Japanese character (2.2 of them translate an English word in pairs of
# documentation); a letter of the South-East Asian scripts without spaces.
_WEIGHTS = np.array([0, WORD_WEIGHT, 2, 1])
_WORD, _WIDE, _NARROW = 1, 2, 3
_UNSPACED = (
    (0x0E00, 0x0EFF, _NARROW),  # Thai, Lao
    (0x1000, 0x109F, _NARROW),  # Burmese
    (0x1780, 0x17FF, _NARROW),  # Khmer
    (0x3005, 0x3007, _WIDE),
    (0x3040, 0x312F, _WIDE),  # kana, bopomofo
    (0x31F0, 0x31FF, _WIDE),
    (0x3400, 0x9FFF, _WIDE),  # Han
    (0xF900, 0xFAFF, _WIDE),
    (0x20000, 0x3FFFF, _WIDE),
)
_SYMBOLS = "#%&*@‰\\"  # punctuation by category
_HYPHEN = ord("-")
_SIGN_VALUE = np.uint64(0x2545F4914F6CDD1D)


def normalize(text: str) -> str:
    """Remove differences that do not make a text another one: invisible characters, compatibility forms (NFKC), case,
    and runs of white space, which become one space. Folded numbers stay apart from digits: 10² does not become 102."""
    if not text.isascii():
        text = without_invisible(text)
        if not unicodedata.is_normalized("NFKC", text):
            for wide, narrow in _FULL_WIDTH:  # 5x faster than `normalize`, and enough for most Chinese texts
                text = text.replace(wide, narrow)
            if not unicodedata.is_normalized("NFKC", text):
                text = unicodedata.normalize("NFKC", _part_numbers(text))
                text = without_invisible(text)  # U+3164 and U+FFA0 become U+1160
    return " ".join(text.casefold().split())


def normalize_all(texts: Sequence[str], *, normal: bool = False) -> Sequence[str]:
    """Normalized texts. `normal`: they are already."""
    return texts if normal else list(map(normalize, texts))


def _part_numbers(text: str) -> str:
    """Separate numbers that NFKC would join: 10² becomes 10^², log₂8 becomes log₂ 8, and 1½ becomes 1 ½.

    A mark or a space separates a digit from an adjacent superscript, subscript, fraction or circled number.
    """
    some, *marks = _number_forms()
    if some.search(text):
        for pattern, mark in zip(marks, "^_ ", strict=True):
            text = pattern.sub(mark, text)
    return text


@lru_cache(maxsize=1)
def _number_forms() -> tuple[re.Pattern[str], ...]:
    """Patterns for superscripts, subscripts and characters that are numbers (½, ①, ⒈, ㏠), and for the places where a
    digit touches one: before a superscript, before a subscript, and beside such a number."""
    forms: dict[str, list[str]] = {"<super>": [], "<sub>": [], "": []}
    for character in map(chr, range(0x20000)):  # beyond, NFKC replaces Han characters alone
        tag, _, folded = unicodedata.decomposition(character).partition(" ")
        if tag in ("<fraction>", "<circle>", "<compat>", "<square>"):
            ends = [chr(int(code, 16)) for code in (folded.split()[0], folded.split()[-1])]
            tag = "" if any(map(str.isdecimal, ends)) else tag
        if tag in forms and folded:
            forms[tag].append(character)
    raised, lowered, numbers = map("".join, forms.values())
    return (
        re.compile(f"[{raised}{lowered}{numbers}]"),
        re.compile(rf"(?<=[\d{numbers}{lowered}])(?=[{raised}])"),
        re.compile(rf"(?<=[\d{numbers}{raised}])(?=[{lowered}])"),
        re.compile(rf"(?<=[\d{raised}{lowered}{numbers}])(?=[{numbers}])|(?<=[{raised}{lowered}{numbers}])(?=\d)"),
    )


# --- Keys ---


def text_keys(texts: Sequence[str], kind: int, first_record: int, *, normal: bool = False) -> Keys:
    """A key per normalized text. Record numbers count from `first_record`. Shape (n,). `normal`: they are already."""
    return _make_keys([text.encode() for text in normalize_all(texts, normal=normal)], kind, first_record)


def pair_keys(
    sources: Sequence[str], targets: Sequence[str], kind: int, first_record: int, *, normal: bool = False
) -> Keys:
    """A key per pair, both sides normalized. Shape (n,). `normal`: they are already."""
    sources, targets = (normalize_all(texts, normal=normal) for texts in (sources, targets))
    both = zip(
        sources, targets, strict=True
    )  # a normalized text has no line break, so different pairs give different texts
    return _make_keys([f"{source}\n{target}".encode() for source, target in both], kind, first_record)


def _make_keys(contents: Sequence[bytes], kind: int, first_record: int) -> Keys:
    first = kind.to_bytes(4, "little")  # not as a seed: short contents of two kinds would share a hash
    digests = b"".join([xxhash.xxh3_128_digest(first + content) for content in contents])
    return _fill_keys(digests, np.arange(first_record, first_record + len(contents)), kind)


def _fill_keys(digests: bytes, records: NDArray[np.int64], kind: int) -> Keys:
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2)
    keys = np.empty(len(records), KEY)
    keys["high"], keys["low"], keys["record"], keys["kind"] = halves[:, 0], halves[:, 1], records, kind
    return keys


# --- N-grams ---


@dataclass(frozen=True)
class Grams:
    """Hashes of n texts and of the m n-grams in them, in the order of the texts.

    An n-gram and a text of the same words have the same hash.
    """

    texts: UInt64s  # (n,): each text as a whole
    weights: NDArray[np.int64]  # (n,): its length, WORD_WEIGHT per word
    hashes: UInt64s  # (m,)
    rows: NDArray[np.int64]  # (m,): the text of each n-gram


def hash_grams(texts: Sequence[str], words: int, *, symbols: bool = False) -> Iterator[Grams]:
    """Hashes of normalized texts and of their n-grams of `words` words, as a Grams per run of consecutive texts.

    A word is a run of letters, marks and digits; everything else only separates words. With `symbols`, symbols
    (category S, and # % & * @ ‰ and the backslash) and the sign of a number count as letters: C++ differs from C, -5
    from 5, and A < B from A > B. In scripts without spaces a character is a token that weighs less than a word. An
    n-gram is as many tokens as reach the weight of `words` words: 13 words, 26 Chinese characters, or a mix. So an
    n-gram is found in any context.
    """
    first = 0
    while first < len(texts):
        last, size = first, 0
        while last < len(texts) and (last == first or size + len(texts[last]) < _GROUP):
            size += len(texts[last]) + 1
            last += 1
        yield _hash_group(texts[first:last], words, symbols)
        first = last


def _hash_group(texts: Sequence[str], words: int, symbols: bool) -> Grams:
    codes = np.frombuffer(("\n".join(texts) + "\n").encode("utf-32-le", "surrogatepass"), "<u4")
    values, kinds = _alphabet(symbols)
    classes, numbers = kinds[codes], values[codes]
    if symbols:
        signs = np.flatnonzero(codes[:-1] == _HYPHEN)
        numerals = np.array([chr(code).isdecimal() for code in codes[signs + 1].tolist()], np.bool_)
        signs = signs[numerals & ((signs == 0) | (classes[signs - 1] != _WORD))]
        classes[signs], numbers[signs] = _WORD, _SIGN_VALUE
    inside = classes > _WORD
    inside[0] |= classes[0] == _WORD
    inside[1:] |= (classes[1:] == _WORD) & (classes[:-1] != _WORD)
    starts = np.flatnonzero(inside)

    ends = np.cumsum([len(text) + 1 for text in texts])
    bounds = np.concatenate([[0], np.searchsorted(starts, ends)])  # of each text's tokens
    powers, inverses = _usual_powers() if len(codes) <= _USUAL_SIZE else _powers(len(codes))
    tokens = np.zeros(0, np.uint64)
    if len(starts):  # separators are zero, so a token can be summed up to the start of the next one
        tokens = _mix(np.add.reduceat(numbers * powers[: len(codes)], starts) * inverses[starts])
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(tokens * powers[: len(tokens)])])
    lengths = np.concatenate([[0], np.cumsum(_WEIGHTS[classes[starts]])])

    def hash_spans(begins: NDArray[np.int64], stops: NDArray[np.int64]) -> UInt64s:
        return _mix((sums[stops] - sums[begins]) * inverses[begins])

    stops = np.searchsorted(lengths, lengths[:-1] + WORD_WEIGHT * words)
    owners = np.repeat(np.arange(len(texts)), np.diff(bounds))
    begins = np.flatnonzero(stops <= bounds[1:][owners])
    return Grams(
        texts=hash_spans(bounds[:-1], bounds[1:]),
        weights=lengths[bounds[1:]] - lengths[bounds[:-1]],
        hashes=hash_spans(begins, stops[begins]),
        rows=owners[begins],
    )


def _mix(values: UInt64s) -> UInt64s:
    return hash_numbers(values.view(np.int64), _SEED)


@lru_cache(maxsize=1)
def _categories() -> NDArray[np.uint8]:
    """The first letter of the category of each code point. Takes 0.3 s, once per process."""
    return np.frombuffer("".join(map(unicodedata.category, map(chr, range(0x110000)))).encode(), np.uint8)[::2]


@lru_cache(maxsize=2)
def _alphabet(symbols: bool) -> tuple[UInt64s, NDArray[np.uint8]]:
    """The value of each code point in a polynomial hash (0 for separators), and its class."""
    kinds = np.isin(_categories(), list(b"LMNS" if symbols else b"LMN")).astype(np.uint8)
    if symbols:
        kinds[list(map(ord, _SYMBOLS))] = _WORD
    for low, high, kind in _UNSPACED:
        kinds[low : high + 1] *= np.uint8(kind)
    return hash_numbers(np.arange(len(kinds)), _SEED) * (kinds > 0), kinds


@lru_cache(maxsize=1)
def _usual_powers() -> tuple[UInt64s, UInt64s]:
    return _powers(_USUAL_SIZE)


def _powers(size: int) -> tuple[UInt64s, UInt64s]:
    """Powers of the base of the polynomial hash, modulo 2^64, and their inverses; shapes (size,).

    The hash of a span is the sum of its values times the powers of their positions, divided by the power of its start.
    """
    return _power_series(_BASE, size), _power_series(pow(_BASE, -1, 1 << 64), size)


def _power_series(base: int, size: int) -> UInt64s:
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


# --- The reduce ---


def find_groups(keys: NDArray[Any]) -> NDArray[Any]:
    """The records that share a key, in one range of the key space. Takes its keys, dtype KEY with the number of the
    `part`; equal keys are in canonical order.

    Returns an entry per key of each such record, dtype GROUPED, shape (n,). Groups count from 0 and follow each other;
    each is in canonical order and has at least two records. A key that a record has twice is one entry.

    Takes 40 bytes of memory per key, beside the keys.
    """
    order = order_of_equal(keys["high"])
    high, low = keys["high"][order], keys["low"][order]
    if np.any(~_fresh(high) & _fresh(low)):  # only their high half is equal: rare
        order = order[np.lexsort((low, high))]
    del high, low
    fresh = _fresh(keys["high"][order]) | _fresh(keys["low"][order])  # starts a run of equal keys
    once = fresh | _fresh(keys["part"][order]) | _fresh(keys["record"][order])
    starts = np.flatnonzero(fresh)
    shared = np.add.reduceat(once, starts, dtype=np.int64) > 1 if len(starts) else fresh
    chosen = once & np.repeat(shared, np.diff(starts, append=len(order)))
    order, fresh = order[chosen], fresh[chosen]
    found = np.empty(len(order), GROUPED)
    found["group"] = np.cumsum(fresh, dtype=np.uint32) - np.uint32(1)
    for name in ("part", "record", "kind"):
        found[name] = keys[name][order]
    return found


def order_of_equal(hashes: UInt64s) -> Int64s:
    """The places of hashes that occur twice or more, in the order of (hash, place)."""
    order: Int64s = np.argsort(hashes, kind="stable")
    fresh = np.append(_fresh(hashes[order]), True)
    return np.asarray(order[~(fresh[:-1] & fresh[1:])])


def _fresh(values: NDArray[Any]) -> Bools:
    """Where a value differs from the one before."""
    fresh = np.ones(len(values), bool)
    fresh[1:] = values[1:] != values[:-1]
    return fresh


def drop_later(ranges: Iterable[NDArray[Any]]) -> tuple[UInt32s, UInt32s, UInt32s]:
    """The duplicates among records in groups: entries of dtype GROUPED, as returned by `find_groups` for each range.

    Records are decided one after the other in canonical order: a record is dropped if it shares a group with an earlier
    kept one. Returns the parts, the numbers and the smallest kinds that cause the drops, each of shape (n,), in
    canonical order. Takes 50 bytes of memory per entry.
    """
    all_ids, groups, kinds, count = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)], [np.empty(0, np.uint32)], 0
    for entries in ranges:
        all_ids.append(entries["part"].astype(np.uint64) << np.uint64(32) | entries["record"])
        groups.append(entries["group"] + np.uint32(count))
        kinds.append(entries["kind"][_fresh(entries["group"])])
        count += len(kinds[-1])
    ids, group, kind_of_group = np.concatenate(all_ids), np.concatenate(groups), np.concatenate(kinds)
    del all_ids, groups
    distinct = np.unique(ids)
    if len(distinct) == len(ids):  # a record has one key, so the first of each group is kept
        del distinct
        later = ~_fresh(group)
        ids, reason = ids[later], kind_of_group[group[later]]
        order = np.argsort(ids)
        return _halves(ids[order], reason[order])
    record = np.searchsorted(distinct, ids).astype(np.uint32)
    del ids
    kept = _keep_first(group, record, len(distinct))
    # A group has at most one kept record; the records after it have a reason.
    behind = np.cumsum(kept[record]) > np.searchsorted(group[kept[record]], group)
    behind &= ~kept[record]
    reason = np.full(len(distinct), _NO_KIND, np.uint32)
    np.minimum.at(reason, record[behind], kind_of_group[group[behind]])
    return _halves(distinct[~kept], reason[~kept])


def _halves(ids: UInt64s, reasons: UInt32s) -> tuple[UInt32s, UInt32s, UInt32s]:
    return (ids >> np.uint64(32)).astype(np.uint32), ids.astype(np.uint32), reasons


def _keep_first(group: UInt32s, record: UInt32s, count: int) -> Bools:
    """Which of `count` records are kept, given the entries of groups sorted by group and record; shape (count,)."""
    kept, decided = np.zeros(count, bool), np.zeros(count, bool)
    for _ in range(_ROUNDS):
        if not len(group):
            return kept
        first = _fresh(group)
        leads = np.ones(count, bool)  # comes first in all its groups
        leads[record[~first]] = False
        sizes = np.diff(np.flatnonzero(np.append(first, True)))
        led = np.repeat(leads[record[first]], sizes)  # in a group that such a record leads
        kept[record[led & first]] = True
        decided[record[led]] = True
        left = ~decided[record]
        group, record = group[left], record[left]
    order = np.argsort(record, kind="stable")  # long chains: a round decides only a link or two
    entries = zip(record[order].tolist(), group[order].tolist(), strict=True)
    taken: set[int] = set()
    for number, mine in groupby(entries, key=itemgetter(0)):
        groups = {each for _, each in mine}
        if taken.isdisjoint(groups):
            kept[number] = True
            taken |= groups
    return kept
