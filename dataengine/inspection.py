"""Show what cleaning drops, with examples from the sources, and what a sample is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from dataengine import cleaning
from dataengine.build import Cleaned, Preparation, StreamPlan, clean_stream, run_rounds
from dataengine.config import Config
from dataengine.engines import Engine
from dataengine.errors import InputError
from dataengine.manifest import Manifest
from dataengine.objects import is_url
from dataengine.provenance import StreamProvenance
from dataengine.sources import SourcePart
from dataengine.storage import Store, open_store
from dataengine.streams import StreamReader
from dataengine.tables import table
from dataengine.tokens import load_tokenizer, token_dtype
from dataengine.units import Reading

_EXCERPT = 160  # characters of a text
_BATCH = 1000
_SOURCES = 10  # files named in a message


@dataclass(frozen=True)
class Example:
    """A record: its reason to be dropped ("" if it is kept), its file, its line there and its texts."""

    reason: str
    path: str
    line: int
    texts: tuple[str, ...]


def describe_cleaning(
    prepared: Preparation, engine: Engine, *, names: list[str], reason: str | None, count: int
) -> str:
    """What cleaning drops from the named streams: a table of reasons, then `count` examples of each (or of one).

    Cleaning runs first as far as it is not done; scores count once the pairs are scored.
    """
    plans = {name: prepared.streams[name] for name in names}
    cleaned = run_rounds(
        {
            name: clean_stream(plan, prepared.config, prepared.store)
            for name, plan in plans.items()
            if plan.cleaning is not None
        },
        engine,
        prepared.store,
    )
    known = {name: (*plan.cleaning.reasons, *_rejected(cleaned[name])) for name, plan in plans.items() if plan.cleaning}
    if reason is not None and known and not any(reason in names for names in known.values()):
        words = "; ".join(f"those of {name} are {', '.join(names)}" for name, names in known.items())
        raise InputError(f"--reason {reason}: no such reason; {words}")
    lines: list[str] = []
    for name, plan in plans.items():
        if plan.cleaning is None:
            lines += [f"{name}: no cleaning is configured (streams.{name}.clean)", ""]
            continue
        lines += [*_counts(name, plan, cleaned[name]), ""]
        for found in examples(plan, cleaned[name], prepared.store, reason=reason, count=count):
            lines.append(f"{found.reason}: {found.path}, line {found.line}")
            lines += [f"    {text[:_EXCERPT]!r}{' ...' if len(text) > _EXCERPT else ''}" for text in found.texts]
        lines += [""] * bool(lines[-1])
    return "\n".join(lines).rstrip()


def _counts(name: str, plan: StreamPlan, cleaned: Cleaned) -> list[str]:
    assert plan.cleaning is not None
    dropped: Counter[str] = Counter()
    for codes in cleaned.codes:
        dropped.update(cleaning.count_reasons(codes, plan.cleaning))
    rejected = _rejected(cleaned)
    records = sum(receipt.records for receipt in cleaned.receipts)
    rows = [(name, "records", "share"), ("read", f"{records:,}", "")]
    rows += [(f"unusable: {reason}", f"{n:,}", f"{n / records:.3%}") for reason, n in rejected.most_common()]
    rows += [(reason, f"{n:,}", f"{n / records:.3%}") for reason, n in dropped.most_common()]
    kept = records - rejected.total() - dropped.total()
    return table([*rows, ("kept", f"{kept:,}", f"{kept / records:.3%}")])


def _rejected(cleaned: Cleaned) -> Counter[str]:
    """How many records are unusable, by reason."""
    rejected: Counter[str] = Counter()
    for receipt in cleaned.receipts:
        rejected.update(receipt.rejected)
    return rejected


def examples(
    plan: StreamPlan, cleaned: Cleaned, store: Store, *, reason: str | None = None, count: int
) -> Iterator[Example]:
    """The first `count` unusable and dropped records of each reason (or of one), in the order of the stream.

    Reads the sources only so far.
    """
    assert plan.cleaning is not None
    before = _lines_before(plan, cleaned)
    left = {name: count for name in _rejected(cleaned) if reason in (None, name)}
    for part, unit, receipt, first in zip(plan.parts, cleaned.units, cleaned.receipts, before, strict=True):
        if any(left.get(name) for name in receipt.rejected):
            for content in store.read(f"{unit.folder}/rejects.jsonl").splitlines():
                reject = orjson.loads(content)
                if left.get(reject["reason"]):
                    left[reject["reason"]] -= 1
                    yield Example(reject["reason"], part.paths[0], first + reject["line"], (reject["excerpt"],))
    wanted = [plan.cleaning.code(name) for name in plan.cleaning.reasons if reason in (None, name)]
    room = dict.fromkeys(wanted, count)
    found: list[tuple[int, Example]] = []
    for part, codes, first in zip(plan.parts, cleaned.codes, before, strict=True):
        chosen: dict[int, int] = {}
        for code in wanted:
            records = np.flatnonzero(codes == code)[: room[code]].tolist()
            room[code] -= len(records)
            chosen |= dict.fromkeys(records, code)
        for record, line, texts in _records(plan, part, sorted(chosen)):
            name = plan.cleaning.reasons[chosen[record] - 1]
            found.append((chosen[record], Example(name, part.paths[0], first + line, texts)))
    yield from (example for _, example in sorted(found, key=lambda pair: pair[0]))


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


def _lines_before(plan: StreamPlan, cleaned: Cleaned) -> list[int]:
    """How many lines of its file come before each part."""
    lines: Counter[tuple[str, ...]] = Counter()
    before = []
    for part, receipt in zip(plan.parts, cleaned.receipts, strict=True):
        if part.start == 0:
            lines[part.paths] = 0  # a file that is named twice
        before.append(lines[part.paths])
        lines[part.paths] += receipt.lines
    return before


def describe_sample(manifest: Manifest, config: Config, name: str, sample: int) -> str:
    """A sample of a built stream as text, and the documents in it with their files and lines."""
    store = open_store(config.store)
    stream = next((stream for stream in manifest.streams if stream.name == name), None)
    if stream is None:
        raise InputError(f"no stream '{name}' in the manifest; it has {', '.join(s.name for s in manifest.streams)}")
    if not 0 <= sample < stream.samples:
        raise InputError(f"stream '{name}' has samples 0 to {stream.samples - 1:,}")
    width = manifest.seq_len + 1
    (tokens,) = StreamReader(store, stream, width, token_dtype(manifest.vocab_size)).read([sample])
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    lines, at = [f"stream {name}, sample {sample}: {width:,} tokens"], 0
    for origin in StreamProvenance(store, stream.remote, width).origins(sample):
        part = tokens[at : at + origin.num_tokens].tolist()
        lines.append(f"{origin.path}, line {origin.line}: {origin.num_tokens} tokens from token {origin.first_token}")
        lines += [f"  | {line}" for line in tokenizer.decode(part).split("\n")]
        at += origin.num_tokens
    return "\n".join(lines)


def describe_line(manifest: Manifest, store: Store, place: str) -> str:
    """The samples of each stream that hold a part of a source line, `place` being FILE:LINE."""
    path, _, line = place.rpartition(":")
    if not path or not line.isdigit() or not int(line):
        raise InputError(f"--line {place} is not of the form FILE:LINE with lines from 1 on, such as docs.jsonl:17")
    lines = []
    sources = set()
    for stream in manifest.streams:
        provenance = StreamProvenance(store, stream.remote, manifest.seq_len + 1)
        sources |= set(provenance.sources)
        for source in provenance.sources:
            if _same_file(source, path):
                samples = provenance.samples_of(source, int(line)).tolist()
                found = f"samples {', '.join(map(str, samples))}" if samples else "in no sample (see below)"
                lines.append(f"{stream.name}: {found}")
    if not lines:
        known = sorted(sources)
        more = f" and {len(known) - _SOURCES:,} more" if len(known) > _SOURCES else ""
        raise InputError(f"{path} is no source of '{manifest.name}'; they are {', '.join(known[:_SOURCES])}{more}")
    if any(line.endswith("(see below)") for line in lines):
        lines.append(
            "In no sample is what is past the end of the file, blank, unusable, dropped by cleaning, "
            "or in the tokens that fill no sample."
        )
    return "\n".join(lines)


def _same_file(one: str, other: str) -> bool:
    return one == other or (not is_url(one) and not is_url(other) and Path(one).resolve() == Path(other).resolve())
