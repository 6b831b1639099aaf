"""Estimate a build from a sample of its sources: tokens, time, disk, and dropped records."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataengine.arrays import with_part
from dataengine.build import clean, measures
from dataengine.build.experiment import last_manifest, make_manifest
from dataengine.build.prepare import Preparation, StreamPlan, label_notes
from dataengine.build.rejects import describe_rejects, nothing_kept, too_few_tokens, too_many_rejects
from dataengine.build.tokenize import TokenizeDocuments, TokenizePairs, find_lost, written_columns
from dataengine.build.units import Reading, place_of, select
from dataengine.cleaning import dedup, near_duplicates
from dataengine.commands.estimate_disk import Counts, NearKeys, StreamDisk, measure_near, peak, stream_rounds
from dataengine.commands.estimate_sample import Kind, PartSample, choose_places, kind_of, margin
from dataengine.errors import InputError
from dataengine.mds.types import Shard, StoredFile, Stream, mark
from dataengine.mds.writer import compress, encode_shard
from dataengine.records.formats import format_of
from dataengine.records.lines import read_beginning
from dataengine.records.parts import whole_file
from dataengine.records.splitting import LINES
from dataengine.records.types import Notes, Records, SourcePart, add_notes
from dataengine.tables import size_words, table
from dataengine.text import pairs
from dataengine.text.packing import join_documents
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.writing import Written, write_texts

SAMPLE_BYTES = 4 * 10**6  # to read of each stream
_BATCH = 500
_EXCERPT = 200  # characters of an unusable record


@dataclass
class StreamEstimate:
    """Counts of a sample of a stream, and estimates of the whole."""

    name: str
    bytes: int
    sampled_bytes: int = 0
    records: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_reject: tuple[str, str, str] | None = None  # its place, reason and excerpt
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)  # on usable records
    tokens: int = 0
    bytes_per_token: float = 0.0
    near: NearKeys = field(default_factory=NearKeys)
    samples: dict[int, PartSample] = field(default_factory=dict)  # of each part that is sampled
    num_parts: Counter[Kind] = field(default_factory=Counter)  # of the stream, by kind
    whole: Whole = field(default_factory=lambda: Whole())

    @property
    def scale(self) -> float:
        """The bytes of the whole over those of the sample."""
        return self.bytes / max(self.sampled_bytes, 1)


@dataclass
class Whole:
    """Estimates of a whole stream: each sampled part counts for the bytes that it stands for."""

    records: float = 0.0
    kept: float = 0.0
    tokens: float = 0.0
    lost: dict[str, float] = field(default_factory=dict)  # unusable and dropped records by reason, without duplicates
    seconds: float = 0.0
    longest: float = 0.0  # seconds that a single part takes; one worker reads a part


def estimate(plan: StreamPlan, sample_bytes: int = SAMPLE_BYTES) -> StreamEstimate:
    """Read, clean and tokenize a sample of a stream. Writes nothing to the store.

    A sample that is the whole stream gives the counts of the build (but for scores, and exchanged targets).
    """
    made = StreamEstimate(plan.name, sum(part.size for part in plan.parts))
    made.num_parts.update(map(kind_of, plan.parts))
    tokenizer, dtype, bos_id = plan.format.load()
    written = written_columns(plan.languages, plan.directions, plan.sides)
    chosen = choose_places(plan.parts, sample_bytes)
    kept: list[tuple[int, Records]] = []  # number of the part, records
    keys = [np.empty(0, dedup.KEY)]
    near: list[str] = []  # usable texts
    by_near = plan.cleaning.near_dedup if plan.cleaning else None
    notes: Notes = {}  # with the place of the first before its excerpt
    total = min(sample_bytes, made.bytes)
    with tqdm(None, f"sampling {plan.name}", total, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:
        for place, (wanted, stands_for) in chosen.items():
            part, begun = plan.parts[place], time.perf_counter()
            sample = made.samples[place] = PartSample(kind_of(part), part.size, stands_for)
            before_it = made.sampled_bytes, made.records, made.rejected + made.dropped
            for batch in _sample(plan, part, wanted, made, notes):
                sample.texts.append(np.array([batch.lines, _sizes(batch)], np.int64).T)
                near += measures.near_texts(batch) if by_near is not None else ()
                if plan.cleaning is not None:
                    codes = clean.judge(batch, plan.cleaning)
                    made.dropped.update(clean.count_reasons(codes, plan.cleaning))
                    batch = select(batch, codes == 0)
                if (reasons := find_lost(batch, tokenizer, written)) is not None:
                    made.rejected.update(reason for reason in reasons if reason is not None)
                    for line, reason, *texts in zip(batch.lines, reasons, *batch.texts, strict=True):
                        if reason is not None and made.first_reject is None:
                            where = f"{part.paths[0]}, {place_of(part, line)}"
                            made.first_reject = where, reason, "\t".join(texts)[:_EXCERPT]
                    batch = select(batch, np.array([reason is None for reason in reasons], bool))
                if plan.cleaning is not None and plan.cleaning.dedup and batch.lines:
                    alive = measures.Texts(batch, made.kept)
                    keys.append(measures.make_keys(alive, plan.cleaning.dedup, plan.cleaning.languages))
                made.kept += len(batch.lines)
                kept.append((place, batch))
            sample.seconds += time.perf_counter() - begun
            _weigh(made, sample, *before_it)
            bar.update(min(made.sampled_bytes, sample_bytes) - bar.n)
    sampled = "in the sample, " if made.scale > 1 else ""
    for said, (count, _, first) in sorted(notes.items()):
        made.notes.append(f"stream '{plan.name}': {said} ({sampled}{count:,} times, first in {first})")
    if plan.cleaning is not None:
        begun = time.perf_counter()
        kept, compared = _drop_duplicates(kept, np.concatenate(keys), plan.cleaning, made)
        seconds = time.perf_counter() - begun
        for sample in made.samples.values():
            sample.seconds += seconds * sample.records / max(made.records, 1)
        if by_near is not None:
            made.near = measure_near(near, compared, by_near)
    tokens = [np.empty(0, dtype)]
    before: Counter[int] = Counter()  # pairs of a part, whose directions take turns
    units = plan.token_units([None] * len(plan.parts))
    for place, batch in kept:
        begun, sample = time.perf_counter(), made.samples[place]
        made_of = _write(units[place], tokenizer, batch, before[place])
        joined = join_documents(made_of.tokens, made_of.lengths, dtype, eos_id=None, bos_id=bos_id)
        tokens.append(joined[0])
        sample.seconds += time.perf_counter() - begun
        before[place] += len(batch.lines)
        made.whole.kept += len(batch.lines) * sample.weight
        made.whole.tokens += len(joined[0]) * sample.weight
        sample.tokens += len(joined[0])
        lines = np.repeat(batch.lines, len(joined[1]) // max(len(batch.lines), 1))  # a side is a document
        sample.written.append(np.stack([lines, joined[1]], axis=1))
    _count_seconds(made, plan.parts)
    made.tokens = sum(map(len, tokens))
    made.bytes_per_token = _stored_size(plan, np.concatenate(tokens))
    return made


def _sizes(batch: Records) -> list[int]:
    """The bytes of each record's texts."""
    return [sum(len(text.encode(errors="replace")) for text in texts) for texts in zip(*batch.texts, strict=True)]


