"""Show what cleaning drops, with examples from the sources, and what a sample is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataengine.build import clean
from dataengine.build.build import (
    Cleaned,
    Preparation,
    StreamPlan,
    clean_stream,
    gather_rejects,
    run_rounds,
    source_lines,
)
from dataengine.build.executors import Engine
from dataengine.build.units import Reading, Rounds, Unit
from dataengine.config.schema import Config
from dataengine.errors import InputError, did_you_mean
from dataengine.mds.provenance import StreamProvenance
from dataengine.mds.reader import StreamReader
from dataengine.mds.summary import SourceReject, read_rejects, read_summary
from dataengine.records.read import SourcePart, read_records
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import Store, open_store
from dataengine.storage.s3_client import is_url
from dataengine.tables import table
from dataengine.text.tokenizers.load import load_tokenizer, token_dtype

_EXCERPT = 160  # characters of a text
_BATCH = 1000
_SOURCES = 10  # files named in a message


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
        """Lines for people."""
        lines = [f"{self.reason}: {self.path}, line {self.line}", *self._excerpts()]
        if self.kept is not None:
            kept = self.kept
            lines += [f"  {self.similarity:.3f} alike, and kept: {kept.path}, line {kept.line}", *kept._excerpts()]
        return lines

    def _excerpts(self) -> list[str]:
        return [f"    {text[:_EXCERPT]!r}{' ...' if len(text) > _EXCERPT else ''}" for text in self.texts]


@dataclass(frozen=True)
class Unusable:
    """How many records a stream has read, how many of these are unusable, by reason, and the first ones."""

    records: int
    rejected: Counter[str]
    rejects: list[SourceReject]


def describe_cleaning(
    prepared: Preparation, engine: Engine, *, names: list[str], reason: str | None, count: int
) -> str:
    """What of the named streams is unusable or dropped: a table of reasons, then `count` examples of each (or of one).

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
    """What is unusable and what cleaning says: as the build counted it, or else by the units of a build to come."""
    cleaned = (yield from clean_stream(plan, config, store, checks=False)) if plan.cleaning else None
    if built := _built(plan, store):
        return built, cleaned
    units: Sequence[Unit]
    if cleaned:
        units, receipts = cleaned.units, cleaned.receipts
    else:
        units = plan.token_units([None] * len(plan.parts))
        receipts = yield "tokenizing", units
    rejected: Counter[str] = Counter()
    for receipt in receipts:
        rejected.update(receipt.rejected)
    records = sum(receipt.records for receipt in receipts)
    return Unusable(records, rejected, gather_rejects(plan.parts, units, receipts, store)), cleaned


def _built(plan: StreamPlan, store: Store) -> Unusable | None:
    """What the built stream says of its unusable records; None if it is not built, or does not say which they are."""
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
    dropped: Counter[str] = Counter()
    if cleaned and plan.cleaning:
        for codes in cleaned.codes:
            dropped.update(clean.count_reasons(codes, plan.cleaning))
    kept = unusable.records - unusable.rejected.total() - dropped.total()
    counts = [(f"unusable: {reason}", n) for reason, n in unusable.rejected.most_common()]
    counts += [*dropped.most_common(), ("kept", kept)]
    share = 1 / max(unusable.records, 1)
    rows = [(name, "records", "share"), ("read", f"{unusable.records:,}", "")]
    lines = table([*rows, *((reason, f"{n:,}", f"{n * share:.3%}") for reason, n in counts)])
    return lines if cleaned else [*lines, f"no cleaning is configured (streams.{name}.clean)"]


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
    """What is kept for those of the records that are near duplicates, by their ids."""
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
    """Number, line in the part and texts of some usable records of a part, in order; reads no more than it needs."""
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


Names = Mapping[str, Sequence[tuple[str, ...]]]  # folder of a stream -> the files of each part, as they are named now


def current_names(prepared: Preparation) -> Names:
    """What the sources are called now: they may have been renamed since the streams were built."""
    return {plan.folder: [part.paths for part in plan.parts] for plan in prepared.streams.values()}


def describe_sample(manifest: Manifest, config: Config, name: str, sample: int, names: Names | None = None) -> str:
    """A sample of a built stream as text, and the documents in it with their files and lines."""
    store = open_store(config.store)
    stream = next((stream for stream in manifest.streams if stream.name == name), None)
    if stream is None:
        raise InputError(f"no stream '{name}' in the manifest; it has {', '.join(s.name for s in manifest.streams)}")
    if not 0 <= sample < stream.samples:
        raise InputError(f"stream '{name}' has samples 0 to {stream.samples - 1:,}, and not {sample:,}")
    width = manifest.seq_len + 1
    (tokens,) = StreamReader(store, stream, width, token_dtype(manifest.vocab_size)).read([sample])
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    provenance = StreamProvenance(store, stream.remote, width, (names or {}).get(stream.remote, ()))
    lines, at = [f"stream {name}, sample {sample}: {width:,} tokens"], 0
    for origin in provenance.origins(sample):
        part = tokens[at : at + origin.num_tokens].tolist()
        lines.append(f"{origin.path}, line {origin.line}: {origin.num_tokens} tokens from token {origin.first_token}")
        lines += [f"  | {line}" for line in tokenizer.decode(part).split("\n")]
        at += origin.num_tokens
    return "\n".join(lines)


