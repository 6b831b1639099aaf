"""Finished units in the store: find them with few requests, and remove what nothing reads any more.

A unit's files go in two steps, each recorded in its receipt before the first file is removed, so that a build can be
killed at any time:

    spent   its `for_units` and `also_for_units`, such as runs of documents and near keys, once later units have read
            them. A unit that needs them once more lets `rounds` run this one again
    moved   its shards, once they are copied to a stream in a bucket. Another stream copies them from there. On a disk
            they are hard links, which need no space, and stay
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from dataengine.build.running import Alone
from dataengine.build.units import Place, Receipt, Unit
from dataengine.json_files import decode_hashed, encode_hashed
from dataengine.mds.types import documents_name
from dataengine.storage.arrays import damaged_unit
from dataengine.storage.store import Store

THREADS = 16  # that ask for units at a time


@dataclass(frozen=True)
class Finished:
    """Which units are finished: their receipts, and those that were, but whose files are gone."""

    receipts: dict[int, Receipt]
    gone: dict[int, Unit]


def finished_receipts(units: Mapping[int, Unit], store: Store) -> dict[int, Receipt]:
    """The receipts of the finished units. Raises InputError if a finished unit is damaged."""
    return find_finished(units, store).receipts


def find_finished(units: Mapping[int, Unit], store: Store, *, whole: bool = False) -> Finished:
    """The finished units. With `whole`, those are not finished whose files for later units are removed.

    Asks for each by name, unless a listing of all units takes fewer requests. Raises InputError if one is damaged.
    """
    sizes = store.sizes_if_few("units/", max(len(units) - 1, 0) // THREADS)
    streams: dict[str, Mapping[str, int]] = {}  # sizes in the folders of streams

    def look(unit: Unit) -> tuple[Receipt | None, bool]:
        receipt = read_receipt(unit.folder, store, sizes)
        if receipt is None:
            return None, False
        lost = {folder for folder in unit.also if not _is_spent(folder, unit, receipt)}
        lost = {folder for folder in lost if not _is_there(folder, store, sizes)}
        if not lost.isdisjoint(unit.also_for_units):  # spent by a unit that shares them
            receipt = replace(receipt, spent=True)
        gone = (
            (whole and receipt.spent)
            or not lost.issubset(unit.also_for_units)
            or not _has_shards(unit.folder, receipt, store, sizes, streams)
        )
        return receipt, gone

    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(units, pool.map(look, units.values()), strict=True))
    return Finished(
        {k: receipt for k, (receipt, gone) in found.items() if receipt is not None and not gone},
        {k: units[k] for k, (_, gone) in found.items() if gone},
    )


def read_receipt(folder: str, store: Store, sizes: Mapping[str, int] | None = None) -> Receipt | None:
    """The receipt of a unit, if there is one. `sizes` are those of all units' files, if they are known."""
    key = f"{folder}/receipt.json"
    if sizes is not None and key not in sizes:
        return None
    try:
        return decode_hashed(Receipt, store.read(key))
    except FileNotFoundError:
        return None
    except ValueError:
        raise damaged_unit(store, key) from None


def _is_spent(folder: str, unit: Unit, receipt: Receipt) -> bool:
    return receipt.spent and folder in unit.also_for_units


def _is_there(folder: str, store: Store, sizes: Mapping[str, int] | None) -> bool:
    key = f"{folder}/receipt.json"
    return store.size(key) is not None if sizes is None else key in sizes


def _has_shards(
    folder: str,
    receipt: Receipt,
    store: Store,
    sizes: Mapping[str, int] | None,
    streams: dict[str, Mapping[str, int]],
) -> bool:
    """Whether the shards of a unit exist in their sizes. Raises InputError if one beside the receipt does not."""
    if not receipt.shards:
        return True
    if receipt.moved is not None:
        place = receipt.moved.folder
        there = streams[place] = streams.get(place) or store.sizes(f"{place}/")
        if receipt.moved.task is not None and documents_key(folder, receipt) not in there:
            return False
    else:
        there = store.sizes(f"{folder}/") if sizes is None else sizes
    for key, shard in zip(shard_keys(folder, receipt), receipt.shards, strict=True):
        if there.get(key) != shard.stored.bytes:
            if receipt.moved is not None:
                return False
            raise damaged_unit(store, key)
    return True


