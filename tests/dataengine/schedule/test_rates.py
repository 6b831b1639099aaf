from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.load import load_config
from dataengine.config.training import InitConfig, TrainConfig
from dataengine.errors import InputError
from dataengine.schedule.rates import (
    Settings,
    StageRate,
    horizon_notes,
    learning_rate,
    planned_settings,
    restart_steps,
)
from dataengine.schedule.slots import Schedule, Stage
from tests.conftest import ROOT, ConfigMaker

PAPER = TrainConfig()


@pytest.mark.parametrize(
    ("step", "rate"),
    [(50_000, 3.990e-4), (100_000, 3.958e-4), (155_000, 3.899e-4), (160_000, 3.892e-4)],
)
def test_effective_rates_of_the_paper(step: int, rate: float) -> None:
    assert math.isclose(learning_rate(step, PAPER), rate, abs_tol=5e-8)


def test_warm_up_reaches_the_peak_at_its_last_step() -> None:
    assert learning_rate(0, PAPER) == pytest.approx(4e-4 / 2000)
    assert learning_rate(999, PAPER) == pytest.approx(2e-4)
    assert learning_rate(1999, PAPER) == 4e-4
    assert learning_rate(2000, PAPER) == 4e-4


def test_the_rate_ends_at_its_minimum_and_stays() -> None:
    assert learning_rate(PAPER.decay_steps, PAPER) == 4e-5
    assert learning_rate(10 * PAPER.decay_steps, PAPER) == 4e-5
    middle = (2000 + PAPER.decay_steps) // 2
    assert learning_rate(middle, PAPER) == pytest.approx(2.2e-4)


def test_no_warm_up() -> None:
    assert learning_rate(0, TrainConfig(warmup_steps=0)) == 4e-4


def test_the_reference_lags_by_a_quarter_of_a_step_in_the_warm_up() -> None:
    """The reference takes its rate at micro-iteration 4 g + 3 of 8,000 (tinyllama.py:236, 471)."""
    for step in (0, 10, 500, 1999):
        reference = 4e-4 * (4 * step + 3) / 8000
        assert learning_rate(step, PAPER) - reference == pytest.approx(4e-4 / 8000, rel=1e-6)


def test_a_restart_warms_up_again() -> None:
    """The paper's second stage (PAPER, reference code): 2.0e-4 at its step 1,000, 4.0e-4 at 2,000."""
    rates = [learning_rate(155_000 + step, PAPER, [155_000]) for step in (0, 999, 1999, 3999)]
    assert rates == pytest.approx([2e-7, 2e-4, 4e-4, 4e-4], rel=1e-4)
    assert learning_rate(154_999, PAPER, [155_000]) == learning_rate(154_999, PAPER)


def test_restarts_are_the_first_steps_of_stages() -> None:
    schedule = Schedule(1, 1, (Stage("a", 3, {"x": 3}), Stage("b", 2, {"x": 2}), Stage("a", 3, {"x": 3})))
    assert restart_steps(schedule, {"a", "b"}) == [0, 3]
    assert restart_steps(schedule, {"b"}) == [3]


@given(st.integers(1, 200), st.integers(0, 30), st.lists(st.integers(1, 199), unique=True, max_size=3))
def test_a_decay_to_the_end_is_one_of_as_many_steps_as_are_left(steps: int, warmup: int, places: list[int]) -> None:
    restarts = sorted(place for place in places if place < steps)
    train = TrainConfig(decay_steps="end", warmup_steps=warmup)
    for begin, until in pairwise([0, *restarts, steps]):
        stated = train.model_copy(update={"decay_steps": steps - begin})
        for step in range(begin, until):
            assert learning_rate(step, train, restarts, steps) == learning_rate(step - begin, stated)
    if steps > max([0, *restarts]) + warmup + 1:
        assert learning_rate(steps - 1, train, restarts, steps) > train.min_learning_rate
        assert learning_rate(steps, train, restarts, steps) == train.min_learning_rate


