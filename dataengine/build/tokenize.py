"""Units that turn the kept records of source parts into samples.

    documents part -> TokenizeDocuments -> shards + tail
    pairs part     -> TokenizePairs     -> runs of documents, each with a random key
    all runs       -> `split`, MergeRuns (one per range of keys) -> shards + tail
    tails          -> PackTails (one per group of units) -> shards + tail

The shards of a unit are full. Its tail is the rest, less than a shard, so many small files do not make small shards.

The runs belong to an external sort, which shuffles pairs over all parts of a stream in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dataengine import permutation
from dataengine.arrays import Int64s
from dataengine.build.external_sort import Form, Runs, Source, read_table, units_of
from dataengine.build.units import Keep, OnProgress, Reading, Receipt, Unit, place_of
from dataengine.errors import InputError
from dataengine.json_files import IF_SET
from dataengine.mds.types import mark, marked_dtype, token_dtype
from dataengine.mds.writer import ShardFormat, ShardWriter
from dataengine.records.types import RecordFormat, Records, SourcePart
from dataengine.storage.arrays import encode_npy, read_all_npy
from dataengine.storage.store import AddFile, Store
from dataengine.text import pairs
from dataengine.text.forms import Template, paper_template
from dataengine.text.loss_mask import after_context
from dataengine.text.packing import Packer, join_documents
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import load_tokenizer
from dataengine.text.writing import PairWriter, Written, write_texts

_BATCH = 1000  # texts per call of the tokenizer
_WINDOW = 1 << 16  # pairs among which targets are exchanged
_RUN_TOKENS = 1 << 23

# A document of a packed unit: the number of its part in the stream, its line there, its length with EOS (and BOS).
PROVENANCE = np.dtype([("source", np.uint32), ("line", np.uint32), ("tokens", np.uint32)])
_DOCUMENT = np.dtype([("key", "<u8"), ("line", "<u4"), ("tokens", "<u4")])  # of a run
# The same with `loss_on: target`: how many tokens at the beginning do not count as labels
_TARGET_DOCUMENT = np.dtype([*_DOCUMENT.descr, ("context", "<u4")])


Texts = tuple[list[str], ...]  # of each language


@dataclass(frozen=True)
class TokenFormat:
    """How text becomes tokens, and tokens samples."""

    tokenizer: str = field(metadata={"identity": False})  # path; its sha256 identifies it
    tokenizer_sha256: str
    library: str  # decides the ids of a text, given the tokenizer: the reference library and its version
    engine: Literal["auto", "reference"] = field(metadata={"identity": False})  # both give the same ids
    eos_token: str | None = field(metadata={"identity": False})  # as in the config; eos_id identifies it
    eos_id: int
    bos_id: int | None  # begins each document; None: no BOS
    controls: tuple[int, ...]  # sorted ids that no text produces
    seq_len: int
    shards: ShardFormat
    loss_on: Literal["all", "target"] = field(default="all", metadata=IF_SET)

    def packed_dtype(self, tokens: np.dtype[Any]) -> np.dtype[Any]:
        """The type of tokens while they are packed: with `loss_on: target`, marked if they count as labels."""
        return tokens if self.loss_on == "all" else marked_dtype(tokens)

    @property
    def width(self) -> int:
        """Tokens of a stored sample. The last one is only a label."""
        return self.seq_len + 1

    def load(self) -> tuple[Tokenizer, np.dtype[Any], int | None]:
        """The tokenizer, the type of tokens, and the id that begins a document, if any."""
        tokenizer = load_tokenizer(self.tokenizer, self.eos_token, engine=self.engine)
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise InputError(f"tokenizer {self.tokenizer} changed during the build. Build again.")
        if (
            tokenizer.eos_id != self.eos_id
            or self.bos_id not in (None, tokenizer.bos_id)
            or tokenizer.controls != frozenset(self.controls)
        ):
            raise InputError(
                f"the control tokens of tokenizer {self.tokenizer} changed during the build, in "
                "tokenizer_config.json beside it. Build again."
            )
        if tokenizer.library != self.library:
            raise InputError(
                f"this machine has {tokenizer.library}, but the build started with {self.library}. "
                "Install the same version on all machines."
            )
        return tokenizer, token_dtype(tokenizer.vocab_size), self.bos_id


@dataclass(frozen=True)
class TokenizeDocuments(Unit):
    """Tokenize one part of documents and pack them in order."""

    kind: ClassVar[str] = "documents"
    format: TokenFormat
    part: SourcePart
    records: RecordFormat
    keep: Keep | None

    @property
    def input_bytes(self) -> int:
        return self.part.size

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        tokenizer, dtype, bos_id = self.format.load()
        packer = Packer(self.format.width, dtype)
        writer = ShardWriter(add, self.format.shards)
        reading = _open(self.part, self.records, self.keep, store, on_progress)
        provenance, total, unknown, vanished = [], 0, 0, 0
        for batch in known_batches(reading, tokenizer, [0], _BATCH):
            ids, lengths = tokenizer.encode_documents(batch.texts[0])
            lost = tokenizer.count_lost(batch.texts[0], ids)
            unknown, vanished = unknown + lost[0], vanished + lost[1]
            tokens, lengths = join_documents(ids, lengths, dtype, eos_id=None, bos_id=bos_id)
            total += len(tokens)
            writer.add(packer.add(tokens))
            provenance.append(make_provenance(0, batch.lines, lengths))
        add("documents.npy", encode_npy(np.concatenate([np.empty(0, PROVENANCE), *provenance])))
        tail = _add_tail(add, writer, packer)
        return Receipt(
            **reading.finish(add), tokens=total, tail=tail, shards=writer.shards, unknown=unknown, vanished=vanished
        )


@dataclass(frozen=True)
class KeptPart:
    """A part and its kept records."""

    part: SourcePart
    keep: Keep | None


@dataclass(frozen=True)
class TokenizePairs(Unit):
    """Tokenize one part of pairs into runs of documents, each with a random key.

    Shuffled targets (`adjacent` is false) come from the pairs of the parts `before`, this one and the parts `after`, as
    if they were one part. A part with too few pairs and without such neighbours gives no documents.
    """

    kind: ClassVar[str] = "pairs"
    for_units: ClassVar[tuple[str, ...]] = ("run.",)
    format: TokenFormat
    part: SourcePart
    records: RecordFormat
    keep: Keep | None
    directions: tuple[str, ...]
    adjacent: bool
    sides: tuple[str, ...]
    languages: dict[str, str]  # code -> name, in the order of the records' texts
    copy: int = 0  # number of earlier parts with the same content; each copy gets its own shuffle
    before: tuple[KeptPart, ...] = ()
    after: tuple[KeptPart, ...] = ()
    templates: tuple[Template, ...] = field(default=(), metadata=IF_SET)  # none: that of the paper

    @property
    def input_bytes(self) -> int:
        return self.part.size

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        tokenizer, dtype, bos_id = self.format.load()
        runs = Runs(add, "run", _RUN_TOKENS)
        key, number = self._key("pairs"), 0
        reading = _open(self.part, self.records, self.keep, store, on_progress)
        total = counted = unknown = vanished = 0
        templates = [0] * len(self.templates)
        for lines, written in self._documents(self._batches(reading, tokenizer, store), tokenizer):
            tokens, lengths = join_documents(written.tokens, written.lengths, dtype, eos_id=None, bos_id=bos_id)
            context = None
            if written.context is not None:
                self._check_targets(lines, written)
                context = written.context + (bos_id is not None)
                counted += len(tokens) - int(context.sum())
            templates = [sum(counts) for counts in zip(templates, written.templates, strict=False)]
            unknown, vanished = unknown + written.unknown, vanished + written.vanished
            total += len(tokens)
            runs.add(_key_documents(number, lines, lengths, key, context), tokens)
            number += len(lengths)
        return Receipt(
            **reading.finish(add),
            tokens=total,
            runs=runs.finish(),
            unknown=unknown,
            vanished=vanished,
            counted=counted,
            templates=tuple(templates),
        )

    def writer(self, tokenizer: Tokenizer) -> PairWriter:
        """Writes the pairs of the part by the templates."""
        return PairWriter(
            tokenizer,
            self.templates or [paper_template(self.directions, self.languages)],
            self.directions,
            key=self._key("templates"),
            bos=self.format.bos_id is not None,
            with_context=self.format.loss_on == "target",
        )

    def _key(self, purpose: str) -> int:
        return permutation.derive_key(purpose, self.part.digest, *[self.copy] * bool(self.copy))

    def _check_targets(self, lines: Sequence[int], written: Written) -> None:
        if written.without_target is not None:
            raise InputError(
                f"{self.part.paths[0]}, {place_of(self.part, lines[written.without_target])}: the tokenizer gives the "
                "target of this pair no tokens of its own. Remove the pair, or `loss_on: target`."
            )

    @property
    def _written(self) -> list[int]:
        return written_columns(self.languages, self.directions, self.sides)

    def _batches(self, reading: Reading, tokenizer: Tokenizer, store: Store) -> Iterator[tuple[list[int], Texts]]:
        """Batches of pairs: their lines, 0 for pairs of other parts, and the texts of each language."""
        for batch in self._of_others(self.before, tokenizer, store):
            yield [0] * len(batch.lines), batch.texts
        for batch in known_batches(reading, tokenizer, self._written, 8 * _BATCH):
            yield batch.lines, batch.texts
        for batch in self._of_others(self.after, tokenizer, store):
            yield [0] * len(batch.lines), batch.texts

    def _of_others(self, others: Sequence[KeptPart], tokenizer: Tokenizer, store: Store) -> Iterator[Records]:
        for other in others:
            reading = _open(other.part, self.records, other.keep, store, lambda count: None)
            yield from known_batches(reading, tokenizer, self._written, 8 * _BATCH)

    def _documents(
        self, batches: Iterator[tuple[list[int], Texts]], tokenizer: Tokenizer
    ) -> Iterator[tuple[list[int], Written]]:
        """Batches of documents, with their source lines."""
        number, writer = 0, self.writer(tokenizer) if self.directions else None
        for lines, texts in batches if self.adjacent else self._windows(batches):
            columns = dict(zip(self.languages, texts, strict=True))
            if writer is None:
                written = write_texts(tokenizer, pairs.write_sides(columns, self.sides, self.languages))
                yield [line for line in lines for _ in self.sides], written
            else:
                paired = columns if self.adjacent else self._exchange(columns, number)
                own = np.flatnonzero(lines)
                if len(own) < len(lines):
                    paired = {code: [column[k] for k in own] for code, column in paired.items()}
                yield [line for line in lines if line], writer.write(paired, number + own)
            number += len(lines)

    def _windows(self, batches: Iterator[tuple[list[int], Texts]]) -> Iterator[tuple[list[int], Texts]]:
        """Batches of exactly _WINDOW pairs. A small last one joins the one before; too few pairs give none."""
        least = 2 * len(self.directions)
        lines: list[int] = []
        texts: Texts = tuple([] for _ in self.languages)
        for new_lines, new_texts in batches:
            lines = lines + new_lines
            texts = tuple(held + new for held, new in zip(texts, new_texts, strict=True))
            while len(lines) >= _WINDOW + least:
                yield lines[:_WINDOW], tuple(held[:_WINDOW] for held in texts)
                lines, texts = lines[_WINDOW:], tuple(held[_WINDOW:] for held in texts)
        if len(lines) >= least:
            yield lines, texts

    def _exchange(self, columns: dict[str, list[str]], number: int) -> dict[str, list[str]]:
        digests = [*(other.part.digest for other in self.before), self.part.digest]
        key = permutation.derive_key("targets", *digests, *(other.part.digest for other in self.after))
        return pairs.exchange_targets(columns, number, self.directions, key)


@dataclass(frozen=True)
class MergeRuns(Unit):
    """Pack the documents with keys in one range, in the order of their keys."""

    kind: ClassVar[str] = "merge"
    format: TokenFormat
    places: tuple[Source, ...]  # of documents, in the stream's order
    tokens: int = field(metadata={"identity": False})  # an estimate, for progress

    @property
    def inputs(self) -> tuple[str, ...]:
        return units_of(self.places)

    @property
    def input_bytes(self) -> int:
        return self.tokens

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        tokenizer, _, _ = self.format.load()
        form = document_form(self.format, tokenizer.vocab_size)
        table = read_table(store, self.places, form)
        table = table.take(np.argsort(table.heads["key"], kind="stable"), form)
        documents, ordered = table.heads, table.elements
        if self.format.loss_on == "target":
            lengths, context = documents["tokens"].astype(np.int64), documents["context"].astype(np.int64)
            ordered = mark(ordered, after_context(lengths, context))
        packer = Packer(self.format.width, ordered.dtype)
        writer = ShardWriter(add, self.format.shards)
        writer.add(packer.add(ordered))
        provenance = make_provenance(documents["part"], documents["line"], documents["tokens"])
        add("documents.npy", encode_npy(provenance))
        on_progress(self.tokens)
        return Receipt(tokens=len(ordered), tail=_add_tail(add, writer, packer), shards=writer.shards)


@dataclass(frozen=True)
class PackTails(Unit):
    """Pack the tails of units in order."""

    kind: ClassVar[str] = "tails"
    format: TokenFormat
    units: tuple[str, ...]  # fingerprints
    tokens: int = field(metadata={"identity": False})  # for progress

    @property
    def input_bytes(self) -> int:
        return self.tokens

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        _, dtype, _ = self.format.load()
        packer = Packer(self.format.width, self.format.packed_dtype(dtype))
        writer = ShardWriter(add, self.format.shards)
        total = 0
        for tail in read_all_npy(store, [f"units/{unit}/tail.npy" for unit in self.units]):
            total += len(tail)
            writer.add(packer.add(tail))
        on_progress(self.tokens)
        return Receipt(tokens=total, tail=_add_tail(add, writer, packer), shards=writer.shards)


def make_provenance(source: Any, lines: Any, lengths: Any) -> NDArray[Any]:
    """Provenance of documents, shape (n,)."""
    made = np.empty(len(lengths), PROVENANCE)
    made["source"], made["line"], made["tokens"] = source, lines, lengths
    return made


def written_columns(languages: Iterable[str], directions: Sequence[str], sides: Sequence[str]) -> list[int]:
    """The columns of a record that a stream writes. `languages` are those of its texts, none for documents."""
    written = {*sides, *(code for direction in directions for code in direction.split("-"))}
    return [column for column, code in enumerate(languages) if code in written] or [0]


def known_batches(reading: Reading, tokenizer: Tokenizer, written: Sequence[int], size: int) -> Iterator[Records]:
    """Batches of at most `size` records. A record is unusable if the tokenizer knows nothing of a written text."""
    for batch in reading.batches(size):
        if (reasons := find_lost(batch, tokenizer, written)) is not None:
            batch = reading.leave_out(batch, reasons)
        if batch.lines:
            yield batch


def find_lost(batch: Records, tokenizer: Tokenizer, written: Sequence[int]) -> list[str | None] | None:
    """For each record why the tokenizer cannot use it: it knows nothing of a written text. None if all are usable."""
    columns = [tokenizer.why_lost(batch.texts[column]) for column in written]
    found = [column for column in columns if column is not None and any(column)]
    return [next(filter(None, of), None) for of in zip(*found, strict=True)] if found else None


def _open(part: SourcePart, form: RecordFormat, keep: Keep | None, store: Store, on_progress: OnProgress) -> Reading:
    return Reading(part, form, on_progress, keep.read(store) if keep else None)


def _add_tail(add: AddFile, writer: ShardWriter, packer: Packer) -> int:
    """Write the tokens that fill no shard; return their number."""
    tail = np.concatenate([*(samples.ravel() for samples in writer.rest), packer.tail])
    add("tail.npy", encode_npy(tail))
    return len(tail)


def _key_documents(first: int, lines: Sequence[int], lengths: Int64s, key: int, context: Int64s | None) -> NDArray[Any]:
    """The documents of a part from number `first` on, each with a random key: dtype _DOCUMENT, shape (n,); with
    `context`, _TARGET_DOCUMENT."""
    documents = np.empty(len(lengths), _DOCUMENT if context is None else _TARGET_DOCUMENT)
    if context is not None:
        documents["context"] = context
    documents["key"] = permutation.hash_numbers(np.arange(first, first + len(lengths)), key)
    documents["line"], documents["tokens"] = lines, lengths
    return documents


def document_form(form: TokenFormat, vocab_size: int) -> Form:
    """The form of documents in runs, and of their tokens."""
    documents = _TARGET_DOCUMENT if form.loss_on == "target" else _DOCUMENT
    return Form(documents, "key", "tokens", token_dtype(vocab_size))
