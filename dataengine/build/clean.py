"""Which records of a stream are kept, and the reason for each dropped one.

    part                -> CleanRecords   -> drops by rules, language and decontamination; measures of all records
    keys of all parts   -> `split`, FindDuplicates (one per range of keys) -> kept records that share a key
    near keys           -> near_units     -> near duplicates
    all, and scores     -> judged_alone, mark_duplicates, mark_twins, mark_low_scores -> a reason for each record

A reason is a name such as "length_ratio" or "duplicate pair". Files hold it as a number: 1 + its index in `reasons`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Bools
from dataengine.build.external_sort import Form, num_ranges, read_table, units_of
from dataengine.build.measures import (
    EvaluationHits,
    ExactKeys,
    LanguageScores,
    LossyTokenizer,
    NearKeys,
    Texts,
    find_evaluation_texts,
    score_languages,
)
from dataengine.build.rounds import Round, Rounds
from dataengine.build.split import Places, part_sources, split
from dataengine.build.units import (
    OnProgress,
    Reading,
    Receipt,
    Unit,
    identity_of,
    publish_keeps,
    select,
    unit_fingerprint,
)
from dataengine.cleaning import dedup, score_cache
from dataengine.errors import InputError
from dataengine.records.types import RecordFormat, Records, SourcePart
from dataengine.storage.arrays import encode_npy, in_threads, read_all_npy
from dataengine.storage.store import AddFile, Store

Codes = NDArray[np.uint8]  # reason of each record, 0 = kept

DROPPED = np.dtype([("record", "<u4"), ("reason", "<u1")])
KEYS = Form(dedup.KEY, "high")

_BATCH = 4096
RANGE_KEYS = 1 << 22  # keys of a FindDuplicates unit, about


@dataclass(frozen=True)
class Cleaning:
    """What a stream drops. Every field decides bytes."""

    languages: tuple[str, ...]  # codes of a record's texts, "" if not stated; a single text: documents
    # All fields of rules.settings.PairRules or DocumentRules, also those that are off. A new rule changes the identity
    # of each stream with rules, because the code of a dropped record is an index among all rules
    rules: dict[str, Any] | None
    min_language_score: float | None
    subsets: tuple[str, ...]  # labels to drop
    dedup: tuple[str, ...]  # "text", "pair" or codes of languages
    near_dedup: float | None  # Jaccard similarity
    evaluation: str | None  # identity of the evaluation texts
    evaluation_paths: tuple[str, ...] = field(metadata={"identity": False})
    scores: dict[str, float]  # direction -> least score
    score_model: str | None  # sha256
    versions: tuple[str, ...] = ()  # of the libraries that decide

    @property
    def reasons(self) -> tuple[str, ...]:
        """Names of all reasons to drop a record, in the order in which they are checked."""
        from dataengine.cleaning.rules.documents import DOCUMENT_RULES
        from dataengine.cleaning.rules.pairs import PAIR_RULES

        names = ["subset"] if self.subsets else []
        if self.rules is not None:
            names += PAIR_RULES if len(self.languages) == 2 else DOCUMENT_RULES
        if self.min_language_score is not None:
            names += [f"language {code}" for code in self.languages if code]
        if self.evaluation is not None:
            names.append("evaluation text")
        names += [f"duplicate {kind}" for kind in self.dedup]
        if self.near_dedup is not None:
            names.append("near duplicate")
        return (*names, *(f"score {direction}" for direction in self.scores))

    def code(self, reason: str) -> int:
        """The code of a reason."""
        return 1 + self.reasons.index(reason)


def check_records(
    batch: Records, cleaning: Cleaning, scores: NDArray[np.float32] | None, evaluated: Bools | None
) -> Codes:
    """The code of each record of a batch, from the record alone, shape (n,).

    `scores` are those of its texts with a stated language, shape (n, languages); `evaluated` tells whether a record
    contains an evaluation text, shape (n,). They are not None if the cleaning needs them.
    """
    codes = np.zeros(len(batch.lines), np.uint8)

    def drop(reason: str, found: NDArray[Any]) -> None:
        """Set a reason for the records that are still kept."""
        codes[(codes == 0) & found] = cleaning.code(reason)

    if cleaning.subsets:
        drop("subset", np.isin(np.array(batch.labels, object), cleaning.subsets))
    if cleaning.rules is not None:
        alive = codes == 0
        first = _rules(cleaning, *select(batch, alive).texts)
        codes[alive] = np.where(first, first + (1 if cleaning.subsets else 0), 0)
    if cleaning.min_language_score is not None:
        assert scores is not None
        stated = [code for code in cleaning.languages if code]
        for column, code in enumerate(stated):  # a text that is too short to judge has no score (nan) and stays
            drop(f"language {code}", scores[:, column] < cleaning.min_language_score)
    if cleaning.evaluation is not None:
        assert evaluated is not None
        drop("evaluation text", evaluated)
    return codes


def judge(batch: Records, cleaning: Cleaning) -> Codes:
    """`check_records` without a store."""
    scores = evaluated = None
    if cleaning.min_language_score is not None and any(cleaning.languages):
        scores = score_languages(batch, cleaning.languages)
    if cleaning.evaluation is not None:
        evaluated = find_evaluation_texts(Texts(batch), cleaning.evaluation_paths, cleaning.evaluation)
    return check_records(batch, cleaning, scores, evaluated)


def _rules(cleaning: Cleaning, *texts: list[str]) -> Codes:
    from dataengine.cleaning.rules import documents, pairs, settings

    if len(texts) == 2:
        languages = (cleaning.languages[0], cleaning.languages[1])
        return pairs.check_pairs(*texts, languages, settings.PairRules.model_validate(cleaning.rules))
    found = settings.DocumentRules.model_validate(cleaning.rules)
    return documents.check_documents(texts[0], cleaning.languages[0] or None, found)


def evaluation_identity(paths: tuple[str, ...]) -> str:
    """The identity of the evaluation texts in fingerprints. Always reads the files again."""
    from dataengine.cleaning.decontaminate import EvaluationTexts

    return EvaluationTexts.load(paths).identity


@dataclass(frozen=True)
class CleanRecords(Unit):
    """Judge the records of a part one by one, and measure them unless an earlier build did.

    Records that the tokenizer cannot use get no key.
    """

    kind: ClassVar[str] = "clean"
    part: SourcePart
    records: RecordFormat
    cleaning: Cleaning
    lossy: LossyTokenizer | None = None

    @property
    def fingerprint(self) -> str:
        """As for any unit, without what only `mark_low_scores` uses: a new threshold or model reads no text again."""
        cleaning = replace(self.cleaning, scores=dict.fromkeys(self.cleaning.scores, 0.0), score_model=None)
        return unit_fingerprint(self.kind, identity_of(replace(self, cleaning=cleaning)))

    @property
    def input_bytes(self) -> int:
        return self.part.size

    @property
    def also(self) -> Sequence[str]:
        """The folders of the measures that the cleaning needs."""
        measures = (self._language_scores, self._evaluation_hits, *self._key_measures)
        return [measure.folder for measure in measures if measure]

    @property
    def also_for_units(self) -> Sequence[str]:
        """Near keys and their shingles. They are larger than all other measures, and cost less than these."""
        return [self.near_keys.folder] if self.near_keys else []

    @property
    def _language_scores(self) -> LanguageScores | None:
        languages = self.cleaning.languages
        if self.cleaning.min_language_score is None or not any(languages):
            return None
        return LanguageScores(self.part, self.records, self._versions("unicode", "fasttext"), languages)

    @property
    def _evaluation_hits(self) -> EvaluationHits | None:
        identity, paths = self.cleaning.evaluation, self.cleaning.evaluation_paths
        if identity is None:
            return None
        return EvaluationHits(self.part, self.records, self._versions("unicode"), identity, paths)

    @property
    def exact_keys(self) -> ExactKeys | None:
        """The keys for exact duplicates."""
        compared, languages = self.cleaning.dedup, self.cleaning.languages
        if not compared:
            return None
        return ExactKeys(self.part, self.records, self._versions("unicode"), self.lossy, languages, compared)

    @property
    def near_keys(self) -> NearKeys | None:
        """The keys for near duplicates."""
        threshold = self.cleaning.near_dedup
        if threshold is None:
            return None
        return NearKeys(self.part, self.records, self._versions("unicode", "rensa"), self.lossy, threshold)

    @property
    def _key_measures(self) -> list[ExactKeys | NearKeys]:
        return [measure for measure in (self.exact_keys, self.near_keys) if measure]

    def _versions(self, *libraries: str) -> tuple[str, ...]:
        return tuple(version for version in self.cleaning.versions if version.startswith(libraries))

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        reading = Reading(self.part, self.records, on_progress)
        codes = [np.empty(0, np.uint8)]
        hashes = {direction: [np.empty(0, score_cache.KEY)] for direction in self.cleaning.scores}
        keys: list[Receipt] = []
        with self._measuring(store, keys) as judge_texts:
            for batch in reading.batches(_BATCH):
                codes.append(judge_texts(batch, reading.usable - len(batch.lines)))
                for direction, found in hashes.items():
                    source, target = (self.cleaning.languages.index(code) for code in direction.split("-"))
                    found.append(score_cache.hash_pairs(batch.texts[source], batch.texts[target]))
        judged = np.concatenate(codes)
        dropped = np.empty(np.count_nonzero(judged), DROPPED)
        dropped["record"], dropped["reason"] = np.flatnonzero(judged), judged[judged > 0]
        add("dropped.npy", encode_npy(dropped))
        for direction, found in hashes.items():
            add(f"pairs.{direction}.npy", encode_npy(np.concatenate(found)))
        counts = reading.finish(add)
        counts["kept"] -= len(dropped)
        dropped_by = count_reasons(judged, self.cleaning)
        runs, near_runs = sum(one.runs for one in keys), sum(one.near_runs for one in keys)
        return Receipt(**counts, dropped=dropped_by, runs=runs, near_runs=near_runs)

    @contextmanager
    def _measuring(self, store: Store, receipts: list[Receipt]) -> Iterator[Callable[[Records, int], Codes]]:
        """A function that judges each batch, given the number of its first record. It measures what is not in the
        store; at the end that is in the store, too, and `receipts` has those of the keys."""
        with ExitStack() as stack:
            scores, evaluated = (
                stack.enter_context(measure.values(store)) if measure else _none
                for measure in (self._language_scores, self._evaluation_hits)
            )
            keys = [stack.enter_context(measure.keys(store, receipts)) for measure in self._key_measures]
            usable = self.lossy.filter() if self.lossy else None

            def judge_texts(batch: Records, first: int) -> Codes:
                texts = Texts(batch, first, usable)
                for take in keys:
                    take(texts)
                return check_records(batch, self.cleaning, scores(texts), evaluated(texts))

            yield judge_texts


def _none(texts: Texts) -> None:
    """The values of a measure that the cleaning does not need."""


@dataclass(frozen=True)
class FindDuplicates(Unit):
    """Find the records of a stream that share a key, in one range of keys."""

    kind: ClassVar[str] = "duplicates"
    places: Places  # of keys, dtype KEYS, in the stream's order
    keys: int = field(metadata={"identity": False})  # an estimate, for progress

    @property
    def inputs(self) -> tuple[str, ...]:
        return units_of(self.places)

    @property
    def input_bytes(self) -> int:
        return self.keys * dedup.KEY.itemsize

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        groups = dedup.find_groups(read_table(store, self.places, KEYS).heads)
        on_progress(self.input_bytes)
        add("groups.npy", encode_npy(groups))
        return Receipt()


def find_duplicates(
    units: Sequence[CleanRecords], receipts: Sequence[Receipt], judged: Sequence[Codes], store: Store
) -> Rounds[list[FindDuplicates]]:
    """Rounds of units that find the exact duplicates among the records of all parts that `judged` keeps; returns the
    last units."""
    kinds = len(units[0].cleaning.dedup)
    keys = kinds * sum(receipt.kept for receipt in receipts)
    if not keys:
        return []
    ranges = num_ranges(keys, RANGE_KEYS)
    keeps = publish_keeps((codes == 0 for codes in judged), store)
    runs = [
        run
        for part, (unit, receipt, codes, alive) in enumerate(zip(units, receipts, judged, keeps, strict=True))
        if unit.exact_keys
        for run in part_sources(
            part,
            unit.exact_keys.fingerprint,
            "run",
            receipt.runs,
            len(codes) * kinds * KEYS.moved.itemsize,
            alive,
        )
    ]
    places = yield from split("comparing", runs, KEYS, ranges)
    comparing = [FindDuplicates(here, keys // ranges) for here in places]
    yield Round("comparing", comparing)
    return comparing


def judged_alone(units: Sequence[CleanRecords], receipts: Sequence[Receipt], store: Store) -> list[Codes]:
    """The code of each usable record of each part, from the record alone."""
    judged = []
    all_dropped = read_all_npy(store, [f"{unit.folder}/dropped.npy" for unit in units])
    for receipt, dropped in zip(receipts, all_dropped, strict=True):
        codes = np.zeros(receipt.kept + sum(receipt.dropped.values()), np.uint8)
        codes[dropped["record"]] = dropped["reason"]
        judged.append(codes)
    return judged


def mark_duplicates(
    judged: Sequence[Codes], comparing: Sequence[FindDuplicates], store: Store, cleaning: Cleaning
) -> None:
    """Mark the exact duplicates in the codes of all parts."""
    all_groups = read_all_npy(store, [f"{unit.folder}/groups.npy" for unit in comparing])
    parts, records, kinds = dedup.drop_later(all_groups)
    reasons = np.array([cleaning.code(f"duplicate {kind}") for kind in cleaning.dedup], np.uint8)[kinds]
    bounds = np.searchsorted(parts, np.arange(len(judged) + 1))
    for number, codes in enumerate(judged):
        here = slice(bounds[number], bounds[number + 1])
        codes[records[here]] = reasons[here]


def mark_twins(judged: Sequence[Codes], twins: NDArray[Any], cleaning: Cleaning) -> None:
    """Mark near duplicates (dtype near_duplicates.TWIN) in the codes of all parts."""
    parts, records = (twins["record"] >> np.uint64(32)).astype(np.int64), twins["record"] & np.uint64(0xFFFFFFFF)
    for number in np.unique(parts).tolist():
        judged[number][records[parts == number]] = cleaning.code("near duplicate")


def mark_low_scores(
    judged: Sequence[Codes],
    units: Sequence[CleanRecords],
    store: Store,
    caches: Mapping[str, score_cache.ScoreCache],
) -> None:
    """Mark pairs with low scores in the codes of all parts. `caches` holds the scores of each direction.

    Raises InputError if a pair that everything else keeps has no score.
    """
    cleaning = units[0].cleaning
    for direction, cache in caches.items():
        missing = total = 0
        all_hashes = read_all_npy(store, [f"{unit.folder}/pairs.{direction}.npy" for unit in units])
        all_scores = in_threads(cache.load, [unit.part.digest for unit in units])
        for codes, hashes, scores in zip(judged, all_hashes, all_scores, strict=True):
            alive = np.flatnonzero(codes == 0)
            found_scores = score_cache.lookup(scores, hashes[alive])
            missing, total = missing + int(np.isnan(found_scores).sum()), total + len(alive)
            codes[alive[found_scores < np.float32(cleaning.scores[direction])]] = cleaning.code(f"score {direction}")
        if missing:
            raise InputError(
                f"{missing:,} of {total:,} pairs that cleaning keeps of {_name_files(units)} have no {direction} score "
                "from this model. Score them first: dataengine score CONFIG (all slices, if there are several)."
            )


def _name_files(units: Sequence[CleanRecords]) -> str:
    paths = list(dict.fromkeys(unit.part.paths[0] for unit in units))
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1:,} more files"


def count_reasons(codes: Codes, cleaning: Cleaning) -> dict[str, int]:
    """The number of records that each reason drops, without reasons that drop none."""
    counts = np.bincount(codes, minlength=1 + len(cleaning.reasons))
    return {reason: int(count) for reason, count in zip(cleaning.reasons, counts[1:], strict=True) if count}