def test_the_end_is_the_plans_for_any_max_steps(make_config: ConfigMaker) -> None:
    config = make_config(["train.decay_steps=end", "train.max_steps=3"])
    schedule = Schedule(8, 1, (Stage("a", 16, {"mono": 128}),))
    assert planned_settings(config, schedule).end == 16
    assert planned_settings(make_config(), schedule).end is None
    with pytest.raises(InputError, match=r"train.decay_steps=soon: expected a whole number, .*, or expected 'end'"):
        make_config(["train.decay_steps=soon"])


def notes_of(steps: int, *restarts: int, mode: str = "", fork: int = 0, **train: Any) -> list[str]:
    settings = Settings(TrainConfig(**train), restarts, steps if train.get("decay_steps") == "end" else None)
    init = InitConfig(checkpoint="run", mode=mode) if mode else None  # type: ignore[arg-type]
    return horizon_notes(settings, steps, first=fork, init=init)


def test_a_rate_that_hardly_falls_is_reported() -> None:
    """The paper's run of 155,000 steps and its second stage are not; the same rate in a run of 20,000 steps is."""
    assert notes_of(20_000) == [
        "the learning rate hardly falls: it ends at 3.9986e-04 of 4.0000e-04, because train.decay_steps is 1,430,512 "
        "in a run of 20,000 steps. With train.decay_steps=end it falls to train.min_learning_rate"
    ]
    assert notes_of(157_000, 155_000) == []
    assert notes_of(143_051) != []
    assert notes_of(143_052) == []
    assert notes_of(4_000, mode="restart") == []
    assert notes_of(157_000, mode="continue", fork=155_000) == []
    assert notes_of(157_000, 156_000, mode="continue", fork=156_000) != []
    assert notes_of(20_000, decay_steps="end") == []
    assert notes_of(20_000, min_learning_rate=4e-4) == []


def test_a_rate_that_only_rises_is_reported() -> None:
    told = [
        "the learning rate ends at 1.0000e-04, within its warm-up: train.warmup_steps is 2,000 in a run of 500 "
        "steps. Lower it"
    ]
    assert notes_of(500) == told
    assert notes_of(500, decay_steps="end") == told
    assert notes_of(2_000, decay_steps="end") == []
    assert notes_of(500, mode="restart") == []
    assert notes_of(157_000, 156_500) == []


def test_a_rate_that_is_at_its_minimum_for_most_of_the_run_is_reported() -> None:
    mini = {"warmup_steps": 20, "decay_steps": 400}
    assert notes_of(5_000, **mini) == [
        "the learning rate is at train.min_learning_rate in 4,600 of 5,000 steps, because train.decay_steps is 400. "
        "With train.decay_steps=end it falls until the end"
    ]
    assert notes_of(800, **mini) == []
    assert notes_of(801, **mini) != []
    assert notes_of(1_600, 800, **mini) == []
    assert notes_of(1_602, 800, **mini) != []
    assert notes_of(1_400, 1_200, mode="continue", fork=1_000, **mini) == []  # 200 of 400 steps
    assert notes_of(1_400, 1_201, mode="continue", fork=1_000, **mini) != []


def test_no_experiment_of_the_repository_gets_these_notes() -> None:
    for path in sorted((ROOT / "yamls").rglob("*.yaml")):
        if path.parent.name == "base":
            continue
        config = load_config(path)
        lengths = [stage.steps or 0 for stage in config.stages]
        whole = config.budget.steps if config.budget and config.budget.steps else 0
        steps = max(whole, sum(lengths))  # what drains is short beside the rest
        assert horizon_notes(Settings(config.train), steps, first=config.first_step, init=config.init) == [], path


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        (0, 120, "1.00e-04 -> 2.00e-03 -> 9.59e-04"),  # warm-up and decay in one stage
        (120, 200, "1.00e-04 -> 2.00e-03 -> 2.01e-04"),  # from the restart
        (120, 130, "1.00e-04 -> 1.00e-03"),  # within the warm-up
        (10, 20, "1.10e-03 -> 2.00e-03"),  # ends with it
        (50, 51, "1.88e-03 -> 1.88e-03"),
        (50, 50, ""),
    ],
)
def test_a_stage_shows_the_rate_where_its_warm_up_ends(first: int, last: int, shown: str) -> None:
    train = TrainConfig(learning_rate=2e-3, min_learning_rate=2e-4, warmup_steps=20, decay_steps="end")
    assert Settings(train, (120,), 200).describe(first, last) == shown


