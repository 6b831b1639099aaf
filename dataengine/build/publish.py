"""A stream in the store: gathered from the files of its units, and read again."""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from dataengine.build.prepare import StreamPlan
from dataengine.build.rejects import source_lines, too_few_tokens
from dataengine.build.rounds import Packed
from dataengine.errors import InputError
from dataengine.mds import summary
from dataengine.mds.types import Shard, Stream, shard_name, token_dtype
from dataengine.mds.writer import ShardWriter, encode_index
from dataengine.storage.arrays import check_npy, encode_npy, read_all_npy, read_whole
from dataengine.storage.store import Store
from dataengine.text.packing import Packer


@dataclass(frozen=True)
class BuiltStream:
    """A stream in the store and what went into it.

    records = kept + rejected (unusable) + dropped (by cleaning); tokens = those of all samples + `remainder`. `rejects`
    is the key of the file in the store that holds the unusable records; None if there are none. `unknown` and
    `vanished` are what the tokenizer lost of the kept records: unknown tokens, and characters without any token.
    `notes` are what was said of the records when the stream was made, and of their languages if these were looked at.
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
    new: bool


def publish_stream(plan: StreamPlan, packed: Packed, store: Store) -> None:
    """Gather the shards of the units, then those of their joined tails, into one stream; index.json makes it whole."""
    store.remove_leftovers(f"{plan.folder}/")
    width, dtype = plan.format.seq_len + 1, token_dtype(plan.vocab_size)
    links = [
        (f"{unit.folder}/documents.npy", f"documents.{number:05d}.npy") for number, unit in enumerate(packed.units)
    ]
    shards: list[Shard] = []
    for unit, receipt in zip([*packed.units, *packed.tails], [*packed.receipts, *packed.tail_receipts], strict=True):
        for shard in receipt.shards:
            shards.append(_renamed(shard, len(shards)))
            links.append((f"{unit.folder}/{shard.stored.basename}", shards[-1].stored.basename))
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda link: _link_checked(store, link[0], f"{plan.folder}/{link[1]}"), links):
            pass
    packer = Packer(width, dtype)
    writes: list[Future[None]] = []
    with ThreadPoolExecutor(16) as pool:
        writer = ShardWriter(
            lambda name, content: writes.append(pool.submit(store.write, f"{plan.folder}/{name}", content)),
            plan.format.shards,
            first=len(shards),
        )
        keys = [f"{unit.folder}/tail.npy" for unit in packed.tails or packed.units]
        for tail in read_all_npy(store, keys, pool):
            writer.add(packer.add(tail))
        shards += writer.finish()
        for write in writes:
            write.result()
    remainder = packer.tail
    if not shards:
        kept = sum(receipt.kept for receipt in packed.reading)
        raise InputError(too_few_tokens(plan, kept, packed.dropped, len(remainder)))
    tokens = sum(receipt.tokens for receipt in packed.receipts)
    assert tokens == sum(shard.samples for shard in shards) * width + len(remainder), f"{plan.name}: tokens are lost"
    index = encode_index(shards, plan.format.shards.config(width, dtype))
    rejected: Counter[str] = Counter()
    for receipt in packed.reading:
        rejected.update(receipt.rejected)
    made = summary.Summary(
        sources=tuple(source_lines(plan.parts, packed.reading)),
        packed=tuple(None if plan.languages else number for number in range(len(packed.units))),
        segments=_segments(packed, width),
        index_sha256=hashlib.sha256(index).hexdigest(),
        shards=tuple(shards),
        records=sum(receipt.records for receipt in packed.reading),
        kept=sum(receipt.kept for receipt in packed.reading),
        rejected=dict(sorted(rejected.items())),
        dropped=packed.dropped,
        tokens=tokens,
        remainder=len(remainder),  # kept in remainder.npy
        unknown=sum(receipt.unknown for receipt in packed.reading),
        vanished=sum(receipt.vanished for receipt in packed.reading),
        notes=tuple(packed.notes),
    )
    store.write(f"{plan.folder}/remainder.npy", encode_npy(remainder))
    if packed.rejects:
        store.write(f"{plan.folder}/{summary.REJECTS}", summary.encode_rejects(packed.rejects))
    store.write(f"{plan.folder}/{summary.NAME}", summary.encode_summary(made))
    store.write(f"{plan.folder}/index.json", index)


def _link_checked(store: Store, source: str, key: str) -> None:
    """Give a file of a unit a name in a stream. Raises InputError if it is missing or, for an array, damaged.

    The sizes of shards were compared with the receipts already, and their hashes are in the index.
    """
    if source.endswith(".npy"):
        check_npy(read_whole(store, source), store, source)
    store.link(source, key)


def _segments(packed: Packed, width: int) -> tuple[tuple[int, int, int, int], ...]:
    """Where the flow of tokens of each unit lies in the stream: [unit, start in the stream, start in the unit, tokens].

    First the units' own shards, then their tails in those of each group, then what is left of the groups.
    """
    rows, at = [], 0
    own = [width * sum(shard.samples for shard in receipt.shards) for receipt in packed.receipts]
    for number, tokens in enumerate(own):
        rows.append([number, at, 0, tokens])
        at += tokens
    left: list[list[int]] = []
    number = 0
    groups = [
        (len(unit.units), width * sum(shard.samples for shard in receipt.shards))
        for unit, receipt in zip(packed.tails, packed.tail_receipts, strict=True)
    ]
    for units, room in groups or [(len(packed.units), 0)]:
        for _ in range(units):
            tail = packed.receipts[number].tail
            here = min(tail, room)
            rows.append([number, at, own[number], here])
            left.append([number, 0, own[number] + here, tail - here])
            at, room, number = at + here, room - here, number + 1
    for row in left:
        rows.append([row[0], at, *row[2:]])
        at += row[3]
    return tuple((unit, start, inside, tokens) for unit, start, inside, tokens in rows if tokens)


def _renamed(shard: Shard, number: int) -> Shard:
    """A unit's shard under its number in the stream."""
    name = shard_name(number)
    packed = replace(shard.zip, basename=shard.zip.basename.replace(shard.raw.basename, name)) if shard.zip else None
    return Shard(shard.samples, replace(shard.raw, basename=name), packed)


def read_built_stream(plan: StreamPlan, store: Store, *, new: bool) -> BuiltStream:
    """A stream of the store, its index as it was written and its shards there in their sizes."""
    made = summary.read_summary(store, plan.folder)
    if hashlib.sha256(store.read(f"{plan.folder}/index.json")).hexdigest() != made.index_sha256:
        raise summary.damaged_stream(store, f"{plan.folder}/index.json", "is damaged: its hash is another")
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
        tokens=samples * (plan.format.seq_len + 1),
        shards=made.shards,
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
        new=new,
    )