def changed_streams(manifest: Manifest, prepared: Preparation) -> list[str]:
    """The streams of a manifest whose sources are not those any more that they were built of."""
    now = {plan.folder for plan in prepared.streams.values()}
    return [stream.name for stream in manifest.streams if stream.remote not in now]


def describe_line(
    manifest: Manifest, store: Store, place: str, prepared: Preparation | None = None, engine: Engine | None = None
) -> str:
    """The samples of each stream that hold a part of a source line, `place` being FILE:LINE, or why none does.

    The file goes by the name that it has, or else by the one that it had when the stream was built. Without `prepared`
    (the sources as they are now), or `engine`, which cleans again what is not in the store, the reason is left open.
    """
    names = current_names(prepared) if prepared else {}
    plans = {plan.folder: plan for plan in prepared.streams.values()} if prepared and engine else {}
    remotes = {stream.name: stream.remote for stream in manifest.streams}
    path, _, line = place.rpartition(":")
    if not path or not line.isdecimal() or not int(line):
        raise InputError(f"--line {place} is not of the form FILE:LINE with lines from 1 on, such as docs.jsonl:17")
    streams = {
        stream.name: StreamProvenance(store, stream.remote, manifest.seq_len + 1, names.get(stream.remote, ()))
        for stream in manifest.streams
    }
    known = {name: [file for file in one.sources if _same_file(file, path)] for name, one in streams.items()}
    if not any(known.values()):
        known = {name: [file for file in one.former_sources if _same_file(file, path)] for name, one in streams.items()}
    lines = []
    for name, files in known.items():
        for file in files:
            samples = streams[name].samples_of(file, int(line)).tolist()
            plan = plans.get(remotes[name])
            if samples:
                found = f"samples {', '.join(map(str, samples))}"
            elif prepared and engine and plan and any(file in part.paths for part in plan.parts):
                found = f"in no sample: {_why_in_none(plan, prepared, engine, file, int(line))}"
            else:
                found = "in no sample (see below)"
            lines.append(f"{name}: {found}")
    if not lines:
        sources = sorted({file for one in streams.values() for file in one.sources})
        more = f" and {len(sources) - _SOURCES:,} more" if len(sources) > _SOURCES else ""
        raise InputError(f"{path} is not a source of '{manifest.name}'; they are {', '.join(sources[:_SOURCES])}{more}")
    if any(line.endswith("(see below)") for line in lines):
        lines.append(
            "In no sample is what is past the end of the file, blank, unusable, dropped by cleaning, "
            "or in the tokens that fill no sample."
        )
    return "\n".join(lines)


_NO_RECORD = {"tsv": "it is blank, or the heading", "text": "it is blank, or inside of a document"}


def _why_in_none(plan: StreamPlan, prepared: Preparation, engine: Engine, path: str, line: int) -> str:
    """Why no sample of a built stream holds a line of one of its files."""
    store, ends, reasons = prepared.store, [], []
    for number, (part, source) in enumerate(zip(plan.parts, read_summary(store, plan.folder).sources, strict=True)):
        if path not in part.paths:
            continue
        ends.append(source.line + source.lines - 1)
        if source.line <= line <= ends[-1]:
            found = _find_record(plan, part, line - source.line + 1)
            if isinstance(found, int):
                found = _why_not_drawn(plan, prepared, engine, number, found)
            reasons.append(found)
    if reasons:
        return "; ".join(dict.fromkeys(reasons))
    kind = {"parquet": "row", "tmx": "unit"}.get(part.format, "line")
    return f"the file has {max(ends):,} {kind}{'s' * (max(ends) != 1)}"


def _find_record(plan: StreamPlan, part: SourcePart, line: int) -> int | str:
    """The number of the usable record at a line of a part, or what else is there."""
    usable = 0
    for batch in read_records(part, plan.records):
        if reject := next((reject for reject in batch.rejects if reject.line == line), None):
            return f"unusable: {reject.reason}"
        if line in batch.lines:
            return usable + batch.lines.index(line)
        usable += len(batch.lines)
        if batch.lines and batch.lines[-1] > line:
            break
    return _NO_RECORD.get(part.format, "it is blank")


def _why_not_drawn(plan: StreamPlan, prepared: Preparation, engine: Engine, part: int, record: int) -> str:
    """Why a usable record is in no sample."""
    if plan.cleaning:
        cleaned = run_rounds(
            {plan.name: clean_stream(plan, prepared.config, prepared.store, checks=False)}, engine, prepared.store
        )[plan.name]
        if code := int(cleaned.codes[part][record]):
            return f"dropped: {plan.cleaning.reasons[code - 1]}"
    return "it is in the last tokens, which fill no sample"


def _same_file(one: str, other: str) -> bool:
    return one == other or (not is_url(one) and not is_url(other) and Path(one).resolve() == Path(other).resolve())
