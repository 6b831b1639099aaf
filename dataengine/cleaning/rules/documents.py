"""Cleaning rules for documents, as column operations. Suspects are checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Bools, Int64s
from dataengine.cleaning.rules.columns import (
    BROKEN_CLASS,
    SPACE_CLASS,
    SYMBOL_CLASS,
    TextColumn,
    confirm_suspects,
    fold_table,
    note_first_drop,
    outside_bounds,
    text_blocks,
)
from dataengine.cleaning.rules.scripts import scripts_of
from dataengine.cleaning.rules.settings import DocumentRules
from dataengine.text.language_codes import base_language

# Scripts written without spaces between words.
_UNSPACED = {"Bopomofo", "Han", "Hiragana", "Katakana", "Khmer", "Lao", "Myanmar", "Thai", "Tibetan"}
# Mean word length in messages of Debian programs, for languages far from the 5.3 characters of English.
_ENGLISH_WORD = 5.3
_WORD_LENGTHS = {
    "ko": 3.5, "vi": 3.6, "pa": 4.4, "hi": 4.4, "de": 7.2, "lt": 7.2, "ug": 7.4, "eu": 7.5, "te": 7.7, "ka": 7.9,
    "kn": 7.9, "uz": 7.9, "ta": 8.0, "xh": 8.2, "fi": 8.6, "ml": 9.3,
}  # fmt: skip


class _Documents(TextColumn):
    """Documents as one column, and their lines that are not blank."""

    def __init__(self, texts: Sequence[str], language: str | None) -> None:
        super().__init__(texts)
        self.language = language

    @cached_property
    def lines(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """For each line: the position of its line feed, its document, its number of characters except white space, and
        a sum that is the same for equal lines."""
        ends = np.flatnonzero(self.codes == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        solid = np.add.reduceat(self.classes != SPACE_CLASS, starts, dtype=np.int64)
        sums = np.add.reduceat(fold_table()[self.codes], starts).astype(np.int64)
        kept = solid > 0
        return ends[kept], self.owners[ends[kept]], solid[kept], sums[kept]

    def count_lines(self, documents: Int64s) -> Int64s:
        return np.bincount(documents, minlength=len(self.texts))


def _document_length(documents: _Documents, rules: DocumentRules) -> Bools:
    return documents.wrong_length(rules.min_characters, rules.max_characters)


def _document_broken_characters(documents: _Documents, rules: DocumentRules) -> Bools | None:
    share = rules.max_broken_share
    return None if share is None else documents.counts[BROKEN_CLASS] > share * documents.solid


def _document_few_letters(documents: _Documents, rules: DocumentRules) -> Bools | None:
    return None if rules.min_letter_share is None else documents.few_letters(rules.min_letter_share)


def _document_symbols(documents: _Documents, rules: DocumentRules) -> Bools | None:
    if rules.max_symbol_share is None:
        return None
    symbols = documents.of_classes([SYMBOL_CLASS]) + documents.count("<>#…")
    many: Bools = symbols > rules.max_symbol_share * documents.solid
    return many


def _document_wrong_script(documents: _Documents, rules: DocumentRules) -> Bools | None:
    share = rules.min_script_share
    return None if share is None else documents.wrong_script(documents.language, share)


def _document_word_length(documents: _Documents, rules: DocumentRules) -> Bools | None:
    if _UNSPACED.issuperset(scripts_of(documents.language)):  # also true for an unknown language
        return None
    space = documents.classes == SPACE_CLASS
    begins = ~space
    begins[1:] &= space[:-1]
    words = documents.total(begins)
    means = documents.solid / np.maximum(words, 1)
    return (words > 0) & outside_bounds(means, *word_length_bounds(documents.language, rules))


def word_length_bounds(language: str | None, rules: DocumentRules) -> tuple[float | None, float | None]:
    """Bounds of the mean word length in a language: those of the rules, wider if words are usually shorter or longer
    than in English."""
    usual = _WORD_LENGTHS.get(base_language(language), _ENGLISH_WORD) / _ENGLISH_WORD
    least, most = rules.min_word_length, rules.max_word_length
    return least and least * min(usual, 1.0), most and most * max(usual, 1.0)


def _document_ellipsis_lines(documents: _Documents, rules: DocumentRules) -> Bools | None:
    if rules.max_ellipsis_lines is None:
        return None
    dot, ellipsis = documents.codes == ord("."), documents.codes == ord("…")
    behind = np.zeros(len(dot), np.bool_)  # an ellipsis ends directly before this character
    behind[1:] = ellipsis[:-1]
    behind[3:] |= dot[:-3] & dot[1:-2] & dot[2:-1]
    ends, owners, _, _ = documents.lines
    ending = documents.count_lines(owners[behind[ends]])
    many: Bools = (ending > 1) & (ending > rules.max_ellipsis_lines * documents.count_lines(owners))
    return many


def repeats_lines(text: str, max_share: float) -> bool:
    """More than a share of a text's characters, without white space, is in lines that occurred before."""
    seen: set[str] = set()
    whole = repeated = 0
    for line in map(str.strip, text.split("\n")):
        size = len("".join(line.split()))
        whole += size
        repeated += size if line in seen else 0
        seen.add(line)
    return repeated > max_share * whole


def _document_repeated_lines(documents: _Documents, rules: DocumentRules) -> Bools | None:
    """Suspects are documents with many lines of equal sums: all equal lines have them, and a few others."""
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
    return confirm_suspects(suspects, lambda text: repeats_lines(documents.texts[text], share))


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
    """Decide on each document: 0 to keep it, else 1 + the index in DOCUMENT_RULES of the first rule; shape (n,).

    Without a language, or with an unknown one, `wrong_script` and `word_length` do not apply.
    """
    decided = np.zeros(len(texts), np.uint8)
    for start, stop in text_blocks(list(map(len, texts))):
        documents = _Documents(texts[start:stop], language)
        drops = [check(documents, rules) for check in _DOCUMENT_CHECKS.values()]
        note_first_drop(decided[start:stop], drops)
    return decided
