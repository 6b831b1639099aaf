"""Programs that are asked to end do so at any moment, in a line, and leave nothing that is not whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataengine.build.build import build
from tests.conftest import ROOT, ConfigMaker, slow_but
from tests.trainer.test_audit import write_run
from trainer.run.interrupts import NOT_BEGUN

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = {
    "train": NOT_BEGUN,
    "evaluate": "stopped; run the same command again to resume",
    "report": "stopped before the report was written; run the same command again",
    "export": "stopped; nothing is exported",
    "replay": "stopped",
    "audit": "stopped",
}
# Ctrl-C at a terminal: what a shell starts in the background would ignore it.
START = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, sys.argv[1:])
"""
# Says when the handler is set.
TELL = """
import signal, sys
own = signal.signal
def told(number, handler):
    before = own(number, handler)
    if number == signal.SIGTERM and callable(handler):
        print("ready", file=sys.stderr, flush=True)
    return before
signal.signal = told
"""


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """A program of the trainer that says `ready` on stderr once it takes signals."""
    (folder / "sitecustomize.py").write_text(TELL)
    command = [sys.executable, "-c", START, sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str], number: int, *, after: str = "ready", delay_s: float = 0.0) -> str:
    """Send a signal a while after a line; return what the process still says, but that it takes signals again."""
    assert process.stderr is not None
    for line in process.stderr:
        if after in line:
            break
    time.sleep(delay_s)
    process.send_signal(number)
    return process.communicate(timeout=120)[1].replace("ready\n", "")  # main sets the handler once more


EARLY = [
    ("train", signal.SIGINT, 0.0),
    ("replay", signal.SIGTERM, 1.0),
    ("evaluate", signal.SIGINT, 0.0),
    ("report", signal.SIGTERM, 0.0),
    ("export", signal.SIGINT, 1.0),
    ("train", signal.SIGINT, 0.2),
    ("train", signal.SIGTERM, 1.0),
    ("replay", signal.SIGINT, 0.2),
    ("audit", signal.SIGINT, 1.0),
    ("audit", signal.SIGTERM, 0.2),
    ("evaluate", signal.SIGTERM, 0.5),
    ("report", signal.SIGINT, 0.0),
    ("export", signal.SIGTERM, 0.2),
]


@pytest.mark.parametrize(("program", "number", "delay_s"), slow_but(EARLY, EARLY[:5]))
def test_a_signal_before_a_program_has_read_all(
    program: str, number: signal.Signals, delay_s: float, make_config: ConfigMaker, tmp_path: Path
) -> None:
    write_run(make_config(), tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"  # which all but the report read for as long as no process writes into it
    config.unlink()
    os.mkfifo(config)
    arguments = {
        **{name: [str(config)] for name in ("train", "evaluate", "export")},
        "report": [str(tmp_path / "run"), "--out", str(tmp_path / "out" / "report.html")],
        "replay": [str(tmp_path / "run"), "--step", "1", "--out", str(tmp_path / "out" / "replay.json")],
        "audit": [str(tmp_path / "run"), "--lines", str(tmp_path / "out" / "lines.jsonl")],
    }
    process = start(f"trainer/{program}.py", *arguments[program], folder=tmp_path)
    said = end(process, number, delay_s=delay_s)
    assert list(tmp_path.glob("out/*")) == []
    assert process.returncode == CODES[number]
    assert said == f"{WORDS[program]}\n"


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 1.0, 2.5])
def test_ctrl_c_while_composer_is_imported(make_config: ConfigMaker, tmp_path: Path, delay_s: float) -> None:
    build(make_config(), workers=1)
    process = start("trainer/train.py", str(tmp_path / "experiment.yaml"), folder=tmp_path)
    said = end(process, signal.SIGINT, after="importing Composer", delay_s=delay_s)
    assert process.returncode == 130
    assert said.endswith(f"{NOT_BEGUN}\n")
    assert "Traceback" not in said


@pytest.mark.parametrize("number", slow_but(CODES, [signal.SIGTERM]))
def test_an_audit_that_is_stopped_leaves_no_part_of_a_file(
    make_config: ConfigMaker, tmp_path: Path, number: signal.Signals
) -> None:
    write_run(make_config(), tmp_path / "run")
    lines = tmp_path / "lines" / "lines.jsonl"
    process = start("trainer/audit.py", str(tmp_path / "run"), "--lines", str(lines), folder=tmp_path)
    assert process.stderr is not None
    while process.poll() is None and not (lines.parent.is_dir() and any(lines.parent.iterdir())):
        time.sleep(0.001)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    if process.returncode == 0:  # it was faster
        assert all(json.loads(line) for line in lines.read_text().splitlines())
    else:
        assert process.returncode == CODES[number]
        assert "Traceback" not in said
        assert list(lines.parent.iterdir()) == []


def test_a_signal_to_a_forked_child_is_not_its_parents() -> None:
    program = """
import multiprocessing, time
from trainer.run.interrupts import end_plainly
end_plainly("stopped")
context = multiprocessing.get_context("fork")
begun = context.Event()
child = context.Process(target=lambda: (begun.set(), time.sleep(60)))
child.start()
begun.wait()
child.terminate()
child.join()
time.sleep(0.5)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.returncode, done.stderr) == (0, "")