def _weigh(made: StreamEstimate, sample: PartSample, read: int, records: int, lost: Counter[str]) -> None:
    """Add what was sampled of a part to the estimate of the whole; the last arguments are the counts before it."""
    sample.read, sample.records = made.sampled_bytes - read, made.records - records
    made.whole.records += sample.records * sample.weight
    for reason, count in (made.rejected + made.dropped - lost).items():
        made.whole.lost[reason] = made.whole.lost.get(reason, 0.0) + count * sample.weight


def _count_seconds(made: StreamEstimate, parts: Sequence[SourcePart]) -> None:
    """Estimate the seconds of the whole and of its longest part: each kind of file has its own speed."""
    for kind in made.num_parts:
        mine = [sample for sample in made.samples.values() if sample.kind == kind]
        seconds = sum(sample.seconds * sample.weight for sample in mine)
        largest = max(part.size for part in parts if kind_of(part) == kind)
        made.whole.seconds += seconds
        share = largest / max(sum(sample.stands_for for sample in mine), 1)
        made.whole.longest = max(made.whole.longest, seconds * share)


def _drop_duplicates(
    batches: list[tuple[int, Records]], keys: NDArray[Any], by: clean.Cleaning, made: StreamEstimate
) -> tuple[list[tuple[int, Records]], list[str]]:
    """Drop and count the records that have a key of an earlier record in the sample.

    Returns the others, and the texts that were compared to find near duplicates.
    """
    compared: list[str] = []
    if not batches:
        return [], compared
    _, records, kinds = dedup.drop_later([dedup.find_groups(with_part(keys, 0))])
    made.dropped.update(f"duplicate {by.dedup[kind]}" for kind in kinds.tolist())
    fresh = np.ones(made.kept, bool)
    fresh[records] = False
    if by.near_dedup is not None:
        texts = [text for _, batch in batches for text in measures.near_texts(batch)]
        left = np.flatnonzero(fresh)
        compared = [texts[k] for k in left.tolist()]
        twins = near_duplicates.find_near_duplicates(compared, by.near_dedup)["record"]
        made.dropped["near duplicate"] += len(twins)
        fresh[left[twins.astype(np.int64)]] = False
    made.dropped += Counter()  # removes reasons with a count of 0
    made.kept = int(fresh.sum())
    ends = np.cumsum([len(batch.lines) for _, batch in batches])[:-1]
    left_of = zip(batches, np.split(fresh, ends), strict=True)
    return [(place, select(batch, k)) for (place, batch), k in left_of], compared


