"""Show what cleaning drops, with examples from the sources, and what a sample is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dataengine import cleaning
from dataengine.build import Cleaned, Preparation, StreamPlan, clean_stream, experiment_url, run_rounds
from dataengine.config import Config
from dataengine.engines import Engine
from dataengine.errors import InputError
from dataengine.manifest import read_manifest
from dataengine.provenance import StreamProvenance
from dataengine.storage import open_store
from dataengine.streams import StreamReader
from dataengine.tables import table
from dataengine.tokens import load_tokenizer, token_dtype
from dataengine.units import Reading

_EXCERPT = 160  # characters of a text
_BATCH = 1000


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
    lines: list[str] = []
    for name, plan in plans.items():
        if plan.cleaning is None:
            lines += [f"{name}: no cleaning is configured (streams.{name}.clean)", ""]
            continue
        lines += [*_counts(name, plan, cleaned[name]), ""]
        for found in examples(plan, cleaned[name], reason=reason, count=count):
            lines.append(f"{found.reason}: {found.path}, line {found.line:,}")
            lines += [f"    {text[:_EXCERPT]!r}{' ...' if len(text) > _EXCERPT else ''}" for text in found.texts]
        lines.append("")
    return "\n".join(lines).rstrip()


def _counts(name: str, plan: StreamPlan, cleaned: Cleaned) -> list[str]:
    assert plan.cleaning is not None
    dropped: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for codes, receipt in zip(cleaned.codes, cleaned.receipts, strict=True):
        dropped.update(cleaning.count_reasons(codes, plan.cleaning))
        rejected.update(receipt.rejected)
    records = sum(receipt.records for receipt in cleaned.receipts)
    rows = [(name, "records", "share"), ("read", f"{records:,}", "")]
    rows += [(f"unusable: {reason}", f"{n:,}", f"{n / records:.3%}") for reason, n in rejected.most_common()]
    rows += [(reason, f"{n:,}", f"{n / records:.3%}") for reason, n in dropped.most_common()]
    kept = records - rejected.total() - dropped.total()
    return table([*rows, ("kept", f"{kept:,}", f"{kept / records:.3%}")])


def examples(plan: StreamPlan, cleaned: Cleaned, *, reason: str | None, count: int) -> Iterator[Example]:
    """The first `count` dropped records of each reason, in the order of the stream. Reads the sources only so far."""
    assert plan.cleaning is not None
    if reason is not None and reason not in plan.cleaning.reasons:
        raise InputError(
            f"stream '{plan.name}' drops nothing for '{reason}'; reasons are {', '.join(plan.cleaning.reasons)}"
        )
    wanted = [plan.cleaning.code(name) for name in plan.cleaning.reasons if reason in (None, name)]
    left = dict.fromkeys(wanted, count)
    found: list[tuple[int, Example]] = []
    first_line: Counter[tuple[str, ...]] = Counter()
    for part, codes, receipt in zip(plan.parts, cleaned.codes, cleaned.receipts, strict=True):
        chosen: dict[int, int] = {}
        for code in wanted:
            records = np.flatnonzero(codes == code)[: left[code]].tolist()
            left[code] -= len(records)
            chosen |= dict.fromkeys(records, code)
        if chosen:
            reading = Reading(part, plan.records, lambda count: None)
            last = max(chosen)
            for batch in reading.batches(_BATCH):
                first = reading.usable - len(batch.lines)
                for record in (k for k in chosen if first <= k < reading.usable):
                    place = record - first
                    texts = tuple(texts[place] for texts in batch.texts)
                    line = first_line[part.paths] + batch.lines[place]
                    name = plan.cleaning.reasons[chosen[record] - 1]
                    found.append((chosen[record], Example(name, part.paths[0], line, texts)))
                if reading.usable > last:
                    break
        first_line[part.paths] += receipt.lines
    yield from (example for _, example in sorted(found, key=lambda pair: pair[0]))


def describe_sample(config: Config, name: str, sample: int) -> str:
    """A sample of a built stream as text, and the documents in it with their files and lines."""
    manifest, store = read_manifest(experiment_url(config)), open_store(config.store)
    stream = next((stream for stream in manifest.streams if stream.name == name), None)
    if stream is None:
        raise InputError(f"no stream '{name}' in the manifest; it has {', '.join(s.name for s in manifest.streams)}")
    if not 0 <= sample < stream.samples:
        raise InputError(f"stream '{name}' has samples 0 to {stream.samples - 1:,}")
    width = manifest.seq_len + 1
    (tokens,) = StreamReader(store, stream, width, token_dtype(manifest.vocab_size)).read([sample])
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token)
    lines, at = [f"stream {name}, sample {sample:,}: {width:,} tokens"], 0
    for origin in StreamProvenance(store, stream.remote, width).origins(sample):
        part = tokens[at : at + origin.num_tokens].tolist()
        lines.append(f"{origin.path}, line {origin.line:,}: {origin.num_tokens} tokens from token {origin.first_token}")
        lines += [f"  | {line}" for line in tokenizer.decode(part).split("\n")]
        at += origin.num_tokens
    return "\n".join(lines)


def describe_line(config: Config, place: str) -> str:
    """The samples of each stream that hold a part of a source line, `place` being FILE:LINE."""
    path, _, line = place.rpartition(":")
    if not path or not line.isdigit():
        raise InputError(f"--line {place} is not of the form FILE:LINE, such as corpus/docs.jsonl:17")
    manifest, store = read_manifest(experiment_url(config)), open_store(config.store)
    lines = []
    sources = set()
    for stream in manifest.streams:
        provenance = StreamProvenance(store, stream.remote, manifest.seq_len + 1)
        sources |= set(provenance.sources)
        if path in provenance.sources:
            samples = provenance.samples_of(path, int(line)).tolist()
            lines.append(f"{stream.name}: {'samples ' + ', '.join(map(str, samples)) if samples else 'in no sample'}")
    if not lines:
        raise InputError(f"{path} is no source of '{manifest.name}'; they are {', '.join(sorted(sources))}")
    return "\n".join(lines)
