from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dataengine.config import load_config
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def world() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_world", ROOT / "benchmarks/study/world.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_equal_seeds_give_equal_files(world: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("DOCUMENTS", 300), ("PAIRS", 400), ("HELD_OUT", 20), ("VOCABULARY", 900)):
        monkeypatch.setattr(world, name, size)
    for name, seed in (("one", 17), ("two", 17), ("other", 18)):
        world.write(tmp_path / name, seed)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [
        "dev.jsonl", "en-id.train.jsonl", "en-zh.train.jsonl", "mono.jsonl", "test.jsonl", "tokenizer.model",
    ]  # fmt: skip
    for name in files:
        content = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == content
        assert (tmp_path / "other" / name).read_bytes() != content
    rows = [json.loads(line) for line in (tmp_path / "one/dev.jsonl").open("rb")]
    assert len(rows) == 20
    assert all(set(row) == {"en", "zh", "id"} for row in rows)
    assert all(" " not in row["zh"] for row in rows)


def test_no_combination_of_dev_stands_in_training(world: ModuleType) -> None:
    made = world.World(17)
    draw = random.Random(1)
    nouns, verbs = list(range(6)), list(range(5))
    for held_out in (True, False):
        meanings = [made.meaning(draw, nouns, verbs, held_out=held_out) for _ in range(200)]
        clauses = [clause for meaning in meanings if meaning is not None for clause in meaning]
        assert len(clauses) > 100
        assert {clause.held_out for clause in clauses} == {held_out}


def test_a_sentence_in_three_languages(world: ModuleType) -> None:
    made = world.World(17)
    en, zh, id = made.words.en, made.words.zh, made.words.id
    meaning = (world.Clause(world.Thing(3, 5, 1), 7, world.Thing(4, None, 2), 2, past=False),)
    assert made.say["en"](meaning) == (
        f"{en['word'][0]} {en['adjective'][5]} {en['noun'][3]} {en['verb'][7]}t {en['noun'][4]}s {en['adverb'][2]}."
    )
    assert made.say["zh"](meaning) == (
        f"{zh['adverb'][2]}{zh['adjective'][5]}{zh['word'][2]}{zh['noun'][3]}{zh['noun'][4]}{zh['word'][1]}"
        f"{zh['verb'][7]}。"
    )
    assert made.say["id"](meaning) == (
        f"me{id['verb'][7]} {id['noun'][3]} {id['adjective'][5]} {id['noun'][4]}-{id['noun'][4]} {id['adverb'][2]}."
    )


def test_all_settings_have_the_same_model_training_and_budget() -> None:
    paths = sorted((ROOT / "yamls/study").glob("*.yaml"))
    configs = [load_config(path) for path in paths]
    assert len(configs) == 10
    assert len({(config.model, config.train, config.batch_size, config.budget) for config in configs}) == 1
