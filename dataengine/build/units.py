"""Units of work of a build. A unit is a pure function of what its fingerprint covers. Its folder appears whole.

Cleaning reads a part of a source and decides which records to keep (`clean`). Tokenizing reads it again and writes
samples (`tokenize`). Units of one round do not depend on each other and run on any machine that sees the store.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, ClassVar, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.json_files import IF_SET, encode_hashed, written_fields
from dataengine.mds.types import Shard
from dataengine.records.parts import lines_before
from dataengine.records.read import read_records
from dataengine.records.types import Notes, RecordFormat, Records, Reject, SourcePart, add_notes
from dataengine.storage.arrays import in_threads
from dataengine.storage.store import AddFile, Store

SCHEMA = 5  # increase it when the same input gives other bytes
LAYOUT = 4  # of the files in units/; increase it when only they change, so that no stream is built again

_EARLY_RECORDS = 10_000  # a unit stops here if over half are unusable, as the keys or the format are wrong
_REJECTS = 10_000  # unusable records that a unit writes; all are counted
_EXCERPT = 200  # characters of an unusable record that are written
_TOGETHER = 256  # parts whose decisions are in one file

OnProgress = Callable[[int], None]  # called with numbers of input bytes read


@dataclass(frozen=True)
class Place:
    """Where the files of a task are in a stream."""

    folder: str
    """Folder of the stream, relative to the store."""
    first: int
    """Number of the task's first shard there."""
    task: int | None
    """Number of its `documents.npy` there; null if it has none."""


@dataclass(frozen=True)
class Receipt:
    """The result of a unit. Every record is accounted for: records = kept + all rejected + all dropped."""

    lines: int = 0
    """Lines read."""
    records: int = 0
    """Records read. records = kept + rejected + dropped."""
    kept: int = 0
    """Records kept."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Unusable records by reason."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Records dropped by cleaning, by reason."""
    tokens: int = 0
    """Tokens in the task's shards and tail."""
    tail: int = 0
    """Tokens after the task's last whole sample, in tail.npy."""
    runs: int = 0
    """Files of keys or documents written; of a search for evaluation texts, records that hold one."""
    near_runs: int = 0
    """Files of near-duplicate keys written."""
    shards: list[Shard] = field(default_factory=list)
    """The task's shards in order."""
    notes: Notes = field(default_factory=dict)
    """Notes on usable records: text -> count, first line (from 1 in the part), excerpt."""
    unknown: int = 0
    """Unknown tokens in the kept records."""
    vanished: int = 0
    """Characters of the kept records for which the tokenizer has no token."""
    counted: int = field(default=0, metadata=IF_SET)
    """With `loss_on: target`, the tokens that count as labels."""
    templates: tuple[int, ...] = field(default=(), metadata=IF_SET)
    """Pairs written in each of several templates, in the order of the config."""
    spent: bool = field(default=False, metadata=IF_SET)
    """Whether the files that only later tasks read are removed. A build that needs them runs the task again."""
    moved: Place | None = field(default=None, metadata=IF_SET)
    """In a bucket, the stream that has the task's shards and `documents.npy`. They are no longer beside the receipt."""


class Identified:
    """What has a folder in units/, named by all that decides its bytes: a dataclass's fields."""

    kind: ClassVar[str]

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides its bytes."""
        return unit_fingerprint(self.kind, identity_of(self))

    @property
    def folder(self) -> str:
        """Key of its folder in the store."""
        return f"units/{self.fingerprint}"


@dataclass(frozen=True)
class Unit(Identified, ABC):
    """A unit of work. Subclasses add its inputs and `work`."""

    for_units: ClassVar[tuple[str, ...]] = ()  # beginnings of the names of files that only later units read

    @property
    def inputs(self) -> tuple[str, ...]:
        """The `names` of the units whose `for_units` and `also_for_units` this one reads."""
        return ()

    @property
    def also(self) -> Sequence[str]:
        """Folders of the store that it also leaves, each with a receipt."""
        return ()

    @property
    def also_for_units(self) -> Sequence[str]:
        """Those of `also` that only later units read."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """By which later units name what it leaves for them in their `inputs`."""
        return (self.fingerprint, *(folder.rpartition("/")[2] for folder in self.also_for_units))

    @property
    @abstractmethod
    def input_bytes(self) -> int:
        """Size of the input, for progress."""

    @abstractmethod
    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        """Do the work: read from the store and the sources, and pass the files of the unit's folder to `add`."""


