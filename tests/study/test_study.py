"""The study's driver: which runs share steps, what is expected, and a tiny study from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.study import study
from benchmarks.study.findings import Finding, Study, findings, spread
from dataengine.config.load import load_config
from tests.conftest import ROOT


def test_a_verdict_counts_seeds() -> None:
    def verdict(*values: float) -> str:
        return Finding("", "", values, lambda value: value > 10).verdict

    assert verdict(11, 12, 13) == "seen in all 3 seeds"
    assert verdict(11, 9, 13) == "seen in 2 of 3 seeds"
    assert verdict(1, 2, 3) == "not seen"
    assert verdict(11) == "seen"
    assert spread([1, 2, 6]) == "3.0 [1.0, 6.0]"
    assert spread([4.25], 2) == "4.25"


@dataclass(frozen=True)
class Scored:
    """A run with planted scores."""

    setting: str
    seed: int
    scores: dict[str, float]
    peak: float = 0.0

    def score(self, direction: str, shots: int = 0) -> float:
        return self.scores.get(direction, 0.0)

    def mean(self, shots: int = 0) -> float:
        return sum(self.scores.values()) / 4

    def mean_curve(self) -> dict[int, float]:
        return {400: self.peak, 1600: self.mean()}


def test_expectations_are_measured_within_a_seed() -> None:
    runs = [
        Scored("no_parallel", 1, {"en-zh": 1.0}),
        Scored("parallel_last_all", 1, {"en-zh": 30.0, "zh-en": 20.0}),
        Scored("parallel_distributed", 1, {"en-zh": 20.0, "zh-en": 40.0}),
        Scored("parallel_first", 1, {"en-zh": 4.0}, peak=10.0),
        Scored("parallel_non_adjacent", 1, {"en-zh": 6.0}),
        Scored("uni_en_zh", 1, {"en-zh": 50.0, "zh-en": 3.0}),
        Scored("no_parallel", 2, {"en-zh": 25.0}),
        Scored("parallel_last_all", 2, {"en-zh": 30.0}),
        Scored("parallel_last_all", 3, {"en-zh": 99.0}),  # nothing to compare it with
    ]
    found = {one.expected: one for one in findings(Study(runs))}  # type: ignore[arg-type]
    gain = found["last (all) is more than 10 BLEU above no parallel in some direction"]
    assert (list(gain.values), gain.verdict) == ([29.0, 5.0], "seen in 1 of 2 seeds")
    assert found["first collapses once its pairs are used up"].values == [10.0]
    assert list(found["non-adjacent is far below distributed"].values) == [10.0]
    assert found["last (uni) en-zh is strong in its direction"].verdict == "seen"
    assert found["and near zero in the reverse one"].verdict == "not seen"
    ahead = found["last (all) is at or above distributed"]
    assert (list(ahead.values), ahead.verdict) == ([-2.5], "not seen")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "no_paralel"], "--only: 'no_paralel' is not a setting (did you mean 'no_parallel'?). Settings: "),
        (
            ["--only", "text/parallel_last_all"],
            "--only: 'text/parallel_last_all' is not part of this study. Add --text FOLDER",
        ),
        (["--fast", "--only", "pivot/zh_id"], "--only: 'pivot/zh_id' is not part of this study. Leave out --fast"),
        (["seed=5"], "override 'seed=5': the study gives every run its own name, out, seed, model.init_seed"),
        (["train.max_step=5"], "override train.max_step=5: unknown key 'train.max_step' (did you mean 'max_steps'?)"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "YAMLS", ROOT / "yamls/study")
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[study.Job]]:
    """All schedules of the study, built in a folder of this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("study"))
        patch.setattr(study, "YAMLS", ROOT / "yamls/study")
        jobs = study.choose_jobs(fast=False, seeds=2, only=None, text=None)
        study.make_inputs(None)
        study.build(jobs)
        yield jobs


