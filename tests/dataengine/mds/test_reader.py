from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.arrays import Tokens
from dataengine.mds.reader import SampleReader
from tests.dataengine.mds.test_shard_map import streams_of

COUNTS = [[3, 2], [4]]
ROWS = np.arange(9 * 2, dtype=np.uint16).reshape(9, 2)  # of all samples in id order


@given(st.lists(st.integers(0, 8), max_size=20), st.integers(1, 3))
def test_samples_come_in_the_order_of_their_ids_from_few_open_shards(ids: list[int], kept: int) -> None:
    opened = []

    def open_shard(stream: int, shard: int) -> Tokens:
        opened.append((stream, shard))
        first = {(0, 0): 0, (0, 1): 3, (1, 0): 5}[stream, shard]
        return ROWS[first : first + COUNTS[stream][shard]]

    reader = SampleReader(streams_of(COUNTS), open_shard, 2, ROWS.dtype, kept=kept)
    assert reader.read(ids).tolist() == ROWS[ids].tolist()
    asked = [(0, 0) if k < 3 else (0, 1) if k < 5 else (1, 0) for k in ids]
    changes = [shard for shard, before in zip(asked, [None, *asked], strict=False) if shard != before]
    assert opened == {1: changes, 3: list(dict.fromkeys(asked))}.get(kept, opened)


def test_an_unknown_sample_opens_nothing() -> None:
    reader = SampleReader(streams_of(COUNTS), lambda stream, shard: pytest.fail("opened"), 2, ROWS.dtype)
    with pytest.raises(IndexError):
        reader.read([9])
