"""Whether runs differ from the baseline: p-values, kept in a file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from dataengine.storage.atomic import write_file
from trainer.evaluation.metrics import compare_systems
from trainer.reporting.comparable import Comparable, is_comparable
from trainer.reporting.runs import SetResult, TrainedRun

LEVEL = 0.05  # of significance (paper, section 4.1)


@dataclass
class Significance:
    """p-values of runs against the baseline, if there is one, kept in a file, since each takes seconds."""

    baseline: TrainedRun | None
    compared: Comparable  # the results of the judged checkpoints
    trials: int
    path: Path
    known: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.known = dict(json.loads(self.path.read_bytes()))
        except (OSError, ValueError, TypeError):
            self.known = {}  # computed again

    def p_value(self, run: TrainedRun, direction: str, shots: int) -> float | None:
        """Of the difference in BLEU; None if there is nothing to compare."""
        ours, theirs = self._both(run, direction, shots)
        if run is self.baseline or ours is None or theirs is None or not is_comparable(ours, theirs):
            return None
        before, after = ([row.hypothesis for row in one.rows] for one in (theirs, ours))
        references = [row.reference for row in ours.rows]
        if not references or len(before) != len(after):
            return None
        tokenize = dict((run.config.get("evaluate") or {}).get("bleu_tokenize") or {})
        content = json.dumps([before, after, references, direction, tokenize, self.trials], ensure_ascii=False)
        key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        if key not in self.known:
            found = compare_systems(before, after, references, direction, tokenize=tokenize, trials=self.trials)
            self.known[key] = found["bleu"]["p_value"]
            write_file(self.path, json.dumps(self.known, indent=0).encode())
        return self.known[key]

    def mark(self, run: TrainedRun, direction: str, shots: int) -> str:
        """An arrow if a run is significantly better or worse than the baseline."""
        p = self.p_value(run, direction, shots)
        if p is None or p >= LEVEL:
            return ""
        ours, theirs = self._both(run, direction, shots)
        assert ours is not None
        assert theirs is not None
        return "▲" if ours.bleu.score > theirs.bleu.score else "▼"

    def _both(self, run: TrainedRun, direction: str, shots: int) -> tuple[SetResult | None, SetResult | None]:
        """A run's result and the baseline's."""
        baseline = () if self.baseline is None else self.baseline.results
        return self.compared.pick(run.results, direction, shots), self.compared.pick(baseline, direction, shots)
