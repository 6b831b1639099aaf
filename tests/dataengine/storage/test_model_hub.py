"""Models on a hub of loopback: which commit is meant, and what is said when the hub fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dataengine.build.build import build
from dataengine.commands.plan import describe_plan, load_plan
from dataengine.config.load import load_config
from dataengine.errors import InputError, OutageError
from dataengine.pretrained import find_base
from dataengine.storage.model_hub import fetch, is_on_hub, look_up, place_of
from dataengine.text.tokenizers.load import load_tokenizer, tokenizer_file
from tests.conftest import small_experiment
from tests.model_hub import ModelHub, model_hub
from tests.tiny_base import save_base

__all__ = ["model_hub"]
NAME, FIRST, SECOND = "org/tiny", "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("bases") / "llama", tokenizer_path)


@pytest.fixture
def hub(model_hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModelHub:
    """The model at two commits; retries do not wait."""
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    model_hub.add(NAME, folder, FIRST)
    model_hub.add(NAME, folder, SECOND)
    return model_hub


def test_a_branch_is_resolved_to_the_commit_that_it_means_now(hub: ModelHub, folder: Path) -> None:
    assert look_up(place_of(NAME, None)).commit == look_up(place_of(NAME, "main")).commit == SECOND
    assert look_up(place_of(NAME, FIRST)).commit == FIRST
    hub.add(NAME, folder, "3" * 40)
    assert look_up(place_of(NAME, None)).commit == "3" * 40


def test_only_headers_are_read_before_the_weights_are_needed(hub: ModelHub, folder: Path) -> None:
    base, local = find_base(NAME, FIRST), find_base(str(folder), None)
    assert {name: one.shape for name, one in base.tensors.items()} == {n: o.shape for n, o in local.tensors.items()}
    assert base.parameters == local.parameters
    assert not list(Path(base.path("config.json")).parent.glob("*.safetensors"))
    weights = base.path("model.safetensors")
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_tokenizer_is_that_of_the_model(hub: ModelHub, folder: Path, corpora: Path, tmp_path: Path) -> None:
    """Left out, it is the pretrained model's, pinned by the commit and by its content."""
    values = small_experiment(corpora, Path("unused"), tmp_path)
    del values["tokenizer"], values["model"]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values | {"init": {"hf": NAME, "revision": FIRST}}))
    config = load_config(path)
    assert config.tokenizer == f"hf://{NAME}@{FIRST}"
    assert load_config(path, [f"init={{hf: {folder}}}"]).tokenizer == str(folder)
    manifest = build(config, workers=1).manifest
    ours = load_tokenizer(folder / "tokenizer.json")
    assert (manifest.tokenizer_sha256, manifest.eos_id) == (ours.sha256, ours.eos_id)
    by_folder = load_config(path, [f"init={{hf: {folder}}}"])
    assert build(by_folder, workers=1).manifest.content == manifest.content


