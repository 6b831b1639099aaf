"""OUT/evaluations/step-00000040/: results.json, and the translations of each set as JSON lines. Needs no torch.

Several evaluations of one checkpoint may run at once, with other sets or settings: each adds its
part to the existing results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from dataengine.errors import InputError
from dataengine.json_files import Versioned, decode, decode_lines
from trainer.checkpoints.marker import Checkpoint
from trainer.run.folder import Run
from trainer.run.lock import lock_folder
from trainer.run.log_csv import parse_rows

VERSION = 2  # of results.json; raise when the same prompts would be completed otherwise
_READABLE = (1, VERSION)  # 1: without checkpoint, log, and the hashes of translations
_RESULTS = "results.json"
METRICS = ("acc", "acc_norm")  # of reasoning tasks

T = TypeVar("T")
Plain = str | bool | int | float | None
LogRows = Mapping[int, Mapping[str, str]]


@dataclass(frozen=True)
class Score:
    """A corpus score; `low` and `high` bound its 95 % interval, None if it was not computed."""

    score: float
    """The corpus score."""
    signature: str
    """The signature of sacrebleu."""
    low: float | None
    """Lower bound of the 95 % interval; null if it was not computed."""
    high: float | None
    """Upper bound of the interval."""

    def __str__(self) -> str:
        around = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.score:.2f}{around}"


@dataclass(frozen=True)
class CometScore:
    """The mean score of a COMET model, and which model it is."""

    score: float
    """Mean over the sentences."""
    low: float | None
    """Lower bound of the 95 % interval; null if it was not computed."""
    high: float | None
    """Upper bound of the interval."""
    sha256: str
    """SHA-256 of the model's checkpoint."""
    needs_references: bool
    """False for a reference-free model."""

    @property
    def signature(self) -> str:
        """The hash of the model, which distinguishes models of the same name."""
        return self.sha256


@dataclass(frozen=True)
class Languages:
    """The languages of the answers that are long enough to identify; shares are None without any."""

    judged: int
    """Translations that are long enough to identify their language."""
    target: int
    """Of these, in the target language."""
    source: int
    """In the source language."""
    other: int
    """In another language."""
    off_target: float | None
    """Share of the judged translations that are not in the target language; null if none was judged."""
    references_off_target: float | None
    """The same share of the references, for comparison."""


