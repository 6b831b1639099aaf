from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from dataengine.cli import main
from dataengine.commands.config import _rows, as_yaml, describe_key
from dataengine.config.describe import walk
from dataengine.config.load import Loaded, load_config, load_with_places
from dataengine.errors import InputError
from docs.generate.config import json_schema
from tests.conftest import ROOT
from tests.dataengine.config.files import BASE, write

MINI = "yamls/mini/uni_en_zh.yaml"
FILES = sorted([*(ROOT / "yamls").glob("*.yaml"), *(ROOT / "yamls" / "mini").glob("*zh*.yaml")])


def printed(loaded: Loaded) -> str:
    return as_yaml(_rows(loaded, loaded.config, ()))


def places(text: str) -> dict[str, str]:
    """The place of each line that has one, by the content of the line; equal lines must have equal places."""
    rows = [re.fullmatch(r"[ -]*(.*?) +# (.*)", line) for line in text.splitlines()]
    return {row[1]: row[2] for row in rows if row}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write(tmp_path, "base/base.yaml", BASE + "train: {learning_rate: 1e-3, warmup_steps: 5}\nevaluate: {beams: 2}\n")
    return write(tmp_path, "child/a.yaml", "base: ../base/base.yaml\nname: a\ntrain:\n  warmup_steps: 7\n")


def test_the_output_is_a_file_of_the_same_experiment(tmp_path: Path) -> None:
    assert len(FILES) > 10
    fits = Draft7Validator(json_schema())
    for path in FILES:
        loaded = load_with_places(path)
        again = write(tmp_path, "again.yaml", printed(loaded))
        assert load_config(again) == loaded.config
        fits.validate(yaml.safe_load(again.read_text()))


def test_each_key_names_the_line_of_the_file_that_states_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    old_names = {key.name: key.old_name for key in walk() if key.old_name}
    for path in FILES:
        text = printed(load_with_places(path.relative_to(ROOT)))
        rows = re.findall(r"^[ -]*([^ :]+): .*# (yamls/\S+), line (\d+)$", text, flags=re.MULTILINE)
        assert len(rows) > 5
        for name, file, number in rows:
            line = (ROOT / file).read_text().splitlines()[int(number) - 1]
            assert f"{name}:" in line or f"{old_names.get(name)}:" in line


def test_file_override_and_default_are_distinguished(small: Path) -> None:
    overrides = ["train.seed=3", "streams.mono.passes=2", "languages.de=Deutsch", "stages.0.steps=9"]
    found = places(printed(load_with_places(small, overrides)))
    base = small.parent.parent / "base" / "base.yaml"
    assert found["name: a"] == f"{small}, line 2"
    assert found["learning_rate: 0.001"] == f"{base}, line 8"
    assert found["warmup_steps: 7"] == f"{small}, line 4"
    assert found["num_beams: 2"] == f"{base}, line 9"
    assert found["documents: [a.jsonl]"] == f"{base}, line 5"
    assert found["seed: 3"] == "override train.seed=3"
    assert found["epochs: 2"] == "override streams.mono.passes=2"
    assert found["de: Deutsch"] == "override languages.de=Deutsch"
    assert found["steps: 9"] == "override stages.0.steps=9"
    assert found["mono: 1.0"] == f"{base}, line 7"
    for row in ("out: runs/a", "seed: 17", "en: English", "targets: adjacent", "wandb: null"):
        assert found.get(row, "default") == "default"


def test_an_override_of_a_section_sets_what_it_states_and_leaves_the_rest_to_the_defaults(small: Path) -> None:
    found = places(printed(load_with_places(small, ["train={seed: 3}", "streams.2={documents: [b], epochs: 2}"])))
    assert found["seed: 3"] == "override train={seed: 3}"
    assert found["learning_rate: 0.0004"] == "default"
    assert found["documents: [b]"] == found["epochs: 2"] == "override streams.2={documents: [b], epochs: 2}"


