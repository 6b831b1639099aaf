"""Units that find the near duplicates of a stream of any size in bounded memory (see `near_duplicates`).

texts of a part      -> NearKeys -> runs of band keys, and the shingles of texts that share one in a run
keys of all parts    -> FindLinks (one per range of keys) -> pairs of kept records that share a key; crowds
crowds, if any       -> RowKeys (one per part) -> keys that no crowd shares -> FindLinks
large components     -> SketchKeys (one per part) -> FindAlike (one per range of keys) -> smaller components
components of pairs  -> GatherShingles (one per part) -> CompareTexts (one per group of components) -> twins

`split` brings what the units of parts write to the units of ranges and groups.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s
from dataengine.build.external_sort import (
    RUN_KEYS,
    Form,
    Runs,
    Source,
    Table,
    num_ranges,
    read_bucket,
    read_table,
    run_name,
    units_of,
    whole_bucket,
    write_buckets,
)
from dataengine.build.rounds import Round, Rounds
from dataengine.build.split import Places, split
from dataengine.build.units import Named, OnProgress, Reading, Receipt, Unit
from dataengine.cleaning import minhash, near_duplicates
from dataengine.cleaning.minhash import NEAR_KEY, SKETCH_KEY, Shingles, sort_near_keys
from dataengine.cleaning.near_duplicates import Texts
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.storage.arrays import decode_npy, encode_npy
from dataengine.storage.store import AddFile, Store

_BATCH = 4096
RUN_SHINGLES = 1 << 23  # shingles of a run (64 MiB); of a run of keys, the other texts are read again
RANGE_KEYS = 1 << 22  # keys of a FindLinks unit, about
# A record to compare: its number in the part, its group (0: the representatives) and its component.
MEMBER = np.dtype([("record", "<u4"), ("group", "<u4"), ("component", "<u8"), ("crowded", "<u1"), ("size", "<u4")])
_HELD = np.dtype([("record", "<u4"), ("size", "<u4")])  # a record whose shingles are kept, and their number
KEYS, SKETCHES = Form(NEAR_KEY, "hash"), Form(SKETCH_KEY, "hash")
GATHERED = Form(MEMBER, "group", "size", np.dtype("<u8"))  # with the shingles


class NearRuns:
    """Write the band keys of texts as runs named near, and the shingles of texts that share a key in a run.

    near.N.held holds the records of these texts and their shingles, up to RUN_SHINGLES, so that most texts need not be
    read again.
    """

    def __init__(self, add: AddFile, threshold: float) -> None:
        self._add, self._threshold = add, threshold
        self._keys = Runs(add, "near", RUN_KEYS, self._write_held)
        self._held: list[tuple[Int64s, Shingles]] = []
        self._shingles = 0

    def add(self, texts: Sequence[str], records: Int64s, *, normal: bool = False) -> None:
        """Add texts and the numbers of their records, shape (n,). `normal`: the texts are normalized already."""
        keys, records, shingles = minhash.band_keys(texts, self._threshold, records, normal=normal)
        if self._shingles <= RUN_SHINGLES:
            self._held.append((records, shingles))
            self._shingles += len(shingles.hashes)
        if len(keys):
            self._keys.add(keys)

    def finish(self) -> int:
        """Write the last run; return the number of runs."""
        return self._keys.finish()

    def _write_held(self, name: str, keys: NDArray[Any]) -> None:
        sharing = with_shared_key(keys)
        chosen = [(records, shingles, np.isin(records, sharing)) for records, shingles in self._held]
        records = np.concatenate([np.empty(0, np.int64), *(records[mask] for records, _, mask in chosen)])
        held = minhash.join([shingles.select(mask).distinct() for _, shingles, mask in chosen])
        table = np.empty(len(records), _HELD)
        table["record"], table["size"] = records, held.sizes
        write_buckets(self._add, f"{name}.held", [whole_bucket(table), whole_bucket(held.hashes)])
        self._held, self._shingles = [], 0


def with_shared_key(keys: NDArray[Any]) -> Int64s:
    """The records of keys that share a key with another record."""
    keys = sort_near_keys(keys)
    equal = (keys["hash"][1:] == keys["hash"][:-1]) & (keys["record"][1:] != keys["record"][:-1])
    records: Int64s = np.concatenate([keys["record"][1:][equal], keys["record"][:-1][equal]]).astype(np.int64)
    return np.unique(records)


@dataclass(frozen=True)
class _ReadsKeys(Unit):
    """A unit that compares the keys of all parts in one range."""

    places: Places  # of the keys, in the stream's order
    keys: int = field(metadata={"identity": False})  # an estimate, for progress

    @property
    def inputs(self) -> tuple[str, ...]:
        return units_of(self.places)

    @property
    def input_bytes(self) -> int:
        return self.keys * self.form.head.itemsize

    @property
    @abstractmethod
    def form(self) -> Form:
        """Of the keys."""

    def _keys(self, store: Store, on_progress: OnProgress) -> NDArray[Any]:
        keys = read_table(store, self.places, self.form).heads
        on_progress(self.input_bytes)
        return keys


@dataclass(frozen=True)
class FindLinks(_ReadsKeys):
    """Find the records that share a key."""

    kind: ClassVar[str] = "links"

    @property
    def form(self) -> Form:
        return KEYS

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        links = near_duplicates.link_records(self._keys(store, on_progress))
        add("pairs.npy", encode_npy(links.pairs))
        add("crowded.npy", encode_npy(links.crowded))
        add("representatives.npy", encode_npy(links.representatives))
        return Receipt()


@dataclass(frozen=True)
class FindAlike(_ReadsKeys):
    """Find the components of records that share a key and have sketches as similar as those of twins."""

    kind: ClassVar[str] = "alike"
    threshold: float

    @property
    def form(self) -> Form:
        return SKETCHES

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        add("pairs.npy", encode_npy(near_duplicates.link_alike(self._keys(store, on_progress), self.threshold)))
        return Receipt()


def find_links(files: Sequence[tuple[Source, int]], keys: int) -> Rounds[list[FindLinks]]:
    """Rounds of units that link records by about `keys` keys in files; returns the last ones."""
    ranges = num_ranges(keys, RANGE_KEYS)
    places = yield from split("comparing", files, KEYS, ranges)
    units = [FindLinks(here, keys // ranges) for here in places]
    yield Round("comparing", units)
    return units


def find_alike(files: Sequence[tuple[Source, int]], keys: int, threshold: float) -> Rounds[list[FindAlike]]:
    """The same for keys with sketches."""
    ranges = num_ranges(keys, RANGE_KEYS // 4)
    places = yield from split("comparing", files, SKETCHES, ranges)
    units = [FindAlike(here, keys // ranges, threshold) for here in places]
    yield Round("comparing", units)
    return units


@dataclass(frozen=True)
class Members(Named):
    """Records of a part that later units need."""

    suffix: ClassVar[str] = "members.npy"

    def read(self, store: Store) -> NDArray[Any]:
        """The members, of dtype MEMBER, shape (n,). Raises InputError if they are damaged."""
        return decode_npy(self.read_bytes(store))


@dataclass(frozen=True)
class _ReadsMembers(Unit):
    """A unit that needs the shingles of some records of a part."""

    part: SourcePart
    records: RecordFormat
    measured: str  # fingerprint of the part's NearKeys, which hold some of them
    runs: int  # of these
    members: Members

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.measured,)

    @property
    def input_bytes(self) -> int:
        return self.part.size

    def _shingles(
        self, store: Store, members: NDArray[Any], on_progress: OnProgress
    ) -> Iterator[tuple[Int64s, Shingles]]:
        """Numbers of records and their distinct shingles, each member once, in any order."""
        left = set(members["record"].tolist())
        for run in range(self.runs):
            name = f"units/{self.measured}/{run_name('near', run)}.held"
            table, hashes = read_bucket(store, name, (_HELD, np.dtype("<u8")))
            wanted = np.isin(table["record"], members["record"])
            if wanted.any():
                held = Shingles(hashes, table["size"].astype(np.int64))
                yield table["record"][wanted].astype(np.int64), held.select(wanted)
                left.difference_update(table["record"][wanted].tolist())
        if not left:
            on_progress(self.part.size)
            return
        reading, numbers = Reading(self.part, self.records, on_progress), np.array(sorted(left), np.int64)
        for batch in reading.batches(_BATCH):
            first = reading.usable - len(batch.lines)
            here = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, reading.usable)]
            if len(here):
                texts = [" ".join(texts[k] for texts in batch.texts) for k in (here - first).tolist()]
                yield here, minhash.shingle_texts(texts).distinct()


@dataclass(frozen=True)
class _MakesKeys(_ReadsMembers):
    """A unit that makes keys of members. `kept` in its receipt is their number."""

    for_units: ClassVar[tuple[str, ...]] = ("near.",)

    @abstractmethod
    def _keys(self, shingles: Shingles, records: Int64s) -> NDArray[Any]:
        """Keys of some members."""

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        runs, keys = Runs(add, "near", RUN_KEYS), 0
        for records, shingles in self._shingles(store, self.members.read(store), on_progress):
            made = self._keys(shingles, records)
            keys += len(made)
            if len(made):
                runs.add(made)
        return Receipt(kept=keys, near_runs=runs.finish())


@dataclass(frozen=True)
class RowKeys(_MakesKeys):
    """Make keys from single signature rows of texts in crowds."""

    kind: ClassVar[str] = "rows"

    def _keys(self, shingles: Shingles, records: Int64s) -> NDArray[Any]:
        return near_duplicates.row_keys(shingles, records)


@dataclass(frozen=True)
class SketchKeys(_MakesKeys):
    """Make keys with sketches of texts in large components."""

    kind: ClassVar[str] = "sketches"
    threshold: float

    def _keys(self, shingles: Shingles, records: Int64s) -> NDArray[Any]:
        return minhash.sketch_keys(shingles, records, self.threshold)


@dataclass(frozen=True)
class GatherShingles(_ReadsMembers):
    """Write the shingles of members in runs. `tokens` in its receipt is their number."""

    kind: ClassVar[str] = "shingles"
    for_units: ClassVar[tuple[str, ...]] = ("gathered.",)

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        members = self.members.read(store)
        members = members[np.argsort(members["record"], kind="stable")]
        runs, total = Runs(add, "gathered", RUN_SHINGLES), 0
        for records, shingles in self._shingles(store, members, on_progress):
            found = members[np.searchsorted(members["record"], records)]
            found["size"] = shingles.sizes
            runs.add(found, shingles.hashes)
            total += len(shingles.hashes)
        return Receipt(kept=len(members), tokens=total, runs=runs.finish())


@dataclass(frozen=True)
class CompareTexts(Unit):
    """Compare the texts of one group. Writes its twins, and the texts that are similar to a crowd of others."""

    kind: ClassVar[str] = "twins"
    first: Places  # of the representatives
    places: Places  # of the group; none for the representatives themselves
    threshold: float
    members: int = field(metadata={"identity": False})  # for progress

    @property
    def inputs(self) -> tuple[str, ...]:
        return units_of((*self.first, *self.places))

    @property
    def input_bytes(self) -> int:
        return self.members

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        first, texts = (_texts(read_table(store, places, GATHERED)) for places in (self.first, self.places))
        found, overfull = near_duplicates.compare(texts, first, self.threshold)
        on_progress(self.members)
        own = texts if self.places else first  # the verdict on representatives is the same in every group
        add("twins.npy", encode_npy(found[np.isin(found["record"], own.ids)]))
        add("overfull.npy", encode_npy(np.intersect1d(overfull, own.ids)))
        return Receipt(kept=len(own.ids))


def _texts(table: Table) -> Texts:
    """Texts in the order of their ids."""
    table = table.take(np.lexsort((table.heads["record"], table.heads["part"])), GATHERED)
    heads = table.heads
    shingles = Shingles(table.elements, heads["size"].astype(np.int64))
    return Texts(near_duplicates.ids_of(heads), heads["component"], heads["crowded"] > 0, shingles)
