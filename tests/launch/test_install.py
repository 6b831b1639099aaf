"""`install.sh`: which Python it takes, when .venv is made new, and what it says; scripts stand for Pythons."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOOLS = ("cat", "chmod", "cksum", "cp", "dirname", "env", "mkdir", "rm", "sed", "sh")
# A Python that claims a version and a place. `venv` copies it; pip "installs" a uv that writes down what it is asked.
PYTHON = """\
#!/bin/sh
case "$1 $2" in
  "-m venv")
    for folder; do :; done
    echo "venv {version}" >> "$RECORD"
    rm -rf "$folder"; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  "-m ensurepip") ;;
  "-m pip") cp "$UV" "${{0%/*}}/uv" ;;
  *)
    code=$2; [ "$1" = - ] && code=$(cat)
    exec {real} -I -S -c 'import sys
sys.version_info, sys.base_prefix, sys._base_executable = ({major}, {minor}, 1), "{home}", "{home}/{name}"
if {bare}: sys.modules["ensurepip"] = None
exec(sys.argv[1])' "$code" ;;
esac
"""
# Fetching makes a Python 3.11 in the place where uv keeps them.
UV = """\
#!/bin/sh
case "$1 $2" in
  "python dir") echo "$FETCHED" ;;
  "python install") echo "uv fetches $3" >> "$RECORD"; [ -e "$FETCHED/python$3" ] ;;
  "python find") echo "$FETCHED/python$3" ;;
  "pip install") echo "uv installs ${*#*--no-deps }" >> "$RECORD" ;;
esac
"""
LOCKS = ("requirements.lock", "requirements-newest.lock")
DECLARED, NEWEST = (f"uv installs -r {lock} -c {lock} -e ." for lock in LOCKS)


class Machine:
    """A clone of what is installed, and a PATH of which all is known."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clone, self.path = folder, folder / "clone", folder / "bin"
        for each in (self.clone, self.path, folder / "fetched", folder / "hidden"):
            each.mkdir()
        for tool in TOOLS:
            (self.path / tool).symlink_to(shutil.which(tool) or tool)
        shutil.copy(ROOT / "install.sh", self.clone)
        for name in (*LOCKS, "pyproject.toml"):
            (self.clone / name).write_text("first")
        self.write(folder / "hidden/uv", UV)

    def write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def add_python(self, version: str, name: str | None = None, *, folder: str = "bin", bare: bool = False) -> None:
        """Put a Python on the path; a bare one lacks ensurepip."""
        major, minor = version.split(".")
        path = self.folder / folder / (name or f"python{version}")
        names = {"home": path.parent, "name": path.name, "real": sys.executable}
        self.write(path, PYTHON.format(version=version, major=major, minor=minor, bare=bare, **names))

    def add_program(self, name: str, text: str) -> None:
        self.write(self.path / name, text)

    def install(self, *words: str, **environment: str) -> tuple[int, str, list[str]]:
        """Run it; return its exit code, what it printed, and what it asked Pythons and uv for."""
        record = self.folder / "record"
        record.write_text("")
        known = {"PATH": str(self.path), "RECORD": str(record), "UV": str(self.folder / "hidden/uv")}
        known["FETCHED"] = str(self.folder / "fetched")
        ended = subprocess.run(
            ["/bin/sh", str(self.clone / "install.sh"), *words],
            env=known | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return ended.returncode, ended.stdout, record.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3.12": "3.12"}, "3.12"),
        ({"python3.13": "3.13"}, "3.13"),
        ({"python3.13": "3.13", "python3.11": "3.11", "python3.12": "3.12"}, "3.11"),
        ({"python3": "3.12"}, "3.12"),
        ({"python3.10": "3.10", "python3": "3.10", "python3.13": "3.13"}, "3.13"),
        ({"python3.11": "shim", "python3.12": "3.12"}, "3.12"),
        ({"python3.11": "bare", "python3.12": "3.12"}, "3.12"),
    ],
)
def test_the_first_python_that_fits_is_taken(machine: Machine, pythons: Mapping[str, str], taken: str) -> None:
    for name, version in pythons.items():
        if version == "shim":
            machine.add_program(name, "#!/bin/sh\necho 'pyenv: command not found' >&2; exit 127\n")
        else:
            machine.add_python("3.11" if version == "bare" else version, name, bare=version == "bare")
    code, said, asked = machine.install()
    assert (code, asked) == (0, [f"venv {taken}", DECLARED]), said
    assert f"installs the declared stack for Python {taken}" in said


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("python3.10", "it is Python 3.10"),
        ("python3.14", "it is Python 3.14"),
        ("python9", "it does not run"),
        ("python3.12", "it cannot make environments without the package python3.12-venv"),
    ],
)
def test_a_python_that_does_not_fit_is_refused_if_it_is_named(machine: Machine, python: str, said: str) -> None:
    machine.add_python("3.11")
    machine.add_python("3.12", bare=True)
    for version in ("3.10", "3.14"):
        machine.add_python(version)
    code, printed, asked = machine.install(PYTHON=python)
    assert (code, asked) == (2, [])
    assert f"PYTHON={python} does not fit: {said}. Name a Python 3.11, 3.12 or 3.13" in printed
    assert not (machine.clone / ".venv").exists()


