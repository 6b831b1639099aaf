"""The most disk that a build takes while it runs: its shards, and the files of tasks until nothing reads them any more.

The streams pass through their rounds side by side (`build.rounds`). `stream_rounds` follows those of one stream
(`build.stream`) and says what is there at the end of each, before the next one removes what only earlier ones read.
Left out: receipts, lists of unusable records, and further keys of texts that resemble a crowd of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

import numpy as np

from dataengine.build import clean, near_units, prepare
from dataengine.build import split as splitting
from dataengine.build.external_sort import RUN_KEYS, num_ranges
from dataengine.build.prepare import StreamPlan
from dataengine.build.publish import MOVED_AT_ONCE
from dataengine.build.tokenize import PROVENANCE, document_form
from dataengine.cleaning import dedup, minhash, score_cache
from dataengine.mds.types import token_dtype

_SHINGLE = 8  # bytes: `Shingles.hashes`
_SCORE = 4  # bytes: `LanguageScores` holds float32
_KEEPS = 3 / 8  # bytes of a record: `publish_keeps` writes a bit before each comparison, and before tokenizing


@dataclass(frozen=True)
class NearKeys:
    """Of a record, on average: keys for near duplicates; shingles kept beside them, and those gathered to compare."""

    keys: float = 0.0
    held: float = 0.0
    gathered: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Estimates of a whole stream."""

    usable: float  # records
    alive: float  # records that cleaning keeps, before it looks for duplicates
    duplicates: float  # exact ones
    kept: float
    tokens: float
    shards: float  # bytes
    near: NearKeys


@dataclass(frozen=True)
class StreamDisk:
    """Bytes on disk at the end of each round of a stream; and those that publishing needs for a moment in a bucket."""

    rounds: list[float]
    moving: float

    def peak(self, *, copies: bool) -> float:
        """The most bytes. `copies`: the store is a bucket."""
        return peak([self], copies=copies)


def peak(streams: Sequence[StreamDisk], *, copies: bool) -> float:
    """The most bytes of streams that are built together. A stream whose rounds have ended keeps what is left of it."""
    turns = zip_longest(*(one.rounds for one in streams))
    last = [one.rounds[-1] for one in streams]
    most = max(sum(end if size is None else size for size, end in zip(turn, last, strict=True)) for turn in turns)
    return max(most, sum(last) + copies * max(one.moving for one in streams))


def measure_near(texts: Sequence[str], alive: Sequence[str], threshold: float) -> NearKeys:
    """What near duplicates take of a record, from a sample: all usable texts, and those to compare."""
    held, keys = _shared_shingles(texts, threshold)
    # A run holds RUN_KEYS keys, and no more shingles than RUN_SHINGLES (`NearRuns`).
    sizes = minhash.shingle_texts(texts).hashes.size / max(len(texts), 1)
    room = near_units.RUN_SHINGLES / max(sizes * RUN_KEYS / max(keys, 1), 1)
    return NearKeys(keys, held * min(room, 1.0), _shared_shingles(alive, threshold)[0])


def _shared_shingles(texts: Sequence[str], threshold: float) -> tuple[float, float]:
    """The distinct shingles of texts that share a key with another one, and the keys; both over the texts."""
    keys, records, shingles = minhash.band_keys(texts, threshold, np.arange(len(texts)))
    shared = near_units.with_shared_key(keys)
    found = shingles.select(np.isin(records, shared)).distinct()
    return len(found.hashes) / max(len(texts), 1), len(keys) / max(len(texts), 1)


def stream_rounds(plan: StreamPlan, of: Counts) -> StreamDisk:
    """The disk that the rounds of a stream take."""
    rounds = _cleaning(plan, of) if plan.cleaning else []
    stays = _measures(plan, of) if plan.cleaning else 0.0
    packed, last = num_packed(plan, of), 0.0
    if plan.languages:
        runs, last = _runs(plan, of)
        rounds += [stays + more for more in runs]
    dtype = plan.format.packed_dtype(token_dtype(plan.vocab_size))
    tails = _tails(plan, of, packed)
    in_shards = of.shards * (1 - tails / max(of.tokens, 1))
    stays += in_shards + tails * dtype.itemsize + _documents(plan, of) * PROVENANCE.itemsize
    # the joined tails are written once more as shards (`publish`, `PackTails`)
    rounds += [stays + last, stays + of.shards - in_shards]
    moving = in_shards * min(1.0, MOVED_AT_ONCE / packed)
    return StreamDisk(rounds, moving)


