"""What an audit says of a log, without a training."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from dataengine.build.build import build
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import run_command
from dataengine.schedule.manifest import Manifest
from tests.conftest import ConfigMaker
from tests.trainer.fake_checkpoints import save
from trainer.audit import audit
from trainer.run.log_csv import next_digest


def write_run(config: Config, out: Path, skipped: Collection[int] = ()) -> Manifest:
    """A run folder whose log is that of a run to the end, which skipped some steps."""
    manifest = build(config, workers=1).manifest
    out.mkdir(parents=True)
    (out / "manifest.json").write_bytes(manifest.content)
    (out / "config.yaml").write_text(dump_config(config))
    rows, digest = ["step,stage,loss,skipped,digest"], ""
    for step in range(manifest.schedule.steps):
        digest = next_digest(digest, step, manifest.order.sample_ids(step), skipped=step in skipped)
        rows.append(f"{step},any,1.0,{'loss' if step in skipped else ''},{digest}")
    (out / "log.csv").write_text("\n".join(rows) + "\n")
    return manifest


@pytest.fixture
def run(make_config: ConfigMaker, tmp_path: Path) -> Path:
    write_run(make_config(), tmp_path / "run")
    return tmp_path / "run"


def lose(run: Path, *steps: int) -> None:
    head, *rows = (run / "log.csv").read_text().splitlines(keepends=True)
    (run / "log.csv").write_text(head + "".join(row for step, row in enumerate(rows) if step not in steps))


def look(run: Path, step: int | None = None) -> int:
    """The exit code of an audit."""
    try:
        return run_command(lambda: audit(run, step))
    except SystemExit as end:
        return int(end.code or 0)


def test_a_whole_log_passes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(run) == 0
    save(run, 16)
    assert look(run) == 0
    assert "INCOMPLETE" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ((3, 4), "2 steps: 3 to 4."),
        ((0, 7, 9, 10), "4 steps: 0, 7, 9 to 10."),
        (range(0, 16, 2), "8 steps: 0, 2, 4, 6, 8 and in 3 more places."),
    ],
)
def test_a_log_with_gaps_is_incomplete(
    run: Path, lost: tuple[int, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lose(run, *lost)
    assert look(run) == 1
    printed = capsys.readouterr().out
    assert "16 steps, every digest in the log matches plan" in printed
    assert f"INCOMPLETE: log.csv has lost {words} Each digest that is there covers all steps before it.\n" in printed


def test_only_the_requested_steps_count(run: Path) -> None:
    lose(run, 9)
    assert (look(run, 9), look(run, 10)) == (0, 1)


def test_a_log_that_ends_before_a_checkpoint_is_incomplete(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lose(run, *range(8, 16))
    assert look(run) == 0  # of a run that is under way
    save(run, 12)
    assert look(run) == 1
    assert "INCOMPLETE: log.csv has lost 4 steps: 8 to 11." in capsys.readouterr().out
    assert look(run, 8) == 0


def test_steps_that_the_manifest_does_not_have_are_a_difference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "log.csv").open("a") as log:
        log.write(f"16,any,1.0,,{'0' * 64}\n")
    assert look(run) == 1
    assert capsys.readouterr().out.startswith("DIFFERENT at step 16: the log continues to step 16, and ")
    assert look(run, 16) == 0


@pytest.mark.parametrize("step", [-5, 0])
def test_a_number_of_steps_that_is_none(run: Path, step: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(run, step) == 2
    assert capsys.readouterr().err == f"error: --step {step}: expected 1 or more, the number of steps to look at\n"


def test_a_log_without_steps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lose(run, *range(16))
    assert look(run) == 2
    assert capsys.readouterr().err == f"error: {run}/log.csv has no steps yet\n"
