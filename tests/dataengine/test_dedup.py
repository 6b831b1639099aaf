from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from dataengine import dedup
from dataengine.dedup import (
    KEY,
    SHINGLE_WORDS,
    Keys,
    Kind,
    choose_bands,
    find_duplicates,
    hash_grams,
    near_keys,
    normalize,
    num_bands,
    pair_keys,
    sort_keys,
    text_keys,
)
from dataengine.errors import InputError
from dataengine.runs import bucket_bounds

DEMO = Path(__file__).parents[2] / "demo/data"


def read_demo(name: str, count: int) -> list[dict[str, str]]:
    with zstandard.open(DEMO / name, "rt", encoding="utf-8") as file:
        return [orjson.loads(line) for line in itertools.islice(file, count)]


def bare(keys: Keys) -> list[tuple[int, int]]:
    """The hashes of keys, without the records."""
    return list(zip(keys["high"].tolist(), keys["low"].tolist(), strict=True))


# --- Keys ---


def test_normalize_folds_case_width_and_white_space() -> None:
    assert normalize("  Ｏｐｅｎ\u3000the\n\tFILE… ") == "open the file..."
    assert normalize("（第１章）：“说明”") == "(第1章):“说明”"
    assert normalize("Straße ﬁn") == "strasse fin"
    assert normalize("cafe\u0301") == normalize("café")


@given(st.text())
def test_normalize_is_nfkc_casefold_and_split(text: str) -> None:
    assert normalize(text) == " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def test_keys_are_part_of_every_build() -> None:
    """A change here makes builds that exist find other duplicates: raise the schema of the units."""
    keys = text_keys(["Open File", "打开文件"], Kind.DOCUMENT, 7)
    assert KEY.itemsize == 24
    assert keys.tobytes().hex() == GOLDEN_TEXTS
    assert pair_keys(["Open File"], ["打开文件"], Kind.PAIR, 0).tobytes().hex() == GOLDEN_PAIR
    assert bare(near_keys(["one two three four five six"], 0.9, 0))[0] == GOLDEN_NEAR


GOLDEN_TEXTS = "f9ee6d7b7c7a57274527e5401bd3465407000000010000007e797186fdd68e608098df64e9997f030800000001000000"
GOLDEN_PAIR = "cf08bb9a146976a57b626e95439ea1d10000000002000000"
GOLDEN_NEAR = (14029251656639798872, 6921186572750866786)


def test_text_keys_agree_for_texts_that_normalize_alike_and_number_the_records() -> None:
    keys = text_keys(["Open  File", "ｏｐｅｎ file", "open files"], Kind.SOURCE, 40)
    first, second, third = bare(keys)
    assert first == second != third
    assert keys["record"].tolist() == [40, 41, 42]
    assert keys["kind"].tolist() == [Kind.SOURCE] * 3
    assert len(text_keys([], Kind.SOURCE, 0)) == 0


def test_pair_keys_tell_which_side_a_word_is_on() -> None:
    keys = pair_keys(["a b", "a", "A  b", "b"], ["c", "b c", "C", "a c"], Kind.PAIR, 0)
    first, second, third, fourth = bare(keys)
    assert first == third
    assert len({first, second, fourth}) == 3
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        pair_keys(["a", "b"], ["a"], Kind.PAIR, 0)


def test_keys_of_different_kinds_never_meet() -> None:
    text = "one two three four five six"
    made = [bare(text_keys([text], kind, 0)) for kind in Kind] + [bare(near_keys([text], 0.8, 0))]
    everything = list(itertools.chain(*made))
    assert len(set(everything)) == len(everything)


# --- N-grams ---

words = st.sampled_from(["a", "b", "see", "文", "字", "x1", "กา"])
spaced = st.lists(words, max_size=30).map(" ".join)


def grams_of(text: str, count: int) -> list[int]:
    return [int(h) for grams in hash_grams([text], count) for h in grams.hashes]


def text_hash(text: str) -> int:
    (grams,) = hash_grams([text], 1)
    return int(grams.texts[0])


