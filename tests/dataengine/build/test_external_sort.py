"""Files of records: what is written is read again, bucket by bucket, and checked there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.build.external_sort import (
    BUCKETS,
    Form,
    Runs,
    Source,
    num_ranges,
    read_bucket,
    read_table,
    run_name,
    whole_bucket,
    write_buckets,
)
from dataengine.build.units import publish_keeps
from dataengine.errors import DamagedError, InputError
from dataengine.storage.local import LocalStore
from dataengine.storage.store import AddFile

KEY = np.dtype([("hash", "<u8"), ("record", "<u4")])
FORM = Form(KEY, "hash", "record", np.dtype("S1"))  # a record has as many letters as its number


def letters(records: Sequence[int]) -> list[bytes]:
    return [b"abc"[n % 3 : n % 3 + 1] for n in records for _ in range(n)]


def writer(folder: Path) -> AddFile:
    """Writes files of a unit named u."""

    def write(name: str, content: bytes) -> None:
        (folder / "units" / "u").mkdir(parents=True, exist_ok=True)
        (folder / "units" / "u" / name).write_bytes(content)

    return write


def write_runs(folder: Path, batches: Sequence[Sequence[tuple[int, int]]], most: int) -> int:
    """Runs of a unit named u, of (hash, number of letters); returns their number."""
    runs = Runs(writer(folder), "run", most)
    for batch in batches:
        runs.add(np.array(letters([count for _, count in batch]), "S1"), np.array(list(batch), KEY))
    return runs.finish()


KEYS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 5))


@settings(max_examples=30)
@given(st.lists(st.lists(KEYS, min_size=1, max_size=6), max_size=6), st.integers(1, 8))
def test_runs_hold_what_was_written_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]], most: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    found: list[tuple[int, int]] = []
    for number in range(write_runs(folder, batches, most)):
        key = f"units/u/{run_name('run', number)}"
        texts, keys = read_bucket(LocalStore(str(folder)), key, [np.dtype("S1"), KEY])
        assert texts.tolist() == letters(keys["record"].tolist())
        found += keys.tolist()
    assert found == [key for batch in batches for key in batch]


def test_a_run_is_written_once_enough_waits(tmp_path: Path) -> None:
    assert write_runs(tmp_path, [[(n, 0), (1 << 63, 1)] for n in range(5)], most=4) == 3
    names = sorted(path.name for path in (tmp_path / "units" / "u").iterdir())
    assert names == [f"run.0000{n}" for n in range(3)]


def write_four(folder: Path) -> Path:
    """Four buckets with 3, 0, 1 and 2 records."""
    keys = np.array([(n, n) for n in range(6)], KEY)
    begins = np.array([0, 3, 3, 4, 6])
    ends = np.array([0, 0, 1, 3, 6, 10, 15])
    elements = np.array(letters(range(6)), "S1")
    write_buckets(writer(folder), "f", [(keys, begins), (elements, ends[begins])])
    return folder / "units" / "u" / "f"


def read_four(folder: Path, bucket: int) -> list[int]:
    keys, elements = read_bucket(LocalStore(str(folder)), "units/u/f", [KEY, np.dtype("S1")], bucket, 4)
    assert elements.tolist() == letters(keys["record"].tolist())
    return keys["record"].tolist()


def test_each_bucket_is_read_by_itself(tmp_path: Path) -> None:
    write_four(tmp_path)
    assert [read_four(tmp_path, bucket) for bucket in range(4)] == [[0, 1, 2], [], [3], [4, 5]]


def test_every_changed_bit_is_noticed_where_it_counts(tmp_path: Path) -> None:
    path = write_four(tmp_path)
    content = path.read_bytes()
    noticed = dict.fromkeys(range(4), 0)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        for bucket in range(4):
            with suppress(DamagedError):
                assert read_four(tmp_path, bucket) == [[0, 1, 2], [], [3], [4, 5]][bucket]
                continue
            noticed[bucket] += 1
    # Two rows of 32 bytes, and the bytes of the bucket: 12 of a record, 1 of a letter.
    assert noticed == {0: 64 + 3 * 12 + 3, 1: 64, 2: 64 + 12 + 3, 3: 64 + 2 * 12 + 9}


@pytest.mark.parametrize("left", [0, 10, 200])
def test_a_file_that_was_cut_is_noticed(tmp_path: Path, left: int) -> None:
    path = write_four(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError):
        read_four(tmp_path, 3)
    write_buckets(writer(tmp_path), "f", [whole_bucket(np.zeros(20, KEY))])
    path.write_bytes(path.read_bytes()[:left])
    for _ in range(2):
        with pytest.raises(DamagedError, match="units/u/f is missing or damaged"):
            read_bucket(LocalStore(str(tmp_path)), "units/u/f", [KEY])
        path.unlink(missing_ok=True)


def test_records_of_parts_come_together_without_those_that_are_not_alive(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    for name, records in (("a", [0, 1, 2, 3]), ("b", [4, 0])):
        keys = np.array([(9, n) for n in records], KEY)
        write_buckets(writer(tmp_path), name, [whole_bucket(keys)])
    (alive,) = publish_keeps([np.array([True, False, False, True])], store)
    table = read_table(store, [Source("u", "a", part=7, alive=alive), Source("u", "b", part=8)], Form(KEY, "hash"))
    assert table.heads.tolist() == [(9, 0, 7), (9, 3, 7), (9, 4, 8), (9, 0, 8)]
    assert read_table(store, [], FORM).heads.tolist() == []


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(1, BUCKETS))
def test_ranges_of_keys_are_of_whole_buckets(hashes: list[int], ranges: int) -> None:
    keys = np.array([(key, 0) for key in [0, 2**64 - 1, *hashes]], KEY)
    for key, number in zip(keys["hash"].tolist(), FORM.ranges_of(keys, ranges).tolist(), strict=True):
        assert BUCKETS * number // ranges <= (key * BUCKETS) >> 64 < BUCKETS * (number + 1) // ranges


@pytest.mark.parametrize(("total", "most", "ranges"), [(0, 10, 1), (10, 10, 1), (11, 10, 2), (10**9, 10, BUCKETS)])
def test_ranges_hold_at_most_the_given_number(total: int, most: int, ranges: int) -> None:
    assert num_ranges(total, most) == ranges
