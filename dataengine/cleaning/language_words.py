"""The features of words in fastText's compressed models: the rows of a matrix whose mean represents a text.

A word has a row of its own if it is in the model's vocabulary, and one for each of its n-grams of characters that the
model kept. The rows of a word are remembered by its 64-bit hash, because most words of a text are common ones. Among
1e12 words, one in a thousand runs takes a word for another one by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s, UInt32s, UInt64s
from dataengine.permutation import hash_numbers

Rows = NDArray[np.int32]

_PRIME, _OFFSET = np.uint32(16777619), np.uint32(2166136261)  # FNV-1a
_SLOT_BITS = 18
_MOST_WORDS, _MOST_ROWS = 1 << 18, 1 << 21  # remembered; all are forgotten when there are more
_BLOCK = 1 << 16  # characters processed at a time: they fit the processor's cache
_BASE, _SEED = 0x9E3779B97F4A7C15, 29


class WordRows:
    """The rows of words in fastText's order, given the vocabulary, and the kept buckets of n-grams with their rows."""

    def __init__(self, vocabulary: Sequence[str], buckets: Rows, rows: Rows, num_buckets: int, lengths: range) -> None:
        self._num_buckets, self._lengths = np.uint32(num_buckets), lengths
        self._is_kept = np.zeros(num_buckets, bool)  # few are: this table fits the processor's cache, that of rows not
        self._is_kept[buckets] = True
        self._bucket_rows = np.zeros(num_buckets, np.int32)
        self._bucket_rows[buckets] = rows
        codes, starts, _ = _split("\n".join([*vocabulary, ""]))
        hashes = _hash_words(codes, starts)
        self._vocabulary_rows = np.argsort(hashes).astype(np.int32)
        self._vocabulary = hashes[self._vocabulary_rows]
        self._slots = np.zeros(1 << _SLOT_BITS, np.int32)  # hash -> number of a word that may have it
        self._hashes = np.zeros(_MOST_WORDS, np.uint64)
        self._firsts, self._counts = np.zeros(_MOST_WORDS, np.int64), np.zeros(_MOST_WORDS, np.int64)
        self._remembered = np.zeros(_MOST_ROWS, np.int32)  # rows of all words, one after the other
        self._num_words, self._num_rows = 1, 0  # word 0 is none

    def of_lines(self, lines: Sequence[str]) -> tuple[Rows, Int64s]:
        """The rows of all words of lines, one line after the other, and their number for each line.

        Words are separated by spaces.
        """
        found, start, size = [(np.empty(0, np.int32), np.empty(0, np.int64))], 0, 0
        for stop, line in enumerate(lines):
            size += len(line)
            if size > _BLOCK:
                found.append(self._of_block(lines[start : stop + 1]))
                start, size = stop + 1, 0
        if start < len(lines):
            found.append(self._of_block(lines[start:]))
        return np.concatenate([rows for rows, _ in found]), np.concatenate([counts for _, counts in found])

    def _of_block(self, lines: Sequence[str]) -> tuple[Rows, Int64s]:
        codes, starts, stops = _split("\n".join([*lines, ""]))
        words = self._number(codes, starts, stops)
        counts = self._counts[words]
        totals = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self._firsts[words] - totals[:-1], counts) + np.arange(totals[-1])
        ends = totals[np.searchsorted(starts, np.flatnonzero(codes == ord("\n")))]
        return self._remembered[places], np.diff(ends, prepend=0)

    def _number(self, codes: UInt32s, starts: Int64s, stops: Int64s) -> Rows:
        """The numbers of words, the spans of some codes. New words are learned."""
        hashes = _hash_words(codes, starts)
        numbers: Rows = self._slots[hashes >> np.uint64(64 - _SLOT_BITS)]
        missing = np.flatnonzero(self._hashes[numbers] != hashes)
        new, firsts, places = np.unique(hashes[missing], return_index=True, return_inverse=True)
        spans = missing[firsts]
        rows, counts = self._compute(codes, starts[spans], stops[spans], new)
        if self._num_words + len(new) > _MOST_WORDS or self._num_rows + len(rows) > _MOST_ROWS:
            self._slots[:], self._num_words, self._num_rows = 0, 1, 0
            return self._number(codes, starts, stops)
        numbers[missing] = self._num_words + places
        self._learn(new, rows, counts)
        return numbers

    def _learn(self, hashes: UInt64s, rows: Rows, counts: Int64s) -> None:
        """Remember new words. A word that has the slot of an earlier one takes its place."""
        numbers = np.arange(self._num_words, self._num_words + len(hashes))
        self._slots[hashes >> np.uint64(64 - _SLOT_BITS)] = numbers
        self._hashes[numbers], self._counts[numbers] = hashes, counts
        self._firsts[numbers] = self._num_rows + np.cumsum(counts) - counts
        self._remembered[self._num_rows : self._num_rows + len(rows)] = rows
        self._num_words, self._num_rows = self._num_words + len(hashes), self._num_rows + len(rows)

    def _compute(self, codes: UInt32s, starts: Int64s, stops: Int64s, hashes: UInt64s) -> tuple[Rows, Int64s]:
        """The rows of words, the spans of some codes, and their number for each word."""
        sizes = stops - starts + 2  # with a mark before and one after it
        ends = np.cumsum(sizes)
        begins = ends - sizes
        padded = codes[np.repeat(starts - begins - 1, sizes) + np.arange(sizes.sum())]
        padded[begins], padded[ends - 1] = ord("<"), ord(">")
        owners = np.repeat(np.arange(len(sizes)), sizes)
        left = ends[owners] - np.arange(len(padded))  # characters up to the end of the word
        ranks = np.minimum(np.searchsorted(self._vocabulary, hashes), len(self._vocabulary) - 1)
        known = self._vocabulary[ranks] == hashes
        width = 1 + len(self._lengths)
        orders, rows = [width * begins[known]], [self._vocabulary_rows[ranks[known]]]
        for column, buckets in enumerate(self._hash_grams(padded), 1):
            places = np.flatnonzero(self._is_kept[buckets])
            places = places[left[places] >= self._lengths[column - 1]]
            orders.append(width * places + column)
            rows.append(self._bucket_rows[buckets[places]])
        order = np.concatenate(orders)
        counts = np.bincount(owners[order // width], minlength=len(sizes))
        return np.concatenate(rows)[np.argsort(order, kind="stable")], counts

    def _hash_grams(self, codes: UInt32s) -> list[UInt32s]:
        """For each length, the bucket of the n-gram that begins at each character."""
        found, characters = [], _utf8(codes)
        hashes = np.full(len(codes) + 1, _OFFSET)
        for length in range(1, self._lengths.stop):
            hashes = _extend(hashes[:-1], [part[length - 1 :] for part in characters])
            if length in self._lengths:
                found.append(hashes - hashes // self._num_buckets * self._num_buckets)  # faster than %
        return found


def _split(text: str) -> tuple[UInt32s, Int64s, Int64s]:
    """The codes of a text, and where its words start and stop."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    inside = np.concatenate([[False], codes > ord(" ")])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return codes, edges[::2], edges[1::2]


def _hash_words(codes: UInt32s, starts: Int64s) -> UInt64s:
    """A hash of each word: a polynomial modulo 2^64 whose coefficients are hashes of the characters."""
    if not len(starts):
        return np.empty(0, np.uint64)
    powers, inverses = _powers(_BLOCK * 2) if len(codes) <= _BLOCK * 2 else _powers(len(codes))
    sums = np.add.reduceat(_values()[codes] * powers[: len(codes)], starts) * inverses[starts]
    return hash_numbers(sums.view(np.int64), _SEED)


@lru_cache(maxsize=1)
def _values() -> UInt64s:
    values = hash_numbers(np.arange(0x110000), _SEED)
    values[: ord(" ") + 1] = 0
    return values


@lru_cache(maxsize=1)
def _powers(size: int) -> tuple[UInt64s, UInt64s]:
    """Powers of the base modulo 2^64, and their inverses."""
    powers = np.full((2, size), [[_BASE], [pow(_BASE, -1, 1 << 64)]], np.uint64)
    powers[:, 0] = 1
    up, down = np.cumprod(powers, axis=1)
    return up, down


def _utf8(codes: UInt32s) -> list[UInt32s]:
    """The bytes of each character, sign-extended as fastText's hash takes them; 0 after the last one."""
    size = (codes >= 0x80).astype(np.uint32) + (codes >= 0x800) + (codes >= 0x10000)
    leads = np.array([0, 0xFFFFFFC0, 0xFFFFFFE0, 0xFFFFFFF0], np.uint32)
    parts = [leads[size] | (codes >> (np.uint32(6) * size))]
    for place in range(1, int(size.max(initial=0)) + 1):
        shift = np.uint32(6) * (np.maximum(size, np.uint32(place)) - np.uint32(place))
        byte = np.uint32(0xFFFFFF80) | ((codes >> shift) & np.uint32(0x3F))
        parts.append(np.where(size >= place, byte, np.uint32(0)))
    return parts


def _extend(hashes: UInt32s, characters: Sequence[UInt32s]) -> UInt32s:
    """FNV-1a hashes of strings with one more character each."""
    hashes = (hashes ^ characters[0]) * _PRIME
    for part in characters[1:]:
        hashes = np.where(part > 0, (hashes ^ part) * _PRIME, hashes)
    return hashes
