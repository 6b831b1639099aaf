"""Steps that must not be trained on, weights that are not finite: a run resumes from clean weights, or names them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from torch.distributed import checkpoint as dcp

from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.audit import audit
from trainer.checkpoints.fetch import hash_file
from trainer.checkpoints.load import load_checkpoint, read_metadata
from trainer.checkpoints.marker import Checkpoint, Marker, mark_complete
from trainer.run.folder import open_run
from trainer.training.callbacks.spikes import Watch
from trainer.training.replay import replay
from trainer.training.spikes import SpikeDetector

WEIGHT = "state.model.decoder.hf.model.embed_tokens.weight"


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by their names in it."""
    stored = read_metadata(checkpoint).state_dict_metadata
    found = {
        name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in stored.items() if hasattr(one, "size")
    }
    load_checkpoint(found, checkpoint, no_dist=True)
    return found


def save_as_before(checkpoint: Checkpoint, content: dict[str, Any]) -> None:
    """Replace the tensors of a checkpoint, as a version that did not look at them would have saved them."""
    stored = read_metadata(checkpoint).state_dict_metadata
    folder, digest = checkpoint.folder, checkpoint.digest
    shutil.rmtree(folder)
    assert set(content) < set(stored)
    dcp.save(content, checkpoint_id=folder, no_dist=True)
    names = [path.name for path in folder.iterdir()]
    marker = Marker(
        step=checkpoint.step,
        plan_id=checkpoint.plan_id,
        world_size=checkpoint.world_size,
        model=checkpoint.model,
        files={name: (folder / name).stat().st_size for name in names},
        hashes={name: hash_file(folder / name) for name in names},
        digest=digest,
    )
    mark_complete(folder, marker)


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, -1])
def test_a_checkpoint_that_is_not_finite_is_passed_over_with_the_name_of_the_weight(
    experiment: Experiment, row: int
) -> None:
    out = experiment.folder / f"not_finite{row}"
    shutil.copytree(experiment.folder / "straight", out)
    shutil.rmtree(out / "checkpoints" / "step-00000016")  # else there is nothing to train
    newest = complete_checkpoints(out)[-1]
    assert newest.finite
    content = tensors(newest)
    content[WEIGHT][row, 5] = float("nan")
    save_as_before(newest, content)
    log = ranks.train(experiment.config, out)
    printed = ranks.printed(out)
    assert f"passing over {newest.folder}: {WEIGHT} holds a NaN or an infinite value" in printed
    assert "step-00000010, steps 10 to 16" in printed
    assert exact(log) == exact(experiment.straight)
    assert (out / "checkpoints" / "aside-step-00000012" / ".metadata").is_file()
    assert [found.step for found in complete_checkpoints(out)] == [4, 6, 10, 12, 16]


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved(experiment: Experiment) -> None:
    out = experiment.folder / "lost_weight"
    codes = ranks.finish(ranks.start(experiment.config, out, probe="weight:9"))
    assert codes == [3, 3], ranks.printed(out)
    message = next(line for line in ranks.printed(out).splitlines() if line.startswith("stopped: "))
    name = WEIGHT.removeprefix("state.")
    assert message in (  # the row may be of a token of the next step
        f"stopped: step 9: {name} holds a NaN or an infinite value after its update, so no checkpoint was saved. All "
        "weights and moments of the last checkpoint, of step 6, are finite. Run the same command again. If it stops "
        "here again, lower train.learning_rate. If not, a device or its memory failed: have it checked.",
    )
    assert [found.step for found in complete_checkpoints(out)] == [4, 6]
    assert not (out / "checkpoints" / "step-00000010").exists()
    assert exact(ranks.train(experiment.config, out)) == exact(experiment.straight)  # the advice helps


