"""Work units of a build. A unit is a pure function of what its fingerprint covers, and publishes its folder whole.

    documents file -> TokenizeDocuments -> shards + tail
    pairs file     -> TokenizePairs     -> runs sorted by a random key
    all runs       -> MergeRuns (one a range of keys) -> shards + tail

The runs are those of an external merge sort, so that pairs are shuffled over all files of a stream in bounded memory.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from dataengine import order, pairs, sources
from dataengine.errors import InputError
from dataengine.packing import Packer, Tokens
from dataengine.shards import Shard, ShardWriter
from dataengine.storage import new_folder, write_file
from dataengine.tokens import Tokenizer, join_documents, load_tokenizer, token_dtype

SCHEMA = 2  # raise when the same input would give other bytes

_BATCH = 1000  # texts given to the tokenizer at a time
_WINDOW = 1 << 16  # pairs among which targets are exchanged
_RUN_TOKENS = 1 << 23
_EARLY_RECORDS = 10_000  # a unit stops here if more than half are unusable: the keys or the format are wrong

OnProgress = Callable[[int], None]  # hears of input bytes read
T = TypeVar("T")


@dataclass(frozen=True)
class TokenFormat:
    """How text becomes tokens, and tokens samples."""

    tokenizer: str = field(metadata={"identity": False})  # path; its sha256 stands for it
    tokenizer_sha256: str
    eos_token: str | None
    bos: bool
    seq_len: int
    samples_per_shard: int

    def load(self) -> tuple[Tokenizer, np.dtype[Any], int | None]:
        """The tokenizer, the type of tokens, and the id that begins a document, if any."""
        tokenizer = load_tokenizer(self.tokenizer, self.eos_token)
        return tokenizer, token_dtype(tokenizer.vocab_size), tokenizer.bos_id if self.bos else None


@dataclass(frozen=True)
class SourceFile:
    """An input file; its identity is its content, not its place."""

    path: str = field(metadata={"identity": False})
    size: int
    xxh3_128: str


@dataclass(frozen=True)
class Receipt:
    """What a unit did. `tail` tokens follow those in its shards; `runs` are those of TokenizePairs."""

    records: int
    kept: int
    rejected: dict[str, int]
    tokens: int
    tail: int
    runs: int
    shards: list[Shard]


@dataclass(frozen=True)
class Unit(ABC):
    """A unit of work; subclasses add what it does."""

    kind: ClassVar[str]
    format: TokenFormat

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides this unit's bytes."""
        return fingerprint_of({"schema": SCHEMA, "kind": self.kind, **_identity(self)})

    @property
    @abstractmethod
    def input_bytes(self) -> int:
        """Size of the input, for progress."""

    @abstractmethod
    def write(self, folder: Path, units: Path, on_progress: OnProgress) -> Receipt:
        """Do the work into `folder`; `units` holds the folders of the units this one reads."""


@dataclass(frozen=True)
class TokenizeDocuments(Unit):
    """Tokenize one file of documents and pack them in their order."""

    kind: ClassVar[str] = "documents"
    source: SourceFile
    text_key: str

    @property
    def input_bytes(self) -> int:
        return self.source.size

    def write(self, folder: Path, units: Path, on_progress: OnProgress) -> Receipt:
        tokenizer, dtype, bos_id = self.format.load()
        packer = Packer(self.format.seq_len + 1, dtype)
        writer = ShardWriter(folder, self.format.samples_per_shard)
        tally = _Tally(self.source, folder)
        provenance = []
        records = sources.read_documents(Path(self.source.path), self.text_key, on_progress)
        for batch in _batched(tally.keep(records), _BATCH):
            encoded = tokenizer.encode([text for _, text in batch])
            tokens, lengths = join_documents(encoded, dtype, eos_id=tokenizer.eos_id, bos_id=bos_id)
            tally.tokens += len(tokens)
            writer.add(packer.add(tokens))
            provenance.append(make_provenance(0, [line for line, _ in batch], lengths))
        _save_packed(folder, packer.tail, provenance)
        return tally.receipt(tail=len(packer.tail), shards=writer.finish())


