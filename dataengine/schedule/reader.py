"""Read the samples of a plan in the order of training, with numpy alone.

manifest = read_manifest("store/experiments/mini/manifest.json")
reader = PlanReader.of_store(manifest, open_store("store"))
for step in range(100, 200):
    tokens, sample_ids, streams = reader.read(step)
"""

from __future__ import annotations

from typing import NamedTuple

from dataengine.arrays import Int64s, Tokens
from dataengine.mds.reader import SampleReader
from dataengine.mds.types import token_dtype
from dataengine.schedule.manifest import Manifest
from dataengine.storage.store import Store


class PlannedSamples(NamedTuple):
    """Samples of a plan: token ids in the shards' type, shape (n, seq_len + 1); ids and stream numbers, shape (n,)."""

    tokens: Tokens
    sample_ids: Int64s
    streams: Int64s


class PlanReader:
    """The samples of a manifest, by step or by id; `samples` reads its streams."""

    def __init__(self, manifest: Manifest, samples: SampleReader) -> None:
        self._order, self._samples = manifest.order, samples

    @classmethod
    def of_store(cls, manifest: Manifest, store: Store) -> PlanReader:
        """Read from a store. Every shard is hashed when it is opened."""
        width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
        return cls(manifest, SampleReader.of_store(store, manifest.streams, width, dtype))

    def read(self, step: int, start: int = 0, stop: int | None = None) -> PlannedSamples:
        """The samples in slots start..stop of a step's batch: of all slots, or of a rank's (`RunOrder.sample_ids`)."""
        return self.read_ids(self._order.sample_ids(step, start, stop))

    def read_ids(self, sample_ids: Int64s) -> PlannedSamples:
        """Samples by their ids, shape (n,). Raises InputError if a shard is missing or damaged."""
        return PlannedSamples(self._samples.read(sample_ids), sample_ids, self._order.stream_numbers(sample_ids))
