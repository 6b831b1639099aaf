"""Units that find the near duplicates of a stream of any size in bounded memory (see `near_duplicates`).

texts of a part      -> NearKeys -> runs of band keys, and the shingles of texts that share one in a run
keys of all parts    -> FindLinks (one per range of keys) -> pairs of kept records that share a key; crowds
crowds, if any       -> RowKeys (one per part) -> keys that no crowd shares -> FindLinks
large components     -> SketchKeys (one per part) -> FindAlike (one per range of keys) -> smaller components
components of pairs  -> GatherShingles (one per part) -> CompareTexts (one per group of components) -> twins
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s
from dataengine.build.external_sort import buckets_of, key_runs, num_ranges, read_buckets, read_runs, write_buckets
from dataengine.build.units import Keep, Named, OnProgress, Reading, Receipt, Unit
from dataengine.cleaning import minhash, near_duplicates
from dataengine.cleaning.minhash import NEAR_KEY, SKETCH_KEY, Shingles, sort_near_keys
from dataengine.cleaning.near_duplicates import Texts, record_ids
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.storage.arrays import decode_npy, encode_npy, read_npy
from dataengine.storage.store import AddFile, Store

_BATCH = 4096
_RUN_SHINGLES = 1 << 23  # shingles of a run kept for comparing (64 MiB); the other texts are read again
RANGE_KEYS = 1 << 22  # keys of a FindLinks unit, about
# A record to compare: its number in the part, its group (0: the representatives) and its component.
MEMBER = np.dtype([("record", "<u4"), ("group", "<u4"), ("component", "<u8"), ("crowded", "<u1"), ("size", "<u4")])
_HELD = np.dtype([("record", "<u4"), ("size", "<u4")])  # a record whose shingles are kept, and their number


class NearRuns:
    """Write the band keys of texts as `key_runs` named near, and the shingles of texts that share a key in a run.

    near.N.held.npy and near.N.shingles.npy hold the records of these texts and their shingles, up to _RUN_SHINGLES, so
    that most texts need not be read again.
    """

    def __init__(self, add: AddFile, threshold: float) -> None:
        self._add, self._threshold = add, threshold
        self._keys = key_runs(add, "near", "hash", self._sort)
        self._held: list[tuple[Int64s, Shingles]] = []
        self._shingles = 0

    def add(self, texts: Sequence[str], records: Int64s, *, normal: bool = False) -> None:
        """Add texts and the numbers of their records, shape (n,). `normal`: the texts are normalized already."""
        keys, records, shingles = minhash.band_keys(texts, self._threshold, records, normal=normal)
        if self._shingles <= _RUN_SHINGLES:
            self._held.append((records, shingles))
            self._shingles += len(shingles.hashes)
        if len(keys):
            self._keys.add(keys)

    def finish(self) -> int:
        """Write the last run; return the number of runs."""
        return self._keys.finish()

    def _sort(self, keys: NDArray[Any]) -> NDArray[Any]:
        """The sorted keys of a run; writes their shingles first."""
        ordered = sort_near_keys(keys)
        self._write_held(self._keys.name, ordered)
        return ordered

    def _write_held(self, name: str, keys: NDArray[Any]) -> None:
        sharing = _with_shared_key(keys)
        chosen = [(records, shingles, np.isin(records, sharing)) for records, shingles in self._held]
        records = np.concatenate([np.empty(0, np.int64), *(records[mask] for records, _, mask in chosen)])
        held = minhash.join([shingles.select(mask).distinct() for _, shingles, mask in chosen])
        table = np.empty(len(records), _HELD)
        table["record"], table["size"] = records, held.sizes
        self._add(f"{name}.held.npy", encode_npy(table))
        self._add(f"{name}.shingles.npy", encode_npy(held.hashes))
        self._held, self._shingles = [], 0


def _with_shared_key(keys: NDArray[Any]) -> Int64s:
    """The records of sorted keys that share a key with another record."""
    equal = (keys["hash"][1:] == keys["hash"][:-1]) & (keys["record"][1:] != keys["record"][:-1])
    records: Int64s = np.concatenate([keys["record"][1:][equal], keys["record"][:-1][equal]]).astype(np.int64)
    return np.unique(records)


@dataclass(frozen=True)
class PartKeys:
    """The keys of a part's alive records."""

    part: int  # its number
    fingerprint: str  # of the unit that wrote them
    runs: int
    alive: Keep | None  # all, if None

    def read(self, store: Store, dtype: np.dtype[Any], buckets: tuple[int, int]) -> NDArray[Any]:
        """The sorted keys in buckets, from the first to one past the last."""
        (keys,) = read_runs(store, self.fingerprint, "near", self.runs, {"keys": dtype}, buckets)
        return sort_near_keys(alive_keys(keys, self.alive, store))


def alive_keys(keys: NDArray[Any], alive: Keep | None, store: Store) -> NDArray[Any]:
    """The keys of alive records; all, if None."""
    if alive is None:
        return keys
    bits, records = alive.read(store), keys["record"]
    chosen: NDArray[Any] = keys[(bits[records >> 3] << (records & 7).astype(np.uint8)) & 0x80 > 0]
    return chosen


