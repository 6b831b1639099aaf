"""A few histories of a store; `python -m tests.chaos.stores --seeds 100` runs more."""

from __future__ import annotations

import pytest

from tests.chaos.stores import Lab, WrongError, one_seed, small_units
from tests.conftest import slow_but


@pytest.mark.parametrize("seed", slow_but([3, 14, 48], [3]))
def test_a_store_comes_to_the_same_bytes_whatever_happened(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("stores")
    with small_units():
        one_seed(Lab(folder), seed, str(folder / "store"))


def test_other_bytes_would_be_reported(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge itself."""
    folder = tmp_path_factory.mktemp("stores")
    monkeypatch.setattr(Lab, "fresh", lambda lab, values: {"manifest.json": b""})
    monkeypatch.setattr("tests.chaos.stores._BUILDS", 1)
    with small_units(), pytest.raises(WrongError, match="other bytes"):
        one_seed(Lab(folder), 3, str(folder / "store"))
