"""Which checkpoints are evaluated, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.trainer.fake_checkpoints import save
from trainer.checkpoints.marker import Checkpoint, read_checkpoint
from trainer.evaluation import candidates
from trainer.evaluation.candidates import each_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Checkpoint]:
    folder = tmp_path_factory.mktemp("run")
    return {step: read_checkpoint(save(folder, step, size=10)) for step in (4, 8, 12, 16, 20)}


def looks(monkeypatch: pytest.MonkeyPatch, found: Sequence[Sequence[Checkpoint]], every: int, until: int) -> list[int]:
    """The steps that are given while `found` is what one look after the other finds."""
    waits: list[float] = []
    monkeypatch.setattr(candidates, "time", SimpleNamespace(sleep=waits.append))
    given = [one.step for one in each_checkpoint(lambda: found[len(waits)], every, lambda: until)]
    assert len(waits) == len(found) - 1
    return given


@pytest.mark.parametrize(("every", "steps"), [(1, [4, 8, 12, 16, 20]), (2, [8, 16, 20]), (5, [20]), (9, [20])])
def test_each_kth_checkpoint_and_the_last_one(saved: dict[int, Checkpoint], every: int, steps: list[int]) -> None:
    assert [one.step for one in each_checkpoint(lambda: list(saved.values()), every, None)] == steps
    assert list(each_checkpoint(list, every, None)) == []


def test_following_waits_until_the_last_step_and_gives_each_checkpoint_once(
    saved: dict[int, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, d, e = saved.values()
    assert looks(monkeypatch, [[], [a], [a, b], [b, c, d], [d, e]], 1, 20) == [4, 8, 12, 16, 20]
    assert looks(monkeypatch, [[a], [a, b, c], [c, d, e]], 2, 20) == [8, 16, 20]  # a and b count, though removed
    assert looks(monkeypatch, [[a, b]], 1, 8) == [4, 8]
    anew = replace(b, digest="e" * 64, hashes=dict.fromkeys(b.files, "0" * 16))
    assert looks(monkeypatch, [[a, b], [a, anew, c]], 1, 12) == [4, 8, 8, 12]
