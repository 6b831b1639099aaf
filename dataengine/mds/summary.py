"""The files beside the shards of a stream: how it was made, and its unusable records.

    stream.summary   JSON: the sources, the counts, and the place of each document; a hash of it at the end
    rejects.jsonl    the unusable records with their files and lines; only if there are some

No other name than index.json may end in `.json`: `streaming.base.util.merge_index` reads every such file below a folder
as the index of a stream. In earlier versions, the summary is `stream.json`, without the hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from dataengine.errors import InputError
from dataengine.json_files import IF_SET, decode, decode_hashed, decode_lines, encode_hashed
from dataengine.mds.types import Shard
from dataengine.storage.paths import is_url, where_it_would_be
from dataengine.storage.store import Store

NAME = "stream.summary"
_BEFORE = "stream.json"
NAMES = (NAME, _BEFORE)
REJECTS = "rejects.jsonl"
_LARGEST = 1 << 62  # sums of two are 64-bit numbers


@dataclass(frozen=True)
class SourceLines:
    """The lines of a part of a source."""

    path: str
    """Path or URL of the file; of a Moses pair, the file of the first language."""
    line: int
    """Number of the part's first line in the file, from 1. Parquet and Arrow count rows, TMX counts units."""
    lines: int
    """Lines in the part."""


@dataclass(frozen=True)
class Summary:
    """How a stream was made."""

    sources: tuple[SourceLines, ...]
    """The parts of the sources, in the order of the stream."""
    packed: tuple[int | None, ...]
    """For each packed task the index of its part in `sources`; null if documents.npy of the task names it."""
    segments: tuple[tuple[int, int, int, int], ...]
    """Where the tokens of the packed tasks are in the stream: rows of task, start in the stream, start in the task,
    tokens."""
    index_sha256: str
    """SHA-256 of index.json."""
    shards: tuple[Shard, ...]
    """The shards in order."""
    records: int
    """Records read. records = kept + rejected + dropped."""
    kept: int
    """Records kept."""
    rejected: dict[str, int]
    """Unusable records by reason."""
    dropped: dict[str, int]
    """Records dropped by cleaning, by reason."""
    tokens: int
    """Tokens in all samples and in the remainder."""
    remainder: int
    """Tokens after the last whole sample. remainder.npy holds them; no sample does."""
    unknown: int = 0
    """Unknown tokens in the kept records."""
    vanished: int = 0
    """Characters of the kept records for which the tokenizer has no token."""
    notes: tuple[str, ...] = ()
    """Warnings of the build about the records and their languages."""
    counted: int | None = field(default=None, metadata=IF_SET)
    """With `loss_on: target`, the tokens that count as labels, of all samples and the remainder. Else not in the
    file: all count."""
    templates: tuple[int, ...] = field(default=(), metadata=IF_SET)
    """Pairs written in each template, in the order of the config. Not in the file for the template of the paper
    alone."""


@dataclass(frozen=True)
class SourceReject:
    """An unusable record and the reason."""

    file: str
    """Path or URL of the source file."""
    line: int
    """Line in the file, from 1. Parquet and Arrow count rows, TMX counts units."""
    reason: str
    """Why the record is unusable."""
    excerpt: str
    """The beginning of the record."""


def encode_summary(summary: Summary) -> bytes:
    """The content of a stream.summary."""
    return encode_hashed(summary)


def read_summary(store: Store, folder: str) -> Summary:
    """The summary of the stream in a folder of a store. Raises InputError if it is missing or damaged."""
    for name, decode_summary in ((NAME, decode_hashed), (_BEFORE, decode)):
        key = f"{folder}/{name}"
        try:
            content = store.read(key)
        except FileNotFoundError:
            continue
        try:
            summary = decode_summary(Summary, content)
            _check(summary)
        except ValueError as error:
            raise damaged_stream(store, key, f"is damaged: {error}") from None
        return summary
    raise damaged_stream(store, f"{folder}/{NAME}", "is missing")


def encode_rejects(rejects: Sequence[SourceReject]) -> bytes:
    """The content of a rejects.jsonl."""
    return b"".join(orjson.dumps(asdict(reject), option=orjson.OPT_APPEND_NEWLINE) for reject in rejects)


def read_rejects(store: Store, folder: str) -> list[SourceReject] | None:
    """The unusable records of a stream; None if there is no such file. Raises InputError if it is damaged."""
    key = f"{folder}/{REJECTS}"
    try:
        content = store.read(key)
    except FileNotFoundError:
        return None
    try:
        return decode_lines(SourceReject, content)
    except ValueError:
        raise damaged_stream(store, key, "is damaged") from None


class DamagedStreamError(InputError):
    """A file of a stream is damaged or missing. `what` names the file and the problem; the message adds the remedy."""

    what = ""


def damaged_stream(store: Store, key: str, what: str) -> DamagedStreamError:
    """The error for a file of a stream that is damaged or missing, with a remedy.

    On a disk it may be the same file as that of a unit, so a new build from the units would not repair it.
    """
    folder = key.rpartition("/")[0]
    elsewhere = "" if is_url(store.url) else where_it_would_be(Path(store.url, key))
    remedy = f". Remove {store.url}/{folder}, and {store.url}/units, which may hold the same damage, and build again."
    error = DamagedStreamError(f"{store.url}/{key} {what}{elsewhere or remedy}")
    error.what = f"{store.url}/{key} {what}"
    return error


def _check(summary: Summary) -> None:
    """Raise ValueError for numbers that no build writes."""
    counts = [summary.records, summary.kept, summary.tokens, summary.remainder, summary.unknown, summary.vanished]
    counts += [*summary.rejected.values(), *summary.dropped.values()]
    counts += [shard.samples for shard in summary.shards] + [source.lines for source in summary.sources]
    if min(counts) < 0 or min((source.line for source in summary.sources), default=1) < 1:
        raise ValueError("a number in it is negative")
    if max(*counts, *(source.line for source in summary.sources), *(row[2] for row in summary.segments)) > _LARGEST:
        raise ValueError("a number in it is too large")
    at = 0
    for unit, start, inside, tokens in summary.segments:
        if not 0 <= unit < len(summary.packed) or start != at or inside < 0 or tokens < 1:
            raise ValueError("its segments do not follow each other")
        at += tokens
    if at != summary.tokens:
        raise ValueError(f"its segments hold {at:,} of {summary.tokens:,} tokens")
    if any(part is not None and not 0 <= part < len(summary.sources) for part in summary.packed):
        raise ValueError("it names a part that is not among its sources")