def spell_grams(text: str, count: int) -> list[str]:
    """The n-grams of a text by the definition, one at a time."""
    tokens = [token for word in text.split() for token in ([word] if word[0] in "absex" else list(word))]
    weights = [4 if token[0] in "absex" else 2 if token in "文字" else 1 for token in tokens]
    spelled = []
    for begin in range(len(tokens)):
        for stop in range(begin + 1, len(tokens) + 1):
            if sum(weights[begin:stop]) >= 4 * count:
                spelled.append(" ".join(tokens[begin:stop]))
                break
    return spelled


@given(st.lists(spaced, max_size=6), st.integers(1, 6), st.sampled_from([1, 20, 1 << 17]))
def test_grams_are_those_of_the_definition(texts: list[str], count: int, group: int) -> None:
    with mock.patch.object(dedup, "_GROUP", group):
        found = list(hash_grams(texts, count))
    rows, first = [], 0
    for grams in found:
        rows += [(first + int(row), int(h)) for row, h in zip(grams.rows, grams.hashes, strict=True)]
        first += len(grams.texts)
    assert first == len(texts)
    assert rows == [(k, text_hash(gram)) for k, text in enumerate(texts) for gram in spell_grams(text, count)]


def test_punctuation_parts_words_and_is_left_out() -> None:
    assert text_hash("open the file (now)!") == text_hash("open the-file now")
    assert text_hash("文字，采用。") == text_hash("文字采用") == text_hash("文 字采用")
    assert text_hash("openthe file") != text_hash("open the file")
    assert text_hash("हिन्दी") != text_hash("हनद")  # marks belong to words


def test_a_gram_weighs_a_chinese_character_as_half_a_word() -> None:
    assert len(grams_of("a b c d e", 5)) == 1
    assert len(grams_of("a b c d", 5)) == 0
    assert len(grams_of("文字采用绘图或演示文", 5)) == 1
    assert len(grams_of("文字采用绘图或演示", 5)) == 0
    assert len(grams_of("文字采用 a b c", 5)) == 1


def test_an_ngram_is_found_whatever_stands_around_it() -> None:
    inner = grams_of("保存 the file 在此文件夹", 4)
    assert len(inner) == 3
    assert set(inner) <= set(grams_of("x y z，请保存 the file 在此文件夹 then 打开 it again", 4))


def test_a_text_longer_than_the_usual_has_the_same_grams() -> None:
    text = " ".join(map(str, range(60_000)))
    assert len(text) > dedup._USUAL_SIZE
    assert grams_of(text, 5)[-100:] == grams_of(" ".join(text.split()[-104:]), 5)


# --- Near duplicates ---


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_the_middle_of_the_curve_lies_at_the_threshold(threshold: float) -> None:
    bands, rows = choose_bands(threshold)
    assert bands * rows <= dedup.PERMUTATIONS
    assert num_bands(threshold) == bands
    assert 1 - (1 - threshold**rows) ** bands == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_a_threshold_outside_its_range_is_an_error(threshold: float) -> None:
    with pytest.raises(InputError, match=r"is not between 0 and 1\. Give one such as 0\.8\."):
        near_keys(["a"], threshold, 0)


@pytest.mark.parametrize(("similarity", "low", "high"), [(0.6, 0.0, 0.07), (0.8, 0.38, 0.62), (0.95, 0.97, 1.0)])
def test_alike_texts_share_a_key_as_often_as_the_curve_says(similarity: float, low: float, high: float) -> None:
    """The curve for 0.8 (10 bands of 12 rows) says 0.02, 0.51 and 1.00."""
    chance, size, trials = random.Random(3), 200, 300
    common = round(2 * size * similarity / (1 + similarity))  # shingles of `size` in both: Jaccard = similarity
    shared = 0
    texts: list[str] = []
    for _ in range(trials):
        drawn = [str(chance.randrange(10**9)) for _ in range(2 * size + 8)]
        texts.append(" ".join(drawn[: size + 4]))
        texts.append(" ".join(drawn[: common + 4] + drawn[size + 4 : 2 * size + 4 - common]))
    keys = near_keys(texts, 0.8, 0).reshape(2 * trials, -1)
    for one, other in zip(keys[::2], keys[1::2], strict=True):
        shared += bool(set(bare(one)) & set(bare(other)))
    assert low <= shared / trials <= high


