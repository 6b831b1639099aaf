"""Texts as columns: a batch is one buffer of code points, not a loop.

A table maps each of the 0x110000 code points to a class: a letter of a script, a digit of a value, white space, and so
on. One `bincount` over a batch counts every class in every text, and most rules are arithmetic on these counts. If a
rule needs the text itself (links, markup, repeats, equal sides), a vectorized pre-filter without false negatives
selects candidates, and only these are checked one by one. A decision depends only on its own pair or document, never on
the batch. Rules see a text as displayed, without invisible characters; only `max_characters` counts these, too."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Bools, Int64s
from dataengine.characters import without_invisible
from dataengine.cleaning.rules.scripts import DENSE_SCRIPTS, SCRIPT_RANGES, script_ranges, scripts_of

NUM_CODE_POINTS = 0x110000  # of Unicode
_BLOCK = 1 << 17  # characters processed at a time; the columns of a block fit the processor's cache
# The classes of code points. Each code point has exactly one; classes of letters come last.
_SINGLES = "<>&;@:/{#…"
_OTHER, SPACE_CLASS, BROKEN_CLASS, _MARK, SYMBOL_CLASS, _INVISIBLE = range(6)
DIGIT_CLASS = 6  # and the nine after it, by value
_SINGLE = {character: DIGIT_CLASS + 10 + k for k, character in enumerate(_SINGLES)}
_LETTER = DIGIT_CLASS + 10 + len(_SINGLES)  # a letter of no script in the table
_SCRIPTS = {script: _LETTER + 1 + k for k, script in enumerate(SCRIPT_RANGES)}
_DENSE = [_SCRIPTS[script] for script in DENSE_SCRIPTS]
_NUM_CLASSES = _LETTER + 1 + len(_SCRIPTS)


@lru_cache(maxsize=1)
def _class_table() -> NDArray[np.uint8]:
    """The class of each code point, uint8 of shape (0x110000,). Takes about 0.1 s, once per process."""
    classes = defaultdict(
        lambda: _OTHER, {"Cc": BROKEN_CLASS, "Co": BROKEN_CLASS, "Cs": BROKEN_CLASS, "Nd": DIGIT_CLASS}
    )
    classes.update({"Zs": SPACE_CLASS, "Zl": SPACE_CLASS, "Zp": SPACE_CLASS, "Mn": _MARK, "Mc": _MARK, "Me": _MARK})
    classes.update(dict.fromkeys(["Lu", "Ll", "Lt", "Lm", "Lo"], _LETTER))
    classes.update(dict.fromkeys(["Sc", "Sk", "Sm", "So"], SYMBOL_CLASS))
    categories = map(unicodedata.category, map(chr, range(NUM_CODE_POINTS)))
    table = np.fromiter(map(classes.__getitem__, categories), np.uint8, NUM_CODE_POINTS)
    for code in range(0xA0):  # control characters end here; some are white space
        if chr(code).isspace():
            table[code] = SPACE_CLASS
    table[0xFFFD] = BROKEN_CLASS
    for code in np.flatnonzero(table == DIGIT_CLASS).tolist():
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
    """Which code points are invisible, shape (0x110000,)."""
    shown = without_invisible("".join(map(chr, range(NUM_CODE_POINTS))))
    invisible = np.ones(NUM_CODE_POINTS, np.bool_)
    invisible[np.frombuffer(shown.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))] = False
    return invisible


@lru_cache(maxsize=1)
def fold_table() -> NDArray[np.uint32]:
    """A number for each code point, so that texts with equal `fold` have equal sums; shape (0x110000,).

    `str.casefold` maps each character separately, so the sum over a text is the sum over its folded form.
    """
    codes = np.arange(NUM_CODE_POINTS, dtype=np.uint32)
    mixed = (codes ^ (codes >> np.uint32(7))) * np.uint32(0x2C1B3C6D)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x297A2D39)
    mixed[
        ~np.fromiter(map(str.isalnum, map(chr, range(NUM_CODE_POINTS))), np.bool_, NUM_CODE_POINTS) | _invisible()
    ] = 0
    table = mixed.copy()
    for code in range(0x1F000):  # no character above has case
        folded = chr(code).casefold()
        if folded != chr(code):
            table[code] = mixed[list(map(ord, folded))].sum(dtype=np.uint32)
    return table


def fold(text: str) -> str:
    """A text without case, white space, punctuation, marks and invisible characters, for comparing sides."""
    return re.sub(r"[\W_]+", "", without_invisible(text).casefold())


class TextColumn:
    """Displayed texts in one array, with a line feed after each, and the count of each class in each text."""

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
        """Too few visible characters, or too many in total."""
        return outside_bounds(self.lengths, least, None) | outside_bounds(self.whole_lengths, None, most)

    def total(self, values: Bools) -> Int64s:
        """The number of characters of each text for which `values` is true."""
        totals: Int64s = np.add.reduceat(values, self.starts, dtype=np.int64)
        return totals

    def of_classes(self, classes: slice | list[int]) -> Int64s:
        """The number of characters of some classes in each text. A class named twice counts twice."""
        totals: Int64s = self.counts[classes].sum(axis=0)
        return totals

    def count(self, characters: str) -> Int64s:
        """The number of occurrences of characters with a class of their own in each text."""
        return self.of_classes([_SINGLE[character] for character in characters])

    @cached_property
    def solid(self) -> Int64s:
        """Characters that are not white space."""
        return self.lengths + 1 - self.of_classes([SPACE_CLASS])  # the line feed after it is white space, too

    @cached_property
    def dense(self) -> Int64s:
        """Letters of dense scripts."""
        return self.of_classes(_DENSE)

    @cached_property
    def letters(self) -> Int64s:
        """Letters; a letter of a dense script counts as three."""
        return self.of_classes(slice(_LETTER, None)) + 2 * self.dense

    def few_letters(self, share: float) -> Bools:
        """Letters and marks are too few among the characters except white space. A dense letter counts as three."""
        few: Bools = self.letters + self.counts[_MARK] < share * (self.solid + 2 * self.dense)
        return few

    def wrong_script(self, language: str | None, share: float) -> Bools:
        """Letters of the language's scripts are too few among all letters. A dense letter counts as three.

        So a Chinese sentence may contain a Latin word or two. A Han letter also takes three bytes in UTF-8.
        """
        if not scripts_of(language):
            return np.zeros(len(self.texts), np.bool_)
        wrong: Bools = self.letters_of(language) < share * self.letters
        return wrong

    def letters_of(self, language: str | None) -> Int64s:
        """Letters of the language's scripts. A dense letter counts as three."""
        scripts = [_SCRIPTS[script] for script in scripts_of(language)]
        dense = [script for script in scripts if script in _DENSE]
        return self.of_classes(scripts + dense + dense)


