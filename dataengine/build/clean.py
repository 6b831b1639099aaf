"""Which records of a stream are kept, and the reason for each dropped one.

    part                -> CleanRecords   -> drops by rules, language and decontamination; keys of the rest
    keys of all parts   -> `split`, FindDuplicates (one per range of keys) -> records that share a key
    near keys           -> near_units     -> near duplicates
    all, and scores     -> judged_alone, mark_duplicates, mark_twins, mark_low_scores -> a reason for each record

A reason is a name such as "length_ratio" or "duplicate pair". Files hold it as a number: 1 + its index in `reasons`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataengine.build.external_sort import RUN_KEYS, Form, Runs, num_ranges, read_table, units_of
from dataengine.build.near_units import NearRuns
from dataengine.build.rounds import Round, Rounds
from dataengine.build.split import Places, part_sources, split
from dataengine.build.tokenize import TokenFormat, find_lost
from dataengine.build.units import OnProgress, Reading, Receipt, Unit, identity_of, select, unit_fingerprint
from dataengine.cleaning import dedup, score_cache
from dataengine.errors import InputError
from dataengine.records.types import RecordFormat, Records, SourcePart
from dataengine.storage.arrays import encode_npy, in_threads, read_all_npy
from dataengine.storage.store import AddFile, Store
from dataengine.text.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from dataengine.cleaning.decontaminate import EvaluationTexts

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


def check_records(batch: Records, cleaning: Cleaning) -> Codes:
    """The code of each record of a batch, from the record alone, shape (n,)."""
    codes = np.zeros(len(batch.lines), np.uint8)

    def drop(reason: str | None, found: NDArray[Any]) -> None:
        """Set a reason (or numbers of rules, from 1) for the records that are still kept."""
        alive = np.flatnonzero(codes == 0)
        codes[alive] = np.where(found, cleaning.code(reason), 0) if reason else found

    def texts() -> tuple[list[str], ...]:
        return select(batch, codes == 0).texts

    if cleaning.subsets:
        drop("subset", np.isin(np.array(batch.labels, object), cleaning.subsets))
    if cleaning.rules is not None:
        first = _rules(cleaning, *texts())
        drop(None, np.where(first, first + (1 if cleaning.subsets else 0), 0))
    if cleaning.min_language_score is not None:
        from dataengine.cleaning.language import score_language

        for column, code in enumerate(cleaning.languages):
            if code:  # a text that is too short to judge has no score (nan) and stays
                drop(f"language {code}", score_language(texts()[column], code) < cleaning.min_language_score)
    if cleaning.evaluation is not None:
        evaluation = _evaluation_texts(cleaning.evaluation_paths, cleaning.evaluation)
        found = [evaluation.contaminated(column) for column in texts()]
        drop("evaluation text", np.logical_or.reduce(found))
    return codes


def _rules(cleaning: Cleaning, *texts: list[str]) -> Codes:
    from dataengine.cleaning.rules import documents, pairs, settings

    if len(texts) == 2:
        languages = (cleaning.languages[0], cleaning.languages[1])
        return pairs.check_pairs(*texts, languages, settings.PairRules.model_validate(cleaning.rules))
    found = settings.DocumentRules.model_validate(cleaning.rules)
    return documents.check_documents(texts[0], cleaning.languages[0] or None, found)


@lru_cache(maxsize=4)
def _evaluation_texts(paths: tuple[str, ...], identity: str) -> EvaluationTexts:
    from dataengine.cleaning.decontaminate import EvaluationTexts

    texts = EvaluationTexts.load(paths)
    if texts.identity != identity:
        raise InputError("the evaluation texts of `decontaminate` changed during the build. Build again.")
    return texts


def evaluation_identity(paths: tuple[str, ...]) -> str:
    """The identity of the evaluation texts in fingerprints. Always reads the files again."""
    from dataengine.cleaning.decontaminate import EvaluationTexts

    return EvaluationTexts.load(paths).identity


def duplicate_keys(batch: Records, cleaning: Cleaning, records: NDArray[np.int64]) -> NDArray[Any]:
    """The keys of records (their numbers, shape (n,)) that decide duplicates: dedup.KEY, shape (n times kinds,)."""
    found = []
    for kind in cleaning.dedup:
        code = cleaning.code(f"duplicate {kind}")
        if kind == "pair":
            found.append(dedup.pair_keys(batch.texts[0], batch.texts[1], code, 0))
        else:
            column = 0 if kind == "text" else cleaning.languages.index(kind)
            found.append(dedup.text_keys(batch.texts[column], code, 0))
    keys: NDArray[Any] = np.concatenate(found)
    keys["record"] = records[keys["record"]]
    return keys


def near_texts(batch: Records) -> list[str]:
    """The texts compared for near duplicates: the texts of a record joined to one."""
    return batch.texts[0] if len(batch.texts) == 1 else [" ".join(texts) for texts in zip(*batch.texts, strict=True)]


@dataclass(frozen=True)
class LossyTokenizer:
    """A tokenizer that can lose whole texts. Such records are unusable, so no duplicate is dropped in favour of one."""

    identity: str  # of the tokenizer, without what only decides how tokens are packed
    columns: tuple[int, ...]  # texts of a record that are written
    format: TokenFormat = field(metadata={"identity": False})

    def load(self) -> Tokenizer:
        """The tokenizer. Raises InputError if it changed."""
        return self.format.load()[0]


@dataclass(frozen=True)
class CleanRecords(Unit):
    """Judge the records of a part one by one, and write the keys for comparing the remaining ones.

    Records that the tokenizer cannot use get no key.
    """

    kind: ClassVar[str] = "clean"
    for_units: ClassVar[tuple[str, ...]] = ("run.", "near.")
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

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        reading = Reading(self.part, self.records, on_progress)
        keys = Runs(add, "run", RUN_KEYS)
        near = None if self.cleaning.near_dedup is None else NearRuns(add, self.cleaning.near_dedup)
        codes = [np.empty(0, np.uint8)]
        hashes = {direction: [np.empty(0, score_cache.KEY)] for direction in self.cleaning.scores}
        tokenizer = self.lossy.load() if self.lossy else None
        for batch in reading.batches(_BATCH):
            first = reading.usable - len(batch.lines)
            codes.append(check_records(batch, self.cleaning))
            kept = codes[-1] == 0
            if self.lossy and tokenizer and kept.any():
                lost = find_lost(select(batch, kept), tokenizer, self.lossy.columns)
                kept[kept] = [reason is None for reason in lost] if lost else True
            if kept.any():
                alive, numbers = select(batch, kept), first + np.flatnonzero(kept)
                if self.cleaning.dedup:
                    keys.add(duplicate_keys(alive, self.cleaning, numbers))
                if near:
                    near.add(near_texts(alive), numbers)
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
        return Receipt(**counts, dropped=dropped_by, runs=keys.finish(), near_runs=near.finish() if near else 0)


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


def find_duplicates(units: Sequence[CleanRecords], receipts: Sequence[Receipt]) -> Rounds[list[FindDuplicates]]:
    """Rounds of units that find the exact duplicates among the records of all parts; returns the last units."""
    kinds = len(units[0].cleaning.dedup)
    keys = kinds * sum(receipt.kept for receipt in receipts)
    if not keys:
        return []
    ranges = num_ranges(keys, RANGE_KEYS)
    runs = [
        run
        for part, (unit, receipt) in enumerate(zip(units, receipts, strict=True))
        for run in part_sources(part, unit.fingerprint, "run", receipt.runs, receipt.kept * kinds * KEYS.moved.itemsize)
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


def mark_duplicates(judged: Sequence[Codes], comparing: Sequence[FindDuplicates], store: Store) -> None:
    """Mark the exact duplicates in the codes of all parts."""
    parts, records, reasons = dedup.drop_later(read_all_npy(store, [f"{unit.folder}/groups.npy" for unit in comparing]))
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
