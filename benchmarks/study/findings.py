"""The study's expectations and findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.reporting.read import read_runs
from trainer.reporting.runs import TrainedRun

PAIR_DIRECTIONS = ("en-zh", "zh-en", "en-id", "id-en")
MAINS = {  # setting -> its name on the page
    "no_parallel": "no parallel",
    "multilingual": "multilingual",
    "parallel_non_adjacent": "non-adjacent",
    "parallel_first": "first",
    "parallel_distributed": "distributed",
    "parallel_last_all": "last (all)",
    "uni_en_zh": "last (uni) en-zh",
    "uni_zh_en": "last (uni) zh-en",
    "uni_en_id": "last (uni) en-id",
    "uni_id_en": "last (uni) id-en",
}


@dataclass(frozen=True)
class StudyRun:
    """A finished run of the study."""

    setting: str  # its YAML's path under yamls/study
    seed: int
    run: TrainedRun

    @classmethod
    def read(cls, setting: str, seed: int, out: Path) -> StudyRun:
        """Read a run's folder."""
        return cls(setting, seed, read_runs([str(out)], "cache")[0])

    @property
    def directions(self) -> tuple[str, ...]:
        """Directions in which it was evaluated, those of all runs first."""
        found = {one.direction for one in self.run.evaluations[-1].sets}
        return (*(name for name in PAIR_DIRECTIONS if name in found), *sorted(found - set(PAIR_DIRECTIONS)))

    def score(self, direction: str, shots: int = 0) -> float:
        """BLEU of the last checkpoint on test, or on dev if there is no test."""
        last = self.run.evaluations[-1]
        found = last.find("test", direction, shots) or last.find("dev", direction, shots)
        assert found is not None, (self.setting, direction, shots)
        return found.bleu.score

    def mean(self, shots: int = 0) -> float:
        """Of the four directions with English."""
        return float(np.mean([self.score(direction, shots) for direction in PAIR_DIRECTIONS]))

    def curve(self, direction: str, shots: int = 0) -> dict[int, float]:
        """BLEU on dev by step."""
        found = {one.step: one.find("dev", direction, shots) for one in self.run.evaluations}
        return {step: one.bleu.score for step, one in found.items() if one is not None}

    def mean_curve(self) -> dict[int, float]:
        """The same, mean of the four directions."""
        curves = [self.curve(direction) for direction in PAIR_DIRECTIONS]
        return {step: float(np.mean([curve[step] for curve in curves])) for step in curves[0]}


class Study:
    """All finished runs, by setting and seed."""

    def __init__(self, runs: Sequence[StudyRun]) -> None:
        self.runs = runs
        self._by_setting: dict[str, dict[int, StudyRun]] = {}
        for run in sorted(runs, key=lambda one: one.seed):
            self._by_setting.setdefault(run.setting, {})[run.seed] = run

    def __contains__(self, setting: str) -> bool:
        return setting in self._by_setting

    def named(self, prefix: str) -> list[str]:
        """Settings whose names begin with `prefix`, in the order of the runs."""
        return [setting for setting in self._by_setting if setting.startswith(prefix)]

    def of(self, setting: str) -> dict[int, StudyRun]:
        """Runs of a setting by seed."""
        return self._by_setting.get(setting, {})

    def first(self, setting: str) -> StudyRun:
        """The run of the first seed; the open questions are compared with it."""
        return self._by_setting[setting][1]

    @property
    def mains(self) -> list[str]:
        """The paper's settings that are there."""
        return [name for name in MAINS if name in self]


# What was expected (paper, sections 4 and 5), and never tuned for.


@dataclass(frozen=True)
class Finding:
    """One expectation: a number per seed, the bound that all should pass, and the verdict."""

    expected: str
    measure: str
    values: Sequence[float]
    holds: Callable[[float], bool]

    @property
    def measured(self) -> str:
        """Mean, and the range over seeds."""
        return spread(self.values)

    @property
    def verdict(self) -> str:
        """In plain words."""
        count = sum(map(self.holds, self.values))
        if count == len(self.values):
            return "seen" if count == 1 else f"seen in all {count} seeds"
        return "not seen" if count == 0 else f"seen in {count} of {len(self.values)} seeds"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean [least, most]."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def findings(study: Study) -> Iterator[Finding]:
    """Expectations whose runs are there; a difference is between runs of the same seed."""

    def pairs(one: str, other: str) -> list[tuple[StudyRun, StudyRun]]:
        return [(run, study.of(other)[seed]) for seed, run in study.of(one).items() if seed in study.of(other)]

    for setting in ("parallel_last_all", "parallel_distributed"):
        if found := pairs(setting, "no_parallel"):
            gains = [max(run.score(one) - base.score(one) for one in PAIR_DIRECTIONS) for run, base in found]
            yield Finding(
                f"{MAINS[setting]} is more than 10 BLEU above no parallel in some direction",
                "largest gain in BLEU over the directions", gains, lambda gain: gain > 10,
            )  # fmt: skip
    if study.of("parallel_first"):
        kept = []
        for run in study.of("parallel_first").values():
            curve = run.mean_curve()
            kept.append(100 * curve[max(curve)] / max(*curve.values(), 1e-9))
        yield Finding(
            "first collapses once its pairs are used up",
            "BLEU on dev at the end, % of its own peak (mean of directions)", kept, lambda share: share < 50,
        )  # fmt: skip
    if found := pairs("parallel_non_adjacent", "parallel_distributed"):
        shares = [100 * run.mean() / max(base.mean(), 1e-9) for run, base in found]
        yield Finding(
            "non-adjacent is far below distributed",
            "BLEU, % of distributed's (mean of directions)", shares, lambda share: share < 50,
        )  # fmt: skip
    for direction in PAIR_DIRECTIONS:
        source, target = direction.split("-")
        runs = study.of(f"uni_{source}_{target}").values()
        if runs:
            own = [run.score(direction) for run in runs]
            back = [run.score(f"{target}-{source}") for run in runs]
            yield Finding(f"last (uni) {direction} is strong in its direction", f"BLEU {direction}", own,
                          lambda score: score > 10)  # fmt: skip
            yield Finding("and near zero in the reverse one", f"BLEU {target}-{source}", back, lambda score: score < 2)
    if found := pairs("parallel_last_all", "parallel_distributed"):
        yield Finding(
            "last (all) is at or above distributed",
            "difference in BLEU (mean of directions)", [run.mean() - base.mean() for run, base in found],
            lambda gain: gain >= 0,
        )  # fmt: skip
