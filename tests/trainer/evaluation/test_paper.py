from __future__ import annotations

import pytest

from trainer.evaluation.paper import (
    BLEU,
    BLOOM,
    DIRECTIONS,
    LAST_UNI,
    REASONING,
    SETTINGS,
    UNI,
    bleu_of,
    mean,
    reasoning_mean,
)


@pytest.mark.parametrize(
    ("setting", "direction", "shots", "expected"),
    [
        ("no_parallel", "en-id", 0, 2.49),
        ("parallel_first", "zh-en", 5, 7.09),
        ("parallel_last_all", "en-zh", 0, 9.62),
        ("uni_en_zh", "id-en", 5, 2.51),
        ("parallel_last_all_filtered", "en-zh", 0, 24.20),
        ("parallel_last_all", "en-zh", 3, None),  # the paper has zero and five examples only
        ("parallel_last_all", "en-de", 0, None),
        ("no_setting_of_the_paper", "en-zh", 0, None),
    ],
)
def test_bleu_as_printed(setting: str, direction: str, shots: int, expected: float | None) -> None:
    assert bleu_of(BLEU.get(setting), direction, shots) == expected


@pytest.mark.parametrize("shots", [0, 5])
def test_last_uni_is_each_model_on_its_own_direction(shots: int) -> None:
    for setting, direction in UNI.items():
        assert bleu_of(BLEU[setting], direction, shots) == bleu_of(BLEU[LAST_UNI], direction, shots)


def test_the_mean_of_a_row() -> None:
    row = [bleu_of(BLEU["parallel_last_all"], direction, 0) for direction in DIRECTIONS]
    assert mean(row) == pytest.approx(22.905)
    assert mean([*row, None]) is None
    assert mean([]) is None


def test_settings_have_names() -> None:
    assert set(BLEU) == set(SETTINGS)


@pytest.mark.parametrize("table", REASONING, ids=lambda table: table.language)
def test_the_printed_means_are_the_means_of_the_printed_scores(table: object) -> None:
    for setting, row in table.scores.items():  # type: ignore[attr-defined]
        assert len(row) == len(table.tasks) + 1  # type: ignore[attr-defined]
        assert row[-1] == pytest.approx(sum(row[:-1]) / (len(row) - 1), abs=0.011), setting


def test_other_models_are_in_every_reasoning_table() -> None:
    assert [table.score(BLOOM, table.tasks[0].name) for table in REASONING] == [25.60, 59.40, 64.60]
    assert [reasoning_mean(BLOOM, table.language) for table in REASONING] == [49.92, 55.79, 61.19]


def test_reasoning_means() -> None:
    assert reasoning_mean("uni_en_zh", "English") == 49.80
    assert reasoning_mean("parallel_last_all", "Indonesian") == 56.06
    assert reasoning_mean("parallel_last_all_filtered", "English") is None
