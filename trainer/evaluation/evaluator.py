"""The sets, models and settings that all checkpoints of a run are evaluated with."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from dataengine.cleaning.comet import CometScorer, hash_model, load_scorer
from dataengine.commands.contamination import check_contamination
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import load_tokenizer
from trainer.checkpoints.find import all_checkpoints
from trainer.evaluation.decode import Decoding
from trainer.evaluation.metrics import make_metrics
from trainer.evaluation.reasoning import check_data, expand_tasks, find_tasks
from trainer.evaluation.results import (
    Results,
    SetContamination,
    SetScores,
    is_of_run,
    read_all_results,
    read_log_rows,
)
from trainer.evaluation.tasks import Tasks
from trainer.run.base import with_run_base
from trainer.run.folder import SMALL_FILES, check_config, open_run, read_run_manifest
from trainer.run.ranks import Collective

log = logging.getLogger(__name__)
_SEARCHED_BYTES = 10**9  # of a stream's sources: some minutes; `dataengine contamination` searches larger ones


class Evaluation:
    """The sets, models and settings for all checkpoints of a run. All ranks create one and call methods together."""

    def __init__(self, stated: Config, group: Collective) -> None:
        """Raises InputError if the run or the tokenizer is unusable."""
        settings = stated.evaluate
        self.run = open_run(stated.out, stated.cache)
        config = group.run_on_all(lambda: with_run_base(stated, self.run))
        self.config, self.group = config, group
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
            raise InputError(f"`bos`: {config.tokenizer} has no BOS token. Set evaluate.bos to false.")
        group.run_on_all(lambda: self.run.fetch(*SMALL_FILES) if group.ranks.local_rank == 0 else None)
        self.tasks = Tasks(settings, config.languages, self.tokenizer, self.decoding)
        self._scorers: dict[str, CometScorer] = {}
        self._comet_hashes: dict[str, str] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The run's manifest, which does not exist before its start. Raises InputError for another config."""
        self.run.fetch("manifest.json", "config.yaml")
        manifest = read_run_manifest(self.run.folder, self.run.url)
        check_config(self.config, self.run, manifest, self.tokenizer)
        return manifest

    def finished(self) -> list[Results]:
        """Return the results of all checkpoints of this run, with entries on `dev` that fit the current settings.

        Includes checkpoints that no longer exist. Call it on one rank. Raises InputError for damaged results.
        """
        checkpoints = {checkpoint.step: checkpoint for checkpoint in all_checkpoints(self.run)}
        rows = read_log_rows(self.run)
        found = []
        for results in read_all_results(self.run):
            if is_of_run(results, checkpoints, rows, self.manifest.plan_id):
                entries = [one for one in results.translation if self._is_current(one, results.checkpoint)]
                found.append(replace(results, translation=tuple(entries)))
        return found

    def _is_current(self, entry: SetScores, checkpoint: str) -> bool:
        """Return whether an entry on `dev` is the result that a checkpoint would get with the current settings."""
        if entry.set != "dev" or entry.direction not in self.config.evaluate.dev:
            return False
        bleu, _ = make_metrics(entry.direction, self.config.evaluate.bleu_tokenize)
        return any(
            entry.fingerprint == task.fingerprint(checkpoint)
            and entry.texts_sha256 == task.texts.sha256
            and f"|tok:{bleu.tokenizer_signature}|" in entry.bleu.signature
            for task in self.tasks.of("dev", entry.direction)
        )

    def check(self, sets: Sequence[str]) -> None:
        """Check everything that `dev`, `test` and `reasoning` need. Raises InputError with all problems."""

        def look() -> None:
            problems = [str(error) for check in self._checks(sets) if (error := _error_of(check))]
            if len(problems) > 1:
                raise InputError("\n".join([f"{len(problems)} problems:", *(f"- {words}" for words in problems)]))
            if problems:
                raise InputError(problems[0])

        self.group.run_on_all(look)

    def _checks(self, sets: Sequence[str]) -> Iterator[Callable[[], object]]:
        translated = [name for name in ("dev", "test") if name in sets]
        for name in translated:
            for direction in getattr(self.config.evaluate, name):
                yield partial(self.tasks.of, name, direction)
        if translated and self.config.evaluate.comet and importlib.util.find_spec("comet") is None:
            yield partial(_fail, "`evaluate.comet` needs unbabel-comet. Install the extra: dataengine[comet].")
        if translated and self.group.ranks.rank == 0:
            for model in self.config.evaluate.comet:
                yield partial(self.comet_hash, model)
        if "reasoning" in sets:
            yield lambda: check_data(self.task_manager, self.task_names)

    @cached_property
    def task_names(self) -> list[str]:
        """Names of reasoning tasks."""
        return expand_tasks(self.config.evaluate.reasoning)

    @cached_property
    def task_manager(self) -> Any:
        """The task manager of lm-eval. Raises InputError if a task is unknown, or lm-eval is not installed."""
        return find_tasks(self.task_names, self.config.evaluate.task_folder)

    def comet_hash(self, model: str) -> str:
        """Return the hash of a COMET model, computed once, in seconds. Raises InputError if it is not available."""
        if model not in self._comet_hashes:
            self._comet_hashes[model] = hash_model(model)
        return self._comet_hashes[model]

    def scorer(self, model: str) -> CometScorer:
        """Return a COMET model on this rank's device, loaded once."""
        if model not in self._scorers:
            log.info("loading %s", model)
            self._scorers[model] = load_scorer(model, self.group.ranks.device, references=True)
        return self._scorers[model]

    @cached_property
    def contamination(self) -> Mapping[str, SetContamination] | None:
        """The contamination of each set; None if the training streams cannot be searched here."""

        def look() -> dict[str, SetContamination]:
            sets = {
                f"{name} {direction}": self.tasks.texts(name, direction)
                for name in ("dev", "test")
                for direction in getattr(self.config.evaluate, name)
            }
            found = check_contamination(self.config, sets, most_bytes=_SEARCHED_BYTES).describe()
            return {name: SetContamination(**counts) for name, counts in found.items()}

        try:
            return self.group.run_on_rank0(look)
        except InputError as error:
            log.warning("could not check whether sentences of the sets are in the training streams: %s", error)
            return None


def _fail(words: str) -> None:
    raise InputError(words)


def _error_of(action: Callable[[], object]) -> InputError | None:
    try:
        action()
    except InputError as error:
        return error
    return None