def test_a_key_set_to_its_default_names_its_line(small: Path) -> None:
    small.write_text(small.read_text() + "lanes: 1\n")
    assert places(printed(load_with_places(small)))["lanes: 1"] == f"{small}, line 5"


@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_any_text_is_printed_on_one_line_that_commands_no_terminal(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    values = yaml.safe_load(BASE) | {"tokenizer": text, "languages": {"xx": text}}
    override = f"evaluate.task_folder={yaml.safe_dump(text, width=1000)}"
    loaded = load_with_places(write(folder, "a.yaml", yaml.safe_dump(values)), [override])
    shown = printed(loaded)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", shown)
    assert len(shown.splitlines()) == len(printed(load_with_places(write(folder, "b.yaml", BASE))).splitlines()) + 1
    assert load_config(write(folder, "again.yaml", shown)) == loaded.config


def test_every_key_of_the_reference_is_described() -> None:
    loaded = load_with_places(ROOT / MINI)
    for key in walk():
        shown = describe_key(loaded, key.path)
        assert shown.startswith(f"key       {key.path}\n")
        assert key.description in shown or key.path.startswith("streams.STREAM")


def test_a_key_with_all_that_is_known(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main(["config", MINI, "--key", "streams.mono.passes", "streams.mono.passes=4"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == (
        "key       streams.mono.epochs\n"
        "old name  passes\n"
        "type      whole number from 1 (such as 2_000 or 2M)\n"
        "default   1\n"
        "decides   plan (which sample is trained on at which step)\n"
        "\n"
        "How many times the schedule may read the whole stream. Each epoch has an order of its own.\n"
        "\n"
        "epochs: 4  # override streams.mono.passes=4\n"
    )


@pytest.mark.parametrize(
    ("path", "shows"),
    [
        ("tokenizer", "default   none, required\n"),
        ("train", "  warmup_steps: 20 "),
        ("train.wandb", "\nwandb: null  # default"),
        ("train.wandb.mode", "`offline` writes files"),
        ("streams.mono", "entry of  streams, a mapping {name: section}\n"),
        ("streams.mono.clean", "clean:\n  min_language_score: null "),
        ("streams.zh-nonadjacent.targets", "\ntargets: shuffled  # "),
        ("streams.zh-nonadjacent.adjacent", "\ntargets: shuffled  # "),
        ("stages.1", "\n1:\n  name: parallel "),
        ("stages.1.mix.en-zh", "\nen-zh: 1.0  # "),
        ("evaluate.shots.0", "entry of  evaluate.num_fewshot, a list of whole numbers from 0\n"),
        ("parent.step", "decides   plan (which sample is trained on at which step)\n"),
    ],
)
def test_keys_sections_and_entries(path: str, shows: str) -> None:
    assert shows in describe_key(load_with_places(ROOT / MINI), path) + "\n"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "train.lerning_rate",
            "unknown key 'train.lerning_rate' (did you mean 'learning_rate'?). Known keys here: l",
        ),
        ("learning_rate", "unknown key 'learning_rate' (did you mean 'train.learning_rate'?). Known keys here: name, "),
        ("streams.mon", "unknown key 'streams.mon' (did you mean 'mono'?). Known keys here: mono, en-zh, zh-en, "),
        ("streams.mono.directions", "unknown key 'streams.mono.directions' (did you mean "),
        ("stages.2.name", "unknown key 'stages.2'. Known keys here: 0, 1"),
        ("seed.x", "unknown key 'seed.x'. 'seed' has no keys"),
        ("", "unknown key ''. Known keys here: name, out, "),
    ],
)
def test_unknown_keys(path: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--key: {message}")):
        describe_key(load_with_places(ROOT / MINI), path)


def test_a_mistake_in_the_file_is_named_as_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "a.yaml", BASE + "seqlen: 3\n")
    with pytest.raises(SystemExit) as stop:
        main(["config", str(path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {path}, line 8: unknown key 'seqlen' (did you mean 'seq_len'?)")
