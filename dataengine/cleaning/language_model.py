"""Inference of fastText's compressed models for many texts at once, bit for bit as fastText computes it.

Sums, dot products and logarithms follow fastText's order in float32, and exp is that of glibc, so that a probability
has the same bits. Another processor or C library may compute other bits in fastText (fused multiply-add): compare
before use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s
from dataengine.cleaning.language_words import WordRows

Floats = NDArray[np.float32]

_MAGIC, _VERSION = 793712314, 12
_HIERARCHICAL, _SUPERVISED = 1, 3
_CENTROIDS = 256
_END = "</s>"  # fastText reads a line break as this word
_SMALL = 1e-5  # fastText adds it to each probability before the logarithm


@dataclass(frozen=True)
class _Tree:
    """The Huffman tree of the labels: for each label, the nodes from the root on and whether it is on their right."""

    paths: tuple[tuple[tuple[int, bool], ...], ...]

    @staticmethod
    def build(counts: Sequence[int]) -> _Tree:
        """The tree for labels with these counts, largest first, as fastText builds it."""
        size = len(counts)
        weights = [*counts, *[10**15] * (size - 1)]
        parents: dict[int, tuple[int, bool]] = {}
        leaf, node = size - 1, size
        for made in range(size, 2 * size - 1):
            weights[made] = 0
            least = []
            for _ in range(2):
                if leaf >= 0 and weights[leaf] < (weights[node] if node < made else 10**15):
                    least.append(leaf)
                    leaf -= 1
                else:
                    least.append(node)
                    node += 1
            weights[made] = weights[least[0]] + weights[least[1]]
            for child, right in zip(least, (False, True), strict=True):
                parents[child] = made, right
        paths = []
        for label in range(size):
            path, place = [], label
            while place in parents:
                place, right = parents[place]
                path.append((place - size, right))
            paths.append(tuple(reversed(path)))
        return _Tree(tuple(paths))


class LanguageModel:
    """A quantized, pruned fastText model with a hierarchical softmax (lid.176.ftz)."""

    def __init__(self, content: bytes) -> None:
        reader = _Reader(content)
        magic, version, dim, _, _, _, _, ngrams, loss, kind, buckets, least, most, _ = reader.take("14i")
        reader.take("d")
        size, words, labels, _, pruned = reader.take("iiiqq")
        assert (magic, version, ngrams, loss, kind) == (_MAGIC, _VERSION, 1, _HIERARCHICAL, _SUPERVISED)
        entries = [reader.word() for _ in range(size)]
        self.vocabulary = [word.decode() for word, _ in entries[:words]]
        self.labels = [word.decode() for word, _ in entries[words:]]
        self._tree = _Tree.build([count for _, count in entries[words:]])
        kept = reader.array("<i4", 2 * pruned).reshape(-1, 2)
        self._words = WordRows(self.vocabulary, kept[:, 0], kept[:, 1] + words, buckets, range(least, most + 1))
        assert self.vocabulary[0] == _END
        assert reader.take("?") == (True,)
        self._rows = reader.quantized()
        assert reader.take("?") == (False,)
        self._nodes = reader.array("<f4", np.prod(reader.take("qq"), dtype=int)).reshape(labels, dim)

    def probabilities(self, lines: Sequence[str], labels: Iterable[str], least: float) -> NDArray[np.float64]:
        """The sum of the probabilities of some labels for each line, without those below `least`; shape (n,).

        Words are separated by spaces; other white space of ASCII does not occur.
        """
        sums = np.zeros(len(lines))
        hidden = _mean_rows(self._rows, *self._words.of_lines(lines))
        paths = [self._tree.paths[self.labels.index(label)] for label in labels]
        nodes = sorted({node for path in paths for node, _ in path})
        logs = dict(zip(nodes, self._log_shares(hidden, nodes), strict=True))
        bound = _log(np.float32(least))
        for path in paths:
            scores = np.zeros(len(lines), np.float32)
            for node, right in path:
                scores = np.where(scores >= bound, scores + logs[node][right], np.float32(-np.inf))
            sums += np.where(scores >= bound, _exp(scores), 0)
        return sums

    def _log_shares(self, hidden: Floats, nodes: Sequence[int]) -> list[tuple[Floats, Floats]]:
        """For each node, the logarithms of the probabilities of its left and its right side; each of shape (n,)."""
        products = np.zeros((len(nodes), len(hidden)), np.float32)
        for column, weights in zip(hidden.T, self._nodes[list(nodes)].T, strict=True):
            products += weights[:, None] * column
        right = (1 / (1 + _exp(-products)).astype(np.float64)).astype(np.float32)
        return list(zip(_log(np.float32(1) - right), _log(right), strict=True))


def _mean_rows(table: Floats, rows: NDArray[np.int32], counts: Int64s) -> Floats:
    """The mean of the rows of each text and of row 0, the line break, added one by one in float32; shape (n, dim)."""
    order = np.argsort(-counts, kind="stable")
    begins = (np.cumsum(counts) - counts)[order]
    sums = np.zeros((len(counts), table.shape[1]), np.float32)
    still = np.searchsorted(-counts[order], -np.arange(counts.max(initial=0)))  # texts with more than k rows
    for step, alive in enumerate(still.tolist()):
        sums[:alive] += table[rows[begins[:alive] + step]]
    means = np.empty_like(sums)
    means[order] = (sums + table[0]) * (1.0 / (counts[order] + 1)).astype(np.float32)[:, None]
    return means


def _log(values: Floats | np.float32) -> Floats:
    logs: Floats = np.log(np.asarray(values, np.float64) + _SMALL).astype(np.float32)
    return logs


# Coefficients and table of expf of glibc (2.27 and later; of musl, too): 2^(k/32) as bits, without k's exponent.
_EXP_SIZE, _EXP_SHIFT = 32, 52 - 5
_EXP_SCALE = float.fromhex("0x1.71547652b82fep+0") * _EXP_SIZE
_EXP_POLYNOMIAL = [
    float.fromhex(value) / _EXP_SIZE**power
    for value, power in (("0x1.c6af84b912394p-5", 3), ("0x1.ebfce50fac4f3p-3", 2), ("0x1.62e42ff0c52d6p-1", 1))
]


@lru_cache(maxsize=1)
def _exp_table() -> Int64s:
    powers = [float(Decimal(2) ** (Decimal(step) / _EXP_SIZE)) for step in range(_EXP_SIZE)]  # rounded correctly
    return np.array(powers).view(np.int64) - (np.arange(_EXP_SIZE) << _EXP_SHIFT)


def _exp(values: Floats) -> Floats:
    """exp in float32 as glibc computes it: in float64, with an error just above half a unit in the last place."""
    scaled = np.maximum(values.astype(np.float64), -700) * _EXP_SCALE
    whole = np.rint(scaled)
    rest = scaled - whole
    steps = whole.astype(np.int64)
    power = (_exp_table()[steps % _EXP_SIZE] + (steps << _EXP_SHIFT)).view(np.float64)
    third, second, first = _EXP_POLYNOMIAL
    with np.errstate(over="ignore"):
        powers: Floats = (((third * rest + second) * (rest * rest) + (first * rest + 1)) * power).astype(np.float32)
    return powers


class _Reader:
    """The fields of a model file, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    def take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from("<" + form, self._content, self._place)
        self._place += struct.calcsize("<" + form)
        return values

    def word(self) -> tuple[bytes, int]:
        end = self._content.index(b"\0", self._place)
        word, self._place = self._content[self._place : end], end + 1
        count, _ = self.take("qb")
        return word, count

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        values: NDArray[Any] = np.frombuffer(self._content, dtype, count, self._place)
        self._place += values.nbytes
        return values

    def quantized(self) -> Floats:
        """A product-quantized matrix with quantized norms, as its rows."""
        normed, rows, dim, size = self.take("?qqi")
        assert normed
        codes = self.array("u1", size).reshape(rows, -1)
        _, parts, width, last = self.take("4i")
        assert parts * width == dim
        assert width == last
        centroids = self.array("<f4", dim * _CENTROIDS).reshape(parts, _CENTROIDS, width)
        norm_codes = self.array("u1", rows)
        self.take("4i")
        norms = self.array("<f4", _CENTROIDS)[norm_codes]
        found: Floats = centroids[np.arange(parts), codes].reshape(rows, dim) * norms[:, None]
        return found
