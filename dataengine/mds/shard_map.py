"""Find the shard of a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataengine.arrays import Int64s
from dataengine.mds.types import Stream


class ShardMap:
    """The shards of all streams in a row. Sample ids number the samples in this order.

    `places` has the stream number of each shard, and its number in the stream.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.places = [(number, shard) for number, stream in enumerate(streams) for shard in range(len(stream.shards))]
        counts = [shard.samples for stream in streams for shard in stream.shards]
        self._bounds = np.cumsum([0, *counts], dtype=np.int64)

    def find(self, sample_ids: Sequence[int] | Int64s) -> tuple[Int64s, Int64s]:
        """The shard of each sample, as its number in the row, and the row of the sample in it; shapes (n,) each.

        Raises IndexError for an id without a sample.
        """
        ids = np.asarray(sample_ids, np.int64)
        shards = np.searchsorted(self._bounds, ids, side="right") - 1
        if ids.size and not 0 <= shards.min() <= shards.max() < len(self.places):
            raise IndexError(f"sample ids {ids.min()} to {ids.max()} of {self._bounds[-1]}")
        return shards, ids - self._bounds[shards]
