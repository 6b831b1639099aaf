"""A run, its evaluations and its build as a report needs them."""

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

MEASURES = ("learning_rate", "grad_norm", "tokens_per_second", "memory_gb")  # columns of the log that are drawn
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SetResult(SetScores):
    """One checkpoint on one set, direction and number of examples in the prompt, and where its translations are."""

    path: Path

    @property
    def rows(self) -> Sequence[Translation]:
        """The stored translations, in the order of the set; empty if the file is not here or is damaged."""
        return self._stored[0]

    @property
    def problem(self) -> str:
        """What is wrong with the stored translations; nothing if they are whole or not here."""
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
    """The results of one checkpoint, and the file that they are in."""

    path: Path

    @cached_property
    def sets(self) -> tuple[SetResult, ...]:
        """One for each set, direction, number of examples and way of decoding."""
        folder = self.path.parent
        return tuple(SetResult(**vars(one), path=folder / Path(one.translations).name) for one in self.translation)

    def find(self, set_name: str, direction: str, shots: int) -> SetResult | None:
        """The result of a set; of several ways of decoding the first."""
        return next((one for one in self.on(set_name) if (one.direction, one.shots) == (direction, shots)), None)

    def on(self, set_name: str) -> tuple[SetResult, ...]:
        """The results of a set, in all directions, numbers of examples and ways of decoding."""
        return tuple(one for one in self.sets if one.set == set_name)


@dataclass(frozen=True)
class TrainedRun:
    """A run and all that is known of it."""

    label: str  # short, and its own among the runs of a report
    url: str
    manifest: Manifest
    config: Mapping[str, Any]  # as config.yaml has it
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
        """The config's name without folders, by which the paper's settings are matched."""
        return self.manifest.name.rpartition("/")[2]

    @property
    def steps(self) -> int:
        """Steps trained; 0 of a run that has just begun."""
        return int(self.rows[-1]["step"]) + 1 if self.rows else 0

    @property
    def lost_steps(self) -> str:
        """The steps below the last one that the log has no rows of, in words; nothing if it has all."""
        return gap_words(missing_steps(self.rows, 0, self.steps))

    @property
    def tokens(self) -> int:
        """Tokens predicted."""
        return self.steps * self.manifest.batch_size * self.manifest.seq_len

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams of the manifest."""
        return tuple(stream.name for stream in self.manifest.streams)

    def column(self, name: str) -> tuple[Floats, Floats]:
        """Steps trained and a column of the log, both of shape (rows that have a value,); empty if none has.

        Losses and norms of steps that were not trained on are left out: they are spikes, or no numbers.
        """
        if name not in self._columns:
            self._columns[name] = self._read_column(name)
        return self._columns[name]

    @property
    def _judged(self) -> set[str]:
        """Columns by which a step is found bad."""
        return {"loss", "grad_norm", *(f"loss/{name}" for name in self.streams)}

    @property
    def skipped(self) -> Mapping[int, str]:
        """The skipped steps, and why."""
        return skipped_steps(self.rows)

    def _read_column(self, name: str) -> tuple[Floats, Floats]:
        try:
            rows = [row for row in self.rows if row.get(name) and not (row.get("skipped") and name in self._judged)]
            found = [(int(row["step"]) + 1, float(row[name])) for row in rows]
        except ValueError as error:
            raise InputError(f"{self.url}/log.csv is damaged, column {name}: {error}. Remove or fix it.") from None
        both = np.array(found, dtype=np.float64).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    @property
    def final_losses(self) -> dict[str, float]:
        """The last logged training loss of each stream, in nats per token; streams that were not drawn are absent."""
        losses = {name: self.column(f"loss/{name}")[1] for name in self.streams}
        return {name: float(values[-1]) for name, values in losses.items() if len(values)}

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation of the chosen checkpoint; else that of the last one evaluated."""
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
        """The accuracies of the judged checkpoint by task."""
        return self.judged.reasoning if self.judged else {}

    @property
    def contamination(self) -> Mapping[str, SetContamination]:
        """What was found for the judged checkpoint of each set in the training streams."""
        return (self.judged and self.judged.contamination) or {}

    @property
    def judged_on(self) -> str:
        """`test` if the judged checkpoint has been there, else `dev`; nothing if it has no translations."""
        names = {one.set for one in self.sets}
        return "test" if "test" in names else "dev" if names else ""

    @property
    def is_chosen(self) -> bool:
        """Whether `judged` is the choice of chosen.json."""
        return bool(self.chosen and self.judged and self.judged.step == self.chosen.step)

    @property
    def judged_because(self) -> str:
        """Why `judged` is the one, in words."""
        return "chosen on dev" if self.is_chosen else "the last one evaluated"

    def result(self, direction: str, shots: int, set_name: str = "") -> SetResult | None:
        """Of the judged checkpoint, on the set that it is judged on unless another is named."""
        return self.judged.find(set_name or self.judged_on, direction, shots) if self.judged else None

    @property
    def results(self) -> tuple[SetResult, ...]:
        """Those of the judged checkpoint on the set that it is judged on."""
        return self.judged.on(self.judged_on) if self.judged else ()

    def kind(self, stream: str) -> str:
        """The content of a stream: `documents`, `pairs`, `exchanged` (not adjacent) or `sides`."""
        settings = (self.config.get("streams") or {}).get(stream) or {}
        if settings.get("sides"):
            return "sides"
        if settings.get("pairs"):
            return "pairs" if settings.get("adjacent", True) else "exchanged"
        return "documents"

    def language(self, code: str) -> str:
        """The full name of a language."""
        return str((self.config.get("languages") or {}).get(code, code))
