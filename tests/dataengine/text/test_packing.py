from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.text import packing
from dataengine.text.packing import Packer, Tokens, gather

UINT16 = np.dtype(np.uint16)


def pack(parts: Iterable[Tokens], width: int) -> tuple[list[list[int]], list[int]]:
    """The samples of parts in order, and the tail."""
    packer = Packer(width, UINT16)
    return [sample for part in parts for sample in packer.add(part).tolist()], packer.tail.tolist()


def test_a_flow_is_cut_by_hand() -> None:
    samples, tail = pack([np.array([5, 6, 2], UINT16), np.array([2, 7, 2], UINT16)], 4)
    assert samples == [[5, 6, 2, 2]]
    assert tail == [7, 2]


@given(st.lists(st.lists(st.integers(0, 65535), max_size=30), max_size=20), st.integers(1, 17))
def test_no_token_is_lost_or_moved(parts: list[list[int]], width: int) -> None:
    packer = Packer(width, UINT16)
    samples = [packer.add(np.array(part, UINT16)) for part in parts]
    flow = [token for sample in samples for token in sample.ravel().tolist()] + packer.tail.tolist()
    assert flow == [token for part in parts for token in part]
    assert len(packer.tail) < width


@given(st.lists(st.integers(0, 100), max_size=200), st.lists(st.integers(0, 200), max_size=5), st.integers(1, 9))
def test_cuts_do_not_depend_on_how_the_flow_arrives(tokens: list[int], cuts: list[int], width: int) -> None:
    flow = np.array(tokens, UINT16)
    pieces = np.split(flow, sorted(cut for cut in cuts if cut < len(flow)))
    assert pack([flow], width) == pack(pieces, width)


@given(st.lists(st.lists(st.integers(0, 65535), max_size=9), min_size=1, max_size=20), st.data(), st.integers(1, 40))
def test_documents_come_in_another_order_whole(documents: list[list[int]], data: st.DataObject, at_a_time: int) -> None:
    order = data.draw(st.lists(st.integers(0, len(documents) - 1), max_size=30))
    tokens = np.array([token for document in documents for token in document], UINT16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_GATHER", at_a_time)
        moved = gather(tokens, np.array(list(map(len, documents))), np.array(order, np.int64))
    assert moved.dtype == UINT16
    assert moved.tolist() == [token for number in order for token in documents[number]]
