from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.schedule.slots import MAX_RUN_SAMPLES, Schedule, Stage, apportion
from tests.dataengine.schedule.plain_floors import balanced, chain, count

sizes = st.one_of(st.integers(1, 250_000_000), st.integers(1, MAX_RUN_SAMPLES // 13))
quotas = st.lists(sizes, min_size=1, max_size=12)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.integers(0, 10**9))
def test_apportionment_is_exact_and_within_one_of_the_share(weights: list[float], total: int) -> None:
    parts = apportion(weights, total)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1 + 1e-6 * total


def test_apportionment_gives_ties_to_the_earlier() -> None:
    assert apportion([1, 1, 1], 4) == [2, 1, 1]
    assert apportion([0.7, 0.3], 10) == [7, 3]


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    lanes = draw(st.integers(1, 4))
    batch = lanes * draw(st.integers(1, 12))
    names = [f"s{k}" for k in range(draw(st.integers(1, 5)))]
    stages = []
    for number in range(draw(st.integers(1, 4))):
        mixed = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        steps = draw(st.integers(1, 20))
        parts = apportion([draw(st.floats(0.01, 10)) for _ in mixed], steps * batch // lanes)
        samples = {n: p * lanes for n, p in zip(mixed, parts, strict=True)}
        stages.append(Stage(f"stage{number}", steps, samples, balanced=draw(st.booleans())))
    return Schedule(batch, lanes, tuple(stages))


@given(schedules())
def test_every_step_is_full_and_every_stage_exact(schedule: Schedule) -> None:
    for stage, start in zip(schedule.stages, schedule.stage_starts, strict=True):
        counts = [schedule.counts(step) for step in range(start, start + stage.steps)]
        assert all(sum(count.values()) == schedule.batch_size for count in counts)
        assert all(value >= 0 for count in counts for value in count.values())
        for name in schedule.streams:
            assert sum(count[name] for count in counts) == stage.samples.get(name, 0)


@given(schedules())
def test_slots_are_the_counts_in_another_form(schedule: Schedule) -> None:
    for step in range(schedule.steps):
        numbers, cursors = schedule.lane_slots(step)
        for number, name in enumerate(schedule.streams):
            mine = cursors[numbers == number]
            assert len(mine) * schedule.lanes == schedule.counts(step)[name]
            first = schedule.cursors(step)[name] // schedule.lanes
            assert mine.tolist() == list(range(first, first + len(mine)))


@given(schedules(), st.data())
def test_a_step_depends_on_no_later_stage(schedule: Schedule, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, len(schedule.stages)))
    shorter = Schedule(schedule.batch_size, schedule.lanes, schedule.stages[:kept])
    for step in range(shorter.steps):
        assert {n: c for n, c in schedule.counts(step).items() if c} == {
            n: c for n, c in shorter.counts(step).items() if c
        }
        names = np.array(schedule.streams)[schedule.lane_slots(step)[0]]
        assert names.tolist() == np.array(shorter.streams)[shorter.lane_slots(step)[0]].tolist()
        assert schedule.lane_slots(step)[1].tolist() == shorter.lane_slots(step)[1].tolist()


def test_stage_boundary() -> None:
    schedule = Schedule(4, 1, (Stage("a", 2, {"x": 8}), Stage("b", 2, {"x": 2, "y": 6})))
    assert [schedule.counts(step) for step in range(4)] == [
        {"x": 4, "y": 0},
        {"x": 4, "y": 0},
        {"x": 1, "y": 3},
        {"x": 1, "y": 3},
    ]
    assert [schedule.stage_index(step) for step in range(4)] == [0, 0, 1, 1]
    assert schedule.cursors(4) == {"x": 10, "y": 6}
    with pytest.raises(IndexError, match="step 4 is outside the schedule's 4 steps"):
        schedule.counts(4)


@given(quotas, st.integers(1, 300), st.data())
def test_slots_are_those_of_whole_numbers_at_any_size(quotas: list[int], width: int, data: st.DataObject) -> None:
    """Against Python's integers, up to the largest run: also where a product of two sample counts leaves 64 bits."""
    names = [f"s{k:02d}" for k in range(len(quotas))]
    steps = -(-sum(quotas) // width)
    quotas = [*quotas[:-1], quotas[-1] + steps * width - sum(quotas)]
    is_balanced = data.draw(st.booleans())
    stage = Stage("huge", steps, dict(zip(names, quotas, strict=True)), balanced=is_balanced)
    schedule = Schedule(width, 1, (stage,))
    step = data.draw(st.one_of(st.integers(0, steps - 1), st.integers(max(0, steps - 3), steps - 1)))
    start = data.draw(st.integers(0, width - 1))
    stop = data.draw(st.integers(start + 1, width))
    numbers, cursors = schedule.lane_slots(step, start, stop)
    cut = balanced if is_balanced else chain
    points = [count(quotas, step * width + slot, cut) for slot in range(start, stop + 1)]
    rises = [[b - a for a, b in zip(*pair, strict=True)].index(1) for pair in pairwise(points)]
    assert numbers.tolist() == rises
    assert cursors.tolist() == [points[k][stream] for k, stream in enumerate(rises)]


def test_a_stage_of_10_to_the_15_samples_is_exact_to_its_end() -> None:
    total = 10**15
    stage = Stage("huge", total // 500, {"x": 123_456_789_012_345, "y": total - 123_456_789_012_345})
    schedule = Schedule(500, 1, (stage,))
    last = schedule.steps - 1
    exact = [count(list(stage.samples.values()), n, chain) for n in (last * 500, total)]
    assert schedule.counts(last) == {name: b - a for name, a, b in zip("xy", *exact, strict=True)}
    numbers, cursors = schedule.lane_slots(last)
    assert np.bincount(numbers, minlength=2).tolist() == list(schedule.counts(last).values())
    assert max(cursors[numbers == 1]) == stage.samples["y"] - 1
    assert schedule.cursors(schedule.steps) == stage.samples


def test_a_run_beyond_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the stages hold 4,611,686,018,427,387,908 samples, more than"):
        Schedule(4, 1, (Stage("a", MAX_RUN_SAMPLES // 4 + 1, {"x": MAX_RUN_SAMPLES + 4}),))


def test_quotas_must_fill_the_steps() -> None:
    with pytest.raises(ValueError, match=r"stage 'a': quotas .* must sum to steps x batch_size = 8"):
        Schedule(4, 1, (Stage("a", 2, {"x": 7}),))
    with pytest.raises(ValueError, match="quotas must be multiples of 2 lanes"):
        Schedule(4, 2, (Stage("a", 2, {"x": 5, "y": 3}),))
