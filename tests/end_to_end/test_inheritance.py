"""What the learning rate of a run is over forks, resumes and changed settings, in real trainings."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataengine.build.build import build
from dataengine.config.load import load_config
from dataengine.schedule.rates import learning_rate
from tests.conftest import small_experiment
from tests.end_to_end import ranks
from tests.end_to_end.straight import exact
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.audit import audit
from trainer.run.folder import open_run
from trainer.run.log_csv import read_log
from trainer.run.settings import SETTINGS, read_history
from trainer.train import dry_run
from trainer.training.replay import replay

pytestmark = pytest.mark.slow

STAGES = [
    {"name": "monolingual", "steps": 6, "mix": {"mono": 1}},
    {"name": "mixed", "steps": 8, "mix": {"mono": 1, "en-zh": 1}, "restart_learning_rate": True},
]
TAIL = "stages=[{name: tail, steps: 4, mix: {en-zh: 1}}]"
AGAIN = "stages=[{name: mixed, steps: 4, mix: {en-zh: 1}, restart_learning_rate: true}]"


@dataclass(frozen=True)
class Family:
    config: Path
    folder: Path

    @property
    def parent(self) -> Path:
        return self.folder / "parent"

    def child(self, name: str, stages: str, parent: Path, step: int, mode: str = "continue") -> list[str]:
        """Build a child of a run; return its overrides."""
        changes = [f"name={name}", stages, f"init={{checkpoint: {parent}/checkpoints/step-{step:08d}, mode: {mode}}}"]
        if mode == "continue":
            changes.append(f"parent={{manifest: {parent}/manifest.json, step: {step}}}")
        build(load_config(self.config, changes), workers=1)
        return changes

    def rate(self, step: int, *restarts: int, **changes: Any) -> float:
        train = load_config(self.config).train.model_copy(update=changes)
        return learning_rate(step, train, restarts)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> Family:
    """A parent of 14 steps whose rate restarts at step 6; checkpoints after each second step."""
    folder = tmp_path_factory.mktemp("family")
    experiment = {**small_experiment(corpora, tokenizer_path, folder), "name": "parent", "stages": STAGES}
    experiment["train"] |= {"checkpoint_interval": 2, "loader_workers": 0}
    path = folder / "parent.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    build(load_config(path), workers=1)
    made = Family(path, folder)
    log = ranks.train(path, made.parent, ranks=1)
    assert rates(log) == [made.rate(step, 6) for step in range(14)]
    assert restarts(made.parent) == [(0, (6,))]
    return made


def rates(log: list[dict[str, str]]) -> list[float]:
    return [float(row["learning_rate"]) for row in log]


def restarts(out: Path) -> list[tuple[int, tuple[int, ...]]]:
    return [(step, settings.restarts) for step, settings in read_history(out)]


def test_a_child_continues_its_parents_rate_and_its_child_too(family: Family) -> None:
    child, grandchild = family.folder / "child", family.folder / "grandchild"
    log = ranks.train(family.config, child, *family.child("child", TAIL, family.parent, 10), ranks=1)
    assert rates(log) == [family.rate(step, 6) for step in range(14)]
    assert exact(log[:10]) == exact(read_log(family.parent / "log.csv")[:10])
    assert restarts(child) == [(0, (6,))]  # nothing changed

    changes = family.child("grandchild", AGAIN, child, 12)
    log = ranks.train(family.config, grandchild, *changes, "train.max_steps=14", ranks=1)
    log = ranks.train(family.config, grandchild, *changes, ranks=1)
    assert "resuming from" in ranks.printed(grandchild)
    assert rates(log) == [family.rate(step, 6, 12) for step in range(16)]
    assert restarts(grandchild) == [(0, (6,)), (12, (6, 12))]
    audit(grandchild)


def test_a_stage_with_the_name_of_a_parents_stage_restarts_at_its_own_first_step(family: Family) -> None:
    out = family.folder / "same_name"
    changes = family.child("same_name", AGAIN, family.parent, 10)
    assert rates(ranks.train(family.config, out, *changes, ranks=1)) == [family.rate(step, 6, 10) for step in range(14)]
    again = AGAIN.replace(", restart_learning_rate: true", "")
    without = family.folder / "same_name_without"
    changes = family.child("same_name_without", again, family.parent, 10)
    assert rates(ranks.train(family.config, without, *changes, ranks=1)) == [family.rate(step, 6) for step in range(14)]


def test_a_second_stage_that_restarts_inherits_nothing(family: Family) -> None:
    out = family.folder / "anew"
    changes = family.child("anew", TAIL, family.parent, 10, mode="restart")
    assert rates(ranks.train(family.config, out, *changes, ranks=1)) == [family.rate(step) for step in range(4)]
    assert restarts(out) == [(0, ())]


def test_a_child_that_dies_before_its_first_step_starts_again(
    family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    out = family.folder / "dies"
    changes = [*family.child("dies", TAIL, family.parent, 10), "train.clip_norm=0.5"]
    processes = ranks.start(family.config, out, *changes, ranks=1, probe="die")
    assert ranks.finish(processes) == [-9]
    assert [row["step"] for row in read_log(out / "log.csv")] == [str(step) for step in range(10)]
    dry_run(lambda: load_config(family.config, [f"out={out}", *changes]))
    assert "to train: steps 10 to 14, a new run" in capsys.readouterr().out
    log = ranks.train(family.config, out, *changes, ranks=1)
    assert rates(log) == [family.rate(step, 6) for step in range(14)]
    audit(out)
    assert "14 steps, every digest in the log matches plan" in capsys.readouterr().out
    assert [step for step, _ in read_history(out)] == [0, 10]


def test_a_restart_that_is_changed_at_a_resume_is_reported_kept_and_replayed(
    family: Family, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of `mixed` nothing can be changed any more; at its first step everything can."""
    out = family.folder / "changed"
    no_restart = "stages.1.restart_learning_rate=false"
    ranks.train(family.config, out, "train.max_steps=10", ranks=1)
    dry_run(lambda: load_config(family.config, [f"out={out}", no_restart]))
    words = "restart_learning_rate of stage 'mixed' is false, but the stage began at step 6 with a restart: the change"
    assert words in caplog.text
    log = ranks.train(family.config, out, no_restart, "train.weight_decay=0.3", ranks=1)
    assert words in ranks.printed(out)
    assert "train.weight_decay was 0.1 until now and is 0.3 from here on" in ranks.printed(out)
    assert rates(log) == [family.rate(step, 6) for step in range(14)]
    assert restarts(out) == [(0, (6,)), (10, (6,))]

    # Every step of it is made again with its own settings, not those now in config.yaml.
    for checkpoint in complete_checkpoints(out)[1:]:
        shutil.rmtree(checkpoint.folder)
    for step in (9, 13):
        made = replay(open_run(str(out), "unused"), step, catch_up=True)
        assert made.loss == pytest.approx(float(log[step]["loss"]), rel=1e-5)
        assert made.grad_norm == pytest.approx(float(log[step]["grad_norm"]), rel=1e-4)

    early = family.folder / "changed_early"
    ranks.train(family.config, early, "train.max_steps=6", ranks=1)
    log = ranks.train(family.config, early, no_restart, ranks=1)
    assert "restart_learning_rate was at step 6 until now and is at no step from here on" in ranks.printed(early)
    assert rates(log) == [family.rate(step) for step in range(14)]
    assert restarts(early) == [(0, (6,)), (6, ())]


