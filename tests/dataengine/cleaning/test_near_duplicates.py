from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dataengine.cleaning import minhash, near_duplicates
from dataengine.cleaning.minhash import SHINGLE_WORDS, Shingles, band_hashes, choose_bands, shingle_texts, sign
from dataengine.cleaning.near_duplicates import connect, find_near_duplicates, jaccard
from dataengine.errors import InputError

DEMO = Path(__file__).parents[3] / "demo/data"


def read_demo(name: str, key: str, count: int) -> list[str]:
    with zstandard.open(DEMO / name, "rt", encoding="utf-8") as file:
        return [orjson.loads(line)[key] for line in itertools.islice(file, count)]


def sets_of(texts: Sequence[str]) -> list[set[int]]:
    shingles = shingle_texts(texts)
    ends = shingles.ends.tolist()
    return [set(shingles.hashes[start:end].tolist()) for start, end in zip([0, *ends], ends, strict=False)]


def similarity(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


def compare_all(texts: Sequence[str], threshold: float) -> list[int]:
    """The texts that go if each is compared with every text before it that is kept."""
    sets, kept, dropped = sets_of(texts), [], []
    for number, mine in enumerate(sets):
        if mine and any(similarity(mine, sets[k]) >= threshold for k in kept if sets[k]):
            dropped.append(number)
        else:
            kept.append(number)
    return dropped


def check_evidence(texts: Sequence[str], threshold: float) -> list[int]:
    """Whatever goes has a twin that stays, as alike as is said and as the threshold asks; returns what goes."""
    sets, found = sets_of(texts), find_near_duplicates(texts, threshold)
    dropped = found["record"].tolist()
    assert dropped == sorted(set(dropped))
    for record, kept, stated in found.tolist():
        assert kept not in set(dropped)
        assert similarity(sets[record], sets[kept]) == pytest.approx(stated, abs=1e-6)
        assert stated >= np.float32(threshold)
    return dropped


# --- Shingles ---


def shingles_of(text: str) -> set[int]:
    return sets_of([text])[0]


def test_a_text_shorter_than_a_shingle_is_one_and_a_text_of_punctuation_has_none() -> None:
    assert SHINGLE_WORDS == 5
    assert shingles_of("Save the file") == shingles_of("save, the file!") != shingles_of("save the files")
    assert len(shingles_of("Save the file")) == 1
    assert len(shingles_of("a b c d e f")) == 2
    assert [shingle_texts([text]).sizes.tolist() for text in ("?!", "", "“ ”")] == [[0], [0], [0]]


@pytest.mark.parametrize(
    "texts",
    [
        ("C", "C++", "C#"),
        ("5", "-5", "+5"),
        ("50%", "50 $", "50"),
        ("A > B", "A < B", "A B"),
        ("the rate rose to 50%", "the rate rose to 50 $", "the rate rose to 50"),
        ("It is -5 degrees cold out there", "It is 5 degrees cold out there"),
        ("温度是-5度，请注意保暖", "温度是5度，请注意保暖"),
        ("I & you", "I @ you", "I * you", "I you"),
        ("an area of 10² metres", "an area of 102 metres", "an area of 10₂ metres"),
    ],
)
def test_symbols_make_texts_different(texts: tuple[str, ...]) -> None:
    sets = sets_of(texts)
    assert all(one != other for one, other in itertools.combinations(sets, 2))
    assert len(find_near_duplicates(texts, 0.99)) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("well-known, isn't it? Yes.", "well known isn t it -- yes"),
        ("pages 3-5 of it", "pages 3 5 of it"),
        ("（第一章）：文件。", "第一章 文件"),
        ("Trans\u00adlation of the text", "translation of the \u200btext"),
    ],
)
def test_punctuation_and_what_does_not_show_make_no_difference(one: str, other: str) -> None:
    assert shingles_of(one) == shingles_of(other)


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=9))
def test_distinct_selected_and_reordered_shingles_are_those_of_each_text(texts: list[list[int]]) -> None:
    def as_lists(shingles: Shingles) -> list[list[int]]:
        ends = shingles.ends.tolist()
        return [shingles.hashes[a:b].tolist() for a, b in zip([0, *ends], ends, strict=False)]

    made = Shingles(
        np.array([k for text in texts for k in text], np.uint64), np.array([len(text) for text in texts], np.int64)
    )
    assert as_lists(made) == texts
    assert as_lists(made.distinct()) == [sorted(set(text)) for text in texts]
    chosen = np.array([len(text) % 2 == 1 for text in texts], bool)
    assert as_lists(made.select(chosen)) == [text for text in texts if len(text) % 2]
    order = np.arange(len(texts))[::-1]
    assert as_lists(made.take(order)) == texts[::-1]
    assert as_lists(minhash.join([made, made.select(chosen)])) == texts + [text for text in texts if len(text) % 2]


