from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from dataengine.build import near_duplicates as near_duplicates_module
from dataengine.build.executors import LocalEngine
from dataengine.build.prepare import Preparation, prepare
from dataengine.build.rounds import run_rounds
from dataengine.build.stream import Cleaned, clean_stream
from dataengine.cleaning import near_duplicates
from dataengine.cleaning.minhash import shingle_texts
from dataengine.cleaning.near_duplicates import jaccard
from dataengine.commands.estimate import estimate
from dataengine.storage.open import open_store
from tests.conftest import ConfigMaker, write_jsonl


@pytest.fixture
def prepared(make_config: ConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A stream of records that is to be cleaned."""

    def make(records: list[dict[str, str]], clean: dict[str, Any], files: int = 2) -> Preparation:
        folder = tmp_path_factory.mktemp("records")
        for number in range(files):
            here = records[number * len(records) // files : (number + 1) * len(records) // files]
            write_jsonl(folder / f"{number}.jsonl", here)
        kind: dict[str, Any] = {"documents": [str(folder / "*.jsonl")]}
        if "zh" in records[0]:
            kind = {"pairs": [str(folder / "*.jsonl")], "directions": ["en-zh"]}
        config = make_config(
            streams={"s": {**kind, "clean": clean}},
            stages=[{"name": "a", "steps": 1, "mix": {"s": 1}}],
            store=str(folder / "store"),
        )
        return prepare(config, open_store(config.store))

    return make


def clean(found: Preparation) -> Cleaned:
    rounds = clean_stream(found.streams["s"], found.config, found.store)
    return run_rounds({"s": rounds}, LocalEngine(1), found.store)["s"]


def twins(cleaned: Cleaned) -> list[tuple[int, int]]:
    """Removed and kept records, numbered through."""
    firsts = np.cumsum([0, *map(len, cleaned.codes)])
    return [
        (int(firsts[record >> 32]) + (record & 0xFFFFFFFF), int(firsts[kept >> 32]) + (kept & 0xFFFFFFFF))
        for record, kept, _ in cleaned.twins.tolist()
    ]


def words(chance: random.Random, count: int) -> list[str]:
    return [f"w{chance.randrange(10**6)}" for _ in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 45, 48, 66])
def test_no_text_is_dropped_for_a_dropped_one_in_any_grouping(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Windows over one text in a random order, with crowds and groups of a few: representatives are twins of others."""
    for name, value in (("CROWD", 2 + seed % 3), ("LARGE", 8)):
        monkeypatch.setattr(near_duplicates, name, value)
    monkeypatch.setattr(near_duplicates_module, "_LEAST_GROUP", 1)
    monkeypatch.setattr(near_duplicates_module, "_MOST_GROUP", 2)
    chance = random.Random(seed)
    text = words(chance, 60 * 3 + 60)
    texts = [" ".join(text[3 * k : 3 * k + 60]) for k in range(60)]
    chance.shuffle(texts)
    found = twins(clean(prepared([{"text": text} for text in texts], {"near_dedup": 0.6})))
    shingles = shingle_texts(texts).distinct()
    sets = np.split(shingles.hashes, shingles.ends[:-1])
    gone = {record for record, _ in found}
    assert found
    for record, kept in found:
        assert kept not in gone
        assert jaccard(sets[record], sets[kept]) >= 0.6


def test_records_that_exact_duplicates_took_away_make_no_crowd(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a crowd are dropped for their Chinese side: they must not be what the others are compared with."""
    monkeypatch.setattr(near_duplicates, "CROWD", 10)
    english = " ".join(words(random.Random(1), 80))
    records = [{"en": f"Another text, number {k}.", "zh": "。" * k + "字"} for k in range(3)]
    records += [{"en": english, "zh": "。" * k + "字"} for k in range(33)]
    found = prepared(records, {"dedup": ["zh"], "near_dedup": 0.8})
    counts = estimate(found.streams["s"]).dropped
    cleaned = clean(found)
    kept = np.flatnonzero(np.concatenate(cleaned.codes) == 0).tolist()
    assert kept == [0, 1, 2, 6]
    assert twins(cleaned) == [(k, 6) for k in range(7, 36)]
    assert counts == {"duplicate zh": 3, "near duplicate": 29}


def test_twins_are_found_in_a_component_of_many_groups(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forms with five fields, each with one of a few values: every text has something in common with hundreds."""
    monkeypatch.setattr(near_duplicates, "LARGE", 100)
    monkeypatch.setattr(near_duplicates_module, "_LEAST_GROUP", 100)
    monkeypatch.setattr(near_duplicates_module, "_MOST_GROUP", 100)
    chance = random.Random(2)
    form = [words(chance, 16) for _ in range(5)]
    values = [[words(chance, 3) for _ in range(40)] for _ in range(5)]

    def fill(choice: list[int]) -> str:
        fields = zip(form, values, choice, strict=True)
        return " ".join(" ".join([*label, *known[k]]) for label, known, k in fields)

    choices = [[chance.randrange(40) for _ in range(5)] for _ in range(1000)]
    others = [[*choice[:4], (choice[4] + 1) % 40] for choice in choices[:200]]
    records = [{"text": fill(choice)} for choice in (*choices, *others)]
    found = twins(clean(prepared(records, {"near_dedup": 0.8})))
    gone = {record for record, _ in found}
    missed = [k for k in range(200) if k not in gone and 1000 + k not in gone]
    assert len(missed) <= 0.03 * 200
    assert capsys.readouterr().err == ""


def test_texts_of_a_component_that_is_cut_are_counted(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows that are twins of their neighbours make one component, even if only some are compared."""
    monkeypatch.setattr(near_duplicates_module, "_LEAST_GROUP", 50)
    monkeypatch.setattr(near_duplicates_module, "_MOST_GROUP", 50)
    text = words(random.Random(3), 6 * 400 + 300)
    records = [{"text": " ".join(text[6 * k : 6 * k + 300])} for k in range(400)]
    found = twins(clean(prepared(records, {"near_dedup": 0.8}, 1)))
    assert "stream 's': 400 texts are similar to many others and were compared with only some" in (
        capsys.readouterr().err
    )
    assert 400 - len(found) == sum(-(-50 // 6) for _ in range(8))
