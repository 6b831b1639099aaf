"""Which microbatch fits a GPU: the rule of `train.microbatch_size: auto`, and advice if none does."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from dataengine.config.training import ModelConfig, TrainConfig
from dataengine.hardware.gpus import Gpu
from dataengine.hardware.sizes import divisors
from dataengine.schedule.manifest import Manifest

NO_GPU_TO_MEASURE = "train.microbatch_size is auto, which needs a GPU, and this machine has none. Set a number."


class StepBytes(Protocol):
    """Counts the bytes of a rank's step: in closed form (memory.py), or with PyTorch (trainer/model/memory.py)."""

    def __call__(
        self, model: ModelConfig, manifest: Manifest, microbatch: int, *, shard_ranks: int, recompute: bool
    ) -> int:
        """Return the peak bytes of a rank in a step of several microbatches."""


@dataclass(frozen=True)
class Work:
    """A training, the number of its ranks, and how the bytes of its steps are counted."""

    model: ModelConfig
    manifest: Manifest
    train: TrainConfig
    ranks: int
    count: StepBytes

    @property
    def sizes(self) -> list[int]:
        """The microbatch sizes that divide a rank's samples."""
        return divisors(self.manifest.batch_size // self.ranks)

    def bytes_of(self, microbatch: int) -> int:
        """Return the bytes of a step on a GPU with microbatches of a size."""
        return self._count(microbatch, self._shard_ranks, recompute=self.train.activation_checkpointing)

    def largest(self, room: float) -> tuple[int, int]:
        """Return the largest size that fits into `room` bytes, and its bytes; 0 and the bytes of 1 if none fits."""
        needed = cache(self.bytes_of)
        size = largest_fitting(self.sizes, needed, room)
        return size, needed(size or 1)

    def refusal(self, gpu: Gpu) -> str:
        """Return why not even one sample fits, and changes that would each make one fit."""
        return (
            f"not even one sample fits: a step with one sample takes {self.bytes_of(1) / 1e9:.1f} GB, and {gpu.name} "
            f"has {gpu.memory / 1e9:.1f} GB, of which a tenth stays free. {self._advice(gpu.room)}"
        )

    def _advice(self, room: int) -> str:
        def fits(ranks: int, *, recompute: bool) -> bool:
            return self._count(1, ranks, recompute=recompute) <= room

        ranks, recompute = self._shard_ranks, self.train.activation_checkpointing
        ways = []
        if not recompute and fits(ranks, recompute=True):
            ways.append("set train.activation_checkpointing=true")
        grouped = self.train.shard_ranks is not None
        more = [n for n in divisors(self.ranks if grouped else self.manifest.batch_size) if n > ranks]
        if enough := next((n for n in more if fits(n, recompute=recompute)), None):
            ways.append(f"set train.shard_ranks={enough}" if grouped else f"start {enough} ranks")
        if not ways:
            return (
                "Neither more ranks nor train.activation_checkpointing would help: use a smaller model or a larger GPU."
            )
        return f"To make it fit, {', or '.join(ways)}."

    @property
    def _shard_ranks(self) -> int:
        return self.train.shard_ranks or self.ranks

    def _count(self, microbatch: int, shard_ranks: int, *, recompute: bool) -> int:
        return self.count(self.model, self.manifest, microbatch, shard_ranks=shard_ranks, recompute=recompute)


def largest_fitting(sizes: Sequence[int], needed: Callable[[int], int], room: float) -> int:
    """Return the largest of ascending sizes whose need is at most `room`; 0 if none fits."""
    number = bisect_right(sizes, room, key=needed)
    return sizes[number - 1] if number else 0
