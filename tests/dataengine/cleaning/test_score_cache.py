from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dataengine.cleaning.score_cache import KEY, SCORE, ScoreCache, hash_pairs, lookup, score_part
from dataengine.errors import InputError
from dataengine.storage.open import open_store

Pair = tuple[str, str]
PAIRS = [(f"source {k}", f"target {k}") for k in range(1000)]


class DigestScorer:
    """A score that is a function of the pair alone, and a record of what was asked."""

    def __init__(self, model: str = "a", seconds_a_call: float = 0) -> None:
        self.sha256 = hashlib.sha256(model.encode()).hexdigest()
        self.asked: list[Pair] = []
        self._seconds_a_call = seconds_a_call

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> NDArray[np.float32]:
        time.sleep(self._seconds_a_call)
        self.asked += zip(sources, targets, strict=True)
        return np.array([self.score_pair(pair) for pair in zip(sources, targets, strict=True)], np.float32)

    def score_pair(self, pair: Pair) -> float:
        return xxhash.xxh32_intdigest(self.sha256 + "|".join(pair)) % 1000 / 1000


def open_cache(folder: Path, scorer: DigestScorer, direction: str = "en-id") -> ScoreCache:
    return ScoreCache(open_store(str(folder)), scorer.sha256, direction)


def in_batches(pairs: Sequence[Pair], size: int) -> list[tuple[list[str], list[str]]]:
    batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [([source for source, _ in batch], [target for _, target in batch]) for batch in batches]


def keys_of(pairs: Sequence[Pair]) -> NDArray[Any]:
    return hash_pairs([source for source, _ in pairs], [target for _, target in pairs])


def make_table(entries: dict[tuple[int, int], float]) -> NDArray[Any]:
    return np.array([(*key, entries[key]) for key in sorted(entries)], SCORE)


def test_the_key_is_the_hash_of_both_sides_as_they_are() -> None:
    keys = hash_pairs(["早上好。", "a", "é", "e\u0301"], ["Selamat pagi.", "", "x", "x"])
    whole = xxhash.xxh3_128_intdigest("早上好。\0Selamat pagi.".encode())
    assert (int(keys[0]["high"]) << 64) + int(keys[0]["low"]) == whole
    assert keys.dtype == KEY
    assert len(np.unique(keys)) == 4
    assert hash_pairs(["a"], ["b"]) != hash_pairs(["b"], ["a"])
    assert hash_pairs([], []).shape == (0,)


SMALL_KEYS = st.tuples(st.integers(0, 4), st.integers(0, 4))


@given(st.dictionaries(SMALL_KEYS, st.floats(0, 1, width=32)), st.lists(SMALL_KEYS))
def test_lookup_finds_what_a_dictionary_finds(entries: dict[tuple[int, int], float], asked: list[Any]) -> None:
    found = lookup(make_table(entries), np.array(asked, KEY))
    expected = np.array([entries.get(key, np.nan) for key in asked], np.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_lookup_distinguishes_keys_at_the_ends_of_their_range() -> None:
    top = 2**64 - 1
    table = make_table({(0, 0): 0.25, (0, top): 0.5, (top, 0): 0.75, (top, top): 1.0})
    asked = np.array([(top, top), (0, top), (0, 1), (top, 0), (0, 0)], KEY)
    np.testing.assert_array_equal(lookup(table, asked), np.array([1.0, 0.5, np.nan, 0.75, 0.25], np.float32))


def test_scores_belong_to_a_model_a_direction_and_a_part(tmp_path: Path) -> None:
    a, b = DigestScorer("a"), DigestScorer("b")
    keys = keys_of(PAIRS[:3])
    cache = open_cache(tmp_path, a)
    cache.add("part1", keys[:2], np.array([0.1, 0.2], np.float32))
    cache.add("part1", keys[2:], np.array([0.3], np.float32))
    cache.add("part2", keys[:1], np.array([0.1], np.float32))
    np.testing.assert_array_equal(lookup(cache.load("part1"), keys), np.array([0.1, 0.2, 0.3], np.float32))
    assert len(cache.load("part2")) == 1
    assert len(cache.load("part3")) == 0
    assert len(cache.load_all()) == 3
    assert len(open_cache(tmp_path, b).load("part1")) == 0
    assert len(open_cache(tmp_path, a, "id-en").load_all()) == 0


def test_the_same_scores_are_the_same_file(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, DigestScorer())
    keys, scores = keys_of(PAIRS[:5]), np.arange(5, dtype=np.float32)
    cache.add("part", keys, scores)
    [(path, size)] = cache.store.sizes(cache.prefix).items()
    cache.add("part", keys[::-1], scores[::-1])
    assert cache.store.sizes(cache.prefix) == {path: size}
    np.testing.assert_array_equal(np.load(tmp_path / path), cache.load("part"))  # plain .npy to other programs


@pytest.mark.parametrize("content", [b"", b"notes", None, "cut", "flipped"])
def test_a_file_that_holds_no_scores_is_named(tmp_path: Path, content: bytes | str | None) -> None:
    cache = open_cache(tmp_path, DigestScorer())
    cache.add("part", keys_of(PAIRS[:50]), np.full(50, 0.5, np.float32))
    [path] = cache.store.sizes(cache.prefix)
    whole = (tmp_path / path).read_bytes()
    broken = {None: whole[::-1], "cut": whole[:-20], "flipped": whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]}
    (tmp_path / path).write_bytes(content if isinstance(content, bytes) else broken[content])
    for load in (cache.load_all, lambda: cache.load("part")):
        with pytest.raises(InputError, match=f"{path} is not a score file, or is damaged. Remove it and run"):
            load()


