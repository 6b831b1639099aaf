"""Parts A and B: a small run is killed, resumed and evaluated with the programs that a user calls."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gpu import expected
from benchmarks.gpu.check import Check
from benchmarks.gpu.processes import together
from benchmarks.gpu.table import Figure, Row, at_most, equal, figure, near
from trainer.run.log_csv import read_log

_CONFIG = "yamls/mini/uni_en_zh.yaml"
_STEPS, _INTERVAL, _KILLED_AFTER = 40, 10, 25
_SENTENCES = 20  # of each direction
Log = list[dict[str, str]]


def resume(check: Check) -> Iterator[Row]:
    """Train a run without interruption, and one that is killed and resumed."""
    out = check.runner.folder / "killed"
    build(check)
    together(
        lambda: _train(check, "straight", check.runner.folder / "straight"),
        lambda: _train(check, "killed", out, until=lambda: len(_rows(out)) > _KILLED_AFTER),
    )
    straight = read_log(straight_run(check) / "log.csv")
    digest, loss, source = straight[-1]["digest"], float(straight[-1]["loss"]), expected.ON_CPU
    yield equal("A", f"digest of {_STEPS} steps", digest[:16], expected.DIGEST[:16], source=source)
    yield near("A", "last loss", Figure(loss, ".4f"), expected.LOSS, within=expected.LOSS_WITHIN, source=source)
    yield at_most("A", "killed after step", Figure(len(_rows(out))), _STEPS - 1, source="before its last step")
    _train(check, "resumed", out)
    yield from _compare("resumed", straight, read_log(out / "log.csv"), exact=check.device == "cpu")


def deterministic(check: Check) -> Iterator[Row]:
    """Train a run with `train.deterministic`, and once more from its checkpoint in the middle."""
    build(check)
    out = check.runner.folder / "deterministic"
    again = out.with_name("deterministic-resumed")
    _train(check, out.name, out, "train.deterministic=true")
    shutil.copytree(out, again)
    for folder in sorted(again.glob("checkpoints/step-*"))[2:]:
        shutil.rmtree(folder)
    _train(check, again.name, again, "train.deterministic=true")
    yield from _compare("deterministic", read_log(out / "log.csv"), read_log(again / "log.csv"), exact=True)


def build(check: Check) -> None:
    """Build the store, which is quick if it is built."""
    check.runner.run("build", ["-m", "dataengine", "build", _CONFIG, _store(check)], 90)


def straight_run(check: Check) -> Path:
    """Return the folder of the uninterrupted run, trained at the first call."""
    out = check.runner.folder / "straight"
    if len(_rows(out)) < _STEPS:
        build(check)
        _train(check, "straight", out)
    return out


def _train(check: Check, name: str, out: Path, *overrides: str, until: Callable[[], bool] | None = None) -> None:
    steps = [f"train.max_steps={_STEPS}", f"train.checkpoint_interval={_INTERVAL}"]
    command = ["trainer/train.py", _CONFIG, _store(check), f"out={out}", *steps, *overrides]
    check.runner.run(name, command, 120, until=until)


def _store(check: Check) -> str:
    return f"store={check.runner.folder / 'store'}"


def _rows(out: Path) -> Log:
    return read_log(out / "log.csv") if (out / "log.csv").is_file() else []


def _compare(name: str, straight: Log, other: Log, *, exact: bool) -> Iterator[Row]:
    """Compare the logs of an uninterrupted run and of one that was resumed."""
    source = "dataengine's plan: samples do not depend on kills"
    yield equal("A", f"{name}: digest", other[-1]["digest"][:16], straight[-1]["digest"][:16], source=source)
    pairs = [(row["loss"], again["loss"]) for row, again in zip(straight, other, strict=True)]
    same = sum(first == second for first, second in pairs)
    if exact:
        seen, whole = f"{same} of {len(pairs)} steps", f"{len(pairs)} of {len(pairs)} steps"
        yield equal("A", f"{name}: losses bit-equal", seen, whole, source="train.deterministic; on CPU always")
    else:
        yield figure("A", f"{name}: losses bit-equal, steps", Figure(same))
        apart = max(abs(float(first) - float(second)) for first, second in pairs)
        figures = Figure(apart, ".6f", " nats")
        yield at_most("A", f"{name}: losses apart", figures, expected.APART, source=expected.BY_READING)


def evaluate(check: Check) -> Iterator[Row]:
    """Translate with the last checkpoint, here and on the CPU of this machine."""
    run = straight_run(check)
    on_cpu = run.with_name("straight-on-cpu")
    shutil.copytree(run, on_cpu, ignore=shutil.ignore_patterns("evaluations"))
    here, there = together(
        lambda: _translate(check, "evaluate", run, check.device),
        lambda: _translate(check, "evaluate-on-cpu", on_cpu, "cpu"),
    )
    yield equal("B", "sentences translated", str(len(here)), str(2 * _SENTENCES), source="two directions")
    same = sum(first == second for first, second in zip(here, there, strict=True))
    if check.device == "cpu":
        yield equal("B", "equal to a second evaluation", f"{same}", f"{len(there)}", source="greedy search")
    else:
        yield figure("B", "equal to the CPU's (fp32; here bf16)", Figure(same, unit=f" of {len(there)}"))


def _translate(check: Check, name: str, out: Path, device: str) -> list[str]:
    """Return the translations of all sets, in order."""
    command = ["trainer/evaluate.py", _CONFIG, _store(check), f"out={out}", f"evaluate.max_sentences={_SENTENCES}"]
    check.runner.run(name, command, 90, device=device)
    files = sorted(out.glob("evaluations/step-*/*.jsonl"))
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return [str(json.loads(line)["hypothesis"]) for line in lines]
