from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.load import load_config
from dataengine.config.training import InitConfig, TrainConfig
from dataengine.errors import InputError
from dataengine.schedule.rates import Settings, horizon_notes, learning_rate, planned_settings, restart_steps
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
