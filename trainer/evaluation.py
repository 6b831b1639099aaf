"""Evaluate a checkpoint: translate sets, score the translations, run reasoning tasks, keep what is finished.

OUT/evaluations/step-00000040/   results.json, and the translations of each set as JSON lines
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import orjson
import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM

from dataengine.comet import CometScorer, hash_model, load_scorer
from dataengine.config import Config
from dataengine.contamination import check_contamination
from dataengine.errors import InputError
from dataengine.evaluation_sets import EvaluationSet, read_set
from dataengine.manifest import Manifest
from dataengine.pairs import translation_prompt
from dataengine.tokens import Tokenizer, load_tokenizer
from trainer.checkpoints import Checkpoint, check_model, fetch_checkpoint
from trainer.decoder import empty_model, load_weights
from trainer.export import save_tokenizer
from trainer.group import Group
from trainer.metrics import make_metrics, score_translations, summarize_comet
from trainer.reasoning import describe_task, expand_tasks, run_tasks
from trainer.runs import SMALL_FILES, check_config, open_run, parse_json, read_run_manifest
from trainer.translation import (
    Completion,
    Decoding,
    FinishedBatches,
    Prompts,
    Translator,
    choose_shots,
    make_prompts,
    plan_batches,
)

log = logging.getLogger(__name__)

_SEARCHED_BYTES = 10**9  # of a stream's sources, which take some minutes; more are left to `dataengine contamination`
_VERSION = 1  # of results.json; raise when the same prompts would be completed otherwise


@dataclass(frozen=True)
class Task:
    """A set in one direction with one number of examples, ready to be translated."""

    set_name: str
    texts: EvaluationSet
    shots: int
    prompts: Prompts
    shown: str  # a prompt with {source} in place of the sentence
    name: str  # of its files


class Evaluation:
    """What all checkpoints of a run are evaluated on, and with. All ranks make one, and call its methods together."""

    def __init__(self, config: Config, group: Group) -> None:
        """Raises InputError if the run or the tokenizer cannot be used."""
        settings = config.evaluate
        self.config, self.group = config, group
        self.run = open_run(config.out, config.cache)
        bos = config.bos if settings.bos is None else settings.bos
        self.decoding = Decoding(
            beams=settings.beams,
            length_penalty=settings.length_penalty,
            max_new_tokens=settings.max_new_tokens,
            max_source_tokens=settings.max_source_tokens,
            bos=bos,
        )
        self.tokenizer: Tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
        if bos and self.tokenizer.bos_id is None:
            raise InputError(f"`bos`: {config.tokenizer} has no token that begins a text. Set evaluate.bos to false.")
        group.together(lambda: self.run.fetch(*SMALL_FILES) if group.local_rank == 0 else None)
        self._texts: dict[tuple[str, str], EvaluationSet] = {}
        self._tasks: dict[str, list[Task]] = {}
        self._scorers: dict[str, CometScorer] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The run's; one that is followed from before its start has none yet. Raises InputError for another config."""
        self.run.fetch("manifest.json", "config.yaml")
        manifest = read_run_manifest(self.run.folder, self.run.url)
        check_config(self.config, self.run, manifest, self.tokenizer)
        return manifest

    def of(self, checkpoint: Checkpoint) -> CheckpointEvaluation:
        """That of one checkpoint."""
        return CheckpointEvaluation(self, checkpoint)

    def texts(self, set_name: str, direction: str) -> EvaluationSet:
        """`dev`, `test` or `examples` of the config in one direction, read once."""
        if (set_name, direction) not in self._texts:
            place = getattr(self.config.evaluate, set_name)[direction]
            limit = None if set_name == "examples" else self.config.evaluate.max_sentences
            self._texts[set_name, direction] = read_set(place, direction, limit)
        return self._texts[set_name, direction]

    def tasks(self, set_name: str) -> list[Task]:
        """All directions and numbers of examples of `dev` or `test`, made once. Raises InputError for unusable sets."""
        if set_name not in self._tasks:
            for direction in getattr(self.config.evaluate, set_name):
                make_metrics(direction, self.config.evaluate.bleu_tokenize)  # before hours of translation
            self._tasks[set_name] = [
                self._task(set_name, direction, shots)
                for direction in getattr(self.config.evaluate, set_name)
                for shots in self.config.evaluate.shots
            ]
        return self._tasks[set_name]

    def _task(self, set_name: str, direction: str, number: int) -> Task:
        settings, texts = self.config.evaluate, self.texts(set_name, direction)
        source, target = (self.config.languages[code] for code in direction.split("-"))
        pool: list[tuple[str, str]] = []
        if number:
            where = "examples" if direction in settings.examples else "dev"
            if where == "dev" and direction not in settings.dev:
                raise InputError(
                    f"`evaluate.shots` {number}: no examples for {direction}. Name them under evaluate.examples or dev."
                )
            taken = self.texts(where, direction)
            pool = list(zip(taken.sources, taken.references, strict=True))
        try:
            *shots, shown = choose_shots(pool, [*texts.sources, "{source}"], number)
        except ValueError as error:
            raise InputError(f"`evaluate.shots`, {direction}: {error}. Give more under evaluate.examples.") from None
        beams = self.decoding.beams
        return Task(
            set_name,
            texts,
            number,
            make_prompts(texts.sources, shots, (source, target), self.tokenizer, self.decoding),
            translation_prompt(source, "{source}", target, shown),
            f"{set_name}.{direction}.{number}-shot" + (f".beam{beams}" if beams > 1 else ""),
        )

    def scorer(self, model: str) -> CometScorer:
        """A COMET model on this rank's device, loaded once."""
        if model not in self._scorers:
            log.info("loading %s", model)
            self._scorers[model] = load_scorer(model, self.group.device, references=True)
        return self._scorers[model]

    @cached_property
    def contamination(self) -> dict[str, Any] | None:
        """Which sentences of the sets stand in the training streams; None if these cannot be looked at here."""

        def look() -> dict[str, Any]:
            sets = {
                f"{name} {direction}": self.texts(name, direction)
                for name in ("dev", "test")
                for direction in getattr(self.config.evaluate, name)
            }
            return check_contamination(self.config, sets, most_bytes=_SEARCHED_BYTES).describe()

        try:
            return self.group.first(look)
        except InputError as error:
            log.warning("not checked whether sentences of the sets are in the training streams: %s", error)
            return None


