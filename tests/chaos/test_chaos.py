"""One seed of chaos, in a bucket; `make chaos SEEDS=100` runs more."""

from __future__ import annotations

import pytest

from tests.chaos.scenario import Lab

pytestmark = pytest.mark.slow
SEED = 2


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("chaos"))


def test_disturbed_as_undisturbed(lab: Lab) -> None:
    found = lab.scenario(SEED)
    assert found.verdict == "equal", found.words
    assert found.events


def test_a_silent_difference_would_be_reported(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself."""
    changed = [dict(row) for row in lab.reference.log]
    changed[3]["loss"] = "1.0"
    monkeypatch.setattr("tests.chaos.scenario._disturb", lambda experiment, made: experiment.run("build"))
    monkeypatch.setattr("tests.chaos.scenario.Experiment.log", lambda experiment: changed)
    found = lab.scenario(4)
    assert (found.verdict, found.words) == ("different", "the losses")


def test_a_hang_would_be_reported(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.scenario.DEADLINE_S", 0)
    assert lab.scenario(4).verdict == "hang"