@given(st.sets(st.integers(0, 50), min_size=1), st.sets(st.integers(0, 50), min_size=1))
def test_jaccard_is_that_of_sets(one: set[int], other: set[int]) -> None:
    assert jaccard(*(np.array(sorted(part), np.uint64) for part in (one, other))) == similarity(one, other)


def test_signatures_do_not_depend_on_what_else_is_signed() -> None:
    shingles = shingle_texts(read_demo("mono.en.jsonl.zst", "text", 60))
    with mock.patch.object(near_duplicates, "_BLOCK", 7):
        assert np.array_equal(sign(shingles), together := sign(shingles))
    alone = [sign(shingles.select(np.arange(60) == k))[0] for k in range(60)]
    assert np.array_equal(together, np.stack(alone))


def test_a_forked_process_signs_texts_too() -> None:
    """A pool of threads that its parent made would leave it waiting for ever."""
    chance = random.Random(9)
    shingles = shingle_texts([" ".join(words(chance, 300)) for _ in range(2000)])
    expected = sign(shingles).tobytes()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        os._exit(sign(shingles).tobytes() != expected)
    assert os.waitpid(child, 0)[1] == 0


# --- Bands ---


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_propose_nearly_all_twins_at_the_threshold(threshold: float) -> None:
    bands, rows = choose_bands(threshold)
    assert bands * rows <= minhash.PERMUTATIONS
    assert 1 - (1 - threshold**rows) ** bands >= 0.999
    assert 1 - (1 - threshold ** (rows + 1)) ** (minhash.PERMUTATIONS // (rows + 1)) < 0.999


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_a_threshold_outside_its_range_is_an_error(threshold: float) -> None:
    with pytest.raises(InputError, match=r"is not between 0 and 1\. Give one such as 0\.8\."):
        find_near_duplicates(["a"], threshold)


@pytest.mark.parametrize(("alike", "low", "high"), [(0.4, 0.0, 0.5), (0.8, 0.99, 1.0), (0.95, 1.0, 1.0)])
def test_alike_texts_share_a_band_as_often_as_the_curve_says(alike: float, low: float, high: float) -> None:
    chance, size, trials = random.Random(3), 200, 300
    common = round(2 * size * alike / (1 + alike))  # shingles of `size` in both: Jaccard = alike
    texts: list[str] = []
    for _ in range(trials):
        drawn = [str(chance.randrange(10**9)) for _ in range(2 * size + 8)]
        texts.append(" ".join(drawn[: size + 4]))
        texts.append(" ".join(drawn[: common + 4] + drawn[size + 4 : 2 * size + 4 - common]))
    hashes = band_hashes(sign(shingle_texts(texts)), 0.8)
    shared = (hashes[::2] == hashes[1::2]).any(axis=1)
    assert low <= shared.mean() <= high
    assert len(np.unique(hashes)) == hashes.size - np.count_nonzero(hashes[::2] == hashes[1::2])


# --- Components ---


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_components_are_those_of_a_walk(edges: list[tuple[int, int]]) -> None:
    neighbours: dict[int, set[int]] = {}
    for one, other in edges:
        neighbours.setdefault(one, {one}).add(other)
        neighbours.setdefault(other, {other}).add(one)
    expected = []
    for start in sorted(neighbours):
        reached, waiting = {start}, [start]
        while waiting:
            new = neighbours[waiting.pop()] - reached
            reached |= new
            waiting += new
        expected.append([start, min(reached)])
    made = connect(np.array(edges, np.uint64).reshape(-1, 2))
    assert made.tolist() == expected
    assert np.array_equal(connect(made), made)


# --- What goes ---

MakeTexts = Callable[[random.Random], list[str]]


def words(chance: random.Random, count: int) -> list[str]:
    return [f"w{chance.randrange(10**6)}" for _ in range(count)]


def templated(chance: random.Random, count: int = 600, own: int = 45) -> list[str]:
    boilerplate = words(chance, 300 - own)
    return [" ".join(boilerplate + words(chance, own)) for _ in range(count)]


def test_texts_of_one_template_are_kept() -> None:
    """Their similarity is 0.74: many bands are shared by all, and no text is a twin of another."""
    assert check_evidence(templated(random.Random(1)), 0.8) == []


def test_of_a_chain_every_sixth_text_is_kept() -> None:
    """Windows over one text, six words further each: those up to five apart are alike enough, so the next one stays."""
    text = words(random.Random(2), 600 * 6 + 300)
    windows = [" ".join(text[6 * k : 6 * k + 300]) for k in range(600)]
    assert check_evidence(windows, 0.8) == [k for k in range(600) if k % 6]


def test_twins_of_a_template_are_found_among_its_texts() -> None:
    """Of 1,500 texts that share 85 %, 500 are nearly one of the others."""
    chance = random.Random(3)
    texts = templated(chance, 1000)
    twins = []
    for text in texts[::2]:
        changed = text.split()
        changed[chance.randrange(300)] = "changed"
        twins.append(" ".join(changed))
    dropped = check_evidence([*texts, *twins], 0.8)
    assert set(dropped) <= set(range(1000, 1500))
    assert len(dropped) >= 0.98 * 500


@pytest.mark.parametrize("own", [2, 10])
def test_a_crowd_of_near_copies_leaves_one(own: int) -> None:
    dropped = check_evidence(templated(random.Random(4), 700, own), 0.8)
    assert len(dropped) == 699


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize(("name", "key"), [("mono.en.jsonl.zst", "text"), ("en-zh.train.jsonl.zst", "zh")])
def test_edited_real_texts_are_found_and_none_else(name: str, key: str, threshold: float) -> None:
    """Recall against the comparison of all texts with all, by how alike a text and its likest kept one are."""
    chance, texts = random.Random(5), read_demo(name, key, 3000)
    if key == "zh":
        texts = ["".join(texts[k : k + 4]) for k in range(0, 2000, 4)]
    edited = []
    for text in texts[:300]:
        pieces = text.split(" ") if key == "text" else list(text)
        for place in chance.sample(range(len(pieces)), min(len(pieces), chance.randrange(1, 8))):
            pieces[place] = "新" if key == "zh" else "changed"
        edited.append((" " if key == "text" else "").join(pieces))
    texts = [*texts[:500], *edited]
    dropped = set(check_evidence(texts, threshold))
    sets = sets_of(texts)
    kept = [k for k in range(len(texts)) if k not in dropped and sets[k]]
    assert dropped
    for number in range(500, 800):  # nothing is missed that is clearly above the threshold
        others = [similarity(sets[number], sets[k]) for k in kept if k < number] if sets[number] else []
        assert number in dropped or max(others, default=0.0) < threshold + 0.05


sentence = st.lists(st.sampled_from("abcde"), min_size=1, max_size=14).map(" ".join)


@given(st.lists(sentence, max_size=14), st.sampled_from([0.5, 0.8]))
def test_small_sets_are_compared_as_all_with_all(texts: list[str], threshold: float) -> None:
    assert find_near_duplicates(texts, threshold)["record"].tolist() == compare_all(texts, threshold)


def test_what_is_found_does_not_depend_on_where_crowds_begin() -> None:
    """With crowds of ten already, the same goes as without any, except for texts that only representatives reveal."""
    chance = random.Random(6)
    texts = templated(chance, 150)
    texts += [text.rsplit(" ", 1)[0] + " changed" for text in texts[:50]]
    usual = find_near_duplicates(texts, 0.8)["record"].tolist()
    assert usual == list(range(150, 200))
    with mock.patch.object(near_duplicates, "CROWD", 10):
        assert check_evidence(texts, 0.8) == usual


def test_all_that_are_likely_twins_are_compared() -> None:
    """Texts of one template, just under the threshold, and of each another above it: not its likeliest by signature."""
    chance = random.Random(7)
    texts = templated(chance, 200, 104)
    texts += [" ".join([*text.split()[:-84], *words(chance, 84)]) for text in texts]
    sets = sets_of(texts)
    assert similarity(sets[0], sets[1]) < 0.5 < 0.55 < similarity(sets[0], sets[200])
    dropped = set(check_evidence(texts, 0.5))
    assert sum(200 + k in dropped for k in range(200)) >= 0.98 * 200


def test_texts_of_a_component_are_compared_whether_a_crowd_has_one_or_not() -> None:
    shingles = shingle_texts([" ".join(words(random.Random(8), 50))] * 2).distinct()
    ids = np.arange(2, dtype=np.uint64)
    texts = near_duplicates.Texts(ids, ids * np.uint64(0), np.array([True, False]), shingles)
    assert near_duplicates.compare(texts, texts.none(), 0.8)[0]["record"].tolist() == [1]
