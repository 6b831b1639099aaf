"""The interface to mosaicml-streaming: a `StreamingDataset` with the samples and order of the manifest.

`PlanReader` reads the samples. The whole run is one epoch, so the step is all that a resume needs. From streaming
(0.13) this uses the numbering of ranks and workers, the state shared by a node's processes, and the state in a
checkpoint. Each override gives its reason. A test checks the parts of streaming's source that the overrides rely on. No
other module may import streaming.
"""

from __future__ import annotations

import contextlib
import gc
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import streaming.base.dataset as streaming_dataset
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
from dataengine.mds.writer import COLUMN, MASK
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.reader import PlannedSamples, PlanReader
from dataengine.schedule.shard_cache import ShardCache
from trainer.data.handover import Handover, to_tensors
from trainer.run.signals import leave_signals_to_parent

_AHEAD = 4  # batches that a worker reads before they are asked for


class ScheduledDataset(StreamingDataset):
    """The batches of a rank, step by step.

    An item is a batch of b samples: {"tokens": (b, seq_len + 1) in the shards' type, "stream": (b,), indexes in
    manifest.streams, "sample_id": (b,), ids in the order's numbering}, and if the plan has a loss mask, "loss_mask":
    (b, seq_len + 1), true for tokens that count as labels. Raises InputError if a stream is not the manifest's.
    """

    def __init__(self, manifest: Manifest, cache: ShardCache, *, world_size: int) -> None:
        folders = [cache.index_folder(number) for number in range(len(manifest.streams))]
        with _adapted():
            super().__init__(
                streams=[_Stream(local=str(folder)) for folder in folders],
                batch_size=manifest.batch_size // world_size,
                num_canonical_nodes=manifest.lanes,  # fixed, so it does not depend on the first run's nodes
                shuffle=False,
            )
        width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
        self.manifest = manifest
        self._reader = PlanReader(manifest, SampleReader(manifest.streams, cache.map, width, dtype))
        self.epoch_size = manifest.schedule.steps * manifest.batch_size
        self.length = manifest.schedule.steps  # streaming counts samples

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield this worker's batches, from the step in the checkpoint.

        Overridden: streaming has another order, and its iterator runs three prefetch threads and takes a node-wide lock
        for every sample. Here the loader's workers read ahead, and the node's `Prefetcher` downloads shards before.
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
        yield from map(_columns, batches)

    @property
    def batch_form(self) -> np.dtype[Any]:
        """The type of a batch, with a field per column."""
        manifest, b, width = self.manifest, self.batch_size, self.manifest.seq_len + 1
        columns: list[Any] = [(COLUMN, token_dtype(manifest.vocab_size), (b, width))]
        columns += [("stream", np.int64, (b,)), ("sample_id", np.int64, (b,))]
        columns += [(MASK, np.bool_, (b, width))] * any(stream.loss_mask for stream in manifest.streams)
        return np.dtype(columns, align=True)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Return one sample by its id. Overridden: streaming does not hash the files that it reads."""
        return {name: values[0] for name, values in _columns(self._reader.read_ids(np.array([sample_id]))).items()}

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Return the step and the identity of the data, as plain integers and strings for a checkpoint.

        Overridden: streaming's state does not identify its data.
        """
        state: dict[str, Any] = super().state_dict(num_samples, from_beginning)
        step = state["sample_in_epoch"] // self.manifest.batch_size
        return {**state, **_identity(self.manifest, step)}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Load a state. Raises InputError, with the reason, if it belongs to other data or another order.

        Overridden: streaming accepts any state.
        """
        expected = _identity(self.manifest, obj["step"])
        if obj["prefix_sha256"] != expected["prefix_sha256"]:
            differing = [
                key for key in expected if key not in ("plan_id", "prefix_sha256") and obj[key] != expected[key]
            ]
            reason = ", ".join(f"{key} was {obj[key]} and is {expected[key]}" for key in differing)
            raise InputError(
                f"the checkpoint of step {obj['step']} (plan {obj['plan_id'][:12]}) was trained on other data than "
                f"manifest {expected['plan_id'][:12]} has up to that step: "
                f"{reason or 'streams, seed or stages differ'}. Restore that manifest by building with the "
                "configuration beside the run, or give this run another `out`."
            )
        own = ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed", "initial_physical_nodes")
        super().load_state_dict({key: obj[key] for key in own})


class _Stream(Stream):
    """A stream whose shards the cache fetches, not streaming."""

    def set_up_local(self, shards: list[Any], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Leave the folder alone.

        Overridden: streaming lists it, and removes every shard that it did not decompress itself, which other runs
        read, too.
        """


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
    """Yield the batches that one loader worker of a rank reads: the loader takes one from each worker in turn."""
    width = manifest.batch_size // world_size
    steps = range(first_step + worker, manifest.schedule.steps, num_workers)
    return reader.each(steps, rank * width, (rank + 1) * width)


