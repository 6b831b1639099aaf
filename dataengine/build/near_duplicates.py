"""The rounds that find the near duplicates of a stream: which units run on what, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s
from dataengine.build.external_sort import Form, Source
from dataengine.build.near_units import (
    GATHERED,
    KEYS,
    MEMBER,
    SKETCHES,
    CompareTexts,
    FindLinks,
    GatherShingles,
    Members,
    RowKeys,
    SketchKeys,
    find_alike,
    find_links,
)
from dataengine.build.rounds import Round, Rounds
from dataengine.build.split import part_sources, split
from dataengine.build.units import Unit, publish_keeps
from dataengine.cleaning import near_duplicates
from dataengine.cleaning.minhash import choose_bands
from dataengine.cleaning.near_duplicates import TWIN, Candidates, Links
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.storage.arrays import encode_npy, read_all_npy
from dataengine.storage.store import Store

if TYPE_CHECKING:
    from dataengine.arrays import UInt64s

# Bytes of text that a CompareTexts unit compares, about. Their shingles take two to four times as much.
GROUP_BYTES = 1 << 25
_LEAST_GROUP, _MOST_GROUP = 1 << 10, 1 << 17  # records


@dataclass(frozen=True)
class CleanedPart:
    """A cleaned part, as input of the search for near duplicates."""

    part: SourcePart
    records: RecordFormat
    fingerprint: str  # of its NearKeys
    runs: int
    alive: NDArray[np.bool_]  # of its usable records, those that everything else keeps


def find_twins(parts: Sequence[CleanedPart], threshold: float, store: Store) -> Rounds[tuple[NDArray[Any], int]]:
    """Rounds of units that find the near duplicates among the alive records.

    Returns the twins (dtype TWIN, in canonical order), and the number of texts that are similar to so many others that
    they were compared with only some of these.
    """
    alive = sum(int(np.count_nonzero(part.alive)) for part in parts)
    bands = choose_bands(threshold)[0]
    runs: list[tuple[Source, int]] = []
    alive_keeps = publish_keeps((part.alive for part in parts), store)
    for k, (part, keep) in enumerate(zip(parts, alive_keeps, strict=True)):
        size = len(part.alive) * bands * KEYS.moved.itemsize
        runs += part_sources(k, part.fingerprint, "near", part.runs, size, keep)
    linking = yield from find_links(runs, bands * alive)
    links = _gather_links(linking, store)
    components = links.pairs
    if len(links.crowded):
        rows: dict[int, Unit] = {
            k: RowKeys(*_place(parts[k]), members) for k, members in _publish(links.crowded, store).items()
        }
        rare = yield from find_links(*(yield from _make_keys(rows, KEYS)))
        components = near_duplicates.connect(np.concatenate([components, _gather_links(rare, store).pairs]))
    found = near_duplicates.find_candidates(links, components)
    if (large := found.sizes > near_duplicates.LARGE).any():
        sketches: dict[int, Unit] = {
            k: SketchKeys(*_place(parts[k]), members, threshold)
            for k, members in _publish(found.ids[large], store).items()
        }
        alike = yield from find_alike(*(yield from _make_keys(sketches, SKETCHES)), threshold)
        found = found.relink(large, _gather_pairs(alike, store))
    if not len(found.ids):
        return np.empty(0, TWIN), 0
    members, groups, cut = _group(found, _room(parts))
    gathering = {
        k: GatherShingles(*_place(parts[k]), published) for k, published in _publish_members(members, store).items()
    }
    receipts = yield Round("comparing", list(gathering.values()))
    gathered = []
    for (k, unit), receipt in zip(gathering.items(), receipts, strict=True):
        size = receipt.kept * GATHERED.moved.itemsize + 8 * receipt.tokens
        gathered += part_sources(k, unit.fingerprint, "gathered", receipt.runs, size)
    first, *others = yield from split("comparing", gathered, GATHERED, groups)
    sizes = np.bincount(np.concatenate([table["group"] for table in members.values()]), minlength=groups).tolist()
    comparing = [
        CompareTexts(first if sizes[0] else (), places, threshold, size)
        for places, size in zip([(), *others], sizes, strict=True)
        if size
    ]
    yield Round("comparing", comparing)
    overfull = np.unique(np.concatenate([cut, *_read_all(comparing, "overfull.npy", store)]))
    twins = np.concatenate(list(_read_all(comparing, "twins.npy", store)))
    return twins[np.argsort(twins["record"])], len(overfull)


def _place(part: CleanedPart) -> tuple[SourcePart, RecordFormat, str, int]:
    return part.part, part.records, part.fingerprint, part.runs


def _make_keys(units: Mapping[int, Unit], form: Form) -> Rounds[tuple[list[tuple[Source, int]], int]]:
    """A round of units that make keys, by the numbers of their parts; returns the runs and the number of keys."""
    receipts = yield Round("comparing", list(units.values()))
    runs = [
        run
        for (k, unit), receipt in zip(units.items(), receipts, strict=True)
        for run in part_sources(k, unit.fingerprint, "near", receipt.near_runs, receipt.kept * form.moved.itemsize)
    ]
    return runs, sum(receipt.kept for receipt in receipts)


def _read_all(units: Sequence[Unit], name: str, store: Store) -> Iterator[NDArray[Any]]:
    """An array of each unit."""
    return read_all_npy(store, [f"{unit.folder}/{name}" for unit in units])


def _gather_pairs(units: Sequence[Unit], store: Store) -> UInt64s:
    """The pairs of all ranges, reduced to pairs of a record with the first of its component."""
    pairs = np.empty((0, 2), np.uint64)
    for more in _read_all(units, "pairs.npy", store):
        if len(more):
            pairs = near_duplicates.connect(np.concatenate([pairs, more]))
    return pairs


def _gather_links(units: Sequence[FindLinks], store: Store) -> Links:
    """The links of all ranges, with pairs as returned by `_gather_pairs`."""
    crowded, first = np.empty(0, np.uint64), np.empty(0, np.uint64)
    for more in _read_all(units, "crowded.npy", store):
        crowded = np.union1d(crowded, more)
    for more in _read_all(units, "representatives.npy", store):
        first = np.union1d(first, more)
    return Links(_gather_pairs(units, store), crowded, first)


def _by_part(ids: UInt64s) -> dict[int, Int64s]:
    """The records of sorted ids, by the number of their part."""
    numbers, begins = np.unique(ids >> np.uint64(32), return_index=True)
    records = (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return dict(zip(numbers.astype(int).tolist(), np.split(records, begins[1:]), strict=True))


def _publish(ids: UInt64s, store: Store) -> dict[int, Members]:
    """Publish records as members, by the numbers of their parts."""
    members = {}
    for number, records in _by_part(ids).items():
        members[number] = np.zeros(len(records), MEMBER)
        members[number]["record"] = records
    return _publish_members(members, store)


def _publish_members(members: Mapping[int, NDArray[Any]], store: Store) -> dict[int, Members]:
    published = Members.publish(list(map(encode_npy, members.values())), store)
    return dict(zip(members, published, strict=True))


def _room(parts: Sequence[CleanedPart]) -> int:
    """The approximate number of records in a group."""
    size = sum(part.part.size for part in parts) // max(sum(len(part.alive) for part in parts), 1)
    return min(max(GROUP_BYTES // max(size, 1), _LEAST_GROUP), _MOST_GROUP)


def _group(found: Candidates, room: int) -> tuple[dict[int, NDArray[Any]], int, UInt64s]:
    """The members of each part to compare, in groups of whole components with about `room` records; the number of
    groups; and the records of larger components, which are cut.

    Group 0 holds the representatives of crowds.
    """
    order = np.lexsort((found.ids, found.components, ~found.first))
    ids = found.ids[order]
    members = np.zeros(len(ids), MEMBER)
    count = int(found.first.sum())
    members["record"], members["component"], members["crowded"] = ids, found.components[order], found.crowded[order]
    _, begins, places, sizes = np.unique(
        members["component"][count:], return_index=True, return_inverse=True, return_counts=True
    )
    inside = np.arange(len(ids) - count) - begins[places]
    members["group"][count:] = 1 + (begins[places] + inside // room * room) // room
    numbers = (ids >> np.uint64(32)).astype(np.int64)
    by_part = {k: members[numbers == k] for k in np.unique(numbers).tolist()}
    return by_part, 1 + int(members["group"].max()), ids[count:][sizes[places] > room]
