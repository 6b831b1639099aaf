"""Shingles of texts, their MinHash signatures, and the keys by which near duplicates are proposed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s, UInt32s, UInt64s
from dataengine.cleaning.dedup import hash_grams, normalize
from dataengine.errors import InputError
from dataengine.permutation import hash_numbers

_BLOCK = 4096  # texts
SHINGLE_WORDS = 5
PERMUTATIONS = 128  # rows of a signature
MINHASH_SEED = 17  # of MinHash
_RECALL = 0.999  # of texts just as alike as the threshold, by the bands
# 12 bytes: a hash, and the record's number in its unit.
NEAR_KEY = np.dtype([("hash", "<u8"), ("record", "<u4")])
# 44 bytes: also the last two bits of each row of the signature.
SKETCH_KEY = np.dtype([("hash", "<u8"), ("record", "<u4"), ("sketch", "<u8", (2, PERMUTATIONS // 64))])


@dataclass(frozen=True)
class Shingles:
    """The shingles of n texts, one text after the other; a shingle may stand twice unless the sets are `distinct`."""

    hashes: UInt64s  # (m,)
    sizes: Int64s  # (n,)

    @property
    def ends(self) -> Int64s:
        """Where each text's shingles end."""
        return np.cumsum(self.sizes)

    def distinct(self) -> Shingles:
        """The same as sets: those of each text sorted, none twice."""
        hashes, ends = self.hashes.copy(), self.ends
        for start, end in zip((ends - self.sizes).tolist(), ends.tolist(), strict=True):
            hashes[start:end].sort()
        fresh = np.ones(len(hashes), bool)
        fresh[1:] = hashes[1:] != hashes[:-1]
        fresh[(ends - self.sizes)[self.sizes > 0]] = True
        counts = np.concatenate([[0], np.cumsum(fresh)])
        return Shingles(hashes[fresh], counts[ends] - counts[ends - self.sizes])

    def select(self, chosen: NDArray[np.bool_]) -> Shingles:
        """Those of some of the texts."""
        return Shingles(self.hashes[np.repeat(chosen, self.sizes)], self.sizes[chosen])

    def take(self, order: Int64s) -> Shingles:
        """The texts in another order: text k of the result is text order[k]."""
        sizes, begins = self.sizes[order], (self.ends - self.sizes)[order]
        ends = np.cumsum(sizes)
        return Shingles(self.hashes[np.repeat(begins - (ends - sizes), sizes) + np.arange(len(self.hashes))], sizes)


def join(parts: Sequence[Shingles]) -> Shingles:
    """The shingles of several runs of texts."""
    return Shingles(
        np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)]),
    )


def shingle_texts(texts: Sequence[str]) -> Shingles:
    """The shingles of texts: 5 words, or 10 Chinese or Japanese characters (`hash_grams`, where symbols count and
    punctuation does not). A shorter text is one shingle; a text without a letter, digit or symbol has none."""
    hashes: list[UInt64s] = [np.empty(0, np.uint64)]
    sizes: list[Int64s] = [np.empty(0, np.int64)]
    for grams in hash_grams([normalize(text) for text in texts], SHINGLE_WORDS, symbols=True):
        counts = np.bincount(grams.rows, minlength=len(grams.texts))
        short = np.flatnonzero((counts == 0) & (grams.weights > 0))
        hashes.append(np.insert(grams.hashes, (np.cumsum(counts) - counts)[short], grams.texts[short]))
        counts[short] = 1
        sizes.append(counts)
    return Shingles(np.concatenate(hashes), np.concatenate(sizes))


def sign(shingles: Shingles) -> UInt32s:
    """MinHash signatures of texts that have shingles, shape (n, PERMUTATIONS): two texts agree in each row with the
    probability of their similarity."""
    rensa = _load_rensa()
    signatures = np.empty((len(shingles.sizes), PERMUTATIONS), np.uint32)
    offsets = np.concatenate([[0], shingles.ends])
    for first in range(0, len(signatures), _BLOCK):  # rows come as lists, which take ten times the memory
        here = offsets[first : first + _BLOCK + 1]
        tokens = shingles.hashes[here[0] : here[-1]]
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            tokens, (here - here[0]).astype(np.uint64), PERMUTATIONS, MINHASH_SEED
        )
        signatures[first : first + _BLOCK] = matrix.to_rows()
    return signatures


