from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.watch import SpikeDetector


def fed(losses: dict[str, list[float]], factor: float | None = 2.0, window: int = 10) -> SpikeDetector:
    """A detector that has seen these losses of each stream."""
    made = SpikeDetector(list(losses), factor, window)
    for name, values in losses.items():
        for value in values:
            made.add({name: value}, {name: 1})
    return made


def test_the_usual_loss_weighs_the_streams_by_their_samples() -> None:
    detector = fed({"a": [4.0] * 10, "b": [1.0] * 10})
    assert detector.usual({"a": 1, "b": 3}) == 1.75
    assert detector.judge({"a": 4.0, "b": 1.0}, {"a": 1, "b": 3}, 1.0) is None
    assert detector.judge({"a": 8.4, "b": 2.1}, {"a": 1, "b": 3}, 1.0) == (
        "the loss is 3.6750, 2.1 times the usual 1.7500 of these streams"
    )


def test_another_mix_is_no_spike() -> None:
    detector = fed({"a": [9.0] * 10, "b": [1.0] * 10})
    assert detector.judge({"a": 9.0}, {"a": 4, "b": 0}, 1.0) is None  # after steps of b alone


def test_a_stream_with_few_losses_is_not_judged() -> None:
    detector = fed({"a": [1.0] * 10, "new": [1.0] * 9})
    assert detector.usual({"a": 3, "new": 1}) is None
    assert detector.judge({"a": 1.0, "new": 500.0}, {"a": 3, "new": 1}, 1.0) is None


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, 1.0, "the loss is inf"),
        (2.5, math.nan, "the gradient's norm is nan (the loss is 2.5000)"),
        (2.5, math.inf, "the gradient's norm is inf (the loss is 2.5000)"),
    ],
)
def test_what_is_no_number_is_always_bad(loss: float, norm: float, reason: str) -> None:
    assert SpikeDetector(["a"], None, 10).judge({"a": loss}, {"a": 4}, norm) == reason


@given(st.lists(st.floats(0.1, 20.0), min_size=10, max_size=40), st.floats(1.1, 5.0))
def test_no_loss_up_to_the_usual_is_a_spike_and_each_above_the_factor_is(losses: list[float], factor: float) -> None:
    detector = fed({"a": losses}, factor)
    usual = detector.usual({"a": 2})
    assert usual is not None
    assert min(losses[-10:]) <= usual <= max(losses[-10:])
    assert detector.judge({"a": usual}, {"a": 2}, 1.0) is None
    assert detector.judge({"a": usual * factor * 1.001}, {"a": 2}, 1.0) is not None


@given(st.lists(st.floats(0.1, 20.0), max_size=30))
def test_what_is_remembered_comes_back_exactly(losses: list[float]) -> None:
    detector, other = fed({"a": losses}), SpikeDetector(["a", "b"], 2.0, 10)
    other.load(detector.dump())
    assert other.usual({"a": 1, "b": 0}) == detector.usual({"a": 1})
    assert SpikeDetector(["b"], 2.0, 10).load(detector.dump()) is None  # a stream that is no more
