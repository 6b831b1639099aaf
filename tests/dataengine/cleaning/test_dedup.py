from __future__ import annotations

import itertools
import time
import tracemalloc
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

from dataengine.arrays import with_part
from dataengine.characters import without_invisible
from dataengine.cleaning import dedup
from dataengine.cleaning.dedup import (
    GROUPED,
    KEY,
    Keys,
    drop_later,
    find_groups,
    hash_grams,
    normalize,
    pair_keys,
    text_keys,
)

DEMO = Path(__file__).parents[3] / "demo/data"


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("an area of 10² metres", "an area of 102 metres"),
        ("10⁻² and 10−2", "10−2 and 10−2"),
        ("10ⁿ", "10n"),
        ("log₂8 is 3", "log28 is 3"),
        ("base 10₂", "base 102"),
        ("1½ cups", "11/2 cups"),
        ("1½ cups", "11⁄2 cups"),
        ("½5", "1⁄25"),
        ("①② are steps", "12 are steps"),
        ("2①", "21"),
        ("1⒈", "11."),
        ("５²", "52"),
        ("٥²", "٥2"),
    ],
)
def test_normalize_makes_no_other_number(one: str, other: str) -> None:
    assert normalize(one) != normalize(other)
    assert bare(text_keys([one], 1, 0)) != bare(text_keys([other], 1, 0))


@pytest.mark.parametrize(
    ("one", "other"),
    [("10²", "10^2"), ("H₂O", "h2o"), ("m²", "m2"), ("１２ ㎡", "12 m2"), ("Step ①", "step 1"), ("1½", "1 ½")],
)
def test_normalize_folds_forms_of_numbers(one: str, other: str) -> None:
    assert normalize(one) == normalize(other)


SUPERSCRIPTS = "".join(
    character for character in map(chr, range(0x20000)) if unicodedata.decomposition(character)[:4] in ("<sup", "<sub")
)


@given(st.text(st.characters(exclude_categories=("No", "So"), exclude_characters=SUPERSCRIPTS)))
def test_normalize_is_nfkc_casefold_and_split_of_what_shows(text: str) -> None:
    folded = without_invisible(unicodedata.normalize("NFKC", without_invisible(text)))
    assert normalize(text) == " ".join(folded.casefold().split())


@pytest.mark.parametrize("character", ["\u00ad", "\u200b", "\ufeff", "\u200f", "\u202a", "\u2066", "\ufe0f"])
def test_characters_that_do_not_show_hide_no_text(character: str) -> None:
    hidden = character.join("Open the file Ａ 打开文件")
    assert normalize(hidden) == normalize("Open the file Ａ 打开文件") == "open the file a 打开文件"
    assert bare(text_keys([hidden], 1, 0)) == bare(text_keys(["open the file a 打开文件"], 1, 0))


def test_keys_are_part_of_every_build() -> None:
    """A change here makes builds that exist find other duplicates: raise the schema of the units."""
    keys = text_keys(["Open File", "打开文件"], 1, 7)
    assert KEY.itemsize == 24
    assert keys.tobytes().hex() == GOLDEN_TEXTS
    assert pair_keys(["Open File"], ["打开文件"], 2, 0).tobytes().hex() == GOLDEN_PAIR


GOLDEN_TEXTS = "91e885425297816990eec9fae539c4f10700000001000000f02e8ea74dcf964c922bfc860234f4c60800000001000000"
GOLDEN_PAIR = "cfa374da4bcc9d622909f8c9eff794620000000002000000"


def test_text_keys_agree_for_texts_that_normalize_alike_and_number_the_records() -> None:
    keys = text_keys(["Open  File", "ｏｐｅｎ file", "open files"], 3, 40)
    first, second, third = bare(keys)
    assert first == second != third
    assert keys["record"].tolist() == [40, 41, 42]
    assert keys["kind"].tolist() == [3] * 3
    assert len(text_keys([], 3, 0)) == 0


def test_pair_keys_distinguish_the_side_of_a_word() -> None:
    keys = pair_keys(["a b", "a", "A  b", "b"], ["c", "b c", "C", "a c"], 2, 0)
    first, second, third, fourth = bare(keys)
    assert first == third
    assert len({first, second, fourth}) == 3
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        pair_keys(["a", "b"], ["a"], 2, 0)


