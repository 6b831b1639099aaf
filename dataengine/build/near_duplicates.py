"""The rounds that find the near duplicates of a stream: which units run on what, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s
from dataengine.build.near_units import (
    MEMBER,
    CompareTexts,
    FindLinks,
    GatherShingles,
    Members,
    PartKeys,
    RowKeys,
    SketchKeys,
    alike_units,
    link_units,
)
from dataengine.build.rounds import Round, Rounds
from dataengine.build.units import Keep, Unit, publish_keep
from dataengine.cleaning import near_duplicates
from dataengine.cleaning.minhash import choose_bands
from dataengine.cleaning.near_duplicates import TWIN, Candidates, Links
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.storage.arrays import encode_npy, read_npy
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

    def publish_alive(self, store: Store) -> Keep | None:
        """Which records are alive; None if all are."""
        return publish_keep(self.alive, store)


def find_twins(parts: Sequence[CleanedPart], threshold: float, store: Store) -> Rounds[tuple[NDArray[Any], int]]:
    """Rounds of units that find the near duplicates among the alive records.

    Returns the twins (dtype TWIN, in canonical order), and the number of texts that are similar to so many others that
    they were compared with only some of these.
    """
    alive = sum(int(np.count_nonzero(part.alive)) for part in parts)
    linking = link_units(
        [PartKeys(k, part.fingerprint, part.runs, part.publish_alive(store)) for k, part in enumerate(parts)],
        choose_bands(threshold)[0] * alive,
    )
    yield Round("comparing", linking)
    links = _gather_links(linking, store)
    components = links.pairs
    if len(links.crowded):
        rows: dict[int, Unit] = {
            k: RowKeys(*_place(parts[k]), _publish(ids, store)) for k, ids in _by_part(links.crowded).items()
        }
        keys, count = yield from _make_keys(rows)
        rare = link_units(keys, count)
        yield Round("comparing", rare)
        components = near_duplicates.connect(np.concatenate([components, _gather_links(rare, store).pairs]))
    found = near_duplicates.find_candidates(links, components)
    if (large := found.sizes > near_duplicates.LARGE).any():
        sketches: dict[int, Unit] = {
            k: SketchKeys(*_place(parts[k]), _publish(ids, store), threshold)
            for k, ids in _by_part(found.ids[large]).items()
        }
        alike = alike_units(*(yield from _make_keys(sketches)), threshold)
        yield Round("comparing", alike)
        found = found.relink(large, _gather_pairs(alike, store))
    if not len(found.ids):
        return np.empty(0, TWIN), 0
    members, groups, cut = _group(found, _room(parts))
    gathering = {
        k: GatherShingles(*_place(parts[k]), Members.publish(encode_npy(table), store), groups)
        for k, table in members.items()
    }
    yield Round("comparing", list(gathering.values()))
    gathered = tuple((k, unit.fingerprint) for k, unit in gathering.items())
    sizes = np.bincount(np.concatenate([table["group"] for table in members.values()]), minlength=groups)
    comparing = [CompareTexts(gathered, number, threshold, size) for number, size in enumerate(sizes.tolist()) if size]
    yield Round("comparing", comparing)
    overfull = np.unique(np.concatenate([cut, *(read_npy(store, f"{unit.folder}/overfull.npy") for unit in comparing)]))
    twins = np.concatenate([read_npy(store, f"{unit.folder}/twins.npy") for unit in comparing])
    return twins[np.argsort(twins["record"])], len(overfull)


def _place(part: CleanedPart) -> tuple[SourcePart, RecordFormat, str, int]:
    return part.part, part.records, part.fingerprint, part.runs


def _make_keys(units: Mapping[int, Unit]) -> Rounds[tuple[list[PartKeys], int]]:
    """A round of units that make keys, by the numbers of their parts; returns the places and the number of keys."""
    receipts = yield Round("comparing", list(units.values()))
    made = zip(units.items(), receipts, strict=True)
    keys = [PartKeys(k, unit.fingerprint, receipt.near_runs, None) for (k, unit), receipt in made]
    return keys, sum(receipt.kept for receipt in receipts)


def _gather_pairs(units: Sequence[Unit], store: Store) -> UInt64s:
    """The pairs of all ranges, reduced to pairs of a record with the first of its component."""
    pairs = np.empty((0, 2), np.uint64)
    for unit in units:
        more = read_npy(store, f"{unit.folder}/pairs.npy")
        if len(more):
            pairs = near_duplicates.connect(np.concatenate([pairs, more]))
    return pairs


def _gather_links(units: Sequence[FindLinks], store: Store) -> Links:
    """The links of all ranges, with pairs as returned by `_gather_pairs`."""
    crowded, first = np.empty(0, np.uint64), np.empty(0, np.uint64)
    for unit in units:
        crowded = np.union1d(crowded, read_npy(store, f"{unit.folder}/crowded.npy"))
        first = np.union1d(first, read_npy(store, f"{unit.folder}/representatives.npy"))
    return Links(_gather_pairs(units, store), crowded, first)


def _by_part(ids: UInt64s) -> dict[int, Int64s]:
    """The records of sorted ids, by the number of their part."""
    numbers, begins = np.unique(ids >> np.uint64(32), return_index=True)
    records = (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return dict(zip(numbers.astype(int).tolist(), np.split(records, begins[1:]), strict=True))


def _publish(records: Int64s, store: Store) -> Members:
    members = np.zeros(len(records), MEMBER)
    members["record"] = records
    return Members.publish(encode_npy(members), store)


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