@pytest.mark.slow
def test_a_bad_step_by_damaged_weights_is_not_skipped(experiment: Experiment) -> None:
    out = experiment.folder / "lost_weights"
    skip = "train.on_bad_step=skip"
    codes = ranks.finish(ranks.start(experiment.config, out, skip, probe="every weight:7"))
    assert codes == [3, 3], ranks.printed(out)
    message = next(line for line in ranks.printed(out).splitlines() if line.startswith("stopped: step 8: "))
    assert "All weights and moments of the last checkpoint, of step 6, are finite." in message
    assert f"The weights were damaged before this step: {WEIGHT.removeprefix('state.model.')} holds a NaN" in message
    assert message.endswith("lower train.learning_rate. If not, a device or its memory failed: have it checked.")
    assert exact(ranks.train(experiment.config, out, skip)) == exact(experiment.straight)


# Skipping.


def make_watch() -> Watch:
    nothing: Any = None
    return Watch(nothing, Path(), nothing, nothing, nothing, nothing, SpikeDetector(["a", "usual"], 2.0, 10), str, 3)


def test_what_the_watch_keeps_comes_back_also_from_an_older_version() -> None:
    before = SpikeDetector(["a", "usual"], 2.0, 10)
    for loss in (1.0, 2.0):
        before.add({"a": loss, "usual": loss}, {"a": 1, "usual": 1})
    first, second = make_watch(), make_watch()
    first.load_state_dict({"losses": before.dump()})  # all that it was
    first._skipped.append(7)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert (second._detector.dump(), second._skipped) == (before.dump(), [7])


def poison(experiment: Experiment, *steps: int, factor: str = "nan") -> str:
    """A probe that spoils the loss of one sample of each of these steps."""
    ids = [str(experiment.manifest.order.sample_ids(step)[5]) for step in steps]
    return f"loss:{','.join(ids)}:{factor}"


def with_skips(log: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return [(*row, found["skipped"]) for row, found in zip(exact(log), log, strict=True)]


@pytest.fixture(scope="module", params=[1, 2])
def skipping(request: pytest.FixtureRequest, experiment: Experiment) -> tuple[int, Path, list[dict[str, str]]]:
    """The number of ranks, the folder and the log of an uninterrupted run that skips step 7 and saves at each."""
    out = experiment.folder / f"skips{request.param}"
    settings = ("train.on_bad_step=skip", "train.checkpoint_interval=1")
    log = ranks.train(experiment.config, out, *settings, ranks=request.param, probe=poison(experiment, 7))
    return request.param, out, log


@pytest.mark.slow
def test_a_skipped_step_changes_neither_weights_nor_moments(
    experiment: Experiment, skipping: tuple[int, Path, list[dict[str, str]]]
) -> None:
    _, out, log = skipping
    assert [row["step"] for row in log if row["skipped"]] == ["7"]
    assert log[7]["skipped"].startswith("the gradient's norm is nan (the loss is ")
    assert [row["learning_rate"] for row in log] == [row["learning_rate"] for row in experiment.straight]
    assert [row["digest"] for row in log[:7]] == [row["digest"] for row in experiment.straight[:7]]
    assert len({row["digest"] for row in (*log[7:], *experiment.straight[7:])}) == 2 * 9
    seven, eight, nine = (tensors(found) for found in complete_checkpoints(out)[6:9])
    kept = [name for name in seven if name.startswith(("state.model.", "state.optimizers."))]
    assert sum(name.endswith(".step") for name in kept) == sum(name.endswith(".exp_avg") for name in kept) > 10
    assert all(torch.equal(seven[name], eight[name]) for name in kept)
    assert not any(torch.equal(eight[name], nine[name]) for name in kept)
    assert (out / "bad-step-00000007.json").is_file()
    assert "(skipped steps: 1 of at most 10)" in ranks.printed(out)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [7, 9, 11])  # the last checkpoint, after 6, 6 and 10 steps, may be unfinished
def test_a_killed_run_repeats_the_decision(
    experiment: Experiment, skipping: tuple[int, Path, list[dict[str, str]]], rows: int
) -> None:
    number, _, whole = skipping
    out, probe = experiment.folder / f"skips{number}killed{rows}", poison(experiment, 7)
    start = {"ranks": number, "probe": probe}
    ranks.kill_at(ranks.start(experiment.config, out, "train.on_bad_step=skip", **start), out, rows)  # type: ignore[arg-type]
    log = ranks.train(experiment.config, out, "train.on_bad_step=skip", **start)  # type: ignore[arg-type]
    assert "resuming from" in ranks.printed(out)
    assert with_skips(log) == with_skips(whole)