@dataclass(frozen=True)
class _ReadsKeys(Unit):
    """A unit that compares the keys of all parts in one of `ranges` ranges."""

    runs: tuple[PartKeys, ...]
    number: int
    ranges: int  # at most BUCKETS
    keys: int = field(metadata={"identity": False})  # an estimate, for progress

    @property
    def input_bytes(self) -> int:
        return self.keys * self._dtype.itemsize

    @property
    @abstractmethod
    def _dtype(self) -> np.dtype[Any]:
        """Of the keys."""

    def _keys(self, store: Store, on_progress: OnProgress) -> list[tuple[int, NDArray[Any]]]:
        buckets = buckets_of(self.number, self.ranges)
        keys = [(keys.part, keys.read(store, self._dtype, buckets)) for keys in self.runs]
        on_progress(self.input_bytes)
        return keys


@dataclass(frozen=True)
class FindLinks(_ReadsKeys):
    """Find the records that share a key."""

    kind: ClassVar[str] = "links"

    @property
    def _dtype(self) -> np.dtype[Any]:
        return NEAR_KEY

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
    def _dtype(self) -> np.dtype[Any]:
        return SKETCH_KEY

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        add("pairs.npy", encode_npy(near_duplicates.link_alike(self._keys(store, on_progress), self.threshold)))
        return Receipt()


def link_units(runs: Sequence[PartKeys], keys: int) -> list[FindLinks]:
    """The units that link the records of all parts by about `keys` keys."""
    ranges = num_ranges(keys, RANGE_KEYS)
    return [FindLinks(tuple(runs), number, ranges, keys // ranges) for number in range(ranges)]


def alike_units(runs: Sequence[PartKeys], keys: int, threshold: float) -> list[FindAlike]:
    """The same for keys with sketches."""
    ranges = num_ranges(keys, RANGE_KEYS // 4)
    return [FindAlike(tuple(runs), number, ranges, keys // ranges, threshold) for number in range(ranges)]


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
    def input_bytes(self) -> int:
        return self.part.size

    def _shingles(
        self, store: Store, members: NDArray[Any], on_progress: OnProgress
    ) -> Iterator[tuple[Int64s, Shingles]]:
        """Numbers of records and their distinct shingles, each member once, in any order."""
        left = set(members["record"].tolist())
        for run in range(self.runs):
            name = f"units/{self.measured}/near.{run:05d}"
            table = read_npy(store, f"{name}.held.npy")
            wanted = np.isin(table["record"], members["record"])
            if wanted.any():
                held = Shingles(read_npy(store, f"{name}.shingles.npy"), table["size"].astype(np.int64))
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

    @abstractmethod
    def _keys(self, shingles: Shingles, records: Int64s) -> NDArray[Any]:
        """Keys of some members."""

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        runs, keys = key_runs(add, "near", "hash", sort_near_keys), 0
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
    """Write the shingles of members group by group: gathered.members, gathered.shingles, and bounds.npy with the
    beginning and hash of each group in both, shape (4, groups + 1) (`write_buckets`)."""

    kind: ClassVar[str] = "shingles"
    groups: int

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        members = self.members.read(store)
        found = list(self._shingles(store, members, on_progress))
        records = np.concatenate([np.empty(0, np.int64), *(records for records, _ in found)])
        shingles = minhash.join([shingles for _, shingles in found])
        members = members[np.argsort(members["record"], kind="stable")]
        by_record = np.argsort(records, kind="stable")
        members["size"] = shingles.sizes[by_record]
        order = np.lexsort((members["record"], members["group"]))
        members, ordered = members[order], shingles.take(by_record[order])
        begins = np.searchsorted(members["group"], np.arange(self.groups + 1))
        shingles_begin = np.concatenate([[0], ordered.ends])[begins]
        arrays = {"gathered.members": (members, begins), "gathered.shingles": (ordered.hashes, shingles_begin)}
        write_buckets(add, "bounds.npy", arrays)
        return Receipt(kept=len(members))


@dataclass(frozen=True)
class CompareTexts(Unit):
    """Compare the texts of one group. Writes its twins, and the texts that are similar to a crowd of others."""

    kind: ClassVar[str] = "twins"
    gathered: tuple[tuple[int, str], ...]  # number of a part, fingerprint of its GatherShingles unit
    number: int
    threshold: float
    members: int = field(metadata={"identity": False})  # for progress

    @property
    def input_bytes(self) -> int:
        return self.members

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        first = self._read(store, 0)
        texts = self._read(store, self.number) if self.number else first.none()
        found, overfull = near_duplicates.compare(texts, first, self.threshold)
        on_progress(self.members)
        own = texts if self.number else first  # the verdict on representatives is the same in every group
        add("twins.npy", encode_npy(found[np.isin(found["record"], own.ids)]))
        add("overfull.npy", encode_npy(np.intersect1d(overfull, own.ids)))
        return Receipt(kept=len(own.ids))

    def _read(self, store: Store, group: int) -> Texts:
        members, hashes, ids = [np.empty(0, MEMBER)], [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for part, fingerprint in self.gathered:
            unit = f"units/{fingerprint}"
            dtypes = {f"{unit}/gathered.members": MEMBER, f"{unit}/gathered.shingles": np.dtype(np.uint64)}
            found, shingles = read_buckets(store, f"{unit}/bounds.npy", dtypes, (group, group + 1))
            members.append(found)
            hashes.append(shingles)
            ids.append(record_ids(part, found["record"]))
        whole = np.concatenate(members)
        return Texts(
            np.concatenate(ids),
            whole["component"],
            whole["crowded"] > 0,
            Shingles(np.concatenate(hashes), whole["size"].astype(np.int64)),
        )
