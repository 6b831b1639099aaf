from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dataengine.errors import InputError
from tests.object_store import ObjectStore, object_store
from tests.trainer.fake_checkpoints import save
from tests.trainer.fake_runs import STEPS, make_runs
from trainer.checkpoints.marker import read_checkpoint
from trainer.reporting.read import read_runs, read_usable_runs
from trainer.reporting.runs import TrainedRun
from trainer.run.log_csv import dump_rows, read_log

__all__ = ["object_store"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_runs(tmp_path_factory.mktemp("runs"), ("no_parallel", "parallel_first"))


@pytest.fixture
def folder(made: list[Path], tmp_path: Path) -> Path:
    """A copy of the run parallel_first, to damage."""
    shutil.copytree(made[1], tmp_path / "run")
    return tmp_path / "run"


def read(folder: Path) -> TrainedRun:
    return read_runs([str(folder)], "unused")[0]


def test_a_run_is_read_as_it_was_written(made: list[Path]) -> None:
    run = read(made[1])
    assert (run.label, run.setting, run.steps, run.tokens) == (*["parallel_first"] * 2, 200, 200 * 16 * 128)
    assert tuple(one.step for one in run.evaluations) == STEPS
    chosen = json.loads((made[1] / "chosen.json").read_text())["step"]
    assert run.judged is not None
    assert (run.judged.step, run.is_chosen, run.judged_on) == (chosen, True, "test")
    results = json.loads((run.judged.path).read_text())
    for entry in results["translation"]:
        found = run.result(entry["direction"], entry["shots"], entry["set"])
        assert found is not None
        assert (found.bleu.score, found.bleu.low) == (entry["bleu"]["score"], entry["bleu"]["low"])
        assert (found.chrf.score, found.bleu.signature) == (entry["chrf"]["score"], entry["bleu"]["signature"])
        rows = [json.loads(line) for line in found.path.read_text().splitlines()]
        assert [one.hypothesis for one in found.rows] == [row["hypothesis"] for row in rows]
        assert len(rows) == found.sentences


def test_columns_leave_out_steps_without_a_value(made: list[Path]) -> None:
    run = read(made[1])
    steps, losses = run.column("loss/zh-both")
    assert len(steps) == len(losses) == 80
    assert (steps[0], steps[-1]) == (1, 80)  # steps trained
    assert run.final_losses["zh-both"] == losses[-1]
    assert [len(values) for values in run.column("mfu")] == [0, 0]
    assert [len(values) for values in run.column("no such column")] == [0, 0]


def test_kinds_of_streams_and_names_of_languages(made: list[Path]) -> None:
    run = read(made[1])
    assert {run.kind("mono"), run.kind("zh-both")} == {"documents", "pairs"}
    assert (run.kind("zh-only"), run.kind("zh-nonadjacent")) == ("sides", "exchanged")
    assert (run.language("zh"), run.language("xx")) == ("Chinese", "xx")


def test_the_build_of_a_run(made: list[Path]) -> None:
    run = read(made[0])
    assert run.built_note == ""
    assert [one.name for one in run.built] == list(run.streams)
    for one in run.built:
        assert one.records == one.kept + one.unusable + sum(one.dropped.values())
        width = run.manifest.seq_len + 1  # a label more a sample
        assert one.tokens == one.samples * width + one.remainder_tokens


def test_a_build_that_is_gone_or_another_is_said(folder: Path) -> None:
    text = (folder / "config.yaml").read_text()
    place = next(line.removeprefix("store: ") for line in text.splitlines() if line.startswith("store: "))
    (folder / "config.yaml").write_text(text.replace(f"store: {place}", f"store: {folder}/none"))
    assert "does not exist" in read(folder).built_note
    (folder / "config.yaml").unlink()
    assert read(folder).built_note == "config.yaml does not name a store"
    report = folder / "store" / "experiments" / "mini" / "parallel_first" / "build_report.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"plan_id": "another"}))
    (folder / "config.yaml").write_text(f"store: {folder}/store\n")
    assert "belongs to another build" in read(folder).built_note


def test_without_a_choice_the_last_evaluation_is_judged(folder: Path) -> None:
    (folder / "chosen.json").unlink()
    run = read(folder)
    assert run.judged is not None
    assert (run.judged.step, run.is_chosen, run.judged_on) == (200, False, "dev")


def test_a_run_without_evaluations_is_its_training(folder: Path) -> None:
    shutil.rmtree(folder / "evaluations")
    run = read(folder)
    assert (run.evaluations, run.judged, run.judged_on, run.result("en-zh", 0)) == ((), None, "", None)
    assert run.final_losses


def test_labels_of_runs_are_unique(folder: Path, made: list[Path]) -> None:
    assert [run.label for run in read_runs([*map(str, made), f"{made[0]}/"], "unused")] == [
        "no_parallel",
        "parallel_first",
    ]
    assert [run.label for run in read_runs([str(made[1]), str(folder)], "unused")] == [str(made[1]), str(folder)]


def test_a_folder_of_runs_means_its_runs(made: list[Path]) -> None:
    above = {str(path.parent) for path in made}
    found = read_runs(sorted(above), "unused")
    assert {run.url for run in found} >= {str(path) for path in made}


@pytest.mark.parametrize("content", ["{", "[]", '{"step": 1}', '{"version": 1, "step": 1}'])
def test_damaged_results_are_named(folder: Path, content: str) -> None:
    path = folder / "evaluations" / "step-00000040" / "results.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"^{path} is damaged \(.*\)\. Remove it, and evaluate again\.$"):
        read(folder)


def test_results_of_another_version_are_named(folder: Path) -> None:
    path = folder / "evaluations" / "step-00000040" / "results.json"
    path.write_text('{"version": 7}')
    with pytest.raises(InputError, match="has version 7, this program reads 1"):
        read(folder)


def test_damaged_translations_are_named(folder: Path) -> None:
    run = read(folder)
    found = run.result("en-zh", 0)
    assert found is not None
    found.path.write_text('{"source": "a"}\n')
    again = read(folder)
    (problem,) = again.problems
    assert problem.startswith(f"{found.path} is damaged (reference: Field required). Remove it")
    assert [one.rows == () for one in again.results] == [one.path == found.path for one in again.results]


def test_translations_that_were_cut_short_are_named(folder: Path) -> None:
    found = read(folder).results[0]
    lines = found.path.read_bytes().splitlines(keepends=True)
    found.path.write_bytes(b"".join(lines[:-1]))
    (problem,) = read(folder).problems
    assert problem.startswith(f"{found.path} is damaged ({len(lines) - 1} sentences instead of {len(lines)})")


def test_a_run_that_has_just_begun_has_no_steps(folder: Path) -> None:
    header = (folder / "log.csv").read_text().splitlines()[0]
    (folder / "log.csv").write_text(header + "\n")
    run = read(folder)
    assert (run.steps, run.tokens, run.final_losses) == (0, 0, {})


def test_a_column_that_is_not_a_number_is_named(folder: Path) -> None:
    text = (folder / "log.csv").read_text()
    (folder / "log.csv").write_text(text.replace(",0.002,", ",fast,", 1))
    with pytest.raises(InputError, match=r"log\.csv is damaged, column learning_rate: could not convert"):
        read(folder)


def test_a_place_without_a_log_is_named(folder: Path) -> None:
    (folder / "log.csv").unlink()
    with pytest.raises(InputError, match=r"^no log\.csv in "):
        read(folder)


@pytest.mark.parametrize("now", ["another", "the same", "none", "unfinished"])
def test_results_of_a_checkpoint_that_was_trained_again_are_left_out(folder: Path, now: str) -> None:
    path = folder / "evaluations/step-00000080/results.json"
    checkpoint = read_checkpoint(save(folder, 80))
    identity = checkpoint.identity if now == "the same" else "of the first training"
    path.write_text(json.dumps({**json.loads(path.read_text()), "checkpoint": identity}))
    if now == "none":
        shutil.rmtree(checkpoint.folder)
    if now == "unfinished":
        (checkpoint.folder / "COMPLETE.json").unlink()
    run = read(folder)
    problem = (
        f"{path} belongs to a checkpoint that has been trained again since. Evaluate the new one: "
        "trainer/evaluate.py CONFIG --step 80"
    )
    assert run.problems == ((problem,) if now == "another" else ())
    assert [one.step for one in run.evaluations] == [step for step in STEPS if step != 80 or now != "another"]


def test_runs_that_cannot_be_read_are_left_out_and_reported(folder: Path, made: list[Path]) -> None:
    path = folder / "evaluations/step-00000040/results.json"
    path.write_text("{")
    runs, left_out = read_usable_runs([str(folder), *map(str, made)], "unused")
    assert [run.setting for run in runs] == ["no_parallel", "parallel_first"]
    assert [words.startswith(f"{path} is damaged") for words in left_out] == [True]
    path.unlink()
    path.mkdir()  # no file
    assert read_usable_runs([str(made[0]), str(folder)], "unused")[1] == [f"cannot read {path}: Is a directory."]
    with pytest.raises(InputError, match=r"^no log\.csv in"):
        read_usable_runs([str(folder.parent / "nothing")], "unused")


def test_a_run_in_a_bucket_comes_with_its_evaluations(
    object_store: ObjectStore, made: list[Path], tmp_path: Path
) -> None:
    for path in made[1].rglob("*"):
        if path.is_file():
            key = f"run/{path.relative_to(made[1]).as_posix()}"
            object_store.client.put_object(Bucket=object_store.bucket, Key=key, Body=path.read_bytes())
    there, here = read_runs([f"{object_store.url}/run"], str(tmp_path))[0], read(made[1])
    assert there.chosen == here.chosen
    assert [one.translation for one in there.evaluations] == [one.translation for one in here.evaluations]
    assert there.judged is not None
    assert here.judged is not None
    for one, other in zip(there.judged.sets, here.judged.sets, strict=True):
        assert one.rows == other.rows != ()


def test_skipped_steps_are_reported_and_in_no_curve(folder: Path) -> None:
    before = read(folder)
    assert not before.skipped
    path, last = folder / "log.csv", before.steps - 1
    rows = read_log(path)
    (name, *_) = [one for one in before.streams if rows[-1][f"loss/{one}"]]
    usual = [float(row[f"loss/{name}"]) for row in rows if row[f"loss/{name}"]][-2]
    columns = [*list(rows[0])[:-1], "skipped", "digest"]
    rows[-1] |= {"skipped": "the loss is nan", f"loss/{name}": "nan", "grad_norm": "inf"}
    path.write_bytes(dump_rows(rows, columns))
    after = read(folder)
    assert dict(after.skipped) == {last: "the loss is nan"}
    assert after.steps == before.steps
    assert after.final_losses[name] == usual
    assert after.column("grad_norm")[0].tolist() == before.column("grad_norm")[0].tolist()[:-1]
    assert after.column("learning_rate")[0].tolist() == before.column("learning_rate")[0].tolist()


def test_steps_that_a_log_has_lost_are_reported(folder: Path) -> None:
    assert read(folder).lost_steps == ""
    lines = (folder / "log.csv").read_text().splitlines(keepends=True)
    (folder / "log.csv").write_text("".join(lines[:3] + lines[6:10] + lines[11:]))
    assert read(folder).lost_steps == "2 to 4, 9"
