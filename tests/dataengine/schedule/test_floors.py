from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.schedule.floors import Tree
from dataengine.schedule.slots import MAX_RUN_SAMPLES
from dataengine.schedule.stages import by_entry
from tests.dataengine.schedule.plain_floors import Cut, balanced, chain, count_mix

sizes = st.one_of(st.integers(1, 60), st.integers(1, 250_000_000), st.integers(1, MAX_RUN_SAMPLES // 13))
names = st.sampled_from([*"abcdefgh", "x/a", "x/b", "x/c", "x-y/a", "x-y/b", "z/a"])
mixes = st.dictionaries(names, sizes, min_size=1, max_size=12).map(lambda mix: dict(sorted(mix.items())))
rules = pytest.mark.parametrize(("is_balanced", "cut"), [(False, chain), (True, balanced)])


def slots_of(mix: dict[str, int]) -> st.SearchStrategy[int]:
    """A number of slots of a stage, often near its end."""
    total = sum(mix.values())
    return st.one_of(st.integers(0, total), st.integers(max(0, total - 300), total))


def counted(mix: dict[str, int], slots: int) -> dict[str, int]:
    tree = Tree.of(mix, balanced=True)
    return dict(zip(tree.names, tree.count(slots), strict=True))


@rules
@given(mixes, st.data())
def test_counts_are_those_of_the_plain_rule(
    is_balanced: bool, cut: Cut, mix: dict[str, int], data: st.DataObject
) -> None:
    slots, tree = data.draw(slots_of(mix)), Tree.of(mix, balanced=is_balanced)
    assert dict(zip(tree.names, tree.count(slots), strict=True)) == count_mix(mix, slots, cut)
    some = np.array([0, slots // 2, slots], dtype=object)
    assert tree.count_each(some).T.tolist() == [tree.count(number) for number in some]


@rules
@given(mixes, st.integers(1, 300), st.data())
def test_each_slot_goes_to_the_stream_whose_count_rises(
    is_balanced: bool, cut: Cut, mix: dict[str, int], width: int, data: st.DataObject
) -> None:
    """Against Python's integers, up to the largest run: also where a product of two sample counts leaves 64 bits."""
    tree, first = Tree.of(mix, balanced=is_balanced), data.draw(slots_of(mix))
    streams, drawn = tree.deal(np.arange(first, min(first + width, sum(mix.values()))))
    for slot, (stream, place) in enumerate(zip(streams.tolist(), drawn.tolist(), strict=True)):
        before, after = (tree.count(first + slot + more) for more in (0, 1))
        assert place == before[stream]
        assert [b - a for a, b in zip(before, after, strict=True)] == [int(k == stream) for k in range(len(before))]


@given(mixes, st.data())
def test_counts_sum_to_the_slots_and_end_with_the_quotas(mix: dict[str, int], data: st.DataObject) -> None:
    slots = data.draw(slots_of(mix))
    assert sum(counted(mix, slots).values()) == slots
    assert counted(mix, sum(mix.values())) == mix


@given(mixes, st.data())
def test_streams_and_entries_keep_close_to_their_shares(mix: dict[str, int], data: st.DataObject) -> None:
    """Less than 4 samples, and 5 for a stream of an entry: in whole numbers."""
    slots, total = data.draw(slots_of(mix)), sum(mix.values())
    counts = counted(mix, slots)
    for name, quota in mix.items():
        assert abs(counts[name] * total - slots * quota) < (5 if "/" in name else 4) * total
    of_entries = by_entry(counts)
    for name, quota in by_entry(mix).items():
        assert abs(of_entries[name] * total - slots * quota) < 4 * total


@pytest.mark.parametrize("kind", ["equal", "random", "falling", "rising", "powers", "few large"])
def test_ten_thousand_streams_keep_close_to_their_shares(kind: str) -> None:
    """A chain of them strays by hundreds of samples."""
    numbers, draw = range(10_000), random.Random(17)
    weights = {
        "equal": [7] * 10_000,
        "random": [draw.randint(1, 10_000) for _ in numbers],
        "falling": [10_000_000 // (k + 1) for k in numbers],
        "rising": [k + 1 for k in numbers],
        "powers": [1 << (k * 40 // 10_000) for k in numbers],
        "few large": [draw.choice([1, 1, 1, 1_000_000]) for _ in numbers],
    }[kind]
    tree = Tree.of({f"s{k:05d}": weight for k, weight in enumerate(weights)}, balanced=True)
    total = sum(weights)
    slots = np.array([draw.randrange(total) for _ in range(40)])
    counts = np.array([tree.count(int(some)) for some in slots])
    assert np.abs(counts - slots[:, None] * (np.array(weights) / total)).max() < 4


def test_a_mix_that_strays_far() -> None:
    """The worst that a search has found, 2.95 samples: the large stream is cut off late, from a heavy half."""
    weights = [111, 1, 113, 194, 241, 545, 1, 4852, 1, 2, 5]
    mix = {f"s{k:02d}": weight for k, weight in enumerate(weights)}
    total = sum(weights)
    worst = max(
        abs(count - slots * mix[name] / total) for slots in range(total) for name, count in counted(mix, slots).items()
    )
    assert 2.95 < worst < 4


def test_the_streams_of_an_entry_are_one_leaf() -> None:
    """So mono has exactly a quarter of each four slots, next to any number of pairs."""
    mix = {f"bitext/x{k}-en": 3 for k in range(1000)} | {"mono": 1000}
    tree = Tree.of(mix, balanced=True)
    mono = tree.names.index("mono")
    assert [tree.count(slots)[mono] for slots in range(0, 4001, 4)] == list(range(1001))


@given(st.dictionaries(names, sizes, min_size=1, max_size=2))
def test_for_two_streams_the_rules_are_the_same(mix: dict[str, int]) -> None:
    assert Tree.of(mix, balanced=True) == Tree.of(mix, balanced=False)


@given(mixes, st.integers(2, 12), st.data())
def test_quotas_of_the_same_ratio_deal_the_same_slots(mix: dict[str, int], times: int, data: st.DataObject) -> None:
    mix = {name: max(1, quota // 12) for name, quota in mix.items()}
    longer, first = {name: quota * times for name, quota in mix.items()}, data.draw(slots_of(mix))
    found = [Tree.of(one, balanced=True).deal(np.arange(first, first + 50)) for one in (mix, longer)]
    assert [part.tolist() for part in found[0]] == [part.tolist() for part in found[1]]


def test_counts_worked_by_hand() -> None:
    """Quotas 1, 1, 2: cut into 1 + 1 and 2. The left half gets n / 2, rounded up, and its first stream half of that."""
    tree = Tree.of({"a": 1, "b": 1, "c": 2}, balanced=True)
    assert [tree.count(n) for n in range(5)] == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 1], [1, 1, 2]]
    chained = Tree.of({"a": 3, "b": 2, "c": 1}, balanced=False)  # a gets ceil(n / 2); b two thirds of the rest, up
    assert [chained.count(n) for n in range(7)] == [
        [0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 1, 0], [2, 2, 0], [3, 2, 0], [3, 2, 1]
    ]  # fmt: skip
    assert all(sum(after) - sum(before) == 1 for before, after in pairwise(chained.count(n) for n in range(7)))
