"""Which shard holds a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataengine.arrays import Int64s
from dataengine.mds.types import Stream


class ShardMap:
    """The shards of streams in a row; sample ids count the samples through them, in that order.

    `places`: the number of the stream, and the number in it, of each shard of the row.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.places = [(number, shard) for number, stream in enumerate(streams) for shard in range(len(stream.shards))]
        counts = [shard.samples for stream in streams for shard in stream.shards]
        self._bounds = np.cumsum([0, *counts], dtype=np.int64)

    def find(self, sample_ids: Sequence[int] | Int64s) -> tuple[Int64s, Int64s]:
        """Return the shard of each sample in the row, and the sample's row in it; shapes (n,) each.

        Raises IndexError for an id that no sample has.
        """
        ids = np.asarray(sample_ids, np.int64)
        shards = np.searchsorted(self._bounds, ids, side="right") - 1
        if ids.size and not 0 <= shards.min() <= shards.max() < len(self.places):
            raise IndexError(f"sample ids {ids.min()} to {ids.max()} of {self._bounds[-1]}")
        return shards, ids - self._bounds[shards]
