"""Score the completions of a task, and say the scores in a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataengine.config.training import EvaluateConfig
from trainer.evaluation.decode import Completion, Decoding
from trainer.evaluation.metrics import score_translations
from trainer.evaluation.results import Score, SetScores
from trainer.evaluation.tasks import Task


def score_task(
    task: Task,
    completions: Sequence[Completion],
    fingerprint: str,
    *,
    settings: EvaluateConfig,
    decoding: Decoding,
    context: int,
) -> SetScores:
    """An entry of results.json, but for COMET and the hash of the translations; `context` is the model's, in tokens."""
    texts = task.texts
    scores = score_translations(
        texts.sources,
        [one.text for one in completions],
        texts.references,
        texts.direction,
        tokenize=settings.bleu_tokenize,
        bootstrap=settings.bootstrap,
    )
    counts = {
        **scores.counts,
        "source_cut": task.prompts.source_cut,
        "unfinished": sum(one.unfinished for one in completions),
        "longer_than_context": sum(len(ids) + decoding.max_new_tokens > context for ids in task.prompts.ids),
    }
    return SetScores(
        set=task.set_name,
        direction=texts.direction,
        shots=task.shots,
        sentences=len(completions),
        files=texts.files,
        texts_sha256=texts.sha256,
        note=texts.note,
        decoding=decoding.describe(),
        prompt=task.shown,
        fingerprint=fingerprint,
        bleu=scores.bleu,
        chrf=scores.chrf,
        languages=scores.languages,
        languages_reason=scores.languages_reason,
        comet={},
        counts=counts,
        translations=f"{task.name}.jsonl",
    )


def describe_entry(checkpoint: str, entry: SetScores) -> str:
    """A line of results for people."""
    words = [f"{checkpoint} {entry.set} {entry.direction} {entry.shots}-shot: BLEU {_interval(entry.bleu)}"]
    words.append(f"chrF {_interval(entry.chrf)}")
    words += [f"{Path(model).name} {score.score:.4f}" for model, score in entry.comet.items()]
    if entry.languages and entry.languages.off_target is not None:
        words.append(f"off-target {entry.languages.off_target:.1%}")
    words += [f"{name.replace('_', ' ')} {count:,}" for name, count in entry.counts.items() if count]
    return ", ".join([*words, f"of {entry.sentences:,}"])


def _interval(score: Score) -> str:
    around = "" if score.low is None else f" [{score.low:.2f}, {score.high:.2f}]"
    return f"{score.score:.2f}{around}"
