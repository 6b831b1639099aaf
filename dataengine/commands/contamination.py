"""Find evaluation sentences in the training records that the build kept.

Texts are compared as by `decontaminate`: a whole text of 5 words or more, or an n-gram of 13 words inside a longer
one. The search consists of units like those of a build: all workers share it, and each stream is searched once for its
sets. A stream from which these very sentences were removed is clean and is not read.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import orjson
from numpy.typing import NDArray

from dataengine.build.executors import LocalEngine
from dataengine.build.finished import finished_receipts
from dataengine.build.prepare import StreamPlan, missing_streams, prepare
from dataengine.build.rejects import source_lines
from dataengine.build.rounds import Round, Rounds, run_rounds
from dataengine.build.stream import clean_stream
from dataengine.build.units import Keep, OnProgress, Reading, Receipt, Unit
from dataengine.characters import escape_controls
from dataengine.cleaning.decontaminate import NGRAM_WORDS, SHORTEST_WORDS, EvaluationTexts
from dataengine.cleaning.dedup import WORD_WEIGHT, hash_grams, normalize
from dataengine.commands.common import load_experiment, show
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.records.evaluation_sets import EvaluationSet, read_set
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.storage.open import open_store
from dataengine.storage.store import AddFile, Store
from dataengine.tables import size_words, table

_BATCH = 4096  # records
_SHOWN = 200  # characters of a text
_EXAMPLES = 1000  # records of a part that are listed; all are counted


def run(options: argparse.Namespace) -> None:
    """Show which evaluation sentences the streams contain."""
    config, workers = load_experiment(options)
    show(run_contamination(config, workers, options.count))


@dataclass(frozen=True)
class Example:
    """A training record that holds an evaluation sentence."""

    stream: str
    file: str
    line: int
    record: str
    set_name: str
    sentence: str


@dataclass(frozen=True)
class Contamination:
    """The findings for each set, by its name such as `dev en-zh`."""

    sentences: dict[str, int]
    found: dict[str, dict[str, set[int]]]  # set -> stream -> numbers of the sentences, from 0
    examples: list[Example]

    def describe(self) -> dict[str, Any]:
        """The findings in the form of results.json."""
        return {
            name: {
                "sentences": count,
                "contaminated": len(set().union(*self.found[name].values())),
                "by_stream": {stream: len(numbers) for stream, numbers in self.found[name].items() if numbers},
            }
            for name, count in self.sentences.items()
        }

    def table(self, examples: int = 5) -> str:
        """The findings as text, with some of the records."""
        rows = [("set", "sentences", "in training", "by stream")]
        for name, found in self.describe().items():
            streams = ", ".join(f"{stream} {count:,}" for stream, count in found["by_stream"].items())
            rows.append((name, f"{found['sentences']:,}", f"{found['contaminated']:,}", streams or "-"))
        lines = table(rows, left=(0, 3))
        for one in self.examples[:examples]:
            lines += [
                "",
                f"{one.set_name}: {one.sentence[:_SHOWN]!r}",
                f"  in {one.file}, line {one.line:,} (stream {one.stream}): {one.record!r}",
            ]
        return escape_controls("\n".join(lines))


def run_contamination(config: Config, workers: int = 1, examples: int = 5) -> str:
    """Search for all sentences of `evaluate.dev` and `evaluate.test`."""
    sets = {
        f"{name} {direction}": read_set(place, direction, config.evaluate.max_sentences)
        for name, places in (("dev", config.evaluate.dev), ("test", config.evaluate.test))
        for direction, place in places.items()
    }
    if not sets:
        raise InputError("nothing to search for: `evaluate.dev` and `evaluate.test` name no set")
    return check_contamination(config, sets, workers).table(examples)


def check_contamination(
    config: Config, sets: Mapping[str, EvaluationSet], workers: int = 1, *, most_bytes: int | None = None
) -> Contamination:
    """Search the streams that the stages use for the sentences of sets, source and reference.

    Raises InputError if a stream is not built, or has more than `most_bytes` of unsearched sources.
    """
    prepared = prepare(config, open_store(config.store))
    store = prepared.store
    if missing := missing_streams(prepared):
        raise InputError(f"stream '{next(iter(missing))}' is not built with these settings. Build it: dataengine build")
    places: dict[str, list[tuple[str, int]]] = {}  # text -> its sets and its numbers in them
    for name, one in sets.items():
        for side in (one.sources, one.references):
            for number, text in enumerate(side):
                places.setdefault(text, []).append((name, number))
    texts = tuple(sorted(places))
    found: dict[str, dict[str, set[int]]] = {name: {} for name in sets}
    examples: list[Example] = []
    plans = {name: plan for name, plan in prepared.streams.items() if not _is_clean(plan, texts)}
    searched = run_rounds(
        {name: _search(plan, config, store, texts, most_bytes) for name, plan in plans.items()},
        LocalEngine(workers),
        store,
    )
    for stream, (units, receipts) in searched.items():
        places_of_parts = source_lines([unit.part for unit in units], receipts)
        for unit, receipt, place in zip(units, receipts, places_of_parts, strict=True):
            if receipt.runs == 0:
                continue
            content = orjson.loads(store.read(f"{unit.folder}/found.json"))
            for number in content["texts"]:
                for name, sentence in places[texts[number]]:
                    found[name].setdefault(stream, set()).add(sentence)
            for line, record, number in content["examples"]:
                name = places[texts[number]][0][0]
                at = place.line - 1 + line
                examples.append(Example(stream, place.path, at, record, name, texts[number]))
    return Contamination({name: len(one.sources) for name, one in sets.items()}, found, examples)


def _is_clean(plan: StreamPlan, texts: Sequence[str]) -> bool:
    """Whether the build removed every record in which these texts could be found."""
    if plan.cleaning is None or not plan.cleaning.evaluation_paths:
        return False
    removed, wanted = EvaluationTexts.load(plan.cleaning.evaluation_paths), EvaluationTexts.from_texts(texts)
    return bool(np.isin(wanted.texts, removed.texts).all() and np.isin(wanted.ngrams, removed.ngrams).all())


def _search(
    plan: StreamPlan, config: Config, store: Store, texts: tuple[str, ...], most_bytes: int | None
) -> Rounds[tuple[list[FindTexts], list[Receipt]]]:
    keeps: list[Keep | None] = [None] * len(plan.parts)
    if plan.cleaning is not None:
        cleaned = yield from clean_stream(plan, config, store)
        keeps = cleaned.publish_keeps(store)
    identity = hashlib.sha256(orjson.dumps([EvaluationTexts.from_texts(texts).identity, texts])).hexdigest()
    units = [
        FindTexts(part, plan.records, keep, identity, NGRAM_WORDS, SHORTEST_WORDS, texts)
        for part, keep in zip(plan.parts, keeps, strict=True)
    ]
    if most_bytes is not None and sum(unit.input_bytes for unit in units) > most_bytes:
        done = finished_receipts(dict(enumerate(units)), store)
        left = sum(unit.input_bytes for k, unit in enumerate(units) if k not in done)
        if left > most_bytes:
            raise InputError(
                f"stream '{plan.name}' has {size_words(left)} to search, which is slow. Search it once: "
                "dataengine contamination CONFIG"
            )
    receipts = yield Round("looking for evaluation sentences", units)
    return units, receipts


@dataclass(frozen=True)
class FindTexts(Unit):
    """Find evaluation texts in the kept records of a part. `runs` of its receipt counts the records with one."""

    kind: ClassVar[str] = "contamination"
    part: SourcePart
    records: RecordFormat
    keep: Keep | None
    identity: str  # of the texts and the comparison
    ngram_words: int
    shortest_words: int
    texts: tuple[str, ...] = field(metadata={"identity": False})

    @property
    def input_bytes(self) -> int:
        return self.part.size

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        index = _load_index(self.identity, self.texts)
        bits = None if self.keep is None else self.keep.read(store)
        reading = Reading(self.part, self.records, on_progress, bits)
        found: set[int] = set()
        examples: list[tuple[int, str, int]] = []
        holding = 0
        for batch in reading.batches(_BATCH):
            for column in batch.texts:
                for row, numbers in index.find(column):
                    holding += 1
                    found |= numbers
                    if len(examples) < _EXAMPLES:
                        examples.append((int(batch.lines[row]), column[row][:_SHOWN], min(numbers)))
        if holding:
            add("found.json", orjson.dumps({"texts": sorted(found), "examples": examples}))
        return Receipt(**reading.finish(add), runs=holding)


class _Index:
    """The evaluation text of a hash."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._all = EvaluationTexts.from_texts(texts)
        self._by_text: dict[int, set[int]] = {}
        self._by_ngram: dict[int, set[int]] = {}
        first = 0
        for grams in hash_grams([normalize(text) for text in texts], NGRAM_WORDS):
            for row, (digest, weight) in enumerate(zip(grams.texts.tolist(), grams.weights.tolist(), strict=True)):
                if weight >= WORD_WEIGHT * SHORTEST_WORDS:
                    self._by_text.setdefault(digest, set()).add(first + row)
            for digest, row in zip(grams.hashes.tolist(), grams.rows.tolist(), strict=True):
                self._by_ngram.setdefault(digest, set()).add(first + row)
            first += len(grams.texts)

    def find(self, texts: Sequence[str]) -> list[tuple[int, set[int]]]:
        """Rows of the texts that contain evaluation texts, and the numbers of those."""
        rows: NDArray[np.int64] = np.flatnonzero(self._all.contaminated(texts))
        found = []
        for row in rows.tolist():
            (grams,) = hash_grams([normalize(texts[row])], NGRAM_WORDS)
            numbers = set(self._by_text.get(int(grams.texts[0]), ()))
            for digest in grams.hashes.tolist():
                numbers |= self._by_ngram.get(digest, set())
            found.append((row, numbers))
        return found


_texts: dict[str, tuple[str, ...]] = {}


def _load_index(identity: str, texts: tuple[str, ...]) -> _Index:
    _texts.clear()
    _texts[identity] = texts
    return _cached_index(identity)


@lru_cache(maxsize=1)
def _cached_index(identity: str) -> _Index:
    return _Index(_texts[identity])
