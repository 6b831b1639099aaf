"""A stream in the store: assembled from the files of its units, and read back."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy as np

from dataengine.build.finished import documents_key, move_units, shard_keys
from dataengine.build.prepare import StreamPlan
from dataengine.build.rejects import source_lines, too_few_tokens
from dataengine.build.running import Alone
from dataengine.build.stream import Packed
from dataengine.build.units import Place, Receipt, Unit
from dataengine.errors import InputError
from dataengine.mds import summary
from dataengine.mds.types import Shard, Stream, documents_name, token_dtype
from dataengine.mds.writer import ShardWriter, encode_index
from dataengine.storage.arrays import damaged_unit, encode_npy, in_threads, is_intact_npy, read_all_npy, read_whole
from dataengine.storage.store import Store
from dataengine.text.packing import Packer, Tokens

_THREADS = 16  # for writing shards
MOVED_AT_ONCE = 64  # units


@dataclass(frozen=True)
class BuiltStream:
    """A stream in the store and what went into it.

    records = kept + rejected (unusable) + dropped (by cleaning); tokens = those of all samples + `remainder`. `rejects`
    is the key of the file with the unusable records, None without any. `unknown` and `vanished` are what the tokenizer
    lost of the kept records: unknown tokens, and characters without a token. `notes` are the warnings about the records
    and, if they were checked, about their languages. `counted` of the tokens count as labels; None if all do.
    `templates` are the pairs in each template, in the order of the config; empty for that of the paper alone.
    """

    stream: Stream
    records: int
    kept: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    tokens: int
    remainder: int
    rejects: str | None
    unknown: int
    vanished: int
    notes: tuple[str, ...]
    counted: int | None
    templates: tuple[int, ...]
    new: bool


def publish_stream(plan: StreamPlan, packed: Packed, store: Store, *, needed: Collection[str], alone: Alone) -> None:
    """Assemble the shards of the units and of their joined tails into one stream. index.json comes last.

    In a bucket, the shards of units are then only in the stream, without those of `needed` (fingerprints), unless
    another build may read them.
    """
    store.remove_leftovers(f"{plan.folder}/")
    shards = _link_shards(plan, packed, store, needed, alone)
    more, remainder = _pack_joined_tails(plan, packed, store, first=len(shards))
    shards += more
    if not shards and "/" not in plan.name:  # a pair of an entry may be too small for a sample: no stage draws from it
        kept = sum(receipt.kept for receipt in packed.reading)
        raise InputError(too_few_tokens(plan, kept, packed.dropped, len(remainder)))
    dtype = plan.format.packed_dtype(token_dtype(plan.vocab_size))
    index = encode_index(shards, plan.format.shards.config(plan.format.width, dtype))
    made = _summarize(plan, packed, shards, index, len(remainder))
    in_samples = plan.format.width * sum(shard.samples for shard in shards)
    if made.counted is not None and made.counted == np.count_nonzero(remainder["counts"]):
        raise InputError(
            f"stream '{plan.name}': no token of its samples counts in the loss, because the targets are all in the "
            "remainder, which fills no sample. Add pairs, lower seq_len, or remove `loss_on`."
        )
    assert made.tokens == in_samples + len(remainder), f"{plan.name}: tokens are lost"
    store.write(f"{plan.folder}/remainder.npy", encode_npy(remainder))
    if packed.rejects:
        store.write(f"{plan.folder}/{summary.REJECTS}", summary.encode_rejects(packed.rejects))
    store.write(f"{plan.folder}/{summary.NAME}", summary.encode_summary(made))
    store.write(f"{plan.folder}/index.json", index)


def _link_shards(plan: StreamPlan, packed: Packed, store: Store, needed: Collection[str], alone: Alone) -> list[Shard]:
    """Link the shards and documents of all units into the stream; return the shards under their new names."""
    shards: list[Shard] = []
    units = [*packed.units, *packed.tails]
    receipts = [*packed.receipts, *packed.tail_receipts]
    last = {unit.fingerprint: number for number, unit in enumerate(units)}  # equal files make equal units
    for begin in range(0, len(units), MOVED_AT_ONCE):
        links: list[tuple[str, str, int | None]] = []
        done: list[tuple[Unit, Receipt, Place]] = []
        for number, unit in enumerate(units[begin : begin + MOVED_AT_ONCE], begin):
            task = number if number < len(packed.units) else None
            receipt, place = receipts[number], Place(plan.folder, len(shards), task)
            renamed = [shard.renamed(k) for k, shard in enumerate(receipt.shards, len(shards))]
            named = [(shard.stored.basename, shard.stored.bytes) for shard in renamed]
            links += [(key, *one) for key, one in zip(shard_keys(unit.folder, receipt), named, strict=True)]
            if task is not None:
                links.append((documents_key(unit.folder, receipt), documents_name(task), None))
            shards += renamed
            if last[unit.fingerprint] == number and unit.fingerprint not in needed:
                done.append((unit, receipt, place))
        for _ in in_threads(lambda link: _link_checked(store, link[0], f"{plan.folder}/{link[1]}", link[2]), links):
            pass
        if store.copies_links and alone():
            move_units(done, store, alone)
    return shards


def _pack_joined_tails(plan: StreamPlan, packed: Packed, store: Store, *, first: int) -> tuple[list[Shard], Tokens]:
    """Write the tails of the units as shards numbered from `first`; return them and the tokens that fill no sample."""
    packer = Packer(plan.format.width, plan.format.packed_dtype(token_dtype(plan.vocab_size)))
    writes: list[Future[None]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        writer = ShardWriter(
            lambda name, content: writes.append(pool.submit(store.write, f"{plan.folder}/{name}", content)),
            plan.format.shards,
            first=first,
        )
        for tail in read_all_npy(store, [f"{unit.folder}/tail.npy" for unit in packed.tails or packed.units]):
            writer.add(packer.add(tail))
        shards = writer.finish()
        for write in writes:
            write.result()
    return shards, packer.tail


def _summarize(
    plan: StreamPlan, packed: Packed, shards: Sequence[Shard], index: bytes, remainder: int
) -> summary.Summary:
    """How the stream was made."""
    rejected: Counter[str] = Counter()
    for receipt in packed.reading:
        rejected.update(receipt.rejected)
    return summary.Summary(
        sources=tuple(source_lines(plan.parts, packed.reading)),
        packed=tuple(None if plan.languages else number for number in range(len(packed.units))),
        segments=find_segments(packed, plan.format.width),
        index_sha256=hashlib.sha256(index).hexdigest(),
        shards=tuple(shards),
        records=sum(receipt.records for receipt in packed.reading),
        kept=sum(receipt.kept for receipt in packed.reading),
        rejected=dict(sorted(rejected.items())),
        dropped=packed.dropped,
        tokens=sum(receipt.tokens for receipt in packed.receipts),
        remainder=remainder,
        unknown=sum(receipt.unknown for receipt in packed.reading),
        vanished=sum(receipt.vanished for receipt in packed.reading),
        notes=tuple(packed.notes),
        counted=sum(receipt.counted for receipt in packed.reading) if plan.format.loss_on == "target" else None,
        templates=tuple(map(sum, zip(*(receipt.templates for receipt in packed.reading), strict=True))),
    )


def _link_checked(store: Store, source: str, key: str, size: int | None) -> None:
    """Link a file of a unit into a stream: a shard of this size, or an array (None). Raises InputError if it is missing
    or, for an array, damaged.

    The sizes of shards are already compared with the receipts, and their hashes are in the index.
    """
    if size is None:
        content = read_whole(store, source)
        if not is_intact_npy(content):
            raise damaged_unit(store, source)
        size = len(content)
    if source != key:  # the unit's files may be in the folder of this stream, if its index.json was lost
        store.link(source, key, size)


def find_segments(packed: Packed, width: int) -> tuple[tuple[int, int, int, int], ...]:
    """The place of each unit's tokens in the stream: (unit, start in the stream, start in the unit, tokens).

    First the units' own shards, then the part of each group's tails in its shards, then the rest of all tails.
    """
    own = [_count_tokens(receipt, width) for receipt in packed.receipts]
    rooms = [_count_tokens(receipt, width) for receipt in packed.tail_receipts]
    pieces = [(number, 0, tokens) for number, tokens in enumerate(own)]
    rest, numbers = [], iter(range(len(own)))
    for group, room in zip(packed.tails, rooms, strict=True):
        for number in islice(numbers, len(group.units)):
            tail = packed.receipts[number].tail
            here = min(tail, room)
            room -= here
            pieces.append((number, own[number], here))
            rest.append((number, own[number] + here, tail - here))
    rest += [(number, own[number], packed.receipts[number].tail) for number in numbers]  # without groups
    pieces += rest
    starts = accumulate((tokens for _, _, tokens in pieces), initial=0)
    return tuple(
        (unit, start, inside, tokens) for (unit, inside, tokens), start in zip(pieces, starts, strict=False) if tokens
    )


def _count_tokens(receipt: Receipt, width: int) -> int:
    """The tokens in a unit's shards."""
    return width * sum(shard.samples for shard in receipt.shards)


