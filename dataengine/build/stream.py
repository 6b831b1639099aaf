"""The rounds of a stream: clean, tokenize, shuffle and pack its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.build import clean
from dataengine.build.clean import Cleaning, CleanRecords, Codes
from dataengine.build.external_sort import num_ranges
from dataengine.build.near_duplicates import CleanedPart, find_twins
from dataengine.build.prepare import MERGE_TOKENS, TAIL_TOKENS, StreamPlan
from dataengine.build.rejects import check_rejects, gather_rejects, nothing_kept, source_lines
from dataengine.build.rounds import Round, Rounds
from dataengine.build.split import part_sources, split
from dataengine.build.tokenize import KeptPart, MergeRuns, PackTails, TokenFormat, TokenizePairs, document_form
from dataengine.build.units import Keep, Receipt, Unit, describe_notes, publish_keeps
from dataengine.cleaning.near_duplicates import TWIN
from dataengine.cleaning.score_cache import ScoreCache
from dataengine.config.schema import Config
from dataengine.errors import InputError, note, stream_key
from dataengine.mds.summary import SourceReject
from dataengine.storage.store import Store
from dataengine.text import pairs


@dataclass(frozen=True)
class Cleaned:
    """The result of cleaning: the units of the parts, their receipts, and the code of each record.

    `twins` (dtype near_duplicates.TWIN) are the near duplicates, each with the record that is kept instead.
    """

    cleaning: Cleaning
    units: list[CleanRecords]
    receipts: list[Receipt]
    codes: list[Codes]
    twins: NDArray[Any]

    def publish_keeps(self, store: Store) -> list[Keep | None]:
        """Write to the store which records of each part are kept."""
        return publish_keeps((codes == 0 for codes in self.codes), store)

    def count_dropped(self) -> Counter[str]:
        """The number of records that each reason drops, in the order of the reasons."""
        dropped: Counter[str] = Counter()
        for codes in self.codes:
            dropped.update(clean.count_reasons(codes, self.cleaning))
        return dropped


@dataclass(frozen=True)
class Packed:
    """The finished units of a stream: for reading (one per part) and for packing, with their receipts."""

    reading: list[Receipt]
    rejects: list[SourceReject]
    dropped: dict[str, int]
    units: Sequence[Unit]
    receipts: list[Receipt]
    tails: list[PackTails]
    tail_receipts: list[Receipt]
    notes: list[str]  # on the records


def clean_stream(
    plan: StreamPlan, config: Config, store: Store, *, with_scores: bool = True, checks: bool = True
) -> Rounds[Cleaned]:
    """Decide on each record of a stream. With `checks`, too many unusable records raise InputError."""
    assert plan.cleaning is not None
    units = plan.clean_units()
    receipts = yield Round("cleaning", units)
    if checks:
        check_rejects(plan, receipts, units, config.max_bad_fraction, store)
    _note_unknown_subsets(plan, plan.cleaning, receipts)
    codes = clean.judged_alone(units, receipts, store)
    duplicates = yield from clean.find_duplicates(units, receipts, codes, store)
    clean.mark_duplicates(codes, duplicates, store, plan.cleaning)
    twins = np.empty(0, TWIN)
    if plan.cleaning.near_dedup is not None:
        parts = [
            CleanedPart(unit.part, unit.records, unit.near_keys.fingerprint, receipt.near_runs, reasons == 0)
            for unit, receipt, reasons in zip(units, receipts, codes, strict=True)
            if unit.near_keys
        ]
        twins, crowded = yield from find_twins(parts, plan.cleaning.near_dedup, store)
        clean.mark_twins(codes, twins, plan.cleaning)
        if crowded:
            note(
                f"stream '{plan.name}': {crowded:,} texts are similar to many others and were compared with only some "
                "of these, so a few near duplicates may remain"
            )
    if with_scores:
        model = str(plan.cleaning.score_model)
        caches = {direction: ScoreCache(store, model, direction) for direction in plan.cleaning.scores}
        clean.mark_low_scores(codes, units, store, caches)
    return Cleaned(plan.cleaning, units, receipts, codes, twins)


def _note_unknown_subsets(plan: StreamPlan, cleaning: Cleaning, receipts: Sequence[Receipt]) -> None:
    if cleaning.subsets and not any(receipt.dropped.get("subset") for receipt in receipts):
        note(
            f"stream '{plan.name}': no record's {plan.records.label_key} is {' or '.join(cleaning.subsets)}; "
            f"is {stream_key(plan.name)}.clean.subsets right?"
        )


def make_stream(plan: StreamPlan, config: Config, store: Store) -> Rounds[Packed]:
    """Clean, tokenize and pack a stream."""
    cleaned = (yield from clean_stream(plan, config, store)) if plan.cleaning else None
    dropped = cleaned.count_dropped() if cleaned else Counter()
    keeps = cleaned.publish_keeps(store) if cleaned else [None] * len(plan.parts)
    units: Sequence[Unit] = plan.token_units(keeps)
    receipts = yield Round("tokenizing", units, earlier_done=True)
    check_rejects(plan, receipts, units, config.max_bad_fraction, store)
    notes = _note_records(plan, receipts)
    if not plan.adjacent:
        units, receipts = yield from _exchange_with_neighbours(plan, units, receipts)
    _check_kept(plan, receipts, dropped)
    packed, packed_receipts = units, receipts
    if plan.languages:
        packed = yield from _merge_units(plan, units, receipts)
        packed_receipts = yield Round("shuffling", packed, earlier_done=True)
    tails = _tail_units(packed, packed_receipts, plan.format)
    tail_receipts = (yield Round("packing", tails, earlier_done=True)) if tails else []
    rejects = gather_rejects(plan.parts, units, receipts, store)
    return Packed(receipts, rejects, dict(dropped), packed, packed_receipts, tails, tail_receipts, notes)


def _note_records(plan: StreamPlan, receipts: Sequence[Receipt]) -> list[str]:
    """Print and return the notes on the usable records."""
    first_lines = [place.line for place in source_lines(plan.parts, receipts)]
    notes = [f"stream '{plan.name}': {words}" for words in describe_notes(plan.parts, receipts, first_lines)]
    for words in notes:
        note(words)
    return notes


def _check_kept(plan: StreamPlan, receipts: Sequence[Receipt], dropped: Counter[str]) -> None:
    """Raise InputError if cleaning dropped all records."""
    kept = sum(receipt.kept for receipt in receipts)
    rejected = sum(sum(receipt.rejected.values()) for receipt in receipts)
    records = sum(receipt.records for receipt in receipts)
    assert records == kept + rejected + dropped.total(), f"stream '{plan.name}': records are unaccounted for"
    if not kept:
        raise InputError(nothing_kept(plan, dropped, rejected))


def _exchange_with_neighbours(
    plan: StreamPlan, units: Sequence[Unit], receipts: Sequence[Receipt]
) -> Rounds[tuple[list[Unit], list[Receipt]]]:
    """Tokenize small parts again, together with their neighbours; return the units and receipts of all parts."""
    joined = _join_small_parts(plan, units, receipts)
    again = (yield Round("exchanging", list(joined.values()))) if joined else []
    of_all, receipts_of_all = list(units), list(receipts)
    for number, unit, receipt in zip(joined, joined.values(), again, strict=True):
        of_all[number], receipts_of_all[number] = unit, receipt
    return of_all, receipts_of_all


def _join_small_parts(plan: StreamPlan, units: Sequence[Unit], receipts: Sequence[Receipt]) -> dict[int, TokenizePairs]:
    """The units of parts that exchange targets with their neighbours, by the numbers of the parts.

    A part needs two pairs per direction to exchange targets by itself. A stream with fewer pairs uses only as many of
    its directions as get two pairs each. Raises InputError if the stream has a single pair.
    """
    kept = [receipt.kept for receipt in receipts]
    if sum(kept) == 1:
        raise InputError(
            f"stream '{plan.name}' has a single pair, and `targets: shuffled` needs two. "
            f"Add pairs to {stream_key(plan.name)}."
        )
    directions = plan.directions[: max(sum(kept) // 2, 1)]
    joined = {}
    for group in pairs.exchange_groups(kept, 2 * len(directions)):
        members = [units[number] for number in group]
        for place, number in enumerate(group):
            unit = units[number]
            assert isinstance(unit, TokenizePairs)
            before, after = (
                tuple(KeptPart(u.part, u.keep) for u in some if isinstance(u, TokenizePairs))
                for some in (members[:place], members[place + 1 :])
            )
            if before or after or directions != plan.directions:
                joined[number] = replace(unit, directions=directions, before=before, after=after)
    return joined


def _merge_units(plan: StreamPlan, units: Sequence[Unit], receipts: Sequence[Receipt]) -> Rounds[list[MergeRuns]]:
    """Rounds of units that bring the documents of all parts together by their keys; returns those that pack them."""
    tokens, form = sum(receipt.tokens for receipt in receipts), document_form(plan.format, plan.vocab_size)
    assert form.element is not None
    ranges = num_ranges(tokens, MERGE_TOKENS)
    runs = []
    for part, (unit, receipt) in enumerate(zip(units, receipts, strict=True)):
        documents = receipt.kept * max(len(plan.sides), 1)
        size = documents * form.moved.itemsize + receipt.tokens * form.element.itemsize
        runs += part_sources(part, unit.fingerprint, "run", receipt.runs, size)
    places = yield from split("shuffling", runs, form, ranges)
    return [MergeRuns(plan.format, here, tokens // ranges) for here in places]


def _tail_units(units: Sequence[Unit], receipts: Sequence[Receipt], form: TokenFormat) -> list[PackTails]:
    """The units that pack the tails of consecutive units; none if the tails are small."""
    if sum(receipt.tail for receipt in receipts) < TAIL_TOKENS:
        return []
    groups: list[tuple[list[str], int]] = []
    for unit, receipt in zip(units, receipts, strict=True):
        if not groups or groups[-1][1] >= TAIL_TOKENS:
            groups.append(([], 0))
        groups[-1] = ([*groups[-1][0], unit.fingerprint], groups[-1][1] + receipt.tail)
    return [PackTails(form, tuple(fingerprints), tokens) for fingerprints, tokens in groups]
