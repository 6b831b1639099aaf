"""The commands that start the trainer's programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dataengine.commands.arguments import PROGRAMS
from dataengine.commands.programs import command_of
from tests.conftest import ROOT

BY_NAME = {program.name: program for program in PROGRAMS}
LAUNCHER = [sys.executable, "-P", "-m", "composer.cli"]


def program(module: str) -> str:
    return str(ROOT / "trainer" / f"{module}.py")


@pytest.mark.parametrize(
    ("name", "arguments", "command"),
    [
        ("train", ["c.yaml", "a=b", "--dry-run"], [*LAUNCHER, program("train"), "c.yaml", "a=b", "--dry-run"]),
        ("train", ["-n", "2", "c.yaml"], [*LAUNCHER, "-n", "2", program("train"), "c.yaml"]),
        ("train", ["--dry-run", "c.yaml", "-n2"], [*LAUNCHER, "-n", "2", program("train"), "--dry-run", "c.yaml"]),
        ("train", ["-n", "2", "--help"], [sys.executable, program("train"), "-n", "2", "--help"]),
        ("evaluate", ["c.yaml", "--all"], [sys.executable, program("evaluate"), "c.yaml", "--all"]),
        ("evaluate", ["c.yaml", "-n", "3"], [*LAUNCHER, "-n", "3", program("evaluate"), "c.yaml"]),
        ("audit", ["run", "--step", "3"], [sys.executable, program("audit"), "run", "--step", "3"]),
        ("export-model", ["c.yaml"], [sys.executable, program("export"), "c.yaml"]),
    ],
)
def test_a_program_is_started_by_its_path(name: str, arguments: list[str], command: list[str]) -> None:
    assert command_of(BY_NAME[name], arguments) == command


def test_starting_a_program_imports_nothing_of_it() -> None:
    code = (
        "import os, sys; from dataengine.cli import main\n"
        "os.execv = lambda path, command: sys.exit(len([m for m in ('torch', 'composer', 'trainer', 'numpy') "
        "if m in sys.modules]))\n"
        "main(['train', 'x.yaml'])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", BY_NAME)
def test_the_help_of_a_program_is_its_own(name: str) -> None:
    command = [sys.executable, "-m", "dataengine", name, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"usage: dataengine {name} [-h]")
    assert f"\nexample:\n  dataengine {name} " in shown


def test_exit_codes_are_those_of_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dataengine", "audit", str(tmp_path / "none")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")


def test_without_the_trainers_packages_the_error_names_what_to_install() -> None:
    code = "import sys; from dataengine.cli import main; main(['train', 'x.yaml'])"
    hidden = (
        "import importlib.util as u; old = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'composer' else old(name, *more)\n"
    )
    ended = subprocess.run([sys.executable, "-c", hidden + code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: `dataengine train` needs the package composer, which is not installed for ")
    assert "make install" in ended.stderr


@pytest.mark.slow
def test_the_launcher_takes_the_place_of_the_command(tmp_path: Path) -> None:
    """Its exit code is the command's, and a signal to the command reaches it: they are one process."""
    command = [sys.executable, "-m", "dataengine", "train", "-n", "2", str(tmp_path / "none.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert f"error: cannot read config {tmp_path}/none.yaml" in printed
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while b"composer.cli" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=300) != 0
