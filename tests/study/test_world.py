from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.study import world
from dataengine.config.load import load_config
from tests.conftest import ROOT


def test_equal_seeds_give_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "DOCUMENTS", 300)
    monkeypatch.setattr(world, "PAIRS", 400)
    monkeypatch.setattr(world, "HELD_OUT", {"dev": 20, "test": 30})
    for name, seed in (("one", 17), ("two", 17), ("other", 18)):
        world.write(tmp_path / name, seed)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [
        "dev.jsonl", "en-id.train.jsonl", "en-zh.train.jsonl", "mono.jsonl", "test.jsonl", "tokenizer.model",
        "zh-id.train.jsonl",
    ]  # fmt: skip
    for name in files:
        content = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == content
        assert (tmp_path / "other" / name).read_bytes() != content
    rows = [json.loads(line) for line in (tmp_path / "one/dev.jsonl").open("rb")]
    assert len(rows) == 20
    assert all(set(row) == {"en", "zh", "id"} for row in rows)
    assert all(" " not in row["zh"] for row in rows)


def test_no_combination_of_dev_is_in_training() -> None:
    made = world.World(17)
    draw = random.Random(1)
    nouns, verbs = list(range(6)), list(range(5))
    for held_out in (True, False):
        meanings = [made.meaning(draw, nouns, verbs, held_out=held_out) for _ in range(200)]
        clauses = [clause for clause in meanings if clause is not None]
        assert len(clauses) > 100
        assert {clause.held_out for clause in clauses} == {held_out}


def test_a_sentence_in_three_languages() -> None:
    made = world.World(17)
    en, zh, id = made.words.en, made.words.zh, made.words.id
    meaning = world.Clause(world.Thing(3, 5, 1), 7, world.Thing(4, None, 2), 2, past=False)
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
    paths = sorted((ROOT / "yamls/study").glob("*.yaml"))  # open questions are in folders
    configs = [load_config(path) for path in paths]
    assert len(configs) == 10
    assert len({(config.model, config.train, config.batch_size, config.budget) for config in configs}) == 1


def test_every_word_is_one_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and prompts are not bytes."""
    from sentencepiece import SentencePieceProcessor

    monkeypatch.setattr(world, "DOCUMENTS", 10)
    monkeypatch.setattr(world, "PAIRS", 300)
    monkeypatch.setattr(world, "HELD_OUT", {"dev": 20, "test": 20})
    world.write(tmp_path, 17)
    tokenizer = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    words = world.World(17).words
    for word in words.en["noun"] + words.en["adverb"] + words.id["noun"]:
        assert tokenizer.encode(f"{word} {word}", out_type=str) == [f"▁{word}"] * 2
    for word in words.zh["verb"]:
        assert tokenizer.encode(word, out_type=str)[1:] == [word]
    prompt = "Translate this from English to Chinese:\nEnglish: \nChinese:"
    assert not any(piece.startswith("<0x") for piece in tokenizer.encode(prompt, out_type=str))
    assert tokenizer.vocab_size() < 1000