def _sample(plan: StreamPlan, part: SourcePart, wanted: int, made: StreamEstimate, notes: Notes) -> Iterator[Records]:
    """Batches of records from about the first `wanted` bytes of a part; counts them, and the unusable ones.

    Adds remarks about them to `notes`.

    Bytes and records must cover the same range, or the estimate is wrong, so data that a reader has read ahead does not
    count.
    """
    whole = part
    by_line = format_of(part.format, plan.records).splitter is LINES
    used, read, before = part.size, 0, 0

    def add(count: int) -> None:
        nonlocal read
        read += count

    with TemporaryDirectory() as folder:
        if by_line and part.size > wanted:
            text, used = read_beginning(part, wanted)
            path = Path(folder, f"the beginning of {Path(part.paths[0]).name} (plain)")
            path.write_bytes(text)
            part = replace(whole_file(path, part.format), columns=part.columns)
        reading = Reading(part, plan.records, add)
        held: list[Records] = []
        for batch in reading.batches(_BATCH if by_line else 1):
            if not by_line and read > before:  # the first record of the next block
                if before >= max(wanted, 1) and read < part.size:
                    used = before
                    break
                before = read
            made.records += len(batch.lines)
            held.append(batch)
            if by_line or len(held) == _BATCH:
                yield _join(held)
                held = []
        if held:
            yield _join(held)
    made.records += sum(reading.rejected.values())
    made.rejected.update(reading.rejected)
    for said, (count, line, excerpt) in reading.notes.items():
        add_notes(notes, {said: (count, line, f"{whole.paths[0]}, {place_of(whole, line)}: {excerpt}")})
    if made.first_reject is None and (first := reading.first_reject) is not None:
        made.first_reject = f"{whole.paths[0]}, {place_of(whole, first.line)}", first.reason, first.excerpt
    made.sampled_bytes += used


def _join(batches: Sequence[Records]) -> Records:
    if len(batches) == 1:
        return batches[0]
    columns = zip(*(batch.texts for batch in batches), strict=True)
    return Records(
        [line for batch in batches for line in batch.lines],
        tuple([text for texts in column for text in texts] for column in columns),
        [label for batch in batches for label in batch.labels],
        [],
    )


def _write(unit: TokenizeDocuments | TokenizePairs, tokenizer: Tokenizer, batch: Records, first: int) -> Written:
    """The documents of records; `first` is the number of the first pair in its part."""
    if isinstance(unit, TokenizeDocuments):
        return write_texts(tokenizer, batch.texts[0])
    columns = dict(zip(unit.languages, batch.texts, strict=True))
    if unit.sides:
        return write_texts(tokenizer, pairs.write_sides(columns, unit.sides, unit.languages))
    return unit.writer(tokenizer).write(columns, first + np.arange(len(batch.lines)))


