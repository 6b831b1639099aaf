"""The highlights of a report, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.reporting import tables
from trainer.reporting.figures import Curve
from trainer.reporting.runs import TrainedRun
from trainer.reporting.significance import Significance

_OFF_TARGET = 0.2  # from here on it is worth a sentence
_LEARNED = 2.0  # BLEU; a run that never had as much has nothing to forget


def describe_highlights(
    runs: Sequence[TrainedRun],
    directions: Sequence[str],
    shots: Sequence[int],
    significance: Significance,
    curves: Sequence[Curve],
) -> Iterator[str]:
    """The highlights, as sentences."""
    pick = significance.compared.pick_alike
    for number in shots:
        best = []
        for direction in directions:
            scored = [(found.bleu.score, run.label) for run in runs if (found := pick(run.results, direction, number))]
            if len(scored) > 1:
                score, label = max(scored, key=lambda pair: pair[0])
                best.append(f"{direction} {label} ({score:.2f})")
        if best:
            yield f"Best in BLEU, {tables.shots_words(number)}: {', '.join(best)}."
    for run in runs:
        if run.lost_steps:
            yield f"{run.label}: log.csv has lost steps {run.lost_steps}; its curves go straight across them."
        if run.skipped:
            shown = ", ".join(f"{step:,}" for step in run.skipped)
            yield f"{run.label}: skipped steps, which its curves leave out: {shown}."
        marks = [significance.mark(run, direction, number) for number in shots for direction in directions]
        if any(marks) and significance.baseline is not None:
            yield (
                f"{run.label} is significantly better than {significance.baseline.label} in {marks.count('▲')} "
                f"and worse in {marks.count('▼')} of {len(marks)} comparisons."
            )
    yield from (words for one in curves if one.shots == curves[0].shots and (words := _forgetting(one)))
    for run in runs:
        astray = [
            f"{direction} {share:.0%}"
            for direction in directions
            if (found := significance.compared.pick(run.results, direction, shots[0]))
            and found.languages
            and (share := found.languages.off_target) is not None
            and share - (found.languages.references_off_target or 0) >= _OFF_TARGET
        ]
        if astray:
            yield f"{run.label} answers in a wrong language: {', '.join(astray)}."


def _forgetting(curve: Curve) -> str:
    """What is said of a run whose last checkpoint is far below its best one, with intervals apart; else nothing.

    Nor is anything said of a run whose best score is near zero.
    """
    if len(curve.points) < 3:
        return ""
    step, peak = max(curve.points, key=lambda point: point[1].score)
    end, last = curve.points[-1]
    if peak.score < _LEARNED or peak.low is None or last.high is None:
        return ""
    if last.high >= peak.low or last.score >= peak.score / 2:
        return ""
    return (
        f"{curve.label} forgets {curve.direction}: BLEU {peak.score:.2f} at step {step:,}, "
        f"{last.score:.2f} at step {end:,}."
    )
