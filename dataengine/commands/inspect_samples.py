"""Show the source lines of a sample, and the samples of a source line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataengine.build.executors import Engine
from dataengine.build.prepare import Preparation, StreamPlan
from dataengine.build.rounds import run_rounds
from dataengine.build.stream import clean_stream
from dataengine.errors import InputError
from dataengine.mds.provenance import StreamProvenance
from dataengine.mds.reader import SampleReader
from dataengine.mds.summary import read_summary
from dataengine.mds.types import token_dtype
from dataengine.records.formats import FORMATS
from dataengine.records.read import read_records
from dataengine.records.types import SourcePart
from dataengine.schedule.manifest import Manifest
from dataengine.storage.hub import parse_hub_path
from dataengine.storage.paths import is_hub, is_remote
from dataengine.storage.store import Store
from dataengine.text.tokenizers.base import Tokenizer

_SOURCES = 10  # files named in a message
Names = Mapping[str, Sequence[tuple[str, ...]]]  # folder of a stream -> the present names of each part's files


def current_names(prepared: Preparation) -> Names:
    """The present names of the sources, which may have been renamed since the build."""
    return {plan.folder: [part.paths for part in plan.parts] for plan in prepared.streams.values()}


def describe_sample(
    manifest: Manifest, store: Store, tokenizer: Tokenizer, name: str, sample: int, names: Names | None = None
) -> str:
    """A sample of a built stream as text, and the documents in it with their files and lines."""
    stream = next((stream for stream in manifest.streams if stream.name == name), None)
    if stream is None:
        raise InputError(f"no stream '{name}' in the manifest; it has {', '.join(s.name for s in manifest.streams)}")
    if not 0 <= sample < stream.samples:
        raise InputError(f"stream '{name}' has samples 0 to {stream.samples - 1:,}, not {sample:,}")
    width = manifest.seq_len + 1
    reader = SampleReader.of_store(store, [stream], width, token_dtype(manifest.vocab_size))
    (tokens,), mask = reader.read([sample]), reader.read_mask([sample])
    provenance = StreamProvenance(store, stream.remote, width, (names or {}).get(stream.remote, ()))
    lines, at = [f"stream {name}, sample {sample}: {width:,} tokens"], 0
    if mask is not None:
        lines[0] += f", of which {np.count_nonzero(mask):,} count in the loss (>)"
    for origin in provenance.origins(sample):
        lines.append(f"{origin.path}, line {origin.line}: {origin.num_tokens} tokens from token {origin.first_token}")
        here = slice(at, at + origin.num_tokens)
        counts = np.ones(origin.num_tokens, np.bool_) if mask is None else mask[0, here]
        for part in np.split(np.arange(origin.num_tokens), np.flatnonzero(np.diff(counts)) + 1):
            sign = "|" if mask is None or not counts[part[0]] else ">"
            lines += [f"  {sign} {line}" for line in tokenizer.decode(tokens[here][part].tolist()).split("\n")]
        at += origin.num_tokens
    return "\n".join(lines)


def changed_streams(manifest: Manifest, prepared: Preparation) -> list[str]:
    """The streams of a manifest whose sources have changed since the build."""
    now = {plan.folder for plan in prepared.streams.values()}
    return [stream.name for stream in manifest.streams if stream.remote not in now]


def describe_line(
    manifest: Manifest, store: Store, place: str, prepared: Preparation | None = None, engine: Engine | None = None
) -> str:
    """The samples of each stream that hold a part of the source line `place` (FILE:LINE), or why there is none.

    The file is known by its present name, or by its name at the time of the build. The reason is given only with
    `prepared` (the present sources) and `engine`, which repeats the cleaning that is not in the store.
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
            "A line is in no sample if it is past the end of the file, blank, unusable, dropped by cleaning, "
            "or in the remainder, which fills no sample."
        )
    return "\n".join(lines)


def _why_in_none(plan: StreamPlan, prepared: Preparation, engine: Engine, path: str, line: int) -> str:
    """The reason why no sample of a built stream holds a line of its files."""
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
    return f"the file has {max(ends):,} {FORMATS[part.format].counted}{'s' * (max(ends) != 1)}"


def _find_record(plan: StreamPlan, part: SourcePart, line: int) -> int | str:
    """The number of the usable record at a line of a part, or what the line is instead."""
    usable = 0
    for batch in read_records(part, plan.records):
        if reject := next((reject for reject in batch.rejects if reject.line == line), None):
            return f"unusable: {reject.reason}"
        if line in batch.lines:
            return usable + batch.lines.index(line)
        usable += len(batch.lines)
        if batch.lines and batch.lines[-1] > line:
            break
    skipped = ", or one of its texts is missing" if plan.records.skip_missing else ""
    return FORMATS[part.format].no_record + skipped


def _why_not_drawn(plan: StreamPlan, prepared: Preparation, engine: Engine, part: int, record: int) -> str:
    """The reason why a usable record is in no sample."""
    if plan.cleaning:
        cleaned = run_rounds(
            {plan.name: clean_stream(plan, prepared.config, prepared.store, checks=False)}, engine, prepared.store
        )[plan.name]
        if code := int(cleaned.codes[part][record]):
            return f"dropped: {plan.cleaning.reasons[code - 1]}"
    return "it is in the remainder, which fills no sample"


def _same_file(one: str, other: str) -> bool:
    if is_hub(one) and is_hub(other):  # a source has a commit; in what is asked for, any revision will do
        return replace(parse_hub_path(one), revision="") == replace(parse_hub_path(other), revision="")
    return one == other or (not any(map(is_remote, (one, other))) and Path(one).resolve() == Path(other).resolve())
