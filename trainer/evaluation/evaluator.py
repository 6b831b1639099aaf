"""Evaluate a checkpoint: translate sets, score the translations, run reasoning tasks, keep what is finished."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import orjson
import torch
from torch.distributed.checkpoint.api import CheckpointException
from tqdm import tqdm
from transformers import LlamaForCausalLM

from dataengine.cleaning.comet import CometScorer, hash_model, load_scorer
from dataengine.commands.contamination import check_contamination
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.records.evaluation_sets import EvaluationSet, read_set
from dataengine.schedule.manifest import Manifest
from dataengine.text.pairs import translation_prompt
from dataengine.text.tokenizers.load import Tokenizer, load_tokenizer
from trainer.checkpoints.find import Checkpoint, CheckpointError, all_checkpoints, check_model, fetch_checkpoint, lease
from trainer.evaluation.decode import (
    Completion,
    Decoding,
    FinishedBatches,
    Prompts,
    Translator,
    choose_shots,
    make_prompts,
    plan_batches,
)
from trainer.evaluation.metrics import make_metrics, score_translations, summarize_comet
from trainer.evaluation.reasoning import check_data, describe_task, expand_tasks, find_tasks, made_of, run_tasks
from trainer.evaluation.results import (
    VERSION,
    Results,
    add_results,
    is_of_run,
    new_results,
    read_all_results,
    read_log_rows,
    read_results,
    results_folder,
)
from trainer.export import export_folder, save_tokenizer
from trainer.model.decoder import empty_model, load_weights
from trainer.run.folder import SMALL_FILES, check_config, open_run, parse_json, read_run_manifest
from trainer.run.ranks import Group

log = logging.getLogger(__name__)

_SEARCHED_BYTES = 10**9  # of a stream's sources, which take some minutes; more are left to `dataengine contamination`


@dataclass(frozen=True)
class Task:
    """A set in one direction with one number of examples, ready to be translated."""

    set_name: str
    texts: EvaluationSet
    shots: int
    prompts: Prompts
    shown: str  # a prompt with {source} in place of the sentence
    name: str  # of its files
    batches: list[list[int]]  # numbers of prompts that are translated together
    completed_by: str  # SHA-256 of all that decides the completions, but for the checkpoint

    def fingerprint(self, checkpoint: str) -> str:
        """Of the completions of the checkpoint of an identity."""
        return _hash([self.completed_by, checkpoint])


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
        self._tasks: dict[tuple[str, str], list[Task]] = {}
        self._scorers: dict[str, CometScorer] = {}
        self._comet_hashes: dict[str, str] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The run's; one that is followed from before its start has none yet. Raises InputError for another config."""
        self.run.fetch("manifest.json", "config.yaml")
        manifest = read_run_manifest(self.run.folder, self.run.url)
        check_config(self.config, self.run, manifest, self.tokenizer)
        return manifest

    def of(self, checkpoint: Checkpoint) -> CheckpointEvaluation:
        """That of one checkpoint."""
        tokens = checkpoint.step * self.manifest.batch_size * self.manifest.seq_len
        new = self.group.first(lambda: new_results(self.config.name, checkpoint, read_log_rows(self.run), tokens))
        return CheckpointEvaluation(self, checkpoint, new)

    def of_results(self, results: Results) -> CheckpointEvaluation:
        """That of a checkpoint that was evaluated before, and may be gone; its export, if it has one, is not."""
        found = self.group.first(lambda: all_checkpoints(self.run))
        same = next((one for one in found if one.identity == results["checkpoint"]), None)
        return CheckpointEvaluation(self, same, results)

    def finished(self) -> list[Results]:
        """Results of all checkpoints of this run, gone ones too, with what was made on `dev` as it is set now.

        Call it on one rank. Raises InputError for damaged results.
        """
        checkpoints = {checkpoint.step: checkpoint for checkpoint in all_checkpoints(self.run)}
        rows = read_log_rows(self.run)
        found = []
        for results in read_all_results(self.run):
            if is_of_run(results, checkpoints, rows, self.manifest.plan_id):
                entries = [one for one in results["translation"] if self._is_current(one, results["checkpoint"])]
                found.append({**results, "translation": entries})
        return found

    def _is_current(self, entry: Mapping[str, Any], checkpoint: str) -> bool:
        """Whether an entry on `dev` is what the checkpoint of an identity would get now."""
        if entry["set"] != "dev" or entry["direction"] not in self.config.evaluate.dev:
            return False
        bleu, _ = make_metrics(entry["direction"], self.config.evaluate.bleu_tokenize)
        return any(
            entry["fingerprint"] == task.fingerprint(checkpoint)
            and entry["texts_sha256"] == task.texts.sha256
            and f"|tok:{bleu.tokenizer_signature}|" in entry["bleu"]["signature"]
            for task in self._tasks_of("dev", entry["direction"])
        )

    def check(self, sets: Sequence[str]) -> None:
        """Look at all that `dev`, `test` and `reasoning` need. Raises InputError with all that is wrong."""

        def look() -> None:
            problems = [str(error) for check in self._checks(sets) if (error := _error_of(check))]
            if len(problems) > 1:
                raise InputError("\n".join([f"{len(problems)} problems:", *(f"- {words}" for words in problems)]))
            if problems:
                raise InputError(problems[0])

        self.group.together(look)

    def _checks(self, sets: Sequence[str]) -> Iterator[Callable[[], object]]:
        translated = [name for name in ("dev", "test") if name in sets]
        for name in translated:
            for direction in getattr(self.config.evaluate, name):
                yield lambda name=name, direction=direction: self._tasks_of(name, direction)  # type: ignore[misc]
        if translated and self.config.evaluate.comet and importlib.util.find_spec("comet") is None:
            yield lambda: _fail("`evaluate.comet` needs unbabel-comet. Install the extra: dataengine[comet].")
        if translated and self.group.rank == 0:
            for model in self.config.evaluate.comet:
                yield lambda model=model: self.comet_hash(model)  # type: ignore[misc]
        if "reasoning" in sets:
            yield lambda: check_data(self.task_manager, self.task_names)

    def texts(self, set_name: str, direction: str) -> EvaluationSet:
        """`dev`, `test` or `examples` of the config in one direction, read once."""
        if (set_name, direction) not in self._texts:
            place = getattr(self.config.evaluate, set_name)[direction]
            limit = None if set_name == "examples" else self.config.evaluate.max_sentences
            self._texts[set_name, direction] = read_set(place, direction, limit)
        return self._texts[set_name, direction]

    def tasks(self, set_name: str) -> list[Task]:
        """All directions and numbers of examples of `dev` or `test`, made once. Raises InputError for unusable sets."""
        directions = getattr(self.config.evaluate, set_name)
        return [task for direction in directions for task in self._tasks_of(set_name, direction)]

    def _tasks_of(self, set_name: str, direction: str) -> list[Task]:
        if (set_name, direction) not in self._tasks:
            make_metrics(direction, self.config.evaluate.bleu_tokenize)  # before hours of translation
            made = [self._task(set_name, direction, shots) for shots in self.config.evaluate.shots]
            self._tasks[set_name, direction] = made
        return self._tasks[set_name, direction]

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
        prompts = make_prompts(texts.sources, shots, (source, target), self.tokenizer, self.decoding)
        batches = plan_batches([len(ids) for ids in prompts.ids], self.decoding, settings.batch_tokens)
        return Task(
            set_name,
            texts,
            number,
            prompts,
            translation_prompt(source, "{source}", target, shown),
            f"{set_name}.{direction}.{number}-shot" + (f".beam{beams}" if beams > 1 else ""),
            batches,
            _hash([VERSION, self.tokenizer.sha256, target, prompts.ids, self.decoding.describe(), batches]),
        )

    @cached_property
    def task_names(self) -> list[str]:
        """Names of reasoning tasks."""
        return expand_tasks(self.config.evaluate.reasoning)

    @cached_property
    def task_manager(self) -> Any:
        """lm-eval's, which knows them. Raises InputError if one is unknown, or there is no lm-eval."""
        return find_tasks(self.task_names, self.config.evaluate.task_folder)

    def comet_hash(self, model: str) -> str:
        """The hash of a COMET model, which takes seconds, once. Raises InputError if it cannot be had."""
        if model not in self._comet_hashes:
            self._comet_hashes[model] = hash_model(model)
        return self._comet_hashes[model]

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
    """One checkpoint's results, as far as they are known. Several may be made of one checkpoint at once."""

    def __init__(self, evaluation: Evaluation, checkpoint: Checkpoint | None, new: Results) -> None:
        """`checkpoint` is None if it is gone; `new` says what the results are of (`new_results`)."""
        self._of = evaluation
        self._group, self._run = evaluation.group, evaluation.run
        self._checkpoint, self._new = checkpoint, new
        self._identity: str = new["checkpoint"]
        self._place = results_folder(new["step"])
        self._name = self._place.rpartition("/")[2]
        self._folder = evaluation.run.folder / self._place
        self.results = self._group.first(self._read_results)

    def evaluate(self, sets: Sequence[str]) -> Results:
        """Do what is not done of `dev`, `test` and `reasoning`; results.json has it after every part.

        Raises CheckpointError if the checkpoint is needed and cannot be read.
        """
        for set_name in sets:
            if set_name == "reasoning":
                self._reason()
            else:
                for task in self._group.together(lambda name=set_name: self._of.tasks(name)):  # type: ignore[misc]
                    self._translate(task)
        self._add(contamination=self._of.contamination)
        return self.results

    def lease(self) -> AbstractContextManager[None]:
        """Inside the block no training of this machine removes the checkpoint, if it exists."""
        return nullcontext() if self._checkpoint is None else lease(self._checkpoint)

    # Results.

    def _read_results(self) -> Results:
        """What earlier evaluations of this checkpoint left; nothing of another one that had the same step."""
        found = read_results(self._run, self._new["step"])
        return found if found is not None and found["checkpoint"] == self._identity else self._new

    def _add(self, **parts: Any) -> None:
        """Add parts to results.json, as `add_results` takes them."""
        self.results = self._group.first(lambda: add_results(self._run, self._new, **parts))

    # Translation.

    def _translate(self, task: Task) -> None:
        fingerprint = task.fingerprint(self._identity)
        known = self._group.first(lambda: self._known(task, fingerprint))
        completions = known or self._complete(task, fingerprint)
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
        self._add(translation=[entry], files={} if known else {entry["translations"]: content})
        for path in self._folder.glob(self._partial(task, None).name):  # also of more ranks than there are now
            path.unlink(missing_ok=True)
        if self._group.rank == 0:
            print(describe_entry(self._name, entry), flush=True)

    def _add_comet(self, task: Task, hypotheses: Sequence[str], entry: dict[str, Any]) -> None:
        """Scores of the config's COMET models, each sentence by one rank; what an earlier evaluation found is kept."""
        known = {one["translations"]: one for one in self.results["translation"]}.get(entry["translations"], {})
        for model in self._of.config.evaluate.comet:
            sha256 = self._group.first(lambda name=model: self._of.comet_hash(name))  # type: ignore[misc]
            same = all(known.get(key) == entry[key] for key in ("fingerprint", "texts_sha256"))
            if same and known["comet"].get(model, {}).get("sha256") == sha256:
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
            translator = self._group.together(lambda: self._translator)
            mine = missing[self._group.rank :: self._group.size]
            keep = FinishedBatches(self._partial(task, self._group.rank), fingerprint)
            new = {}
            of_ranks = f" (rank 0 of {self._group.size})" if self._group.size > 1 else ""
            with tqdm(
                total=sum(len(batches[number]) for number in mine),
                desc=f"{self._name} {task.name}{of_ranks}",
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
        """The checkpoint's, on this rank's device, or that of its export.

        Raises CheckpointError if the checkpoint is gone or damaged and has no export, InputError for another config.
        """
        problem = self._fetch()
        model = self._group.together(lambda: self._exported(problem) if problem else self._loaded())
        if "cuda" in self._group.device:
            for parameter in model.parameters():  # buffers, such as the frequencies of the rotary embedding, stay fp32
                parameter.data = parameter.data.to(torch.bfloat16)
        placed: Any = model
        return cast(LlamaForCausalLM, placed.to(self._group.device).eval())

    def _fetch(self) -> str:
        """Bring the checkpoint's files to this node; what is wrong with them, or nothing. The same on all ranks."""
        group, checkpoint = self._group, self._checkpoint
        if checkpoint is None:
            return f"{self._run.url} has no checkpoint of {self._new['step']} steps any more"
        check_model(self._of.config.model, checkpoint)
        found = group.together(lambda: fetch_checkpoint(self._run, checkpoint, group.local_rank, group.local_size))
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
        folder = export_folder(self._run, self._new["step"])
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
        now = group.first(lambda: {name: self._made_of(name) for name in names})
        known: dict[str, Any] = self.results["reasoning"]
        missing = [name for name in names if known.get(name, {}).get("made_of") != now[name]]
        if missing:
            group.together(lambda: self.model)  # on every rank, also where there are fewer tasks than ranks
        for first in range(0, len(missing), group.size):
            mine = missing[first + group.rank : first + group.rank + 1]
            new: dict[str, Any] = {}
            for found in group.gather(group.together(lambda names=mine: self._run_tasks(names))):  # type: ignore[misc]
                new.update(found)
            self._add(reasoning=new)
            if group.rank == 0:
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

    def _run_tasks(self, names: Sequence[str]) -> dict[str, Any]:
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
        return {name: {**entry, "made_of": self._made_of(name)} for name, entry in found.items()}

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


def _fail(words: str) -> None:
    raise InputError(words)


def _error_of(action: Callable[[], object]) -> InputError | None:
    try:
        action()
    except InputError as error:
        return error
    return None


def _hash(content: Any) -> str:
    return hashlib.sha256(orjson.dumps(content)).hexdigest()
