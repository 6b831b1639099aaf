from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataengine.errors import InputError
from dataengine.schedule import Schedule, Stage
from trainer.checkpoints import (
    MARKER,
    checkpoint_folder,
    checkpoint_steps,
    complete_checkpoints,
    mark_complete,
    newest_checkpoint,
    read_checkpoint,
    remove_old,
)

SCHEDULE = Schedule(1, 1, (Stage("long", 12, {"x": 12}), Stage("short", 5, {"x": 5})))


def test_intervals_count_from_each_stages_start() -> None:
    assert checkpoint_steps(SCHEDULE, {"short": 2}, 5, 17) == [5, 10, 12, 14, 16, 17]
    assert checkpoint_steps(SCHEDULE, {}, 100, 17) == [12, 17]


def test_pieces_of_a_stage_count_as_one() -> None:
    pieces = Schedule(1, 1, tuple(Stage("ramp", 2, {"x": 2}) for _ in range(4)))
    assert checkpoint_steps(pieces, {"ramp": 3}, 100, 8) == [3, 6, 8]


def test_the_last_step_is_always_saved() -> None:
    assert checkpoint_steps(SCHEDULE, {"short": 2}, 5, 11) == [5, 10, 11]
    assert checkpoint_steps(SCHEDULE, {}, 5, 1) == [1]


def make(out: Path, step: int) -> Path:
    folder = checkpoint_folder(out, step)
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(b"x" * step)
    mark_complete(folder, step, "plan", 2, {"hidden_size": 8})
    return folder


def test_a_marker_reads_back(tmp_path: Path) -> None:
    folder = make(tmp_path, 7)
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.step, checkpoint.plan_id, checkpoint.world_size) == (7, "plan", 2)
    assert (checkpoint.model, checkpoint.files) == ({"hidden_size": 8}, {"__0_0.distcp": 7})


def test_the_newest_whole_one_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, 5)
    make(tmp_path, 10)
    (make(tmp_path, 100) / "__0_0.distcp").write_bytes(b"")
    (make(tmp_path, 200) / MARKER).write_text("{")
    unfinished = checkpoint_folder(tmp_path, 300)
    unfinished.mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 10
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0].endswith("step-00000100: __0_0.distcp has 0 bytes, not 100: the checkpoint is damaged")
    assert "step-00000200: COMPLETE.json is damaged: " in warnings[1]
    assert warnings[2] == f"passing over {unfinished}: the checkpoint was not finished (no COMPLETE.json)"


def test_a_damaged_only_checkpoint_is_an_error(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path, 3).mkdir(parents=True)
    assert newest_checkpoint(tmp_path) is None  # it was never finished, so nothing is lost at step 0
    marker = make(tmp_path, 5) / MARKER
    marker.write_text(json.dumps({"step": 5}))
    with pytest.raises(InputError, match=r"no checkpoint under .* is usable, though 1 were finished once"):
        newest_checkpoint(tmp_path)


def test_retention(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make(tmp_path, step)
    remove_old(tmp_path, None)
    assert len(complete_checkpoints(tmp_path)) == 3
    remove_old(tmp_path, 2)
    assert [checkpoint.step for checkpoint in complete_checkpoints(tmp_path)] == [2, 3]
    remove_old(tmp_path, 5)
    assert [checkpoint.step for checkpoint in complete_checkpoints(tmp_path)] == [2, 3]
