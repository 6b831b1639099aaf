"""Sentences for a report: half spread over a set, half those that the runs differ most in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.metrics import sentence_chrf
from trainer.reporting import tables
from trainer.reporting.comparable import Comparable
from trainer.reporting.runs import SetResult, TrainedRun

_LOOKED_AT = 20_000  # answers of a direction that are scored one by one, to find where the runs differ


@dataclass(frozen=True)
class Sample:
    """A sentence and its translation by each run: label, how it was measured differently, the answer and its chrF."""

    source: str
    reference: str
    answers: Sequence[tuple[str, str, str, float]]


@dataclass(frozen=True)
class Samples:
    """Sentences of one direction."""

    direction: str
    languages: tuple[str, str]
    words: str  # the set and the shots
    sentences: Sequence[Sample]


def choose_samples(
    runs: Sequence[TrainedRun], directions: Sequence[str], shots: Sequence[int], count: int, compared: Comparable
) -> Iterator[Samples]:
    """Sentences for each direction: half spread over the set, half those that the runs differ most in."""
    for direction in directions:
        picked = [(run, one) for run in runs if (one := compared.pick(run.results, direction, shots[0]))]
        found = [(run, one) for run, one in picked if one.rows]
        if not found or not count:
            continue
        texts = Counter(one.texts_sha256 for _, one in found)
        first = max((one for _, one in found), key=lambda one: texts[one.texts_sha256])
        found = [(run, one) for run, one in found if one.texts_sha256 == first.texts_sha256]
        total = len(first.rows)
        looked_at = _spread(total, max(count, _LOOKED_AT // len(found)))
        scores = {run.label: _sentence_scores(one, looked_at) for run, one in found}
        spread = np.ptp(np.array(list(scores.values())), axis=0)  # (sentences looked at,)
        chosen = [int(np.searchsorted(looked_at, number)) for number in _spread(total, -(-count // 2))]
        chosen = list(dict.fromkeys(min(place, len(looked_at) - 1) for place in chosen))
        by_spread = np.argsort(-spread, kind="stable").tolist()
        chosen += [place for place in by_spread if place not in chosen][: count - len(chosen)]
        source, target = direction.split("-")
        yield Samples(
            direction,
            (source, target),
            f"{first.set}, {tables.shots_words(first.shots)}, {total:,} sentences",
            [
                Sample(
                    first.rows[looked_at[place]].source,
                    first.rows[looked_at[place]].reference,
                    [
                        (
                            run.label,
                            compared.difference(one),
                            one.rows[looked_at[place]].hypothesis,
                            scores[run.label][place],
                        )
                        for run, one in found
                    ],
                )
                for place in sorted(chosen)
            ],
        )


def _spread(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly apart, the first and the last among them."""
    return list(dict.fromkeys(np.linspace(0, total - 1, min(total, count)).astype(int).tolist()))


def _sentence_scores(one: SetResult, numbers: Sequence[int]) -> list[float]:
    rows = [one.rows[number] for number in numbers]
    return sentence_chrf([row.hypothesis for row in rows], [row.reference for row in rows])