def num_packed(plan: StreamPlan, of: Counts) -> int:
    """The units that write shards: of parts, or of ranges of pairs."""
    return num_ranges(int(of.tokens), prepare.MERGE_TOKENS) if plan.languages else len(plan.parts)


def _documents(plan: StreamPlan, of: Counts) -> float:
    return of.kept * max(len(plan.sides), 1)


def _measures(plan: StreamPlan, of: Counts) -> float:
    """What cleaning keeps: `dropped.npy`, exact keys, scores of languages, evaluation texts found, keys of scores."""
    by = plan.cleaning
    assert by is not None
    of_record = dedup.KEY.itemsize * len(by.dedup) + score_cache.KEY.itemsize * len(by.scores) + _KEEPS
    if by.min_language_score is not None:
        of_record += _SCORE * len(list(filter(None, by.languages)))
    of_record += by.evaluation is not None
    return of_record * of.usable + clean.DROPPED.itemsize * (of.usable - of.alive)


def _cleaning(plan: StreamPlan, of: Counts) -> list[float]:
    """The rounds of cleaning. All that they write for each other stays until the stream is tokenized."""
    by = plan.cleaning
    assert by is not None
    parts = len(plan.parts)
    steps = [_measures(plan, of)]
    if by.near_dedup is not None:
        steps[0] += of.usable * (of.near.keys * minhash.NEAR_KEY.itemsize + _SHINGLE * of.near.held)
    if by.dedup:
        keys, size = of.alive * len(by.dedup), clean.KEYS.moved.itemsize
        steps += _split(keys * size, parts, num_ranges(int(keys), clean.RANGE_KEYS))
        steps.append(2 * of.duplicates * dedup.GROUPED.itemsize)  # the copy, and the record that stays
    if by.near_dedup is not None:
        alive = of.alive - of.duplicates
        keys, size = alive * of.near.keys, near_units.KEYS.moved.itemsize
        steps += _split(keys * size, parts, num_ranges(int(keys), near_units.RANGE_KEYS))
        gathered = alive * of.near.gathered * _SHINGLE
        steps += [0.0, *([gathered, gathered, 0.0] if gathered else [])]  # links; by part and by group; twins
    return list(accumulate(steps))


def _runs(plan: StreamPlan, of: Counts) -> tuple[list[float], float]:
    """The rounds that tokenize pairs and bring them together; and what the last one reads, which stays beside it."""
    form = document_form(plan.format, plan.vocab_size)
    assert form.element is not None
    tokens, documents = of.tokens * form.element.itemsize, _documents(plan, of)
    runs, moved = (tokens + documents * dtype.itemsize for dtype in (form.head, form.moved))
    steps = _split(moved, len(plan.parts), num_packed(plan, of))
    return list(accumulate([runs, *steps])), moved if steps else runs


def _split(size: float, files: int, ranges: int) -> list[float]:
    """What each step of `split` writes."""
    if ranges == 1:
        return []
    groups = max(-(-int(size) // splitting.SPLIT_BYTES), -(-files // splitting.MOST_FILES))
    return [size] * (1 + splitting.needs_two_steps(groups, int(size), ranges))


def _tails(plan: StreamPlan, of: Counts, packed: int) -> float:
    """Tokens that fill no shard of their unit: all of a small one, else half a shard on average."""
    shard = plan.format.shards.samples_per_shard * plan.format.width
    shares = np.array([part.size for part in plan.parts], float) if packed == len(plan.parts) else np.ones(packed)
    tokens = of.tokens * shares / max(shares.sum(), 1)
    return float(np.where(tokens < shard, tokens, shard / 2).sum())
