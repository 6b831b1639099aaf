"""What a loader's workers read, and what our dataset relies on in streaming."""

from __future__ import annotations

import hashlib
import inspect
import secrets
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from streaming import StreamingDataset
from streaming.base.dataset import get_shm_prefix
from streaming.base.shared import SharedMemory
from streaming.base.spanner import Spanner
from streaming.base.world import World
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dataengine.mds.reader import SampleReader
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.reader import PlanReader
from dataengine.schedule.slots import Stage
from tests.dataengine.mds.test_shard_map import streams_of
from trainer.data import dataset
from trainer.data.dataset import ScheduledDataset, worker_batches
from trainer.data.handover import Handover

STREAMS = tuple(streams_of([[40, 40, 40], [25, 25]]))
STAGES = (Stage("a", 7, {"s0": 84}), Stage("b", 6, {"s0": 30, "s1": 42}))
PLAN = Manifest("m", "", 1000, 2, 0, 12, 1, 17, 30, STREAMS, STAGES)
ROWS = np.arange(40, dtype=np.uint16)[:, None]
READER = PlanReader(PLAN, SampleReader(STREAMS, lambda stream, shard: ROWS, 1, ROWS.dtype))


@pytest.mark.parametrize("first_step", [0, 1, 6, 7, 12, 13])
@pytest.mark.parametrize("world_size", [1, 3, 12])
@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_batches_of_a_rank_are_its_slots_of_each_step(first_step: int, world_size: int, num_workers: int) -> None:
    width = 12 // world_size
    for rank in range(world_size):
        place = {"first_step": first_step, "rank": rank, "world_size": world_size, "num_workers": num_workers}
        batches = [
            [batch.sample_ids.tolist() for batch in worker_batches(PLAN, READER, worker=w, **place)]
            for w in range(num_workers)
        ]
        for step in range(first_step, 13):  # the loader takes a batch from each worker in turn
            turn, worker = divmod(step - first_step, num_workers)
            assert batches[worker][turn] == PLAN.order.sample_ids(step, rank * width, (rank + 1) * width).tolist()
        assert sum(map(len, batches)) == 13 - first_step


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 1), (2, 4)])
def test_a_place_keeps_its_batch_until_the_next_one_is_asked_for(workers: int, ahead: int) -> None:
    """Even if the training process is slow to take it, and the workers have read all that they may."""
    numbers = np.arange(24, dtype=np.uint16)
    form = np.dtype([("tokens", np.uint16, (2, 3)), ("loss_mask", np.bool_, (2, 3))])
    handover = Handover(form, workers=workers, ahead=ahead)

    class Source(IterableDataset[dict[str, np.ndarray]]):
        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for number in numbers[get_worker_info().id :: workers]:
                yield {"tokens": np.full((2, 3), number), "loss_mask": np.full((2, 3), number % 2 == 1)}

    loader = DataLoader(
        Source(),
        None,
        num_workers=workers,
        collate_fn=handover.put,
        multiprocessing_context="fork",
        prefetch_factor=ahead,
    )
    seen = []
    for place in loader:
        time.sleep(0.02)
        seen.append(handover.take(place))
    for number, batch in zip(numbers.tolist(), seen, strict=True):
        assert batch["tokens"].dtype == torch.int64
        assert batch["tokens"].tolist() == [[number] * 3] * 2
        assert batch["loss_mask"].tolist() == [[number % 2 == 1] * 3] * 2


OVERRIDDEN = ["__iter__", "get_item", "state_dict", "load_state_dict"]
RELIED_ON = [  # beside the overridden: what makes a dataset, and what an override calls
    StreamingDataset.__init__,
    StreamingDataset._resume,
    StreamingDataset._resume_incr_epoch,
    get_shm_prefix,
    SharedMemory.__init__,
    Spanner.__init__,
    World.detect_workers,
]
HOOKS_OF_0_13 = "003025fb35a1769a"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_is_there_with_these_parameters(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(of, name)) for of in (ScheduledDataset, StreamingDataset))
    assert list(ours.parameters) == list(theirs.parameters)


def test_streaming_still_works_as_the_overrides_expect() -> None:
    """If this fails with another version of streaming, look at each override in trainer/data/dataset.py again."""
    hooks = [*RELIED_ON, *(getattr(StreamingDataset, name) for name in OVERRIDDEN)]
    source = "".join(inspect.getsource(hook) for hook in hooks)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == HOOKS_OF_0_13


def test_two_runs_never_share_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if they draw the same one: the second fails, instead of writing into the memory of the first."""
    number = secrets.randbits(40)
    monkeypatch.setattr(dataset.secrets, "randbits", lambda bits: number)
    world = World(num_nodes=1, ranks_per_node=1, workers_per_rank=1, worker=0)
    drawn, block = dataset._own_prefix(["a"], [None], world)
    assert drawn == number
    with pytest.raises(FileExistsError):
        dataset._own_prefix(["b"], [None], world)
    block.cleanup()
    _, again = dataset._own_prefix(["b"], [None], world)
    again.cleanup()
