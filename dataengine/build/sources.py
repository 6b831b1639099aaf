"""Hash the local sources of a build once, also if several slices of a job array start together.

Each slice hashes its share, as a unit for each file, and waits for the others' hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from dataengine.build.executors import SliceEngine
from dataengine.build.prepare import HASHES, read_source_hashes, record_format, source_paths, try_write
from dataengine.build.units import OnProgress, Receipt, Unit
from dataengine.config.schema import Config
from dataengine.json_files import decode_hashed, encode_hashed
from dataengine.records.parts import find_sources, hash_source, remembered_as
from dataengine.records.types import RecordFormat
from dataengine.storage.arrays import damaged_unit, read_whole
from dataengine.storage.paths import FoundFile, is_remote
from dataengine.storage.store import AddFile, Store

_BYTES_PER_SECOND = 200 << 20  # of a slow disk
_PATIENCE_S = 60.0  # until other slices begin


@dataclass(frozen=True)
class SourceHashes:
    """What `source_hashes.json` remembers about a file."""

    hashes: dict[str, Any]


@dataclass(frozen=True)
class HashSource(Unit):
    """Hash a local file, in parts."""

    kind: ClassVar[str] = "source"
    place: str  # the file, its version and how it is cut: the key in `source_hashes.json`
    records: RecordFormat
    file: FoundFile = field(metadata={"identity": False})
    format: str = field(metadata={"identity": False})
    part_bytes: int = field(metadata={"identity": False})

    @property
    def input_bytes(self) -> int:
        return self.file.size

    def work(self, store: Store, add: AddFile, on_progress: OnProgress) -> Receipt:
        hashes = hash_source(self.file, self.format, self.records, self.part_bytes)
        add("hashes.json", encode_hashed(SourceHashes(hashes)))
        on_progress(self.input_bytes)
        return Receipt()

    def read(self, store: Store) -> dict[str, Any]:
        """The hashes of the finished unit. Raises InputError if they are damaged."""
        key = f"{self.folder}/hashes.json"
        try:
            return decode_hashed(SourceHashes, read_whole(store, key)).hashes
        except ValueError:
            raise damaged_unit(store, key) from None


def share_hashes(config: Config, engine: SliceEngine, store: Store) -> None:
    """Hash the new local sources together with other slices, and remember the hashes in the store.

    A slice that waits much longer than hashing takes hashes the rest itself: others may start hours later, or see their
    own copies of the files.
    """
    known = read_source_hashes(store)
    units = list({unit.place: unit for unit in _new_sources(config, known)}.values())
    if units:
        units.sort(key=lambda unit: -unit.input_bytes)
        patience = _PATIENCE_S + sum(unit.input_bytes for unit in units) / _BYTES_PER_SECOND
        engine.run_alone_after(patience, units, store, "hashing")
        found = {key: value for unit in units for key, value in unit.read(store).items()}
        try_write(store, HASHES, orjson.dumps({**known, **found}, option=orjson.OPT_INDENT_2))


def _new_sources(config: Config, known: Mapping[str, Any]) -> Iterator[HashSource]:
    for name in config.streams_in_use:
        stream = config.all_streams[name]
        records = record_format(stream)
        for kind, files in find_sources(source_paths(stream), name, records, stream.format):
            for file in files:
                place = remembered_as(file, kind, records, config.part_bytes)
                if not is_remote(file.path) and place not in known:
                    yield HashSource(place, records, file, kind, config.part_bytes)
