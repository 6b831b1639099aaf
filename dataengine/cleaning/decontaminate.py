"""Find training texts that contain evaluation texts, as whole texts or as n-grams inside longer ones.

Words are compared (`dedup.hash_grams`: normalized, without punctuation) by 64-bit hashes. Among 1e11 n-grams and an
evaluation set of 1e6, one in 200 builds loses a text by chance.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from dataengine.arrays import UInt64s
from dataengine.cleaning.dedup import WORD_WEIGHT, hash_grams, normalize_all
from dataengine.errors import InputError
from dataengine.records.evaluation_sets import read_texts

# 13 words as in GPT-3 (Brown et al. 2020, appendix C) and datatrove; 26 Chinese characters, which say as much.
NGRAM_WORDS = 13
# A text equal to an evaluation text counts from 5 words or 10 Chinese characters on. Shorter ones ("Open file") are
# common: in 387,000 deduplicated pairs of message catalogues, 5 to 18 % of the translations of one or two words were in
# other pairs, too, in up to 41 of them; of those of 5 words 2 %, in a handful.
SHORTEST_WORDS = 5

_SCHEMA = 2  # increase it when the same texts decide differently


@dataclass(frozen=True, eq=False)
class EvaluationTexts:
    """Evaluation sets as sorted hashes of the texts that are long enough and of all n-grams."""

    texts: UInt64s
    ngrams: UInt64s
    shortest_words: int = SHORTEST_WORDS
    ngram_words: int = NGRAM_WORDS

    @staticmethod
    def load(
        paths: Sequence[str | Path], *, shortest_words: int = SHORTEST_WORDS, ngram_words: int = NGRAM_WORDS
    ) -> EvaluationTexts:
        """Read evaluation sets: all texts of each file, as found by `read_texts`.

        Raises InputError if a file cannot be read, does not match its name, or has no text.
        """
        texts: list[str] = []
        for path in paths:
            found = len(texts)
            texts += read_texts(path)
            if len(texts) == found:
                raise InputError(f"evaluation set {path} contains no text. Name another file, or remove it.")
        return EvaluationTexts.from_texts(texts, shortest_words=shortest_words, ngram_words=ngram_words)

    @staticmethod
    def from_texts(
        texts: Sequence[str], *, shortest_words: int = SHORTEST_WORDS, ngram_words: int = NGRAM_WORDS
    ) -> EvaluationTexts:
        """Hash evaluation texts, in any order."""
        whole, ngrams = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for grams in hash_grams(normalize_all(texts), ngram_words):
            whole.append(grams.texts[grams.weights >= WORD_WEIGHT * shortest_words])
            ngrams.append(grams.hashes)
        return EvaluationTexts(
            np.unique(np.concatenate(whole)), np.unique(np.concatenate(ngrams)), shortest_words, ngram_words
        )

    @cached_property
    def identity(self) -> str:
        """SHA-256 in hex of all that decides: the hashes, the parameters, the version of Unicode."""
        digest = hashlib.sha256(
            orjson.dumps([_SCHEMA, self.shortest_words, self.ngram_words, len(self.texts), unicodedata.unidata_version])
        )
        digest.update(self.texts.astype("<u8").tobytes())
        digest.update(self.ngrams.astype("<u8").tobytes())
        return digest.hexdigest()

    def contaminated(self, texts: Sequence[str], *, normal: bool = False) -> NDArray[np.bool_]:
        """Whether each text is an evaluation text of `shortest_words` or more, or has an n-gram of one; shape (n,).

        A pair is contaminated if either side is. An evaluation text shorter than an n-gram is found only as a whole
        text, not inside a document. `normal`: the texts are normalized already.
        """
        parts = [np.zeros(0, bool)]
        for grams in hash_grams(normalize_all(texts, normal=normal), self.ngram_words):
            part = self._text_finder.find(grams.texts)
            part[grams.rows[self._ngram_finder.find(grams.hashes)]] = True
            parts.append(part)
        return np.concatenate(parts)

    @cached_property
    def _text_finder(self) -> _Finder:
        return _Finder(self.texts)

    @cached_property
    def _ngram_finder(self) -> _Finder:
        return _Finder(self.ngrams)


class _Finder:
    """Membership in a set of hashes. A table of their low bits rejects nearly all others at once."""

    def __init__(self, hashes: UInt64s) -> None:
        self._hashes = hashes  # sorted
        self._mask = np.uint64((1 << max(16, len(hashes).bit_length() + 4)) - 1)  # 16 to 32 bytes a hash
        self._table = np.zeros(int(self._mask) + 1, bool)
        self._table[hashes & self._mask] = True

    def find(self, hashes: UInt64s) -> NDArray[np.bool_]:
        """Whether each hash is in the set."""
        found: NDArray[np.bool_] = self._table[hashes & self._mask]
        places = np.flatnonzero(found)
        candidates = hashes[places]
        ranks = np.minimum(np.searchsorted(self._hashes, candidates), len(self._hashes) - 1)
        found[places] = self._hashes[ranks] == candidates
        return found
