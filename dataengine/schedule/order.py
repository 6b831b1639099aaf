"""The sample at a cursor of a stream. Shards are permuted, then samples inside blocks, all in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from dataengine.arrays import Bools, Int64s, UInt64s
from dataengine.permutation import derive_keys, key_head, permute
from dataengine.schedule.slots import Schedule

_SAMPLES_AT_ONCE = 1 << 13  # whose places are found together: a call has a cost, and so has waiting for the first
_SAMPLES_A_STREAM = 16  # or as many of each stream on average: what is looked up for a stream has a cost
_SPANS_AT_ONCE = 1 << 16  # that are cut together, about

Row = Int64s  # permuted shards, shape (3, shards): the starts in the row, the ends, and the starts in the stream
Spans = Int64s  # parts of shards in the order of a lane, shape (2, spans): the ends, and the shifts to the stream
Lane = tuple[int, int, int]  # the number of a stream, a lane, an epoch


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
        return {field.name: getattr(self, field.name) for field in fields(self)}  # what is kept stays behind

    @cached_property
    def lane_samples(self) -> int:
        """Samples of one lane in one epoch."""
        return sum(self.shard_samples) // self.lanes

    def positions(self, lane: int, cursors: Int64s) -> Int64s:
        """Positions in the stream (shards in index order) of the samples at the cursors of a lane; shapes (n,)."""
        return _positions([self], np.zeros_like(cursors), np.full_like(cursors, lane), cursors)

    @cached_property
    def head(self) -> str:
        """The first parts of the keys of its permutations."""
        return key_head(self.seed, self.name)

    @cached_property
    def row(self) -> list[Row]:
        """The permuted shards; empty until they are wanted."""
        return []

    @cached_property
    def kept(self) -> dict[tuple[int, int], Spans]:
        """Spans of lanes in epochs, the last ones: a rank needs few lanes and one epoch at a time."""
        return {}

    def keep(self, lane: int, epoch: int, spans: Spans) -> None:
        """Keep the spans of a lane in an epoch, in place of the oldest."""
        if len(self.kept) >= 2 * self.lanes:
            del self.kept[next(iter(self.kept))]
        self.kept[lane, epoch] = spans


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
        stop = self.schedule.batch_size if stop is None else stop
        wanted = max(_SAMPLES_AT_ONCE, _SAMPLES_A_STREAM * len(self.streams))
        at_once = max(1, wanted // max(stop - start, 1))
        for first in range(0, len(steps), at_once):
            yield self._ids_of(steps[first : first + at_once], start, stop)

    def _ids_of(self, steps: range, start: int, stop: int | None) -> Int64s:
        """`sample_ids` of several steps, shape (steps, stop - start)."""
        slots = np.arange(start, self.schedule.batch_size if stop is None else stop)
        lanes, places = np.divmod(slots, self.schedule.width)
        if len(lanes) and lanes[0] < lanes[-1]:  # all lanes have the same
            numbers, cursors = (column[:, places] for column in self._lane_slots(steps, np.arange(self.schedule.width)))
        else:
            numbers, cursors = self._lane_slots(steps, places)
        streams = self._numbers[numbers].ravel()
        found = _positions(self.streams, streams, np.tile(lanes, len(steps)), cursors.ravel())
        found += self.first_ids[streams]
        return found.reshape(len(steps), len(slots))

    def _lane_slots(self, steps: range, places: Int64s) -> tuple[Int64s, Int64s]:
        """Stream numbers and lane cursors of places in a lane's part of each step; shapes (steps, places)."""
        schedule = self.schedule
        indexes = np.array([schedule.stage_index(step) for step in steps])
        numbers, cursors = np.empty((2, len(steps), len(places)), dtype=np.int64)
        for index in np.unique(indexes).tolist():
            inside = np.flatnonzero(indexes == index)
            samples = (np.array(steps)[inside] - schedule.stage_starts[index])[:, None] * schedule.width + places
            dealt = schedule.deal(index, samples.ravel())
            numbers[inside], cursors[inside] = (column.reshape(samples.shape) for column in dealt)
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
    widths = np.array([streams[number].lane_samples for number in numbers[begins].tolist()], dtype=np.int64)
    widths = np.repeat(widths, _lengths(begins, len(order)))
    epochs, places = np.divmod(cursors, widths)
    block = streams[0].shuffle_block
    blocks, offsets = np.divmod(places, block)
    begins = np.flatnonzero(_changes(numbers) | _changes(lanes) | _changes(epochs) | _changes(blocks))
    groups = list(zip(*(column[begins].tolist() for column in (numbers, lanes, epochs, blocks)), strict=True))
    keys = _keys(streams, "block", groups)
    lengths = _lengths(begins, len(order))
    found = permute(offsets, np.minimum(widths - blocks * block, block), np.repeat(keys, lengths))
    found += places - offsets
    begins = np.flatnonzero(_changes(numbers) | _changes(lanes) | _changes(epochs))
    wanted = list(zip(*(column[begins].tolist() for column in (numbers, lanes, epochs)), strict=True))
    parts = zip(begins.tolist(), [*begins[1:].tolist(), len(order)], _spans(streams, wanted), strict=True)
    for first, end, (ends, shifts) in parts:
        inside = found[first:end]
        inside += shifts[ends.searchsorted(inside, "right")]
    result = np.empty_like(found)
    result[order] = found
    return result