def test_keys_of_different_kinds_never_meet() -> None:
    text = "one two three four five six"
    made = [bare(text_keys([text], kind, 0)) for kind in range(1, 6)]
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


def test_an_ngram_is_found_in_any_context() -> None:
    inner = grams_of("保存 the file 在此文件夹", 4)
    assert len(inner) == 3
    assert set(inner) <= set(grams_of("x y z，请保存 the file 在此文件夹 then 打开 it again", 4))


def test_a_text_longer_than_the_usual_has_the_same_grams() -> None:
    text = " ".join(map(str, range(60_000)))
    assert len(text) > dedup._USUAL_SIZE
    assert grams_of(text, 5)[-100:] == grams_of(" ".join(text.split()[-104:]), 5)


# --- The reduce ---

halves = st.sampled_from([0, 1, 2, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
Row = tuple[int, int, int]  # high, low, kind
row = st.tuples(halves, st.sampled_from([0, 5]), st.integers(1, 3))
rows_of_records = st.lists(st.lists(row, max_size=4), max_size=20)
cuts = st.lists(st.integers(0, 20), max_size=4)


def make_units(records: Sequence[Sequence[Row]], cuts: Sequence[int]) -> list[Keys]:
    """Keys of records dealt out to units, cut at the given places."""
    bounds = [0, *sorted(min(cut, len(records)) for cut in cuts), len(records)]
    return [
        np.array(
            [
                (high, low + kind, number, kind)  # the kind is in the hash
                for number, keys in enumerate(records[first:last])
                for high, low, kind in keys
            ],
            KEY,
        )
        for first, last in itertools.pairwise(bounds)
    ]


def find_naively(units: Sequence[Keys]) -> list[tuple[int, int, int]]:
    """Record by record: dropped is who has a key that a record kept before it has."""
    kept: set[tuple[int, int]] = set()
    found = []
    for unit, keys in enumerate(units):
        for record in sorted(set(keys["record"].tolist())):
            mine = [key for key in keys.tolist() if key[2] == record]
            kinds = [kind for high, low, _, kind in mine if (high, low) in kept]
            if kinds:
                found.append((unit, record, min(kinds)))
            else:
                kept.update((high, low) for high, low, *_ in mine)
    return found


def find_duplicates(units: Sequence[Keys], ranges: int = 1) -> list[tuple[int, ...]]:
    """Unit, record and kind of each duplicate, with the key space cut into ranges."""
    keys = np.concatenate([with_part(np.empty(0, KEY), 0), *(with_part(keys, part) for part, keys in enumerate(units))])
    numbers = np.array([high * ranges >> 64 for high in keys["high"].tolist()], int)
    groups = [find_groups(keys[numbers == number]) for number in range(ranges)]
    return [tuple(found) for found in np.stack(drop_later(groups), axis=1).tolist()]


@given(rows_of_records, cuts, st.integers(1, 9))
@example([[(0, 0, 1)], [(0, 0, 1), (1, 0, 2)], [(1, 0, 2)]], [], 1)
def test_duplicates_are_those_found_record_by_record(records: list[list[Row]], cuts: list[int], ranges: int) -> None:
    units = make_units(records, cuts)
    assert find_duplicates(units, ranges) == find_naively(units)


@given(rows_of_records, cuts, cuts)
def test_duplicates_do_not_depend_on_how_records_are_dealt_to_units(
    records: list[list[Row]], some: list[int], others: list[int]
) -> None:
    def dropped(cuts: list[int]) -> list[tuple[int, int]]:
        units = make_units(records, cuts)
        firsts = [0, *sorted(min(cut, len(records)) for cut in cuts)]
        return [(firsts[unit] + record, kind) for unit, record, kind in find_duplicates(units)]

    assert dropped(some) == dropped(others)


@given(rows_of_records, cuts)
def test_of_each_key_one_record_is_kept_or_all_have_another_that_is(records: list[list[Row]], cuts: list[int]) -> None:
    """No text is lost: each dropped record has a key of a kept one."""
    units = make_units(records, cuts)
    dropped = {(unit, record) for unit, record, _ in find_duplicates(units)}
    entries = [(unit, key) for unit, keys in enumerate(units) for key in keys.tolist()]
    kept = {key[:2] for unit, key in entries if (unit, key[2]) not in dropped}
    for place in dropped:
        assert any(key[:2] in kept for unit, key in entries if (unit, key[2]) == place)


@given(st.lists(row, max_size=20), cuts)
def test_each_key_has_one_survivor_the_first(keys: list[Row], cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(keys)) for cut in cuts)]
    found = find_duplicates(make_units([[key] for key in keys], cuts))
    dropped = {bounds[unit] + record for unit, record, _ in found}
    assert [key for number, key in enumerate(keys) if number not in dropped] == list(dict.fromkeys(keys))


