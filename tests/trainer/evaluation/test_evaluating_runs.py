"""Runs whose checkpoints come, go and break while they are evaluated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dataengine.errors import InputError
from dataengine.schedule.manifest import read_manifest
from tests.conftest import ROOT
from tests.object_store import ObjectStore, object_store
from tests.trainer.evaluation.test_evaluator import Experiment, copy_run, evaluate, experiment, results, save
from trainer.checkpoints.find import find_checkpoint
from trainer.checkpoints.marker import Checkpoint, checkpoint_folder, read_checkpoint
from trainer.checkpoints.retention import remove_copies, remove_in_bucket, remove_old
from trainer.evaluation import candidates as candidates_module
from trainer.evaluation import weights as weights_module
from trainer.evaluation.checkpoint import CheckpointEvaluation
from trainer.evaluation.decode import Translator
from trainer.evaluation.evaluator import Evaluation
from trainer.run.folder import open_run
from trainer.run.ranks import Ranks, Rendezvous

__all__ = ["experiment", "object_store"]

NO_TEST = "evaluate.test={}"
SHORT = "evaluate.max_new_tokens=6"


def chosen(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "chosen.json").read_text())
    return found


def candidates(out: Path) -> dict[int, float]:
    return {one["step"]: one["mean"] for one in chosen(out)["candidates"]}


def name_origin(out: Path, step: int, identity: str) -> Path:
    """Write the note of trainer/export.py on an export's origin; return the export."""
    folder = out / f"exports/step-{step:08d}"
    (folder / "export.json").write_text(json.dumps({"checkpoint": identity, "step": step}))
    return folder


def on_first_batch(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something once, while a checkpoint is being evaluated."""
    complete, done = Translator.complete, []

    def then(translator: Translator, prompts: Sequence[Sequence[int]], target_language: str) -> Any:
        if not done:
            done.append(action())
        return complete(translator, prompts, target_language)

    monkeypatch.setattr(Translator, "complete", then)


# Checkpoints that go.


def test_a_choice_is_among_all_results_and_a_removed_checkpoint_is_judged_by_its_export(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every look finds one checkpoint more, the one before is removed, and the program starts again each time."""
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    identity = read_checkpoint(checkpoint_folder(out, 8)).identity
    common = (experiment.config, f"out={out}", "--all", SHORT, "train.keep_checkpoints=1")
    assert evaluate(*common, NO_TEST) == 0
    assert chosen(out)["checkpoint"] == identity
    shutil.rmtree(checkpoint_folder(out, 8))
    shutil.copytree(checkpoint_folder(experiment.out, 16), checkpoint_folder(out, 16))

    assert evaluate(*common, NO_TEST) == 0
    assert chosen(out)["step"] == 8
    assert sorted(candidates(out)) == [8, 16]
    assert candidates(out)[8] > candidates(out)[16]

    # Its export counts only if it is of this very checkpoint, or does not say.
    export = name_origin(out, 8, "of another training")
    capsys.readouterr()
    assert evaluate(*common) == 2
    words = capsys.readouterr().err
    assert f"step 8 was chosen but cannot be evaluated on test: {out} no longer has a checkpoint of 8 steps," in words
    assert f"export {export} is from another checkpoint" in words
    assert chosen(out)["step"] == 8
    name_origin(out, 8, identity)
    assert evaluate(*common) == 0
    by_export = [entry for entry in results(out, 8)["translation"] if entry["set"] == "test"]
    assert len(by_export) == 1

    straight = copy_run(experiment, tmp_path / "straight", steps=[8])
    assert evaluate(experiment.config, f"out={straight}", SHORT, "--sets", "test") == 0
    assert by_export == [entry for entry in results(straight, 8)["translation"] if entry["set"] == "test"]

    # Settings that it was not evaluated with leave it out.
    assert evaluate(experiment.config, f"out={out}", "--all", "evaluate.max_new_tokens=5", NO_TEST) == 0
    assert sorted(candidates(out)) == [16]


def test_a_checkpoint_under_evaluation_is_not_removed_by_the_training(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8, 16])
    run = open_run(str(out), "unused")
    on_first_batch(monkeypatch, lambda: remove_old(run, 1))
    assert evaluate(experiment.config, f"out={out}", "--all", SHORT, "train.keep_checkpoints=1") == 0
    assert chosen(out)["step"] == 8
    assert (out / "exports/step-00000008").is_dir()  # before it may go
    remove_old(run, 1)
    assert not checkpoint_folder(out, 8).exists()