@lru_cache(maxsize=1)
def _load_rensa() -> Any:
    """rensa on one thread: workers are processes of their own, and a pool of threads does not outlive a fork.

    It makes its pool with the first large matrix, by this variable of the environment; other libraries read it too.
    """
    before = os.environ.get("RAYON_NUM_THREADS")
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        import rensa  # type: ignore[import-untyped]

        rows, tokens = 64, 1 << 18
        offsets = np.arange(rows + 1, dtype=np.uint64) * np.uint64(tokens // rows)
        rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            np.arange(tokens, dtype=np.uint64), offsets, 1, MINHASH_SEED
        )
    finally:
        if before is None:
            del os.environ["RAYON_NUM_THREADS"]
        else:
            os.environ["RAYON_NUM_THREADS"] = before
    return rensa


@lru_cache
def choose_bands(threshold: float) -> tuple[int, int]:
    """Bands and rows in one: two texts share a band with a probability 1 - (1 - similarity^rows)^bands.

    The most rows, hence the fewest pairs for nothing, by which this is _RECALL at the threshold. Raises InputError for
    a threshold that is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise InputError(f"near-duplicate threshold {threshold:g} is not between 0 and 1. Give one such as 0.8.")
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def band_hashes(signatures: UInt32s, threshold: float) -> UInt64s:
    """A hash of each band of signatures (n, PERMUTATIONS), shape (n, bands); hashes of two bands are never equal but
    by chance."""
    bands, rows = choose_bands(threshold)
    cut = signatures[:, : bands * rows].reshape(len(signatures), bands, rows).astype(np.uint64)
    found = np.broadcast_to(np.arange(bands, dtype=np.uint64), cut.shape[:2])
    for row in range(rows):
        found = mix_hashes(found ^ cut[:, :, row])
    return found


def row_hashes(signatures: UInt32s) -> UInt64s:
    """A hash of each row of signatures, shape (n, PERMUTATIONS)."""
    numbers = np.arange(PERMUTATIONS, dtype=np.uint64) << np.uint64(32)
    return mix_hashes(numbers | signatures.astype(np.uint64))


def mix_hashes(values: UInt64s) -> UInt64s:
    return hash_numbers(values.view(np.int64) if values.flags.c_contiguous else values.astype(np.int64), MINHASH_SEED)


def band_keys(texts: Sequence[str], threshold: float, records: Int64s) -> tuple[NDArray[Any], Int64s, Shingles]:
    """Keys of texts, the numbers of whose records are given, in the order of these: of dtype NEAR_KEY, shape
    (bands * n,) for the n texts that have shingles; and the records and shingles of these."""
    shingles = shingle_texts(texts)
    chosen = shingles.sizes > 0
    if not chosen.all():
        shingles, records = shingles.select(chosen), records[chosen]
    hashes = band_hashes(sign(shingles), threshold)
    return make_near_keys(hashes.ravel(), np.repeat(records, hashes.shape[1])), records, shingles


def make_near_keys(hashes: UInt64s, records: Int64s) -> NDArray[Any]:
    keys = np.empty(len(hashes), NEAR_KEY)
    keys["hash"], keys["record"] = hashes, records
    return keys


def sketch_keys(shingles: Shingles, records: Int64s, threshold: float) -> NDArray[Any]:
    """Keys of the bands of texts with their sketches: of dtype SKETCH_KEY, shape (bands * n,)."""
    signatures = sign(shingles)
    hashes = band_hashes(signatures, threshold)
    keys = np.empty(hashes.size, SKETCH_KEY)
    keys["hash"], keys["record"] = hashes.ravel(), np.repeat(records, hashes.shape[1])
    for bit in range(2):
        sketches = np.packbits((signatures >> bit & 1).astype(np.uint8), axis=1).view("<u8")
        keys["sketch"][:, bit] = np.repeat(sketches, hashes.shape[1], axis=0)
    return keys


def sort_near_keys(keys: NDArray[Any]) -> NDArray[Any]:
    """The keys in the order of (hash, record)."""
    return keys[np.lexsort((keys["record"], keys["hash"]))]  # type: ignore[no-any-return]
