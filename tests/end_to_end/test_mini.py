"""The settings of the paper in miniature draw what their plans say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dataengine.build.build import build
from dataengine.config.load import load_config
from tests.conftest import ROOT
from tests.end_to_end import ranks
from tests.end_to_end.straight import open_dataset

MINI = sorted((ROOT / "yamls" / "mini").glob("*.yaml"))


@pytest.fixture(scope="module")
def mini_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mini") / "store"


@pytest.mark.parametrize("path", MINI, ids=lambda path: path.stem)
def test_every_mini_experiment_draws_what_its_plan_says(path: Path, mini_store: Path) -> None:
    """In the first steps of each setting."""
    manifest = build(load_config(path, [f"store={mini_store}"]), workers=1).manifest
    assert manifest.schedule.steps == 200
    dataset, names = open_dataset(manifest, str(mini_store)), [stream.name for stream in manifest.streams]
    for step in range(3):
        drawn = Counter(names[dataset[int(i)]["stream"]] for i in manifest.order.sample_ids(step))
        assert drawn == {name: count for name, count in manifest.schedule.counts(step).items() if count}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multilingual", "parallel_distributed"])
def test_a_mini_experiment_is_trained_on_what_its_plan_says(name: str, mini_store: Path) -> None:
    """The trainer itself stops at a batch that is not the plan's."""
    path, out = MINI[0].with_name(f"{name}.yaml"), mini_store.parent / name
    manifest = build(load_config(path, [f"store={mini_store}"]), workers=1).manifest
    log = ranks.train(path, out, f"store={mini_store}", "train.max_steps=3", "train.log_interval=1")
    assert {drawn: int(log[-1][f"samples/{drawn}"]) for drawn in manifest.schedule.cursors(3)} == (
        manifest.schedule.cursors(3)
    )
