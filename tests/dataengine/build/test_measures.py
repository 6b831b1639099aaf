"""What cleaning measures is kept apart from what decides: a changed rule or threshold measures no record again."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dataengine.build import measures
from dataengine.build.build import build
from dataengine.config.schema import Config
from dataengine.records.types import Records
from tests.conftest import write_jsonl
from tests.dataengine.build.test_clean import DEV, build_stream, copy_corpora, documents, pairs

PAIRS = {"pair_rules": {}, "min_language_score": 0.2, "dedup": ["pair", "en"], "near_dedup": 0.7}
DOCUMENTS = {"document_rules": {}, "min_language_score": 0.2, "dedup": ["text"], "near_dedup": 0.7}
CHANGED = [{"min_language_score": 0.9}, {"min_language_score": 0.01, "pair_rules": {"max_characters": 60}}]


def config_of(folder: Path, clean: dict[str, Any], store: str, **changes: Any) -> Config:
    """A stream of pairs; of documents if `clean` has rules for them."""
    made = documents(folder, clean, language="en") if "document_rules" in clean else pairs(folder, clean)
    return made.model_copy(update={"store": str(folder / store), "part_bytes": 50_000, **changes})


def files(config: Config, folder: str) -> dict[str, bytes]:
    root = Path(config.store)
    return {str(path.relative_to(root)): path.read_bytes() for path in (root / folder).rglob("*") if path.is_file()}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of records that each measure has computed."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> None:
        real = getattr(measures, name)

        def count(first: Any, *others: Any) -> Any:
            counts[name] += len((first if isinstance(first, Records) else first.batch).lines)
            return real(first, *others)

        monkeypatch.setattr(measures, name, count)

    for name in ("score_languages", "find_evaluation_texts", "make_keys"):
        counting(name)
    return counts


def test_a_changed_rule_or_threshold_measures_no_record_again(
    corpora: Path, tmp_path: Path, measured: Counter[str]
) -> None:
    copy_corpora(corpora, tmp_path, "pairs")
    clean = {**PAIRS, "decontaminate": [str(DEV)]}
    first = build_stream(config_of(tmp_path, clean, "both"))
    assert first.dropped.keys() >= {"duplicate pair", "duplicate en", "near duplicate"}
    assert measured == dict.fromkeys(measured, first.records)
    assert len(measured) == 3
    for number, changes in enumerate(CHANGED):
        measured.clear()
        after, alone = (config_of(tmp_path, {**clean, **changes}, store) for store in ("both", f"alone{number}"))
        built = build_stream(after)
        assert not measured
        assert built.dropped != first.dropped
        assert build_stream(alone).dropped == built.dropped
        assert measured.total() == 3 * first.records
        streams, everything = files(alone, "streams"), files(after, "streams")
        assert streams.items() <= everything.items()
        assert files(alone, "units").items() <= files(after, "units").items()


def test_documents_are_measured_once_too(corpora: Path, tmp_path: Path, measured: Counter[str]) -> None:
    copy_corpora(corpora, tmp_path, "mono")
    first = build_stream(config_of(tmp_path, DOCUMENTS, "both"))
    assert measured == {"score_languages": first.records, "make_keys": first.records}
    measured.clear()
    changed = {**DOCUMENTS, "document_rules": {"min_characters": 300}, "min_language_score": 0.5}
    after, alone = (config_of(tmp_path, changed, store) for store in ("both", "alone"))
    built = build_stream(after)
    assert not measured
    assert built.dropped["length"] > 0
    assert build_stream(alone).dropped == built.dropped
    assert files(alone, "streams").items() <= files(after, "streams").items()


def test_another_way_to_compare_scores_no_language_again(tmp_path: Path, measured: Counter[str]) -> None:
    texts = [f"This is a plain English sentence about the number {n % 15}." for n in range(20)]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    build(config_of(tmp_path, {**DOCUMENTS, "near_dedup": None}, "store"))
    assert measured == {"score_languages": 20, "make_keys": 20}
    built = build_stream(config_of(tmp_path, {**DOCUMENTS, "near_dedup": None, "dedup": []}, "store"))
    assert built.dropped == {}
    assert measured == {"score_languages": 20, "make_keys": 20}


def test_a_measure_that_was_removed_is_made_again(corpora: Path, tmp_path: Path, measured: Counter[str]) -> None:
    copy_corpora(corpora, tmp_path, "pairs")
    config = config_of(tmp_path, PAIRS, "store")
    build(config)
    whole = files(config, "streams"), files(config, "units")
    for name in ("values.npy", "run.00000"):
        gone = next(Path(config.store, "units").rglob(name)).parent
        for folder in (gone, Path(config.store, "streams")):
            shutil.rmtree(folder)
        build(config)
        assert (files(config, "streams"), files(config, "units")) == whole
    assert measured["score_languages"] > build_stream(config).records


def test_a_record_takes_few_bytes(tmp_path: Path) -> None:
    """4 bytes a text for its language, 24 a key; near duplicates aside, no more than before for a kept record."""
    count = 3000
    write_jsonl(tmp_path / "a.jsonl", [{"en": f"the number {n}", "zh": f"这个数是{n}"} for n in range(count)])
    config = config_of(tmp_path, {"min_language_score": 0.1, "dedup": ["pair"]}, "store", part_bytes=10**9)
    build(config)
    sizes = {Path(name).name: len(content) for name, content in files(config, "units").items()}
    assert sizes["values.npy"] == 8 * count + 136
    assert sizes["run.00000"] == 24 * count + 48
