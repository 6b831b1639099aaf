from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.schedule import Schedule, Stage, apportion, count_drawn

quotas = st.lists(st.integers(1, 250_000_000), min_size=1, max_size=12)


@given(quotas, st.data())
def test_counts_sum_to_the_slots_and_never_fall(quotas: list[int], data: st.DataObject) -> None:
    slots = data.draw(st.integers(0, sum(quotas) - 1))
    before, after = count_drawn(quotas, slots), count_drawn(quotas, slots + 1)
    assert sum(before) == slots
    assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (len(quotas) - 1) + [1]


@given(quotas)
def test_a_stage_ends_with_exactly_its_quotas(quotas: list[int]) -> None:
    assert count_drawn(quotas, sum(quotas)) == quotas


@given(quotas, st.data())
def test_counts_stray_less_than_the_number_of_streams(quotas: list[int], data: st.DataObject) -> None:
    total, slots = sum(quotas), data.draw(st.integers(0, sum(quotas)))
    for count, quota in zip(count_drawn(quotas, slots), quotas, strict=True):
        assert abs(count * total - slots * quota) < len(quotas) * total


def test_counts_worked_by_hand() -> None:
    # weights 3, 2, 1: the first stream takes ceil(n / 2), the second two thirds of the rest, rounded up
    drawn = [count_drawn([3, 2, 1], n) for n in range(7)]
    assert drawn == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 1, 0], [2, 2, 0], [3, 2, 0], [3, 2, 1]]


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
        stages.append(Stage(f"stage{number}", steps, {n: p * lanes for n, p in zip(mixed, parts, strict=True)}))
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


def test_largest_stage_keeps_within_int64() -> None:
    total = 3_000_000_000
    stage = Stage("huge", total // 500, {"x": 1_234_567_500, "y": total - 1_234_567_500})
    schedule = Schedule(500, 1, (stage,))
    last = schedule.steps - 1
    exact = [count_drawn(list(stage.samples.values()), n) for n in (last * 500, total)]
    assert schedule.counts(last) == {name: b - a for name, a, b in zip("xy", *exact, strict=True)}
    numbers, _ = schedule.lane_slots(last)
    assert np.bincount(numbers, minlength=2).tolist() == list(schedule.counts(last).values())


def test_quotas_must_fill_the_steps() -> None:
    with pytest.raises(ValueError, match=r"stage 'a': quotas .* must sum to steps x batch_size = 8"):
        Schedule(4, 1, (Stage("a", 2, {"x": 7}),))
    with pytest.raises(ValueError, match="quotas must be multiples of 2 lanes"):
        Schedule(4, 2, (Stage("a", 2, {"x": 5, "y": 3}),))
