"""Batches on their way from loader workers to the training process, in memory that all of them have mapped.

Through a pipe, a batch is copied four times; as tensors, it takes a file in shared memory for each of them. Here a
worker writes a batch to a place, only the number of the place passes through the pipe, and the conversion to int64 is
the one copy that the training process makes. The memory is anonymous, so it needs no room in /dev/shm, and it ends with
the processes.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info


class Handover:
    """Places for batches, filled by loader workers in turn; `form` is the type of a batch, with a field per column.

    Make it before the workers are forked. The loader has a worker read up to `ahead` batches more while the training
    process takes one. So a worker fills `ahead` + 1 places in turn, and one that it fills again has been taken.
    """

    def __init__(self, form: np.dtype[Any], *, workers: int, ahead: int) -> None:
        self._each, self._filled = ahead + 1, 0  # places of a worker; batches that this worker has put
        self._places = np.frombuffer(mmap.mmap(-1, workers * self._each * form.itemsize), form)

    def put(self, batch: Mapping[str, NDArray[Any]]) -> int:
        """Fill the next place of this worker; return its number."""
        worker = get_worker_info()
        assert worker is not None
        place = worker.id * self._each + self._filled % self._each
        self._filled += 1
        for name, values in batch.items():
            self._places[name][place] = values
        return place

    def take(self, place: int) -> dict[str, torch.Tensor]:
        """The batch of a place, copied as `to_tensors` does."""
        return to_tensors({name: self._places[name][place] for name in self._places.dtype.names or ()})


def to_tensors(batch: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Copy a batch for the model: numbers become int64, masks stay bool."""
    return {
        name: torch.from_numpy(values.astype(np.bool_ if values.dtype == np.bool_ else np.int64))
        for name, values in batch.items()
    }
