"""All commands work where the wheel is installed, without a clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, small_experiment

pytestmark = pytest.mark.slow
UV = Path(sys.executable).parent / "uv"
PACKAGES = ("dataengine", "trainer")
SOURCES = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree, where the build leaves its traces."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "tree" / package, ignore=SOURCES)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    run(UV, "build", "--offline", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder,
        folder / "tree")  # fmt: skip
    (made,) = folder.glob("*.whl")
    return made


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command without what makes this process see the clone; return what it prints. Fails with all it said."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    files = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == files


def test_all_commands_of_an_installed_wheel(wheel: Path, tmp_path: Path, corpora: Path, tokenizer_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    run(UV, "pip", "install", "--offline", "--no-deps", "--python", python, wheel)

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    values = small_experiment(corpora, tokenizer_path, folder) | {"out": "run", "store": "store"}
    values["train"] |= {"max_steps": 4}
    (folder / "small.yaml").write_text(yaml.safe_dump(values))

    def command(*arguments: str) -> str:
        return run(python, "-m", *arguments, cwd=folder)

    where = "import dataengine, trainer; print(dataengine.__file__, trainer.__file__)"
    assert run(python, "-c", where, cwd=folder).split() == [str(site / name / "__init__.py") for name in PACKAGES]
    run(site.parents[2] / "bin" / "dataengine", "build", "small.yaml", cwd=folder)
    assert "first" in command("dataengine", "plan", "small.yaml")
    command("trainer", "train", "small.yaml")
    assert "4 steps, every digest in the log matches plan" in command("trainer", "audit", "run")
    command("trainer", "evaluate", "small.yaml")
    assert (folder / "run" / "evaluations" / "step-00000004" / "results.json").is_file()
    command("trainer", "report", "run")
    assert "small" in (folder / "report.html").read_text()
