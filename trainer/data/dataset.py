"""Stream the samples of a manifest in its order: `streaming.StreamingDataset` with a schedule instead of epochs.

The whole run is one epoch, so the one coordinate of a resume is the step. `_get_work` gives a lazy sequence of sample
ids, and samples are read as rows of mapped shards; indexes, worlds and the resume state stay streaming's
(streaming/base/dataset.py, 0.13).
"""

from __future__ import annotations

import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import streaming.base.dataset as streaming_dataset
import torch
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base.constant import LOCALS
from streaming.base.shared import SharedMemory
from streaming.base.shared.prefix import _get_path, _pack_locals
from streaming.base.world import World
from torch import distributed as dist
from torch.utils.data import DataLoader

from dataengine.errors import InputError
from dataengine.mds.writer import COLUMN
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.order import RunOrder
from trainer.data.shard_cache import SHARDS_MAPPED, ShardCache
from trainer.run.signals import leave_signals_to_parent


class ScheduledDataset(StreamingDataset):
    """The samples of a rank, step after step.

    An item is {"tokens": (seq_len + 1,) in the shards' type, "stream": number in manifest.streams, "sample_id": id in
    the order's numbering}. Raises InputError if the world size does not divide the batch or a stream is not the
    manifest's.
    """

    def __init__(self, manifest: Manifest, cache: ShardCache, *, world_size: int) -> None:
        folders = [cache.index_folder(number) for number in range(len(manifest.streams))]
        with _adapted():
            super().__init__(
                streams=[Stream(local=str(folder)) for folder in folders],  # the cache fetches shards, not streaming
                batch_size=manifest.batch_size // world_size,
                num_canonical_nodes=manifest.lanes,  # fixed, so that it never depends on the first run's nodes
                shuffle=False,
            )
        self.manifest, self._cache = manifest, cache
        self._mapped: OrderedDict[int, NDArray[Any]] = OrderedDict()  # each loader worker fills its own
        self.epoch_size = manifest.schedule.steps * manifest.batch_size
        self.length = self.epoch_size // world_size

    def _get_work(self, epoch: int, sample_in_epoch: int) -> Any:
        if epoch > 0 or sample_in_epoch >= self.epoch_size:
            return np.empty(0, np.int64)
        world = self._parallel_worker_world
        return LazyOrder(
            self.manifest.order,
            first_step=sample_in_epoch // self.manifest.batch_size,
            rank=world.rank,
            world_size=world.num_ranks,
            worker=world.worker_of_rank,
            num_workers=world.workers_per_rank,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """This worker's samples, from the step that a checkpoint set.

        streaming's own iterator runs three threads that fetch ahead, and takes a lock of the node for every sample.
        Here samples are read as they are asked for; the loader's workers do so ahead of time, and the node's
        cache.Prefetcher brings shards to this disk before.
        """
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        order = self._get_work(*self._resume_incr_epoch())
        for index in range(len(order)):
            yield self.get_item(order[index])

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample, with the number of its stream and its id. Reads a row of a shard that stays mapped."""
        shard, row = self.spanner[sample_id]
        tokens = self._map_shard(shard)[row]
        return {COLUMN: tokens, "stream": int(self.stream_per_shard[shard]), "sample_id": int(sample_id)}

    def _map_shard(self, shard: int) -> NDArray[Any]:
        mapped = self._mapped.get(shard)
        if mapped is None:
            stream = int(self.stream_per_shard[shard])
            mapped = self._mapped[shard] = self._cache.map(stream, shard - int(self.shard_offset_per_stream[stream]))
            if len(self._mapped) > SHARDS_MAPPED:
                self._mapped.popitem(last=False)
        else:
            self._mapped.move_to_end(shard)
        return mapped

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The step, and what the data were: plain integers and strings, as checkpoints keep them."""
        state: dict[str, Any] = super().state_dict(num_samples, from_beginning)
        step = state["sample_in_epoch"] // self.manifest.batch_size
        return {**state, **_identity(self.manifest, step)}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Take up a state. Raises InputError, with the reason, if it belongs to other data or another order."""
        expected = _identity(self.manifest, obj["step"])
        if obj["prefix_sha256"] != expected["prefix_sha256"]:
            differing = [
                key for key in expected if key not in ("plan_id", "prefix_sha256") and obj[key] != expected[key]
            ]
            reason = ", ".join(f"{key} was {obj[key]} and is {expected[key]}" for key in differing)
            raise InputError(
                f"the checkpoint of step {obj['step']} (plan {obj['plan_id'][:12]}) was trained on other data than "
                f"manifest {expected['plan_id'][:12]} gives up to that step: "
                f"{reason or 'streams, seed or stages differ'}. Restore that manifest by building with the "
                "configuration beside the run, or give this run another `out`."
            )
        own = ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed", "initial_physical_nodes")
        super().load_state_dict({key: obj[key] for key in own})


class LazyOrder:
    """The sample ids that one loader worker of one rank reads, computed as they are asked for.

    The loader takes batches from its workers in turn, so batch k of worker w is step
    first_step + k * num_workers + w.
    """

    def __init__(
        self, order: RunOrder, *, first_step: int, rank: int, world_size: int, worker: int, num_workers: int
    ) -> None:
        self._order, self._first, self._worker, self._num_workers = order, first_step, worker, num_workers
        self._width = order.schedule.batch_size // world_size
        self._start = rank * self._width
        steps = order.schedule.steps - first_step
        self._length = max(0, -(-(steps - worker) // num_workers)) * self._width
        self._batch, self._ids = -1, np.empty(0, np.int64)  # the batch asked for last

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} of {self._length}")
        batch, slot = divmod(int(index), self._width)
        if batch != self._batch:
            step = self._first + batch * self._num_workers + self._worker
            self._ids = self._order.sample_ids(step, self._start, self._start + self._width)
            self._batch = batch
        return int(self._ids[slot])


def make_loader(dataset: ScheduledDataset, num_workers: int) -> DataLoader[dict[str, NDArray[Any]]]:
    """A loader of whole rank batches as arrays; `to_tensors` makes tensors of them.

    Arrays pass from the workers through a pipe. Tensors would pass as files in shared memory, three a batch, which
    takes more than ten times as long.
    """
    return DataLoader(
        dataset,
        batch_size=dataset.batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=leave_signals_to_parent,
        prefetch_factor=4 if num_workers else None,
        persistent_workers=bool(num_workers),
    )


def to_tensors(batch: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """A batch as the model takes it: {"tokens": (b, seq_len + 1), "stream": (b,), "sample_id": (b,)}, int64."""
    return {key: torch.from_numpy(values.astype(np.int64)) for key, values in batch.items()}


def _identity(manifest: Manifest, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "plan_id": manifest.plan_id,
        "prefix_sha256": manifest.prefix_sha256(step),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "seq_len": manifest.seq_len,
        "batch_size": manifest.batch_size,
    }


def _collate(items: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    return {key: np.stack([item[key] for item in items]) for key in items[0]}


class _LightSpanner:
    """Find a sample's shard by bisection; streaming's own keeps 8 bytes a sample while it is made."""

    def __init__(self, shard_sizes: NDArray[np.int64], span_size: int = 0) -> None:
        self._bounds = np.concatenate([[0], np.cumsum(shard_sizes)])

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._bounds[-1]:
            raise IndexError(f"sample {index} of {self._bounds[-1]}")
        shard = int(np.searchsorted(self._bounds, index, side="right")) - 1
        return shard, int(index - self._bounds[shard])


def _own_prefix(locals_: list[str], remotes: list[str | None], world: World, retry: int = 100) -> tuple[int, Any]:
    """A number for this run's blocks of shared memory that no other run on the machine has, and the first block.

    streaming takes the first number that is free, and two runs that start at once take the same one
    (streaming/base/shared/prefix.py, get_shm_prefix). Here the first rank draws it, and nodes count on from it.
    """
    together = dist.is_available() and dist.is_initialized()
    drawn = [secrets.randbits(40)]
    if together:
        dist.broadcast_object_list(drawn)
    number = drawn[0] + world.node
    content = _pack_locals(locals_, number)
    if world.is_local_leader:
        block = SharedMemory(_get_path(number, LOCALS), True, len(content))
        block.buf[: len(content)] = content
    if together:
        dist.barrier()
    return number, block if world.is_local_leader else SharedMemory(_get_path(number, LOCALS), False)


@contextlib.contextmanager
def _adapted() -> Iterator[None]:
    """While a StreamingDataset is made, two parts of it are ours."""
    module: Any = streaming_dataset
    own = module.Spanner, module.get_shm_prefix
    module.Spanner, module.get_shm_prefix = _LightSpanner, _own_prefix
    try:
        yield
    finally:
        module.Spanner, module.get_shm_prefix = own
