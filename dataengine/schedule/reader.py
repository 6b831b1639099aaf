"""Read the samples of a plan in the order of training, with numpy alone: `PlanReader` of any store, `Batches` of a run.

manifest = read_manifest("store/experiments/mini/uni_en_zh/manifest.json")
for batch in manifest.batches(start=100):
    print(batch.step, batch.tokens.shape)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import Bools, Int64s, Tokens
from dataengine.mds.reader import SampleReader
from dataengine.mds.types import token_dtype
from dataengine.schedule.shard_cache import ShardCache
from dataengine.storage.open import open_store
from dataengine.storage.store import Store

if TYPE_CHECKING:
    from dataengine.schedule.manifest import Manifest

IGNORED = -100  # the label that PyTorch's cross_entropy, transformers and torchtitan leave out


class PlannedSamples(NamedTuple):
    """Samples of a plan: token ids in the shards' type, shape (n, seq_len + 1); ids and stream numbers, shape (n,).

    `loss_mask` has the shape of `tokens` and says which of them count as labels; None if no stream of the plan has
    masks, so that all count.
    """

    tokens: Tokens
    sample_ids: Int64s
    streams: Int64s
    loss_mask: Bools | None = None

    @property
    def counted(self) -> Int64s:
        """The number of labels of each sample that count, shape (n,). The first token of a sample is no label."""
        if self.loss_mask is None:
            return np.full(len(self.tokens), self.tokens.shape[1] - 1)
        counted: Int64s = np.count_nonzero(self.loss_mask[:, 1:], axis=1)
        return counted


class PlanReader:
    """The samples of a manifest, by step or by id. `samples` reads its streams."""

    def __init__(self, manifest: Manifest, samples: SampleReader) -> None:
        self._order, self._samples = manifest.order, samples

    @classmethod
    def of_store(cls, manifest: Manifest, store: Store) -> PlanReader:
        """Read from a store. Every shard is hashed when it is opened."""
        width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
        return cls(manifest, SampleReader.of_store(store, manifest.streams, width, dtype))

    def read(self, step: int, start: int = 0, stop: int | None = None) -> PlannedSamples:
        """The samples in slots start..stop of a step: by default all slots. See `RunOrder.sample_ids` for ranks."""
        return self.read_ids(self._order.sample_ids(step, start, stop))

    def each(self, steps: range, start: int = 0, stop: int | None = None) -> Iterator[PlannedSamples]:
        """Yield `read` of each of the steps, in less time than one by one."""
        for sample_ids in self._order.many(steps, start, stop):
            yield from self._read_rows(sample_ids)

    def read_ids(self, sample_ids: Int64s) -> PlannedSamples:
        """Samples by their ids, shape (n,). Raises InputError if a shard is missing or damaged."""
        (found,) = self._read_rows(sample_ids[None])
        return found

    def _read_rows(self, sample_ids: Int64s) -> Iterator[PlannedSamples]:
        """Yield the samples of each row of ids, shape (rows, n). All are looked up at once."""
        samples, numbers = self._samples, self._order.stream_numbers(sample_ids)
        shards, rows = samples.find(sample_ids)
        for ids, of, *places in zip(sample_ids, numbers, shards, rows, strict=True):
            yield PlannedSamples(samples.gather(*places), ids, of, samples.gather_mask(*places))


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """The samples of one step, or one rank's part of them: n = batch_size / world_size samples.

    Sample k is `tokens[k]`. The first `seq_len` tokens are the input, the last `seq_len` the labels.

        chinese = batch.tokens[batch.streams == "en-zh"]

    Tokens count as labels where `loss_mask` is true. It is None if no stream of the manifest has `loss_on: target`.
    `labels` has both in one array, for a trainer that ignores -100.
    """

    step: int
    tokens: Int64s  # (n, seq_len + 1)
    sample_ids: Int64s  # (n,); an id names one sample of the manifest
    streams: NDArray[np.str_]  # (n,); the name of each sample's stream
    loss_mask: Bools | None = None  # (n, seq_len + 1); None: all tokens count

    @property
    def labels(self) -> Int64s:
        """The tokens, and -100 in place of those that do not count: PyTorch's cross-entropy ignores it.

        Not shifted: `labels[:, 1:]` are the labels of `tokens[:, :-1]`. Models of transformers shift them.
        """
        return self.tokens if self.loss_mask is None else np.where(self.loss_mask, self.tokens, IGNORED)


@dataclass(frozen=True, eq=False)
class Batches(Sequence[Batch]):
    """The batches of some steps of a run, read on access; `Manifest.batches` makes it.

    A slice is again a sequence of batches. Can be pickled, so it works in the workers of a DataLoader.
    """

    manifest: Manifest = field(repr=False)  # which may list a million shards
    steps: range
    rank: int
    world_size: int
    store: str
    cache: str

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> Batch | Batches:
        if isinstance(index, slice):
            return replace(self, steps=self.steps[index])
        step = self.steps[index]
        return self._batch(step, self._reader.read(step, *self._slots))

    def __iter__(self) -> Iterator[Batch]:
        read = self._reader.each(self.steps, *self._slots)
        return map(self._batch, self.steps, read)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_reader"}

    @cached_property
    def _reader(self) -> PlanReader:
        manifest = self.manifest
        cache = ShardCache(open_store(self.store), Path(self.cache), manifest, limit=None, outage_limit=None)
        width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
        return PlanReader(manifest, SampleReader(manifest.streams, cache.map, width, dtype))

    @property
    def _slots(self) -> tuple[int, int]:
        """The slots of this rank."""
        width = self.manifest.batch_size // self.world_size
        return self.rank * width, (self.rank + 1) * width

    @cached_property
    def _names(self) -> NDArray[np.str_]:
        return np.array([stream.name for stream in self.manifest.streams])

    def _batch(self, step: int, read: PlannedSamples) -> Batch:
        names = self._names[read.streams]
        return Batch(step, read.tokens.astype(np.int64), read.sample_ids, names, read.loss_mask)
