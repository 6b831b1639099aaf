from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataengine.build import units
from dataengine.build.build import build
from dataengine.cleaning import decontaminate
from dataengine.commands.contamination import Contamination, Example, check_contamination, run_contamination
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.records.evaluation_sets import EvaluationSet
from tests.conftest import ConfigMaker

LONG = "the quick brown fox jumps over the lazy dog while seven wizards silently watch the moon"
SHORT = "press the large red button"
CLEAN = "a sentence that nobody has ever trained a model on anywhere"


def make_set(*sources: str) -> EvaluationSet:
    return EvaluationSet("en-zh", list(sources), [f"参考{k}" for k in range(len(sources))], ("dev.jsonl",))


@pytest.fixture
def planted(make_config: ConfigMaker, tmp_path: Path) -> Any:
    """Streams with evaluation sentences among their records: inside a document, as a pair, and where rules drop it."""

    def make(**clean: Any) -> Config:
        documents = [f"document number {k}" for k in range(50)]
        documents[30] = f"Before it. {LONG.capitalize()}! After it."
        pairs = [{"en": f"pair number {k} in a file", "zh": f"第{k}个句子"} for k in range(60)]
        pairs[7] = {"en": "Press the LARGE red button.", "zh": "按下红色的大按钮"}
        pairs[9] = {"en": CLEAN, "zh": CLEAN}  # the rule for identical sides drops it
        write(tmp_path / "mono.jsonl", [{"text": text} for text in documents])
        write(tmp_path / "pairs.jsonl", pairs)
        return make_config(
            streams={
                "mono": {"documents": [str(tmp_path / "mono.jsonl")]},
                "en-zh": {
                    "pairs": [str(tmp_path / "pairs.jsonl")],
                    "directions": ["en-zh"],
                    "clean": {"pair_rules": {}, **clean},
                },
            },
            stages=[{"name": "all", "steps": 2, "mix": {"mono": 1, "en-zh": 1}}],
            part_bytes=600,  # lines are counted over parts
        )

    return make


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_planted_sentences_are_found_where_they_stand(planted: Any) -> None:
    config = planted()
    build(config, workers=1)
    sets = {"dev en-zh": make_set(SHORT, CLEAN, LONG), "test en-zh": make_set("nothing of this is there at all")}
    found = check_contamination(config, sets)
    assert found.describe() == {
        "dev en-zh": {"sentences": 3, "contaminated": 2, "by_stream": {"mono": 1, "en-zh": 1}},
        "test en-zh": {"sentences": 1, "contaminated": 0, "by_stream": {}},
    }
    by_stream = {one.stream: one for one in found.examples}
    assert (by_stream["mono"].line, by_stream["mono"].sentence) == (31, LONG)
    assert (by_stream["en-zh"].line, by_stream["en-zh"].sentence) == (8, SHORT)
    assert by_stream["en-zh"].file.endswith("pairs.jsonl")
    printed = found.table()
    assert "mono.jsonl, line 31 (stream mono)" in printed


def test_a_second_look_reads_nothing(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = planted()
    build(config, workers=1)
    sets = {"dev en-zh": make_set(SHORT)}
    first = check_contamination(config, sets, workers=2)

    def fails(*arguments: object) -> None:
        raise AssertionError("a part was read")

    monkeypatch.setattr(units.Reading, "batches", fails)
    assert check_contamination(config, sets) == first
    with pytest.raises(AssertionError, match=r"a part was read"):
        check_contamination(config, {"dev en-zh": make_set(LONG)})


def test_another_way_of_comparing_searches_again(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = planted()
    build(config, workers=1)
    sets = {"dev en-zh": make_set(SHORT)}
    first = check_contamination(config, sets)
    monkeypatch.setattr(decontaminate, "_SCHEMA", decontaminate._SCHEMA + 1)
    read = []
    batches = units.Reading.batches
    monkeypatch.setattr(units.Reading, "batches", lambda self, size: read.append(1) or batches(self, size))
    assert check_contamination(config, sets) == first
    assert read


def test_what_is_printed_moves_no_cursor() -> None:
    example = Example("mono", "a\udcff\x1b[2J.txt", 3, "\x1b[31mred", "dev en-zh", "\u202edesrever")
    printed = Contamination({"dev en-zh": 1}, {"dev en-zh": {"mono": {0}}}, [example]).table()
    assert set(printed) - set(map(chr, range(32, 127))) == {"\n"}
    assert r"a\udcff\x1b[2J.txt, line 3" in printed


def test_a_large_stream_is_searched_only_by_the_command(planted: Any) -> None:
    config = planted()
    build(config, workers=1)
    sets = {"dev en-zh": make_set(SHORT)}
    with pytest.raises(InputError, match=r"to search, which is slow. Search it once: dataengine contamination"):
        check_contamination(config, sets, most_bytes=1000)
    found = check_contamination(config, sets)
    assert check_contamination(config, sets, most_bytes=1000) == found  # it is known by now


def test_a_stream_that_the_sets_were_removed_from_is_known_to_be_clean(
    planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "dev.jsonl", [{"en": SHORT, "zh": "按下红色的大按钮"}])
    config = planted(decontaminate=[str(tmp_path / "dev.jsonl")])
    build(config, workers=1)
    read = []
    batches = units.Reading.batches
    monkeypatch.setattr(
        units.Reading, "batches", lambda self, size: read.append(self._form.keys) or batches(self, size)
    )
    assert check_contamination(config, {"dev en-zh": make_set(SHORT)}).describe()["dev en-zh"]["contaminated"] == 0
    assert set(read) == {("text",)}  # the other stream was read


def test_the_command_looks_for_dev_and_test(planted: Any, tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.jsonl", [{"en": SHORT, "zh": "按"}])
    config = planted()
    with pytest.raises(InputError, match=r"is not built with these settings. Build it"):
        run_contamination(changed(config, dev=dev))
    build(config, workers=1)
    assert "dev en-zh          1            1  en-zh 1" in run_contamination(changed(config, dev=dev))
    with pytest.raises(InputError, match=r"name no set"):
        run_contamination(changed(config))


def changed(config: Config, **sets: Path) -> Config:
    evaluate = config.evaluate.model_copy(update={"dev": {}, **{k: {"en-zh": str(v)} for k, v in sets.items()}})
    return config.model_copy(update={"evaluate": evaluate})