@dataclass(frozen=True)
class TokenizePairs(Unit):
    """Tokenize one file of pairs into runs sorted by each document's random key."""

    kind: ClassVar[str] = "pairs"
    source: SourceFile
    directions: tuple[str, ...]
    adjacent: bool
    sides: tuple[str, ...]
    languages: dict[str, str]  # code -> name

    @property
    def input_bytes(self) -> int:
        return self.source.size

    def write(self, folder: Path, units: Path, on_progress: OnProgress) -> Receipt:
        tokenizer, dtype, bos_id = self.format.load()
        tally = _Tally(self.source, folder)
        run = _Run(folder, order.derive_key("pairs", self.source.xxh3_128))
        records = tally.keep(sources.read_pairs(Path(self.source.path), tuple(self.languages), on_progress))
        for lines, texts in self._documents(records):
            encoded = tokenizer.encode(texts)
            tokens, lengths = join_documents(encoded, dtype, eos_id=tokenizer.eos_id, bos_id=bos_id)
            tally.tokens += len(tokens)
            run.add(tokens, lengths, lines)
        return tally.receipt(runs=run.finish())

    def _documents(self, records: Iterator[tuple[int, dict[str, str]]]) -> Iterator[tuple[list[int], list[str]]]:
        """Batches of documents: their source lines and their texts."""
        number = 0
        for batch in _batched(records, _BATCH if self.adjacent else _WINDOW, at_least=2 * len(self.directions)):
            lines, found = [line for line, _ in batch], [pair for _, pair in batch]
            if self.sides:
                yield (
                    [line for line in lines for _ in self.sides],
                    [pairs.write_side(pair, side, self.languages) for pair in found for side in self.sides],
                )
            else:
                if not self.adjacent:
                    found = self._exchange(found, number)
                yield (
                    lines,
                    [
                        pairs.write_pair(pair, pairs.direction_of(number + k, self.directions), self.languages)
                        for k, pair in enumerate(found)
                    ],
                )
            number += len(batch)

    def _exchange(self, found: list[dict[str, str]], number: int) -> list[dict[str, str]]:
        try:
            return pairs.exchange_targets(
                found, number, self.directions, order.derive_key("targets", self.source.xxh3_128)
            )
        except ValueError as error:
            raise InputError(f"{self.source.path}: {error}. Give a file with more pairs.") from None


