"""OUT/evaluations/step-00000040/: results.json, and the translations of each set as JSON lines. Does not need torch.

Several evaluations of one checkpoint may run at the same time, with different sets or settings: each adds its results
to the existing ones.
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

VERSION = 2  # of results.json; raise it if completions of equal prompts change
_READABLE = (1, VERSION)  # 1: without checkpoint, log, and the hashes of translations
_RESULTS = "results.json"
METRICS = ("acc", "acc_norm")  # of reasoning tasks

T = TypeVar("T")
Plain = str | bool | int | float | None
LogRows = Mapping[int, Mapping[str, str]]


@dataclass(frozen=True)
class Score:
    """A corpus score with its 95 % interval, if that was computed."""

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
    """The mean score of a COMET model, and the identity of the model."""

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
        """The identity of the model: different for another model of the same name."""
        return self.sha256


@dataclass(frozen=True)
class Languages:
    """Counts of answers by language, among those that are long enough to identify."""

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
    """One sentence of a set with its translation by a checkpoint: a line of a file of translations."""

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
    """The scores of a checkpoint on one set, in one direction, with one number of examples and way of decoding."""

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
        """Number of beams of the search; 1 is greedy."""
        beams = self.decoding["beams"]
        assert isinstance(beams, int)
        return beams

    def line(self, checkpoint: str) -> str:
        """Format all scores in one line, after the name of the checkpoint."""
        words = [f"{checkpoint} {self.set} {self.direction} {self.shots}-shot: BLEU {self.bleu}", f"chrF {self.chrf}"]
        words += [f"{Path(model).name} {score.score:.4f}" for model, score in self.comet.items()]
        if self.languages and self.languages.off_target is not None:
            words.append(f"off-target {self.languages.off_target:.1%}")
        words += [f"{name.replace('_', ' ')} {count:,}" for name, count in self.counts.items() if count]
        return ", ".join([*words, f"of {self.sentences:,} sentences"])

    def has_translations_of(self, other: SetScores, *keys: str) -> bool:
        """Return whether both have the same translations and references."""
        names = ("fingerprint", "texts_sha256", *keys)
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Accuracies of one reasoning task that lm-eval reports, and everything that they depend on."""

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
    """The number of sentences of a set that are in the training streams."""

    sentences: int
    """Sentences of the set."""
    contaminated: int
    """Sentences that occur in the training streams."""
    by_stream: Mapping[str, int]
    """The same for each stream."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """results.json: all results of one checkpoint."""

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
        """Return the entry whose translations are in the file `name`."""
        return next((one for one in self.translation if one.translations == name), None)


def results_folder(step: int) -> str:
    """Return the folder of the results of the checkpoint after `step` steps, relative to the run."""
    return f"evaluations/step-{step:08d}"


def new_results(name: str, checkpoint: Checkpoint, rows: LogRows, tokens: int) -> Results:
    """Return empty results for a checkpoint of the run `name`, trained on `tokens` tokens."""
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
    """Return, by steps trained, the log's values that distinguish one training from another; empty without a log."""
    try:
        content = (run.folder / "log.csv").read_bytes() if run.store is None else run.store.read("log.csv")
    except FileNotFoundError:
        return {}
    keys = ("loss", "grad_norm", "digest")
    return {int(row["step"]) + 1: {key: row.get(key) or "" for key in keys} for row in parse_rows(content)[0]}


def is_of_run(results: Results, checkpoints: Mapping[int, Checkpoint], rows: LogRows, plan_id: str) -> bool:
    """Return whether results belong to this run's checkpoint of their step, not to one of another training.

    `checkpoints` are the existing ones, by step. A removed checkpoint is identified by its row of the log. Its plan is
    used instead if there is no log, or if the log has later rows but lost this one.
    """
    step = results.step
    if step in checkpoints:
        return checkpoints[step].identity == results.checkpoint
    lost = not rows or (step not in rows and max(rows) > step)
    if results.log is None or lost:
        return results.plan_id == plan_id
    return results.log == rows.get(step)


def damaged(path: Path, error: Exception) -> InputError:
    """Return the error for an unreadable file of an evaluation."""
    return InputError(f"{path} is damaged ({error}). Remove it, and evaluate again.")


def read_any_results(path: Path) -> Results:
    """Read results.json of this version or an older one. Raises InputError if it is damaged or has another version."""
    return read_versioned(path, Results, _READABLE)


def read_versioned(path: Path, kind: type[T], versions: Sequence[int]) -> T:
    """Read a file of an evaluation. Raises InputError if it is damaged or has none of these versions."""
    content = path.read_bytes()
    try:
        version = decode(Versioned, content).version
        if version in versions:
            return decode(kind, content)
    except ValueError as error:
        raise damaged(path, error) from None
    known = " and ".join(map(str, versions))
    raise InputError(f"{path} has version {version}, this program reads {known}. Evaluate again.")


def read_translations(path: Path, sentences: int) -> list[Translation]:
    """Read the translations of a set. Raises OSError or ValueError for damage or another number."""
    found = decode_lines(Translation, path.read_bytes())
    if len(found) != sentences:
        raise ValueError(f"{len(found):,} sentences instead of {sentences:,}")
    return found


def encode_translations(translations: Sequence[Translation]) -> bytes:
    """Return translations as JSON lines."""
    return b"".join(orjson.dumps(one) + b"\n" for one in translations)


def encode_results(results: Results) -> bytes:
    """Return the content of results.json."""
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
    """Return the results of a step; None if missing or of another version. Raises InputError if damaged."""
    key = f"{results_folder(step)}/{_RESULTS}"
    run.fetch(key)
    path = run.folder / key
    try:
        content = path.read_bytes()
        if decode(Versioned, content).version != VERSION:
            return None
        found = decode(Results, content)
        if found.step != step or not found.checkpoint or not all(one.translations for one in found.translation):
            raise ValueError("it does not identify its checkpoint and translations")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise damaged(path, error) from None
    return found


def read_all_results(run: Run) -> list[Results]:
    """Return the results of all steps, oldest first, even without checkpoints. Raises errors of `read_results`."""
    names = {path.parent.name for path in run.folder.glob(f"evaluations/step-*/{_RESULTS}")}
    if run.store is not None:
        keys = [key.split("/") for key in run.store.sizes("evaluations/")]
        names |= {key[1] for key in keys if key[2:] == [_RESULTS]}
    steps = sorted(int(number) for name in names if (number := name.removeprefix("step-")).isdecimal())
    return [found for step in steps if (found := read_results(run, step)) is not None]


def with_earlier(run: Run, new: Results) -> Results:
    """Return the results of earlier evaluations of the checkpoint of `new`; `new` if there are none."""
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
    """Add results of an evaluation to those of its checkpoint, which others may change meanwhile; return them all.

    `new` comes from `new_results`. Existing results of another checkpoint of the same step are dropped. `files` maps
    file names to translations. In a bucket, results that another machine adds at the same moment may be lost; they are
    computed again when requested.
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
    """Return an entry with the COMET scores of another evaluation, if it has the same translations and references."""
    if known is None or not entry.has_translations_of(known, "sha256"):
        return entry
    return replace(entry, comet={**known.comet, **entry.comet})
