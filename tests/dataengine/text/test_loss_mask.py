from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dataengine.text.loss_mask import after_context, common_prefixes

IDS = st.lists(st.integers(0, 2), max_size=6)


def joined(documents: list[list[int]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    return np.array(list(chain(*documents)), np.uint32), np.array([len(ids) for ids in documents], np.int64)


def test_the_context_ends_at_the_first_token_that_differs() -> None:
    documents = [[1, 2, 3, 4], [1, 9, 3], [5], [7, 8]]
    alone = [[1, 2, 6], [1, 2], [], [7]]
    assert common_prefixes(*joined(documents), *joined(alone)).tolist() == [2, 1, 0, 1]
    counts = after_context(np.array([4, 3, 1, 2]), np.array([2, 1, 0, 1]))
    assert counts.astype(int).tolist() == [0, 0, 1, 1, 0, 1, 1, 1, 0, 1]


@given(st.lists(st.tuples(IDS, IDS), max_size=6))
def test_common_prefixes_are_those_of_each_pair_of_lists(pairs: list[tuple[list[int], list[int]]]) -> None:
    expected = [
        next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        for one, other in pairs
    ]
    documents, alone = [one for one, _ in pairs], [other for _, other in pairs]
    assert common_prefixes(*joined(documents), *joined(alone)).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=6))
def test_all_after_the_context_counts(parts: list[tuple[int, int]]) -> None:
    expected = [counts for before, after in parts for counts in [False] * before + [True] * after]
    lengths = np.array([before + after for before, after in parts], np.int64)
    assert after_context(lengths, np.array([before for before, _ in parts], np.int64)).tolist() == expected
