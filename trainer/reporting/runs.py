"""A run with its evaluations and its build, for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.build.report import StreamReport
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from trainer.evaluation.choice import Choice
from trainer.evaluation.results import (
    Results,
    SetContamination,
    SetScores,
    TaskScores,
    Translation,
    damaged,
    read_translations,
)
from trainer.run.log_csv import gap_words, missing_steps, skipped_steps
from trainer.run.settings import History

MEASURES = ("learning_rate", "grad_norm", "tokens_per_second", "memory_gb")  # columns of log.csv in the figures
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SetResult(SetScores):
    """The scores of a checkpoint on one set, in one direction, and the path of its translations."""

    path: Path

    @property
    def rows(self) -> Sequence[Translation]:
        """The stored translations, in the order of the set; empty if the file is missing or damaged."""
        return self._stored[0]

    @property
    def problem(self) -> str:
        """An error message if the file of translations is damaged; empty if it is intact or missing."""
        return self._stored[1]

    @cached_property
    def _stored(self) -> tuple[Sequence[Translation], str]:
        if not self.path.is_file():
            return (), ""
        try:
            return read_translations(self.path, self.sentences), ""
        except (OSError, ValueError) as error:
            return (), str(damaged(self.path, error))


@dataclass(frozen=True, kw_only=True)
class Evaluation(Results):
    """The results of one checkpoint, and the path of their file."""

    path: Path

    @cached_property
    def sets(self) -> tuple[SetResult, ...]:
        """The results: one per set, direction, number of examples and way of decoding."""
        folder = self.path.parent
        return tuple(SetResult(**vars(one), path=folder / Path(one.translations).name) for one in self.translation)

    def find(self, set_name: str, direction: str, shots: int) -> SetResult | None:
        """Return the result of a set; the first one if there are several ways of decoding."""
        return next((one for one in self.on(set_name) if (one.direction, one.shots) == (direction, shots)), None)

    def on(self, set_name: str) -> tuple[SetResult, ...]:
        """Return the results of a set, in all directions, numbers of examples and ways of decoding."""
        return tuple(one for one in self.sets if one.set == set_name)


@dataclass(frozen=True)
class TrainedRun:
    """A run with everything that a report shows."""

    label: str  # short, and unique in a report
    url: str
    manifest: Manifest
    config: Mapping[str, Any]  # content of config.yaml
    history: History  # of its `train` settings
    rows: Sequence[Mapping[str, str]]  # of log.csv
    evaluations: tuple[Evaluation, ...]  # by step
    chosen: Choice | None
    built: tuple[StreamReport, ...]
    built_note: str  # why `built` is empty
    problems: tuple[str, ...] = ()  # what is left out, and why
    _columns: dict[str, tuple[Floats, Floats]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def setting(self) -> str:
        """The config's name without folders; the paper's settings are matched by it."""
        return self.manifest.name.rpartition("/")[2]

    @property
    def steps(self) -> int:
        """Number of trained steps; 0 for a run that has just begun."""
        return int(self.rows[-1]["step"]) + 1 if self.rows else 0

    @property
    def lost_steps(self) -> str:
        """The steps before the last one that are missing from the log, as text; empty if there are none."""
        return gap_words(missing_steps(self.rows, 0, self.steps))

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return self.steps * self.manifest.batch_size * self.manifest.seq_len

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams of the manifest."""
        return tuple(stream.name for stream in self.manifest.streams)

    def column(self, name: str) -> tuple[Floats, Floats]:
        """Return steps trained and a column of the log, both of shape (rows with a value,), which may be empty.

        Losses and norms of skipped steps are left out: they are spikes, NaN or infinite.
        """
        if name not in self._columns:
            self._columns[name] = self._read_column(name)
        return self._columns[name]

    @property
    def _judged(self) -> set[str]:
        """Columns that decide whether a step is skipped."""
        return {"loss", "grad_norm", *(f"loss/{name}" for name in self.streams)}

    @property
    def skipped(self) -> Mapping[int, str]:
        """The skipped steps (seen, but not trained on), with reasons."""
        return skipped_steps(self.rows)

    def _read_column(self, name: str) -> tuple[Floats, Floats]:
        try:
            rows = [row for row in self.rows if row.get(name) and not (row.get("skipped") and name in self._judged)]
            found = [(int(row["step"]) + 1, float(row[name])) for row in rows]
        except ValueError as error:
            raise InputError(f"{self.url}/log.csv is damaged, column {name}: {error}. Fix or remove it.") from None
        both = np.array(found, dtype=np.float64).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    @property
    def final_losses(self) -> dict[str, float]:
        """The last logged training loss of each stream, nats per token; streams without samples so far are absent."""
        losses = {name: self.column(f"loss/{name}")[1] for name in self.streams}
        return {name: float(values[-1]) for name, values in losses.items() if len(values)}

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation of the judged checkpoint: the chosen one, else the last one evaluated."""
        if not self.evaluations:
            return None
        chosen = self.chosen and next((one for one in self.evaluations if one.step == self.chosen.step), None)
        return chosen or self.evaluations[-1]

    @property
    def sets(self) -> tuple[SetResult, ...]:
        """The results of the judged checkpoint on all sets."""
        return self.judged.sets if self.judged else ()

    @property
    def reasoning(self) -> Mapping[str, TaskScores]:
        """The accuracies of the judged checkpoint, by task."""
        return self.judged.reasoning if self.judged else {}

    @property
    def contamination(self) -> Mapping[str, SetContamination]:
        """The contamination of each set, as recorded for the judged checkpoint."""
        return (self.judged and self.judged.contamination) or {}

    @property
    def judged_on(self) -> str:
        """`test` if the judged checkpoint was evaluated on it, else `dev`; empty without translations."""
        names = {one.set for one in self.sets}
        return "test" if "test" in names else "dev" if names else ""

    @property
    def is_chosen(self) -> bool:
        """Whether the judged checkpoint is that of chosen.json."""
        return bool(self.chosen and self.judged and self.judged.step == self.chosen.step)

    @property
    def judged_because(self) -> str:
        """The reason why this checkpoint is the judged one."""
        return "chosen on dev" if self.is_chosen else "last one evaluated"

    def result(self, direction: str, shots: int, set_name: str = "") -> SetResult | None:
        """Return a result of the judged checkpoint, by default on the set that it is judged on."""
        return self.judged.find(set_name or self.judged_on, direction, shots) if self.judged else None

    @property
    def results(self) -> tuple[SetResult, ...]:
        """The results of the judged checkpoint on the set that it is judged on."""
        return self.judged.on(self.judged_on) if self.judged else ()

    def kind(self, stream: str) -> str:
        """Return the kind of a stream: `documents`, `pairs`, `exchanged` (shuffled targets) or `sides`."""
        settings = (self.config.get("streams") or {}).get(stream) or {}
        if settings.get("sides"):
            return "sides"
        if settings.get("pairs"):
            return "pairs" if settings.get("adjacent", True) else "exchanged"
        return "documents"

    def language(self, code: str) -> str:
        """Return the full name of a language."""
        return str((self.config.get("languages") or {}).get(code, code))