@dataclass(frozen=True)
class Translation:
    """A sentence of a set and its translation by a checkpoint: a line of a file of translations."""

    source: str
    """The source sentence."""
    reference: str
    """The reference translation."""
    hypothesis: str
    """The translation of the checkpoint."""
    unfinished: bool
    """The translation reached `max_new_tokens` before its end."""


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """One checkpoint on one set, direction and number of examples in the prompt, with one way of decoding."""

    set: str
    """`dev` or `test`."""
    direction: str
    """Language direction, such as en-zh."""
    shots: int
    """Examples in the prompt."""
    sentences: int
    """Sentences of the set."""
    files: tuple[str, ...]
    """Names of the set's files."""
    texts_sha256: str
    """SHA-256 of the sources and references."""
    note: str = ""
    """What was chosen among several, such as the reference."""
    decoding: Mapping[str, Plain]
    """Settings of the search."""
    prompt: str
    """The prompt with {source} in place of the sentence."""
    fingerprint: str = ""
    """SHA-256 of all that decides the translations."""
    bleu: Score
    """BLEU."""
    chrf: Score
    """chrF."""
    languages: Languages | None
    """Languages of the translations; null if they are not known."""
    languages_reason: str | None = None
    """Why the languages are not known."""
    comet: Mapping[str, CometScore]
    """Scores of the COMET models, by model."""
    counts: Mapping[str, int]
    """Number of empty, copied, cut and unfinished translations and the like, by name."""
    translations: str
    """Name of the file with the translations."""
    sha256: str = ""
    """SHA-256 of that file."""

    def __post_init__(self) -> None:
        if not isinstance(self.decoding.get("beams"), int):
            raise ValueError("decoding has no number of beams")

    @property
    def beams(self) -> int:
        """Of the search; 1 is greedy."""
        beams = self.decoding["beams"]
        assert isinstance(beams, int)
        return beams

    def line(self, checkpoint: str) -> str:
        """All of it for people, after the name of the checkpoint."""
        words = [f"{checkpoint} {self.set} {self.direction} {self.shots}-shot: BLEU {self.bleu}", f"chrF {self.chrf}"]
        words += [f"{Path(model).name} {score.score:.4f}" for model, score in self.comet.items()]
        if self.languages and self.languages.off_target is not None:
            words.append(f"off-target {self.languages.off_target:.1%}")
        words += [f"{name.replace('_', ' ')} {count:,}" for name, count in self.counts.items() if count]
        return ", ".join([*words, f"of {self.sentences:,}"])

    def has_translations_of(self, other: SetScores, *keys: str) -> bool:
        """Whether both are of the same translations and references."""
        names = ("fingerprint", "texts_sha256", *keys)
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Accuracies of one reasoning task, None if lm-eval gives none of the kind, and what they depend on."""

    shots: int
    """Examples in the prompt."""
    samples: int
    """Questions of the task."""
    bos: bool | None = None
    """Whether BOS preceded the prompt."""
    version: str = ""
    """Version of the task in lm-eval."""
    acc: float | None = None
    """Accuracy, from 0 to 1; left out if lm-eval does not give it."""
    acc_stderr: float | None = None
    """Its standard error."""
    acc_norm: float | None = None
    """Accuracy with normalized lengths; left out if lm-eval does not give it."""
    acc_norm_stderr: float | None = None
    """Its standard error."""
    made_of: Mapping[str, Any] | None = None
    """What the scores depend on: task files, data, lm-eval; null in earlier versions."""


@dataclass(frozen=True)
class SetContamination:
    """How many sentences of a set are in the training streams."""

    sentences: int
    """Sentences of the set."""
    contaminated: int
    """Sentences that occur in the training streams."""
    by_stream: Mapping[str, int]
    """The same for each stream."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """results.json: all that is known of one checkpoint."""

    version: int = VERSION
    """Version of the format."""
    run: str = ""
    """Name of the experiment."""
    step: int
    """Steps that the checkpoint was trained for."""
    plan_id: str
    """SHA-256 of the manifest that the run followed."""
    checkpoint: str = ""
    """SHA-256 that identifies the content of the checkpoint. Empty in version 1."""
    log: Mapping[str, str] | None = None
    """Loss, gradient norm and digest of the checkpoint's last step, from log.csv; null without a log."""
    tokens: int
    """Tokens predicted up to this step."""
    translation: tuple[SetScores, ...]
    """A result for each set, direction, number of examples and search."""
    reasoning: Mapping[str, TaskScores] = field(default_factory=dict)
    """Scores of reasoning tasks, by task."""
    contamination: Mapping[str, SetContamination] | None = None
    """Evaluation sentences in the training streams, by set and direction; null if not counted."""

    def at(self, name: str) -> SetScores | None:
        """The entry whose translations are in the file `name`."""
        return next((one for one in self.translation if one.translations == name), None)


def results_folder(step: int) -> str:
    """The folder with the results of the checkpoint after `step` steps, relative to the run."""
    return f"evaluations/step-{step:08d}"


def new_results(name: str, checkpoint: Checkpoint, rows: LogRows, tokens: int) -> Results:
    """Those of a checkpoint of the run `name`, trained on `tokens`, before anything was evaluated."""
    return Results(
        run=name,
        step=checkpoint.step,
        plan_id=checkpoint.plan_id,
        checkpoint=checkpoint.identity,
        log=rows.get(checkpoint.step),
        tokens=tokens,
        translation=(),
    )


def read_log_rows(run: Run) -> LogRows:
    """By steps trained, the logged values of the last step that identify a training; empty without a log."""
    try:
        content = (run.folder / "log.csv").read_bytes() if run.store is None else run.store.read("log.csv")
    except FileNotFoundError:
        return {}
    keys = ("loss", "grad_norm", "digest")
    return {int(row["step"]) + 1: {key: row.get(key) or "" for key in keys} for row in parse_rows(content)[0]}


def is_of_run(results: Results, checkpoints: Mapping[int, Checkpoint], rows: LogRows, plan_id: str) -> bool:
    """Whether results are of this run's checkpoint of their step, and not of one from an earlier or later training.

    `checkpoints` are those that exist, by step. A removed checkpoint is identified by its row in the log. If the log
    is missing or lacks this row but has later ones, the plan identifies it.
    """
    step = results.step
    if step in checkpoints:
        return checkpoints[step].identity == results.checkpoint
    lost = not rows or (step not in rows and max(rows) > step)
    if results.log is None or lost:
        return results.plan_id == plan_id
    return results.log == rows.get(step)


def damaged(path: Path, error: Exception) -> InputError:
    """For a file of an evaluation that cannot be read."""
    return InputError(f"{path} is damaged ({error}). Remove it, and evaluate again.")


