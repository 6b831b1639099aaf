"""The settings of a run's steps, over changes and damage."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.training import TrainConfig
from dataengine.errors import InputError
from dataengine.schedule.rates import Settings, StageRate
from trainer.run.settings import (
    SETTINGS,
    History,
    differences,
    dump_history,
    parse_history,
    put_aside_damaged,
    read_history,
    settings_at,
    with_settings,
)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 8), st.sampled_from([0.1, 0.2, 0.3]))))
def test_every_step_has_the_settings_that_it_was_last_trained_with(sessions: list[tuple[int, int, float]]) -> None:
    history: History = []
    trained: list[float] = []  # the rate of each step
    for back, steps, rate in sessions:
        begin = max(0, len(trained) - back)  # at a checkpoint
        history = with_settings(history, begin, Settings(TrainConfig(learning_rate=rate)))
        trained[begin:] = [rate] * steps
        history = parse_history(dump_history(history), SETTINGS)
        found = [settings_at(history, step) for step in range(len(trained))]
        assert [one and one.train.learning_rate for one in found] == trained
        assert all(any(differences(a, b)) for (_, a), (_, b) in pairwise(history))


def test_settings_that_change_no_number_are_left_out() -> None:
    history = with_settings([(0, Settings(TrainConfig()))], 10, Settings(TrainConfig(loader_workers=7, max_steps=20)))
    assert history == [(0, Settings(TrainConfig()))]
    assert b"loader_workers" not in dump_history(history)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"from_step": 0, "train"', "line 1: Invalid JSON: EOF while parsing"),
        (b'{"from_step": 0}', "line 1: train: Field required"),
        (b"[]", "line 1: Input should be an object"),
        (
            b'{"from_step": 0, "train": {"learning_rate": -1}}',
            "line 1: train.learning_rate: Input should be",
        ),
        (b'{"from_step": 3, "train": {}}\n{"from_step": 3, "train": {}}', "line 2: from_step 3 is not after"),
        (b'{"from_step": 0, "train": {"decay_steps": "end"}}', "line 1: Value error, end is missing"),
        (
            b'{"from_step": 0, "train": {"decay_steps": "end"}, "end": "soon"}',
            "line 1: end: Input should be a valid int",
        ),
        (b'{"from_step": 0, "train": {}, "restarts": 3}', "line 1: restarts: Input should be a valid array"),
        (
            b'{"from_step": 0, "train": {}, "restarts": [-1]}',
            "line 1: restarts.0: Input should be greater",
        ),
        (b'{"from_step": 0, "train": {}, "restarts": [3, 3]}', "line 1: Value error, restarts [3, 3] do not ascend"),
    ],
)
def test_a_damaged_file_is_put_aside(
    tmp_path: Path, content: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert put_aside_damaged(tmp_path) == []
    (tmp_path / "config.yaml").write_text(
        "name: a\ntokenizer: t.model\nstreams: {mono: {documents: [a]}}\n"
        "stages: [{name: a, steps: 1, mix: {mono: 1}}]\ntrain: {clip_norm: 3}\n"
    )
    (tmp_path / SETTINGS).write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged, line \d: .* without it config\.yaml counts"):
        read_history(tmp_path)
    assert put_aside_damaged(tmp_path) == [(0, Settings(TrainConfig(clip_norm=3)))]
    assert words in caplog.text
    assert (tmp_path / "settings.damaged.jsonl").read_bytes() == content


def test_a_plan_that_grows_changes_a_rate_that_goes_by_its_end() -> None:
    train = TrainConfig(decay_steps="end")
    short, long = Settings(train, (), 60), Settings(train, (), 90)
    assert differences(short, long) == [("train.decay_steps", "end (step 60)", "end (step 90)")]
    assert differences(Settings(TrainConfig(decay_steps=60)), short) == [("train.decay_steps", 60, "end (step 60)")]
    history = with_settings([(0, short)], 50, long)
    assert parse_history(dump_history(history), SETTINGS) == history == [(0, short), (50, long)]
    assert with_settings([(0, short)], 50, short) == [(0, short)]


def test_stages_with_a_schedule_are_recorded_and_older_files_have_none() -> None:
    linear = StageRate(300, 100, "linear", 0.0)
    decays = Settings(TrainConfig(), (), None, (linear, StageRate(400, 9, "constant", 4e-5, start=1e-4)))
    history = with_settings([(0, Settings(TrainConfig()))], 50, decays)
    assert parse_history(dump_history(history), SETTINGS) == history
    assert b"stages" not in dump_history(history[:1])
    old = b'{"from_step": 0, "train": {"learning_rate": 0.1, "min_learning_rate": 0.1}, "restarts": []}\n'
    assert parse_history(old, SETTINGS)[0][1].rate(2500) == 0.1
    assert differences(Settings(TrainConfig()), Settings(TrainConfig(schedule="wsd"), (), None, (linear,))) == [
        ("train.schedule", "cosine", "wsd"),
        ("schedule of stages", "that of train", "linear to 0 in steps 300 to 400"),
    ]