def rates(
    steps: int, *, restarts: tuple[int, ...] = (), stages: tuple[StageRate, ...] = (), **train: Any
) -> list[float]:
    settings = Settings(TrainConfig(**train), restarts, steps if train.get("decay_steps") == "end" else None, stages)
    return [settings.rate(step) for step in range(steps)]


def test_the_cosine_is_the_default_and_has_these_floats() -> None:
    """Golden: bit for bit as before there were other schedules."""
    found = rates(7, learning_rate=3e-3, min_learning_rate=1e-4, warmup_steps=2, decay_steps=6)
    assert found == [0.0015, 0.003, 0.003, 0.0025753048327204937, 0.0015500000000000002, 0.0005246951672795063, 0.0001]


def test_each_schedule_worked_by_hand() -> None:
    common = {"learning_rate": 1.0, "min_learning_rate": 0.25, "warmup_steps": 2, "decay_steps": 8}
    warm = [0.5, 1.0]
    assert rates(10, **common, schedule="linear") == [*warm, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.25]
    wsd = [*warm, 1.0, 1.0, 1.0, 0.8125, 0.625, 0.4375, 0.25, 0.25]
    assert rates(10, **common, schedule="wsd", cooldown_steps=4) == wsd
    assert rates(10, **common, schedule="wsd", cooldown_steps=0.5) == wsd
    assert rates(10, **common, schedule="wsd", cooldown_steps=100) == rates(10, **common, schedule="linear")
    assert rates(10, **common, schedule="constant") == [*warm, *[1.0] * 8]
    end = {**common, "decay_steps": "end"}
    assert rates(8, **end, schedule="wsd", cooldown_steps=4) == wsd[:8]
    again = rates(16, **end, schedule="wsd", cooldown_steps=4, restarts=(8,))
    assert again == [*warm, *[1.0] * 6, *wsd[:8]]  # the horizon of the first part is the end of the plan
    assert rates(3, **{**common, "warmup_steps": 9}, schedule="wsd") == rates(3, **{**common, "warmup_steps": 9})


@given(
    st.sampled_from(["cosine", "linear", "wsd", "constant"]), st.integers(0, 9), st.integers(10, 60), st.integers(1, 99)
)
def test_every_schedule_falls_after_the_warm_up_and_stays_in_its_bounds(
    schedule: str, warmup: int, steps: int, cooldown: int
) -> None:
    train = {"warmup_steps": warmup, "decay_steps": steps, "schedule": schedule, "cooldown_steps": cooldown / 100}
    found = rates(steps + 3, **train)
    assert found[max(warmup - 1, 0)] == max(found) == PAPER.learning_rate
    assert all(a >= b for a, b in pairwise(found[warmup:]))
    assert found[steps:] == [PAPER.learning_rate if schedule == "constant" else PAPER.min_learning_rate] * 3
    assert min(found[warmup:]) >= PAPER.min_learning_rate


CONSTANT = {"learning_rate": 1.0, "min_learning_rate": 0.5, "warmup_steps": 2, "schedule": "constant"}


