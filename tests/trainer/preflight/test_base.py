"""A run that begins with a pretrained model: what is refused and what is warned of before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config

from dataengine.build.build import build
from dataengine.config.pretrained import PretrainedModel
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from tests.conftest import ConfigMaker
from tests.tiny_base import save_base, save_model
from trainer.checkpoints.marker import Marker, model_differences
from trainer.preflight.base import check_base, settle_base
from trainer.preflight.problems import Problem
from trainer.run.base import base_of, keep_base, read_kept, stated, with_run_base
from trainer.run.folder import open_run
from trainer.run.ranks import Ranks, Rendezvous
from trainer.train import dry_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("bases") / "llama", tokenizer_path)


@pytest.fixture
def base(folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "base"))


def settled(make_config: ConfigMaker, base: Path, **changes: Any) -> tuple[Config, Manifest]:
    """The config of a built experiment that begins with a base, with the base's model."""
    config = make_config(**{"init": {"hf": str(base)}, "model": {}, **changes})
    return settle_base(config, Rendezvous(Ranks())), build(config, workers=1).manifest


def problems(make_config: ConfigMaker, base: Path, **changes: Any) -> list[Problem]:
    return check_base(*settled(make_config, base, **changes))


def test_a_base_with_the_tokenizer_of_the_streams_is_fine(make_config: ConfigMaker, base: Path) -> None:
    assert problems(make_config, base) == []
    (base / "tokenizer.model").unlink()  # tokenizer.json has another hash and the same ids
    assert problems(make_config, base) == []


def test_another_tokenizer_is_refused(make_config: ConfigMaker, base: Path) -> None:
    (base / "tokenizer.model").unlink()
    spec = json.loads((base / "tokenizer.json").read_bytes())
    entries = spec["model"].get("merges")
    if entries is not None:
        spec["model"]["merges"] = entries[: len(entries) // 2]
    else:
        spec["model"]["vocab"] = [
            [piece, score if len(piece) < 3 else -900.0] for piece, score in spec["model"]["vocab"]
        ]
    (base / "tokenizer.json").write_text(json.dumps(spec))
    (found,) = problems(make_config, base)
    assert found.fatal
    assert found.text.startswith("the streams were tokenized with another tokenizer than that of init.hf ")
    assert found.text.endswith("and build again: dataengine build CONFIG.")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(
    make_config: ConfigMaker, tmp_path: Path, tokenizer_path: Path
) -> None:
    small = save_base("llama", tmp_path / "small", tokenizer_path, vocab_size=50)
    (found,) = problems(make_config, small)
    assert "has embeddings for 50" in found.text


def test_a_tokenizer_that_adds_bos_goes_with_bos(
    make_config: ConfigMaker, tmp_path: Path, base: Path, tokenizer_path: Path
) -> None:
    adds = save_base("llama", tmp_path / "adds", tokenizer_path, bos=True)
    (found,) = problems(make_config, adds)
    assert not found.fatal
    assert "puts BOS before each text, but the streams were built with `bos: false`" in found.text
    assert problems(make_config, adds, bos=True) == []
    (found,) = problems(make_config, base, bos=True)
    assert "Build with bos=false unless this is meant" in found.text


def test_longer_samples_than_the_base_has_positions_are_warned_of(
    make_config: ConfigMaker, tmp_path: Path, tokenizer_path: Path
) -> None:
    short = save_base("llama", tmp_path / "short", tokenizer_path, max_position_embeddings=16)
    (found,) = problems(make_config, short)
    assert not found.fatal
    assert "seq_len is 32, but" in found.text


def test_an_unknown_family_and_lost_weights_are_refused_in_the_dry_run(
    make_config: ConfigMaker, base: Path, tmp_path: Path
) -> None:
    gpt = save_model(GPT2Config(vocab_size=2000, n_embd=32, n_layer=2, n_head=4, n_positions=64), tmp_path / "gpt2")
    config = make_config(init={"hf": str(gpt)}, model={})
    build(config, workers=1)
    with pytest.raises(InputError, match=r"is of type 'gpt2'.*Set train\.model_class=auto"):
        dry_run(lambda: config)
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-10])
    config = make_config(init={"hf": str(base)}, model={})
    with pytest.raises(InputError, match=r"is not a whole safetensors file: it has"):
        dry_run(lambda: config)
    (base / "model.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match=r"model\.hidden_size is 64, but the base has 32"):
        dry_run(lambda: make_config(init={"hf": str(base)}, model={"hidden_size": 64, "num_attention_heads": 4}))


@pytest.mark.slow
def test_a_dry_run_describes_the_base(make_config: ConfigMaker, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, manifest = settled(make_config, base)
    dry_run(lambda: make_config(init={"hf": str(base)}, model={}))
    printed = capsys.readouterr().out
    assert isinstance(config.model, PretrainedModel)
    assert f"{config.model.parameters:,} parameters" in printed
    assert f"{base} (a folder)" in printed
    assert manifest.vocab_size < config.model.rows


def test_a_run_keeps_what_it_needs_of_its_base(make_config: ConfigMaker, base: Path) -> None:
    """Its model and its tokenizer come from the run's folder then, and the base may be gone."""
    config, _ = settled(make_config, base, tokenizer=None)
    assert config.tokenizer == str(base)
    run = open_run(config.out, config.cache)
    kept = keep_base(run, base_of(config))
    assert read_kept(run) == kept
    shutil.rmtree(base)
    again = with_run_base(make_config(init={"hf": str(base)}, model={}, tokenizer=None), run)
    assert again.model == config.model
    assert again.tokenizer == str(run.folder / "base" / "tokenizer.json")
    assert stated(again, run).tokenizer == str(base)
    marker = Marker(step=1, plan_id="", world_size=1, model=config.model.model_dump(mode="json"), files={"a": 1})
    assert model_differences(again.model, marker) == []
    marker.model["base"]["hidden_act"] = "gelu"
    assert model_differences(again.model, marker) == ["base.hidden_act was gelu and is silu"]
    (run.folder / "base" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"base/config\.json is missing or has changed"):
        read_kept(run)
