"""Which parts of a stream are sampled, what was read of them, and how far an estimate from that may be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataengine.arrays import Int64s
from dataengine.records.types import SourcePart

_PLACES = 8  # parts that a sample is taken from
_BLOCKS = 8  # of a part's sample
# Standard errors on either side: 95 % of Student's t with 7 degrees of freedom, those of 8 parts or blocks
_WIDTH = 2.36
# The beginning of a compressed file is compressed less than the rest. A standard error for that, chosen, not measured.
_BEGINNING = 0.02

Kind = tuple[str, str]  # format and suffix


@dataclass
class PartSample:
    """What was read of a part."""

    kind: Kind
    size: int  # bytes of the part
    stands_for: float  # bytes of the stream
    read: int = 0  # bytes
    records: int = 0
    tokens: int = 0
    seconds: float = 0.0
    texts: list[Int64s] = field(default_factory=list)  # line and bytes of usable records, each of shape (n, 2)
    written: list[Int64s] = field(default_factory=list)  # line and tokens of kept ones

    @property
    def weight(self) -> float:
        """The bytes that a byte of the sample stands for."""
        return self.stands_for / max(self.read, 1)


def kind_of(part: SourcePart) -> Kind:
    """Files of one kind have about as many records per byte."""
    return part.format, Path(part.paths[0]).suffix


def choose_places(parts: Sequence[SourcePart], sample_bytes: int) -> dict[int, tuple[int, float]]:
    """Parts to sample: the bytes to read of each, and the bytes that it stands for.

    Each kind of file, such as plain or zstd, has its share of the sample. Within a kind, parts are taken at equal
    distances in its bytes, so that a part of twice the size is taken twice as often, and each stands for as much.
    """
    sizes = np.array([part.size for part in parts], np.int64)
    if (total := int(sizes.sum())) <= sample_bytes:
        return {place: (part.size, float(part.size)) for place, part in enumerate(parts)}
    kinds: dict[Kind, list[int]] = {}
    for place, part in enumerate(parts):
        kinds.setdefault(kind_of(part), []).append(place)
    chosen = {}
    for places in kinds.values():
        ends = np.cumsum(sizes[places])
        if not ends[-1]:
            continue
        points = (np.arange(_PLACES) + 0.5) / _PLACES * ends[-1]
        taken, times = np.unique(np.searchsorted(ends, points, side="right"), return_counts=True)
        for k, count in zip(taken.tolist(), times.tolist(), strict=True):
            share = int(ends[-1]) * count / _PLACES
            chosen[places[k]] = (max(int(sample_bytes * share / total), 1), share)
    return dict(sorted(chosen.items()))


def margin(samples: Sequence[PartSample], num_parts: Mapping[Kind, int], *, tokens: bool) -> float:
    """How far the estimate of a stream's records or tokens may be off on either side; right nine times in ten.

    Parts that were sampled differ, and so do blocks of records within a part (two-stage sampling: Cochran, Sampling
    Techniques, 1977, 10.3). `num_parts` are all parts of each kind. A part is read from its beginning, so an interval
    knows nothing of what changes later in the only part of a kind, nor of a small file unlike all others.
    """
    variance = 0.0
    for kind in {sample.kind for sample in samples}:
        mine = [sample for sample in samples if sample.kind == kind]
        totals = np.array([(one.tokens if tokens else one.records) * one.weight for one in mine], float)
        within = float(np.sum(np.square(totals) * [_relative_variance(one, tokens=tokens) for one in mine]))
        share = len(mine) / num_parts[kind]
        if share == 1 or len(mine) == 1:
            variance += within
            continue
        bytes_for = np.array([one.stands_for for one in mine])
        off = totals - bytes_for * totals.sum() / bytes_for.sum()
        between = float(np.square(off).sum()) * len(mine) / (len(mine) - 1)
        variance += (1 - share) * between + share * within
    return float(_WIDTH * variance**0.5)


def _relative_variance(sample: PartSample, *, tokens: bool) -> float:
    """The variance of a part's records or tokens per byte over its square, from the variation among blocks."""
    left = 1 - sample.read / max(sample.size, 1)
    if left <= 0:
        return 0.0
    texts = np.concatenate([np.empty((0, 2), np.int64), *sample.texts])
    if len(texts) < 2:
        return left
    counts = np.ones(len(texts), np.int64)
    if tokens:
        written = np.concatenate([np.empty((0, 2), np.int64), *sample.written])
        counts = np.zeros(len(texts), np.int64)
        np.add.at(counts, np.searchsorted(texts[:, 0], written[:, 0]), written[:, 1])
    blocks = min(_BLOCKS, len(texts))
    begins = np.arange(blocks) * len(texts) // blocks
    sums, sizes = np.add.reduceat(counts, begins), np.add.reduceat(texts[:, 1], begins)
    if not sums.sum():
        return 0.0
    begins_worse = _BEGINNING**2 if sizes.sum() > sample.read else 0.0  # compressed
    off = sums - sizes * (sums.sum() / max(sizes.sum(), 1))
    return float(left * np.square(off).sum() * blocks / (blocks - 1) / sums.sum() ** 2 + begins_worse)
