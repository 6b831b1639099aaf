"""An entry for many pairs, from files to batches."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from dataengine.build.build import build
from dataengine.commands.build import describe_build
from dataengine.commands.plan import describe_plan, load_plan
from dataengine.config.load import load_config
from dataengine.errors import InputError
from dataengine.schedule.stages import by_entry
from dataengine.text.language_names import ENGLISH_NAMES
from tests.conftest import ConfigMaker, read_texts, small_experiment, write_jsonl

SIX = {"en-zh": 300, "en-id": 150, "de-en": 90, "fr-zh": 40, "id-zh": 20, "is-th": 1}  # pairs of sentences


@pytest.fixture
def six(tmp_path: Path, corpora: Path, make_config: ConfigMaker) -> Path:
    """An experiment over six pairs; the sentences are those of en-zh."""
    texts = [texts for _, texts in read_texts(corpora / "pairs.1.jsonl", "en", "zh")]
    for pair, count in SIX.items():
        (tmp_path / "pairs" / pair).mkdir(parents=True)
        codes = pair.split("-")
        write_jsonl(
            tmp_path / "pairs" / pair / "a.jsonl", [dict(zip(codes, both, strict=True)) for both in texts[:count]]
        )
    entry = {"pairs": f"{tmp_path}/pairs/{{src}}-{{tgt}}/*.jsonl", "directions": "all", "weights": "by_size^0.5"}
    streams = {"mono": {"documents": [str(corpora / "mono.*.jsonl")]}, "bitext": {**entry, "epochs": 9}}
    stages = [{"name": "mixed", "steps": 8, "mix": {"mono": 3, "bitext": 1}},
              {"name": "pairs", "steps": 4, "mix": {"bitext": "by_size"}}]  # fmt: skip
    make_config(streams=streams, stages=stages)
    return tmp_path / "experiment.yaml"


def test_six_pairs_are_built_planned_and_read(six: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(six)
    result = build(config)
    streams = {stream.stream.name: stream.stream for stream in result.streams}
    assert set(streams) == {"mono", *(f"bitext/{pair}" for pair in SIX)}
    assert streams["bitext/is-th"].samples == 0  # less than one sample: no stage draws from it
    assert "bitext/is-th" not in {stream.name for stream in result.manifest.streams}
    schedule = result.manifest.schedule
    assert [by_entry(stage.samples) for stage in schedule.stages] == [{"bitext": 16, "mono": 48}, {"bitext": 32}]
    for step in range(8):
        assert by_entry(schedule.counts(step)) == {"bitext": 2, "mono": 6}
    read = Counter(name for batch in result.manifest.batches(store=config.store) for name in batch.streams)
    assert read == {name: count for name, count in schedule.cursors(12).items() if count}
    assert re.search(r"\nbitext \(6 pairs\) +601 .* built\n", describe_build(result))
    text = describe_plan(load_plan(str(six)))
    assert "mono 75.00%" in text
    assert "bitext (5 pairs)" in text
    assert "bitext, samples drawn by pair: en-zh " in text
    assert "note: stage 'mixed' draws nothing from 1 of the 6 streams of 'bitext'" in text

    again = build(load_config(six, look=True))
    assert (again.new, again.manifest.plan_id) == (False, result.manifest.plan_id)
    stored = six.parent / "store/experiments/small/config.yaml"
    assert load_config(stored) == config
    more = six.parent / "pairs/de-zh/a.jsonl"
    more.parent.mkdir()
    more.write_bytes((six.parent / "pairs/de-en/a.jsonl").read_bytes().replace(b'"en"', b'"zh"'))
    assert load_config(six) == config  # training goes on with the plan that is built
    capsys.readouterr()
    grown = build(load_config(six, look=True))
    assert "note: 1 pairs are new since the last build: bitext/de-zh" in capsys.readouterr().err
    assert sum(stream.new for stream in grown.streams) == 1
    assert grown.manifest.plan_id != result.manifest.plan_id


def test_2507_pairs_are_planned_and_described_in_few_lines(tmp_path: Path, tokenizer_path: Path, corpora: Path) -> None:
    codes = [code for code in ENGLISH_NAMES if code.isalnum()][:72]
    pairs = [f"{a}-{b}" for a, b in combinations(codes, 2)][:2507]
    for pair in pairs:
        (tmp_path / "c" / pair).mkdir(parents=True)
        (tmp_path / "c" / pair / "a.tsv").touch()
    experiment = small_experiment(corpora, tokenizer_path, tmp_path)
    entry = {"pairs": f"{tmp_path}/c/{{src}}-{{tgt}}/*.tsv", "directions": "all", "assume": {"samples": 4000}}
    experiment["streams"] = {"mono": {"documents": ["a.jsonl"], "assume": {"samples": "100M"}}, "bitext": entry}
    experiment["stages"] = [
        {"name": "mixed", "steps": 10_000, "mix": {"mono": 3, "bitext": 1}},
        {"name": "ramp", "steps": 10_000, "mix": {"mono": 1}, "to_mix": {"bitext": 1}},
        {"name": "pairs", "drain": True, "mix": {"bitext": "by_size^0.3"}},
    ]
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    plan = load_plan(str(path))
    assert len(plan.manifest.streams) == 2508
    text = describe_plan(plan)
    assert len(text.splitlines()) < 25
    assert max(map(len, text.splitlines())) < 250
    assert "bitext (2,507 pairs) (assumed)" in text
    schedule = plan.manifest.schedule
    for step in (0, 9999):
        assert by_entry(schedule.counts(step)) == {"mono": 6, "bitext": 2}
    assert by_entry(schedule.cursors(schedule.steps))["bitext"] <= 2507 * 4000
    assert len(plan.manifest.order.sample_ids(0)) == 8
    (tmp_path / "c" / pairs[0] / "a.tsv").unlink()
    experiment["streams"]["bitext"].pop("assume")
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    with pytest.raises(InputError) as error:
        load_plan(str(path))
    assert len(str(error.value)) < 1000
