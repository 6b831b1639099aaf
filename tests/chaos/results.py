"""Results of the seeds. Imports nothing heavy, because every worker of a build imports the program that started it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dataengine.tables import table

OUTCOMES = ("went on", "started again", "refused", "not reached")


@dataclass(frozen=True)
class Event:
    """An injected fault and its outcome: went on, started again, refused, not reached."""

    fault: str
    outcome: str


@dataclass
class Scenario:
    """The result of one seed."""

    seed: int
    place: str  # disk or bucket
    events: list[Event] = field(default_factory=list)
    verdict: str = "equal"
    words: str = ""
    seconds: float = 0.0

    def describe(self) -> dict[str, object]:
        """As JSON."""
        return dataclasses.asdict(self)


def report(done: Sequence[Scenario]) -> None:
    """Faults and their outcomes; then the seeds that failed."""
    counts = Counter((event.fault, event.outcome) for one in done for event in one.events)
    faults = sorted({fault for fault, _ in counts})
    rows = [("fault", "injected", *OUTCOMES[:3])]
    for fault in faults:
        injected = sum(counts[fault, outcome] for outcome in OUTCOMES[:3])
        rows.append((fault, str(injected), *(str(counts[fault, outcome] or "") for outcome in OUTCOMES[:3])))
    print("", *table(rows), sep="\n")
    verdicts = Counter(one.verdict for one in done)
    print(f"\n{len(done)} seeds: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    for one in done:
        if one.verdict != "equal":
            print(f"seed {one.seed}: {one.verdict}: {one.words.splitlines()[0]}")