def read_any_results(path: Path) -> Results:
    """Read results.json of this version or an older one. Raises InputError if it is damaged or of another version."""
    return read_versioned(path, Results, _READABLE)


def read_versioned(path: Path, kind: type[T], versions: Sequence[int]) -> T:
    """Read a file of an evaluation. Raises InputError if it is damaged or of another version than these."""
    content = path.read_bytes()
    try:
        version = decode(Versioned, content).version
        if version in versions:
            return decode(kind, content)
    except ValueError as error:
        raise damaged(path, error) from None
    known = " and ".join(map(str, versions))
    raise InputError(f"{path} has version {version}, this program reads {known}. Evaluate again with it.")


def read_translations(path: Path, sentences: int) -> list[Translation]:
    """Read the translations of a set. Raises OSError or ValueError if their number differs or they are damaged."""
    found = decode_lines(Translation, path.read_bytes())
    if len(found) != sentences:
        raise ValueError(f"{len(found):,} sentences, not {sentences:,}")
    return found


def encode_translations(translations: Sequence[Translation]) -> bytes:
    """Write translations as JSON lines."""
    return b"".join(orjson.dumps(one) + b"\n" for one in translations)


def encode_results(results: Results) -> bytes:
    """Write results.json."""
    content = asdict(results)
    for entry in content["translation"]:
        if entry["languages_reason"] is None:
            del entry["languages_reason"]
    for task in content["reasoning"].values():
        for metric in METRICS:
            if task[metric] is None:
                del task[metric], task[f"{metric}_stderr"]
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def read_results(run: Run, step: int) -> Results | None:
    """The stored results of a step; None without any, or for another version. Raises InputError if they are damaged."""
    key = f"{results_folder(step)}/{_RESULTS}"
    run.fetch(key)
    path = run.folder / key
    try:
        content = path.read_bytes()
        if decode(Versioned, content).version != VERSION:
            return None
        found = decode(Results, content)
        if found.step != step or not found.checkpoint or not all(one.translations for one in found.translation):
            raise ValueError("it does not name its checkpoint")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise damaged(path, error) from None
    return found


def read_all_results(run: Run) -> list[Results]:
    """Those of all steps, oldest first, whether their checkpoints still exist. Raises InputError as `read_results`."""
    names = {path.parent.name for path in run.folder.glob(f"evaluations/step-*/{_RESULTS}")}
    if run.store is not None:
        keys = [key.split("/") for key in run.store.sizes("evaluations/")]
        names |= {key[1] for key in keys if key[2:] == [_RESULTS]}
    steps = sorted(int(number) for name in names if (number := name.removeprefix("step-")).isdecimal())
    return [found for step in steps if (found := read_results(run, step)) is not None]


def with_earlier(run: Run, new: Results) -> Results:
    """What earlier evaluations left of the checkpoint of `new`; `new` if they are of another one of its step."""
    found = read_results(run, new.step)
    return found if found is not None and found.checkpoint == new.checkpoint else new


def add_results(
    run: Run,
    new: Results,
    *,
    translation: Sequence[SetScores] = (),
    reasoning: Mapping[str, TaskScores] | None = None,
    contamination: Mapping[str, SetContamination] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Results:
    """Merge the results of an evaluation into those that others stored meanwhile; return all.

    `new` are those of `new_results`. Stored results of another checkpoint are dropped. `files` are contents of
    translations by their names. In a bucket, results that another machine adds at the same moment may be lost; the
    next evaluation that needs them computes them again.
    """
    place = results_folder(new.step)
    folder = run.folder / place
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        results = with_earlier(run, new)
        entries = {entry.translations: entry for entry in results.translation}
        for entry in translation:
            entries[entry.translations] = _with_comet(entry, entries.get(entry.translations))
        results = replace(
            results,
            translation=tuple(entries[name] for name in sorted(entries)),
            reasoning=dict(sorted({**results.reasoning, **(reasoning or {})}.items())),
            contamination=results.contamination if contamination is None else contamination,
        )
        for name, content in (files or {}).items():
            run.publish(f"{place}/{name}", content)
        run.publish(f"{place}/{_RESULTS}", encode_results(results))
    return results


def _with_comet(entry: SetScores, known: SetScores | None) -> SetScores:
    """An entry with the scores that COMET models of another evaluation gave the same translations and references."""
    if known is None or not entry.has_translations_of(known, "sha256"):
        return entry
    return replace(entry, comet={**known.comet, **entry.comet})