@pytest.mark.parametrize(("batch", "chunk"), [(1000, 64), (7, 64), (64, 64), (100, 1), (100, 5000)])
def test_every_pair_of_a_part_is_scored_once(tmp_path: Path, batch: int, chunk: int) -> None:
    scorer, done = DigestScorer(), list[int]()
    cache = open_cache(tmp_path, scorer)
    pairs = PAIRS[:150] + PAIRS[100:200] + PAIRS[:1]  # 251 pairs, 200 of them different
    counts = score_part(in_batches(pairs, batch), scorer, cache, "part", chunk=chunk, on_progress=done.append)
    assert counts == (200, 51)
    assert sorted(scorer.asked) == sorted(PAIRS[:200])
    assert sum(done) == 251
    expected = np.array([scorer.score_pair(pair) for pair in pairs], np.float32)
    np.testing.assert_array_equal(lookup(cache.load("part"), keys_of(pairs)), expected)
    assert len(cache.store.sizes(cache.prefix)) == -(-200 // chunk)


def test_a_part_without_pairs_writes_nothing(tmp_path: Path) -> None:
    scorer = DigestScorer()
    assert score_part([], scorer, open_cache(tmp_path, scorer), "part") == (0, 0)
    assert open_store(str(tmp_path)).sizes("") == {}


def test_a_new_threshold_costs_no_scoring(tmp_path: Path) -> None:
    scorer = DigestScorer()
    cache = open_cache(tmp_path, scorer)
    score_part(in_batches(PAIRS, 100), scorer, cache, "part", chunk=300)
    scorer.asked.clear()
    for threshold in (0.42, 0.58):
        assert score_part(in_batches(PAIRS, 100), scorer, cache, "part") == (0, 1000)
        kept = lookup(cache.load("part"), keys_of(PAIRS)) >= np.float32(threshold)
        assert kept.tolist() == [np.float32(scorer.score_pair(pair)) >= np.float32(threshold) for pair in PAIRS]
        assert 0 < kept.sum() < 1000
    assert scorer.asked == []


def test_another_model_reuses_nothing(tmp_path: Path) -> None:
    first, second = DigestScorer("a"), DigestScorer("b")
    score_part(in_batches(PAIRS, 100), first, open_cache(tmp_path, first), "part")
    cache = open_cache(tmp_path, second)
    assert score_part(in_batches(PAIRS, 100), second, cache, "part", known=cache.load_all()) == (1000, 0)
    expected = np.array([second.score_pair(pair) for pair in PAIRS], np.float32)
    np.testing.assert_array_equal(lookup(cache.load("part"), keys_of(PAIRS)), expected)


def test_a_scorer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the cache is of model ca978112ca1bbdca, the scorer of 3e23e8160039594a"):
        score_part([], DigestScorer("b"), open_cache(tmp_path, DigestScorer("a")), "part")


def test_pairs_that_moved_between_files_keep_their_scores(tmp_path: Path) -> None:
    scorer = DigestScorer()
    cache = open_cache(tmp_path, scorer)
    score_part(in_batches(PAIRS[:600], 100), scorer, cache, "old")
    scorer.asked.clear()
    moved = PAIRS[200:700]
    counts = score_part(in_batches(moved, 100), scorer, cache, "new", known=cache.load_all(), chunk=128)
    assert counts == (100, 400)
    assert sorted(scorer.asked) == sorted(PAIRS[600:700])
    expected = np.array([scorer.score_pair(pair) for pair in moved], np.float32)
    np.testing.assert_array_equal(lookup(cache.load("new"), keys_of(moved)), expected)


def test_a_score_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, DigestScorer())
    with pytest.raises(InputError, match="gave a NaN or infinite score in en-id, part part"):
        cache.add("part", keys_of(PAIRS[:2]), np.array([0.5, np.nan], np.float32))
    assert cache.store.sizes("") == {}


def _score_slowly(folder: Path) -> None:
    scorer = DigestScorer(seconds_a_call=0.3)
    score_part(in_batches(PAIRS, 30), scorer, open_cache(folder, scorer), "part", chunk=100)


def test_after_kill_only_what_is_missing_is_scored(tmp_path: Path) -> None:
    scorer = DigestScorer()
    cache = open_cache(tmp_path / "killed", scorer)
    process = multiprocessing.get_context("spawn").Process(target=_score_slowly, args=(tmp_path / "killed",))
    process.start()
    while len(cache.store.sizes(cache.prefix)) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    leftover = tmp_path / "killed" / cache.prefix / "part" / f".writing-elsewhere~{os.getpid()}~0-x.npy"
    leftover.write_bytes(b"half")  # as another machine's death would leave it
    published = len(cache.load("part"))
    assert published in range(300, 1000, 100)

    assert score_part(in_batches(PAIRS, 30), scorer, cache, "part", chunk=100) == (1000 - published, published)
    undisturbed = open_cache(tmp_path / "undisturbed", scorer)
    score_part(in_batches(PAIRS, 30), scorer, undisturbed, "part", chunk=100)
    np.testing.assert_array_equal(cache.load("part"), undisturbed.load("part"))
    assert cache.store.sizes(cache.prefix) == undisturbed.store.sizes(cache.prefix)