def make_loader(dataset: ScheduledDataset, num_workers: int) -> DataLoader[dict[str, NDArray[Any]]]:
    """Return a loader of a rank's batches as tensors.

    A batch is {"tokens": (b, seq_len + 1), "stream": (b,), "sample_id": (b,)}, int64. If the plan has a loss mask, also
    "loss_mask": (b, seq_len + 1), bool.
    """
    return _Loader(dataset, num_workers)


class _Loader(DataLoader[dict[str, NDArray[Any]]]):
    """PyTorch's loader; what leaves it is converted at once. With workers, batches pass through a `Handover`."""

    def __init__(self, dataset: ScheduledDataset, num_workers: int) -> None:
        convert: Callable[[Any], Any] = to_tensors
        collate: Callable[[Any], Any] = _as_it_is
        if num_workers:
            handover = Handover(dataset.batch_form, workers=num_workers, ahead=_AHEAD)
            convert, collate = handover.take, handover.put
        super().__init__(
            dataset,
            batch_size=None,  # an item is a batch
            num_workers=num_workers,
            collate_fn=collate,
            worker_init_fn=_begin_worker,
            multiprocessing_context="fork" if num_workers else None,
            prefetch_factor=_AHEAD if num_workers else None,
            persistent_workers=bool(num_workers),
        )
        self._convert = convert

    def __iter__(self) -> Any:
        return map(self._convert, super().__iter__())


def _identity(manifest: Manifest, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "plan_id": manifest.plan_id,
        "prefix_sha256": manifest.prefix_sha256(step),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "seq_len": manifest.seq_len,
        "batch_size": manifest.batch_size,
    }


def _columns(batch: PlannedSamples) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {COLUMN: batch.tokens, "stream": batch.streams, "sample_id": batch.sample_ids}
    return columns if batch.loss_mask is None else {**columns, MASK: batch.loss_mask}


def _begin_worker(worker: int) -> None:
    """Leave alone what a worker inherits: the destructor of a process group waits for threads of its parent alone."""
    gc.freeze()
    leave_signals_to_parent(worker)


def _as_it_is(batch: Any) -> Any:
    """Without it, the loader converts arrays to tensors."""
    return batch


def _own_prefix(locals_: list[str], remotes: list[str | None], world: World, retry: int = 100) -> tuple[int, Any]:
    """Return a number for this run's blocks of shared memory, unique on the machine, and the first block.

    Replaces streaming's function, which takes the first free number: two runs that start at the same time take the same
    one (streaming/base/shared/prefix.py, get_shm_prefix). Here the first rank draws a random number, and each node adds
    its index. The first block is created exclusively: raises FileExistsError if another run has the number.
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
    """Patch StreamingDataset to use our prefix and no Spanner.

    A Spanner finds a sample's shard and takes 8 bytes per sample while it is built. Nothing here uses it.
    """
    module: Any = streaming_dataset
    own = module.Spanner, module.get_shm_prefix
    module.Spanner, module.get_shm_prefix = lambda shard_sizes: None, _own_prefix
    try:
        yield
    finally:
        module.Spanner, module.get_shm_prefix = own