@pytest.mark.slow
@pytest.mark.parametrize("factor", ["inf", "1e30"])  # of which the norm is nan, inf
def test_no_gradient_that_is_not_finite_reaches_the_weights(experiment: Experiment, factor: str) -> None:
    out = experiment.folder / f"infinite{factor}"
    settings = ("train.on_bad_step=skip", "train.checkpoint_interval=1", "train.max_steps=9")
    log = ranks.train(experiment.config, out, *settings, probe=poison(experiment, 7, factor=factor))
    assert log[7]["grad_norm"] == {"inf": "nan", "1e30": "inf"}[factor]
    seven, eight = (tensors(found) for found in complete_checkpoints(out)[6:8])
    assert all(torch.equal(seven[name], eight[name]) for name in seven if name.startswith("state.model."))


@pytest.mark.slow
def test_so_many_steps_are_skipped_and_no_more_also_over_a_resume(experiment: Experiment) -> None:
    out = experiment.folder / "skips_too_often"
    settings = ("train.on_bad_step=skip", "train.max_skipped_steps=2")
    probe = poison(experiment, 7, 8, 13)
    ranks.train(experiment.config, out, *settings, "train.max_steps=10", probe=probe)
    codes = ranks.finish(ranks.start(experiment.config, out, *settings, probe=probe))
    assert codes == [3, 3], ranks.printed(out)
    message = next(line for line in ranks.printed(out).splitlines() if line.startswith("stopped: step 13: "))
    assert "or with a higher train.max_skipped_steps (2 were skipped before this one)" in message
    log = ranks.train(experiment.config, out, settings[0], "train.max_skipped_steps=3", probe=probe)  # the advice helps
    assert [row["step"] for row in log if row["skipped"]] == ["7", "8", "13"]


@pytest.mark.slow
def test_a_first_step_that_is_bad_is_not_skipped(experiment: Experiment) -> None:
    out = experiment.folder / "first_is_bad"
    start = ranks.start(experiment.config, out, "train.on_bad_step=skip", probe=poison(experiment, 0))
    assert ranks.finish(start) == [3, 3], ranks.printed(out)
    assert "No checkpoint was saved yet." in ranks.printed(out)


@pytest.mark.slow
def test_audit_and_replay_know_skipped_steps(
    experiment: Experiment,
    skipping: tuple[int, Path, list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    _, whole, log = skipping
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    audit(out, lines=tmp_path / "lines.jsonl")
    printed = capsys.readouterr().out
    assert f"16 steps, every digest in the log matches plan {experiment.manifest.plan_id[:12]}" in printed
    assert f"1 steps skipped, not trained on: step 7 ({log[7]['skipped']})" in printed
    parts = [orjson.loads(line) for line in (tmp_path / "lines.jsonl").read_bytes().splitlines()]
    assert {part["step"] for part in parts if part.get("skipped")} == {7}
    part = next(part for part in parts if part["step"] == 7)
    audit(out, find=f"{part['file']}:{part['line']}")
    found = capsys.readouterr().out.splitlines()
    line = next(line for line in found if line.startswith(f"  step 7, slot {part['slot']}: "))
    assert line.endswith(", not trained on")
    for checkpoint in complete_checkpoints(out)[4:15]:
        shutil.rmtree(checkpoint.folder)  # all but 4 and 16
    made = replay(open_run(str(out), "unused"), 12, catch_up=True)
    assert made.weights_of == 12
    assert made.loss == pytest.approx(float(log[12]["loss"]), rel=1e-4)
    (out / "log.csv").write_text((out / "log.csv").read_text().replace(log[7]["skipped"], ""))
    with pytest.raises(SystemExit):
        audit(out)
    assert "DIFFERENT at step 7" in capsys.readouterr().out
