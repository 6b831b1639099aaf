from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.mds.shard_map import ShardMap
from dataengine.mds.types import Shard, StoredFile, Stream


def streams_of(counts: list[list[int]]) -> list[Stream]:
    """Streams of shards with these numbers of samples."""
    return [
        Stream(f"s{number}", f"s{number}", "", sum(shards), 0, tuple(Shard(n, StoredFile("", 0, {})) for n in shards))
        for number, shards in enumerate(counts)
    ]


def test_the_map_of_two_streams_by_hand() -> None:
    found = ShardMap(streams_of([[2, 3], [1]]))
    assert found.places == [(0, 0), (0, 1), (1, 0)]
    shards, rows = found.find([0, 1, 2, 4, 5, 3])
    assert shards.tolist() == [0, 0, 1, 1, 2, 1]
    assert rows.tolist() == [0, 1, 0, 2, 0, 1]


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=4))
def test_every_sample_is_where_a_plain_loop_finds_it(counts: list[list[int]]) -> None:
    plain = [
        (number, shard, row)
        for number, shards in enumerate(counts)
        for shard, samples in enumerate(shards)
        for row in range(samples)
    ]
    shard_map, ids = ShardMap(streams_of(counts)), np.random.default_rng(0).permutation(len(plain))
    shards, rows = shard_map.find(ids)
    found = [(*shard_map.places[shard], row) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]
    assert found == [plain[k] for k in ids.tolist()]


@pytest.mark.parametrize("sample_id", [-1, 6, 1 << 40])
def test_a_sample_that_there_is_not_is_refused(sample_id: int) -> None:
    with pytest.raises(IndexError, match="of 6"):
        ShardMap(streams_of([[2, 3], [1]])).find([0, sample_id])