@dataclass(frozen=True)
class MergeRuns(Unit):
    """Pack the documents whose keys lie in one of `ranges` equal ranges, in the order of their keys."""

    kind: ClassVar[str] = "merge"
    runs: tuple[tuple[str, int], ...]  # fingerprint of a TokenizePairs unit, its number of runs
    number: int
    ranges: int
    tokens: int = field(metadata={"identity": False})  # about so many, for progress

    @property
    def input_bytes(self) -> int:
        return self.tokens

    def write(self, folder: Path, units: Path, on_progress: OnProgress) -> Receipt:
        _, dtype, _ = self.format.load()
        low, high = ((1 << 64) * n // self.ranges for n in (self.number, self.number + 1))
        keys, tokens, provenance = [np.empty(0, np.uint64)], [np.empty(0, dtype)], [np.empty(0, PROVENANCE)]
        for source, (fingerprint, count) in enumerate(self.runs):
            for run in range(count):
                part = [np.load(units / fingerprint / name, mmap_mode="r") for name in _run_names(run)]
                run_keys, offsets, lines, run_tokens = part
                first = int(np.searchsorted(run_keys, np.uint64(low)))
                last = len(run_keys) if high == 1 << 64 else int(np.searchsorted(run_keys, np.uint64(high)))
                keys.append(run_keys[first:last])
                tokens.append(run_tokens[offsets[first] : offsets[last]])
                provenance.append(make_provenance(source, lines[first:last], np.diff(offsets[first : last + 1])))
        documents = np.concatenate(provenance)
        ordered, by_key = _sort_documents(
            np.concatenate(keys), documents["tokens"].astype(np.int64), np.concatenate(tokens)
        )
        packer = Packer(self.format.seq_len + 1, dtype)
        writer = ShardWriter(folder, self.format.samples_per_shard)
        writer.add(packer.add(ordered))
        _save_packed(folder, packer.tail, [documents[by_key]])
        on_progress(self.tokens)
        return Receipt(0, 0, {}, len(ordered), len(packer.tail), 0, writer.finish())


# A document of a packed unit: number of its file among the stream's, its line, its length with EOS (and BOS).
PROVENANCE = np.dtype([("source", np.uint32), ("line", np.uint32), ("tokens", np.uint32)])


def make_provenance(source: int, lines: Any, lengths: Any) -> NDArray[Any]:
    """Provenance of documents of one file, shape (n,)."""
    made = np.empty(len(lengths), PROVENANCE)
    made["source"], made["line"], made["tokens"] = source, lines, lengths
    return made


def _save_packed(folder: Path, tail: Tokens, provenance: Sequence[NDArray[Any]]) -> None:
    np.save(folder / "tail.npy", tail)
    np.save(folder / "documents.npy", np.concatenate(provenance) if provenance else np.empty(0, PROVENANCE))


def run_unit(unit: Unit, units: Path, on_progress: OnProgress = lambda count: None) -> Receipt:
    """Do a unit's work unless its folder is there already, whole; return its receipt."""
    folder = units / unit.fingerprint
    done = read_receipt(folder)
    if done is not None:
        return done
    with new_folder(folder) as temporary:
        receipt = unit.write(temporary, units, on_progress)
        write_file(temporary / "receipt.json", orjson.dumps(receipt, option=orjson.OPT_INDENT_2))
    return receipt


def read_receipt(folder: Path) -> Receipt | None:
    """The receipt of a finished unit whose shards are there in their sizes; else None."""
    try:
        fields = orjson.loads((folder / "receipt.json").read_bytes())
    except FileNotFoundError:
        return None
    shards = [Shard(**shard) for shard in fields.pop("shards")]
    for shard in shards:
        path = folder / shard.basename
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise InputError(f"{path} is missing or damaged. Remove the folder {folder} and build again.")
    return Receipt(**fields, shards=shards)


def fingerprint_of(identity: object) -> str:
    """Hash of a JSON value in canonical form."""
    return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _identity(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that decide bytes."""
    fields = {}
    for name, info in value.__dataclass_fields__.items():
        if info.metadata.get("identity", True):
            inner = getattr(value, name)
            fields[name] = _identity(inner) if hasattr(inner, "__dataclass_fields__") else inner
    return fields


class _Tally:
    """Counts of one source file's records; writes the rejected ones to rejects.jsonl."""

    def __init__(self, source: SourceFile, folder: Path) -> None:
        self._source, self._rejects = source, folder / "rejects.jsonl"
        self.records = self.tokens = 0
        self.rejected: dict[str, int] = {}

    def keep(self, records: Iterable[tuple[int, T] | sources.Reject]) -> Iterator[tuple[int, T]]:
        """Pass on the usable records; write down and count the others."""
        with self._rejects.open("wb") as file:
            for record in records:
                self.records += 1
                if isinstance(record, sources.Reject):
                    self.rejected[record.reason] = self.rejected.get(record.reason, 0) + 1
                    line = {"file": self._source.path, **asdict(record)}
                    file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
                    self._stop_early(record)
                else:
                    yield record

    def _stop_early(self, reject: sources.Reject) -> None:
        bad = sum(self.rejected.values())
        if self.records == _EARLY_RECORDS and bad > self.records / 2:
            raise InputError(
                f"{self._source.path}: {bad:,} of the first {self.records:,} records are unusable, the last one for "
                f"{reject.reason} (line {reject.line}: {reject.excerpt}). Check the file's format, encoding and keys."
            )

    def receipt(self, *, tail: int = 0, runs: int = 0, shards: Sequence[Shard] = ()) -> Receipt:
        kept = self.records - sum(self.rejected.values())
        return Receipt(self.records, kept, dict(sorted(self.rejected.items())), self.tokens, tail, runs, list(shards))


def _batched(records: Iterator[T], size: int, at_least: int = 1) -> Iterator[list[T]]:
    """Lists of `size` records; a last one with fewer than `at_least` joins the one before."""
    held: list[T] = []
    while batch := list(islice(records, size)):
        if held and len(batch) >= at_least:
            yield held
            held = batch
        else:
            held += batch
    if held:
        yield held


def _run_names(number: int) -> list[str]:
    return [f"run.{number:05d}.{part}.npy" for part in ("keys", "offsets", "lines", "tokens")]


class _Run:
    """Gather documents and write them as runs sorted by key, each of about _RUN_TOKENS tokens."""

    def __init__(self, folder: Path, key: int) -> None:
        self._folder, self._key = folder, key
        self._first = self._runs = self._waiting = 0  # number of the run's first document; runs written; tokens
        self._parts: list[tuple[Tokens, NDArray[np.int64], NDArray[np.uint32]]] = []

    def add(self, tokens: Tokens, lengths: NDArray[np.int64], lines: Sequence[int]) -> None:
        """Take joined documents, their lengths and their source lines."""
        self._parts.append((tokens, lengths, np.array(lines, np.uint32)))
        self._waiting += len(tokens)
        if self._waiting >= _RUN_TOKENS:
            self._write()

    def finish(self) -> int:
        """Write what waits; return the number of runs."""
        if self._parts:
            self._write()
        return self._runs

    def _write(self) -> None:
        tokens, lengths, lines = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        keys = order.hash_numbers(np.arange(self._first, self._first + len(lengths), dtype=np.int64), self._key)
        ordered, by_key = _sort_documents(keys, lengths, tokens)
        offsets = np.concatenate([[0], np.cumsum(lengths[by_key])]).astype(np.int64)
        arrays = (keys[by_key], offsets, lines[by_key], ordered)
        for name, array in zip(_run_names(self._runs), arrays, strict=True):
            np.save(self._folder / name, array)
        self._first, self._runs, self._waiting, self._parts = self._first + len(lengths), self._runs + 1, 0, []


def _sort_documents(
    keys: NDArray[np.uint64], lengths: NDArray[np.int64], tokens: Tokens
) -> tuple[Tokens, NDArray[np.int64]]:
    """Reorder joined documents by key (ties keep their order); return the tokens and the documents' new order."""
    by_key = np.argsort(keys, kind="stable")
    begins = (np.cumsum(lengths) - lengths)[by_key]
    sizes = lengths[by_key]
    shifts = begins - (np.cumsum(sizes) - sizes)
    return tokens[np.repeat(shifts, sizes) + np.arange(len(tokens), dtype=np.int64)], by_key