def test_a_stage_begins_at_the_rate_before_it_and_ends_at_its_own() -> None:
    """One step before, on and after each border of the stage of steps 4 to 8."""
    found = rates(10, **CONSTANT, stages=(StageRate(4, 4, "linear", 0.0),))
    assert found == [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    cosine = rates(10, **CONSTANT, stages=(StageRate(4, 4, "cosine", 0.0),))
    assert cosine[3:] == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0, 0, 0], abs=1e-15)
    assert cosine[7] == 0
    falling = {**CONSTANT, "schedule": "linear", "decay_steps": 10}
    held = rates(10, **falling, stages=(StageRate(6, 2, "constant", 0.0),))
    assert held[:6] == rates(6, **falling)
    assert held[6:] == [held[5]] * 4
    two = rates(12, **CONSTANT, stages=(StageRate(4, 4, "linear", 0.5), StageRate(8, 2, "linear", 0.0)))
    assert two[3:] == [1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.0, 0.0, 0.0]


def test_a_stage_at_the_start_or_at_a_restart_warms_up_first() -> None:
    first = rates(8, **CONSTANT, stages=(StageRate(0, 6, "linear", 0.0),))
    assert first == [0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    again = rates(10, **CONSTANT, restarts=(4,), stages=(StageRate(4, 6, "linear", 0.0),))
    assert again[3:] == [1.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    short = rates(6, **CONSTANT, restarts=(3,), stages=(StageRate(3, 1, "linear", 0.0),))
    assert short[2:] == [1.0, 0.5, 0.5, 0.5]  # a stage within its warm-up
    leaves = rates(8, **CONSTANT, restarts=(5,), stages=(StageRate(3, 2, "linear", 0.0),))
    assert leaves[2:] == [1.0, 0.5, 0.0, 0.5, 1.0, 1.0]  # a later restart follows `train` again


def test_the_stages_of_a_config_decide(make_config: ConfigMaker) -> None:
    stages = [
        {"name": "a", "steps": 6, "mix": {"mono": 1}},
        {"name": "b", "steps": 6, "mix": {"mono": 1}, "schedule": "linear", "decay_to": 0},
        {"name": "c", "steps": 2, "mix": {"mono": 1}, "at": 0.75, "schedule": "cosine"},
    ]
    config = make_config(["train.decay_to=0.002"], stages=stages)
    assert config.train.min_learning_rate == 0.002
    pieces = (("a", 6), ("b", 3), ("c", 2), ("b", 3))
    schedule = Schedule(8, 1, tuple(Stage(name, steps, {"mono": 8 * steps}) for name, steps in pieces))
    assert planned_settings(config, schedule).stages == (
        StageRate(6, 8, "linear", 0.0),
        StageRate(9, 2, "cosine", 0.002),
        StageRate(11, 3, "linear", 0.0),
    )
    stages[0]["decay_to"] = 0
    with pytest.raises(InputError, match=r"`decay_to` of a stage needs `schedule: linear` or `schedule: cosine`"):
        make_config(stages=stages)
    with pytest.raises(InputError, match=r"'train.decay_to' is another name for 'min_learning_rate'"):
        make_config(train={"decay_to": 0.1, "min_learning_rate": 0.1})


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        ({}, [7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]),  # one line, also through the stage between
        ({"schedule": "constant"}, [7 / 8, 6 / 8, 5 / 8, 5 / 8, 5 / 8, 5 * 2 / 24, 5 / 24, 0]),
        ({"schedule": "linear", "decay_to": 0.3}, [7 / 8, 6 / 8, 5 / 8, 0.4625, 0.3, 0.2, 0.1, 0]),
        ({"restart_learning_rate": True}, [7 / 8, 6 / 8, 5 / 8, 1, 1, 2 / 3, 1 / 3, 0]),
    ],
)
def test_the_last_step_of_a_stage_that_another_splits_has_its_rate(
    middle: dict[str, Any], expected: list[float], make_config: ConfigMaker
) -> None:
    stages = [
        {"name": "a", "steps": 2, "mix": {"mono": 1}},
        {"name": "b", "steps": 6, "mix": {"mono": 1}, "schedule": "linear", "decay_to": 0},
        {"name": "c", "steps": 2, "mix": {"mono": 1}, "at": 0.625, **middle},
    ]
    config = make_config(train={**CONSTANT, "warmup_steps": 0, "learning_rate": 1.0}, stages=stages)
    pieces = (("a", 2), ("b", 3), ("c", 2), ("b", 3))
    schedule = Schedule(8, 1, tuple(Stage(name, steps, {"mono": 8 * steps}) for name, steps in pieces))
    settings = planned_settings(config, schedule)
    assert [settings.rate(step) for step in range(2, 10)] == pytest.approx(expected)
    assert settings.after(settings, 8, 0) == settings  # a resume in the last piece


