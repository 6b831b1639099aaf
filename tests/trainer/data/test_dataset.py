from __future__ import annotations

import hashlib
import inspect

import pytest
from streaming import StreamingDataset

from dataengine.schedule.order import RunOrder
from dataengine.schedule.slots import Schedule, Stage
from trainer.data.dataset import LazyOrder

ORDER = RunOrder.build(
    Schedule(12, 1, (Stage("a", 7, {"x": 84}), Stage("b", 6, {"x": 30, "y": 42}))),
    {"x": [40, 40, 40], "y": [25, 25]},
    seed=17,
    shuffle_block=30,
)


@pytest.mark.parametrize("first_step", [0, 1, 6, 7, 12, 13])
@pytest.mark.parametrize("world_size", [1, 3, 12])
@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_batches_of_a_rank_are_its_slots_of_each_step(first_step: int, world_size: int, num_workers: int) -> None:
    width = 12 // world_size
    for rank in range(world_size):
        orders = [
            LazyOrder(ORDER, first_step=first_step, rank=rank, world_size=world_size, worker=w, num_workers=num_workers)
            for w in range(num_workers)
        ]
        batches = [[order[k] for k in range(len(order))] for order in orders]
        for step in range(first_step, 13):  # the loader takes a batch from each worker in turn
            turn, worker = divmod(step - first_step, num_workers)
            got = batches[worker][turn * width : (turn + 1) * width]
            assert got == ORDER.sample_ids(step, rank * width, (rank + 1) * width).tolist()
        assert sum(map(len, batches)) == (13 - first_step) * width


def test_a_lazy_order_ends_like_a_list() -> None:
    order = LazyOrder(ORDER, first_step=0, rank=0, world_size=1, worker=0, num_workers=1)
    assert len(list(order)) == len(order) == 13 * 12
    with pytest.raises(IndexError):
        order[len(order)]


def test_streaming_still_works_as_the_overridden_hook_expects() -> None:
    """ScheduledDataset replaces private methods; if streaming changes what is around it, look at data.py again."""
    hooks = [
        StreamingDataset.__iter__,
        StreamingDataset._get_work,
        StreamingDataset._resume,
        StreamingDataset._resume_incr_epoch,
    ]
    source = "".join(inspect.getsource(hook) for hook in hooks)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == HOOKS_OF_0_13


HOOKS_OF_0_13 = "36e3f9dc20d1ff90"
