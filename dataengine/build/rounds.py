"""Rounds: functions that wait for units to run, for many streams at the same time.

Such a function is a generator. It yields a Round, receives the receipts of its units, and returns its result.

    def count_lines(plan: StreamPlan) -> Rounds[int]:
        receipts = yield Round("cleaning", plan.clean_units())  # here the units are finished
        return sum(receipt.lines for receipt in receipts)

It calls another one with `yield from`: `cleaned = yield from clean_stream(plan, config, store)`.

`run_rounds` runs them:

    run_rounds({"mono": count_lines(mono), "pairs": count_lines(pairs)}, LocalEngine(2), store)
    # {"mono": 301, "pairs": 604}, from one call of the engine with the units of both
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dataengine.build.executors import Engine
from dataengine.build.units import Receipt, Unit
from dataengine.storage.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Round:
    """Units that do not depend on each other. `title` is a word for the progress bar."""

    title: str
    units: Sequence[Unit]


Rounds = Generator[Round, list[Receipt], T]


def run_rounds(streams: Mapping[str, Rounds[T]], engine: Engine, store: Store) -> dict[str, T]:
    """Run the rounds of all streams together, turn by turn; return the result of each stream."""
    results: dict[str, T] = {}
    receipts: dict[str, list[Receipt] | None] = dict.fromkeys(streams)  # None: not started
    while receipts:
        rounds: dict[str, Round] = {}
        for name, finished in receipts.items():
            try:
                rounds[name] = next(streams[name]) if finished is None else streams[name].send(finished)
            except StopIteration as end:
                results[name] = end.value
        receipts = {**_run_together(rounds, engine, store)} if rounds else {}
    return results


def _run_together(rounds: Mapping[str, Round], engine: Engine, store: Store) -> dict[str, list[Receipt]]:
    """Run one round of each stream together; return the receipts of each stream's units."""
    title = ", ".join(dict.fromkeys(one.title for one in rounds.values()))
    # Files of equal content make equal units, so streams may share units.
    different = {unit.fingerprint: unit for one in rounds.values() for unit in one.units}
    receipts = dict(zip(different, engine.run(list(different.values()), store, title), strict=True))
    return {name: [receipts[unit.fingerprint] for unit in one.units] for name, one in rounds.items()}
