"""Which results can share a column: those with equal texts, search, prompt and signature. Others are marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from trainer.reporting.runs import SetResult

_Column = tuple[str, int]  # direction and number of examples
_Search = tuple[str, str]  # set and decoding


def is_comparable(one: SetResult, other: SetResult) -> bool:
    """Whether two results were measured the same way, so that only the runs differ."""
    return way_of(one) == way_of(other)


def way_of(one: SetResult) -> tuple[object, ...]:
    """The conditions that must be equal to compare two results."""
    texts = (one.texts_sha256, one.sentences, one.prompt)
    return (_search(one), one.direction, one.shots, *texts, one.bleu.signature, one.chrf.signature)


def _search(one: SetResult) -> _Search:
    return one.set, json.dumps(one.decoding, sort_keys=True, default=str)


class Comparable:
    """For every direction and number of examples the way of measuring that most runs share.

    Of ways that equally many share: the test set, then the plainest search, then the most sentences. Set and search are
    the same in all columns where they can be.
    """

    def __init__(self, runs: Sequence[Iterable[SetResult]]) -> None:
        """Takes the results of each run."""
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
        """The result of a column that is measured as most are, else another one, else None."""
        here = [one for one in results if _column(one) == (direction, shots)]
        return next((one for one in here if not self.difference(one)), here[0] if here else None)

    def pick_alike(self, results: Iterable[SetResult], direction: str, shots: int) -> SetResult | None:
        """The result of a column if it is measured as most are, else None."""
        found = self.pick(results, direction, shots)
        return None if found is None or self.difference(found) else found

    def difference(self, one: SetResult) -> str:
        """How a result was measured differently than most of its column, in words; nothing if it was not."""
        most = self._chosen.get(_column(one))
        return "" if most is None or is_comparable(one, most) else ", ".join(_differences(one, most))


def _column(one: SetResult) -> _Column:
    return one.direction, one.shots


def _majority(runs: Sequence[Sequence[SetResult]], of: Callable[[SetResult], object]) -> SetResult | None:
    """A result whose value of `of` is the most frequent one; runs are counted once per column."""
    counts = Counter(value for results in runs for value, _ in {(of(one), _column(one)) for one in results})
    return max(
        (one for results in runs for one in results),
        key=lambda one: (counts[of(one)], one.set == "test", -one.beams, one.sentences),
        default=None,
    )


def _differences(one: SetResult, most: SetResult) -> Iterator[str]:
    """How a result was measured differently from most."""
    if one.set != most.set:
        yield f"on {one.set}"
    elif one.sentences != most.sentences:
        yield f"{one.sentences:,} sentences"
    elif one.texts_sha256 != most.texts_sha256:
        yield "other texts"
    if one.beams != most.beams:
        yield "greedy" if one.beams == 1 else f"{one.beams} beams"
    for name in sorted({*one.decoding, *most.decoding} - {"beams", "method"}):
        if one.decoding.get(name) != most.decoding.get(name):
            yield f"{name.replace('_', ' ')} {one.decoding.get(name)}"
    if one.prompt != most.prompt and one.set == most.set:
        yield "another prompt"
    for name, ours, theirs in (("BLEU", one.bleu, most.bleu), ("chrF", one.chrf, most.chrf)):
        if ours.signature != theirs.signature:
            parts = set(ours.signature.split("|")) - set(theirs.signature.split("|"))
            yield f"{name} {'|'.join(sorted(parts)) or ours.signature}"
