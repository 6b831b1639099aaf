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

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dataengine.build.executors import Engine, Needed
from dataengine.build.finished import find_finished
from dataengine.build.units import Receipt, Unit
from dataengine.storage.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Round:
    """Units that do not depend on each other. `title` is a word for the progress bar."""

    title: str
    units: Sequence[Unit]
    earlier_done: bool = False  # whether only these units read the `for_units` of the stream's earlier ones from now on


Rounds = Generator[Round, list[Receipt], T]


OnDone = Callable[[list[tuple[Unit, Receipt]]], None]


def run_rounds(
    streams: Mapping[str, Rounds[T]], engine: Engine, store: Store, on_done: OnDone = lambda done: None
) -> dict[str, T]:
    """Run the rounds of all streams together, turn by turn; return the result of each stream.

    `on_done` gets the finished units whose `for_units` no stream reads any more.
    """
    results: dict[str, T] = {}
    receipts: dict[str, list[Receipt] | None] = dict.fromkeys(streams)  # None: not started
    seen = _Seen({name: {} for name in streams})
    while receipts:
        rounds: dict[str, Round] = {}
        ended: list[str] = []
        for name, finished in receipts.items():
            try:
                rounds[name] = next(streams[name]) if finished is None else streams[name].send(finished)
            except StopIteration as end:
                results[name] = end.value
                ended.append(name)
        for name, one in rounds.items():
            seen.repeat_spent(name, one.units, engine, store)
        read = {name: {key for unit in one.units for key in unit.inputs} for name, one in rounds.items()}
        on_done(
            seen.take_done(
                {name: read.get(name, set()) for name in receipts if name in ended or rounds[name].earlier_done}
            )
        )
        receipts = {**_run_together(rounds, engine, store)} if rounds else {}
        for name, one in rounds.items():
            seen.add(name, one.units, receipts[name] or [])
    return results


@dataclass(frozen=True)
class _Seen:
    """The units of the streams so far, with their receipts, by stream and by each of their `names`."""

    units: dict[str, dict[str, tuple[Unit, Receipt]]]

    def add(self, stream: str, units: Sequence[Unit], receipts: Sequence[Receipt]) -> None:
        for unit, one in zip(units, receipts, strict=True):
            self.units[stream] |= dict.fromkeys(unit.names, (unit, one))

    def take_done(self, streams: Mapping[str, set[str]]) -> list[tuple[Unit, Receipt]]:
        """Forget the units of some streams, without the given ones; return those that no stream has any more."""
        done: dict[str, tuple[Unit, Receipt]] = {}
        for stream, needed in streams.items():
            units, self.units[stream] = self.units[stream], {}
            for unit, receipt in units.values():
                if not needed.isdisjoint(unit.names):
                    self.add(stream, [unit], [receipt])
                else:
                    done[unit.fingerprint] = unit, receipt
        others = {name for units in self.units.values() for name in units}
        return [(unit, receipt) for unit, receipt in done.values() if others.isdisjoint(unit.names)]

    def repeat_spent(
        self, stream: str, units: Sequence[Unit], engine: Engine, store: Store, *, needed: Needed | None = None
    ) -> None:
        """Run the units again that are spent, if an unfinished one of `units` reads them."""
        known = self.units[stream]
        names = dict.fromkeys(name for unit in units for name in unit.inputs if name in known)
        # all of them, so that slices agree on their shares
        sources = list({known[name][0].fingerprint: known[name][0] for name in names}.values())
        if not any(known[name][1].spent for name in names):
            return

        def unfinished() -> bool:
            found = find_finished(dict(enumerate(units)), store, whole=needed is not None).receipts
            return (needed is None or needed()) and len(found) < len(units)

        if unfinished():
            self.repeat_spent(stream, sources, engine, store, needed=unfinished)
            self.add(stream, sources, engine.run(sources, store, "repeating", needed=unfinished))


def _run_together(rounds: Mapping[str, Round], engine: Engine, store: Store) -> dict[str, list[Receipt]]:
    """Run one round of each stream together; return the receipts of each stream's units."""
    title = ", ".join(dict.fromkeys(one.title for one in rounds.values()))
    # Files of equal content make equal units, so streams may share units.
    different = {unit.fingerprint: unit for one in rounds.values() for unit in one.units}
    receipts = dict(zip(different, engine.run(list(different.values()), store, title), strict=True))
    return {name: [receipts[unit.fingerprint] for unit in one.units] for name, one in rounds.items()}