def run_unit(unit: Unit, store: Store, on_progress: OnProgress = lambda count: None) -> Receipt:
    """Do a unit's work and publish its folder, the receipt last."""
    _keep_freed_memory()
    collects = gc.isenabled()
    gc.disable()  # records form no cycles, and searching millions of objects for some costs 10 % of the time
    try:
        with store.new_folder(unit.folder, last="receipt.json") as add:
            receipt = unit.work(store, add, on_progress)
            add("receipt.json", encode_hashed(receipt))
    finally:
        if collects:
            gc.enable()
    return receipt


def run_units(units: Sequence[Unit], store: Store, on_progress: OnProgress = lambda count: None) -> list[Receipt]:
    """Run units one after the other. If one fails, the earlier ones are finished."""
    return [run_unit(unit, store, on_progress) for unit in units]


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next batch. Returning pages to the kernel and faulting them in again costs
    10 % of a unit's time, and more with several workers."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-3, 1 << 25), (-1, 1 << 30), (-2, 1 << 26)):  # mmap and trim thresholds, top pad
            mallopt(parameter, value)


def unit_fingerprint(kind: str, identity: Mapping[str, Any]) -> str:
    """Fingerprint of a unit of some kind with these fields."""
    return fingerprint_of({"schema": SCHEMA, "layout": LAYOUT, "kind": kind, **identity})


def fingerprint_of(identity: object) -> str:
    """Hash of a JSON value in canonical form."""
    return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def identity_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that decide bytes."""
    written = written_fields(value)
    decides = [info.name for info in fields(value) if info.name in written and info.metadata.get("identity", True)]
    return {name: _plain(getattr(value, name)) for name in decides}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        # A tokenizer may have thousands of control ids.
        return list(value) if set(map(type, value)) <= {int, str} else [_plain(inner) for inner in value]
    return identity_of(value) if is_dataclass(value) else value


@dataclass(frozen=True)
class Named:
    """Decisions on a part's records: some bytes of a file with those of several parts, named by its content."""

    sha256: str
    key: str = field(metadata={"identity": False})  # of the file
    start: int = field(metadata={"identity": False})
    size: int = field(metadata={"identity": False})
    suffix: ClassVar[str]

    def read_bytes(self, store: Store) -> bytes:
        """Its content. Raises InputError if it is damaged."""
        with suppress(FileNotFoundError):
            content = store.read_range(self.key, self.start, self.start + self.size)
            if hashlib.sha256(content).hexdigest() == self.sha256:
                return content
        raise InputError(f"{store.url}/{self.key} is missing or damaged. Remove the folder keeps and build again.")

    @classmethod
    def publish(cls, contents: Sequence[bytes], store: Store) -> list[Self]:
        """Write contents to the store, _TOGETHER in a file, unless they are there."""
        files = [contents[first : first + _TOGETHER] for first in range(0, len(contents), _TOGETHER)]
        return [one for published in in_threads(partial(cls._publish_file, store), files) for one in published]

    @classmethod
    def _publish_file(cls, store: Store, contents: Sequence[bytes]) -> list[Self]:
        whole = b"".join(contents)
        key = f"keeps/{hashlib.sha256(whole).hexdigest()[:32]}.{cls.suffix}"
        if store.size(key) != len(whole):
            store.write(key, whole)
        starts = accumulate(map(len, contents), initial=0)
        return [
            cls(hashlib.sha256(content).hexdigest(), key, start, len(content))
            for content, start in zip(contents, starts, strict=False)
        ]


@dataclass(frozen=True)
class Keep(Named):
    """Which of a part's usable records are kept: one bit per record."""

    suffix: ClassVar[str] = "bits"

    def read(self, store: Store) -> NDArray[np.uint8]:
        """The bits, eight per byte. Raises InputError if they are damaged."""
        return np.frombuffer(self.read_bytes(store), np.uint8)


def publish_keeps(kept: Iterable[NDArray[np.bool_] | None], store: Store) -> list[Keep | None]:
    """Write the decisions on parts to the store. None if all records are kept, or without a decision: such a part
    counts as not cleaned."""
    bits = [None if one is None or one.all() else np.packbits(one).tobytes() for one in kept]
    published = iter(Keep.publish([one for one in bits if one is not None], store))
    return [None if one is None else next(published) for one in bits]


