"""The rounds of units that a stream goes through, those of all streams side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dataengine.build import clean as clean_module
from dataengine.build.clean import CleanRecords, Codes
from dataengine.build.executors import Engine
from dataengine.build.external_sort import num_ranges
from dataengine.build.near_duplicates import CleanedPart, find_twins
from dataengine.build.prepare import MERGE_TOKENS, TAIL_TOKENS, StreamPlan
from dataengine.build.rejects import check_rejects, gather_rejects, nothing_kept, source_lines
from dataengine.build.tokenize import KeptPart, MergeRuns, PackTails, TokenFormat, TokenizePairs
from dataengine.build.units import Keep, Receipt, Round, Rounds, Unit, describe_notes, publish_keep
from dataengine.cleaning.near_duplicates import TWIN
from dataengine.cleaning.score_cache import ScoreCache
from dataengine.config.schema import Config
from dataengine.errors import InputError, note
from dataengine.mds.summary import SourceReject
from dataengine.storage.store import Store
from dataengine.text import pairs

T = TypeVar("T")


def run_rounds(streams: Mapping[str, Rounds[T]], engine: Engine, store: Store) -> dict[str, T]:
    """Run the rounds of all streams, those of one turn together; return what each stream comes to."""
    results: dict[str, T] = {}
    rounds: dict[str, Round] = {}

    def advance(name: str, receipts: list[Receipt] | None) -> None:
        try:
            rounds[name] = next(streams[name]) if receipts is None else streams[name].send(receipts)
        except StopIteration as end:
            results[name] = end.value

    for name in streams:
        advance(name, None)
    while rounds:
        turn, rounds = dict(rounds), {}
        title = ", ".join(dict.fromkeys(word for word, _ in turn.values()))
        # Files of equal content make equal units; streams may have units in common.
        different = {unit.fingerprint: unit for _, units in turn.values() for unit in units}
        done = dict(zip(different, engine.run(list(different.values()), store, title), strict=True))
        for name, (_, units) in turn.items():
            advance(name, [done[unit.fingerprint] for unit in units])
    return results


@dataclass(frozen=True)
class Cleaned:
    """What cleaning says of each part: the units that judged it, their receipts, and the reason for each record.

    `twins`, of dtype near_duplicates.TWIN, are the near duplicates, each with the record that is kept for it.
    """

    units: list[CleanRecords]
    receipts: list[Receipt]
    codes: list[Codes]
    twins: NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """The finished units of a stream: of reading (one a part) and of packing, with their receipts."""

    reading: list[Receipt]
    rejects: list[SourceReject]
    dropped: dict[str, int]
    units: list[Unit]
    receipts: list[Receipt]
    tails: list[PackTails]
    tail_receipts: list[Receipt]
    notes: list[str]  # on the records


def clean_stream(
    plan: StreamPlan, config: Config, store: Store, *, with_scores: bool = True, checks: bool = True
) -> Rounds[Cleaned]:
    """Judge the records of a stream. If it `checks`, one with too many unusable records is refused."""
    assert plan.cleaning is not None
    units = plan.clean_units()
    receipts = yield "cleaning", units
    if checks:
        check_rejects(plan, receipts, units, config.max_bad_fraction, store)
    if plan.cleaning.subsets and not any(receipt.dropped.get("subset") for receipt in receipts):
        names = " or ".join(plan.cleaning.subsets)
        note(
            f"stream '{plan.name}': no record's {plan.records.label_key} is {names}; "
            f"is streams.{plan.name}.clean.subsets right?"
        )
    duplicates = clean_module.duplicate_units(units, receipts)
    if duplicates:
        yield "comparing", duplicates
    codes = clean_module.judged_alone(units, receipts, store)
    clean_module.mark_duplicates(codes, duplicates, store)
    twins = np.empty(0, TWIN)
    if plan.cleaning.near_dedup is not None:
        parts = [
            CleanedPart(unit.part, unit.records, unit.fingerprint, receipt.near_runs, receipt.kept, reasons == 0)
            for unit, receipt, reasons in zip(units, receipts, codes, strict=True)
        ]
        twins, crowded = yield from find_twins(parts, plan.cleaning.near_dedup, store)
        clean_module.mark_twins(codes, twins, plan.cleaning)
        if crowded:
            note(
                f"stream '{plan.name}': {crowded:,} texts are like many others, of which they were compared with some "
                "only; some near duplicates among them may stay"
            )
    if with_scores:
        caches = {
            direction: ScoreCache(store, str(plan.cleaning.score_model), direction)
            for direction in plan.cleaning.scores
        }
        clean_module.mark_low_scores(codes, units, store, caches)
    return Cleaned(units, receipts, codes, twins)


def make_stream(plan: StreamPlan, config: Config, store: Store) -> Rounds[Packed]:
    """Clean, tokenize and pack a stream."""
    keeps: list[Keep | None] = [None] * len(plan.parts)
    dropped: Counter[str] = Counter()
    if plan.cleaning is not None:
        cleaned = yield from clean_stream(plan, config, store)
        keeps = [publish_keep(codes == 0, store) for codes in cleaned.codes]
        for codes in cleaned.codes:
            dropped.update(clean_module.count_reasons(codes, plan.cleaning))
    units = plan.token_units(keeps)
    receipts = list((yield "tokenizing", units))
    check_rejects(plan, receipts, units, config.max_bad_fraction, store)
    first_lines = [place.line for place in source_lines(plan.parts, receipts)]
    notes = [f"stream '{plan.name}': {words}" for words in describe_notes(plan.parts, receipts, first_lines)]
    for words in notes:
        note(words)
    if not plan.adjacent:
        joined = _join_small_parts(plan, units, receipts)
        if joined:
            again = yield "exchanging", list(joined.values())
            for number, unit, receipt in zip(joined, joined.values(), again, strict=True):
                units[number], receipts[number] = unit, receipt
    records = sum(receipt.records for receipt in receipts)
    kept = sum(receipt.kept for receipt in receipts)
    rejected = sum(sum(receipt.rejected.values()) for receipt in receipts)
    assert records == kept + rejected + dropped.total(), f"stream '{plan.name}': records are unaccounted for"
    if not kept:
        raise InputError(nothing_kept(plan, dropped, rejected))
    packed: Sequence[Unit] = units
    packed_receipts = receipts
    if plan.languages:
        tokens = sum(receipt.tokens for receipt in receipts)
        ranges = num_ranges(tokens, MERGE_TOKENS)
        runs = tuple((unit.fingerprint, receipt.runs) for unit, receipt in zip(units, receipts, strict=True))
        packed = [MergeRuns(plan.format, runs, number, ranges, tokens // ranges) for number in range(ranges)]
        packed_receipts = yield "shuffling", packed
    tails = _tail_units(packed, packed_receipts, plan.format)
    tail_receipts = (yield "packing", tails) if tails else []
    rejects = gather_rejects(plan.parts, units, receipts, store)
    return Packed(receipts, rejects, dict(dropped), list(packed), packed_receipts, tails, tail_receipts, notes)


def _join_small_parts(plan: StreamPlan, units: Sequence[Unit], receipts: Sequence[Receipt]) -> dict[int, TokenizePairs]:
    """By the numbers of their parts, the units of parts that exchange targets with their neighbours.

    A part with fewer than two pairs for each direction cannot do so by itself. A stream with fewer has its pairs
    written in as many of its directions as have two. Raises InputError if the stream has one pair only.
    """
    kept = [receipt.kept for receipt in receipts]
    if sum(kept) == 1:
        raise InputError(
            f"stream '{plan.name}' is one pair, which cannot take another's target (`adjacent: false`). "
            f"Add pairs to streams.{plan.name}."
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


def _tail_units(units: Sequence[Unit], receipts: Sequence[Receipt], form: TokenFormat) -> list[PackTails]:
    """The units that pack the tails of consecutive units together; none if there is little to pack."""
    if sum(receipt.tail for receipt in receipts) < TAIL_TOKENS:
        return []
    groups: list[tuple[list[str], int]] = []
    for unit, receipt in zip(units, receipts, strict=True):
        if not groups or groups[-1][1] >= TAIL_TOKENS:
            groups.append(([], 0))
        groups[-1] = ([*groups[-1][0], unit.fingerprint], groups[-1][1] + receipt.tail)
    return [PackTails(form, tuple(fingerprints), tokens) for fingerprints, tokens in groups]