def test_a_run_that_goes_on_keeps_the_rates_of_its_past() -> None:
    stages = (StageRate(4, 4, "linear", 0.0),)
    planned = Settings(TrainConfig(**CONSTANT), (), None, stages)
    for step in range(10):
        assert planned.after(planned, step, 0) == planned
    other = Settings(TrainConfig(**{**CONSTANT, "learning_rate": 2.0}), (), None, stages)
    assert [other.after(planned, 4, 0).rate(step) for step in (4, 7)] == [0.75, 0.0]  # from the rate that step 3 had
    kept = other.after(planned, 4, 0)
    assert other.after(kept, 6, 0) == kept  # also after a second resume
    assert [other.after(planned, 3, 0).rate(step) for step in (3, 4)] == [2.0, 1.5]
    assert other.after(planned, 5, 0).rate(5) == 1.0  # within the stage, the new settings count as if from the start


def test_a_child_begins_its_stage_at_the_rate_of_its_parent() -> None:
    parent = Settings(
        TrainConfig(**CONSTANT), (), None, (StageRate(2, 4, "linear", 0.5), StageRate(9, 9, "linear", 0.1))
    )
    child = Settings(TrainConfig(**{**CONSTANT, "learning_rate": 3.0}), (), None, (StageRate(6, 2, "linear", 0.0),))
    joined = child.after(parent, 6, 6)
    assert [joined.rate(step) for step in (6, 7, 8)] == [0.25, 0.0, 0.0]
    assert joined.stages[0] == parent.stages[0]
    assert len(joined.stages) == 2  # what the parent did after the fork does not count
    plain = replace(child, stages=()).after(parent, 6, 6)
    assert plain.rate(6) == plain.rate(9) == 0.5  # a child without a stage of its own goes on at the last rate


def test_notes_on_other_schedules() -> None:
    assert notes_of(20_000, schedule="constant") == []
    assert notes_of(20_000, schedule="wsd") == [
        "the learning rate does not fall: its cooldown begins after 1,287,461 steps, because train.decay_steps is "
        "1,430,512, in a run of 20,000 steps. With train.decay_steps=end it falls to train.decay_to at the end"
    ]
    assert notes_of(20_000, schedule="wsd", decay_steps="end") == []
    assert notes_of(20_000, schedule="wsd", decay_steps=20_100, cooldown_steps=100) != []
    assert notes_of(20_000, schedule="wsd", decay_steps=20_099, cooldown_steps=100) == []
    staged = Settings(TrainConfig(), (), None, (StageRate(10_000, 10_000, "linear", 0.0),))
    assert horizon_notes(staged, 20_000) == []


def test_a_table_shows_where_a_cooldown_begins() -> None:
    settings = Settings(TrainConfig(schedule="wsd", decay_steps="end", warmup_steps=10, cooldown_steps=20), (), 100)
    assert settings.describe(0, 100) == "4.00e-05 -> 4.00e-04 -> 4.00e-04 -> 5.80e-05"
    assert settings.describe(50, 100) == "4.00e-04 -> 4.00e-04 -> 5.80e-05"
    last = replace(settings, stages=(StageRate(50, 50, "linear", 0.0),))
    assert last.describe(50, 100) == "3.92e-04 -> 0.00e+00"