def script_shares(texts: Sequence[str], language: str | None) -> NDArray[np.float64]:
    """The share of each text's letters in the language's scripts. A dense letter counts as three; shape (n,).

    NaN for a text without letters; 0 for all if the scripts are not known.
    """
    if not texts:
        return np.empty(0)
    column = TextColumn(texts)
    with np.errstate(invalid="ignore"):
        return np.divide(column.letters_of(language), column.letters)


def outside_bounds(values: Int64s | NDArray[np.float64], least: float | None, most: float | None) -> Bools:
    found = np.zeros(len(values), np.bool_)
    if least is not None:
        found |= values < least
    if most is not None:
        found |= values > most
    return found


def confirm_suspects(suspects: Bools, offends: Callable[[int], bool]) -> Bools:
    """The suspects that really offend, checked one by one."""
    found = np.zeros(len(suspects), np.bool_)
    for number in np.flatnonzero(suspects).tolist():
        found[number] = offends(number)
    return found


def note_first_drop(decided: NDArray[np.uint8], drops: Sequence[Bools | None]) -> None:
    """For each dropped text write 1 + the number of the first rule that drops it."""
    for number in reversed(range(len(drops))):
        drop = drops[number]
        if drop is not None:
            decided[drop] = number + 1


def text_blocks(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split texts of these lengths into runs of at most `_BLOCK` characters, or of one text."""
    start = size = 0
    for stop, length in enumerate(lengths):
        if stop > start and size + length > _BLOCK:
            yield start, stop
            start, size = stop, 0
        size += length
    if start < len(lengths):
        yield start, len(lengths)