def test_uv_fetches_a_python_where_none_fits_and_says_so(machine: Machine) -> None:
    machine.add_python("3.14", "python3")
    machine.add_program("uv", UV)
    machine.add_python("3.11", folder="fetched")
    code, said, asked = machine.install()
    assert (code, asked) == (0, ["uv fetches 3.11", "venv 3.11", DECLARED]), said
    assert said.startswith("install.sh: no Python 3.11, 3.12 or 3.13 is here: uv fetches 3.11 into ")


def test_without_uv_any_python3_brings_one(machine: Machine) -> None:
    machine.add_python("3.10", "python3")
    machine.add_python("3.11", folder="fetched")
    code, said, asked = machine.install()
    assert code == 0, said
    assert asked == ["venv 3.10", "uv fetches 3.11", "venv 3.11", DECLARED]


def test_what_to_install_is_said_where_nothing_helps(machine: Machine) -> None:
    code, said, _ = machine.install()
    assert code == 2
    assert "no Python 3.11, 3.12 or 3.13 is here, and no uv to fetch one. Install one of these Pythons" in said
    machine.add_program("uv", UV)  # and no network
    code, said, _ = machine.install()
    assert code == 2
    assert "uv could not fetch Python 3.11. Install Python 3.11, 3.12 or 3.13" in said


def test_what_is_installed_is_not_installed_again(machine: Machine) -> None:
    machine.add_python("3.11")
    machine.install()
    assert machine.install() == (0, "", [])
    (machine.clone / "requirements-newest.lock").write_text("second")  # that of the other stack
    assert machine.install(PYTHON="python3.11", STACK="declared") == (0, "", [])
    for name in ("requirements.lock", "pyproject.toml"):
        (machine.clone / name).write_text("second")
        assert machine.install()[2] == [DECLARED]  # into the .venv that is there


def test_an_installation_that_failed_is_done_again(machine: Machine) -> None:
    machine.add_python("3.11")
    broken = machine.folder / "broken"
    machine.write(broken, UV.replace('"pip install")', '"pip install") exit 1;'))
    assert machine.install(UV=str(broken), STACK="newest")[0] == 1
    assert machine.install()[2] == [NEWEST]


def test_a_stack_stays_until_the_other_is_named_which_makes_all_new(machine: Machine) -> None:
    machine.add_python("3.12")
    assert machine.install(STACK="newest")[2] == ["venv 3.12", NEWEST]
    machine.add_python("3.11")
    assert machine.install() == (0, "", [])
    code, said, asked = machine.install(STACK="declared")
    assert (code, asked) == (0, ["venv 3.12", DECLARED])  # its Python stays, too
    assert f"makes .venv new: it holds the stack newest {machine.clone}" in said
    code, said, _ = machine.install(STACK="latest")
    assert (code, said) == (2, "install.sh: STACK=latest is not a stack. Stacks: declared, newest.\n")


def test_settings_behind_the_name_are_refused(machine: Machine) -> None:
    machine.add_python("3.11")
    code, said, asked = machine.install("STACK=newest")
    assert (code, asked) == (2, [])
    assert "STACK=newest ./install.sh" in said


