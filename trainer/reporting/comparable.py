"""Find the comparable results of a column: equal texts, search, prompt and signature. Others are marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from trainer.reporting.runs import SetResult

_Column = tuple[str, int]  # direction and number of examples
_Search = tuple[str, str]  # set and decoding


def is_comparable(one: SetResult, other: SetResult) -> bool:
    """Return whether only the models can cause a difference between two scores."""
    return way_of(one) == way_of(other)


def way_of(one: SetResult) -> tuple[object, ...]:
    """Return the way of measuring: two results are comparable if it is equal."""
    texts = (one.texts_sha256, one.sentences, one.prompt)
    return (_search(one), one.direction, one.shots, *texts, one.bleu.signature, one.chrf.signature)


def _search(one: SetResult) -> _Search:
    return one.set, json.dumps(one.decoding, sort_keys=True, default=str)


class Comparable:
    """The most common way of measuring in each column (a direction and a number of examples).

    If two ways are equally common: the test set, then the fewest beams, then the most sentences. All columns use the
    same set and search where possible.
    """

    def __init__(self, runs: Sequence[Iterable[SetResult]]) -> None:
        """`runs` has the results of each run."""
        found = [list(results) for results in runs]
        usual = _majority(found, _search)
        self._chosen: dict[_Column, SetResult] = {}
        for column in dict.fromkeys(_column(one) for results in found for one in results):
            here = [[one for one in results if _column(one) == column] for results in found]
            alike = [[one for one in results if usual and _search(one) == _search(usual)] for results in here]
            chosen = _majority(alike, way_of) or _majority(here, way_of)
            assert chosen is not None
            self._chosen[column] = chosen

    def pick(self, results: Iterable[SetResult], direction: str, shots: int) -> SetResult | None:
        """Return the result of a column that is measured like most; else another of the column, else None."""
        here = [one for one in results if _column(one) == (direction, shots)]
        return next((one for one in here if not self.difference(one)), here[0] if here else None)

    def pick_alike(self, results: Iterable[SetResult], direction: str, shots: int) -> SetResult | None:
        """Return the result of a column if it is measured like most, else None."""
        found = self.pick(results, direction, shots)
        return None if found is None or self.difference(found) else found

    def difference(self, one: SetResult) -> str:
        """Describe how a result was measured differently from most of its column; empty if it was not."""
        most = self._chosen.get(_column(one))
        return "" if most is None or is_comparable(one, most) else ", ".join(_differences(one, most))


def _column(one: SetResult) -> _Column:
    return one.direction, one.shots


def _majority(runs: Sequence[Sequence[SetResult]], of: Callable[[SetResult], object]) -> SetResult | None:
    """Return a result with the most common value of `of`; a run counts once per value and column."""
    counts = Counter(value for results in runs for value, _ in {(of(one), _column(one)) for one in results})
    return max(
        (one for results in runs for one in results),
        key=lambda one: (counts[of(one)], one.set == "test", -one.beams, one.sentences),
        default=None,
    )


def _differences(one: SetResult, most: SetResult) -> Iterator[str]:
    """Yield the differences between a result and most of its column."""
    if one.set != most.set:
        yield f"on {one.set}"
    elif one.sentences != most.sentences:
        yield f"{one.sentences:,} sentences"
    elif one.texts_sha256 != most.texts_sha256:
        yield "different texts"
    if one.beams != most.beams:
        yield "greedy" if one.beams == 1 else f"{one.beams} beams"
    for name in sorted({*one.decoding, *most.decoding} - {"beams", "method"}):
        if one.decoding.get(name) != most.decoding.get(name):
            yield f"{name.replace('_', ' ')} {one.decoding.get(name)}"
    if one.prompt != most.prompt and one.set == most.set:
        yield "different prompt"
    for name, ours, theirs in (("BLEU", one.bleu, most.bleu), ("chrF", one.chrf, most.chrf)):
        if ours.signature != theirs.signature:
            parts = set(ours.signature.split("|")) - set(theirs.signature.split("|"))
            yield f"{name} {'|'.join(sorted(parts)) or ours.signature}"
