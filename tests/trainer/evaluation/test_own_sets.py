"""Sets in languages that a run never sees are left out; possible transfer stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataengine.config.load import load_config
from tests.conftest import DEMO, ROOT, ConfigMaker
from trainer.evaluation.own_sets import with_own_sets

DEV = str(DEMO / "en-zh.dev.jsonl")
EXPERIMENTS = [path for path in sorted(ROOT.glob("yamls/**/*.yaml")) if path.parent.name != "base"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_experiment_of_the_repository_loses_a_set(path: Path) -> None:
    config = load_config(path)
    assert with_own_sets(config) == config


@pytest.fixture
def german(make_config: ConfigMaker, corpora: Path) -> Any:
    """Makes the config of a run on German and English text that still has the Chinese sets of its base."""

    def make(overrides: list[str] | None = None, documents: dict[str, Any] | None = None) -> Any:
        return make_config(
            overrides,
            languages={"de": "German"},
            streams={
                "news": {"documents": [str(corpora / "mono.*.jsonl")], **(documents or {})},
                "en-de": {"pairs": [str(corpora / "pairs.*.jsonl")], "directions": ["en-de"], "keys": {"de": "zh"}},
                "of-base": {"pairs": [str(corpora / "pairs.*.jsonl")], "directions": ["en-zh"]},
            },
            stages=[{"name": "all", "steps": 4, "mix": {"news": 1, "en-de": 1}}],
            evaluate={"dev": {"de-en": DEV, "en-zh": DEV}, "test": {"zh-en": DEV}, "choose_by": ["en-zh", "de-en"]},
        )

    return make


def test_sets_of_a_language_that_is_in_no_stream_are_left_out(german: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A stream that no stage mixes does not count; a direction that no pair is written in does."""
    own = with_own_sets(german(documents={"language": "en"})).evaluate
    assert (list(own.dev), list(own.test), own.choose_by) == (["de-en"], [], ("de-en",))
    assert "evaluate.dev.en-zh is left out: no stream of this run has text in zh" in caplog.text
    assert "evaluate.test.zh-en is left out" in caplog.text


def test_monolingual_text_counts(german: Any) -> None:
    config = german(documents={"language": "zh-Hans"})
    assert with_own_sets(config) == config


def test_documents_of_no_stated_language_may_be_in_any(german: Any) -> None:
    config = german()
    assert with_own_sets(config) == config


def test_weights_of_another_run_may_know_any_language(german: Any) -> None:
    config = german(["init={checkpoint: elsewhere, mode: restart}"], {"language": "en"})
    assert with_own_sets(config) == config