class CheckpointEvaluation:
    """One checkpoint's results, as far as they are known."""

    def __init__(self, evaluation: Evaluation, checkpoint: Checkpoint) -> None:
        self._of = evaluation
        self._group, self._run = evaluation.group, evaluation.run
        self._checkpoint = checkpoint
        self._place = f"evaluations/{checkpoint.folder.name}"
        self._folder = evaluation.run.folder / self._place
        self.results = self._group.first(self._read_results)

    def evaluate(self, sets: Sequence[str]) -> dict[str, Any]:
        """Do what is not done of `dev`, `test` and `reasoning`; results.json has it after every part."""
        for set_name in sets:
            if set_name == "reasoning":
                self._reason()
            else:
                for task in self._group.together(lambda name=set_name: self._of.tasks(name)):  # type: ignore[misc]
                    self._translate(task)
        self.results["contamination"] = self._of.contamination
        self._write_results()
        return self.results

    # Results.

    def _read_results(self) -> dict[str, Any]:
        """What an earlier evaluation of this checkpoint left; nothing of another one that had the same step."""
        self._run.fetch(f"{self._place}/results.json")
        path = self._folder / "results.json"
        if path.is_file():
            try:
                found = dict(parse_json(path.read_bytes()))
                known = [one["translations"] for one in found["translation"]]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is damaged ({error}). Remove it, and evaluate again.") from None
            if found.get("checkpoint") == self._checkpoint.identity and found.get("version") == _VERSION and all(known):
                return found
        manifest = self._of.manifest
        return {
            "version": _VERSION,
            "run": self._of.config.name,
            "step": self._checkpoint.step,
            "plan_id": self._checkpoint.plan_id,
            "checkpoint": self._checkpoint.identity,
            "tokens": self._checkpoint.step * manifest.batch_size * manifest.seq_len,
            "translation": [],
            "reasoning": {},
            "contamination": None,
        }

    def _write_results(self) -> None:
        content = json.dumps(self.results, indent=2, ensure_ascii=False).encode()
        self._group.first(lambda: self._run.publish(f"{self._place}/results.json", content))

    # Translation.

    def _translate(self, task: Task) -> None:
        batches = plan_batches(
            [len(ids) for ids in task.prompts.ids], self._of.decoding, self._of.config.evaluate.batch_tokens
        )
        fingerprint = _hash(
            [_VERSION, self._checkpoint.identity, task.prompts.ids, self._of.decoding.describe(), batches]
        )
        known = self._group.first(lambda: self._known(task, fingerprint))
        completions = known or self._complete(task, batches, fingerprint)
        entry = self._group.first(lambda: self._score(task, completions, fingerprint))
        self._add_comet(task, [one.text for one in completions], entry)
        rows = zip(task.texts.sources, task.texts.references, completions, strict=True)
        content = b"".join(
            orjson.dumps(
                {"source": source, "reference": reference, "hypothesis": one.text, "unfinished": one.unfinished}
            )
            + b"\n"
            for source, reference, one in rows
        )
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        others = [old for old in self.results["translation"] if old["translations"] != entry["translations"]]
        self.results["translation"] = sorted([*others, entry], key=lambda one: str(one["translations"]))
        if known is None:
            self._group.first(lambda: self._run.publish(f"{self._place}/{entry['translations']}", content))
        self._write_results()
        for path in self._folder.glob(self._partial(task, None).name):  # also of more ranks than there are now
            path.unlink(missing_ok=True)
        if self._group.rank == 0:
            print(describe_entry(self._checkpoint.folder.name, entry), flush=True)

    def _add_comet(self, task: Task, hypotheses: Sequence[str], entry: dict[str, Any]) -> None:
        """Scores of the config's COMET models, each sentence by one rank; what an earlier evaluation found is kept."""
        known = {one["translations"]: one for one in self.results["translation"]}.get(entry["translations"], {})
        for model in self._of.config.evaluate.comet:
            sha256 = self._group.first(lambda name=model: hash_model(name))  # type: ignore[misc]
            if (
                known.get("fingerprint") == entry["fingerprint"]
                and known["comet"].get(model, {}).get("sha256") == sha256
            ):
                entry["comet"][model] = known["comet"][model]
                continue
            scorer = self._group.together(lambda name=model: self._of.scorer(name))  # type: ignore[misc]
            mine = slice(self._group.rank, None, self._group.size)
            part = scorer.score(task.texts.sources[mine], hypotheses[mine], task.texts.references[mine])
            scores = np.empty(len(hypotheses), np.float32)
            for rank, found in enumerate(self._group.gather(part)):
                scores[rank :: self._group.size] = found
            entry["comet"][model] = summarize_comet(
                scores,
                sha256=sha256,
                needs_references=scorer.needs_references,
                bootstrap=self._of.config.evaluate.bootstrap,
            )

    def _known(self, task: Task, fingerprint: str) -> list[Completion] | None:
        """Completions that an earlier evaluation finished."""
        name = f"{task.name}.jsonl"
        entry = next((one for one in self.results["translation"] if one["translations"] == name), None)
        if entry is None or entry["fingerprint"] != fingerprint:
            return None
        self._run.fetch(f"{self._place}/{name}")
        try:
            content = (self._folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
                raise ValueError("its content is not what was written")
            rows = [orjson.loads(line) for line in content.splitlines()]
            found = [Completion(row["hypothesis"], row["unfinished"]) for row in rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be used (%s): translating again", self._folder / name, error)
            return None
        return found if len(found) == len(task.texts.sources) else None

    def _complete(self, task: Task, batches: Sequence[Sequence[int]], fingerprint: str) -> list[Completion]:
        """Completions of all prompts: every rank does its part of the batches that are not finished."""
        self._folder.mkdir(parents=True, exist_ok=True)
        here = {}
        for path in self._folder.glob(self._partial(task, None).name):
            here.update(FinishedBatches(path, fingerprint).read())
        finished = {number: done for part in self._group.gather(here) for number, done in part.items()}
        missing = [number for number in range(len(batches)) if number not in finished]
        if missing:
            translator = self._group.together(lambda: self._translator)
            mine = missing[self._group.rank :: self._group.size]
            keep = FinishedBatches(self._partial(task, self._group.rank), fingerprint)
            new = {}
            of_ranks = f" (rank 0 of {self._group.size})" if self._group.size > 1 else ""
            with tqdm(
                total=sum(len(batches[number]) for number in mine),
                desc=f"{self._checkpoint.folder.name} {task.name}{of_ranks}",
                unit="sentence",
                disable=None if self._group.rank == 0 else True,
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
        """The checkpoint's, on this rank's device. Raises InputError if it is damaged or of another config."""
        group, checkpoint = self._group, self._checkpoint
        check_model(self._of.config.model, checkpoint)
        export = self._run.folder / "exports" / checkpoint.folder.name
        if checkpoint.local and not checkpoint.folder.is_dir() and export.is_dir():  # removed since it was exported
            model = LlamaForCausalLM.from_pretrained(export)
        else:
            problems = group.together(
                lambda: fetch_checkpoint(self._run, checkpoint, group.local_rank, group.local_size)
            )
            if found := [problem for part in group.gather(problems) for problem in part]:
                raise InputError(f"{found[0]}. Restore this checkpoint or remove it, or take another one with --step")
            model = empty_model(self._of.config.model, self._of.manifest)
            load_weights(model, checkpoint)
        if "cuda" in group.device:
            for parameter in model.parameters():  # buffers, such as the frequencies of the rotary embedding, stay fp32
                parameter.data = parameter.data.to(torch.bfloat16)
        placed: Any = model
        return cast(LlamaForCausalLM, placed.to(group.device).eval())

    # Reasoning.

    def _reason(self) -> None:
        """Run the tasks that have no result, each on one rank; results.json has every one as it is done."""
        settings, group = self._of.config.evaluate, self._group
        names = expand_tasks(settings.reasoning)
        known: dict[str, Any] = self.results["reasoning"]
        missing = [name for name in names if known.get(name, {}).get("bos") != self._of.decoding.bos]
        if missing:
            group.together(lambda: self.model)  # on every rank, also where there are fewer tasks than ranks
        for first in range(0, len(missing), group.size):
            mine = missing[first + group.rank : first + group.rank + 1]
            for found in group.gather(group.together(lambda names=mine: self._run_tasks(names))):  # type: ignore[misc]
                known.update(found)
            self._write_results()
            if group.rank == 0:
                for name in missing[first : first + group.size]:
                    print(f"{self._checkpoint.folder.name} {name}: {describe_task(known[name])}", flush=True)
        self.results["reasoning"] = {name: known[name] for name in sorted(known)}

    def _run_tasks(self, names: Sequence[str]) -> dict[str, Any]:
        if not names:
            return {}
        settings = self._of.config.evaluate
        with TemporaryDirectory() as folder:
            save_tokenizer(self._of.config, self._of.manifest, Path(folder))
            return run_tasks(
                self.model,
                Path(folder),
                names,
                task_folder=settings.task_folder,
                bos=self._of.decoding.bos,
                batch_size=max(1, settings.batch_tokens // self._of.manifest.seq_len),
            )

    # Scores.

    def _score(self, task: Task, completions: Sequence[Completion], fingerprint: str) -> dict[str, Any]:
        """An entry of results.json, but for COMET."""
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
            **scores.pop("counts"),
            "source_cut": task.prompts.source_cut,
            "unfinished": sum(one.unfinished for one in completions),
            "longer_than_context": sum(len(ids) + decoding.max_new_tokens > context for ids in task.prompts.ids),
        }
        return {
            "set": task.set_name,
            "direction": texts.direction,
            "shots": task.shots,
            "sentences": len(completions),
            "files": list(texts.files),
            "texts_sha256": texts.sha256,
            "note": texts.note,
            "decoding": decoding.describe(),
            "prompt": task.shown,
            "fingerprint": fingerprint,
            **scores,
            "comet": {},
            "counts": counts,
            "translations": f"{task.name}.jsonl",
        }


def describe_entry(checkpoint: str, entry: Mapping[str, Any]) -> str:
    """A line of results for people."""
    bleu, chrf, languages, counts = entry["bleu"], entry["chrf"], entry["languages"], entry["counts"]
    words = [f"{checkpoint} {entry['set']} {entry['direction']} {entry['shots']}-shot: BLEU {_interval(bleu)}"]
    words.append(f"chrF {_interval(chrf)}")
    words += [f"{Path(model).name} {score['score']:.4f}" for model, score in entry["comet"].items()]
    if languages and languages["off_target"] is not None:
        words.append(f"off-target {languages['off_target']:.1%}")
    words += [f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count]
    return ", ".join([*words, f"of {entry['sentences']:,}"])


def _interval(score: Mapping[str, Any]) -> str:
    around = "" if score["low"] is None else f" [{score['low']:.2f}, {score['high']:.2f}]"
    return f"{score['score']:.2f}{around}"


def _hash(content: Any) -> str:
    return hashlib.sha256(orjson.dumps(content)).hexdigest()