@pytest.mark.slow
def test_runs_share_what_is_the_same(built: list[study.Job]) -> None:
    shared = {job: study.shared_steps(job, built) for job in built}
    of = {(job.setting, job.seed): steps for job, steps in shared.items()}
    assert of["no_parallel", 1] == of["parallel_first", 1] == of["parallel_distributed", 2] == 0
    assert of["parallel_last_all", 1] == of["parallel_last_all", 2] == of["uni_id_en", 2] == 1200
    assert [of[f"placement/at_{tenth}0", 1] for tenth in range(1, 10)] == [120 * tenth for tenth in range(1, 10)]
    assert of["rate/continue", 1] == 0  # another rate
    assert of["rate/restart", 1] == 1200  # where it is warmed up again
    assert of["ladder/large_distributed", 1] == 0  # another model
    assert {job.manifest.schedule.steps for job in built} == {1600}
    for job, steps in shared.items():
        base = study.base_of(job, built)
        if steps:
            assert base is not None
            assert built.index(base) < built.index(job)
            assert base.manifest.prefix_sha256(steps) == job.manifest.prefix_sha256(steps)


@pytest.mark.slow
def test_what_an_interruption_left_is_not_evaluated(built: list[study.Job]) -> None:
    job = next(job for job in built if job.setting == "parallel_last_all")
    for step in (120, 700, 1200, 1320, 1333, 1600):
        (job.out / f"checkpoints/step-{step:08d}").mkdir(parents=True)
    study.remove_stops(job, 1200)
    left = sorted(int(path.name[5:]) for path in (job.out / "checkpoints").iterdir())
    assert left == [120, 1200, 1320, 1600]


@pytest.mark.slow
def test_a_run_whose_base_failed_says_where_to_look(
    built: list[study.Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(job: study.Job, *others: object) -> None:
        printed = Path(f"{job.out}.txt")
        printed.parent.mkdir(parents=True, exist_ok=True)
        printed.write_text("some progress\nerror: the disk is full\n")
        raise RuntimeError(study.last_words(printed))

    monkeypatch.setattr(study, "run_one", fail)
    todo = [job for job in built if job.seed == 1 and job.setting in ("no_parallel", "parallel_last_all")]
    first = {job: study.shared_steps(job, built) for job in todo}
    assert study.run_all(todo, built, first, first, at_once=1) == todo
    why = "did not finish, see runs/study/seed-1/no_parallel.txt\n    error: the disk is full\n"
    printed = capsys.readouterr().out
    assert f"[1/2] study/seed-1/no_parallel: {why}" in printed
    assert f"[2/2] study/seed-1/parallel_last_all: {why}" in printed


def test_every_question_has_its_yaml_at_full_scale() -> None:
    """With the same stages: what is tried in small can be run as it is."""
    for path in sorted((ROOT / "yamls").rglob("*.yaml")):
        if "base" not in path.parts:
            assert load_config(path).stages, path
    small = {path.relative_to(ROOT / "yamls/study").as_posix() for path in (ROOT / "yamls/study").rglob("*.yaml")}
    for folder in ("placement", "pivot", "replay", "volume"):
        large = {path.relative_to(ROOT / "yamls").as_posix() for path in (ROOT / "yamls" / folder).glob("*.yaml")}
        assert large == {name for name in small if name.startswith(folder)}


@pytest.mark.slow
def test_a_tiny_study_from_end_to_end(tmp_path: Path) -> None:
    """Two runs that share their first stage; the same command again does nothing, and gives the same tables."""
    command = [
        sys.executable, str(ROOT / "benchmarks/study/study.py"), "--seeds", "1", "--only",
        "no_parallel,parallel_last_all", "budget.steps=40", "train.checkpoint_interval=10", "evaluate.max_sentences=3",
        "train.warmup_steps=5",
    ]  # fmt: skip
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "leaked" not in first.stderr
    assert "2 runs, 2 of them to do: 50 steps" in first.stdout
    assert "study/seed-1/parallel_last_all: steps 30 to 40" in first.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 runs, 0 of them to do" in again.stdout
    digests = [line for text in (first.stdout, again.stdout) for line in text.splitlines() if "sha256" in line]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    other = subprocess.run([*command, "train.learning_rate=0.1"], cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 2
    assert "no_parallel was begun with other settings (train.learning_rate was 0.002, is 0.1). Move " in other.stderr
    folder = tmp_path / "runs/study"
    page = (folder / "study.html").read_text()
    assert "last (all)" in page
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "seed-1/parallel_last_all/study.json").read_text())["shared"] == 30
    assert len((folder / "seed-1/parallel_last_all/log.csv").read_bytes().splitlines()) == 41
