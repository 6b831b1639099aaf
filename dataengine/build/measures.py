"""What cleaning measures of the records of a part: results that cost, apart from the rules and thresholds that decide.

Each measure has a folder of its own in units/. Whoever cleans a part takes from there what an earlier build
measured, and measures the rest while it reads the part. So a new threshold or rule measures no record again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Bools, Int64s
from dataengine.build.external_sort import RUN_KEYS, Runs
from dataengine.build.finished import read_receipt
from dataengine.build.near_units import NearRuns
from dataengine.build.tokenize import TokenFormat, find_lost
from dataengine.build.units import Identified, Receipt, select
from dataengine.cleaning import dedup
from dataengine.errors import InputError
from dataengine.json_files import encode_hashed
from dataengine.records.types import RecordFormat, Records, SourcePart
from dataengine.storage.arrays import encode_npy, read_npy
from dataengine.storage.store import AddFile, Store

if TYPE_CHECKING:
    from dataengine.cleaning.decontaminate import EvaluationTexts

_RECEIPT = "receipt.json"


@dataclass(frozen=True)
class LossyTokenizer:
    """A tokenizer that can lose whole texts. Such records are unusable, so no duplicate is dropped in favour of one."""

    identity: str  # of the tokenizer, without what only decides how tokens are packed
    columns: tuple[int, ...]  # texts of a record that are written
    format: TokenFormat = field(metadata={"identity": False})

    def filter(self) -> Callable[[Records], Bools]:
        """A function that tells which records of a batch are usable. Raises InputError if the tokenizer changed."""
        tokenizer = self.format.load()[0]

        def usable(batch: Records) -> Bools:
            lost = find_lost(batch, tokenizer, self.columns) or [None] * len(batch.lines)
            return np.array([reason is None for reason in lost], bool)

        return usable


class Texts:
    """The texts of a batch, normalized once for all measures. `first` is the number of its first record."""

    def __init__(self, batch: Records, first: int = 0, usable: Callable[[Records], Bools] | None = None) -> None:
        self.batch, self.first, self._usable = batch, first, usable

    @cached_property
    def normal(self) -> tuple[list[str], ...]:
        """Each column of texts, normalized."""
        return tuple([dedup.normalize(text) for text in texts] for texts in self.batch.texts)

    @property
    def usable(self) -> Texts:
        """The texts of the records that the tokenizer can use."""
        return self._selected or self

    @cached_property
    def _selected(self) -> Texts | None:
        """`usable`; None if it is all texts. Kept in itself, a batch would only go when Python looks for garbage."""
        kept = np.ones(len(self.batch.lines), bool) if self._usable is None else self._usable(self.batch)
        if kept.all():
            return None
        found = Texts(select(self.batch, kept), self.first)
        found.records = self.records[kept]
        return found

    @cached_property
    def records(self) -> Int64s:
        """The numbers of the records."""
        return self.first + np.arange(len(self.batch.lines))


@dataclass(frozen=True)
class Measure(Identified):
    """A measure of all usable records of a part, with all that decides its bytes."""

    part: SourcePart
    records: RecordFormat
    versions: tuple[str, ...]  # of the libraries that decide

    @contextmanager
    def _new_folder(self, store: Store, result: Callable[[], Receipt]) -> Iterator[AddFile]:
        with store.new_folder(self.folder, last=_RECEIPT) as add:
            yield add
            add(_RECEIPT, encode_hashed(result()))


@dataclass(frozen=True)
class ValueMeasure(Measure):
    """A value of each record."""

    @property
    @abstractmethod
    def empty(self) -> NDArray[Any]:
        """The values of no record."""

    @abstractmethod
    def compute(self, texts: Texts) -> NDArray[Any]:
        """The value of each record, shape (n, ...)."""

    @contextmanager
    def values(self, store: Store) -> Iterator[Callable[[Texts], NDArray[Any]]]:
        """A function for the values of the records of each batch. Values that are not in the store are written to it
        at the end."""
        if store.size(f"{self.folder}/{_RECEIPT}") is not None:
            known = read_npy(store, f"{self.folder}/values.npy")
            yield lambda texts: known[texts.first : texts.first + len(texts.batch.lines)]
            return
        made = [self.empty]

        def compute(texts: Texts) -> NDArray[Any]:
            made.append(self.compute(texts))
            return made[-1]

        with self._new_folder(store, Receipt) as add:
            yield compute
            add("values.npy", encode_npy(np.concatenate(made)))


@dataclass(frozen=True)
class LanguageScores(ValueMeasure):
    """The probability that each text is in its language; float32 of shape (records, languages), NaN: not judged."""

    kind: ClassVar[str] = "language"
    languages: tuple[str, ...]  # of a record's texts, "" if not stated

    @property
    def empty(self) -> NDArray[Any]:
        return np.empty((0, len(list(filter(None, self.languages)))), np.float32)

    def compute(self, texts: Texts) -> NDArray[Any]:
        return score_languages(texts.batch, self.languages)


def score_languages(batch: Records, languages: tuple[str, ...]) -> NDArray[np.float32]:
    """The score of each text with a stated language, shape (records, languages)."""
    from dataengine.cleaning.language import score_language

    stated = [(texts, code) for texts, code in zip(batch.texts, languages, strict=True) if code]
    return np.stack([score_language(texts, code) for texts, code in stated], axis=1)


@dataclass(frozen=True)
class EvaluationHits(ValueMeasure):
    """Whether each record contains an evaluation text."""

    kind: ClassVar[str] = "evaluation"
    evaluation: str  # identity of the evaluation texts
    paths: tuple[str, ...] = field(metadata={"identity": False})

    @property
    def empty(self) -> NDArray[Any]:
        return np.empty(0, bool)

    def compute(self, texts: Texts) -> NDArray[Any]:
        return find_evaluation_texts(texts, self.paths, self.evaluation)


def find_evaluation_texts(texts: Texts, paths: tuple[str, ...], identity: str) -> Bools:
    """Whether each record contains a text of evaluation sets; shape (n,)."""
    evaluation = _evaluation_texts(paths, identity)
    found: Bools = np.logical_or.reduce([evaluation.contaminated(column, normal=True) for column in texts.normal])
    return found


@lru_cache(maxsize=4)
def _evaluation_texts(paths: tuple[str, ...], identity: str) -> EvaluationTexts:
    from dataengine.cleaning.decontaminate import EvaluationTexts

    texts = EvaluationTexts.load(paths)
    if texts.identity != identity:
        raise InputError("the evaluation texts of `decontaminate` changed during the build. Build again.")
    return texts


@dataclass(frozen=True)
class KeyMeasure(Measure):
    """Keys of the records that the tokenizer can use."""

    lossy: LossyTokenizer | None

    @abstractmethod
    def _keys(self, add: AddFile) -> tuple[Callable[[Texts], None], Callable[[], Receipt]]:
        """A function that takes the texts of each batch, and one that writes the last run."""

    @contextmanager
    def keys(self, store: Store, receipts: list[Receipt]) -> Iterator[Callable[[Texts], None]]:
        """A function that takes each batch. Keys that are not in the store are written to it. At the end `receipts` has
        their receipt, too."""
        known = read_receipt(self.folder, store)
        if known is not None:
            yield lambda texts: None
            receipts.append(known)
            return
        finish: list[Callable[[], Receipt]] = []

        def end() -> Receipt:
            receipts.append(finish[0]())
            return receipts[-1]

        with self._new_folder(store, end) as add:
            take, last = self._keys(add)
            finish.append(last)
            yield lambda texts: take(texts.usable) if texts.usable.batch.lines else None


@dataclass(frozen=True)
class ExactKeys(KeyMeasure):
    """The keys that decide exact duplicates, of dtype dedup.KEY. Their `kind` is an index of `compared`."""

    kind: ClassVar[str] = "keys"
    languages: tuple[str, ...]
    compared: tuple[str, ...]  # "text", "pair" or codes of languages

    def _keys(self, add: AddFile) -> tuple[Callable[[Texts], None], Callable[[], Receipt]]:
        keys = Runs(add, "run", RUN_KEYS)

        def take(texts: Texts) -> None:
            keys.add(make_keys(texts, self.compared, self.languages))

        return take, lambda: Receipt(runs=keys.finish())


def make_keys(texts: Texts, compared: tuple[str, ...], languages: tuple[str, ...]) -> NDArray[Any]:
    """The keys of records that decide exact duplicates: dedup.KEY, shape (n * kinds,)."""
    found = []
    for kind, name in enumerate(compared):
        if name == "pair":
            source, target = texts.normal
            found.append(dedup.pair_keys(source, target, kind, 0, normal=True))
        else:
            column = texts.normal[0 if name == "text" else languages.index(name)]
            found.append(dedup.text_keys(column, kind, 0, normal=True))
    keys: NDArray[Any] = np.concatenate(found)
    keys["record"] = texts.records[keys["record"]]
    return keys


@dataclass(frozen=True)
class NearKeys(KeyMeasure):
    """The keys that propose near duplicates, and shingles (`NearRuns`)."""

    kind: ClassVar[str] = "near"
    threshold: float  # decides the number of keys

    def _keys(self, add: AddFile) -> tuple[Callable[[Texts], None], Callable[[], Receipt]]:
        runs = NearRuns(add, self.threshold)

        def take(texts: Texts) -> None:
            whole = texts.normal[0] if len(texts.normal) == 1 else near_texts(texts.batch)
            runs.add(whole, texts.records, normal=len(texts.normal) == 1)

        return take, lambda: Receipt(near_runs=runs.finish())


def near_texts(batch: Records) -> list[str]:
    """The texts compared for near duplicates: the texts of a record joined to one."""
    return batch.texts[0] if len(batch.texts) == 1 else [" ".join(texts) for texts in zip(*batch.texts, strict=True)]
