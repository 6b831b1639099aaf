from __future__ import annotations

import math
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.permutation import derive_key, hash_numbers, permute
from dataengine.schedule import order
from dataengine.schedule.order import RunOrder, StreamOrder
from dataengine.schedule.slots import Schedule, Stage, apportion


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_permute_is_that_of_whole_numbers_at_any_size(size: int, key: int, data: st.DataObject) -> None:
    """Against Python's integers, which cannot overflow; so it is one to one at sizes that cannot be listed."""
    first = data.draw(st.integers(0, size - 1))
    positions = np.arange(first, min(first + 20, size), dtype=np.int64)
    found = permute(positions, size, key).tolist()
    assert found == [_permute_one(position, size, key) for position in positions.tolist()]
    assert all(0 <= position < size for position in found)
    assert len(set(found)) == len(found)


@given(st.lists(st.tuples(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.integers(0, 2**62)), max_size=30))
def test_one_call_covers_positions_of_many_permutations(asked: list[tuple[int, int, int]]) -> None:
    sizes, keys = ([row[k] for row in asked] for k in (0, 1))
    places = [place % size for size, _, place in asked]
    found = permute(np.array(places, np.int64), np.array(sizes, np.int64), np.array(keys, np.uint64))
    assert found.tolist() == [_permute_one(*row) for row in zip(places, sizes, keys, strict=True)]


def _permute_one(position: int, size: int, key: int) -> int:
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    while True:
        column, row = divmod(position, rows)
        for turn in range(4):
            column = (column + _mix_one(row, key, 2 * turn)) % columns
            row = (row + _mix_one(column, key, 2 * turn + 1)) % rows
        position = column * rows + row
        if position < size:
            return position


def _mix_one(value: int, key: int, turn: int) -> int:
    word = (1 << 64) - 1
    bits = (value + key + (turn + 1) * 0x9E3779B97F4A7C15) & word
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & word
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & word
    return bits ^ (bits >> 31)


def test_permute_golden_vectors() -> None:
    """These are part of every plan: a change here reorders runs that exist."""
    assert permute(np.arange(10), 10, 12345).tolist() == [1, 8, 4, 2, 3, 0, 6, 9, 7, 5]
    assert permute(np.arange(8), 32_768, 12345).tolist() == [18910, 6384, 15065, 80, 12461, 24118, 20894, 22145]
    assert permute(np.array([0, 10**12 - 1]), 10**12, 2**63 + 7).tolist() == GOLDEN_LARGE
    assert derive_key(17, "mono", "block", 0, 1, 2) == GOLDEN_KEY
    assert hash_numbers(np.array([0, 1]), 5).tolist() == GOLDEN_HASH
    stream = StreamOrder("mono", (5, 3, 4), seed=17, lanes=1, shuffle_block=4)
    assert stream.positions(0, np.arange(24)).tolist() == GOLDEN_STREAM


GOLDEN_LARGE = [786329672391, 741241524863]
GOLDEN_KEY = 15957785904008917996
GOLDEN_HASH = [7134611160154358618, 13647215125184110592]
GOLDEN_STREAM = [2, 1, 3, 0, 8, 4, 9, 10, 5, 7, 6, 11, 6, 7, 5, 8, 9, 10, 11, 0, 3, 1, 4, 2]


def test_permutations_are_evenly_spread() -> None:
    counts = Counter(tuple(permute(np.arange(4), 4, derive_key("spread", k)).tolist()) for k in range(4800))
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7  # chi-square, 23 degrees, p = 0.001


def test_neighbours_do_not_stay_neighbours() -> None:
    found = permute(np.arange(32_768), 32_768, 99)
    assert np.mean(np.abs(np.diff(found)) < 100) < 0.02


shards = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(shards, st.integers(1, 4), st.integers(1, 60), st.integers(0, 2**32))
def test_a_pass_has_every_sample_of_its_lanes_once(sizes: list[int], lanes: int, block: int, seed: int) -> None:
    stream = StreamOrder("s", tuple(sizes), seed, lanes, block)
    width = stream.lane_samples
    if not width:
        return
    passes = []
    for number in range(3):
        cursors = np.arange(number * width, (number + 1) * width)
        lane_sets = [set(stream.positions(lane, cursors).tolist()) for lane in range(lanes)]
        assert all(len(found) == width for found in lane_sets)
        union = set().union(*lane_sets)
        assert len(union) == width * lanes
        assert union <= set(range(sum(sizes)))
        passes.append(lane_sets)
    assert passes[0] == passes[1] == passes[2]  # a lane keeps its part of the stream


