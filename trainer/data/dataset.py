"""The trainer's door to mosaicml-streaming: a `StreamingDataset` whose samples and order are the manifest's.

`PlanReader` reads; the whole run is one epoch, so the one coordinate of a resume is the step. Of streaming (0.13) stay
the places of ranks and workers, what a node's processes share, and the state in a checkpoint. Each override says why;
a test holds streaming's source to what they rely on. No other module may import it.
"""

from __future__ import annotations

import contextlib
import secrets
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
from dataengine.mds.reader import SampleReader
from dataengine.mds.types import token_dtype
from dataengine.mds.writer import COLUMN
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.reader import PlannedSamples, PlanReader
from dataengine.schedule.shard_cache import ShardCache
from trainer.run.signals import leave_signals_to_parent


class ScheduledDataset(StreamingDataset):
    """The samples of a rank, step after step.

    An item is {"tokens": (seq_len + 1,) in the shards' type, "stream": number in manifest.streams, "sample_id": id in
    the order's numbering}. Raises InputError if a stream is not the manifest's.
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
        width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
        self.manifest = manifest
        self._reader = PlanReader(manifest, SampleReader(manifest.streams, cache.map, width, dtype))
        self.epoch_size = manifest.schedule.steps * manifest.batch_size
        self.length = self.epoch_size // world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """This worker's samples, from the step that a checkpoint set.

        Overridden: streaming's order is another, and its own iterator runs three threads that fetch ahead and takes a
        lock of the node for every sample. Here the loader's workers read ahead, and the node's `Prefetcher` brings
        shards to this disk before.
        """
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = world = self._parallel_rank_world.detect_workers()
        epoch, sample_in_epoch = self._resume_incr_epoch()
        if epoch > 0:
            return
        batches = worker_batches(
            self.manifest,
            self._reader,
            first_step=sample_in_epoch // self.manifest.batch_size,
            rank=world.rank,
            world_size=world.num_ranks,
            worker=world.worker_of_rank,
            num_workers=world.workers_per_rank,
        )
        for batch in batches:
            yield from _items(batch)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample by its id. Overridden: streaming reads files that it does not hash."""
        return next(_items(self._reader.read_ids(np.array([sample_id]))))

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The step, and what the data were: plain integers and strings, as checkpoints keep them.

        Overridden: streaming's state does not say of which data it is.
        """
        state: dict[str, Any] = super().state_dict(num_samples, from_beginning)
        step = state["sample_in_epoch"] // self.manifest.batch_size
        return {**state, **_identity(self.manifest, step)}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Take up a state. Raises InputError, with the reason, if it belongs to other data or another order.

        Overridden: streaming takes any state.
        """
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


def worker_batches(
    manifest: Manifest,
    reader: PlanReader,
    *,
    first_step: int,
    rank: int,
    world_size: int,
    worker: int,
    num_workers: int,
) -> Iterator[PlannedSamples]:
    """The batches of a rank that one of its loader's workers reads: the loader takes one from each worker in turn."""
    width = manifest.batch_size // world_size
    for step in range(first_step + worker, manifest.schedule.steps, num_workers):
        yield reader.read(step, rank * width, (rank + 1) * width)


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


def _items(batch: PlannedSamples) -> Iterator[dict[str, Any]]:
    for tokens, sample_id, stream in zip(batch.tokens, batch.sample_ids.tolist(), batch.streams.tolist(), strict=True):
        yield {COLUMN: tokens, "stream": stream, "sample_id": sample_id}


def _collate(items: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    return {key: np.stack([item[key] for item in items]) for key in items[0]}


def _own_prefix(locals_: list[str], remotes: list[str | None], world: World, retry: int = 100) -> tuple[int, Any]:
    """A number for this run's blocks of shared memory that no other run on the machine has, and the first block.

    Replaces streaming's, which takes the first number that is free: two runs that start at once take the same one
    (streaming/base/shared/prefix.py, get_shm_prefix). Here the first rank draws it, and nodes count on from it. The
    first block is created exclusively: raises FileExistsError for a number that another run has.
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
    """Make a StreamingDataset with our prefix, and without its Spanner.

    A Spanner finds a sample's shard, takes 8 bytes a sample while it is made, and is used by nothing here.
    """
    module: Any = streaming_dataset
    own = module.Spanner, module.get_shm_prefix
    module.Spanner, module.get_shm_prefix = lambda shard_sizes: None, _own_prefix
    try:
        yield
    finally:
        module.Spanner, module.get_shm_prefix = own
