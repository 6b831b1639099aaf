from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataengine.text.packing import Packer

UINT16 = np.dtype(np.uint16)


def test_a_flow_is_cut_by_hand() -> None:
    packer = Packer(4, UINT16)
    assert packer.add(np.array([5, 6, 2], UINT16)).tolist() == []
    assert packer.add(np.array([2, 7, 2], UINT16)).tolist() == [[5, 6, 2, 2]]
    assert packer.tail.tolist() == [7, 2]


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
    at_once, in_pieces = Packer(width, UINT16), Packer(width, UINT16)
    samples = at_once.add(flow).tolist()
    pieces = np.split(flow, sorted(cut for cut in cuts if cut < len(flow)))
    assert [sample for piece in pieces for sample in in_pieces.add(piece).tolist()] == samples
    assert in_pieces.tail.tolist() == at_once.tail.tolist()
