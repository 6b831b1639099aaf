"""Show what cleaning drops in each stream, with examples from the sources."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dataengine.build.executors import Engine, LocalEngine
from dataengine.build.prepare import Preparation, StreamPlan, prepare, stream_notes
from dataengine.build.rejects import gather_rejects, source_lines
from dataengine.build.rounds import Round, Rounds, run_rounds
from dataengine.build.stream import Cleaned, clean_stream
from dataengine.build.units import Reading, Unit
from dataengine.commands import inspect_samples
from dataengine.commands.common import choose_streams, command_again, load_experiment, read_built_manifest, show
from dataengine.config.schema import Config
from dataengine.errors import InputError, did_you_mean, note, stream_key
from dataengine.mds.summary import SourceReject, read_rejects, read_summary
from dataengine.records.types import SourcePart
from dataengine.schedule.manifest import Manifest
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from dataengine.tables import table
from dataengine.text.tokenizers.load import load_tokenizer

_EXCERPT = 160  # characters of a text
_BATCH = 1000


def run(options: argparse.Namespace) -> None:
    """Show what cleaning drops, one sample, or the samples of a source line."""
    config, workers = load_experiment(options)
    if options.line is not None:
        manifest = read_built_manifest(options, config)
        prepared = _prepare_sources(options, config, manifest)
        store, engine = open_store(config.store), LocalEngine(workers)
        show(inspect_samples.describe_line(manifest, store, options.line, prepared, engine))
        return
    names = choose_streams(config.streams_in_use, options.stream, list(config.streams_in_use))
    if options.sample is not None:
        if len(names) != 1:
            raise InputError(f"--sample needs the --stream whose sample it is, one of {', '.join(names)}")
        manifest = read_built_manifest(options, config)
        prepared = _prepare_sources(options, config, manifest)
        current = inspect_samples.current_names(prepared) if prepared else {}
        store, tokenizer = open_store(config.store), load_tokenizer(config.tokenizer, config.eos_token)
        show(inspect_samples.describe_sample(manifest, store, tokenizer, names[0], options.sample, current))
        return
    prepared, engine = prepare(config, open_store(config.store)), LocalEngine(workers)
    show(describe_cleaning(prepared, engine, names=names, reason=options.reason, count=options.count))
    for words in stream_notes(prepared, names):
        note(words)


def _prepare_sources(options: argparse.Namespace, config: Config, manifest: Manifest) -> Preparation | None:
    """The present sources of built streams; None, with a note, if they cannot be listed.

    Says which streams were built of other sources.
    """
    try:
        prepared = prepare(config, open_store(config.store))
    except InputError as error:
        note(f"file names are those at the time of the build, since the sources cannot be listed: {error}")
        return None
    if changed := inspect_samples.changed_streams(manifest, prepared):
        note(
            f"the sources of {', '.join(changed)} have changed since the build; this shows them as they were then. "
            f"Build again: {command_again(options, 'build')}"
        )
    return prepared


@dataclass(frozen=True)
class Example:
    """A record: its reason to be dropped ("" if it is kept), its file, its line there and its texts.

    A near duplicate also has the record that is kept for it, and their similarity.
    """

    reason: str
    path: str
    line: int
    texts: tuple[str, ...]
    kept: Example | None = None
    similarity: float = 1.0

    def describe(self) -> list[str]:
        """The example as lines of text."""
        lines = [f"{self.reason}: {self.path}, line {self.line}", *self._excerpts()]
        if self.kept is not None:
            kept = self.kept
            lines += [f"  {self.similarity:.3f} alike, and kept: {kept.path}, line {kept.line}", *kept._excerpts()]
        return lines

    def _excerpts(self) -> list[str]:
        return [f"    {text[:_EXCERPT]!r}{' ...' if len(text) > _EXCERPT else ''}" for text in self.texts]


@dataclass(frozen=True)
class Unusable:
    """The number of records that a stream read, the unusable ones by reason, and the first of them."""

    records: int
    rejected: Counter[str]
    rejects: list[SourceReject]


def describe_cleaning(
    prepared: Preparation, engine: Engine, *, names: list[str], reason: str | None, count: int
) -> str:
    """The unusable and dropped records of streams: a table of reasons, then `count` examples of each (or of one).

    Reading and cleaning run first as far as they are not done; scores count once the pairs are scored. A stream that
    the build refuses for its unusable records is shown as well.
    """
    plans = {name: prepared.streams[name] for name in names}
    looked = run_rounds(
        {name: _look(plan, prepared.config, prepared.store) for name, plan in plans.items()}, engine, prepared.store
    )
    known = {
        name: (*(plan.cleaning.reasons if plan.cleaning else ()), *looked[name][0].rejected)
        for name, plan in plans.items()
    }
    if reason is not None and not any(reason in names for names in known.values()):
        words = "; ".join(f"those of {name} are {', '.join(names) or 'none'}" for name, names in known.items())
        hint = did_you_mean(reason, [one for names in known.values() for one in names])
        raise InputError(f"--reason {reason}: no such reason{hint}; {words}")
    lines: list[str] = []
    for name, plan in plans.items():
        unusable, cleaned = looked[name]
        lines += [*_counts(name, plan, unusable, cleaned), ""]
        shown = [*unusable_examples(unusable, reason=reason, count=count)]
        if cleaned:
            shown += examples(plan, cleaned, prepared.store, reason=reason, count=count)
        for example in shown:
            lines += example.describe()
        lines += [""] * bool(lines[-1])
    return "\n".join(lines).rstrip()


def _look(plan: StreamPlan, config: Config, store: Store) -> Rounds[tuple[Unusable, Cleaned | None]]:
    """The unusable records and the results of cleaning: from the build, or else by running its units."""
    cleaned = (yield from clean_stream(plan, config, store, checks=False)) if plan.cleaning else None
    if built := _built(plan, store):
        return built, cleaned
    units: Sequence[Unit]
    if cleaned:
        units, receipts = cleaned.units, cleaned.receipts
    else:
        units = plan.token_units([None] * len(plan.parts))
        receipts = yield Round("tokenizing", units)
    rejected: Counter[str] = Counter()
    for receipt in receipts:
        rejected.update(receipt.rejected)
    records = sum(receipt.records for receipt in receipts)
    return Unusable(records, rejected, gather_rejects(plan.parts, units, receipts, store)), cleaned


def _built(plan: StreamPlan, store: Store) -> Unusable | None:
    """The unusable records of a built stream; None if it is not built, or does not list them."""
    if store.size(f"{plan.folder}/index.json") is None:
        return None
    summary = read_summary(store, plan.folder)
    rejects = read_rejects(store, plan.folder) if summary.rejected else []
    if rejects is None:
        return None
    now = {source.path: part.paths[0] for source, part in zip(summary.sources, plan.parts, strict=True)}
    rejects = [replace(reject, file=now.get(reject.file, reject.file)) for reject in rejects]
    return Unusable(summary.records, Counter(summary.rejected), rejects)


def _counts(name: str, plan: StreamPlan, unusable: Unusable, cleaned: Cleaned | None) -> list[str]:
    dropped = cleaned.count_dropped() if cleaned else Counter()
    kept = unusable.records - unusable.rejected.total() - dropped.total()
    counts = [(f"unusable: {reason}", n) for reason, n in unusable.rejected.most_common()]
    counts += [*dropped.most_common(), ("kept", kept)]
    share = 1 / max(unusable.records, 1)
    rows = [(name, "records", "share"), ("read", f"{unusable.records:,}", "")]
    lines = table([*rows, *((reason, f"{n:,}", f"{n * share:.3%}") for reason, n in counts)])
    return lines if cleaned else [*lines, f"no cleaning is configured ({stream_key(name)}.clean)"]


def unusable_examples(unusable: Unusable, *, reason: str | None = None, count: int) -> Iterator[Example]:
    """The first `count` unusable records of each reason (or of one), in the order of the stream."""
    left = {name: count for name in unusable.rejected if reason in (None, name)}
    for reject in unusable.rejects:
        if left.get(reject.reason):
            left[reject.reason] -= 1
            yield Example(reject.reason, reject.file, reject.line, (reject.excerpt,))


def examples(
    plan: StreamPlan, cleaned: Cleaned, store: Store, *, reason: str | None = None, count: int
) -> Iterator[Example]:
    """The first `count` records that cleaning drops for each reason (or for one), in the order of the stream.

    Reads the sources only so far.
    """
    assert plan.cleaning is not None
    before = [source.line - 1 for source in source_lines(plan.parts, cleaned.receipts)]
    wanted = [plan.cleaning.code(name) for name in plan.cleaning.reasons if reason in (None, name)]
    room = dict.fromkeys(wanted, count)
    found: list[tuple[int, int, Example]] = []  # code, id, record
    for number, (part, codes, first) in enumerate(zip(plan.parts, cleaned.codes, before, strict=True)):
        chosen: dict[int, int] = {}
        for code in wanted:
            records = np.flatnonzero(codes == code)[: room[code]].tolist()
            room[code] -= len(records)
            chosen |= dict.fromkeys(records, code)
        for record, line, texts in _records(plan, part, sorted(chosen)):
            name = plan.cleaning.reasons[chosen[record] - 1]
            found.append((chosen[record], (number << 32) + record, Example(name, part.paths[0], first + line, texts)))
    kept = _kept_twins(plan, cleaned, before, [number for _, number, _ in found])
    for _, number, example in sorted(found, key=lambda row: row[0]):
        yield replace(example, **kept.get(number, {}))


def _kept_twins(
    plan: StreamPlan, cleaned: Cleaned, before: Sequence[int], ids: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """The records that are kept in place of near duplicates, by the ids of the duplicates."""
    twins = {
        record: (kept, alike) for record, kept, alike in cleaned.twins[np.isin(cleaned.twins["record"], ids)].tolist()
    }
    wanted: dict[int, set[int]] = {}
    for kept, _ in twins.values():
        wanted.setdefault(kept >> 32, set()).add(kept & 0xFFFFFFFF)
    examples = {}
    for number, records in wanted.items():
        part = plan.parts[number]
        for record, line, texts in _records(plan, part, sorted(records)):
            examples[(number << 32) + record] = Example("", part.paths[0], before[number] + line, texts)
    return {record: {"kept": examples[kept], "similarity": alike} for record, (kept, alike) in twins.items()}


def _records(plan: StreamPlan, part: SourcePart, numbers: list[int]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Number, line in the part and texts of some usable records of a part, in order. Reads only as far as needed."""
    if not numbers:
        return
    reading = Reading(part, plan.records, lambda count: None)
    for batch in reading.batches(_BATCH):
        first = reading.usable - len(batch.lines)
        for number in (k for k in numbers if first <= k < reading.usable):
            place = number - first
            yield number, batch.lines[place], tuple(texts[place] for texts in batch.texts)
        if reading.usable > numbers[-1]:
            break
