"""Sorted runs: what is written by key is read again by ranges of keys, and checked there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dataengine.build.external_sort import (
    BUCKETS,
    Bucketed,
    SortedRuns,
    bucket_bounds,
    buckets_of,
    key_runs,
    num_ranges,
    read_runs,
)
from dataengine.errors import InputError
from dataengine.storage.local import LocalStore

KEY = np.dtype([("hash", "<u8"), ("record", "<u4")])
DTYPES = {"keys": KEY, "letters": np.dtype("S1")}


def sort_named(letters: NDArray[Any], keys: NDArray[Any]) -> dict[str, Bucketed]:
    """Keys in order, and for each record as many letters as its number."""
    order = np.argsort(keys["hash"], kind="stable")
    texts = np.split(letters, np.cumsum(keys["record"])[:-1])
    begins = bucket_bounds(keys["hash"][order])
    ends = np.concatenate([[0], np.cumsum(keys["record"][order], dtype=np.int64)])
    moved = np.concatenate([np.empty(0, "S1"), *(texts[k] for k in order)])
    return {"keys": (keys[order], begins), "letters": (moved, ends[begins])}


def write(folder: Path, batches: Sequence[Sequence[tuple[int, int]]], most: int) -> int:
    """Runs of a unit named u, of (key, number of letters); returns their number."""
    (folder / "units" / "u").mkdir(parents=True, exist_ok=True)
    runs = SortedRuns(lambda name, content: write_file(folder, name, content), "run", most, sort_named)
    for batch in batches:
        keys = np.array(list(batch), KEY)
        runs.add(np.array([b"abc"[count % 3 : count % 3 + 1] for _, count in batch for _ in range(count)], "S1"), keys)
    return runs.finish()


def write_file(folder: Path, name: str, content: bytes) -> None:
    (folder / "units" / "u" / name).write_bytes(content)


KEYS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 5))


@given(st.lists(st.lists(KEYS, min_size=1, max_size=6), max_size=6), st.integers(1, 8), st.integers(1, 5))
def test_the_ranges_together_are_what_was_written_each_key_in_its_range(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]], most: int, ranges: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    runs, store = write(folder, batches, most), LocalStore(str(folder))
    found: list[tuple[int, int]] = []
    for number in range(ranges):
        low, high = buckets_of(number, ranges)
        keys, letters = read_runs(store, "u", "run", runs, DTYPES, (low, high))
        assert all(low <= (key * BUCKETS) >> 64 < high for key in keys["hash"].tolist())
        assert letters.tolist() == [b"abc"[n % 3 : n % 3 + 1] for n in keys["record"].tolist() for _ in range(n)]
        found += keys.tolist()
    assert sorted(found) == sorted(key for batch in batches for key in batch)


def test_a_run_is_written_once_enough_waits(tmp_path: Path) -> None:
    batches = [[(n, 0), (1 << 63, 1)] for n in range(5)]
    assert write(tmp_path, batches, most=4) == 3
    assert sorted(path.name for path in (tmp_path / "units" / "u").iterdir()) == [
        f"run.0000{n}.{suffix}" for n in range(3) for suffix in ("bounds.npy", "keys", "letters")
    ]
    keys, _ = read_runs(LocalStore(str(tmp_path)), "u", "run", 1, DTYPES, (0, BUCKETS))
    assert keys["hash"].tolist() == [0, 1, 1 << 63, 1 << 63]


def test_damage_is_noticed_in_its_ranges(tmp_path: Path) -> None:
    write(tmp_path, [[(n << 56, 1) for n in range(256)]], most=1)
    path, store = tmp_path / "units" / "u" / "run.00000.letters", LocalStore(str(tmp_path))
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"z" + content[201:])
    for number in range(4):
        if number == 3:  # the letters from 192 on
            with pytest.raises(InputError, match=r"run\.00000\.letters is missing or damaged"):
                read_runs(store, "u", "run", 1, DTYPES, buckets_of(number, 4))
        else:
            read_runs(store, "u", "run", 1, DTYPES, buckets_of(number, 4))
    path.unlink()
    with pytest.raises(InputError, match=r"run\.00000\.letters is missing or damaged"):
        read_runs(store, "u", "run", 1, DTYPES, (0, 1))


def test_runs_of_keys_have_one_array(tmp_path: Path) -> None:
    (tmp_path / "units" / "u").mkdir(parents=True)
    runs = key_runs(lambda *file: write_file(tmp_path, *file), "near", "hash", lambda keys: np.sort(keys, order="hash"))
    assert runs.finish() == 0
    runs.add(np.array([(3 << 62, 1), (5, 2)], KEY))
    assert runs.name == "near.00000"
    assert runs.finish() == 1
    (keys,) = read_runs(LocalStore(str(tmp_path)), "u", "near", 1, {"keys": KEY}, (0, BUCKETS))
    assert keys.tolist() == [(5, 2), (3 << 62, 1)]


@pytest.mark.parametrize(("total", "most", "ranges"), [(0, 10, 1), (10, 10, 1), (11, 10, 2), (10**9, 10, BUCKETS)])
def test_ranges_hold_at_most_the_given_number(total: int, most: int, ranges: int) -> None:
    assert num_ranges(total, most) == ranges
    assert [buckets_of(n, ranges)[0] for n in range(1, ranges)] == [buckets_of(n, ranges)[1] for n in range(ranges - 1)]
