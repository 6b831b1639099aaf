"""The places of units' tokens in a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dataengine.build.publish import find_segments
from dataengine.build.stream import Packed
from dataengine.build.tokenize import PackTails
from dataengine.build.units import Receipt
from dataengine.mds.types import Shard, StoredFile

WIDTH = 10


def receipt(samples: int, tail: int) -> Receipt:
    shards = [Shard(samples, StoredFile("shard.00000.mds", 1, {}))] * (samples > 0)
    return Receipt(tokens=samples * WIDTH + tail, tail=tail, shards=shards)


def packed(units: Sequence[tuple[int, int]], groups: Sequence[tuple[int, int]]) -> Packed:
    """Units with (samples in shards, tail tokens), and groups of (units, samples in the shards of their tails)."""
    form: Any = None
    tails = [PackTails(form, ("",) * members, 0) for members, _ in groups]
    receipts = [receipt(*unit) for unit in units]
    return Packed([], [], {}, [], receipts, tails, [receipt(samples, 0) for _, samples in groups], [])


def test_tails_follow_the_shards_of_all_units() -> None:
    assert find_segments(packed([(2, 7), (0, 0), (1, 5)], []), WIDTH) == (
        (0, 0, 0, 20),
        (2, 20, 0, 10),
        (0, 30, 20, 7),
        (2, 37, 10, 5),
    )


def test_what_the_shards_of_a_group_hold_comes_before_the_rest_of_all_tails() -> None:
    units = [(1, 7), (0, 6), (0, 9), (0, 4)]
    assert find_segments(packed(units, [(2, 1), (2, 1)]), WIDTH) == (
        (0, 0, 0, 10),
        (0, 10, 10, 7),  # the shard of the first group
        (1, 17, 0, 3),
        (2, 20, 0, 9),  # of the second one
        (3, 29, 0, 1),
        (1, 30, 3, 3),  # of the build
        (3, 33, 1, 3),
    )


@given(st.data())
def test_the_tokens_of_each_unit_appear_once_in_the_stream_and_in_their_order(data: st.DataObject) -> None:
    units = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 35)), min_size=1, max_size=8))
    groups: list[tuple[int, int]] = []
    if data.draw(st.booleans()):
        first = 0
        while first < len(units):
            members = data.draw(st.integers(1, len(units) - first))
            tails = sum(tail for _, tail in units[first : first + members])
            groups.append((members, data.draw(st.integers(0, tails // WIDTH))))
            first += members
    segments = find_segments(packed(units, groups), WIDTH)
    at = 0
    reached = [0] * len(units)
    for unit, start, inside, tokens in segments:
        assert (start, inside) == (at, reached[unit])
        assert tokens > 0
        at, reached[unit] = at + tokens, inside + tokens
    assert reached == [samples * WIDTH + tail for samples, tail in units]
