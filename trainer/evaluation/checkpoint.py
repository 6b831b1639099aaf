"""One checkpoint's evaluation: translate, score, run reasoning tasks, keep what is finished."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.distributed.checkpoint.api import CheckpointException
from tqdm import tqdm
from transformers import LlamaForCausalLM

from dataengine.errors import InputError
from trainer.checkpoints.fetch import fetch_checkpoint
from trainer.checkpoints.marker import Checkpoint, CheckpointError, check_model
from trainer.checkpoints.retention import lease
from trainer.evaluation.decode import Completion, Translator
from trainer.evaluation.journal import FinishedBatches
from trainer.evaluation.metrics import score_translations, summarize_comet
from trainer.evaluation.reasoning import describe_task, made_of, run_tasks
from trainer.evaluation.results import (
    CometScore,
    Results,
    Score,
    SetScores,
    TaskScores,
    Translation,
    add_results,
    encode_translations,
    read_translations,
    results_folder,
    with_earlier,
)
from trainer.evaluation.tasks import Task
from trainer.huggingface.export import export_folder, save_tokenizer
from trainer.model.decoder import empty_model, load_weights
from trainer.run.folder import parse_json

if TYPE_CHECKING:
    from trainer.evaluation.evaluator import Evaluation

log = logging.getLogger(__name__)


class CheckpointEvaluation:
    """One checkpoint's results, as far as they are known. Several may be made of one checkpoint at once."""

    def __init__(self, evaluation: Evaluation, checkpoint: Checkpoint | None, new: Results) -> None:
        """`checkpoint` is None if it is gone; `new` says what the results are of (`new_results`)."""
        self._of = evaluation
        self._group, self._run = evaluation.group, evaluation.run
        self._checkpoint, self._new = checkpoint, new
        self._identity = new.checkpoint
        self._place = results_folder(new.step)
        self._name = self._place.rpartition("/")[2]
        self._folder = evaluation.run.folder / self._place
        self.results = self._group.run_on_rank0(lambda: with_earlier(self._run, new))

    def evaluate(self, sets: Sequence[str]) -> Results:
        """Do what is not done of `dev`, `test` and `reasoning`; results.json has it after every part.

        Raises CheckpointError if the checkpoint is needed and cannot be read.
        """
        for set_name in sets:
            if set_name == "reasoning":
                self._reason()
            else:
                for task in self._group.run_on_all(lambda name=set_name: self._of.tasks(name)):  # type: ignore[misc]
                    self._translate(task)
        self._add(contamination=self._of.contamination)
        return self.results

    def lease(self) -> AbstractContextManager[None]:
        """Inside the block no training of this machine removes the checkpoint, if it exists."""
        return nullcontext() if self._checkpoint is None else lease(self._checkpoint)

    # Results.

    def _add(self, **parts: Any) -> None:
        """Add parts to results.json, as `add_results` takes them."""
        self.results = self._group.run_on_rank0(lambda: add_results(self._run, self._new, **parts))

    # Translation.

    def _translate(self, task: Task) -> None:
        fingerprint = task.fingerprint(self._identity)
        known = self._group.run_on_rank0(lambda: self._known(task, fingerprint))
        completions = known or self._complete(task, fingerprint)
        entry = self._group.run_on_rank0(lambda: self._score(task, completions, fingerprint))
        rows = zip(task.texts.sources, task.texts.references, completions, strict=True)
        content = encode_translations(
            [Translation(source, reference, one.text, one.unfinished) for source, reference, one in rows]
        )
        comet = self._score_comet(task, [one.text for one in completions], entry)
        entry = replace(entry, comet=comet, sha256=hashlib.sha256(content).hexdigest())
        self._add(translation=[entry], files={} if known else {entry.translations: content})
        for path in self._folder.glob(self._partial(task, None).name):  # also of more ranks than there are now
            path.unlink(missing_ok=True)
        if self._group.ranks.rank == 0:
            print(describe_entry(self._name, entry), flush=True)

    def _score_comet(self, task: Task, hypotheses: Sequence[str], entry: SetScores) -> dict[str, CometScore]:
        """Scores of the config's COMET models, each sentence by one rank; what an earlier evaluation found is kept."""
        earlier = self.results.at(entry.translations)
        known = earlier.comet if earlier and earlier.has_translations_of(entry) else {}
        comet: dict[str, CometScore] = {}
        for model in self._of.config.evaluate.comet:
            sha256 = self._group.run_on_rank0(lambda name=model: self._of.comet_hash(name))  # type: ignore[misc]
            if model in known and known[model].sha256 == sha256:
                comet[model] = known[model]
                continue
            scorer = self._group.run_on_all(lambda name=model: self._of.scorer(name))  # type: ignore[misc]
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
        """Completions that an earlier evaluation finished."""
        name = f"{task.name}.jsonl"
        entry = self.results.at(name)
        if entry is None or entry.fingerprint != fingerprint:
            return None
        self._run.fetch(f"{self._place}/{name}")
        path = self._folder / name
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
                raise ValueError("its content is not what was written")
            found = read_translations(path, len(task.texts.sources))
        except (OSError, ValueError) as error:
            log.warning("%s cannot be used (%s): translating again", path, error)
            return None
        return [Completion(one.hypothesis, one.unfinished) for one in found]

    def _complete(self, task: Task, fingerprint: str) -> list[Completion]:
        """Completions of all prompts: every rank does its part of the batches that are not finished."""
        batches = task.batches
        self._folder.mkdir(parents=True, exist_ok=True)
        here = {}
        for path in self._folder.glob(self._partial(task, None).name):
            here.update(FinishedBatches(path, fingerprint).read())
        finished = {number: done for part in self._group.gather(here) for number, done in part.items()}
        missing = [number for number in range(len(batches)) if number not in finished]
        if missing:
            translator = self._group.run_on_all(lambda: self._translator)
            mine = missing[self._group.ranks.rank :: self._group.ranks.world_size]
            keep = FinishedBatches(self._partial(task, self._group.ranks.rank), fingerprint)
            new = {}
            of_ranks = f" (rank 0 of {self._group.ranks.world_size})" if self._group.ranks.world_size > 1 else ""
            with tqdm(
                total=sum(len(batches[number]) for number in mine),
                desc=f"{self._name} {task.name}{of_ranks}",
                unit="sentence",
                disable=None if self._group.ranks.rank == 0 else True,
            ) as bar:
                target = self._of.config.languages[task.texts.direction.split("-")[1]]
                for number in mine:
                    new[number] = translator.complete([task.prompts.ids[k] for k in batches[number]], target)
                    keep.add(number, new[number])
                    bar.update(len(new[number]))
            for part in self._group.gather(new):
                finished.update(part)
        completions: list[Any] = [None] * len(task.prompts.ids)
        for number, numbers in enumerate(batches):
            for k, completion in zip(numbers, finished[number], strict=True):
                completions[k] = completion
        return completions

    def _partial(self, task: Task, rank: int | None) -> Path:
        """Where a rank keeps finished batches; None: a pattern for all ranks."""
        return self._folder / f".{task.name}.rank{'*' if rank is None else rank}.partial"

    @cached_property
    def _translator(self) -> Translator:
        return Translator(self.model, self._of.tokenizer, self._of.decoding)

    @cached_property
    def model(self) -> LlamaForCausalLM:
        """The checkpoint's, on this rank's device, or that of its export.

        Raises CheckpointError if the checkpoint is gone or damaged and has no export, InputError for another config.
        """
        problem = self._fetch()
        model = self._group.run_on_all(lambda: self._exported(problem) if problem else self._loaded())
        if "cuda" in self._group.ranks.device:
            for parameter in model.parameters():  # buffers, such as the frequencies of the rotary embedding, stay fp32
                parameter.data = parameter.data.to(torch.bfloat16)
        placed: Any = model
        return cast(LlamaForCausalLM, placed.to(self._group.ranks.device).eval())

    def _fetch(self) -> str:
        """Bring the checkpoint's files to this node; what is wrong with them, or nothing. The same on all ranks."""
        group, checkpoint = self._group, self._checkpoint
        if checkpoint is None:
            return f"{self._run.url} has no checkpoint of {self._new.step} steps any more"
        check_model(self._of.config.model, checkpoint)
        share, shares = group.ranks.local_rank, group.ranks.local_world_size
        found = group.run_on_all(lambda: fetch_checkpoint(self._run, checkpoint, share, shares))
        return next((problem for part in group.gather(found) for problem in part), "")

    def _loaded(self) -> LlamaForCausalLM:
        assert self._checkpoint is not None
        model = empty_model(self._of.config.model, self._of.manifest)
        try:
            load_weights(model, self._checkpoint)
        except InputError as error:
            raise CheckpointError(str(error)) from None
        except CheckpointException:
            if all((self._checkpoint.folder / name).is_file() for name in self._checkpoint.files):
                raise
            raise CheckpointError(f"{self._checkpoint.place} was removed while it was read") from None
        return model

    def _exported(self, problem: str) -> LlamaForCausalLM:
        """The model of the checkpoint's export. Raises CheckpointError, which says `problem`, if there is none."""
        folder = export_folder(self._run, self._new.step)
        try:
            made_of = parse_json((folder / "export.json").read_bytes())["checkpoint"]
        except FileNotFoundError:  # nothing, or an export of an older version
            gone = self._checkpoint is None or not self._checkpoint.folder.is_dir()
            made_of = self._identity if gone and folder.is_dir() else None
            if made_of:
                log.warning("%s; its export %s does not say what it was made of, and is used", problem, folder)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{problem}, and {folder}/export.json is damaged ({error})") from None
        if made_of is None:
            raise CheckpointError(problem)
        if made_of != self._identity:
            raise CheckpointError(f"{problem}, and the export {folder} is of another checkpoint")
        return cast(LlamaForCausalLM, LlamaForCausalLM.from_pretrained(folder))

    # Reasoning.

    def _reason(self) -> None:
        """Run the tasks that have no result, each on one rank; results.json has every one as it is done."""
        group, names = self._group, self._of.task_names
        now = group.run_on_rank0(lambda: {name: self._made_of(name) for name in names})
        known = self.results.reasoning
        missing = [name for name in names if name not in known or known[name].made_of != now[name]]
        if missing:
            group.run_on_all(lambda: self.model)  # on every rank, also where there are fewer tasks than ranks
        for first in range(0, len(missing), group.ranks.world_size):
            mine = missing[first + group.ranks.rank : first + group.ranks.rank + 1]
            new: dict[str, TaskScores] = {}
            for found in group.gather(group.run_on_all(lambda names=mine: self._run_tasks(names))):  # type: ignore[misc]
                new.update(found)
            self._add(reasoning=new)
            if group.ranks.rank == 0:
                for name in new:
                    print(f"{self._name} {name}: {describe_task(new[name])}", flush=True)

    def _made_of(self, name: str) -> dict[str, Any]:
        """What a task's result depends on beside the checkpoint."""
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
            save_tokenizer(self._of.config, self._of.manifest, Path(folder))
            found = run_tasks(
                self.model,
                Path(folder),
                names,
                manager=self._of.task_manager,
                bos=self._of.decoding.bos,
                batch_size=max(1, self._of.config.evaluate.batch_tokens // self._of.manifest.seq_len),
            )
        # Again: the data may have come from the hub meanwhile.
        return {name: replace(scores, made_of=self._made_of(name)) for name, scores in found.items()}

    # Scores.

    def _score(self, task: Task, completions: Sequence[Completion], fingerprint: str) -> SetScores:
        """An entry of results.json, but for COMET and the hash of the translations."""
        settings, decoding = self._of.config.evaluate, self._of.decoding
        texts = task.texts
        scores = score_translations(
            texts.sources,
            [one.text for one in completions],
            texts.references,
            texts.direction,
            tokenize=settings.bleu_tokenize,
            bootstrap=settings.bootstrap,
        )
        context = self._of.manifest.seq_len
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
