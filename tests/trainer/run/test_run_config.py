"""A run is evaluated, exported and replayed with the config that it was trained with, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dataengine.build.build import build
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from tests.conftest import DEMO, ConfigMaker
from trainer.preflight.agreement import check_agreement
from trainer.run.folder import Run, check_config, open_run


@pytest.fixture
def trained(make_config: ConfigMaker) -> tuple[Config, Run, Manifest]:
    """A run folder as a training leaves it, without its checkpoints."""
    config = make_config()
    manifest = build(config, workers=1).manifest
    run = open_run(config.out, config.cache)
    run.publish("manifest.json", manifest.content)
    run.publish("config.yaml", dump_config(config).encode())
    return config, run, manifest


CHANGES = {
    "name=other": "name is other in the config, but was small when {run} was trained",
    "languages.zh=Mandarin": "languages.zh is Mandarin in the config, but was Chinese when {run} was trained",
    "stages.2.steps=5": "stages.2.steps is 5 in the config, but was 4 when {run} was trained",
    "seed=3": "seed is 3 in the config, but was 17 when {run} was trained",
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_what_differs_is_named_with_key_then_and_now(
    trained: tuple[Config, Run, Manifest], make_config: ConfigMaker, change: str
) -> None:
    _, run, manifest = trained
    with pytest.raises(InputError) as caught:
        check_config(make_config([change]), run, manifest)
    expected = CHANGES[change].format(run=run.url)
    assert (
        str(caught.value) == f"{expected}. Give this run's own config, such as {run.url}/config.yaml, or another `out`."
    )


def test_training_names_the_same_difference(trained: tuple[Config, Run, Manifest], make_config: ConfigMaker) -> None:
    _, _, manifest = trained
    (problem,) = check_agreement(make_config(["languages.zh=Mandarin"]), manifest)
    assert problem.text.startswith("languages.zh is Mandarin in the config, but was Chinese when 'small' was built.")


def test_all_that_differs_is_named_at_once(trained: tuple[Config, Run, Manifest], make_config: ConfigMaker) -> None:
    _, run, manifest = trained
    with pytest.raises(InputError, match=r"(?s)is not that of .*\n- name is .*\n- seed is "):
        check_config(make_config(["name=other", "seed=3"]), run, manifest)


def test_another_tokenizer_is_refused(
    trained: tuple[Config, Run, Manifest], make_config: ConfigMaker, tmp_path: Path
) -> None:
    _, run, manifest = trained
    changed = tmp_path / "tokenizer.model"
    changed.write_bytes(DEMO.joinpath("tokenizer.model").read_bytes() + b"\x1a\x00")
    with pytest.raises(InputError, match=r"tokenizer mismatch: .* Set `tokenizer` to the file that the build used\.$"):
        check_config(make_config([f"tokenizer={changed}"]), run, manifest)
    copy = shutil.copy(DEMO / "tokenizer.model", tmp_path / "copy.model")
    check_config(make_config([f"tokenizer={copy}"]), run, manifest)


def test_what_decides_no_sample_may_differ(trained: tuple[Config, Run, Manifest], make_config: ConfigMaker) -> None:
    _, run, manifest = trained
    check_config(make_config(["train.max_steps=3", "evaluate.beams=5", "store=elsewhere"]), run, manifest)


@pytest.mark.parametrize("content", [None, "unknown_key: 1", "a: [", b"\xff"])
def test_without_a_config_that_can_be_read_the_manifest_is_compared(
    trained: tuple[Config, Run, Manifest],
    make_config: ConfigMaker,
    content: str | bytes | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, run, manifest = trained
    (run.folder / "config.yaml").unlink()
    if content is not None:
        (run.folder / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    check_config(config, run, manifest)
    assert "the config is compared with the manifest alone" in caplog.text
    with pytest.raises(InputError, match="name is other in the config, but was small when"):
        check_config(make_config(["name=other"]), run, manifest)
