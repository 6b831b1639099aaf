"""A run that begins with a pretrained model of the hub: build, train, stop, resume, evaluate, export, second stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dataengine.build.build import build
from dataengine.config.load import load_config
from dataengine.schedule.manifest import Manifest
from tests.conftest import small_experiment
from tests.end_to_end import ranks
from tests.end_to_end.straight import exact
from tests.model_hub import ModelHub, model_hub
from tests.tiny_base import save_base
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.checkpoints.marker import read_checkpoint
from trainer.evaluate import main as evaluate
from trainer.export import main as export
from trainer.run.folder import open_run
from trainer.training.replay import replay

__all__ = ["model_hub"]
NAME, COMMIT = "org/tiny", "1" * 40


def write_experiment(folder: Path, corpora: Path, init: dict[str, Any]) -> Path:
    """The small experiment from a base, without a tokenizer and a model of its own."""
    values = small_experiment(corpora, Path("unused"), folder)
    del values["tokenizer"], values["model"]
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values | {"init": init}, sort_keys=False))
    return path


def first_loss(folder: Path, manifest: Manifest, config: Path) -> float:
    """The loss of the first batch by transformers."""
    from transformers import AutoModelForCausalLM

    from dataengine.schedule.reader import PlanReader
    from dataengine.storage.open import open_store

    reader = PlanReader.of_store(manifest, open_store(load_config(config).store))
    tokens = torch.from_numpy(reader.read(0).tokens.astype("int64"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return float(model.eval()(tokens, labels=tokens).loss)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen 2.5", "gemma 2"])
def test_from_the_hub_to_an_export(
    kind: str, model_hub: ModelHub, corpora: Path, tokenizer_path: Path, tmp_path: Path, capsys: Any
) -> None:
    base = save_base(kind, tmp_path / "base", tokenizer_path)
    model_hub.add(NAME, base, COMMIT)
    path = write_experiment(tmp_path, corpora, {"hf": NAME})
    manifest = build(load_config(path), workers=1).manifest
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    log = ranks.train(path, straight)
    assert float(log[0]["loss"]) == pytest.approx(first_loss(base, manifest, path), rel=1e-5)
    assert f"init.hf {NAME} means commit {COMMIT} now" in ranks.printed(straight)
    assert float(log[-1]["loss"]) < float(log[0]["loss"])

    ranks.kill_at(ranks.start(path, killed), killed, 8)
    model_hub.models.clear()  # the run needs no hub any more
    model_hub.always = 500
    shutil.rmtree(tmp_path / "hub_cache")
    assert exact(ranks.train(path, killed)) == exact(log)

    checkpoint = complete_checkpoints(killed)[0]
    lineage = read_checkpoint(complete_checkpoints(killed)[-1].folder).init
    assert lineage is not None
    assert (lineage["hf"], lineage["revision"]) == (NAME, COMMIT)
    assert lineage == checkpoint.init

    settings = [str(path), f"out={killed}"]
    for program in (evaluate, export):
        if program is evaluate:
            settings_of = [
                *settings,
                f"evaluate.dev={{en-zh: {corpora / 'pairs.0.jsonl'}}}",
                "evaluate.max_sentences=4",
                "evaluate.max_new_tokens=8",
            ]
        else:
            settings_of = [*settings, "--step", str(checkpoint.step)]
        with pytest.raises(SystemExit) as ended:
            program(settings_of)
        assert ended.value.code == 0, capsys.readouterr().err
    exported = killed / "exports" / checkpoint.folder.name
    ours = {one.name for one in exported.iterdir()}
    assert ours == {one.name for one in base.iterdir()} | {"export.json"}
    for name in ours - {"export.json", "config.json", "model.safetensors"}:
        assert (exported / name).read_bytes() == (base / name).read_bytes(), name
    before, after = (json.loads((one / "config.json").read_bytes()) for one in (base, exported))
    typed = {"torch_dtype", "dtype"} & before.keys()
    assert {key: value for key, value in before.items() if after[key] != value} == dict.fromkeys(typed, "bfloat16")
    assert load_file(base / "model.safetensors").keys() == load_file(exported / "model.safetensors").keys()

    assert replay(open_run(str(killed), "cache"), checkpoint.step).loss == pytest.approx(
        float(log[checkpoint.step]["loss"]), rel=1e-5
    )

    second = tmp_path / "second"
    init = f"init={{checkpoint: {killed}, mode: restart}}"
    changes = ["name=second", f"tokenizer={tokenizer_path}", init, "stages=[{name: second, steps: 2, mix: {both: 1}}]"]
    del_init = yaml.safe_load(path.read_text())
    del del_init["init"]
    path.write_text(yaml.safe_dump(del_init | {"tokenizer": str(tokenizer_path)}))
    build(load_config(path, changes), workers=1)
    ranks.train(path, second, *changes)
    assert (second / "base" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert complete_checkpoints(second)[-1].init["init"] == lineage  # type: ignore[index]


@pytest.mark.slow
def test_an_export_before_the_first_update_is_the_base(corpora: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    """With a learning rate of almost 0, whose updates are lost in rounding to the weights' own type."""
    base = save_base("qwen 3", tmp_path / "base", tokenizer_path)
    path = write_experiment(tmp_path, corpora, {"hf": str(base)})
    build(load_config(path), workers=1)
    out = tmp_path / "still"
    still = ["train.learning_rate=1e-30", "train.min_learning_rate=1e-30", "train.weight_decay=0", "train.max_steps=1"]
    ranks.train(path, out, *still, ranks=1)
    shutil.rmtree(base)
    with pytest.raises(SystemExit) as ended:
        export([str(path), f"out={out}"])
    assert ended.value.code == 0
    save_base("qwen 3", base, tokenizer_path)
    (folder,) = (out / "exports").iterdir()
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.float(), after[name]), name