def test_passes_differ_in_order() -> None:
    stream = StreamOrder("s", (64,) * 10, seed=1, lanes=1, shuffle_block=128)
    first, second = (stream.positions(0, np.arange(n * 640, (n + 1) * 640)) for n in range(2))
    assert np.mean(first == second) < 0.02


def test_a_block_draws_on_few_shards() -> None:
    stream = StreamOrder("s", (64,) * 50, seed=1, lanes=1, shuffle_block=128)
    for block in range(5):
        touched = stream.positions(0, np.arange(block * 128, (block + 1) * 128)) // 64
        assert len(set(touched.tolist())) == 2


def test_a_lane_reads_its_share_of_the_shards() -> None:
    stream = StreamOrder("s", (64,) * 40, seed=3, lanes=4, shuffle_block=100)
    for lane in range(4):
        touched = set((stream.positions(lane, np.arange(stream.lane_samples)) // 64).tolist())
        assert len(touched) == 10


def test_a_stream_of_10_to_the_12_samples_has_each_of_a_block_once() -> None:
    stream = StreamOrder("s", (10**12 - 7, 5, 2), seed=1, lanes=3, shuffle_block=1000)
    width = stream.lane_samples
    assert width == 333_333_333_333
    last = np.arange(width - width % 1000, width)  # the end of the second pass is a block of 333
    found = stream.positions(2, last + width)
    assert len(set(found.tolist())) == 333
    assert 0 <= min(found) <= max(found) < 10**12


@st.composite
def runs(draw: st.DrawFn) -> RunOrder:
    lanes = draw(st.integers(1, 3))
    batch = lanes * draw(st.sampled_from([4, 8, 12]))
    streams = {
        f"s{k}": draw(st.lists(st.integers(8, 40), min_size=1, max_size=6)) for k in range(draw(st.integers(1, 4)))
    }
    stages = []
    for number in range(draw(st.integers(1, 3))):
        mixed = draw(st.lists(st.sampled_from(sorted(streams)), min_size=1, unique=True))
        steps = draw(st.integers(1, 12))
        parts = apportion([draw(st.floats(0.1, 10)) for _ in mixed], steps * batch // lanes)
        stages.append(Stage(f"stage{number}", steps, {n: p * lanes for n, p in zip(mixed, parts, strict=True)}))
    return RunOrder.build(
        Schedule(batch, lanes, tuple(stages)),
        streams,
        seed=draw(st.integers(0, 99)),
        shuffle_block=draw(st.integers(1, 50)),
    )


@given(runs())
def test_ranks_join_to_one_batch_for_every_world_size(run: RunOrder) -> None:
    batch, steps = run.schedule.batch_size, range(run.schedule.steps)
    whole = [run.sample_ids(step) for step in steps]
    for step in steps:
        counts = Counter(run.streams[number].name for number in run.stream_numbers(whole[step]))
        assert counts == Counter({n: c for n, c in run.schedule.counts(step).items() if c})
    for world in [w for w in range(1, batch + 1) if batch % w == 0]:
        width = batch // world
        parts = [np.stack(list(run.each(steps, rank * width, (rank + 1) * width))) for rank in range(world)]
        assert np.concatenate(parts, axis=1).tolist() == np.stack(whole).tolist()


@given(runs())
def test_no_sample_comes_twice_within_a_pass(run: RunOrder) -> None:
    drawn = np.concatenate(list(run.each(range(run.schedule.steps))))
    for number, stream in enumerate(run.streams):
        total = sum(stream.shard_samples)
        mine = drawn[run.stream_numbers(drawn) == number] - run.first_ids[number]
        passes = -(-len(mine) // max(stream.lane_samples * stream.lanes, 1))
        assert all(count <= passes for count in Counter(mine.tolist()).values())
        assert mine.size == 0 or 0 <= mine.min() <= mine.max() < total


def plain_lane(stream: StreamOrder, lane: int, epoch: int) -> list[int]:
    """The positions of a lane in an epoch, one by one: the docstring of `StreamOrder` in lists of Python's integers."""
    positions, shards = iter(range(sum(stream.shard_samples))), []
    for samples in stream.shard_samples:
        shards.append([next(positions) for _ in range(samples)])
    places = [_permute_one(k, len(shards), derive_key(stream.seed, stream.name, "shards")) for k in range(len(shards))]
    row = [(place, position) for place in places for position in shards[place]]
    width = len(row) // stream.lanes
    spans = [
        [p for _, p in group] for _, group in groupby(row[lane * width : (lane + 1) * width], lambda pair: pair[0])
    ]
    key = derive_key(stream.seed, stream.name, "spans", lane, epoch)
    unshuffled = [p for k in range(len(spans)) for p in spans[_permute_one(k, len(spans), key)]]
    shuffled = []
    for number, first in enumerate(range(0, width, stream.shuffle_block)):
        block = unshuffled[first : first + stream.shuffle_block]
        key = derive_key(stream.seed, stream.name, "block", lane, epoch, number)
        shuffled += [block[_permute_one(k, len(block), key)] for k in range(len(block))]
    return shuffled


def plain_ids(run: RunOrder, step: int) -> list[int]:
    """The sample ids of a step, slot by slot."""
    found = []
    for lane in range(run.schedule.lanes):
        numbers, cursors = run.schedule.lane_slots(step)
        for number, cursor in zip(numbers.tolist(), cursors.tolist(), strict=True):
            (k,) = (k for k, s in enumerate(run.streams) if s.name == run.schedule.streams[number])
            epoch, place = divmod(cursor, run.streams[k].lane_samples)
            first = sum(sum(stream.shard_samples) for stream in run.streams[:k])
            found.append(first + plain_lane(run.streams[k], lane, epoch)[place])
    return found


@settings(max_examples=40)
@given(runs(), st.sampled_from([(1, 0, 1), (16, 1, 8), (1 << 13, 16, 1 << 16)]), st.data())
def test_many_steps_at_a_time_are_the_slots_of_each(
    run: RunOrder, limits: tuple[int, int, int], data: st.DataObject
) -> None:
    """From any step, every n-th step, any slots; steps and spans one at a time, or some, or all."""
    wanted = {step: plain_ids(run, step) for step in range(run.schedule.steps)}
    first, every = data.draw(st.integers(0, run.schedule.steps)), data.draw(st.integers(1, 5))
    start = data.draw(st.integers(0, run.schedule.batch_size - 1))
    stop = data.draw(st.integers(start + 1, run.schedule.batch_size))
    steps = range(first, run.schedule.steps, every)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_SAMPLES_AT_ONCE", limits[0])
        patch.setattr(order, "_SAMPLES_A_STREAM", limits[1])
        patch.setattr(order, "_SPANS_AT_ONCE", limits[2])
        assert [ids.tolist() for ids in run.each(steps, start, stop)] == [wanted[s][start:stop] for s in steps]
        assert [ids.tolist() for ids in run.each(steps[::-1])] == [wanted[step] for step in steps[::-1]]
    assert [run.sample_ids(step, start, stop).tolist() for step in steps] == [wanted[s][start:stop] for s in steps]


def test_64037_samples_on_16_ranks_come_once_and_the_rest_is_known() -> None:
    sizes = [4096] * 15 + [64_037 - 15 * 4096]
    steps = 64_037 // 64
    run = RunOrder.build(
        Schedule(64, 1, (Stage("all", steps, {"s": steps * 64}),)), {"s": sizes}, seed=1, shuffle_block=8192
    )
    drawn = np.concatenate([ids for rank in range(16) for ids in run.each(range(steps), rank * 4, (rank + 1) * 4)])
    assert len(set(drawn.tolist())) == len(drawn) == 64_037 - 64_037 % 64


@pytest.mark.parametrize("change", [{"seed": 2}, {"name": "t"}])
def test_seed_and_name_decide_the_order(change: dict[str, object]) -> None:
    fields: dict[str, object] = {"name": "s", "shard_samples": (64,) * 8, "seed": 1, "lanes": 1, "shuffle_block": 64}
    first = StreamOrder(**fields).positions(0, np.arange(512))  # type: ignore[arg-type]
    second = StreamOrder(**{**fields, **change}).positions(0, np.arange(512))  # type: ignore[arg-type]
    assert np.mean(first == second) < 0.02
