"""The mean loss of each stream over all ranks, before the optimizer's step."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from dataengine.mds.writer import MASK
from dataengine.schedule.manifest import Manifest
from trainer.training.callbacks.ledger import SampleLedger
from trainer.training.callbacks.protocol import Callback, State
from trainer.training.callbacks.stop import StopRequest

log = logging.getLogger(__name__)


class StreamLosses(Callback):
    """The mean loss of each stream over all ranks, known before the optimizer's step.

    With a loss mask, the mean is over the tokens that count; a stream without any in a step has no loss in it.
    One all-reduce serves the losses, a stop request on any rank, and the ledger's check.
    """

    def __init__(self, manifest: Manifest, ledger: SampleLedger, stop: StopRequest) -> None:
        self._names = [stream.name for stream in manifest.streams]
        self._ledger, self._stop = ledger, stop
        self._sums = torch.zeros(0)
        self.losses: dict[str, float] = {}  # of the streams in this step
        self.counts: dict[str, int] = {}  # samples of each stream; with a loss mask, its tokens that count
        self.samples: list[tuple[Tensor, Tensor]] = []  # ids and losses of this rank's microbatches

    def batch_start(self, state: State) -> None:
        """Reset the sums."""
        self._sums = torch.zeros(2, len(self._names) + 1, dtype=torch.float64, device=state.device)
        self.samples = []

    def after_loss(self, state: State) -> None:
        """Add a microbatch's losses by stream, without waiting for the device."""
        losses = state.outputs[1].double()  # (microbatch,)
        mask = state.batch.get(MASK)
        weights = torch.ones_like(losses) if mask is None else mask[:, 1:].sum(dim=1).double()
        self._sums[0].index_add_(0, state.batch["stream"], losses * weights)
        self._sums[1].index_add_(0, state.batch["stream"], weights)
        self.samples.append((state.batch["sample_id"], losses))

    def after_train_batch(self, state: State) -> None:
        """Sum over the ranks."""
        self._sums[:, -1] = self._sums.new_tensor([self._ledger.strays, self._stop.asked])
        torch.distributed.all_reduce(self._sums)
        losses, counts = self._sums.tolist()
        if losses[-1]:
            self._ledger.refuse(state)
        self._stop.agreed = counts[-1] > 0
        self.counts = dict(zip(self._names, map(round, counts), strict=False))
        self.losses = {
            name: loss / count for name, loss, count in zip(self._names, losses, counts, strict=False) if count
        }
        if not self.losses:
            log.warning("step %d: no token of the batch counts in the loss, which is 0", state.step)
