"""Which checkpoint is best: the highest mean BLEU on the development sets over directions (paper, section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataengine.errors import InputError


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoint, and what it was chosen from."""

    step: int
    identity: str  # Checkpoint.identity of the chosen one
    directions: tuple[str, ...]
    shots: int
    beams: int
    candidates: Mapping[int, Mapping[str, float]]  # step -> direction -> BLEU

    def describe(self, passed_over: Mapping[int, str] | None = None) -> dict[str, Any]:
        """As chosen.json has it; `passed_over` says by step why a checkpoint was not evaluated."""
        return {
            "version": 1,
            "step": self.step,
            "checkpoint": self.identity,
            "by": {
                "metric": "bleu",
                "set": "dev",
                "directions": list(self.directions),
                "shots": self.shots,
                "beams": self.beams,
            },
            "candidates": [
                {"step": step, "mean": mean(scores, self.directions), "scores": dict(scores)}
                for step, scores in sorted(self.candidates.items())
            ],
            "passed_over": [{"step": step, "reason": reason} for step, reason in sorted((passed_over or {}).items())],
        }


def choose(results: Sequence[Mapping[str, Any]], directions: Sequence[str], shots: int, beams: int) -> Choice:
    """The checkpoint of the highest mean BLEU on `dev`; of equals the one trained shortest.

    `results` are those of results.json, one a checkpoint. Raises InputError if none has all directions.
    """
    candidates, identities = {}, {}
    for result in results:
        scores = {
            entry["direction"]: float(entry["bleu"]["score"])
            for entry in result["translation"]
            if (entry["set"], entry["shots"], entry["decoding"]["beams"]) == ("dev", shots, beams)
            and entry["direction"] in directions
        }
        if len(scores) == len(set(directions)):
            candidates[int(result["step"])] = scores
            identities[int(result["step"])] = str(result.get("checkpoint", ""))
    if not candidates:
        raise InputError(
            f"no checkpoint has been evaluated on dev with {shots} shots in {', '.join(directions)}: "
            "run trainer/evaluate.py CONFIG --all"
        )
    best = max(candidates, key=lambda step: (mean(candidates[step], directions), -step))
    return Choice(best, identities[best], tuple(directions), shots, beams, candidates)


def mean(scores: Mapping[str, float], directions: Sequence[str]) -> float:
    """The plain mean over directions."""
    return math.fsum(scores[direction] for direction in directions) / len(directions)