def test_no_record_is_dropped_for_one_that_is_dropped_itself() -> None:
    one = text_keys(["a", "a", "b"], 3, 0)
    other = text_keys(["x", "y", "y"], 4, 0)
    assert find_duplicates([np.concatenate([one, other])]) == [(0, 1, 3)]


def test_a_long_chain_takes_no_time() -> None:
    """Each record shares one text with the one before and the other one with the one behind: every other one stays."""
    count = 200_000
    one = text_keys([str((k + 1) // 2) for k in range(count)], 1, 0)
    other = text_keys([str(k // 2) for k in range(count)], 2, 0)
    begun = time.process_time()
    found = find_duplicates([np.concatenate([one, other])])
    assert time.process_time() - begun < 60  # seconds; round by round it would be a quarter of an hour
    assert [record for _, record, _ in found] == list(range(1, count, 2))


@given(rows_of_records, cuts, st.integers(0, 2))
def test_duplicates_are_the_same_however_many_are_decided_at_once(
    records: list[list[Row]], cuts: list[int], rounds: int
) -> None:
    units = make_units(records, cuts)
    with mock.patch.object(dedup, "_ROUNDS", rounds):
        assert find_duplicates(units) == find_naively(units)


def test_short_texts_of_two_kinds_have_no_key_in_common() -> None:
    """As they would if the kind were a seed of xxh3, which it adds to what is short."""
    texts = [str(number) for number in range(100_000)]
    keys = [text_keys(texts, kind, 0) for kind in range(1, 5)]
    assert len(np.unique(np.concatenate([found[["high", "low"]] for found in keys]))) == 4 * len(texts)


def test_a_key_twice_in_one_record_makes_no_duplicate() -> None:
    assert find_duplicates([np.repeat(text_keys(["a"], 1, 3), 2)]) == []


def test_no_keys_have_no_duplicates() -> None:
    assert find_duplicates([]) == find_duplicates([np.empty(0, KEY)]) == []
    assert [len(found) for found in drop_later([])] == [0, 0, 0]
    assert find_groups(with_part(np.empty(0, KEY), 0)).dtype == GROUPED


def test_a_key_that_many_records_share_takes_little_memory() -> None:
    """As a message of a web site does. Before, it took 146 bytes a record."""
    count = 400_000
    keys = with_part(np.zeros(count, KEY), 0)
    keys["record"], keys["kind"] = np.arange(count), 1
    tracemalloc.start()
    groups = find_groups(keys)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    _, records, _ = drop_later([groups])
    dropped = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert records.tolist() == list(range(1, count))
    assert found / count <= 40  # beside the 28 of the key
    assert dropped / count <= 16 + 50  # with those of the groups


def test_real_pairs_with_copies_lose_the_copies_alone() -> None:
    pairs = read_demo("en-zh.train.jsonl.zst", 2000)
    copies = [{key: text.upper() + " " for key, text in pair.items()} for pair in pairs[::7]]

    def keys(some: list[dict[str, str]]) -> Keys:
        return pair_keys([pair["en"] for pair in some], [pair["zh"] for pair in some], 2, 0)

    found = find_duplicates([keys(pairs), keys(copies)])
    assert found == [(1, record, 2) for record in range(len(copies))]