def shard_keys(folder: str, receipt: Receipt) -> list[str]:
    """The keys of a unit's shards."""
    if receipt.moved is None:
        return [f"{folder}/{shard.stored.basename}" for shard in receipt.shards]
    place = receipt.moved
    moved = (shard.renamed(number) for number, shard in enumerate(receipt.shards, place.first))
    return [f"{place.folder}/{shard.stored.basename}" for shard in moved]


def documents_key(folder: str, receipt: Receipt) -> str:
    """The key of a unit's `documents.npy`."""
    place = receipt.moved
    return f"{folder}/documents.npy" if place is None else f"{place.folder}/{documents_name(place.task or 0)}"


def forget_units(units: Iterable[Unit], store: Store) -> None:
    """Remove the receipts of units, so that they run again. Other builds may read their files meanwhile."""
    store.remove_files([f"{unit.folder}/receipt.json" for unit in units])


def _list_folders(folders: Sequence[str], store: Store) -> dict[str, list[str]]:
    """The keys of the files in each folder of units."""
    found: dict[str, list[str]] = {folder: [] for folder in folders}
    listed = store.sizes_if_few("units/", max(len(found) - 1, 0) // THREADS)
    if listed is None:
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(found, pool.map(lambda folder: list(store.sizes(f"{folder}/")), found), strict=True))
    for key in listed:
        found.get(key.rpartition("/")[0], []).append(key)
    return found


def _remove_files(keys: Sequence[str], store: Store) -> None:
    """Remove files of units, the receipts first: without one, the rest does not count."""
    for receipts in (True, False):
        if some := [key for key in keys if key.endswith("/receipt.json") == receipts]:
            store.remove_files(some)


def spend_units(done: Sequence[tuple[Unit, Receipt]], store: Store, alone: Alone = lambda: True) -> None:
    """Remove the files of finished units that only later units read, and say so in their receipts first.

    They stay if no build is `alone` any more.
    """
    left = [(unit, receipt) for unit, receipt in done if (unit.for_units or unit.also_for_units) and not receipt.spent]
    own = [unit.folder for unit, _ in left if unit.for_units]
    listed = _list_folders([*own, *(folder for unit, _ in left for folder in unit.also_for_units)], store)

    def spend(one: tuple[Unit, Receipt]) -> list[str]:
        unit, receipt = one
        keys = [key for key in listed.get(unit.folder, []) if key.rpartition("/")[2].startswith(unit.for_units)]
        if keys or unit.also_for_units:
            store.write(f"{unit.folder}/receipt.json", encode_hashed(replace(receipt, spent=True)))
        return keys + [key for folder in unit.also_for_units for key in listed[folder]]

    with ThreadPoolExecutor(THREADS) as pool:
        unread = [key for keys in pool.map(spend, left) for key in keys]
    if alone():
        _remove_files(unread, store)


def move_units(done: Sequence[tuple[Unit, Receipt, Place]], store: Store, alone: Alone = lambda: True) -> None:
    """Remove the shards and documents of units of which a stream has copies, and say so in their receipts first.

    They stay if no build is `alone` any more.
    """

    def move(one: tuple[Unit, Receipt, Place]) -> list[str]:
        unit, receipt, place = one
        store.write(f"{unit.folder}/receipt.json", encode_hashed(replace(receipt, moved=place)))
        if receipt.moved is not None:  # into another stream, which may be removed
            return []
        keys = shard_keys(unit.folder, receipt)
        return keys if place.task is None else [*keys, documents_key(unit.folder, receipt)]

    left = [one for one in done if one[1].shards and one[1].moved != one[2]]
    with ThreadPoolExecutor(THREADS) as pool:
        copied = [key for keys in pool.map(move, left) for key in keys]
    if alone():
        store.remove_files(copied)
