"""A run's W&B: one id until steps are trained again, and never the end of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataengine.config.training import WandbConfig
from tests.conftest import ConfigMaker
from trainer.training.wandb_run import open_wandb, wandb_id


def write_log(folder: Path, steps: int) -> Path:
    path = folder / "log.csv"
    path.write_text("step,stage,digest\n" + "".join(f"{step},first,{'0' * 64}\n" for step in range(steps)))
    return path


def test_steps_that_are_trained_again_get_a_run_of_their_own(tmp_path: Path) -> None:
    place, log = tmp_path / "wandb.json", write_log(tmp_path, 0)
    first, before = wandb_id(place, log, 0)
    assert before is None
    write_log(tmp_path, 10)
    assert wandb_id(place, log, 10) == (first, None)  # stopped on request: it continues
    second, before = wandb_id(place, log, 6)  # killed: steps 6 to 9 come again
    assert before == first != second
    assert json.loads(place.read_text()) == {"id": second, "from": first, "step": 6}
    write_log(tmp_path, 12)
    assert wandb_id(place, log, 12) == (second, None)


def test_without_a_network_a_run_continues_offline(
    make_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    own = wandb.init

    def init(**named: Any) -> Any:
        if named["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return own(**named)

    monkeypatch.setattr(wandb, "init", init)
    run = open_wandb(make_config(), WandbConfig(project="p", mode="online"), tmp_path, 0)
    run.log({"loss": 1.0}, step=1)
    run.finish()
    assert caplog.messages[0].startswith(
        "W&B is not available (no route to host): logging offline. Send it later: wandb"
    )
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
