"""chosen.json: the best checkpoint, by mean BLEU over directions on the development sets (paper, section 4)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dataengine.errors import InputError
from dataengine.tables import table
from trainer.evaluation.results import Results, read_versioned

VERSION = 1  # of chosen.json


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """The criterion of a choice: the plain mean of a metric over directions."""

    metric: str = "bleu"
    set: str = "dev"
    directions: tuple[str, ...]
    shots: int
    beams: int = 1


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that was evaluated in all directions."""

    step: int
    mean: float
    scores: Mapping[str, float]  # by direction


@dataclass(frozen=True)
class PassedOver:
    """A checkpoint that was not evaluated, and why."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """chosen.json: the chosen checkpoint, and its candidates."""

    version: int = VERSION
    step: int
    checkpoint: str = ""  # Checkpoint.identity; not in files of older versions
    by: Criterion
    candidates: tuple[Candidate, ...]  # by step
    passed_over: tuple[PassedOver, ...] = ()  # by step

    def encode(self) -> bytes:
        """Return the content of chosen.json."""
        return json.dumps(asdict(self), indent=2).encode()

    def table(self) -> str:
        """Return a table of the candidates, with the chosen one marked."""
        rows = [("checkpoint", *self.by.directions, "mean BLEU", "")]
        for one in self.candidates:
            cells = [f"{one.scores[direction]:.2f}" for direction in self.by.directions]
            mark = "chosen" if one.step == self.step else ""
            rows.append((f"step {one.step:,}", *cells, f"{one.mean:.2f}", mark))
        return "\n".join(["", f"dev, {self.by.shots}-shot", *table(rows, left=(0, len(rows[0]) - 1))])


def read_choice(path: Path) -> Choice:
    """Read chosen.json. Raises InputError if it is damaged or of another version."""
    return read_versioned(path, Choice, (VERSION,))


def choose(results: Sequence[Results], directions: Sequence[str], shots: int, beams: int) -> Choice:
    """Choose the checkpoint with the highest mean BLEU on `dev`; of equal ones, the earliest.

    `results` has one entry per checkpoint. Raises InputError if none has all directions.
    """
    candidates, identities = [], {}
    for result in sorted(results, key=lambda one: one.step):
        scores = {
            entry.direction: entry.bleu.score
            for entry in result.translation
            if (entry.set, entry.shots, entry.beams) == ("dev", shots, beams) and entry.direction in directions
        }
        if len(scores) == len(set(directions)):
            candidates.append(Candidate(result.step, _mean(scores, directions), scores))
            identities[result.step] = result.checkpoint
    if not candidates:
        raise InputError(
            f"no checkpoint has been evaluated on dev with {shots} shots in {', '.join(directions)}: "
            "run trainer/evaluate.py CONFIG --all"
        )
    best = max(candidates, key=lambda one: (one.mean, -one.step)).step
    by = Criterion(directions=tuple(directions), shots=shots, beams=beams)
    return Choice(step=best, checkpoint=identities[best], by=by, candidates=tuple(candidates))


def _mean(scores: Mapping[str, float], directions: Sequence[str]) -> float:
    """Return the plain mean over directions."""
    return math.fsum(scores[direction] for direction in directions) / len(directions)