def test_a_checkpoint_that_is_gone_before_it_is_read_is_passed_over(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a training on another machine, which knows nothing of leases here."""
    out = copy_run(experiment, tmp_path / "run", steps=[8, 16])
    on_first_batch(monkeypatch, lambda: shutil.rmtree(checkpoint_folder(out, 16)))
    assert evaluate(experiment.config, f"out={out}", "--all", SHORT, NO_TEST) == 0
    (passed,) = chosen(out)["passed_over"]
    assert (passed["step"], "was removed" in passed["reason"]) == (16, True)
    assert sorted(candidates(out)) == [8]
    assert not checkpoint_folder(out, 16).exists()  # nor an empty folder in its place
    assert "step 16 was passed over" in caplog.text


def test_following_evaluates_a_step_again_that_was_trained_again(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    config, manifest = experiment.load(f"out={out}"), read_manifest(out / "manifest.json", "")
    first = read_checkpoint(checkpoint_folder(out, 8)).identity

    def retrain(seconds: float) -> None:
        shutil.rmtree(out / "checkpoints")
        with Rendezvous(Ranks()) as group:
            evaluation = Evaluation(config, group)
            weights = CheckpointEvaluation.of(
                evaluation, find_checkpoint(open_run(str(experiment.out), ""), 8)
            ).model.state_dict()
        save(out, 8, {name: torch.zeros_like(tensor) for name, tensor in weights.items()}, config, manifest)
        shutil.copytree(checkpoint_folder(experiment.out, 16), checkpoint_folder(out, 16))

    monkeypatch.setattr(candidates_module, "time", SimpleNamespace(sleep=retrain))  # other threads sleep, too
    assert evaluate(experiment.config, f"out={out}", "--follow", SHORT, NO_TEST) == 0
    assert results(out, 8)["checkpoint"] == read_checkpoint(checkpoint_folder(out, 8)).identity != first
    assert candidates(out)[8] == 0


def test_the_same_of_a_run_in_a_bucket(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore
) -> None:
    config = experiment.load(f"out={object_store.url}/run", f"cache={tmp_path}")
    run = open_run(config.out, config.cache)
    assert run.store is not None
    copy = copy_run(experiment, tmp_path / "copy", steps=[8, 16])
    for path in sorted(copy.rglob("*")):  # as trainer/checkpoints/uploads.py would, but for the order
        if path.is_file():
            run.store.write_from(path.relative_to(copy).as_posix(), path)
    common = (experiment.config, f"out={config.out}", f"cache={tmp_path}", "--all", SHORT, "train.keep_checkpoints=1")
    store = run.store
    on_first_batch(monkeypatch, lambda: remove_in_bucket(store, 16))
    assert evaluate(*common, NO_TEST) == 0
    assert json.loads(store.read("chosen.json"))["passed_over"] == [
        {"step": 16, "reason": "step 16 in the bucket (checkpoints/step-00000016): .metadata is not in the bucket"}
    ]
    remove_in_bucket(store, 8)
    remove_copies(run, 99)
    name_origin(run.folder, 8, chosen(run.folder)["checkpoint"])
    assert evaluate(*common) == 0
    assert {entry["set"] for entry in results(run.folder, 8)["translation"]} == {"dev", "test"}
    assert json.loads(store.read("evaluations/step-00000008/results.json")) == results(run.folder, 8)


def test_a_checkpoint_that_leaves_its_bucket_while_it_is_read_is_exported_and_judged(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore
) -> None:
    """A training on another machine keeps fewer checkpoints than an evaluation takes to read one."""
    config = experiment.load(f"out={object_store.url}/run", f"cache={tmp_path}")
    run = open_run(config.out, config.cache)
    assert run.store is not None
    store, copy = run.store, copy_run(experiment, tmp_path / "copy", steps=[8, 16])
    for path in sorted(copy.rglob("*")):
        if path.is_file():
            store.write_from(path.relative_to(copy).as_posix(), path)
    on_first_batch(monkeypatch, lambda: remove_in_bucket(store, 8))
    common = (experiment.config, f"out={config.out}", f"cache={tmp_path}", "--all", SHORT, "train.keep_checkpoints=1")
    assert evaluate(*common) == 0
    assert chosen(run.folder)["step"] == 8
    assert {entry["set"] for entry in results(run.folder, 8)["translation"]} == {"dev", "test"}


def test_a_checkpoint_that_loses_a_file_while_it_is_loaded_is_passed_over(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a training on another machine, whose removal has not come to all files yet."""
    out = copy_run(experiment, tmp_path / "run", steps=[8, 16])
    load = weights_module.load_weights

    def then(model: Any, checkpoint: Checkpoint) -> None:
        if checkpoint.step == 16:
            for path in checkpoint.folder.glob("*.distcp"):
                path.unlink()
        load(model, checkpoint)

    monkeypatch.setattr(weights_module, "load_weights", then)
    assert evaluate(experiment.config, f"out={out}", "--all", SHORT, NO_TEST) == 0
    (passed,) = chosen(out)["passed_over"]
    assert (passed["step"], "was removed while it was read" in passed["reason"]) == (16, True)


# Damage.


def flip_bit(folder: Path) -> None:
    (path,) = folder.glob("*.distcp")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_flipped_bit_costs_one_checkpoint(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[4, 8, 16])
    flip_bit(checkpoint_folder(out, 8))
    assert evaluate(experiment.config, f"out={out}", "--all", SHORT) == 0
    assert sorted(candidates(out)) == [4, 16]
    (passed,) = chosen(out)["passed_over"]
    assert passed["step"] == 8
    assert "its content is damaged" in passed["reason"]
    assert caplog.text.rindex("step 8 was passed over") > caplog.text.index("passing over step 8")
    for step in (4, 16):
        flip_bit(checkpoint_folder(out, step))
    shutil.rmtree(out / "evaluations")
    assert evaluate(experiment.config, f"out={out}", "--all", SHORT) == 2
    words = capsys.readouterr().err
    assert f"none of 3 checkpoints under {out}/checkpoints could be evaluated: step 4: " in words
    assert "--step" not in words
    assert evaluate(experiment.config, f"out={out}", "--step", 8, SHORT) == 2
    assert "or choose another one with --step" in capsys.readouterr().err


# Two at once.


def test_evaluations_of_one_checkpoint_at_once_keep_each_others_results(experiment: Experiment, tmp_path: Path) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    with Rendezvous(Ranks()) as group:
        checkpoint = find_checkpoint(open_run(str(out), ""), 8)
        overrides = ([], ["evaluate.shots=[1]"], ["evaluate.beams=2"])
        begun = [
            CheckpointEvaluation.of(Evaluation(experiment.load(f"out={out}", SHORT, *more), group), checkpoint)
            for more in overrides
        ]
        for one, sets in zip(begun, (["test"], ["dev"], ["dev"]), strict=True):
            one.evaluate(sets)
    assert [entry["translations"] for entry in results(out, 8)["translation"]] == [
        "dev.en-zh.0-shot.beam2.jsonl", "dev.en-zh.1-shot.jsonl", "dev.zh-en.0-shot.beam2.jsonl",
        "dev.zh-en.1-shot.jsonl", "test.en-zh.0-shot.jsonl",
    ]  # fmt: skip


# What is looked at first.


def test_all_that_is_missing_is_named_before_the_first_translation(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    data = {"task": "absent", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{tasks}/none.jsonl"}}}
    (tasks / "absent.yaml").write_text(json.dumps(data))
    missing = ["evaluate.test={en-zh: none.jsonl, zh-en: no.tsv}", f"evaluate.comet=[{tmp_path}/no-model]"]
    missing += ["evaluate.bleu_tokenize={en: unknown}", "evaluate.reasoning=[absent]", f"evaluate.task_folder={tasks}"]
    assert evaluate(experiment.config, f"out={out}", "--all", *missing) == 2
    words = capsys.readouterr().err
    for problem in (
        "evaluate.bleu_tokenize.en: unknown is not one of sacrebleu's tokenizers", "none.jsonl", "no-model",
        f"task absent: there is no {tasks}/none.jsonl",
    ):  # fmt: skip
        assert problem in words
    assert not (out / "evaluations").exists()


def test_another_experiments_config_is_refused(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    shutil.copy(experiment.config, out / "config.yaml")
    for change, words in (
        ("name=another", "name is another in the config, but was small when"),
        ("languages.zh=Mandarin", "languages.zh is Mandarin in the config, but was Chinese when"),
        ("streams.both.directions=[zh-en,en-zh]", "streams.both.directions is ['zh-en', 'en-zh'] in the config"),
    ):
        assert evaluate(experiment.config, f"out={out}", change) == 2
        assert words in capsys.readouterr().err
    assert not (out / "evaluations").exists()


# Ctrl-C.


@pytest.mark.slow
def test_ctrl_c_is_a_message_during_the_import_of_torch(experiment: Experiment, tmp_path: Path) -> None:
    out = copy_run(experiment, tmp_path / "run", steps=[8])
    command = [sys.executable, "trainer/evaluate.py", str(experiment.config), f"out={out}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "RANK": "0"})
    assert process.stderr is not None
    assert "importing transformers" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert words == "stopped; run the same command again to resume\n"


def test_errors_keep_their_kind_among_ranks() -> None:
    class SpecialError(InputError):
        pass

    def fail() -> None:
        raise SpecialError("words")

    with Rendezvous(Ranks()) as group, pytest.raises(SpecialError, match="words"):
        group.run_on_all(fail)
