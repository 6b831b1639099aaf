"""Shingles of texts, their MinHash signatures, and the keys that propose near duplicates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s, UInt32s, UInt64s
from dataengine.cleaning.dedup import hash_grams, normalize_all
from dataengine.errors import InputError
from dataengine.permutation import hash_numbers

_BLOCK = 4096  # texts
SHINGLE_WORDS = 5
PERMUTATIONS = 128  # rows of a signature
MINHASH_SEED = 17
_RECALL = 0.999  # of the bands, for texts exactly as similar as the threshold
# 12 bytes: a hash and the record's number in its unit.
NEAR_KEY = np.dtype([("hash", "<u8"), ("record", "<u4")])
# 44 bytes: in addition the last two bits of each signature row.
SKETCH_KEY = np.dtype([("hash", "<u8"), ("record", "<u4"), ("sketch", "<u8", (2, PERMUTATIONS // 64))])


@dataclass(frozen=True)
class Shingles:
    """The shingles of n texts, one text after the other. A shingle may occur twice, except after `distinct`."""

    hashes: UInt64s  # (m,)
    sizes: Int64s  # (n,)

    @property
    def ends(self) -> Int64s:
        """Where each text's shingles end."""
        return np.cumsum(self.sizes)

    def distinct(self) -> Shingles:
        """The shingles as sets: sorted in each text, none twice."""
        hashes, ends = self.hashes.copy(), self.ends
        for start, end in zip((ends - self.sizes).tolist(), ends.tolist(), strict=True):
            hashes[start:end].sort()
        fresh = np.ones(len(hashes), bool)
        fresh[1:] = hashes[1:] != hashes[:-1]
        fresh[(ends - self.sizes)[self.sizes > 0]] = True
        counts = np.concatenate([[0], np.cumsum(fresh)])
        return Shingles(hashes[fresh], counts[ends] - counts[ends - self.sizes])

    def select(self, chosen: NDArray[np.bool_]) -> Shingles:
        """The shingles of the chosen texts."""
        return Shingles(self.hashes[np.repeat(chosen, self.sizes)], self.sizes[chosen])

    def take(self, order: Int64s) -> Shingles:
        """Reorder the texts: text k of the result is text order[k]."""
        sizes, begins = self.sizes[order], (self.ends - self.sizes)[order]
        ends = np.cumsum(sizes)
        return Shingles(self.hashes[np.repeat(begins - (ends - sizes), sizes) + np.arange(len(self.hashes))], sizes)


def join(parts: Sequence[Shingles]) -> Shingles:
    """The shingles of several runs of texts."""
    return Shingles(
        np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)]),
    )


def shingle_texts(texts: Sequence[str], *, normal: bool = False) -> Shingles:
    """The shingles of texts: 5 words, or 10 Chinese or Japanese characters (`hash_grams` with symbols, without
    punctuation). A shorter text is one shingle. A text without a letter, digit or symbol has none. `normal`: the texts
    are normalized already."""
    hashes: list[UInt64s] = [np.empty(0, np.uint64)]
    sizes: list[Int64s] = [np.empty(0, np.int64)]
    for grams in hash_grams(normalize_all(texts, normal=normal), SHINGLE_WORDS, symbols=True):
        counts = np.bincount(grams.rows, minlength=len(grams.texts))
        short = np.flatnonzero((counts == 0) & (grams.weights > 0))
        hashes.append(np.insert(grams.hashes, (np.cumsum(counts) - counts)[short], grams.texts[short]))
        counts[short] = 1
        sizes.append(counts)
    return Shingles(np.concatenate(hashes), np.concatenate(sizes))


def sign(shingles: Shingles) -> UInt32s:
    """MinHash signatures of texts with shingles, shape (n, PERMUTATIONS). The probability that two texts agree in a row
    is their similarity."""
    rensa = _load_rensa()
    signatures = np.empty((len(shingles.sizes), PERMUTATIONS), np.uint32)
    offsets = np.concatenate([[0], shingles.ends])
    for first in range(0, len(signatures), _BLOCK):  # rows come as lists, which need 10x the memory
        here = offsets[first : first + _BLOCK + 1]
        tokens = shingles.hashes[here[0] : here[-1]]
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            tokens, (here - here[0]).astype(np.uint64), PERMUTATIONS, MINHASH_SEED
        )
        signatures[first : first + _BLOCK] = matrix.to_rows()
    return signatures


@lru_cache(maxsize=1)
def _load_rensa() -> Any:
    """Load rensa with one thread: workers are separate processes, and a thread pool does not survive a fork.

    rensa creates its pool with the first large matrix and reads this environment variable. Other libraries read it,
    too, so it is restored.
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
    """The number of bands and of rows per band. Two texts share a band with probability 1-(1-similarity^rows)^bands.

    Takes the most rows, hence the fewest useless pairs, for which this is _RECALL at the threshold. Raises InputError
    for a threshold that is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise InputError(f"near-duplicate threshold {threshold:g} is not between 0 and 1. Give one such as 0.8.")
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def band_hashes(signatures: UInt32s, threshold: float) -> UInt64s:
    """A hash of each band of signatures (n, PERMUTATIONS), shape (n, bands). Hashes of different bands are equal only
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


def band_keys(
    texts: Sequence[str], threshold: float, records: Int64s, *, normal: bool = False
) -> tuple[NDArray[Any], Int64s, Shingles]:
    """Keys of texts in the order of the given record numbers, dtype NEAR_KEY, shape (bands * n,) for the n texts with
    shingles; and the records and shingles of these."""
    shingles = shingle_texts(texts, normal=normal)
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
    """Keys of the bands of texts, with sketches: dtype SKETCH_KEY, shape (bands * n,)."""
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
