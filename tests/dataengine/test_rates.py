from __future__ import annotations

import math

import pytest

from dataengine.config import TrainConfig
from dataengine.rates import learning_rate, restart_steps
from dataengine.schedule import Schedule, Stage

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


def test_a_restart_warms_up_anew() -> None:
    """The paper's second stage (PAPER, reference code): 2.0e-4 at its step 1,000, 4.0e-4 at 2,000."""
    rates = [learning_rate(155_000 + step, PAPER, [155_000]) for step in (0, 999, 1999, 3999)]
    assert rates == pytest.approx([2e-7, 2e-4, 4e-4, 4e-4], rel=1e-4)
    assert learning_rate(154_999, PAPER, [155_000]) == learning_rate(154_999, PAPER)


def test_restarts_are_the_first_steps_of_stages() -> None:
    schedule = Schedule(1, 1, (Stage("a", 3, {"x": 3}), Stage("b", 2, {"x": 2}), Stage("a", 3, {"x": 3})))
    assert restart_steps(schedule, {"a", "b"}) == [0, 3]
    assert restart_steps(schedule, {"b"}) == [3]
