"""One straight run for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dataengine.build.build import build
from dataengine.config.load import load_config
from tests.conftest import small_experiment
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> Experiment:
    folder = tmp_path_factory.mktemp("experiment")
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(small_experiment(corpora, tokenizer_path, folder), sort_keys=False))
    manifest = build(load_config(path), workers=1).manifest
    return Experiment(path, folder, manifest, ranks.train(path, folder / "straight"))