def test_another_python_makes_all_new(machine: Machine) -> None:
    machine.add_python("3.11")
    machine.add_python("3.12")
    machine.install()
    code, said, asked = machine.install(PYTHON="python3.12")
    assert (code, asked) == (0, ["venv 3.12", DECLARED])
    assert "makes .venv new: its Python is 3.11 in " in said
    assert machine.install() == (0, "", [])


def test_an_environment_without_its_python_is_made_new(machine: Machine) -> None:
    machine.add_python("3.12")
    machine.install()
    python = machine.clone / ".venv/bin/python"
    python.unlink()
    python.symlink_to(machine.folder / "removed")
    code, said, asked = machine.install()
    assert (code, asked) == (0, ["venv 3.12", DECLARED])
    assert "makes .venv new: its Python does not fit: it does not run" in said


def test_an_environment_of_a_moved_clone_is_made_new(machine: Machine) -> None:
    machine.add_python("3.12")
    machine.install()
    machine.clone = machine.clone.rename(machine.folder / "moved")
    assert machine.install()[2] == ["venv 3.12", DECLARED]


def test_the_environment_stays_when_the_clone_is_reached_by_a_link(machine: Machine) -> None:
    machine.add_python("3.12")
    machine.install()
    link = machine.folder / "link"
    link.symlink_to(machine.clone)
    machine.clone = link
    assert machine.install() == (0, "", [])


def test_a_relative_path_begins_where_the_command_is_given(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.add_python("3.12")
    monkeypatch.chdir(machine.folder)
    assert machine.install(PYTHON="bin/python3.12")[2] == ["venv 3.12", DECLARED]


def test_the_environment_may_be_on_the_path(machine: Machine) -> None:
    """As the pages advise: its Python is not taken to make it new."""
    machine.add_python("3.12")
    machine.install()
    own = machine.clone / ".venv/bin"
    shutil.copy(own / "python", own / "python3.11")
    code, said, asked = machine.install(STACK="newest", PATH=f"{own}:{machine.path}")
    assert (code, asked) == (0, ["venv 3.12", NEWEST]), said


def test_an_environment_from_before_stacks_had_names_stays(machine: Machine) -> None:
    machine.add_python("3.11")
    machine.install()
    (machine.clone / ".venv/.installed").write_text("")
    assert machine.install()[2] == [DECLARED]


def test_the_pythons_are_those_of_the_package() -> None:
    text = (ROOT / "install.sh").read_text()
    low, high = re.findall(r"\((\d+, \d+)\)", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    major, minor = high.split(", ")
    assert project["requires-python"] == f">={low.replace(', ', '.')},<{major}.{int(minor) + 1}"


@pytest.mark.parametrize(
    ("lock", "cuda"), [("requirements.lock", "nvidia-cuda-runtime-cu12"), ("requirements-newest.lock", "cuda-toolkit")]
)
def test_the_page_states_what_the_locks_hold(lock: str, cuda: str) -> None:
    page, versions = (ROOT / "docs/getting-started/installation.md").read_text(), defaultdict(list)
    for name, version in re.findall(r"^([\w-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE):
        versions[name].append(version)
    rows = [re.split(r" *\| *", line) for line in page.splitlines()]
    [[name, torch, transformers, numpy]] = [row[1:2] + row[3:6] for row in rows if f"`{lock}`" in row]
    [[built_for]] = [row[2:3] for row in rows if row[1:2] == [name.split()[0]] and row[2:3] != [f"`{lock}`"]]
    assert [torch] == versions["torch"]
    assert versions["transformers"][0].startswith(f"{transformers}.")
    assert [".".join(version.split(".")[:2]) for version in versions["numpy"]] == re.findall(r"2\.\d+", numpy)[::-1]
    assert versions[cuda][0].startswith(f"{built_for}.")


def test_the_script_is_clean() -> None:
    checked = subprocess.run([Path(sys.executable).parent / "shellcheck", ROOT / "install.sh"], capture_output=True)
    assert checked.returncode == 0, checked.stdout.decode()
    assert os.access(ROOT / "install.sh", os.X_OK)