def read_built_stream(plan: StreamPlan, store: Store, *, new: bool) -> BuiltStream:
    """A stream of the store. Raises InputError if its index differs or a shard is missing or has another size."""
    made = summary.read_summary(store, plan.folder)
    if hashlib.sha256(store.read(f"{plan.folder}/index.json")).hexdigest() != made.index_sha256:
        raise summary.damaged_stream(store, f"{plan.folder}/index.json", "is damaged: its hash differs")
    sizes = store.sizes(f"{plan.folder}/")
    for shard in made.shards:
        key = f"{plan.folder}/{shard.stored.basename}"
        if sizes.get(key) != shard.stored.bytes:
            raise summary.damaged_stream(store, key, "is missing or damaged")
    samples = sum(shard.samples for shard in made.shards)
    stream = Stream(
        name=plan.name,
        remote=plan.folder,
        index_sha256=made.index_sha256,
        samples=samples,
        tokens=samples * plan.format.width,
        shards=made.shards,
        loss_mask=plan.format.loss_on == "target",
    )
    rejects = f"{plan.folder}/{summary.REJECTS}"
    return BuiltStream(
        stream=stream,
        records=made.records,
        kept=made.kept,
        rejected=made.rejected,
        dropped=made.dropped,
        tokens=made.tokens,
        remainder=made.remainder,
        rejects=rejects if made.rejected and rejects in sizes else None,
        unknown=made.unknown,
        vanished=made.vanished,
        notes=made.notes,
        counted=made.counted,
        templates=made.templates,
        new=new,
    )
