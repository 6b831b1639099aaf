"""Small units run together in one task; finished ones are found with few requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.build.executors import _TASK_BYTES, _TASK_UNITS, LocalEngine, SliceEngine, _Tasks, slice_of
from dataengine.build.finished import finished_receipts
from dataengine.build.units import OnProgress, Receipt, Unit, run_unit, run_units
from dataengine.errors import InputError
from dataengine.mds.types import Shard, StoredFile
from dataengine.storage.local import LocalStore
from dataengine.storage.open import open_store
from dataengine.storage.store import AddFile, Store
from tests.object_store import ObjectStore, object_store  # noqa: F401


@dataclass(frozen=True)
class Sized(Unit):
    kind: ClassVar[str] = "sized"
    number: int
    size: int
    fails: bool = False

    @property
    def input_bytes(self) -> int:
        return self.size

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        if self.fails:
            raise InputError(f"unit {self.number} fails")
        on_progress(self.size)
        return Receipt(lines=self.number)


@given(st.lists(st.integers(0, 3 * _TASK_BYTES), min_size=1, max_size=700), st.integers(1, 9))
def test_tasks_hold_each_unit_once_the_largest_first_and_occupy_all_processors(
    sizes: list[int], processors: int
) -> None:
    left, tasks = _Tasks([Sized(k, size) for k, size in enumerate(sizes)], range(len(sizes))), []
    while left:
        tasks.append(left.take(processors))
    order = [k for task in tasks for k in task]
    assert sorted(order) == list(range(len(sizes)))
    assert [sizes[k] for k in order] == sorted(sizes, reverse=True)
    assert len(tasks) >= min(len(sizes), processors)
    for task in tasks:
        assert len(task) <= _TASK_UNITS
        assert len(task) == 1 or sum(sizes[k] for k in task) <= _TASK_BYTES


def test_many_small_units_need_few_tasks() -> None:
    left, tasks = _Tasks([Sized(k, 1000) for k in range(16_000)], range(16_000)), 0
    while left:
        left.take(2)
        tasks += 1
    assert tasks < 160


@pytest.mark.slow
def test_receipts_are_in_the_order_of_the_units(tmp_path: Path) -> None:
    units = [Sized(k, 100 + k % 7) for k in range(60)]
    assert [one.lines for one in LocalEngine(2).run(units, LocalStore(str(tmp_path)), "")] == list(range(60))


def test_a_failing_unit_leaves_the_results_of_those_before_it_in_its_task(tmp_path: Path) -> None:
    store, units = LocalStore(str(tmp_path)), [Sized(k, 1) for k in range(5)]
    with pytest.raises(InputError, match="unit 5 fails"):
        run_units([*units, Sized(5, 1, fails=True), Sized(6, 1)], store)
    assert [one.lines for one in finished_receipts(dict(enumerate(units)), store).values()] == list(range(5))


@dataclass(frozen=True)
class WithShard(Sized):
    kind: ClassVar[str] = "with a shard"

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        add("shard.00000.mds", bytes(self.size))
        raw = StoredFile("shard.00000.mds", self.size, {})
        return Receipt(lines=self.number, shards=[Shard(1, raw)])


@pytest.mark.parametrize("count", [1, 40])  # asked for by name, and listed
@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_look_finds_finished_units_and_damaged_shards(
    object_store: ObjectStore,  # noqa: F811
    tmp_path: Path,
    count: int,
    damage: bytes | None,
) -> None:
    units = dict(enumerate(WithShard(k, 10) for k in range(count)))
    for store in (open_store(f"{object_store.url}/store"), LocalStore(str(tmp_path))):
        assert finished_receipts(units, store) == {}
        made = {k: run_unit(units[k], store) for k in range(0, count, 2)}
        assert finished_receipts(units, store) == made
        key = f"{units[0].folder}/shard.00000.mds"
        store.remove(key) if damage is None else store.write(key, damage)
        with pytest.raises(InputError, match=f"{key} is missing or damaged"):
            finished_receipts(units, store)


def test_a_bucket_lists_only_as_many_pages_as_it_may(object_store: ObjectStore) -> None:  # noqa: F811
    store = open_store(f"{object_store.url}/store")
    for k in range(3):
        store.write(f"units/{k}/receipt.json", bytes(k))
    assert store.sizes_if_few("units/", 0) is None
    assert store.sizes_if_few("units/", 1) == store.sizes("units/") == {f"units/{k}/receipt.json": k for k in range(3)}


@dataclass(frozen=True)
class CountingStore(LocalStore):
    """Counts the files that are asked for, and finishes all units while the waiting slice asks for the n-th."""

    asked: list[str] = field(default_factory=list)
    units: list[Sized] = field(default_factory=list)
    finish_at: int = 0

    def read(self, key: str) -> bytes:
        self.asked.append(key)
        if len(self.asked) == self.finish_at:
            run_units(self.units, LocalStore(self.url))
        return super().read(key)


def test_a_waiting_slice_asks_again_for_a_few_units_only(tmp_path: Path) -> None:
    units = [Sized(k, 1) for k in range(100)]
    others = [unit for k, unit in enumerate(units) if slice_of(k, 2) == 1]
    store = CountingStore(str(tmp_path), units=others, finish_at=100 + 2)
    receipts = SliceEngine(0, 2, 1, 60).run(units, store, "sized")
    assert [one.lines for one in receipts] == list(range(100))
    assert len(store.asked) == 151  # a look at all, one at a single unit, and then each is found
