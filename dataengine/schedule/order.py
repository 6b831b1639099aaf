"""The sample at a cursor of a stream. Shards are permuted, then samples inside blocks, all in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from dataengine.arrays import Bools, Int64s
from dataengine.permutation import derive_key, permute
from dataengine.schedule.slots import Schedule

_SAMPLES_AT_ONCE = 1 << 13  # whose places are found together: a call has a cost, and so has waiting for the first
_LOOKED_AT = 1 << 22  # numbers in memory while slots are found: slots x streams
_SLOTS_A_CALL = 1 << 10  # slots that take about as long as a call for one step


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
        return {key: value for key, value in vars(self).items() if key != "spans"}  # a cache cannot be pickled

    @cached_property
    def lane_samples(self) -> int:
        """Samples of one lane in one epoch."""
        return sum(self.shard_samples) // self.lanes

    def positions(self, lane: int, cursors: Int64s) -> Int64s:
        """Positions in the stream (shards in index order) of the samples at the cursors of a lane; shapes (n,)."""
        return _positions([self], np.zeros_like(cursors), np.full_like(cursors, lane), cursors)

    def block(self, lane: int, epoch: int, number: int) -> tuple[int, int]:
        """The samples of a shuffled block of a lane, and the key of its permutation."""
        size = min(self.shuffle_block, self.lane_samples - number * self.shuffle_block)
        return size, derive_key(self.seed, self.name, "block", lane, epoch, number)

    @cached_property
    def _shard_row(self) -> tuple[Int64s, Int64s, Int64s]:
        """The permuted shards: the start of each in the row, its end in the row, and its start in the stream."""
        sizes = np.array(self.shard_samples, dtype=np.int64)
        row = permute(np.arange(len(sizes), dtype=np.int64), len(sizes), derive_key(self.seed, self.name, "shards"))
        ends = np.cumsum(sizes[row])
        return ends - sizes[row], ends, (np.cumsum(sizes) - sizes)[row]

    @cached_property
    def spans(self) -> Callable[[int, int], tuple[Int64s, Int64s]]:
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
        return self._ids_of(range(step, step + 1), start, stop).ravel()

    def each(self, steps: range, start: int = 0, stop: int | None = None) -> Iterator[Int64s]:
        """Yield `sample_ids` of each of the steps."""
        for found in self.many(steps, start, stop):
            yield from found

    def many(self, steps: range, start: int = 0, stop: int | None = None) -> Iterator[Int64s]:
        """Yield `sample_ids` of the steps, several steps at a time, shape (steps, stop - start).

        One by one they take up to 40 times as long.
        """
        width, stop = self.schedule.width, self.schedule.batch_size if stop is None else stop
        looked_at = width * steps.step * len(self.streams)  # to find the slots of one step
        at_once = max(1, min(_SAMPLES_AT_ONCE // max(stop - start, 1), _LOOKED_AT // looked_at))
        for first in range(0, len(steps), at_once):
            yield self._ids_of(steps[first : first + at_once], start, stop)

    def _ids_of(self, steps: range, start: int, stop: int | None) -> Int64s:
        """`sample_ids` of several steps, shape (steps, stop - start)."""
        width = self.schedule.width
        slots = np.arange(start, self.schedule.batch_size if stop is None else stop)
        lanes, places = np.divmod(slots, width)
        low, high = (int(places[0]), int(places[-1]) + 1) if len(slots) and lanes[0] == lanes[-1] else (0, width)
        numbers, cursors = (column[:, places - low].ravel() for column in self._lane_slots(steps, low, high))
        streams = self._numbers[numbers]
        found = _positions(self.streams, streams, np.tile(lanes, len(steps)), cursors)
        found += self.first_ids[streams]
        return found.reshape(len(steps), len(slots))

    def _lane_slots(self, steps: range, low: int, high: int) -> tuple[Int64s, Int64s]:
        """`Schedule.lane_slots` of several steps, shape (steps, high - low) each."""
        schedule, width, parts = self.schedule, self.schedule.width, []
        while len(steps):
            index = schedule.stage_index(steps[0])
            end = schedule.stage_starts[index] + schedule.stages[index].length
            inside = steps[: max(len(range(steps[0], end, steps.step)), 1)]  # backwards, one at a time
            steps = steps[len(inside) :]
            whole = (inside[-1] - inside[0]) * width + high  # slots of the lane, from the first step to the last
            if whole <= _SLOTS_A_CALL * len(inside):
                slots = schedule.lane_slots(inside[0], low, whole)
                places = np.arange(high - low) + width * (np.array(inside) - inside[0])[:, None]
                parts.append([column[places] for column in slots])
            else:
                parts += [[column[None] for column in schedule.lane_slots(step, low, high)] for step in inside]
        numbers, cursors = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return numbers, cursors

    def stream_numbers(self, sample_ids: Int64s) -> Int64s:
        """The stream of each sample id, as its number in `streams`."""
        numbers: Int64s = np.searchsorted(self.first_ids, sample_ids, side="right") - 1
        return numbers


def _positions(streams: Sequence[StreamOrder], numbers: Int64s, lanes: Int64s, cursors: Int64s) -> Int64s:
    """`StreamOrder.positions` of samples of several streams, by their numbers, and lanes; shapes (n,).

    One permutation covers all of them, because a call costs as much as a thousand samples.
    """
    order = np.lexsort((lanes, numbers))  # keeps the cursors of a lane in their order: in a run they rise
    numbers, lanes, cursors = numbers[order], lanes[order], cursors[order]
    begins = np.flatnonzero(_changes(numbers))
    widths = [streams[number].lane_samples for number in numbers[begins].tolist()]
    epochs, places = np.divmod(cursors, np.repeat(widths, _lengths(begins, len(order))))
    blocks, offsets = np.divmod(places, streams[0].shuffle_block)
    begins = np.flatnonzero(_changes(numbers) | _changes(lanes) | _changes(epochs) | _changes(blocks))
    groups = list(zip(*(column[begins].tolist() for column in (numbers, lanes, epochs, blocks)), strict=True))
    sizes, keys = (
        zip(*(streams[number].block(*place) for number, *place in groups), strict=True) if groups else ((), ())
    )
    lengths = _lengths(begins, len(order))
    found = permute(
        offsets, np.repeat(np.array(sizes, np.int64), lengths), np.repeat(np.array(keys, np.uint64), lengths)
    )
    found += places - offsets
    for (number, lane, epoch, _), first, length in zip(groups, begins.tolist(), lengths.tolist(), strict=True):
        inside = found[first : first + length]
        ends, shifts = streams[number].spans(lane, epoch)
        inside += shifts[np.searchsorted(ends, inside, side="right")]
    result = np.empty_like(found)
    result[order] = found
    return result


def _changes(column: Int64s) -> Bools:
    """Which values differ from the one before; the first does."""
    changes = np.ones(len(column), np.bool_)
    np.not_equal(column[1:], column[:-1], out=changes[1:])
    return changes


def _lengths(begins: Int64s, end: int) -> Int64s:
    lengths = np.empty_like(begins)
    lengths[:-1], lengths[-1:] = begins[1:] - begins[:-1], end - begins[-1:]
    return lengths