def _spans(streams: Sequence[StreamOrder], wanted: Sequence[Lane]) -> Iterator[Spans]:
    """The spans of lanes in epochs. Those that are not kept are cut together, about as many as _SPANS_AT_ONCE."""
    spans = np.cumsum([len(streams[number].shard_samples) // streams[number].lanes + 1 for number, _, _ in wanted])
    for _, grouped in groupby(zip((spans // _SPANS_AT_ONCE).tolist(), wanted, strict=True), key=itemgetter(0)):
        part = [place for _, place in grouped]
        found = {place: kept for place in part if (kept := streams[place[0]].kept.get(place[1:])) is not None}
        missing = [place for place in part if place not in found]
        for place, cut in zip(missing, _cut_spans(streams, missing), strict=True):
            found[place] = cut
            streams[place[0]].keep(*place[1:], cut)
        yield from (found[place] for place in part)


def _cut_spans(streams: Sequence[StreamOrder], places: Sequence[Lane]) -> Iterator[Spans]:
    """Cut lanes out of the rows of their streams, and permute the spans of each for its epoch.

    All rows are one long row here, so that an operation is one call for all lanes.
    """
    if not places:
        return
    row_of = {number: k for k, number in enumerate(dict.fromkeys(number for number, _, _ in places))}
    rows = _find_rows([streams[number] for number in row_of])
    samples = np.array([row[1, -1] for row in rows])
    begins = np.cumsum(samples) - samples
    starts, ends, origins = np.concatenate(rows, axis=1)
    moved = np.repeat(begins, [row.shape[1] for row in rows])
    starts, ends, shifts = starts + moved, ends + moved, origins - starts - moved
    widths = np.array([streams[number].lane_samples for number, _, _ in places])
    lows = begins[[row_of[number] for number, _, _ in places]] + widths * [lane for _, lane, _ in places]
    first = np.searchsorted(ends, lows, "right")
    counts = np.searchsorted(starts, lows + widths, "left") - first
    order = _permuted(counts, _keys(streams, "spans", places))
    shards = order + np.repeat(first - (np.cumsum(counts) - counts), counts)
    span_starts = np.maximum(starts[shards], np.repeat(lows, counts))
    sizes = np.minimum(ends[shards], np.repeat(lows + widths, counts)) - span_starts
    lane_ends = _sums(sizes, counts)
    yield from _split(np.stack([lane_ends, span_starts + shifts[shards] - (lane_ends - sizes)]), counts)


def _find_rows(streams: Sequence[StreamOrder]) -> list[Row]:
    """The permuted shards of streams, which keep them."""
    missing = [stream for stream in streams if not stream.row]
    counts = np.array([len(stream.shard_samples) for stream in missing], dtype=np.int64)
    sizes = np.fromiter(chain.from_iterable(stream.shard_samples for stream in missing), np.int64, counts.sum())
    order = _permuted(counts, derive_keys((stream.head for stream in missing), "shards", [()] * len(missing)))
    ends, origins = _sums(sizes[order], counts), (_sums(sizes, counts) - sizes)[order]
    rows = _split(np.stack([ends - sizes[order], ends, origins]), counts)
    for stream, row in zip(missing, rows, strict=True):
        stream.row.append(row)
    return [stream.row[0] for stream in streams]


def _keys(streams: Sequence[StreamOrder], use: str, places: Sequence[tuple[int, ...]]) -> UInt64s:
    """A key for each place: the number of a stream, then the numbers that its key is made of."""
    return derive_keys((streams[place[0]].head for place in places), use, (place[1:] for place in places))


def _permuted(counts: Int64s, keys: UInt64s) -> Int64s:
    """The numbers from 0, of which each group of `counts` is permuted by its key."""
    begins = np.repeat(np.cumsum(counts) - counts, counts)
    numbers = np.arange(len(begins)) - begins
    return permute(numbers, np.repeat(counts, counts), np.repeat(keys, counts)) + begins


def _sums(values: Int64s, counts: Int64s) -> Int64s:
    """Sums of the values from the first of a group up to each."""
    sums = np.cumsum(values)
    before = np.concatenate([[0], sums])[np.cumsum(counts) - counts]
    result: Int64s = sums - np.repeat(before, counts)
    return result


def _split(columns: Int64s, counts: Int64s) -> Iterator[Int64s]:
    """The part of each group, as an array of its own: it does not keep the others in memory."""
    edges = [0, *np.cumsum(counts).tolist()]
    return (columns[:, first:end].copy() for first, end in pairwise(edges))


def _changes(column: Int64s) -> Bools:
    """Which values differ from the one before; the first does."""
    changes = np.ones(len(column), np.bool_)
    np.not_equal(column[1:], column[:-1], out=changes[1:])
    return changes


def _lengths(begins: Int64s, end: int) -> Int64s:
    lengths = np.empty_like(begins)
    lengths[:-1], lengths[-1:] = begins[1:] - begins[:-1], end - begins[-1:]
    return lengths
