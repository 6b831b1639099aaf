"""Evaluate one checkpoint: translate, score, run reasoning tasks, and keep finished parts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from trainer.checkpoints.find import all_checkpoints
from trainer.checkpoints.marker import Checkpoint
from trainer.checkpoints.retention import lease
from trainer.evaluation.decode import Completion, Translator
from trainer.evaluation.evaluator import Evaluation
from trainer.evaluation.journal import Journal, complete_task
from trainer.evaluation.metrics import summarize_comet
from trainer.evaluation.reasoning import describe_task, made_of, run_tasks
from trainer.evaluation.results import (
    CometScore,
    Results,
    SetScores,
    TaskScores,
    Translation,
    add_results,
    encode_translations,
    new_results,
    read_log_rows,
    read_translations,
    results_folder,
    with_earlier,
)
from trainer.evaluation.tasks import Task
from trainer.evaluation.weights import Weights
from trainer.huggingface.export import save_tokenizer

log = logging.getLogger(__name__)


class CheckpointEvaluation:
    """The evaluation of one checkpoint. Several may run for one checkpoint at the same time."""

    @classmethod
    def of(cls, evaluation: Evaluation, checkpoint: Checkpoint) -> CheckpointEvaluation:
        """Return the evaluation of a checkpoint."""
        run, manifest = evaluation.run, evaluation.manifest
        tokens = checkpoint.step * manifest.batch_size * manifest.seq_len
        new = evaluation.group.run_on_rank0(
            lambda: new_results(evaluation.config.name, checkpoint, read_log_rows(run), tokens)
        )
        return cls(evaluation, checkpoint, new)

    @classmethod
    def of_results(cls, evaluation: Evaluation, results: Results) -> CheckpointEvaluation:
        """Return the evaluation of a checkpoint with results; its export is used if it no longer exists."""
        found = evaluation.group.run_on_rank0(lambda: all_checkpoints(evaluation.run))
        same = next((one for one in found if one.identity == results.checkpoint), None)
        return cls(evaluation, same, results)

    def __init__(self, evaluation: Evaluation, checkpoint: Checkpoint | None, new: Results) -> None:
        """`checkpoint` is None if it no longer exists; `new` identifies it (`new_results`)."""
        self._of = evaluation
        self._group, self._run = evaluation.group, evaluation.run
        self._checkpoint, self._new = checkpoint, new
        self._identity = new.checkpoint
        self._place = results_folder(new.step)
        self._name = self._place.rpartition("/")[2]
        self._folder = evaluation.run.folder / self._place
        self.results = self._group.run_on_rank0(lambda: with_earlier(self._run, new))

    def evaluate(self, sets: Sequence[str]) -> Results:
        """Run the missing parts of `dev`, `test` and `reasoning`; results.json is updated after each part.

        Raises CheckpointError if the checkpoint is needed but cannot be read.
        """
        for set_name in sets:
            if set_name == "reasoning":
                self._reason()
            else:
                for task in self._group.run_on_all(partial(self._of.tasks.all, set_name)):
                    self._translate(task)
        self._add(contamination=self._of.contamination)
        return self.results

    def lease(self) -> AbstractContextManager[None]:
        """Inside the block, keep a training on this machine from removing the checkpoint, if it exists."""
        return nullcontext() if self._checkpoint is None else lease(self._checkpoint)

    # Results.

    def _add(self, **parts: Any) -> None:
        """Add parts to results.json (arguments of `add_results`)."""
        self.results = self._group.run_on_rank0(lambda: add_results(self._run, self._new, **parts))

    # Translation.

    def _translate(self, task: Task) -> None:
        fingerprint = task.fingerprint(self._identity)
        known = self._group.run_on_rank0(lambda: self._known(task, fingerprint))
        target = self._of.config.languages[task.texts.direction.split("-")[1]]
        journal = Journal(self._folder, task.name, fingerprint)
        completions = known or complete_task(task, lambda: self._translator, target, self._group, journal)
        settings, decoding, context = self._of.config.evaluate, self._of.decoding, self._of.manifest.seq_len
        entry = self._group.run_on_rank0(
            lambda: task.score(completions, fingerprint, settings=settings, decoding=decoding, context=context)
        )
        rows = zip(task.texts.sources, task.texts.references, completions, strict=True)
        content = encode_translations(
            [Translation(source, reference, one.text, one.unfinished) for source, reference, one in rows]
        )
        comet = self._score_comet(task, [one.text for one in completions], entry)
        entry = replace(entry, comet=comet, sha256=hashlib.sha256(content).hexdigest())
        self._add(translation=[entry], files={} if known else {entry.translations: content})
        journal.remove()
        if self._group.ranks.rank == 0:
            print(entry.line(self._name), flush=True)

    def _score_comet(self, task: Task, hypotheses: Sequence[str], entry: SetScores) -> dict[str, CometScore]:
        """Score with the config's COMET models, each sentence on one rank; reuse scores of earlier evaluations."""
        earlier = self.results.at(entry.translations)
        known = earlier.comet if earlier and earlier.has_translations_of(entry) else {}
        comet: dict[str, CometScore] = {}
        for model in self._of.config.evaluate.comet:
            sha256 = self._group.run_on_rank0(partial(self._of.comet_hash, model))
            if model in known and known[model].sha256 == sha256:
                comet[model] = known[model]
                continue
            scorer = self._group.run_on_all(partial(self._of.scorer, model))
            mine = slice(self._group.ranks.rank, None, self._group.ranks.world_size)
            part = scorer.score(task.texts.sources[mine], hypotheses[mine], task.texts.references[mine])
            scores = np.empty(len(hypotheses), np.float32)
            for rank, found in enumerate(self._group.gather(part)):
                scores[rank :: self._group.ranks.world_size] = found
            comet[model] = summarize_comet(
                scores,
                sha256=sha256,
                needs_references=scorer.needs_references,
                bootstrap=self._of.config.evaluate.bootstrap,
            )
        return comet

    def _known(self, task: Task, fingerprint: str) -> list[Completion] | None:
        """Return the completions of an earlier evaluation; None if there are none, or if they are damaged."""
        name = f"{task.name}.jsonl"
        entry = self.results.at(name)
        if entry is None or entry.fingerprint != fingerprint:
            return None
        self._run.fetch(f"{self._place}/{name}")
        path = self._folder / name
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
                raise ValueError("its content has changed since it was written")
            found = read_translations(path, len(task.texts.sources))
        except (OSError, ValueError) as error:
            log.warning("%s cannot be used (%s): translating again", path, error)
            return None
        return [Completion(one.hypothesis, one.unfinished) for one in found]

    @cached_property
    def _translator(self) -> Translator:
        return Translator(self.model, self._of.tokenizer, self._of.decoding)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model of the checkpoint or its export, on this rank's device. Raises errors of `Weights.load`."""
        return Weights(
            run=self._run,
            group=self._group,
            sizes=self._of.config.model,
            manifest=self._of.manifest,
            step=self._new.step,
            identity=self._identity,
            checkpoint=self._checkpoint,
        ).load()

    # Reasoning.

    def _reason(self) -> None:
        """Run the tasks without a result, each on one rank; results.json is updated after each task."""
        group, names = self._group, self._of.task_names
        now = group.run_on_rank0(lambda: {name: self._made_of(name) for name in names})
        known = self.results.reasoning
        missing = [name for name in names if name not in known or known[name].made_of != now[name]]
        if missing:
            group.run_on_all(lambda: self.model)  # on every rank, even with fewer tasks than ranks
        for first in range(0, len(missing), group.ranks.world_size):
            mine = missing[first + group.ranks.rank : first + group.ranks.rank + 1]
            new: dict[str, TaskScores] = {}
            for found in group.gather(group.run_on_all(partial(self._run_tasks, mine))):
                new.update(found)
            self._add(reasoning=new)
            if group.ranks.rank == 0:
                for name in new:
                    print(f"{self._name} {name}: {describe_task(new[name])}", flush=True)

    def _made_of(self, name: str) -> dict[str, Any]:
        """Return everything but the checkpoint that a task's result depends on."""
        return {
            **made_of(self._of.task_manager, name),
            "bos": self._of.decoding.bos,
            "context": self._of.manifest.seq_len,
            "tokenizer_sha256": self._of.tokenizer.sha256,
        }

    def _run_tasks(self, names: Sequence[str]) -> dict[str, TaskScores]:
        if not names:
            return {}
        with TemporaryDirectory() as folder:
            config = self._of.config
            save_tokenizer(config.tokenizer, self._of.tokenizer, self._of.manifest, Path(folder), bos=config.bos)
            found = run_tasks(
                self.model,
                Path(folder),
                names,
                manager=self._of.task_manager,
                bos=self._of.decoding.bos,
                batch_size=max(1, self._of.config.evaluate.batch_tokens // self._of.manifest.seq_len),
            )
        # Computed again, since the data may have been downloaded meanwhile.
        return {name: replace(scores, made_of=self._made_of(name)) for name, scores in found.items()}
