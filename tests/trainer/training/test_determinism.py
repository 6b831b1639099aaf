from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from trainer.training.determinism import make_deterministic


@pytest.fixture(autouse=True)
def back_to_usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "0")
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize(("before", "after"), [(":0:0", ":4096:8"), (":16:8", ":16:8")])
def test_what_cannot_be_deterministic_is_refused(before: str, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before)
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == after
    assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "1"
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
