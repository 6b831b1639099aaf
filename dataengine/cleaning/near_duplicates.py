"""Near duplicates: MinHash bands propose pairs of texts, and exact sets of shingles decide.

    texts -> shingles -> signatures -> band keys -> links between records -> components -> compare -> twins
                                       sketches   -> links between records in large components

A text is removed only if its Jaccard similarity with a kept text reaches the threshold, computed on their whole sets
of shingles. An estimated similarity removes no text, and neither does a text that is itself removed. Pairs that no band
proposes are missed: at most 1 in 1,000 twins at the threshold, far fewer above it.

A band shared by many texts, such as a template, proposes too many pairs. Texts in such a crowd are linked by the single
signature rows that no crowd shares, which stem from their own shingles. In addition each is compared with the first
texts of its crowds. So the work grows with the number of texts, not with its square.

If texts consist of the same passages, links connect each with all others. In such a large component a shared band
counts only if the signatures are similar, judged by two bits of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Int64s, UInt32s, UInt64s, with_part
from dataengine.cleaning.dedup import order_of_equal
from dataengine.cleaning.minhash import (
    MINHASH_SEED,
    NEAR_KEY,
    PERMUTATIONS,
    Shingles,
    band_hashes,
    band_keys,
    join,
    make_near_keys,
    mix_hashes,
    row_hashes,
    sign,
    sketch_keys,
)
from dataengine.permutation import hash_numbers

CROWD = 256  # records; a key of more records links none of them
LARGE = 1 << 12  # records; the links of larger components are checked again
REPRESENTATIVES = 2  # first records of a crowd; all others in it are compared with them
_BLOCK = 4096  # texts
_SLOTS = 20  # bits of a hash, for a table that counts the rows of a block
_FEW = 8  # texts of a component that are all compared; candidates that are all compared
_CLEARLY, _DEVIATIONS = 0.05, 2.5  # sketches of texts this far above the threshold agree, except 1 in 160
_MOST_PAIRS = 1 << 22  # in memory at a time
_MARGIN = 0.05  # of many candidates, only those estimated at most this far below the threshold are compared
_MOST_FIRST = 4  # most likely representatives of other components to compare
# A removed record and its kept twin, by `ids_of`.
TWIN = np.dtype([("record", "<u8"), ("kept", "<u8"), ("similarity", "<f4")])


def row_keys(shingles: Shingles, records: Int64s) -> NDArray[Any]:
    """Keys of single signature rows, without those that a crowd in a block of these records shares.

    A table of hashes counts the rows, so one in thousands is mistaken for another. A text has 128 of them.
    """
    keys = [np.empty(0, NEAR_KEY)]
    signatures = sign(shingles)
    for first in range(0, len(records), _BLOCK):
        hashes = row_hashes(signatures[first : first + _BLOCK]).ravel()
        slots = (hashes >> np.uint64(64 - _SLOTS)).astype(np.int64)
        rare = np.flatnonzero(np.bincount(slots, minlength=1 << _SLOTS)[slots] <= CROWD)
        keys.append(make_near_keys(hashes[rare], records[first + rare // PERMUTATIONS]))
    return np.concatenate(keys)


def ids_of(records: NDArray[Any]) -> UInt64s:
    """One number per record of a stream, given with the fields `part` and `record`. It ascends in canonical order."""
    ids: UInt64s = records["part"].astype(np.uint64) << np.uint64(32) | records["record"]
    return ids


@dataclass(frozen=True)
class Links:
    """The links between records: pairs that share a key (each record with the first that has it), and crowds."""

    pairs: UInt64s  # (n, 2) ids; the first of a pair is the earlier record
    crowded: UInt64s  # (m,) ids of records in crowds, sorted
    representatives: UInt64s  # ids of the first records of each crowd, sorted


def link_records(keys: NDArray[Any]) -> Links:
    """The links in one range of the key space, given its keys: NEAR_KEY with the number of the `part`."""
    keys, ids = _in_order(keys)
    hashes = keys["hash"]
    starts, sizes, run = _equal_runs(hashes)
    crowd = (sizes > CROWD)[run]
    place = np.arange(len(hashes)) - starts[run]
    first = ids[starts[run]]
    linked = ~crowd & (first != ids)
    return Links(
        pairs=np.unique(np.stack([first[linked], ids[linked]], axis=1), axis=0),
        crowded=np.unique(ids[crowd]),
        representatives=np.unique(ids[crowd & (place < REPRESENTATIVES)]),
    )


def link_alike(keys: NDArray[Any], threshold: float) -> UInt64s:
    """The components of records that share a key outside of crowds and have sketches as similar as those of twins.

    Takes the keys of one range: SKETCH_KEY with the number of the `part`. Returns them in the form of `connect`."""
    keys, ids = _in_order(keys)
    hashes, sketches = keys["hash"], keys["sketch"]
    _, sizes, run = _equal_runs(hashes)
    differing = (1 - min(threshold + _CLEARLY, 1.0)) * 3 / 4  # share of rows; one in four agrees by chance
    most = PERMUTATIONS * differing + _DEVIATIONS * (PERMUTATIONS * differing * (1 - differing)) ** 0.5
    at, held, pairs = np.flatnonzero(sizes[run] <= CROWD), 0, [np.empty((0, 2), np.uint64)]
    for step in range(1, CROWD):
        at = at[at + step < len(hashes)]
        at = at[hashes[at + step] == hashes[at]]
        if not len(at):
            break
        unlike = np.bitwise_or.reduce(sketches[at] ^ sketches[at + step], axis=1)
        near = at[np.bitwise_count(unlike).sum(axis=1) <= most]
        pairs.append(np.stack([ids[near], ids[near + step]], axis=1))
        held += len(near)
        if held > _MOST_PAIRS:
            pairs, held = [connect(np.concatenate(pairs))], 0
    return connect(np.concatenate(pairs))


def _in_order(keys: NDArray[Any]) -> tuple[NDArray[Any], UInt64s]:
    """The keys whose hash occurs twice or more, usually few, by hash; and the ids of their records, in canonical order
    for equal hashes."""
    keys = keys[order_of_equal(keys["hash"])]
    hashes, ids = keys["hash"], ids_of(keys)
    if np.any((hashes[1:] == hashes[:-1]) & (ids[1:] < ids[:-1])):  # rare: most keys come in the order of records
        order = np.lexsort((ids, hashes))
        keys, ids = keys[order], ids[order]
    return keys, ids


def _equal_runs(hashes: UInt64s) -> tuple[Int64s, Int64s, Int64s]:
    """The beginning and length of each run of equal hashes, and the run of each hash."""
    fresh = np.ones(len(hashes), bool)
    fresh[1:] = hashes[1:] != hashes[:-1]
    starts = np.flatnonzero(fresh)
    return starts, np.diff(np.append(starts, len(hashes))), np.cumsum(fresh) - 1


def connect(pairs: UInt64s) -> UInt64s:
    """The components of the graph with pairs of ids as edges, shape (n, 2): each id, sorted, with the smallest id of
    its component; shape (m, 2). These rows are pairs again and give the same components."""
    ids, places = np.unique(pairs, return_inverse=True)
    labels, ends = np.arange(len(ids)), places.reshape(-1, 2)
    while True:
        one, other = labels[ends[:, 0]], labels[ends[:, 1]]
        apart = one != other
        if not apart.any():
            return np.stack([ids, ids[labels]], axis=1)
        np.minimum.at(labels, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while not np.array_equal(shorter := labels[labels], labels):
            labels = shorter


@dataclass(frozen=True)
class Candidates:
    """n records that may be twins, by ascending ids."""

    ids: UInt64s  # (n,)
    components: UInt64s  # (n,): the smallest id of each record's component
    crowded: NDArray[np.bool_]  # (n,)
    first: NDArray[np.bool_]  # (n,): the representatives

    @property
    def sizes(self) -> Int64s:
        """The size of each record's component."""
        _, places, sizes = np.unique(self.components, return_inverse=True, return_counts=True)
        return sizes[places]

    def relink(self, chosen: NDArray[np.bool_], components: UInt64s) -> Candidates:
        """Replace the components of the chosen records by others, in the form of `connect`."""
        labels = np.where(chosen, self.ids, self.components)
        labels[np.searchsorted(self.ids, components[:, 0])] = components[:, 1]
        return Candidates(self.ids, labels, self.crowded, self.first)._of_several()

    def _of_several(self) -> Candidates:
        """Remove records that are alone in their component and in no crowd."""
        kept = (self.sizes > 1) | self.crowded
        return Candidates(self.ids[kept], self.components[kept], self.crowded[kept], self.first[kept])