def test_a_model_in_the_cache_needs_no_hub(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(place_of(NAME, FIRST, "config.json"))
    found = tokenizer_file(f"hf://{NAME}@{FIRST}")
    hub.always = 503
    assert tokenizer_file(f"hf://{NAME}@{FIRST}") == found
    assert look_up(place_of(NAME, FIRST)).commit == FIRST
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert look_up(place_of(NAME, FIRST)).commit == FIRST
    with pytest.raises(InputError, match=r"^hf://org/other@main: HF_HUB_OFFLINE .*: hf download org/other"):
        look_up(place_of("org/other", None))


def test_the_cache_does_not_decide_which_tokenizer_a_model_has(
    hub: ModelHub, folder: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    both = shutil.copytree(folder, tmp_path / "both")
    shutil.copy(tokenizer_path, both / "tokenizer.model")
    hub.add("org/both", both, FIRST)
    assert tokenizer_file("hf://org/both/tokenizer.model").name == "tokenizer.model"
    assert tokenizer_file("hf://org/both").read_bytes() == (folder / "tokenizer.json").read_bytes()
    hub.always = 503
    assert tokenizer_file(f"hf://org/both@{FIRST}/tokenizer.model").name == "tokenizer.model"


def test_a_busy_hub_is_asked_again(hub: ModelHub) -> None:
    hub.failing = [429, 500]
    assert look_up(place_of(NAME, FIRST)).commit == FIRST
    hub.failing = [503]
    assert fetch(place_of(NAME, FIRST, "config.json")).is_file()


@pytest.mark.parametrize("status", [429, 500])
def test_a_hub_that_stays_busy_is_an_outage(hub: ModelHub, status: int) -> None:
    hub.always = status
    with pytest.raises(OutageError, match=rf"hf://{NAME}@{FIRST}: the hub does .*{status}.*It was tried 4 times"):
        look_up(place_of(NAME, FIRST))
    with pytest.raises(OutageError, match=rf"hf://{NAME}@{FIRST}/config\.json: .*{status}"):
        fetch(place_of(NAME, FIRST, "config.json"))


def test_half_a_file_is_never_used(hub: ModelHub) -> None:
    hub.half = "model.safetensors"
    with pytest.raises(OutageError, match=r"/model\.safetensors: the hub does not give it.*It was tried 2 times"):
        fetch(place_of(NAME, FIRST, "model.safetensors"))
    hub.half = ""
    assert fetch(place_of(NAME, FIRST, "model.safetensors")).stat().st_size > 10_000


def refusal(**arguments: Any) -> str:
    with pytest.raises(InputError) as error:
        find_base(**arguments)
    assert not isinstance(error.value, OutageError)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_succeed_later_is_refused_at_once(hub: ModelHub, tmp_path: Path) -> None:
    gone = refusal(name=NAME, revision="9" * 40)
    assert f"/org/tiny has no branch, tag or commit '{'9' * 40}'. Correct the revision, or name a local copy." in gone
    assert "/org/absent, or it is private: then log in" in refusal(name="org/absent", revision=None)
    hub.gated = True
    assert "the model is gated. Accept its terms on http" in refusal(name=NAME, revision=FIRST)
    assert max(hub.asked.values()) == 1
    assert "is not a folder, and not a name on the hub" in refusal(name="a/b/c", revision=None)
    assert "is a folder, which has none" in refusal(name=str(tmp_path), revision=FIRST)
    assert "has no config.json" in refusal(name=str(tmp_path), revision=None)


def test_a_folder_comes_before_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_on_hub("org/model.v1")
    (tmp_path / "org" / "model.v1").mkdir(parents=True)
    assert not is_on_hub("org/model.v1")
    assert not is_on_hub("./org/other")


def test_a_plan_needs_no_hub(hub: ModelHub, corpora: Path, tmp_path: Path) -> None:
    hub.always = 500
    values = small_experiment(corpora, Path("unused"), tmp_path)
    del values["tokenizer"], values["model"]
    for stream in values["streams"].values():
        stream["assume"] = {"samples": 10_000}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values | {"init": {"hf": NAME, "revision": FIRST}}))
    printed = describe_plan(load_plan(str(path)), gpu="h100-80", gpus=1)
    assert "10,000" in printed
    assert f"memory and hours on GPUs are not known: hf://org/tiny@{FIRST}: the hub does not give it" in printed
    hub.always = 0
    assert "GB" in describe_plan(load_plan(str(path)), gpu="h100-80", gpus=1)


def test_help_does_not_import_the_library() -> None:
    code = "import sys, dataengine.cli, dataengine.config.load; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_index_must_name_files_beside_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(InputError, match="has no usable weight_map"):
        _ = find_base(str(tmp_path), None).weights
    index.write_text(json.dumps({"weight_map": {"a": "lost.safetensors"}}))
    with pytest.raises(InputError, match=r"has no lost\.safetensors, which model\.safetensors\.index\.json names"):
        _ = find_base(str(tmp_path), None).tensors