def test_near_keys_number_the_records_and_skip_texts_without_words() -> None:
    keys = near_keys(["a short one", "!!!", "", "一个 short text of more than five words"], 0.8, 10)
    assert keys["record"].tolist() == [10] * num_bands(0.8) + [13] * num_bands(0.8)
    assert set(keys["kind"].tolist()) == {Kind.NEAR}
    assert len(near_keys([], 0.8, 0)) == len(near_keys(["?"], 0.8, 0)) == 0


def test_a_text_shorter_than_a_shingle_is_near_itself_alone() -> None:
    assert SHINGLE_WORDS == 5
    one, same, other = near_keys(["Save the file", "save, the file!", "save the files"], 0.3, 0).reshape(3, -1)
    assert bare(one) == bare(same)
    assert not set(bare(one)) & set(bare(other))


def test_near_keys_of_a_text_do_not_depend_on_its_neighbours() -> None:
    texts = [record["text"] for record in read_demo("mono.en.jsonl.zst", 60)]
    together = near_keys(texts, 0.8, 0)
    alone = [near_keys([text], 0.8, number) for number, text in enumerate(texts)]
    assert together.tobytes() == np.concatenate(alone).tobytes()


def test_an_edited_document_is_found() -> None:
    texts = [record["text"] for record in read_demo("mono.en.jsonl.zst", 200) if len(record["text"]) > 600]
    edited = [text.replace(text.split()[50], "changed", 1) for text in texts]
    _, records, _ = find_duplicates([sort_keys(near_keys(texts, 0.7, 0)), sort_keys(near_keys(edited, 0.7, 0))])
    assert len(set(records.tolist())) > 0.95 * len(texts)
    assert len(find_duplicates([sort_keys(near_keys(texts, 0.7, 0))])[0]) < 0.02 * len(texts)


# --- The reduce ---

halves = st.sampled_from([0, 1, 2, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
Row = tuple[int, int, int]  # high, low, kind
row = st.tuples(halves, st.sampled_from([0, 5]), st.integers(1, 3))
rows_of_records = st.lists(st.lists(row, max_size=4), max_size=20)
cuts = st.lists(st.integers(0, 20), max_size=4)


def make_units(records: Sequence[Sequence[Row]], cuts: Sequence[int]) -> list[Keys]:
    """Sorted keys of records dealt out to units, cut at the given places."""
    bounds = [0, *sorted(min(cut, len(records)) for cut in cuts), len(records)]
    return [
        sort_keys(
            np.array(
                [
                    (high, low + kind, number, kind)  # the kind is in the hash
                    for number, keys in enumerate(records[first:last])
                    for high, low, kind in keys
                ],
                KEY,
            )
        )
        for first, last in itertools.pairwise(bounds)
    ]


def find_naively(units: Sequence[Keys]) -> list[tuple[int, int, int]]:
    firsts: dict[tuple[int, int], tuple[int, int]] = {}
    found = set()
    for unit, keys in enumerate(units):
        for high, low, record, kind in sorted(keys.tolist(), key=lambda key: key[2]):
            if firsts.setdefault((high, low), (unit, record)) != (unit, record):
                found.add((unit, record, kind))
    return sorted(found)


def as_rows(found: tuple[dedup.UInt32s, ...]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.stack(found, axis=1).tolist()]


@given(rows_of_records, cuts)
def test_duplicates_are_those_of_a_dictionary(records: list[list[Row]], cuts: list[int]) -> None:
    units = make_units(records, cuts)
    assert as_rows(find_duplicates(units)) == find_naively(units)


@given(rows_of_records, cuts, st.integers(1, 9))
def test_duplicates_do_not_depend_on_how_the_key_space_is_cut(
    records: list[list[Row]], cuts: list[int], ranges: int
) -> None:
    units = make_units(records, cuts)
    bounds = [bucket_bounds(keys["high"], ranges) for keys in units]
    found = [
        find_duplicates([keys[b[k] : b[k + 1]] for keys, b in zip(units, bounds, strict=True)]) for k in range(ranges)
    ]
    pieces = sorted(set(itertools.chain(*map(as_rows, found))))
    assert pieces == as_rows(find_duplicates(units))


@given(rows_of_records, cuts, cuts)
def test_duplicates_do_not_depend_on_how_records_are_dealt_to_units(
    records: list[list[Row]], some: list[int], others: list[int]
) -> None:
    def dropped(cuts: list[int]) -> list[tuple[int, int]]:
        units = make_units(records, cuts)
        firsts = [0, *sorted(min(cut, len(records)) for cut in cuts)]
        return sorted((firsts[unit] + record, kind) for unit, record, kind in as_rows(find_duplicates(units)))

    assert dropped(some) == dropped(others)


@given(st.lists(row, max_size=20), cuts)
def test_each_key_has_one_survivor_the_first(keys: list[Row], cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(keys)) for cut in cuts)]
    found = find_duplicates(make_units([[key] for key in keys], cuts))
    dropped = {bounds[unit] + record for unit, record, _ in as_rows(found)}
    assert [key for number, key in enumerate(keys) if number not in dropped] == list(dict.fromkeys(keys))


