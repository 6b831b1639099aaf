"""The sample at a cursor of a stream. Shards are permuted, then samples inside blocks, all in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from dataengine.arrays import Int64s
from dataengine.permutation import derive_key, permute
from dataengine.schedule.slots import Schedule


@dataclass(frozen=True)
class StreamOrder:
    """The order of one stream's samples.

    A keyed permutation puts the shards in a row. The row is cut into `lanes` equal ranges, the same in every epoch; the
    last samples, fewer than `lanes`, are left out. In each epoch a lane permutes its shards (parts of shards at its
    ends) and then the samples inside blocks of `shuffle_block`. An epoch has every sample of the lanes once.
    """

    name: str
    shard_samples: tuple[int, ...]
    seed: int
    lanes: int
    shuffle_block: int

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_spans"}  # a cache cannot be pickled

    @cached_property
    def lane_samples(self) -> int:
        """Samples of one lane in one epoch."""
        return sum(self.shard_samples) // self.lanes

    def positions(self, lane: int, cursors: Int64s) -> Int64s:
        """Positions in the stream (shards in index order) of the samples at the cursors of a lane; shapes (n,)."""
        passes, places = np.divmod(cursors, self.lane_samples)
        found = np.empty_like(cursors)
        for number in np.unique(passes):
            chosen = passes == number
            found[chosen] = self._positions_in_pass(lane, int(number), places[chosen])
        return found

    def _positions_in_pass(self, lane: int, number: int, places: Int64s) -> Int64s:
        blocks, offsets = np.divmod(places, self.shuffle_block)
        shuffled = np.empty_like(places)
        for block in np.unique(blocks):
            chosen = blocks == block
            first = int(block) * self.shuffle_block
            size = min(self.shuffle_block, self.lane_samples - first)
            key = derive_key(self.seed, self.name, "block", lane, number, int(block))
            shuffled[chosen] = first + permute(offsets[chosen], size, key)
        ends, shifts = self._spans(lane, number)
        return shuffled + shifts[np.searchsorted(ends, shuffled, side="right")]

    @cached_property
    def _shard_row(self) -> tuple[Int64s, Int64s, Int64s]:
        """The permuted shards: the start of each in the row, its end in the row, and its start in the stream."""
        sizes = np.array(self.shard_samples, dtype=np.int64)
        row = permute(np.arange(len(sizes), dtype=np.int64), len(sizes), derive_key(self.seed, self.name, "shards"))
        ends = np.cumsum(sizes[row])
        return ends - sizes[row], ends, (np.cumsum(sizes) - sizes)[row]

    @cached_property
    def _spans(self) -> Callable[[int, int], tuple[Int64s, Int64s]]:
        """`_cut_spans` with a cache: a rank needs few lanes and one epoch at a time."""
        return lru_cache(maxsize=2 * self.lanes)(self._cut_spans)

    def _cut_spans(self, lane: int, number: int) -> tuple[Int64s, Int64s]:
        """Spans of a lane in an epoch, in order: their ends in the lane, and the shift from the lane to the stream."""
        starts, ends, origins = self._shard_row
        low, high = lane * self.lane_samples, (lane + 1) * self.lane_samples
        inside = slice(int(np.searchsorted(ends, low, "right")), int(np.searchsorted(starts, high, "left")))
        first = np.maximum(starts[inside], low)
        sizes = np.minimum(ends[inside], high) - first
        begins = origins[inside] + first - starts[inside]
        key = derive_key(self.seed, self.name, "spans", lane, number)
        order = permute(np.arange(len(sizes), dtype=np.int64), len(sizes), key)
        lane_ends = np.cumsum(sizes[order])
        return lane_ends, begins[order] - (lane_ends - sizes[order])


@dataclass(frozen=True)
class RunOrder:
    """The samples of every step: a schedule over ordered streams.

    Sample ids number the samples of all streams: those of stream k, in `streams` order, follow those of stream k - 1.
    They are int64.
    """

    schedule: Schedule
    streams: tuple[StreamOrder, ...]  # all streams of the run, in the order of their ids

    @staticmethod
    def build(
        schedule: Schedule, shard_samples: Mapping[str, Sequence[int]], *, seed: int, shuffle_block: int
    ) -> RunOrder:
        """Order the streams of `shard_samples` (stream -> samples of each shard, in index order)."""
        return RunOrder(
            schedule,
            tuple(
                StreamOrder(name, tuple(samples), seed, schedule.lanes, shuffle_block)
                for name, samples in shard_samples.items()
            ),
        )

    @cached_property
    def first_ids(self) -> Int64s:
        """First sample id of each stream and, last, the number of ids; shape (num_streams + 1,)."""
        return np.cumsum([0] + [sum(stream.shard_samples) for stream in self.streams], dtype=np.int64)

    @cached_property
    def _numbers(self) -> Int64s:
        """Number in `self.streams` of each stream of the schedule."""
        numbers = {stream.name: number for number, stream in enumerate(self.streams)}
        return np.array([numbers[name] for name in self.schedule.streams], dtype=np.int64)

    def sample_ids(self, step: int, start: int = 0, stop: int | None = None) -> Int64s:
        """Sample ids of slots start..stop of a step's batch; shape (stop - start,).

        Rank r of W takes slots [r B / W, (r + 1) B / W), so the parts of the ranks join to the same batch for every W.
        """
        stop = self.schedule.batch_size if stop is None else stop
        width = self.schedule.width
        lanes = range(start // width, -(-stop // width))
        first, last = (start - lanes[0] * width, stop - lanes[0] * width) if len(lanes) == 1 else (0, width)
        numbers, cursors = self.schedule.lane_slots(step, first, last)  # those of the one lane, or of all
        parts = []
        for lane in lanes:
            inside = slice(max(start - lane * width, 0) - first, min(stop - lane * width, width) - first)
            parts.append(self._lane_ids(lane, self._numbers[numbers[inside]], cursors[inside]))
        return np.concatenate(parts)

    def stream_numbers(self, sample_ids: Int64s) -> Int64s:
        """The stream of each sample id, as its number in `streams`."""
        return np.searchsorted(self.first_ids, sample_ids, side="right") - 1

    def _lane_ids(self, lane: int, numbers: Int64s, cursors: Int64s) -> Int64s:
        ids = np.empty_like(cursors)
        for number in np.unique(numbers):
            chosen = numbers == number
            ids[chosen] = self.first_ids[number] + self.streams[number].positions(lane, cursors[chosen])
        return ids