def _stored_size(plan: StreamPlan, tokens: NDArray[Any]) -> float:
    """Bytes of a token in the store."""
    width = plan.format.width
    rows = tokens[: len(tokens) // width * width].reshape(-1, width)
    form = plan.format.shards
    if plan.format.loss_on == "target":
        rows = mark(rows, np.ones(rows.shape, np.bool_))
    config, size = form.config(width, rows.dtype), 0
    if form.compression is None or not len(rows):
        return float(sum(config["column_sizes"]) + 4) / width
    for first in range(0, len(rows), form.samples_per_shard):
        size += len(compress(encode_shard([rows[first : first + form.samples_per_shard]], config), form.compression))
    return size / int(rows.size)


def describe_estimate(prepared: Preparation, *, workers: int, sample_bytes: int = SAMPLE_BYTES) -> str:
    """Tables of the estimates, and whether the streams suffice for the stages."""
    made = [estimate(plan, sample_bytes) for plan in prepared.streams.values()]
    disk = [estimate_disk(plan, one) for plan, one in zip(prepared.streams.values(), made, strict=True)]
    copies = prepared.store.copies_links
    rows = [("stream", "bytes", "sampled", "records", "kept", "tokens", "shards", "disk", f"time, {workers} workers")]
    for one, takes in zip(made, disk, strict=True):
        rows.append(
            (
                one.name,
                size_words(one.bytes),
                f"{min(1 / one.scale, 1):.2%}",
                f"{one.whole.records:,.0f}{_describe_margin(one, tokens=False)}",
                f"{one.whole.kept:,.0f}",
                f"{one.whole.tokens:,.0f}{_describe_margin(one, tokens=True)}",
                size_words(one.whole.tokens * one.bytes_per_token),
                size_words(takes.peak(copies=copies)),
                _duration(max(one.whole.seconds / workers, one.whole.longest)),
            )
        )
    lines = [
        "estimated from a sample; only the hashes of the sources were written "
        f"({prepared.store.url}/source_hashes.json), which the build reuses",
        "",
        *table(rows),
        f"disk: the most that shards and files of tasks take during the build; {size_words(peak(disk, copies=copies))} "
        "in all",
        *["±: where the whole lies nine times in ten, judging by how much the sampled parts differ"]
        * any(one.scale > 1 for one in made),
    ]
    for one in made:
        for reason, count in (*one.rejected.most_common(), *one.dropped.most_common()):
            word = "unusable" if reason in one.rejected else "dropped"
            share = count / max(one.records, 1)
            if reason in one.whole.lost:
                share = one.whole.lost[reason] / one.whole.records
            lines.append(f"{one.name}: {share:.2%} {word}: {reason}{_describe_duplicates(one, reason)}")
        if one.name in prepared.config.scores:
            lines.append(f"{one.name}: records that `scores` will drop are not counted")
    for name, labels in label_notes(prepared.streams, prepared.config).items():
        lines += [f"note: {words}" for words in labels]
        lines += [f"note: {words}" for one in made if one.name == name for words in one.notes]
    return "\n".join([*lines, "", _describe_fit(prepared, made)])


def _describe_margin(made: StreamEstimate, *, tokens: bool) -> str:
    """How far an estimate may be off; nothing if the sample is the whole."""
    counted = made.whole.tokens if tokens else made.whole.records
    off = margin(list(made.samples.values()), made.num_parts, tokens=tokens)
    return f" ± {off / max(counted, 1):.1%}" if made.scale > 1 else ""


def estimate_disk(plan: StreamPlan, made: StreamEstimate) -> StreamDisk:
    """The disk that the build of a stream takes while it runs."""
    whole = made.whole
    duplicates = sum(count for reason, count in made.dropped.items() if reason.startswith("duplicate "))
    counts = Counts(
        usable=whole.records - sum(whole.lost.get(reason, 0.0) for reason in made.rejected),
        alive=whole.records - sum(whole.lost.values()),
        duplicates=duplicates / max(made.records, 1) * whole.records,
        kept=whole.kept,
        tokens=whole.tokens,
        shards=whole.tokens * made.bytes_per_token,
        near=made.near,
    )
    return stream_rounds(plan, counts)


def _describe_duplicates(made: StreamEstimate, reason: str) -> str:
    if made.scale <= 1 or not reason.startswith(("duplicate", "near")):
        return ""
    lowest, highest = duplicate_range(made.dropped[reason], made.records, made.scale)
    return f" of the sample; {lowest:.2%} to {highest:.2%} of the whole, of which the first figure is counted"


def duplicate_range(dropped: int, records: int, scale: float) -> tuple[float, float]:
    """The share of duplicates in the whole, which is `scale` times a sample of `records` with `dropped` duplicates.

    A sample shows duplicates as they are where they are next to each other. If they are spread evenly, both of a pair
    are in the sample with the square of the chance of one, so their share is `scale` times as large. The highest share
    allows for chance: two standard deviations, and the 3 that 0 may stand for.
    """
    highest = (dropped + 2 * dropped**0.5 + 3) * scale
    return dropped / max(records, 1), min(highest / max(records, 1), 1.0)


def _refusal(plan: StreamPlan, made: StreamEstimate, max_bad_fraction: float) -> str | None:
    """The reason why the build would refuse a stream, judging by the sample."""
    sampled = " sampled" if made.scale > 1 else ""
    bad, dropped = made.rejected.total(), +made.dropped
    if too_many_rejects(made.records, bad, max_bad_fraction):
        return describe_rejects(plan, made.records, made.rejected, max_bad_fraction, made.first_reject, sampled=sampled)
    if not made.kept:
        return nothing_kept(plan, dropped, bad, sampled)
    tokens = int(made.whole.tokens)
    if tokens <= plan.format.seq_len:
        return too_few_tokens(plan, made.kept, dropped, tokens)
    return None


def _describe_fit(prepared: Preparation, made: list[StreamEstimate]) -> str:
    config, width = prepared.config, prepared.config.seq_len + 1
    refusals = [_refusal(prepared.streams[one.name], one, config.max_bad_fraction) for one in made]
    if any(refusals):
        return "\n".join(f"the build would stop: {refusal}" for refusal in refusals if refusal)
    streams = {}
    for one in made:
        samples = int(one.whole.tokens) // width
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
            last=last_manifest(config),
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