def test_a_record_is_dropped_for_an_earlier_one_that_is_dropped_itself() -> None:
    one = text_keys(["a", "a", "b"], Kind.SOURCE, 0)
    other = text_keys(["x", "y", "y"], Kind.TARGET, 0)
    found = find_duplicates([sort_keys(np.concatenate([one, other]))])
    assert as_rows(found) == [(0, 1, Kind.SOURCE), (0, 2, Kind.TARGET)]


def test_a_key_twice_in_one_record_is_no_duplicate() -> None:
    assert as_rows(find_duplicates([sort_keys(np.repeat(text_keys(["a"], 1, 3), 2))])) == []


def test_no_keys_have_no_duplicates() -> None:
    assert as_rows(find_duplicates([])) == as_rows(find_duplicates([np.empty(0, KEY)])) == []


@given(rows_of_records, st.randoms(use_true_random=False))
def test_sorting_depends_on_the_keys_alone(records: list[list[Row]], chance: random.Random) -> None:
    (keys,) = make_units(records, [])
    shuffled = keys.tolist()
    chance.shuffle(shuffled)
    assert sort_keys(np.array(shuffled, KEY)).tobytes() == keys.tobytes()
    assert [key[:3] for key in keys.tolist()] == sorted(key[:3] for key in shuffled)


@given(rows_of_records, st.integers(1, 40))
@example([[(0, 0, 1), ((1 << 64) - 1, 0, 1)]], 1024)
def test_buckets_hold_equal_ranges_of_high(records: list[list[Row]], buckets: int) -> None:
    (keys,) = make_units(records, [])
    bounds = bucket_bounds(keys["high"], buckets)
    assert bounds.shape == (buckets + 1,)
    assert bounds.dtype == np.int64
    for place, high in enumerate(keys["high"].tolist()):
        bucket = int(np.searchsorted(bounds, place, side="right")) - 1
        assert (bucket << 64) // buckets <= high < ((bucket + 1) << 64) // buckets


def test_real_pairs_with_copies_lose_the_copies_alone() -> None:
    pairs = read_demo("en-zh.train.jsonl.zst", 2000)
    copies = [{key: text.upper() + " " for key, text in pair.items()} for pair in pairs[::7]]

    def keys(some: list[dict[str, str]]) -> Keys:
        return sort_keys(pair_keys([pair["en"] for pair in some], [pair["zh"] for pair in some], Kind.PAIR, 0))

    found = as_rows(find_duplicates([keys(pairs), keys(copies)]))
    assert found == [(1, record, Kind.PAIR) for record in range(len(copies))]
