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
    """The metric."""
    set: str = "dev"
    """The set."""
    directions: tuple[str, ...]
    """The directions averaged."""
    shots: int
    """Examples in the prompt."""
    beams: int = 1
    """Beams of the search; 1 is greedy."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that was evaluated in all directions."""

    step: int
    """Steps that the checkpoint was trained for."""
    mean: float
    """Mean score over the directions."""
    scores: Mapping[str, float]
    """Score by direction."""


@dataclass(frozen=True)
class PassedOver:
    """A checkpoint that was not evaluated, and why."""

    step: int
    """Steps that the checkpoint was trained for."""
    reason: str
    """Why it was not evaluated."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """chosen.json: the chosen checkpoint, and its candidates."""

    version: int = VERSION
    """Version of the format."""
    step: int
    """Steps that the chosen checkpoint was trained for."""
    checkpoint: str = ""
    """SHA-256 that identifies its content. Empty in earlier versions."""
    by: Criterion
    """How the checkpoint was chosen."""
    candidates: tuple[Candidate, ...]
    """The evaluated checkpoints, by step."""
    passed_over: tuple[PassedOver, ...] = ()
    """Checkpoints that were not evaluated, by step."""

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
            "python trainer/evaluate.py CONFIG --all"
        )
    best = max(candidates, key=lambda one: (one.mean, -one.step)).step
    by = Criterion(directions=tuple(directions), shots=shots, beams=beams)
    return Choice(step=best, checkpoint=identities[best], by=by, candidates=tuple(candidates))


def _mean(scores: Mapping[str, float], directions: Sequence[str]) -> float:
    """Return the plain mean over directions."""
    return math.fsum(scores[direction] for direction in directions) / len(directions)
