"""results.json: what several evaluations of one checkpoint add, and whose results they are."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import InputError
from dataengine.json_files import decode
from tests.object_store import ObjectStore, object_store
from tests.trainer.fake_checkpoints import save
from trainer.checkpoints.marker import Checkpoint, read_checkpoint
from trainer.evaluation.choice import PassedOver, choose, read_choice
from trainer.evaluation.results import (
    CometScore,
    Languages,
    Results,
    Score,
    SetContamination,
    SetScores,
    TaskScores,
    Translation,
    add_results,
    encode_results,
    encode_translations,
    is_of_run,
    new_results,
    read_all_results,
    read_any_results,
    read_log_rows,
    read_results,
    read_translations,
)
from trainer.run.folder import Run, open_run

__all__ = ["object_store"]

FORK = multiprocessing.get_context("fork")
ROW = {"loss": "2.5", "grad_norm": "0.5", "digest": "d" * 64}


TASK = TaskScores(shots=0, samples=5, acc=1.0)
COMET = CometScore(0.5, None, None, "m", True)
OTHER = CometScore(0.7, 0.6, 0.8, "n", False)
HELD = SetContamination(3, 1, {"both": 1})


def entry(name: str, **changes: Any) -> SetScores:
    values: dict[str, Any] = {
        "set": "dev", "direction": "en-zh", "shots": 0, "sentences": 1, "files": ("a",), "texts_sha256": "t",
        "decoding": {"method": "greedy", "beams": 1, "length_penalty": 1.0, "max_source_tokens": None, "bos": False},
        "prompt": "{source}", "fingerprint": "f", "bleu": Score(1.0, "tok:zh", None, None),
        "chrf": Score(2.0, "nc:6", 1.5, 2.5), "languages": Languages(1, 1, 0, 0, 0.0, None), "comet": {},
        "counts": {"empty": 0}, "translations": f"{name}.jsonl", "sha256": "s",
    }  # fmt: skip
    return SetScores(**{**values, **changes})


def new(checkpoint: Checkpoint, rows: dict[int, dict[str, str]] | None = None) -> Results:
    return new_results("small", checkpoint, rows or {}, 1000)


def names(results: Results) -> list[str]:
    return [one.translations for one in results.translation]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return read_checkpoint(save(tmp_path / "run", 10))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(str(tmp_path / "run"), str(tmp_path / "cache"))


def add_many(run: Run, checkpoint: Checkpoint, writer: int) -> None:
    for number in range(20):
        name = f"{writer}.{number}"
        add_results(run, new(checkpoint), translation=[entry(name)], reasoning={name: TASK}, files={name: b"x"})


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
    assert list(found.reasoning) == expected
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
    add_results(run, new(checkpoint), translation=[entry("a")], reasoning={"task": TASK}, contamination={"x": HELD})
    anew = replace(checkpoint, hashes=dict.fromkeys(checkpoint.files, "0" * 16))
    found = add_results(run, new(anew), translation=[entry("b")])
    assert (names(found), found.reasoning, found.contamination) == (["b.jsonl"], {}, None)
    path = run.folder / "evaluations/step-00000010/results.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "version": 1}))
    assert read_results(run, 10) is None
    assert read_all_results(run) == []
    assert names(add_results(run, new(anew), translation=[entry("c")])) == ["c.jsonl"]


def test_scores_of_other_comet_models_stay_while_the_translations_do(run: Run, checkpoint: Checkpoint) -> None:
    add_results(run, new(checkpoint), translation=[entry("a", comet={"one": COMET})])
    both = add_results(run, new(checkpoint), translation=[entry("a", comet={"two": OTHER})])
    assert both.translation[0].comet == {"one": COMET, "two": OTHER}
    for key in ("fingerprint", "texts_sha256", "sha256"):
        add_results(run, new(checkpoint), translation=[entry("a", comet={"one": COMET})])
        found = add_results(run, new(checkpoint), translation=[entry("a", comet={"two": OTHER}, **{key: "other"})])
        assert found.translation[0].comet == {"two": OTHER}


def test_a_step_that_was_trained_again_inherits_nothing(checkpoint: Checkpoint) -> None:
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


def test_what_is_written_is_read_and_absent_parts_are_left_out() -> None:
    tasks = {"a": replace(TASK, made_of={"lm_eval": "1"}), "b": replace(TASK, acc_stderr=0.1, acc_norm=0.5)}
    sets = (entry("a", comet={"m": COMET}), entry("b", languages=None, languages_reason="unknown"))
    ours = Results(run="r", step=1, plan_id="p", checkpoint="c", tokens=9, translation=sets, reasoning=tasks)
    content = encode_results(ours)
    assert decode(Results, content) == ours
    found = json.loads(content)
    assert ["languages_reason" in one for one in found["translation"]] == [False, True]
    assert list(found["reasoning"]["a"]) == ["shots", "samples", "bos", "version", "acc", "acc_stderr", "made_of"]
    assert found["reasoning"]["b"]["acc_norm_stderr"] is None
    assert list(found)[:4] == ["version", "run", "step", "plan_id"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shots": "0"}, r"translation\.0\.shots: Input should be a valid integer"),
        ({"bleu": {"score": 1}}, r"translation\.0\.bleu\.signature: Field required"),
        ({"decoding": {"method": "greedy"}}, r"translation\.0: .*decoding has no number of beams"),
    ],
)
def test_damage_of_an_entry_is_named_by_its_key(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "results.json"
    whole = Results(step=1, plan_id="p", tokens=9, translation=(entry("a"),))
    path.write_bytes(encode_results(whole))
    assert read_any_results(path) == whole
    found = json.loads(path.read_bytes())
    found["translation"][0] |= changes
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match=rf"^{path} is damaged \({words}\)\. Remove it, and evaluate again\.$"):
        read_any_results(path)
    path.write_text('{"version": 3}')
    with pytest.raises(InputError, match=r"has version 3, this program reads 1 and 2\. Evaluate again\."):
        read_any_results(path)


def test_translations_are_lines_of_their_four_keys(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(encode_translations([Translation("a", "ä", "", True)]))
    assert (tmp_path / "a.jsonl").read_text("utf-8") == (
        '{"source":"a","reference":"ä","hypothesis":"","unfinished":true}\n'
    )
    assert read_translations(tmp_path / "a.jsonl", 1) == [Translation("a", "ä", "", True)]
    with pytest.raises(ValueError, match="1 sentences instead of 2"):
        read_translations(tmp_path / "a.jsonl", 2)


def test_a_choice_is_read_as_it_was_written(tmp_path: Path) -> None:
    results = [
        Results(step=step, plan_id="p", checkpoint=f"c{step}", tokens=9, translation=(entry("a"),)) for step in (8, 4)
    ]
    choice = replace(choose(results, ["en-zh"], 0, 1), passed_over=(PassedOver(6, "gone"),))
    path = tmp_path / "chosen.json"
    path.write_bytes(choice.encode())
    assert read_choice(path) == choice
    found = json.loads(path.read_bytes())
    assert list(found) == ["version", "step", "checkpoint", "by", "candidates", "passed_over"]
    assert (found["step"], found["checkpoint"], found["candidates"][1]) == (
        4,
        "c4",
        {"step": 8, "mean": 1.0, "scores": {"en-zh": 1.0}},
    )
    path.write_text('{"version": 1, "step": "4"}')
    with pytest.raises(InputError, match=rf"^{path} is damaged \(step: Input should be a valid integer\)\. Remove it"):
        read_choice(path)


def test_a_line_for_people_has_what_is_known() -> None:
    counts = {"empty": 0, "longer_than_context": 1200}
    scored = entry("a", comet={"Unbabel/m": COMET}, counts=counts, sentences=2000)
    assert scored.line("step-8") == (
        "step-8 dev en-zh 0-shot: BLEU 1.00, chrF 2.00 [1.50, 2.50], m 0.5000, off-target 0.0%, "
        "longer than context 1,200, of 2,000 sentences"
    )
    assert "off-target" not in entry("a", languages=None).line("step-8")
