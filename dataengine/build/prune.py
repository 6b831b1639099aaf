"""Find and remove what no experiment needs of a store: units, decisions and streams.

Kept are the streams that a manifest of the store names, and all that a build of the given configs would reuse.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, fields, is_dataclass

from dataengine.build.finished import find_finished
from dataengine.build.prepare import StreamPlan, prepare
from dataengine.build.running import running_builds
from dataengine.build.stream import make_stream
from dataengine.build.units import Named, Receipt, Unit
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.manifest import read_manifest
from dataengine.storage.open import open_store
from dataengine.storage.store import Store

_FOLDERS = ("streams", "units", "keeps")
_FIRST = ("receipt.json", "index.json")  # without it, the rest is not used


@dataclass(frozen=True)
class Unneeded:
    """What nothing needs: the files by the unit, decision or stream that they belong to, and the bytes to be freed."""

    files: dict[str, list[str]]
    bytes: int
    kept: dict[str, int]  # "units", "keeps", "streams" -> how many are kept

    def of(self, folder: str) -> list[str]:
        """The units, decisions or streams."""
        return [name for name in self.files if name.startswith(f"{folder}/")]


def find_unneeded(store: Store, configs: Sequence[Config]) -> Unneeded:
    """What no manifest of the store and none of the configs needs. Raises InputError while a build runs."""
    _refuse_running(store)
    needed = {*_named_by_manifests(store), *(key for config in configs for key in _needed_by(config, store))}
    files: dict[str, list[str]] = {}
    kept = dict.fromkeys(_FOLDERS, 0)
    for folder in _FOLDERS:
        found: dict[str, list[str]] = {}
        for key in store.sizes(f"{folder}/"):
            found.setdefault("/".join(key.split("/")[:2]), []).append(key)
        for name, keys in found.items():
            if name in needed:
                kept[folder] += 1
            else:
                files[name] = keys
    return Unneeded(files, store.freed_by([key for keys in files.values() for key in keys]), kept)


def remove_unneeded(unneeded: Unneeded, store: Store) -> None:
    """Remove it; first the files without which the others count as absent. Raises InputError while a build runs."""
    _refuse_running(store)
    keys = [key for keys in unneeded.files.values() for key in keys]
    store.remove_files([key for key in keys if key.endswith(_FIRST)])
    store.remove_files([key for key in keys if not key.endswith(_FIRST)])


def _refuse_running(store: Store) -> None:
    if running := running_builds(store):
        streams = ", ".join(sorted({name.rpartition("/")[2] for one in running for name in one.streams})) or "no stream"
        raise InputError(f"a build runs in {store.url} ({streams}). Prune when it has ended.")


def _named_by_manifests(store: Store) -> Iterator[str]:
    """The streams of the manifests in a store. Raises InputError for a damaged manifest."""
    for key in store.sizes("experiments/"):
        if key.endswith("/manifest.json"):
            yield from (stream.remote for stream in read_manifest(f"{store.url}/{key}").streams)


def _needed_by(config: Config, store: Store) -> Iterator[str]:
    """The streams of a config and of its run, and the units and decisions that a build would reuse."""
    if config.out and open_store(config.out).size("manifest.json") is not None:
        yield from (stream.remote for stream in read_manifest(f"{config.out}/manifest.json").streams)
    for plan in prepare(config, store).streams.values():
        yield plan.folder
        for unit, receipt in _reused_units(plan, config, store):
            yield from (unit.folder, *unit.also)
            yield from _named_in(unit)
            if receipt is not None and receipt.moved is not None:
                yield receipt.moved.folder


def _reused_units(plan: StreamPlan, config: Config, store: Store) -> Iterator[tuple[Unit, Receipt | None]]:
    """The units of a stream up to the first round that is not finished, and their receipts."""
    rounds = make_stream(plan, config, store)
    with suppress(StopIteration, InputError), redirect_stderr(io.StringIO()):  # a build says what is wrong
        one = next(rounds)
        while True:
            yield from ((unit, None) for unit in one.units)
            receipts = find_finished(dict(enumerate(one.units)), store).receipts
            yield from ((one.units[k], receipt) for k, receipt in receipts.items())
            if len(receipts) < len(one.units):
                return
            one = rounds.send([receipts[k] for k in range(len(one.units))])


def _named_in(value: object) -> Iterator[str]:
    """The keys of the decisions that a unit reads."""
    if isinstance(value, Named):
        yield value.key
    elif isinstance(value, tuple):
        for inner in value:
            yield from _named_in(inner)
    elif is_dataclass(value):
        for info in fields(value):
            yield from _named_in(getattr(value, info.name))
