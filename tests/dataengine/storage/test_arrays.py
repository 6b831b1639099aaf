"""Array files with a hash behind them."""

from __future__ import annotations

import io
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.storage.arrays import decode_npy, encode_npy, in_threads, read_all_npy, read_npy
from dataengine.storage.local import LocalStore

ARRAYS = arrays.arrays(st.sampled_from(["<u8", "<u4", "u1", "<i8"]), arrays.array_shapes(max_dims=2, max_side=5))


@given(ARRAYS)
def test_an_array_is_read_as_it_was_written_by_numpy_as_well(array: NDArray[Any]) -> None:
    content = encode_npy(array)
    for read in (decode_npy(content), np.load(io.BytesIO(content))):
        np.testing.assert_array_equal(read, array, strict=True)


@given(ARRAYS, st.data())
def test_no_damage_is_read_as_an_array(array: NDArray[Any], data: st.DataObject) -> None:
    content = bytearray(encode_npy(array))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    with pytest.raises(ValueError, match="the hash at its end differs"):
        decode_npy(bytes(content))


def test_arrays_of_units_come_in_order_and_a_missing_or_damaged_one_is_named(tmp_path: Path) -> None:
    store, keys = LocalStore(str(tmp_path)), [f"units/u/{n}.npy" for n in range(40)]
    for n, key in enumerate(keys):
        store.write(key, encode_npy(np.array([n])))
    assert [array.tolist() for array in read_all_npy(store, keys)] == [[n] for n in range(40)]
    store.write(keys[7], b"half")
    with pytest.raises(InputError, match=r"units/u/7\.npy is missing or damaged\. Remove the folder units/u and"):
        list(read_all_npy(store, keys))
    store.remove(keys[7])
    with pytest.raises(InputError, match=r"units/u/7\.npy is missing or damaged"):
        read_npy(store, keys[7])


def test_threads_work_ahead_but_not_far() -> None:
    begun: list[int] = []
    results = in_threads(lambda number: begun.append(number) or number, count())  # type: ignore[func-returns-value]
    assert list(islice(results, 10)) == list(range(10))
    results.close()
    assert len(begun) < 100
