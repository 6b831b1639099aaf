"""Quality scores of sentence pairs. Each is computed once, stored by pair and model, and published in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress, islice
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.storage.arrays import decode_npy, encode_npy
from dataengine.storage.store import Store

KEY = np.dtype([("high", "<u8"), ("low", "<u8")])  # xxh3-128 of a pair
SCORE = np.dtype([("high", "<u8"), ("low", "<u8"), ("score", "<f4")])
_READERS = 16  # threads; chunks are small, so reading them from a bucket is mostly waiting


class Scorer(Protocol):
    """A model that judges pairs without a reference."""

    sha256: str  # identity of the model

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> NDArray[np.float32]:
        """Scores of pairs, higher is better; shape (n,), in the given order."""
        ...


def hash_pairs(sources: Sequence[str], targets: Sequence[str]) -> NDArray[Any]:
    """Keys of pairs, dtype KEY, shape (n,): xxh3-128 of source, NUL, target, without normalization."""
    digests = b"".join(
        xxhash.xxh3_128_digest(f"{source}\0{target}".encode()) for source, target in zip(sources, targets, strict=True)
    )
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2)
    keys = np.empty(len(halves), KEY)
    keys["high"], keys["low"] = halves[:, 0], halves[:, 1]
    return keys


def lookup(table: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.float32]:
    """Scores of keys (n,) in a sorted SCORE table, NaN for missing ones; shape (n,)."""
    found = np.full(len(keys), np.nan, np.float32)
    if len(table):
        at = np.minimum(_find_places(table, keys), len(table) - 1)
        equal = (table["high"][at] == keys["high"]) & (table["low"][at] == keys["low"])
        found[equal] = table["score"][at[equal]]
    return found


def _find_places(table: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.int64]:
    """The number of entries in a sorted table below each key, like `np.searchsorted`, without copying the table."""
    begin, end = np.zeros(len(keys), np.int64), np.full(len(keys), len(table), np.int64)
    high, low = table["high"], table["low"]
    for _ in range(len(table).bit_length()):
        middle = np.minimum((begin + end) // 2, len(table) - 1)
        less = high[middle] < keys["high"]
        ties = np.flatnonzero(high[middle] == keys["high"])
        less[ties] = low[middle[ties]] < keys["low"][ties]
        less &= begin < end
        begin, end = np.where(less, middle + 1, begin), np.where(less, end, np.minimum(middle, end))
    return begin


def _sort_scores(table: NDArray[Any]) -> NDArray[Any]:
    """Sort a SCORE array by key. Of entries with the same key the first stays."""
    table = table[np.lexsort((table["low"], table["high"]))]
    repeated = np.zeros(len(table), bool)
    repeated[1:] = (table["high"][1:] == table["high"][:-1]) & (table["low"][1:] == table["low"][:-1])
    return table[~repeated]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ScoreCache:
    """Scores that one model gave to pairs in one direction, in a store.

    Files are `scores/MODEL/DIRECTION/PART/CHUNK.npy`: SCORE arrays sorted by key. PART is the digest of the pairs'
    source part, CHUNK the hash of the keys. Files appear whole and never change, so any number of processes may add
    scores.
    """

    store: Store
    model_sha256: str
    direction: str  # such as en-id: the score of a pair depends on which side is the source

    @property
    def prefix(self) -> str:
        """The key prefix of the files of this model and direction."""
        return f"scores/{self.model_sha256[:16]}/{self.direction}/"

    def load(self, part_digest: str) -> NDArray[Any]:
        """Sorted SCORE table of a part. Raises InputError if a file in its folder is not a score file or is damaged."""
        return self._load(f"{self.prefix}{part_digest}/")

    def load_all(self) -> NDArray[Any]:
        """Sorted SCORE table of all parts, 20 bytes per pair, for pairs that moved to other files."""
        return self._load(self.prefix)

    def add(self, part_digest: str, keys: NDArray[Any], scores: NDArray[np.float32]) -> NDArray[Any]:
        """Publish scores (n,) of keys (n,) of a part as one file; return them as a sorted table.

        Raises InputError if a score is not a finite number.
        """
        if not np.isfinite(scores).all():
            raise InputError(
                f"model {self.model_sha256[:16]} gave a NaN or infinite score in {self.direction}, part "
                f"{part_digest}. Check the model."
            )
        table = np.empty(len(keys), SCORE)
        table["high"], table["low"], table["score"] = keys["high"], keys["low"], scores
        table = _sort_scores(table)
        keys = np.empty(len(table), KEY)
        keys["high"], keys["low"] = table["high"], table["low"]
        name = xxhash.xxh3_128_hexdigest(keys.tobytes())
        self.store.write(f"{self.prefix}{part_digest}/{name}.npy", encode_npy(table))
        return table

    def _load(self, prefix: str) -> NDArray[Any]:
        files = sorted(self.store.sizes(prefix))
        with ThreadPoolExecutor(_READERS) as readers:
            contents = list(readers.map(self.store.read, files))
        tables = map(self._decode_chunk, files, contents)  # here: see `decode_npy`
        return _sort_scores(np.concatenate([np.empty(0, SCORE), *tables]))

    def _decode_chunk(self, file: str, content: bytes) -> NDArray[Any]:
        with suppress(ValueError):
            table = decode_npy(content)
            if table.dtype == SCORE and table.ndim == 1:
                return table
        raise InputError(
            f"{self.store.url}/{file} is not a score file, or is damaged. Remove it and run `dataengine score` again: "
            "it computes the missing scores."
        )


def score_part(
    records: Iterable[tuple[Sequence[str], Sequence[str]]],
    scorer: Scorer,
    cache: ScoreCache,
    part_digest: str,
    *,
    known: NDArray[Any] | None = None,
    chunk: int = 16384,
    on_progress: Callable[[int], None] = lambda count: None,
) -> tuple[int, int]:
    """Put a score of every pair of a part into the cache; return the numbers of pairs (scored, already scored).

    `records` are batches of (sources, targets). A pair that occurs twice is scored once, and counts as already scored
    the second time. Scores in `known`, such as `cache.load_all()`, are copied to the part. Each `chunk` of new pairs is
    published once it is scored, so a killed process loses at most one chunk. `on_progress` is called with numbers of
    finished pairs. Raises ValueError if the scorer is not the model of the cache, and errors of `load` and `add`.
    """
    part = _PartScores(scorer, cache, part_digest, np.empty(0, SCORE) if known is None else known, chunk, on_progress)
    for sources, targets in records:
        part.add(sources, targets)
    part.finish()
    return part.scored, part.total - part.scored


class _PartScores:
    """The growing scores of a part. Pairs without a score wait until they fill a chunk."""

    def __init__(
        self,
        scorer: Scorer,
        cache: ScoreCache,
        part_digest: str,
        known: NDArray[Any],
        chunk: int,
        on_progress: Callable[[int], None],
    ) -> None:
        if scorer.sha256 != cache.model_sha256:
            raise ValueError(f"the cache is of model {cache.model_sha256[:16]}, the scorer of {scorer.sha256[:16]}")
        cache.store.remove_leftovers(f"{cache.prefix}{part_digest}")
        self._scorer, self._cache, self._digest, self._known = scorer, cache, part_digest, known
        self._chunk, self._on_progress = chunk, on_progress
        self._table = cache.load(part_digest)  # sorted by key
        self._waiting: dict[bytes, tuple[str, str]] = {}  # key -> pair
        self.scored = self.total = 0  # pairs

    def add(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Add a batch of pairs; score and publish them once a chunk is full."""
        keys, waited = hash_pairs(sources, targets), len(self._waiting)
        for k in np.flatnonzero(np.isnan(lookup(self._table, keys))).tolist():
            self._waiting[keys[k].tobytes()] = (sources[k], targets[k])
        self._on_progress(len(keys) - (len(self._waiting) - waited))
        self.total += len(keys)
        while len(self._waiting) >= self._chunk:
            self._publish()

    def finish(self) -> None:
        """Score and publish the waiting pairs."""
        if self._waiting:
            self._publish()

    def _publish(self) -> None:
        """Publish the oldest chunk with known scores, otherwise with the model's."""
        pairs = {key: self._waiting.pop(key) for key in list(islice(self._waiting, self._chunk))}
        keys = np.frombuffer(b"".join(pairs), KEY)
        scores = lookup(self._known, keys)
        new = np.isnan(scores)
        if new.any():
            sources, targets = zip(*compress(pairs.values(), new), strict=True)
            scores[new] = self._scorer.score(sources, targets)
        fresh = self._cache.add(self._digest, keys, scores)
        self._table = np.insert(self._table, _find_places(self._table, fresh), fresh)
        self.scored += int(new.sum())
        self._on_progress(len(pairs))
