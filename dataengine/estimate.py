"""What a build would give, from a sample of its sources: tokens, time, disk, and what cleaning would drop."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataengine import cleaning, dedup, pairs
from dataengine.build import Preparation, StreamPlan, make_manifest
from dataengine.errors import InputError
from dataengine.manifest import Stream
from dataengine.shards import Shard, StoredFile, compress, encode_shard
from dataengine.sources import Records, SourcePart
from dataengine.tables import size_words, table
from dataengine.units import Reading, select

SAMPLE_BYTES = 4 * 10**6  # read of each stream
_PLACES = 8  # parts that a sample is spread over
_BATCH = 500


@dataclass
class StreamEstimate:
    """Counts of a sample of a stream; `scale` times as much is the whole."""

    name: str
    bytes: int
    largest_part: int  # bytes; one worker reads a part, so it bounds the time
    sampled_bytes: int = 0
    records: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    bytes_per_token: float = 0.0

    @property
    def scale(self) -> float:
        """The whole over the sample."""
        return self.bytes / max(self.sampled_bytes, 1)


def estimate(plan: StreamPlan, sample_bytes: int = SAMPLE_BYTES) -> StreamEstimate:
    """Read a sample of a stream and take it through cleaning and tokenizing. Writes nothing."""
    made = StreamEstimate(plan.name, sum(part.size for part in plan.parts), max(part.size for part in plan.parts))
    tokenizer, dtype, bos_id = plan.format.load()
    places = np.unique(np.linspace(0, len(plan.parts) - 1, min(_PLACES, len(plan.parts))).round().astype(int)).tolist()
    keys = [np.empty(0, dedup.KEY)]
    tokens = [np.empty(0, dtype)]
    begun = time.perf_counter()
    with tqdm(total=min(sample_bytes, made.bytes), desc=f"sampling {plan.name}", unit="B", unit_scale=True,
              file=sys.stderr, disable=None) as bar:  # fmt: skip
        for place in places:
            for batch in _sample(plan, plan.parts[place], sample_bytes // len(places), made):
                kept = batch
                if plan.cleaning is not None:
                    codes = cleaning.check_records(batch, plan.cleaning)
                    made.dropped.update(cleaning.count_reasons(codes, plan.cleaning))
                    kept = select(batch, codes == 0)
                    if plan.cleaning.finds_duplicates and kept.lines:
                        numbers = made.kept + np.arange(len(kept.lines))
                        keys.append(cleaning.duplicate_keys(kept, plan.cleaning, numbers))
                made.kept += len(kept.lines)
                if kept.lines:
                    ids, lengths = tokenizer.encode_flat(_texts(plan, kept))
                    made.tokens += len(ids) + len(lengths) * (1 if bos_id is None else 2)
                    tokens.append(ids.astype(dtype))
            bar.update(min(made.sampled_bytes, sample_bytes) - bar.n)
    made.seconds = time.perf_counter() - begun
    if plan.cleaning is not None and plan.cleaning.finds_duplicates:
        _, twins, kinds = dedup.find_duplicates([dedup.sort_keys(np.concatenate(keys))])
        records, first = np.unique(twins, return_index=True)
        made.dropped.update(plan.cleaning.reasons[kind - 1] for kind in kinds[first].tolist())
        made.tokens = round(made.tokens * (1 - len(records) / max(made.kept, 1)))
        made.kept -= len(records)
    made.bytes_per_token = _stored_size(plan, np.concatenate(tokens))
    return made


def _sample(plan: StreamPlan, part: SourcePart, wanted: int, made: StreamEstimate) -> Iterator[Records]:
    """Batches from the start of a part until about `wanted` bytes are read; counts them and the unusable records."""
    read = before = 0

    def hear(count: int) -> None:
        nonlocal read
        read += count

    reading = Reading(part, plan.records, hear)
    whole = True
    for batch in reading.batches(_BATCH):
        if before and read > before >= wanted:  # what was read before is used up: the count of bytes is right
            whole = False
            break
        before = read
        made.records += len(batch.lines)
        yield batch
    made.records += sum(reading.rejected.values())
    made.rejected.update(reading.rejected)
    made.sampled_bytes += part.size if whole else before


def _texts(plan: StreamPlan, batch: Records) -> list[str]:
    if not plan.languages:
        return batch.texts[0]
    columns = dict(zip(plan.languages, batch.texts, strict=True))
    if plan.sides:
        return pairs.write_sides(columns, plan.sides, plan.languages)
    return pairs.write_pairs(columns, 0, plan.directions, plan.languages)


def _stored_size(plan: StreamPlan, tokens: NDArray[Any]) -> float:
    """Bytes that a token takes in the store."""
    width = plan.format.seq_len + 1
    rows = tokens[: len(tokens) // width * width].reshape(-1, width)[: plan.format.shards.samples_per_shard]
    raw = (width * tokens.dtype.itemsize + 4) / width
    if plan.format.shards.compression is None or not len(rows):
        return raw
    content = encode_shard(rows, plan.format.shards.config(width, tokens.dtype))
    return len(compress(content, plan.format.shards.compression)) / int(rows.size)


def describe_estimate(prepared: Preparation, *, workers: int, sample_bytes: int = SAMPLE_BYTES) -> str:
    """Tables of what a build would give, and whether the streams suffice for the stages."""
    made = [estimate(plan, sample_bytes) for plan in prepared.streams.values()]
    rows = [("stream", "bytes", "sampled", "records", "kept", "tokens", "disk", f"time, {workers} workers")]
    for one in made:
        rows.append(
            (
                one.name,
                size_words(one.bytes),
                f"{min(1 / one.scale, 1):.2%}",
                f"{one.records * one.scale:,.0f}",
                f"{one.kept * one.scale:,.0f}",
                f"{one.tokens * one.scale:,.0f}",
                size_words(one.tokens * one.scale * one.bytes_per_token),
                _duration(one.seconds / max(one.sampled_bytes, 1) * max(one.bytes / workers, one.largest_part)),
            )
        )
    lines = ["estimated from a sample; nothing was written", "", *table(rows)]
    for one in made:
        for reason, count in (*one.rejected.most_common(), *one.dropped.most_common()):
            word = "unusable" if reason in one.rejected else "dropped"
            lines.append(f"{one.name}: {count / max(one.records, 1):.2%} {word}: {reason}")
        if any(reason.startswith(("duplicate", "near")) for reason in one.dropped) and one.scale > 1:
            lines.append(f"{one.name}: duplicates are those within the sample; the whole has more")
    return "\n".join([*lines, "", _describe_fit(prepared, made)])


def _describe_fit(prepared: Preparation, made: list[StreamEstimate]) -> str:
    config, width = prepared.config, prepared.config.seq_len + 1
    streams = {}
    for one in made:
        samples = int(one.tokens * one.scale) // width
        size = int(samples * width * one.bytes_per_token)
        shard = Shard(samples, StoredFile("", size, {}))
        streams[one.name] = Stream(one.name, "", "estimated", samples, samples * width, (shard,))
    try:
        manifest = make_manifest(
            config,
            streams,
            tokenizer_sha256=prepared.tokenizer.sha256,
            vocab_size=prepared.tokenizer.vocab_size,
            eos_id=prepared.tokenizer.eos_id,
        )
    except InputError as error:
        return f"by these estimates the schedule does not fit: {error}"
    steps = manifest.schedule.steps
    return (
        f"by these estimates the schedule fits: {steps:,} steps, {steps * config.batch_size * config.seq_len:,} tokens"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
