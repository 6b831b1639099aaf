"""The six programs by name, as `python -m trainer train`, and by path, as `python trainer/train.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataengine.commands.arguments import PROGRAMS as ROWS
from tests.conftest import ROOT, slow_but
from trainer.__main__ import main

PROGRAMS = ["train", "evaluate", "report", "audit", "replay", "export"]
# Prints, at the end of a program, where a name would be imported from.
WHERE = """
import atexit, importlib.util
def where():
    for name in ("dataengine", "trainer", "evaluate", "data", "model", "run"):
        found = importlib.util.find_spec(name)
        print("imports", name, found and found.origin)
atexit.register(where)
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_by_its_name(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([program, "--help"])
    assert exit.value.code == 0
    name = next(row.name for row in ROWS if row.module == program)
    assert capsys.readouterr().out.startswith(f"usage: dataengine {name} [-h]")


def test_help_lists_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("programs:") + 1
    assert [line.split()[0] for line in lines[first : first + 6]] == PROGRAMS
    assert all(len(line.split()) > 3 for line in lines[first : first + 6])


@pytest.mark.parametrize(("word", "near"), [("trian", " (did you mean 'train'?)"), ("x", "")])
def test_an_unknown_program(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([word, "config.yaml"])
    assert exit.value.code == 2
    assert f"error: unknown program {word}{near}\n" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_help_imports_nothing_slow(program: str) -> None:
    for more in (["--help"], ["--stp", "x.yaml"]):
        arguments = [sys.executable, "-X", "importtime", "-m", "trainer", program, *more]
        ended = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
        assert ended.returncode == (0 if more == ["--help"] else 2)
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
        assert "trainer" in imported
        assert imported.isdisjoint({"composer", "numpy", "pydantic", "torch", "transformers", "yaml"})


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another copy of the packages than the one that is installed."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("dataengine", "trainer"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


BY_PATH = [*((program, "trainer") for program in PROGRAMS), ("train", "."), ("audit", "elsewhere")]


@pytest.mark.parametrize(("program", "within"), slow_but(BY_PATH, [("evaluate", "trainer"), ("audit", "elsewhere")]))
def test_a_program_by_its_path_imports_what_is_beside_it(program: str, within: str, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WHERE)
    cwd = tmp_path if within == "elsewhere" else copy / within
    done = subprocess.run(
        [sys.executable, os.path.relpath(copy / "trainer" / f"{program}.py", cwd), "--help"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("imports "))
    assert [found.pop(name) for name in ("dataengine", "trainer")] == [
        str(copy / package / "__init__.py") for package in ("dataengine", "trainer")
    ]
    ours = (str(copy), str(ROOT / "trainer"))
    assert not [origin for origin in found.values() if origin.startswith(ours)]
