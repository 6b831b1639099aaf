"""Rounds of many streams: run side by side, and equal units once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st

from dataengine.build.rounds import Round, Rounds, run_rounds
from dataengine.build.units import OnProgress, Receipt, Unit
from dataengine.storage.open import open_store
from dataengine.storage.store import AddFile, Store

STORE = open_store("unused")


@dataclass(frozen=True)
class Count(Unit):
    kind: ClassVar[str] = "count"
    number: int

    @property
    def input_bytes(self) -> int:
        return 1

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        raise NotImplementedError


@dataclass
class Engine:
    """Gives each unit a receipt with its number, and records the requests."""

    turns: list[tuple[str, list[int]]] = field(default_factory=list)

    def run(self, units: Sequence[Unit], store: Store, title: str, **how: Any) -> list[Receipt]:
        numbers = [unit.number for unit in units if isinstance(unit, Count)]
        self.turns.append((title, numbers))
        return [Receipt(records=number) for number in numbers]


def add_up(*rounds: tuple[str, list[int]]) -> Rounds[list[int]]:
    """The sum of the receipts of each round."""
    sums = []
    for title, numbers in rounds:
        receipts = yield Round(title, [Count(number) for number in numbers])
        sums.append(sum(receipt.records for receipt in receipts))
    return sums


def test_rounds_of_one_turn_run_together_and_equal_units_once() -> None:
    engine = Engine()
    streams = {
        "a": add_up(("cleaning", [1, 2]), ("tokenizing", [3])),
        "b": add_up(("tokenizing", [2, 5, 2])),
        "c": add_up(),
    }
    assert run_rounds(streams, engine, STORE) == {"a": [3, 3], "b": [9], "c": []}
    assert engine.turns == [("cleaning, tokenizing", [1, 2, 5]), ("tokenizing", [3])]


def test_one_generator_goes_through_the_rounds_of_another() -> None:
    def twice() -> Rounds[list[int]]:
        first = yield from add_up(("cleaning", [1]))
        second = yield from add_up(("cleaning", [10]), ("packing", [100]))
        return [*first, *second]

    engine = Engine()
    assert run_rounds({"a": twice()}, engine, STORE) == {"a": [1, 10, 100]}
    assert [title for title, _ in engine.turns] == ["cleaning", "cleaning", "packing"]


def test_without_streams_no_engine_is_asked() -> None:
    engine = Engine()
    assert run_rounds({}, engine, STORE) == {}
    assert engine.turns == []


@given(st.dictionaries(st.text(max_size=2), st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4), max_size=4))
def test_a_stream_comes_to_the_same_beside_any_others(rounds: dict[str, list[list[int]]]) -> None:
    engine = Engine()
    streams = {name: add_up(*(("round", numbers) for numbers in each)) for name, each in rounds.items()}
    expected = {name: [sum(numbers) for numbers in each] for name, each in rounds.items()}
    assert run_rounds(streams, engine, STORE) == expected
    assert len(engine.turns) == max(map(len, rounds.values()), default=0)
