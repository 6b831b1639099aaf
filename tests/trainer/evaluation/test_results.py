"""results.json: what several evaluations of one checkpoint add, and whose results they are."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import InputError
from tests.object_store import ObjectStore, object_store
from tests.trainer.fake_checkpoints import save
from trainer.checkpoints.marker import Checkpoint, read_checkpoint
from trainer.evaluation.results import (
    add_results,
    is_of_run,
    new_results,
    read_all_results,
    read_log_rows,
    read_results,
)
from trainer.run.folder import Run, open_run

__all__ = ["object_store"]

FORK = multiprocessing.get_context("fork")
ROW = {"loss": "2.5", "grad_norm": "0.5", "digest": "d" * 64}


def entry(name: str, **changes: Any) -> dict[str, Any]:
    made_of = {"fingerprint": "f", "texts_sha256": "t", "sha256": "s"}
    return {"translations": f"{name}.jsonl", **made_of, "comet": {}, **changes}


def new(checkpoint: Checkpoint, rows: dict[int, dict[str, str]] | None = None) -> dict[str, Any]:
    return new_results("small", checkpoint, rows or {}, 1000)


def names(results: Any) -> list[str]:
    return [one["translations"] for one in results["translation"]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return read_checkpoint(save(tmp_path / "run", 10))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(str(tmp_path / "run"), str(tmp_path / "cache"))


def add_many(run: Run, checkpoint: Checkpoint, writer: int) -> None:
    for number in range(20):
        name = f"{writer}.{number}"
        add_results(run, new(checkpoint), translation=[entry(name)], reasoning={name: {"acc": 1}}, files={name: b"x"})


def write_at_once(run: Run, checkpoint: Checkpoint) -> None:
    writers = [FORK.Process(target=add_many, args=(run, checkpoint, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0] * 4


def test_processes_that_write_at_once_lose_nothing_of_each_other(run: Run, checkpoint: Checkpoint) -> None:
    write_at_once(run, checkpoint)
    found = read_results(run, 10)
    assert found is not None
    expected = sorted(f"{writer}.{number}" for writer in range(4) for number in range(20))
    assert names(found) == sorted(f"{name}.jsonl" for name in expected)
    assert list(found["reasoning"]) == expected
    assert all((run.folder / "evaluations/step-00000010" / name).read_bytes() == b"x" for name in expected)


def test_the_same_in_a_bucket(object_store: ObjectStore, tmp_path: Path, checkpoint: Checkpoint) -> None:
    run = open_run(f"{object_store.url}/run", str(tmp_path / "cache"))
    write_at_once(run, checkpoint)
    elsewhere = open_run(run.url, str(tmp_path / "another machine"))
    (found,) = read_all_results(elsewhere)
    assert len(names(found)) == 80


def test_what_another_machine_wrote_meanwhile_is_kept(
    object_store: ObjectStore, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    here, there = (open_run(f"{object_store.url}/run", str(tmp_path / name)) for name in ("here", "there"))
    add_results(here, new(checkpoint), translation=[entry("a")])
    add_results(there, new(checkpoint), translation=[entry("b")])
    assert names(add_results(here, new(checkpoint), translation=[entry("c")])) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_results_of_another_checkpoint_of_the_step_or_another_version_are_left_behind(
    run: Run, checkpoint: Checkpoint
) -> None:
    add_results(run, new(checkpoint), translation=[entry("a")], reasoning={"task": {}}, contamination={"x": 1})
    anew = replace(checkpoint, hashes=dict.fromkeys(checkpoint.files, "0" * 16))
    found = add_results(run, new(anew), translation=[entry("b")])
    assert (names(found), found["reasoning"], found["contamination"]) == (["b.jsonl"], {}, None)
    path = run.folder / "evaluations/step-00000010/results.json"
    path.write_text(json.dumps({**found, "version": 1}))
    assert read_results(run, 10) is None
    assert read_all_results(run) == []
    assert names(add_results(run, new(anew), translation=[entry("c")])) == ["c.jsonl"]


def test_scores_of_other_comet_models_stay_while_the_translations_do(run: Run, checkpoint: Checkpoint) -> None:
    add_results(run, new(checkpoint), translation=[entry("a", comet={"one": 1})])
    both = add_results(run, new(checkpoint), translation=[entry("a", comet={"two": 2})])
    assert both["translation"][0]["comet"] == {"one": 1, "two": 2}
    for key in ("fingerprint", "texts_sha256", "sha256"):
        add_results(run, new(checkpoint), translation=[entry("a", comet={"one": 1})])
        found = add_results(run, new(checkpoint), translation=[entry("a", comet={"two": 2}, **{key: "other"})])
        assert found["translation"][0]["comet"] == {"two": 2}


def test_a_step_that_was_trained_anew_inherits_nothing(checkpoint: Checkpoint) -> None:
    found = new(checkpoint, {10: ROW})
    anew = replace(checkpoint, hashes=dict.fromkeys(checkpoint.files, "0" * 16))
    assert is_of_run(found, {10: checkpoint}, {10: {**ROW, "loss": "3"}}, "plan")  # it is there, and the same
    assert not is_of_run(found, {10: anew}, {10: ROW}, "plan")
    # Once it is gone, by the log.
    assert is_of_run(found, {}, {10: ROW}, "a longer plan")
    for key in ROW:
        assert not is_of_run(found, {}, {10: {**ROW, key: "another"}}, "plan")
    assert not is_of_run(found, {}, {9: ROW}, "plan")  # a run that is not there yet
    # Without a log, or where damage took that row, by the plan.
    assert is_of_run(found, {}, {9: ROW, 11: ROW}, "plan")
    assert is_of_run(found, {}, {}, "plan")
    assert not is_of_run(new(checkpoint), {}, {10: ROW}, "another plan")


def test_the_log_names_the_last_step_of_a_checkpoint(run: Run) -> None:
    assert read_log_rows(run) == {}
    rows = [f"{step},all,{2 - step / 10},0.5,{'a' * 64}" for step in range(3)]
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "log.csv").write_text("\n".join(["step,stage,loss,grad_norm,digest", *rows, "3,al"]))
    found = read_log_rows(run)
    assert sorted(found) == [1, 2, 3]
    assert found[3] == {"loss": "1.8", "grad_norm": "0.5", "digest": "a" * 64}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"translation": [], "version": 2, "step": 11}'])
def test_damage_is_named(run: Run, content: str) -> None:
    path = run.folder / "evaluations/step-00000010/results.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(InputError, match=r"results.json is damaged .* evaluate again"):
        read_all_results(run)
