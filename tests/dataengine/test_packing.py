from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataengine.packing import Packer, pack_all
from dataengine.tokens import join_documents

UINT16 = np.dtype(np.uint16)


def test_documents_are_joined_and_cut_by_hand() -> None:
    tokens, lengths = join_documents([[5, 6], [], [7]], UINT16, eos_id=2, bos_id=None)
    assert tokens.tolist() == [5, 6, 2, 2, 7, 2]
    assert lengths.tolist() == [3, 1, 2]
    samples, tail = pack_all([tokens], 4, UINT16)
    assert samples.tolist() == [[5, 6, 2, 2]]
    assert tail.tolist() == [7, 2]


def test_bos_begins_every_document() -> None:
    tokens, lengths = join_documents([[5], [6]], UINT16, eos_id=2, bos_id=1)
    assert tokens.tolist() == [1, 5, 2, 1, 6, 2]
    assert lengths.tolist() == [3, 3]


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
    whole = pack_all([flow], width, UINT16)
    split = pack_all(np.split(flow, sorted(cut for cut in cuts if cut < len(flow))), width, UINT16)
    assert whole[0].tolist() == split[0].tolist()
    assert whole[1].tolist() == split[1].tolist()