def find_candidates(links: Links, components: UInt64s) -> Candidates:
    """The records to compare, from links. `components` are those of all pairs, in the form of `connect`."""
    ids = np.union1d(components[:, 0], links.crowded)
    nobody = Candidates(ids, ids, np.isin(ids, links.crowded), np.isin(ids, links.representatives))
    return nobody.relink(np.zeros(len(ids), bool), components)


@dataclass(frozen=True)
class Texts:
    """n texts to compare, in the order of their ids."""

    ids: UInt64s  # (n,)
    components: UInt64s  # (n,): texts of different components are not compared
    crowded: NDArray[np.bool_]  # (n,): the text is compared with the representatives
    shingles: Shingles  # distinct

    def none(self) -> Texts:
        """No texts."""
        nobody = np.zeros(len(self.ids), bool)
        return Texts(self.ids[:0], self.components[:0], self.crowded[:0], self.shingles.select(nobody))


def compare(texts: Texts, representatives: Texts, threshold: float) -> tuple[NDArray[Any], UInt64s]:
    """The near duplicates among texts in the order of their ids, dtype TWIN, shape (k,); and the ids of texts that are
    similar to more than a crowd of others and were compared with only some of them.

    Representatives come first, then the texts by id. Each is compared with earlier kept texts that share a band, in its
    own component or among the representatives: in small components with all, otherwise with the likely twins. At or
    above the threshold it is removed. The verdict on representatives does not depend on the texts.
    """
    whole = _join(representatives, texts)
    count = len(representatives.ids)
    ends = whole.shingles.ends.tolist()
    sets = [whole.shingles.hashes[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    _, places, sizes = np.unique(whole.components, return_inverse=True, return_counts=True)
    small = (sizes <= _FEW) & (np.bincount(places, whole.crowded, len(sizes)) == 0)
    small = small[places]
    banded = np.flatnonzero(~small)
    signatures = sign(whole.shingles.select(~small))
    hashes = band_hashes(signatures, threshold)
    inside = mix_hashes(hashes ^ hash_numbers(places[banded], MINHASH_SEED + 1)[:, None])
    rows = dict(zip(banded.tolist(), range(len(banded)), strict=True))  # of `signatures`

    index: dict[int, list[int]] = {}  # band, band in a component, small component (negative) -> kept texts
    twins: list[tuple[int, int, float]] = []
    overfull: list[int] = []
    for number, component in enumerate(places.tolist()):
        row = rows.get(number)
        full = False
        if row is None:
            keys = [-1 - component]
            candidates = index.get(keys[0], [])
        else:
            bands, keys = hashes[row].tolist(), inside[row].tolist() if sizes[component] > 1 else []
            first = _likeliest(_kept_with(index, bands), row, rows, signatures, threshold)
            candidates = first[:_MOST_FIRST]
            if number < count:
                keys += bands
            else:
                likely = _likeliest(_kept_with(index, keys), row, rows, signatures, threshold)
                candidates, full = candidates + likely[:CROWD], len(likely) > CROWD
        twin = next(((k, s) for k in candidates if (s := jaccard(sets[k], sets[number])) >= threshold), None)
        if twin is not None:
            twins.append((number, *twin))
            continue
        for key in keys:
            there = index.setdefault(key, [])
            if len(there) < CROWD:
                there.append(number)
            else:
                full = True
        if full:
            overfull.append(number)
    found = np.empty(len(twins), TWIN)
    found["record"] = whole.ids[np.array([twin[0] for twin in twins], np.int64)]
    found["kept"] = whole.ids[np.array([twin[1] for twin in twins], np.int64)]
    found["similarity"] = [twin[2] for twin in twins]
    return found[np.argsort(found["record"])], whole.ids[np.array(overfull, np.int64)]


def _join(one: Texts, other: Texts) -> Texts:
    return Texts(
        np.concatenate([one.ids, other.ids]),
        np.concatenate([one.components, other.components]),
        np.concatenate([one.crowded, other.crowded]),
        join([one.shingles, other.shingles]),
    )


def _kept_with(kept: dict[int, list[int]], keys: Sequence[int]) -> list[int]:
    """The texts with one of the keys, once for each such key."""
    return [number for key in keys if key in kept for number in kept[key]]


def _likeliest(
    candidates: list[int], row: int, rows: dict[int, int], signatures: UInt32s, threshold: float
) -> list[int]:
    """The candidates to compare, most likely first: few candidates all, of many only those with a similar signature."""
    if len(candidates) < 2:
        return candidates
    distinct = list(dict.fromkeys(candidates))
    agreement = np.count_nonzero(signatures[[rows[k] for k in distinct]] == signatures[row], axis=1)
    order = np.argsort(-agreement, kind="stable")
    if len(order) > _FEW:
        order = order[agreement[order] >= (threshold - _MARGIN) * PERMUTATIONS]
    return [distinct[k] for k in order.tolist()]


def jaccard(one: UInt64s, other: UInt64s) -> float:
    """The Jaccard similarity of two sorted sets that are not empty: the size of the intersection over the union."""
    if len(one) > len(other):
        one, other = other, one
    common = int(np.count_nonzero(other.take(other.searchsorted(one), mode="clip") == one))
    return common / (len(one) + len(other) - common)


def find_near_duplicates(texts: Sequence[str], threshold: float) -> NDArray[Any]:
    """The near duplicates among a few texts with ids from 0, dtype TWIN. The units do the same for a stream."""
    keys, records, shingles = band_keys(texts, threshold, np.arange(len(texts)))
    links = link_records(with_part(keys, 0))
    ids = records.astype(np.uint64)
    crowded = np.isin(ids, links.crowded)
    rare = link_records(with_part(row_keys(shingles.select(crowded), records[crowded]), 0))
    found = find_candidates(links, connect(np.concatenate([links.pairs, rare.pairs])))
    if (large := found.sizes > LARGE).any():
        chosen = np.isin(ids, found.ids[large])
        sketched = sketch_keys(shingles.select(chosen), records[chosen], threshold)
        found = found.relink(large, link_alike(with_part(sketched, 0), threshold))

    def texts_of(chosen: NDArray[np.bool_]) -> Texts:
        mine = shingles.select(np.isin(ids, found.ids[chosen])).distinct()
        return Texts(found.ids[chosen], found.components[chosen], found.crowded[chosen], mine)

    return compare(texts_of(~found.first), texts_of(found.first), threshold)[0]
