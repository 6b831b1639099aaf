"""Real training with FSDP2 on CPU: what a run gives does not depend on kills, workers or the number of ranks."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from dataengine.build.build import build
from dataengine.config.load import load_config
from dataengine.config.schema import ParentConfig
from dataengine.config.training import InitConfig, TrainConfig
from dataengine.errors import InputError
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import ROOT, slow_but
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, copy_run, exact, open_dataset, refusal
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.audit import audit
from trainer.checkpoints.find import newest_checkpoint
from trainer.checkpoints.marker import MARKER
from trainer.evaluate import main as evaluate
from trainer.huggingface.export import export
from trainer.model.composer_model import build_model
from trainer.model.decoder import load_weights
from trainer.preflight.agreement import check_agreement
from trainer.reporting.page import write_report
from trainer.run.folder import open_run
from trainer.run.lock import hold
from trainer.run.log_csv import next_digest, read_log
from trainer.run.settings import read_history
from trainer.training.replay import replay
from trainer.training.start import check_not_lost


def test_the_log_is_the_plan(experiment: Experiment) -> None:
    digest = ""
    for step, row in enumerate(experiment.straight):
        digest = next_digest(digest, step, experiment.manifest.order.sample_ids(step))
        assert int(row["step"]) == step
        assert row["digest"] == digest
        cursors = experiment.manifest.schedule.cursors(step + 1)
        assert {name: int(row[f"samples/{name}"]) for name in cursors} == cursors
        counts = experiment.manifest.schedule.counts(step)
        present = {name: float(row[f"loss/{name}"]) for name in counts if counts[name]}
        mean = math.fsum(present[name] * counts[name] for name in present) / 8
        assert math.isclose(mean, float(row["loss"]), rel_tol=1e-5)
        assert all(row[f"loss/{name}"] == "" for name in counts if not counts[name])
    assert len(experiment.straight) == 16
    assert float(experiment.straight[5]["loss"]) < float(experiment.straight[0]["loss"]) - 0.3


def test_checkpoints_fall_on_intervals_stage_ends_and_the_end(experiment: Experiment) -> None:
    found = complete_checkpoints(experiment.folder / "straight")
    assert [checkpoint.step for checkpoint in found] == [4, 6, 10, 12, 16]
    assert all(len([name for name in c.files if name.endswith(".distcp")]) == 2 for c in found)


@pytest.mark.parametrize("rows", slow_but([7, 9, 13], [9]))
def test_a_killed_run_resumes_bit_for_bit(experiment: Experiment, rows: int) -> None:
    out = experiment.folder / f"killed{rows}"
    ranks.kill_at(ranks.start(experiment.config, out), out, rows)
    assert len(complete_checkpoints(out)) in (1, 2, 3, 4)
    resumed = ranks.train(experiment.config, out)
    assert "resuming from" in ranks.printed(out)
    assert exact(resumed) == exact(experiment.straight)


def test_a_finished_run_has_nothing_to_do(experiment: Experiment) -> None:
    before = (experiment.folder / "straight" / "log.csv").read_bytes()
    ranks.train(experiment.config, experiment.folder / "straight", "train.learning_rate=0.02")
    printed = ranks.printed(experiment.folder / "straight")
    assert "train.learning_rate was 0.01 in this run: changing it to 0.02 has no effect now" in printed
    assert "nothing to do: " in printed
    assert (experiment.folder / "straight" / "log.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (4, 2)])
def test_sample_ids_do_not_depend_on_the_number_of_ranks(experiment: Experiment, first: int, second: int) -> None:
    out = experiment.folder / f"ranks{first}to{second}"
    ranks.train(experiment.config, out, "train.max_steps=8", ranks=first)
    log = ranks.train(experiment.config, out, ranks=second)
    assert [row["digest"] for row in log] == [row["digest"] for row in experiment.straight]
    for column in ("loss", "grad_norm"):  # sums over ranks round differently
        values = np.array([[float(row[column]) for row in rows] for rows in (log, experiment.straight)])
        assert np.allclose(values[0], values[1], rtol=1e-4), column


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 3])
def test_nothing_depends_on_loader_workers(experiment: Experiment, workers: int) -> None:
    out = experiment.folder / f"workers{workers}"
    ranks.train(experiment.config, out, f"train.loader_workers={workers}", "train.max_steps=7")
    log = ranks.train(experiment.config, out, f"train.loader_workers={3 - workers}")
    assert exact(log) == exact(experiment.straight)


@pytest.mark.slow
def test_random_state_comes_back(experiment: Experiment) -> None:
    whole, parts = experiment.folder / "random", experiment.folder / "random_parts"
    ranks.train(experiment.config, whole, "train.max_steps=8", probe="random")
    ranks.train(experiment.config, parts, "train.max_steps=4", probe="random")
    ranks.train(experiment.config, parts, "train.max_steps=8", probe="random")
    for rank in range(2):
        numbers = (whole / f"random.{rank}.txt").read_text()
        assert len(numbers.splitlines()) == 8 * 2  # two microbatches a step
        assert (parts / f"random.{rank}.txt").read_text() == numbers
    assert (whole / "random.0.txt").read_text() != (whole / "random.1.txt").read_text()


@pytest.mark.parametrize("fault", slow_but(["no marker", "file cut short", "file missing"], ["file cut short"]))
def test_a_checkpoint_that_is_not_whole_is_passed_over(experiment: Experiment, fault: str) -> None:
    out = copy_run(experiment, fault.replace(" ", "_"))
    newest = out / "checkpoints" / "step-00000016"
    if fault == "no marker":
        (newest / MARKER).unlink()
    elif fault == "file missing":
        (newest / "__1_0.distcp").unlink()
    else:
        content = (newest / "__0_0.distcp").read_bytes()
        (newest / "__0_0.distcp").write_bytes(content[:-1])
    log = ranks.train(experiment.config, out)
    assert "passing over " in ranks.printed(out)
    assert "step-00000012, steps 12 to 16" in ranks.printed(out)
    assert exact(log) == exact(experiment.straight)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(experiment: Experiment) -> None:
    out = copy_run(experiment, "all_damaged")
    for path in out.glob("checkpoints/*/.metadata"):
        path.unlink()
    assert refusal(experiment, out) == (
        f"no checkpoint under {out}/checkpoints is usable, though 5 were finished (the newest is "
        f"step-00000016). Restore them, or move {out} away to start at step 0."
    )


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(experiment: Experiment) -> None:
    out = copy_run(experiment, "gone")
    shutil.rmtree(out / "checkpoints")
    log = (out / "log.csv").read_bytes()
    assert refusal(experiment, out) == (
        f"{out} has no checkpoint, although its log.csv has steps up to 15 and the first checkpoint was due after 4 "
        f"steps. Restore {out}/checkpoints, or remove log.csv to start at step 0."
    )
    assert (out / "log.csv").read_bytes() == log
    rows = log.splitlines(keepends=True)[:7]  # killed while the first was written: only the second waits for it
    (out / "log.csv").write_bytes(b"".join(rows))
    assert exact(ranks.train(experiment.config, out)) == exact(experiment.straight)


def test_steps_of_a_parent_are_none_of_a_lost_checkpoint(experiment: Experiment, tmp_path: Path) -> None:
    config = load_config(experiment.config)
    settings = {
        "parent": ParentConfig(manifest="parent.json", step=6),
        "init": InitConfig(checkpoint="x", mode="continue"),
    }
    child, run = config.model_copy(update=settings), open_run(str(tmp_path), "cache")
    log = (experiment.folder / "straight" / "log.csv").read_text().splitlines(keepends=True)
    (tmp_path / "config.yaml").write_text("damaged: [")
    for steps, lost in ((12, False), (13, True)):  # the child's second checkpoint is due after 12
        (tmp_path / "log.csv").write_text("".join(log[: steps + 1]))
        assert bool(check_not_lost(child, experiment.manifest, run)) == lost
    assert check_not_lost(config, experiment.manifest, run)


@pytest.mark.slow
def test_a_folder_is_trained_by_one_at_a_time(experiment: Experiment) -> None:
    out = experiment.folder / "held"
    with hold(out):
        assert ranks.refuse(experiment.config, out) == (
            f"error: {out} is being trained by process {os.getpid()} on {platform.node()}. "
            "Wait until it ends, stop it, or give this run another `out`."
        )
    ranks.train(experiment.config, out, "train.max_steps=1")


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept_if_asked(experiment: Experiment) -> None:
    out = experiment.folder / "retention"
    ranks.train(experiment.config, out, "train.keep_checkpoints=2", "train.max_steps=10")
    assert [checkpoint.step for checkpoint in complete_checkpoints(out)] == [6, 10]
    ranks.train(experiment.config, out, "train.keep_checkpoints=2")
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000012", "step-00000016"]


def test_a_resume_on_other_data_is_refused(experiment: Experiment) -> None:
    out = copy_run(experiment, "other_data")
    shutil.rmtree(out / "checkpoints" / "step-00000016")
    store = f"store={experiment.folder / 'other_store'}"
    changes = [store, "stages.1.mix.mono=1", f"out={out}"]
    build(load_config(experiment.config, changes), workers=1)
    assert refusal(experiment, out, *changes) == (
        f"the 12 trained steps of {out} would change: stage 'mixed' was 6 steps of 8 both, 16 en-zh, "
        f"24 mono and is 6 steps of 12 both, 24 en-zh, 12 mono. Build with {out}/config.yaml and its sources, change "
        "only what comes after these steps (you can add stages), or give this run another `out`."
    )


def test_the_dataset_refuses_a_state_of_other_data_itself(experiment: Experiment) -> None:
    dataset = open_dataset(experiment.manifest, load_config(experiment.config).store)
    state = dataset.state_dict(8 * 12, True)
    dataset.load_state_dict(state)
    with pytest.raises(InputError, match=r"the checkpoint of step 12 \(plan .*\) was trained on other data"):
        dataset.load_state_dict({**state, "prefix_sha256": "0" * 64})


@pytest.mark.slow
def test_a_schedule_can_grow_after_the_steps_that_are_trained(experiment: Experiment) -> None:
    out = copy_run(experiment, "longer")
    stages = [*load_config(experiment.config).model_dump(mode="json")["stages"]]
    stages.append({"name": "more", "steps": 2, "drain": False, "mix": {"both": 1.0}})
    changes = [f"store={experiment.folder / 'longer_store'}", f"stages={json.dumps(stages)}"]
    build(load_config(experiment.config, changes), workers=1)
    log = ranks.train(experiment.config, out, *changes)
    assert exact(log[:16]) == exact(experiment.straight)
    assert [row["stage"] for row in log[16:]] == ["more", "more"]


def test_a_batch_that_is_not_the_plans_stops_every_rank(experiment: Experiment) -> None:
    out = experiment.folder / "stray"
    codes = ranks.finish(ranks.start(experiment.config, out, "train.loader_workers=0", probe="stray"))
    assert codes == [1, 1]
    planned = experiment.manifest.order.sample_ids(3).tolist()
    given = [*planned[:4], planned[5], planned[4], *planned[6:]]
    for rank in range(2):
        assert (
            f"step 3: the loader gave 8 samples that differ from the plan's 8 from slot 4 on: {given[4:]} for "
            f"{planned[4:]}. This batch was not trained on; the last checkpoint is good."
        ) in out.with_name(f"stray.rank{rank}.txt").read_text()
    assert len(read_log(out / "log.csv")) == 3


@pytest.mark.slow
def test_a_fork_keeps_its_parents_steps_and_draws_nothing_twice(experiment: Experiment) -> None:
    """From step 9, in the middle of the mixed stage, to another mix."""
    store = load_config(experiment.config).store
    parent = f"parent={{manifest: {store}/experiments/small/manifest.json, step: 9}}"
    stages = "stages=[{name: other, steps: 5, mix: {mono: 1, both: 3}}, {name: end, drain: true, mix: {en-zh: 1}}]"
    changes = ["name=fork", parent, stages]
    child = build(load_config(experiment.config, changes), workers=1).manifest
    assert child.parent == {"plan_id": experiment.manifest.plan_id, "step": 9}
    assert child.prefix_sha256(9) == experiment.manifest.prefix_sha256(9)
    drawn = np.concatenate([child.order.sample_ids(step) for step in range(child.schedule.steps)])
    assert len(np.unique(drawn)) == len(drawn)
    out = experiment.folder / "fork"
    shutil.copytree(experiment.folder / "straight" / "checkpoints" / "step-00000006", out / "checkpoints/step-00000006")
    shutil.copy(experiment.folder / "straight" / "log.csv", out)
    log = ranks.train(experiment.config, out, *changes, "train.max_steps=14")
    assert "steps 6 to 14" in ranks.printed(out)
    assert exact(log[:9]) == exact(experiment.straight[:9])
    assert [row["stage"] for row in log[8:]] == ["mixed", *["other"] * 5]
    too_late = experiment.folder / "fork_too_late"
    shutil.copytree(experiment.folder / "straight", too_late)
    assert "holds a run of experiment 'small'" in refusal(experiment, too_late, *changes)


def test_a_child_that_would_change_the_past_is_refused(experiment: Experiment) -> None:
    store = load_config(experiment.config).store
    parent = f"parent={{manifest: {store}/experiments/small/manifest.json, step: 9}}"
    with pytest.raises(
        InputError, match=r"cannot continue .* at step 9, because earlier steps would change: seed was 17"
    ):
        build(load_config(experiment.config, ["name=bad", parent, "seed=18"]), workers=1)
    with pytest.raises(InputError, match=r"parent\.step is 99, but .* has 16 steps"):
        build(load_config(experiment.config, ["name=bad", parent.replace("9}", "99}")]), workers=1)


def test_the_certificate_of_a_real_run_is_verified_without_the_engine(experiment: Experiment, tmp_path: Path) -> None:
    out, certificate = copy_run(experiment, "certified"), tmp_path / "certificate.json"
    audit(out, certificate=certificate)
    claim = json.loads(certificate.read_bytes())
    assert claim["digest"] == experiment.straight[-1]["digest"]
    assert claim["software"]["torch"] == torch.__version__
    found = {point["step"]: point["digest"] for point in claim["checkpoints"]}
    assert found == {one.step: one.digest for one in complete_checkpoints(out)}
    assert len(found) > 1
    command = [sys.executable, str(ROOT / "examples" / "verify_certificate.py"), str(certificate)]
    command += [str(out / "manifest.json"), str(experiment.folder / "store")]
    assert subprocess.run(command, check=False).returncode == 0
    command[-2] = str(certificate)  # not a manifest
    assert subprocess.run(command, check=False).returncode == 1


def test_the_audit_proves_a_run_and_finds_its_documents(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = copy_run(experiment, "audited")
    lines = tmp_path / "lines.jsonl"
    audit(out, step=8, lines=lines)
    printed = capsys.readouterr().out
    assert "8 steps, every digest in the log matches plan" in printed
    assert f"digest {experiment.straight[7]['digest']}" in printed
    parts = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sum(part["tokens"] for part in parts) == 8 * 8 * 33
    chosen = parts[-1]
    audit(out, find=f"{chosen['file']}:{chosen['line']}")
    assert f"step {chosen['step']}, slot {chosen['slot']}: {chosen['stream']} sample" in capsys.readouterr().out
    audit(out, find=f"{chosen['file']}:99999")
    assert "`dataengine inspect CONFIG --line FILE:LINE` shows why" in capsys.readouterr().out
    log = (out / "log.csv").read_text()
    (out / "log.csv").write_text("".join(row for n, row in enumerate(log.splitlines(keepends=True)) if n not in (4, 5)))
    with pytest.raises(SystemExit) as stop:
        audit(out, step=99)
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "INCOMPLETE: log.csv has lost 2 steps: 3 to 4. Each digest that is there covers all" in printed.out
    assert "note: the log ends after 16 steps; --step is 99" in printed.err
    (out / "log.csv").write_text(log.replace(experiment.straight[5]["digest"], "0" * 64))
    with pytest.raises(SystemExit) as stop:
        audit(out)
    assert stop.value.code == 1
    assert capsys.readouterr().out.startswith("DIFFERENT at step 5: the log has 0000000000000000, the manifest gives ")


@pytest.mark.slow
def test_the_last_stage_of_one_stream_can_be_made_longer(experiment: Experiment) -> None:
    out = copy_run(experiment, "longer_stage")
    changes = [f"store={experiment.folder / 'longer_stage_store'}", "stages.2.steps=6", "train.learning_rate=0.02"]
    build(load_config(experiment.config, changes), workers=1)
    log = ranks.train(experiment.config, out, *changes)
    assert exact(log[:16]) == exact(experiment.straight)
    assert len(log) == 18
    assert "train.learning_rate was 0.01 until now and is 0.02 from here on" in ranks.printed(out)
    assert [(step, settings.train.learning_rate) for step, settings in read_history(out)] == [(0, 0.01), (16, 0.02)]

    # Each step is trained again by its own settings.
    for checkpoint in complete_checkpoints(out)[3:]:
        shutil.rmtree(checkpoint.folder)
    made = replay(open_run(str(out), "unused"), 17, catch_up=True)
    assert made.loss == pytest.approx(float(log[17]["loss"]), rel=1e-4)


def test_a_checkpoint_that_is_not_there_is_named(experiment: Experiment) -> None:
    config = load_config(experiment.config, [f"out={experiment.folder / 'straight'}"])
    with pytest.raises(InputError, match=r"straight has no checkpoint of 5 steps; it has those of 4, 6, 10, 12, 16"):
        export(config, 5)
    with pytest.raises(InputError, match=r"has a different model: hidden_size was 32 and is 64"):
        export(load_config(experiment.config, [f"out={config.out}", "model.hidden_size=64"]), 4)


def test_another_model_is_refused(experiment: Experiment) -> None:
    out = copy_run(experiment, "other_model")
    assert refusal(experiment, out, "model.hidden_size=64", "train.max_steps=20") == (
        f"{out}/checkpoints/step-00000016 has a different model: hidden_size was 32 and is 64. Restore these "
        "settings under `model`, or give this run another `out`."
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("stages.1.steps=7", "stages.1.steps is 7 in the config, but was 6 when 'small' was built."),
        ("stages.1.mix.both=2", "stages.1.mix.both is 2.0 in the config, but was 1.0 when 'small' was built."),
        ("batch_size=16", "batch_size is 16 in the config, but was 8 when 'small' was built."),
        ("streams.both.directions=[zh-en]", "streams.both.directions is ['zh-en'] in the config, but was ['en-zh', "
         "'zh-en'] when 'small' was built."),
    ],
)  # fmt: skip
def test_a_config_that_was_changed_after_the_build_is_refused(
    experiment: Experiment, change: str, difference: str
) -> None:
    found = check_agreement(load_config(experiment.config, [change]), experiment.manifest)
    assert [problem.text for problem in found] == [
        f"{difference} Build with this config first: dataengine build CONFIG"
    ]


def test_the_checkpoint_interval_may_change_after_the_build(experiment: Experiment) -> None:
    config = load_config(experiment.config, ["stages.0.checkpoint_interval=2"])
    assert check_agreement(config, experiment.manifest) == []


def test_batches_that_do_not_divide_are_refused(experiment: Experiment) -> None:
    assert ranks.refuse(experiment.config, experiment.folder / "three", ranks=3) == (
        "error: batch_size 8 is not divisible by 3 ranks. Start 2 ranks (composer -n 2 ...), or build with a "
        "batch_size that 3 divides."
    )


@pytest.mark.parametrize("step", [4, 12])
def test_an_exported_checkpoint_has_the_loss_of_the_next_logged_step(experiment: Experiment, step: int) -> None:
    config = load_config(experiment.config, [f"out={experiment.folder / 'straight'}"])
    assert_next_loss(experiment, experiment.straight, LlamaForCausalLM.from_pretrained(export(config, step)), step)


def assert_next_loss(experiment: Experiment, log: list[dict[str, str]], model: Any, step: int) -> None:
    """The weights after `step` steps give the loss that was logged for step number `step`."""
    folder = load_config(experiment.config).store
    dataset = open_dataset(experiment.manifest, folder)
    items = [dataset[int(i)] for i in experiment.manifest.order.sample_ids(step)]
    tokens = torch.from_numpy(np.stack([item["tokens"] for item in items]).astype(np.int64))
    with torch.no_grad():
        logits = model.eval()(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert math.isclose(loss, float(log[step]["loss"]), rel_tol=1e-5)


@pytest.mark.slow
def test_tied_embeddings_train_resume_and_export(experiment: Experiment) -> None:
    out = experiment.folder / "tied"
    changes = ["model.tie_word_embeddings=true", "train.max_steps=5"]
    ranks.train(experiment.config, out, *changes[:1], "train.max_steps=4")
    log = ranks.train(experiment.config, out, *changes)
    config = load_config(experiment.config, [*changes, f"out={out}"])
    assert_next_loss(experiment, log, LlamaForCausalLM.from_pretrained(export(config, 4)), 4)


@pytest.mark.slow
def test_export_is_the_same_from_other_numbers_of_ranks(experiment: Experiment) -> None:
    out = experiment.folder / "one_rank"
    ranks.train(experiment.config, out, "train.max_steps=4", ranks=1)
    states = []
    for run in (out, experiment.folder / "straight"):
        checkpoint = complete_checkpoints(run)[0]
        model: Any = build_model(load_config(experiment.config).model, experiment.manifest, TrainConfig()).decoder.hf
        load_weights(model, checkpoint)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.allclose(states[0][key], states[1][key], atol=2e-4) for key in states[0])


def test_evaluation_scores_the_newest_checkpoint(experiment: Experiment) -> None:
    out = copy_run(experiment, "evaluated")
    with pytest.raises(SystemExit) as exit:
        evaluate([str(experiment.config), f"out={out}"])
    assert exit.value.code == 0
    folder = out / "evaluations" / "step-00000016"
    results = json.loads((folder / "results.json").read_text())
    (entry,) = results["translation"]
    assert (results["step"], results["tokens"]) == (16, 16 * 8 * 32)
    assert entry["bleu"]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:")
    assert 0 <= entry["bleu"]["score"] <= 100
    assert len((folder / entry["translations"]).read_text().splitlines()) == entry["sentences"] == 4
    assert results["contamination"]["dev en-zh"]["sentences"] == 4


def test_an_export_has_the_tokenizer_of_the_training(experiment: Experiment) -> None:
    config = load_config(experiment.config, [f"out={copy_run(experiment, 'exported')}"])
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(export(config))
    text = "English: Open file\nChinese: 打开文件"
    assert hf.encode(text, add_special_tokens=False) == load_tokenizer(config.tokenizer).encode([text])[0]


def test_the_report_of_a_run_without_evaluations(experiment: Experiment, tmp_path: Path) -> None:
    page, _, _ = write_report([str(experiment.folder / "straight")], tmp_path / "report.html")
    assert "training of small: loss, gradient norm, learning rate, mix, speed" in page.read_text()


def test_newest_checkpoint_of_a_new_run_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(open_run(str(tmp_path), "unused")) is None
