"""Runs as a report needs them: training log, evaluations of checkpoints, the choice, what the build said."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml
from numpy.typing import NDArray

from dataengine.config.layers import read_layers
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import open_store
from dataengine.storage.s3_client import is_url
from trainer.checkpoints.find import all_checkpoints, checkpoint_folder, read_checkpoint
from trainer.run.folder import Run, local_folder, open_run, parse_json, read_run_manifest
from trainer.run.settings import SETTINGS, History, parse_history
from trainer.run.step_log import gap_words, missing_steps, read_log, skipped_steps

_VERSIONS = (1, 2)  # of results.json and chosen.json
MEASURES = ("learning_rate", "grad_norm", "tokens_per_second", "memory_gb")  # columns of the log that are drawn
_TEXTS = ("source", "reference", "hypothesis")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A corpus score; `low` and `high` bound its 95 % interval, None if it was not computed."""

    score: float
    low: float | None
    high: float | None
    signature: str


@dataclass(frozen=True)
class Translation:
    """One sentence of a set, and what a run made of it."""

    source: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class SetResult:
    """One checkpoint on one set, direction and number of examples in the prompt."""

    set_name: str
    direction: str
    shots: int
    sentences: int
    files: tuple[str, ...]
    texts_sha256: str
    decoding: Mapping[str, Any]
    prompt: str
    bleu: Score
    chrf: Score
    comet: Mapping[str, Score]
    languages: Mapping[str, Any]  # empty: none judged
    counts: Mapping[str, int]
    path: Path  # of the translations

    @property
    def beams(self) -> int:
        """Of the search; 1 is greedy."""
        return int(self.decoding["beams"])

    @property
    def translations(self) -> tuple[Translation, ...]:
        """The stored translations, in the order of the set; empty if the file is not here or is damaged."""
        return self._stored[0]

    @property
    def problem(self) -> str:
        """What is wrong with the stored translations; nothing if they are whole or not here."""
        return self._stored[1]

    @cached_property
    def _stored(self) -> tuple[tuple[Translation, ...], str]:
        if not self.path.is_file():
            return (), ""
        try:
            rows = [orjson.loads(line) for line in self.path.read_bytes().splitlines()]
            found = tuple(Translation(*(_text(row[key]) for key in _TEXTS)) for row in rows)
            if len(found) != self.sentences:
                raise ValueError(f"{len(found):,} sentences, not {self.sentences:,}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return (), str(_damaged(self.path, error))
        return found, ""


@dataclass(frozen=True)
class Evaluation:
    """The results of one checkpoint."""

    step: int
    plan_id: str
    checkpoint: str | None  # its identity; None of an older version
    tokens: int
    sets: tuple[SetResult, ...]
    reasoning: Mapping[str, Mapping[str, Any]]
    contamination: Mapping[str, Mapping[str, Any]]
    path: Path
    sha256: str

    def find(self, set_name: str, direction: str, shots: int) -> SetResult | None:
        """The result of a set; of several ways of decoding the first."""
        return next((one for one in self.on(set_name) if (one.direction, one.shots) == (direction, shots)), None)

    def on(self, set_name: str) -> tuple[SetResult, ...]:
        """The results of a set, in all directions, numbers of examples and ways of decoding."""
        return tuple(one for one in self.sets if one.set_name == set_name)


@dataclass(frozen=True)
class BuiltStream:
    """What the build made of one stream."""

    name: str
    records: int
    unusable: int
    dropped: Mapping[str, int]  # reason -> records
    kept: int
    tokens: int
    samples: int
    remainder: int  # tokens


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
    chosen: Mapping[str, Any] | None  # chosen.json
    built: tuple[BuiltStream, ...]
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
        """The steps that were seen and not trained on, and why."""
        return skipped_steps(self.rows)

    def _read_column(self, name: str) -> tuple[Floats, Floats]:
        try:
            rows = [row for row in self.rows if row.get(name) and not (row.get("skipped") and name in self._judged)]
            found = [(int(row["step"]) + 1, float(row[name])) for row in rows]
        except ValueError as error:
            raise InputError(f"{self.url}/log.csv is damaged, column {name}: {error}. Remove or mend it.") from None
        both = np.array(found, dtype=np.float64).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    @property
    def final_losses(self) -> dict[str, float]:
        """The last logged training loss of each stream, nats a token; streams that were not drawn are absent."""
        losses = {name: self.column(f"loss/{name}")[1] for name in self.streams}
        return {name: float(values[-1]) for name, values in losses.items() if len(values)}

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation of the chosen checkpoint; else that of the last one evaluated."""
        if not self.evaluations:
            return None
        chosen = self.chosen and next((one for one in self.evaluations if one.step == self.chosen["step"]), None)
        return chosen or self.evaluations[-1]

    @property
    def judged_on(self) -> str:
        """`test` if the judged checkpoint has been there, else `dev`; nothing if it has no translations."""
        names = {one.set_name for one in self.judged.sets} if self.judged else set()
        return "test" if "test" in names else "dev" if names else ""

    @property
    def is_chosen(self) -> bool:
        """Whether `judged` is the choice of chosen.json."""
        return bool(self.chosen and self.judged and self.judged.step == self.chosen["step"])

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
        """What a stream is made of: `documents`, `pairs`, `exchanged` (not adjacent) or `sides`."""
        settings = (self.config.get("streams") or {}).get(stream) or {}
        if settings.get("sides"):
            return "sides"
        if settings.get("pairs"):
            return "pairs" if settings.get("adjacent", True) else "exchanged"
        return "documents"

    def language(self, code: str) -> str:
        """The full name of a language."""
        return str((self.config.get("languages") or {}).get(code, code))


def read_runs(runs: Sequence[str], cache: str) -> list[TrainedRun]:
    """Read run folders or URLs, each once, in the order given; labels are the shortest names that tell them apart.

    A folder that is no run stands for all runs below it. Raises InputError for a place without a run and for damaged
    files.
    """
    return _label([_read_run(url, cache) for url in _each_run(runs)])


def read_usable_runs(runs: Sequence[str], cache: str) -> tuple[list[TrainedRun], list[str]]:
    """The same, but without the runs that cannot be read; and what is wrong with those.

    Raises InputError if none can be read.
    """
    found: list[TrainedRun] = []
    problems: list[InputError] = []
    for url in _each_run(runs):
        try:
            found.append(_read_run(url, cache))
        except InputError as error:
            problems.append(error)
        except OSError as error:
            problems.append(InputError(f"cannot read {error.filename or url}: {error.strerror or error}."))
    if not found:
        raise problems[0]
    return _label(found), list(map(str, problems))


def _each_run(places: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(run for place in places for run in _runs_below(place.rstrip("/"))))


def _label(found: Sequence[TrainedRun]) -> list[TrainedRun]:
    labels = [run.setting for run in found]
    if len(set(labels)) < len(labels):
        labels = [run.manifest.name for run in found]
    if len(set(labels)) < len(labels):
        labels = [run.url for run in found]
    return [replace(run, label=label) for run, label in zip(found, labels, strict=True)]


def _runs_below(place: str) -> list[str]:
    """The place itself if it is a run, a URL or has no run below, else the folders of runs below it."""
    if is_url(place) or Path(place, "log.csv").is_file():
        return [place]
    return sorted(str(log.parent) for log in Path(place).rglob("log.csv")) or [place]


def _read_run(url: str, cache: str) -> TrainedRun:
    folder = local_folder(url, cache)
    if not (folder / "log.csv").is_file():
        raise InputError(f"no log.csv in {folder}: give the folder (a config's `out`) of a run that has trained")
    manifest, rows = read_run_manifest(folder), read_log(folder / "log.csv")
    config = _read_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    run = open_run(url, cache)
    if run.store is not None:
        results = [name for name in run.store.sizes("evaluations/") if name.endswith("/results.json")]
        run.fetch("chosen.json", *sorted(results))
    chosen = _read_json(folder / "chosen.json") if (folder / "chosen.json").is_file() else None
    if chosen is not None and not isinstance(chosen.get("step"), int):
        raise _damaged(folder / "chosen.json", KeyError("step"))
    evaluations = [_read_evaluation(path) for path in sorted(folder.glob("evaluations/*/results.json"))]
    anew = _trained_anew(run, evaluations)
    evaluations = [one for one in evaluations if one not in anew]
    built, note = _read_build(config, manifest)
    trained = TrainedRun(
        label="",
        url=url,
        manifest=manifest,
        config=config,
        history=_read_history(folder / SETTINGS),
        rows=rows,
        evaluations=tuple(sorted(evaluations, key=lambda one: one.step)),
        chosen=chosen,
        built=built,
        built_note=note,
    )
    for column in (*(f"loss/{name}" for name in trained.streams), *MEASURES):
        trained.column(column)  # raises where it is damaged
    if trained.judged and run.store is not None:
        _fetch_translations(run, trained.judged)
    problems = [
        f"{one.path} is of a checkpoint that was trained anew since. Evaluate again: trainer/evaluate.py CONFIG "
        f"--step {one.step}"
        for one in anew
    ]
    problems += [one.problem for one in trained.results if one.problem]
    return replace(trained, problems=tuple(problems))


def _trained_anew(run: Run, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those of a checkpoint in whose place there is another one now."""
    if run.store is not None:
        now = {found.step: found.identity for found in all_checkpoints(run)} if evaluations else {}
    else:
        now = {}
        for one in evaluations:
            with suppress(InputError):  # it is gone, or being saved
                now[one.step] = read_checkpoint(checkpoint_folder(run.folder, one.step)).identity
    return [one for one in evaluations if one.checkpoint and one.checkpoint != now.get(one.step, one.checkpoint)]


def _read_history(path: Path) -> History:
    return parse_history(path.read_bytes(), str(path)) if path.is_file() else []


def _read_config(path: Path) -> dict[str, Any]:
    """What the file says, also that of an older version. Raises InputError if it is damaged."""
    values = _load_quickly(path) or read_layers(path, ())[0]
    streams = values["streams"] if isinstance(values.get("streams"), dict) else {}
    places: list[tuple[str, ...]] = [(key,) for key in ("train", "model", "streams", "languages", "evaluate")]
    places += [("evaluate", "bleu_tokenize"), *(("streams", name) for name in streams)]
    for place in places:
        section: Any = values
        for key in place:
            section = section.get(key) or {}
            if not isinstance(section, dict):
                raise InputError(
                    f"{path} is damaged: {'.'.join(place)} has no keys of its own. Bring it back from a copy: "
                    "STORE/experiments/NAME/config.yaml"
                )
    return values


def _load_quickly(path: Path) -> dict[str, Any] | None:
    """A resolved config, in a tenth of the time of `read_layers`, which says what is wrong where this is None."""
    try:
        values = yaml.load(path.read_bytes(), yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and "base" not in values else None


def _fetch_translations(run: Run, evaluation: Evaluation) -> None:
    run.fetch(*(one.path.relative_to(run.folder).as_posix() for one in evaluation.sets))


def _read_json(path: Path) -> dict[str, Any]:
    """A file of results. Raises InputError if it is damaged or of another version."""
    try:
        found = parse_json(path.read_bytes())
        version = found["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise InputError(f"{path} has version {version}, this program reads {known}. Evaluate again with it.")
    return dict(found)


def _read_evaluation(path: Path) -> Evaluation:
    found = _read_json(path)
    try:
        return Evaluation(
            step=int(found["step"]),
            plan_id=found["plan_id"],
            checkpoint=found.get("checkpoint"),
            tokens=int(found["tokens"]),
            sets=tuple(_read_set(entry, path.parent) for entry in found["translation"]),
            reasoning={
                task: {**_numbers(scores), "version": str(scores.get("version", ""))}
                for task, scores in (found.get("reasoning") or {}).items()
            },
            contamination={
                name: {**_numbers(one), "by_stream": _numbers(one["by_stream"])}
                for name, one in (found.get("contamination") or {}).items()
            },
            path=path,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(path, error) from None


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an object. Raises TypeError or AttributeError if it is none."""
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text is expected")
    return value


def _read_set(entry: Mapping[str, Any], folder: Path) -> SetResult:
    comet = {
        model: Score(one["score"], one["low"], one["high"], one["sha256"]) for model, one in entry["comet"].items()
    }
    bleu, chrf = (
        Score(one["score"], one["low"], one["high"], one["signature"]) for one in (entry["bleu"], entry["chrf"])
    )
    return SetResult(
        set_name=entry["set"],
        direction=entry["direction"],
        shots=int(entry["shots"]),
        sentences=int(entry["sentences"]),
        files=tuple(entry["files"]),
        texts_sha256=entry["texts_sha256"],
        decoding={**entry["decoding"], "beams": int(entry["decoding"]["beams"])},
        prompt=entry["prompt"],
        bleu=bleu,
        chrf=chrf,
        comet=comet,
        languages=_numbers(entry["languages"] or {}),
        counts=_numbers(entry["counts"]),
        path=folder / Path(entry["translations"]).name,
    )


def _read_build(config: Mapping[str, Any], manifest: Manifest) -> tuple[tuple[BuiltStream, ...], str]:
    """The report of the build that made a run's plan; nothing, and why, if it is not there."""
    store = config.get("store")
    if not store:
        return (), "config.yaml names no store"
    place = f"experiments/{manifest.name}/build_report.json"
    try:
        found = orjson.loads(open_store(str(store)).read(place))
        if found["plan_id"] != manifest.plan_id:
            return (), f"{store}/{place} is of another build"
        streams = [
            BuiltStream(
                name=one["name"],
                records=one["records"],
                unusable=sum(one["rejected"].values()),
                dropped=one["dropped"],
                kept=one["kept"],
                tokens=one["tokens"],
                samples=one["samples"],
                remainder=one["remainder_tokens"],
            )
            for one in found["streams"]
        ]
    except (OSError, InputError):
        return (), f"{store}/{place} is not there"
    except (ValueError, KeyError, TypeError):
        return (), f"{store}/{place} cannot be read"
    return tuple(streams), ""


def _damaged(path: Path, error: Exception) -> InputError:
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return InputError(f"{path} is damaged ({what}). Remove it, and evaluate again.")
