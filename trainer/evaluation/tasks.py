"""A set in one direction with one number of examples, ready for translation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from dataengine.config.training import EvaluateConfig
from dataengine.errors import InputError
from dataengine.records.evaluation_sets import EvaluationSet, read_set
from dataengine.text.pairs import translation_prompt
from dataengine.text.tokenizers.base import Tokenizer
from trainer.evaluation.decode import Completion, Decoding, plan_batches
from trainer.evaluation.metrics import make_metrics, score_translations
from trainer.evaluation.prompts import Prompts, choose_shots, make_prompts
from trainer.evaluation.results import VERSION, SetScores


@dataclass(frozen=True)
class Task:
    """A set in one direction with one number of examples, ready for translation."""

    set_name: str
    texts: EvaluationSet
    shots: int
    prompts: Prompts
    shown: str  # a prompt with {source} instead of the sentence
    name: str  # of its files
    batches: list[list[int]]  # numbers of prompts that are translated together
    completed_by: str  # SHA-256 of everything that decides the completions, except the checkpoint

    def fingerprint(self, checkpoint: str) -> str:
        """Return the fingerprint of the completions of a checkpoint, given by its identity."""
        return _content_sha256([self.completed_by, checkpoint])

    def score(
        self,
        completions: Sequence[Completion],
        fingerprint: str,
        *,
        settings: EvaluateConfig,
        decoding: Decoding,
        context: int,
    ) -> SetScores:
        """Score completions, without COMET and the hash of the translations; `context` is the model's, in tokens."""
        texts = self.texts
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
            "source_cut": self.prompts.source_cut,
            "unfinished": sum(one.unfinished for one in completions),
            "longer_than_context": sum(len(ids) + decoding.max_new_tokens > context for ids in self.prompts.ids),
        }
        return SetScores(
            set=self.set_name,
            direction=texts.direction,
            shots=self.shots,
            sentences=len(completions),
            files=texts.files,
            texts_sha256=texts.sha256,
            note=texts.note,
            decoding=decoding.describe(),
            prompt=self.shown,
            fingerprint=fingerprint,
            bleu=scores.bleu,
            chrf=scores.chrf,
            languages=scores.languages,
            languages_reason=scores.languages_reason,
            comet={},
            counts=counts,
            translations=f"{self.name}.jsonl",
        )


def _content_sha256(content: Any) -> str:
    return hashlib.sha256(orjson.dumps(content)).hexdigest()


class Tasks:
    """The tasks of a config, each created once."""

    def __init__(
        self, settings: EvaluateConfig, languages: Mapping[str, str], tokenizer: Tokenizer, decoding: Decoding
    ) -> None:
        """`languages` are full names by code."""
        self._settings, self._languages = settings, languages
        self._tokenizer, self._decoding = tokenizer, decoding
        self._texts: dict[tuple[str, str], EvaluationSet] = {}
        self._tasks: dict[tuple[str, str], list[Task]] = {}

    def all(self, set_name: str) -> list[Task]:
        """Return the tasks of `dev` or `test`, in all directions. Raises InputError for unusable sets."""
        return [task for direction in getattr(self._settings, set_name) for task in self.of(set_name, direction)]

    def of(self, set_name: str, direction: str) -> list[Task]:
        """Return the tasks of `dev` or `test` in one direction. Raises InputError for an unusable set."""
        if (set_name, direction) not in self._tasks:
            make_metrics(direction, self._settings.bleu_tokenize)  # before hours of translation
            made = [self._make(set_name, direction, shots) for shots in self._settings.shots]
            self._tasks[set_name, direction] = made
        return self._tasks[set_name, direction]

    def texts(self, set_name: str, direction: str) -> EvaluationSet:
        """Return `dev`, `test` or `examples` of the config in one direction, read once."""
        if (set_name, direction) not in self._texts:
            place = getattr(self._settings, set_name)[direction]
            limit = None if set_name == "examples" else self._settings.max_sentences
            self._texts[set_name, direction] = read_set(place, direction, limit)
        return self._texts[set_name, direction]

    def _make(self, set_name: str, direction: str, number: int) -> Task:
        texts, beams = self.texts(set_name, direction), self._decoding.beams
        source, target = (self._languages[code] for code in direction.split("-"))
        pool = self._pool(direction, number) if number else []
        try:
            *shots, shown = choose_shots(pool, [*texts.sources, "{source}"], number)
        except ValueError as error:
            raise InputError(f"`evaluate.shots`, {direction}: {error}. Give more under evaluate.examples.") from None
        prompts = make_prompts(texts.sources, shots, (source, target), self._tokenizer, self._decoding)
        batches = plan_batches([len(ids) for ids in prompts.ids], self._decoding, self._settings.batch_tokens)
        decided_by = [VERSION, self._tokenizer.sha256, target, prompts.ids, self._decoding.describe(), batches]
        return Task(
            set_name,
            texts,
            number,
            prompts,
            translation_prompt(source, "{source}", target, shown),
            f"{set_name}.{direction}.{number}-shot" + (f".beam{beams}" if beams > 1 else ""),
            batches,
            _content_sha256(decided_by),
        )

    def _pool(self, direction: str, number: int) -> list[tuple[str, str]]:
        """Return the pairs that examples are chosen from."""
        where = "examples" if direction in self._settings.examples else "dev"
        if where == "dev" and direction not in self._settings.dev:
            raise InputError(
                f"`evaluate.shots` {number}: no examples for {direction}. Name them under evaluate.examples or dev."
            )
        taken = self.texts(where, direction)
        return list(zip(taken.sources, taken.references, strict=True))
