from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.spikes import SpikeDetector


def fed(losses: dict[str, list[float]], factor: float | None = 2.0, window: int = 10) -> SpikeDetector:
    """A detector that has seen these losses of each stream."""
    made = SpikeDetector(list(losses), factor, window)
    for step in range(max(map(len, losses.values()))):
        drawn = {name: values[step] for name, values in losses.items() if step < len(values)}
        made.add(drawn, dict.fromkeys(drawn, 1))
    return made


def test_the_usual_loss_weighs_the_streams_by_their_samples() -> None:
    detector = fed({"a": [4.0] * 10, "b": [1.0] * 10})
    assert detector.compare({"a": 4.0, "b": 1.0}, {"a": 1, "b": 3}) == (1.75, 1.75)
    assert detector.judge({"a": 4.0, "b": 1.0}, {"a": 1, "b": 3}, 1.0) is None
    assert detector.judge({"a": 8.4, "b": 2.1}, {"a": 1, "b": 3}, 1.0) == (
        "the loss is 3.6750, 2.1 times the usual 1.7500 of these streams"
    )


def test_another_mix_is_not_a_spike() -> None:
    detector = fed({"a": [9.0] * 10, "b": [1.0] * 10})
    assert detector.judge({"a": 9.0}, {"a": 4, "b": 0}, 1.0) is None  # after steps of b alone


@pytest.mark.parametrize(("of_new", "judged"), [(1, True), (3, True), (4, False)])
def test_a_stream_with_few_losses_is_left_out(of_new: int, judged: bool) -> None:
    """The rest is judged if it is half of the step; else rare streams, of which some are in each step, would end it."""
    detector, counts = fed({"a": [1.0] * 10, "new": [1.0] * 9}), {"a": 3, "new": of_new}
    assert detector.judge({"a": 1.0, "new": 500.0}, counts, 1.0) is None
    assert (detector.judge({"a": 5.0, "new": 1.0}, counts, 1.0) is not None) == judged


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, 1.0, "the loss is inf"),
        (2.5, math.nan, "the gradient's norm is nan (the loss is 2.5000)"),
        (2.5, math.inf, "the gradient's norm is inf (the loss is 2.5000)"),
    ],
)
def test_what_is_not_a_number_is_always_bad(loss: float, norm: float, reason: str) -> None:
    assert SpikeDetector(["a"], None, 10).judge({"a": loss}, {"a": 4}, norm) == reason


@given(st.lists(st.floats(0.001, 20.0), min_size=10, max_size=40), st.floats(1.1, 5.0))
def test_a_spike_is_above_the_factor_and_above_the_floor(losses: list[float], factor: float) -> None:
    detector = fed({"a": losses}, factor)
    compared = detector.compare({"a": 1.0}, {"a": 2})
    assert compared is not None
    usual = compared[1]
    assert min(losses[-10:]) <= usual <= max(losses[-10:])
    least = max(usual * factor, usual + 0.3)  # nats
    for loss in (usual, usual * factor * 0.999, usual + 0.299, least * 0.999):
        assert detector.judge({"a": min(loss, least)}, {"a": 2}, 1.0) is None
    assert detector.judge({"a": least * 1.001}, {"a": 2}, 1.0) is not None


# Losses of steps 220 to 283 of a stream of 60 pairs, repeated until it is known by heart (benchmarks/spikes.py).
BY_HEART = """
0.0396 0.1514 0.0466 0.0344 0.0179 0.0284 0.041 0.0334 0.0461 0.0237 0.0236 0.016 0.0345 0.0254 0.1018 0.0381
0.0344 0.0131 0.0204 0.0127 0.0295 0.0673 0.0277 0.0481 0.0263 0.014 0.0233 0.014 0.012 0.0242 0.0125 0.016
0.0488 0.042 0.0198 0.0209 0.0241 0.0138 0.0222 0.013 0.0173 0.0302 0.0272 0.0204 0.0195 0.0183 0.0186 0.036
0.0156 0.1212 0.0637 0.0193 0.028 0.0134 0.0155 0.0104 0.0111 0.0165 0.0128 0.0221 0.1009 0.0122 0.0287 0.0164
"""


def test_what_is_known_by_heart_doubles_its_loss_by_chance() -> None:
    losses = [float(word) for word in BY_HEART.split()]
    without, detector = SpikeDetector(["a"], 2.0, 100, floor=0.0), SpikeDetector(["a"], 2.0, 100)
    found: list[bool] = []
    for step, loss in enumerate(losses):
        found.append(without.judge({"a": loss}, {"a": 8}, 1.0) is not None)
        assert detector.judge({"a": loss}, {"a": 8}, 1.0) is None
        assert step < 50 or detector.judge({"a": loss + 0.4}, {"a": 8}, 1.0) is not None
        for one in (without, detector):
            one.add({"a": loss}, {"a": 8})
    assert any(found)


@pytest.mark.parametrize(("absent", "judged"), [(9, True), (10, False), (500, False)])
def test_a_stream_that_was_away_for_long_starts_over(absent: int, judged: bool) -> None:
    detector = fed({"a": [0.5] * 100, "b": []}, window=100)
    other = SpikeDetector(["a", "b"], 2.0, 100)
    for step in range(absent):
        detector.add({"b": 3.0}, {"a": 0, "b": 4})
        if step == absent // 2:  # a resume changes nothing
            other.load(detector.dump())
            detector = other
    forgotten = detector.judge({"a": 6.0}, {"a": 4}, 1.0)
    assert (forgotten is not None) == judged
    for _ in range(50):
        detector.add({"a": 1.0}, {"a": 4})
    assert detector.judge({"a": 6.0}, {"a": 4}, 1.0) is not None


@given(st.lists(st.floats(0.1, 20.0), max_size=30))
def test_what_is_remembered_comes_back_exactly(losses: list[float]) -> None:
    detector, other = fed({"a": losses}), SpikeDetector(["a", "b"], 2.0, 10)
    other.load(detector.dump())
    expected = detector.compare({"a": 1.0}, {"a": 1})
    assert other.compare({"a": 1.0}, {"a": 1, "b": 0}) == expected
    assert SpikeDetector(["b"], 2.0, 10).load(detector.dump()) is None  # a stream that is gone
    older = SpikeDetector(["a", "absent"], 2.0, 10)
    older.load(json.dumps({"a": losses, "absent": losses}))
    assert older.compare({"a": 1.0}, {"a": 1}) == older.compare({"absent": 1.0}, {"absent": 1}) == expected