def test_a_parent_of_an_earlier_version_is_inherited_by_its_config_and_a_damaged_log_in_part(family: Family) -> None:
    old, out = family.folder / "old", family.folder / "of_old"
    shutil.copytree(family.parent, old)
    lines = [json.loads(line) for line in (old / SETTINGS).read_text().splitlines()]
    (old / SETTINGS).write_text("".join(json.dumps({key: line[key] for key in ("from_step", "train")}) + "\n"
                                        for line in lines))  # fmt: skip
    rows = (old / "log.csv").read_bytes().splitlines(keepends=True)
    (old / "log.csv").write_bytes(b"".join(rows[:9]) + b"8,mixed,torn\n")
    log = ranks.train(family.config, out, *family.child("of_old", TAIL, old, 10), ranks=1)
    assert "log.csv is damaged: line 10 is not a row of a step after 7. Its complete rows before" in ranks.printed(out)
    steps = [*range(8), *range(10, 14)]
    assert [int(row["step"]) for row in log] == steps
    assert rates(log) == [family.rate(step, 6) for step in steps]
    assert restarts(out) == [(0, (6,))]


def test_a_decay_to_the_end_follows_the_plan_and_a_plan_that_grows_is_reported(family: Family) -> None:
    out, store = family.folder / "to_the_end", f"store={family.folder / 'end_store'}"
    changes = ["train.decay_steps=end", store]
    build(load_config(family.config, changes), workers=1)
    log = ranks.train(family.config, out, *changes, "train.max_steps=4", ranks=1)
    log = ranks.train(family.config, out, *changes, "train.max_steps=12", ranks=1)
    assert "until now and is" not in ranks.printed(out)
    assert rates(log) == [family.rate(step, 6, decay_steps=14 - (6 if step >= 6 else 0)) for step in range(12)]
    changes.append("stages.1.steps=12")
    build(load_config(family.config, changes), workers=1)
    log = ranks.train(family.config, out, *changes, ranks=1)
    assert "train.decay_steps was end (step 14) until now and is end (step 18) from here on" in ranks.printed(out)
    assert rates(log[12:]) == [family.rate(step, 6, decay_steps=12) for step in range(12, 18)]
    for checkpoint in complete_checkpoints(out)[4:]:
        shutil.rmtree(checkpoint.folder)
    made = replay(open_run(str(out), "unused"), 17, catch_up=True)
    assert made.loss == pytest.approx(float(log[17]["loss"]), rel=1e-5)