class Reading:
    """Read the usable records of a part, with `bits` only the kept ones; count all, and collect the unusable ones."""

    def __init__(
        self, part: SourcePart, form: RecordFormat, on_progress: OnProgress, bits: NDArray[np.uint8] | None = None
    ) -> None:
        self._part, self._form, self._on_progress, self._bits = part, form, on_progress, bits
        self._written: list[bytes] = []
        self.lines = self.usable = self.kept = 0
        self._lost = 0  # of the kept ones
        self.rejected: dict[str, int] = {}
        self.first_reject: Reject | None = None
        self.notes: Notes = {}

    def batches(self, size: int) -> Generator[Records, None, None]:
        """Batches of at most `size` records. `usable` counts the records up to the end of the latest batch."""
        for batch in self._all(size):
            for reject in batch.rejects:
                self._note(reject, batch.lines)
            add_notes(self.notes, batch.notes)
            first, self.usable = self.usable, self.usable + len(batch.lines)
            if self._bits is not None:
                batch = select(batch, self._kept(first))
            self.kept += len(batch.lines)
            if batch.lines:
                yield batch

    def _all(self, size: int) -> Generator[Records, None, None]:
        self.lines = yield from read_records(self._part, self._form, self._on_progress, size)

    def _kept(self, first: int) -> NDArray[np.bool_]:
        assert self._bits is not None
        low = first // 8
        bits = np.unpackbits(self._bits[low : self.usable // 8 + 1]).astype(bool)
        return bits[first - 8 * low : self.usable - 8 * low]

    def _note(self, reject: Reject, lines: Sequence[int]) -> None:
        """Count an unusable record. `lines` are the lines of the usable records of its batch."""
        self.rejected[reject.reason] = self.rejected.get(reject.reason, 0) + 1
        bad = sum(self.rejected.values())
        if bad <= _REJECTS:
            # Without the file's name: a unit does not depend on the path of its input.
            self.first_reject = self.first_reject or reject
            self._written.append(orjson.dumps(asdict(reject), option=orjson.OPT_APPEND_NEWLINE))
        seen = self.usable + bad - self._lost + (bisect_left(lines, reject.line) if bad > _EARLY_RECORDS / 2 else 0)
        if bad > _EARLY_RECORDS / 2 and bad > seen / 2 and seen >= _EARLY_RECORDS:
            raise InputError(
                f"{self._part.paths[0]}: {bad:,} of the first {seen:,} records are unusable, the last one for "
                f"{reject.reason} ({place_of(self._part, reject.line)}: {reject.excerpt}). "
                "Check the file's format, encoding and keys."
            )

    def leave_out(self, batch: Records, reasons: Sequence[str | None]) -> Records:
        """Count the records of the latest batch that have a reason as unusable; return the others."""
        for line, reason, texts in zip(batch.lines, reasons, zip(*batch.texts, strict=True), strict=True):
            if reason is not None:
                self._lost += 1
                self.kept -= 1
                self._note(Reject(line, reason, "\t".join(texts)[:_EXCERPT]), [])
        return select(batch, np.array([reason is None for reason in reasons], bool))

    def finish(self, add: AddFile) -> dict[str, Any]:
        """Write the unusable records; return the counts for the receipt."""
        if self._written:
            add("rejects.jsonl", b"".join(self._written))
        return {
            "lines": self.lines,
            "records": self.usable + sum(self.rejected.values()) - self._lost,
            "kept": self.kept,
            "rejected": dict(sorted(self.rejected.items())),
            "notes": dict(sorted(self.notes.items())),
        }


def place_of(part: SourcePart, line: int) -> str:
    """A line of a part in words, as a line of its file if that can be counted."""
    before = lines_before(part)
    return f"line {line + before:,}" if before is not None else f"line {line:,} after byte {part.start:,}"


def describe_notes(parts: Sequence[SourcePart], receipts: Sequence[Receipt], first_lines: Sequence[int]) -> list[str]:
    """The notes on the usable records of parts, each once, with the count and the first place.

    `first_lines` are the numbers of the parts' first lines in their files.
    """
    counts: Counter[str] = Counter()
    places: dict[str, str] = {}
    for part, receipt, first_line in zip(parts, receipts, first_lines, strict=True):
        for said, (count, line, excerpt) in receipt.notes.items():
            counts[said] += count
            places.setdefault(said, f"{part.paths[0]}, line {first_line + line - 1:,}: {excerpt}")
    return [f"{said} ({counts[said]:,} times, first in {place})" for said, place in places.items()]


def select(batch: Records, kept: NDArray[np.bool_]) -> Records:
    """The records of a batch where `kept`, shape (n,), is true."""
    if kept.all():
        return batch
    chosen = np.flatnonzero(kept).tolist()
    return Records(
        [batch.lines[k] for k in chosen],
        tuple([texts[k] for k in chosen] for texts in batch.texts),
        [batch.labels[k] for k in chosen] if batch.labels else [],
        batch.rejects,
    )
