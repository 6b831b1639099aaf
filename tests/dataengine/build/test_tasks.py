"""Small units run together in one task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.build.executors import _TASK_BYTES, _TASK_UNITS, LocalEngine, _Tasks
from dataengine.build.units import OnProgress, Receipt, Unit, finished_receipts, run_units
from dataengine.errors import InputError
from dataengine.storage.local import LocalStore
from dataengine.storage.store import AddFile, Store


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


def test_receipts_are_in_the_order_of_the_units(tmp_path: Path) -> None:
    units = [Sized(k, 100 + k % 7) for k in range(60)]
    assert [one.lines for one in LocalEngine(2).run(units, LocalStore(str(tmp_path)), "")] == list(range(60))


def test_a_failing_unit_leaves_the_results_of_those_before_it_in_its_task(tmp_path: Path) -> None:
    store, units = LocalStore(str(tmp_path)), [Sized(k, 1) for k in range(5)]
    with pytest.raises(InputError, match="unit 5 fails"):
        run_units([*units, Sized(5, 1, fails=True), Sized(6, 1)], store)
    assert [one.lines for one in finished_receipts(dict(enumerate(units)), store).values()] == list(range(5))
