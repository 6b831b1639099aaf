from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from tests.dataengine.mds.test_shard_map import streams_of
from tests.groups import group_of_one
from trainer.training.callbacks.ledger import SampleLedger
from trainer.training.callbacks.losses import StreamLosses
from trainer.training.callbacks.stop import StopRequest
from trainer.training.spikes import SpikeDetector

PLAN = Manifest(
    "m", "", 1000, 2, 4, 4, 1, 17, 30, tuple(streams_of([[40], [25], [30]])), (Stage("a", 7, {"s0": 84, "s1": 84}),)
)


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with group_of_one():
        yield


def step(mask: Tensor | None) -> StreamLosses:
    """A step of two microbatches: losses of 1 and 2 of stream s0, 3 of s1, and 5 of s0."""
    made = StreamLosses(PLAN, SampleLedger(PLAN, 0), StopRequest())
    state: Any = SimpleNamespace(step=0, device=torch.device("cpu"))
    made.batch_start(state)
    columns = {"stream": torch.tensor([0, 0, 1, 0]), "sample_id": torch.arange(4)}
    columns |= {} if mask is None else {"loss_mask": mask}
    losses = torch.tensor([1.0, 2.0, 3.0, 5.0])
    for part in (slice(0, 2), slice(2, 4)):
        state.batch = {name: column[part] for name, column in columns.items()}
        state.outputs = (losses[part].mean(), losses[part])
        made.after_loss(state)
    made.after_train_batch(state)
    return made


def test_the_loss_of_a_stream_is_the_mean_over_its_samples() -> None:
    made = step(None)
    assert made.losses == {"s0": 8 / 3, "s1": 3.0}
    assert made.counts == {"s0": 3, "s1": 1, "s2": 0}


def test_with_a_mask_it_is_the_mean_over_its_labels_that_count() -> None:
    """The first token of a sample is no label."""
    made = step(torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]).bool())
    assert made.losses == {"s0": (4 * 1.0 + 2 * 5.0) / 6, "s1": 3.0}
    assert made.counts == {"s0": 6, "s1": 1, "s2": 0}


def test_a_step_without_labels_that_count_is_told_and_is_not_bad(caplog: pytest.LogCaptureFixture) -> None:
    made = step(torch.zeros(4, 5, dtype=torch.bool))
    assert caplog.messages == ["step 0: no token of the batch counts in the loss, which is 0"]
    assert made.losses == {}
    detector = SpikeDetector(["s0", "s1", "s2"], 2.0, 10)
    assert detector.judge(made.losses, made.counts, 0.0) is None
    detector.add(made.losses, made.counts)
