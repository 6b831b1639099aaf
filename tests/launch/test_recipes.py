"""Every recipe parses, its commands are commands of this project, and its numbers agree."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dataengine.cli import _check_usage, make_parser
from dataengine.config.load import load_config
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
RECIPES = sorted(path for path in LAUNCH.rglob("*") if path.is_file() and path.suffix != ".dockerignore")
BIN = Path(sys.executable).parent
BUILD, TRAIN = LAUNCH / "kubernetes/build-indexed-job.yaml", LAUNCH / "kubernetes/train-jobset.yaml"
# Exit codes of `dataengine` and of launch/train.sh that mean something.
CODES = {"build": {0, 2, 3, 130}, "train": {0, 1, 2, 3, 143}}
VALUES = {  # of what the user or the scheduler fills in
    "CONFIG": "yamls/mini/uni_en_zh.yaml",
    "STORE": "s3://bucket/store",
    "OUT": "s3://bucket/out",
    "CACHE": "/tmp/cache",
    "@": "CONFIG",
    "slice": "1/8",
    "SLURM_CPUS_PER_TASK": "16",
}


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def fill_in(text: str) -> str:
    """A shell command with values for its variables."""
    text = re.sub(r"\$\(\([^()]*(\([^()]*\)[^()]*)*\)\)", "1", text)
    for _ in range(2):  # one inside of another
        text = re.sub(r"\$\{(\w+)(:-[^{}]*)?\}", lambda found: VALUES.get(found[1], "1"), text)
    text = re.sub(r"\$(\w+|@)", lambda found: VALUES.get(found[1], "1"), text)
    return re.sub(r"\b(CONFIG|STORE|OUT)\b(?!=)", lambda found: VALUES[found[1]], text)


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each command of this project in a recipe, also of those in its comments."""
    text = re.sub(r"\\\n(# *)?", "", path.read_text())
    if path.suffix == ".yaml":
        for found in re.finditer(r"args: \[(.*)\]", text):
            yield shlex.split(fill_in(found[1].replace(",", " ")))
    for found in re.finditer(
        r"(?:^|[ >:])((?:dataengine build|dataengine plan|composer|launch/train.sh) .*)", text, re.MULTILINE
    ):
        if ":" not in found[1].split()[0] and not re.search(r"args: \[|`", found[0]):
            yield [word for word in shlex.split(fill_in(found[1]), comments=True) if word != "&"]


def composers_parser() -> argparse.ArgumentParser:
    """The parser of Composer's launcher, without the half minute in which Composer is imported."""
    package = importlib.util.find_spec("composer")
    assert package is not None
    assert package.origin is not None
    tree = ast.parse((Path(package.origin).parent / "cli/launcher.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_get_parser"]
    names: dict[str, Any] = {"ArgumentParser": argparse.ArgumentParser, "composer": SimpleNamespace(__version__="")}
    exec(compile(tree, "launcher.py", "exec"), names)
    parser: argparse.ArgumentParser = names["_get_parser"]()
    return parser


def check_dataengine(words: list[str]) -> None:
    options, rest = make_parser().parse_known_args(words)
    _check_usage(options, rest)
    load_config(ROOT / options.config, [*options.overrides, *rest])


def check_training(words: list[str]) -> None:
    load_config(ROOT / words[0], [word for word in words[1:] if not word.startswith("--")])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_commands_are_those_of_this_project(path: Path) -> None:
    found = list(commands(path))
    assert found
    for program, *words in found:
        if program == "dataengine":
            check_dataengine(words)
        elif program == "composer":
            options = composers_parser().parse_args(words)
            assert options.training_script == "trainer/train.py"
            check_training(options.training_script_args)
        elif program == "launch/train.sh":
            check_training(words)
        else:
            assert program == "sh", program


def test_a_wrong_command_would_be_found() -> None:
    with pytest.raises(SystemExit):
        check_dataengine(["build", VALUES["CONFIG"], "--slise", "1/8"])
    with pytest.raises(SystemExit):
        composers_parser().parse_args(["--nprocs", "1", "trainer/train.py"])
    with pytest.raises(ValueError, match="stor"):
        check_training([VALUES["CONFIG"], "stor=s3://bucket/store"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_clean(path: Path) -> None:
    checked = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_skypilots_commands_are_clean() -> None:
    for task in documents(LAUNCH / "skypilot.yaml")[1:]:
        for text in (task["setup"], task["run"]):
            checked = subprocess.run(
                [BIN / "shellcheck", "--shell=bash", "--exclude=SC2155", "-"],
                input=text,
                capture_output=True,
                text=True,
            )
            assert checked.returncode == 0, checked.stdout


def test_the_dockerfile_is_clean() -> None:
    checked = subprocess.run([BIN / "hadolint", LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_image_has_what_torch_was_built_with() -> None:
    dockerfile = (LAUNCH / "Dockerfile").read_text()
    for lock, package, argument in (
        ("requirements.lock", "nvidia-cuda-runtime-cu12", "\nARG CUDA="),
        ("requirements-newest.lock", "cuda-toolkit", "--build-arg STACK=newest --build-arg CUDA="),
    ):
        cuda = re.search(rf"^{package}==(\d+\.\d+)\.", (ROOT / lock).read_text(), re.MULTILINE)
        assert cuda is not None
        assert f"{argument}{cuda[1]}." in dockerfile
    assert re.findall(r"ARG FLASH_ATTN=(.*)", dockerfile) == re.findall(
        r'"flash-attn>=([\d.]+)', (ROOT / "pyproject.toml").read_text()
    )


def test_the_image_copies_what_is_there_and_not_left_out() -> None:
    copied = re.findall(
        r"^COPY (?!--from)(?:--chown=\S+ )?(.*) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE
    )
    names = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in names)
    kept = {line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert names == kept


def test_exit_codes_are_ours() -> None:
    text = (LAUNCH / "train.sh").read_text()
    assert {int(code) for code in re.findall(r"^#   (\d+) ", text, re.MULTILINE)} == CODES["train"]
    slurm = (LAUNCH / "slurm_train.sbatch").read_text()
    assert {
        int(code) for line in re.findall(r"^  ([\d |]+)\) again", slurm, re.MULTILINE) for code in line.split(" | ")
    } <= CODES["train"]
    rules = {
        name: [rule["onExitCodes"] for job in documents(path) for rule in find_rules(job) if "onExitCodes" in rule]
        for name, path in (("build", BUILD), ("train", TRAIN))
    }
    for name, found in rules.items():
        assert found
        assert {code for rule in found for code in rule["values"]} <= CODES[name]
        assert {rule["containerName"] for rule in found} == {name}
    train = documents(LAUNCH / "skypilot.yaml")[2]
    assert set(train["resources"]["job_recovery"]["recover_on_exit_codes"]) == {143}


def find_rules(value: Any) -> list[Any]:
    """The rules of all podFailurePolicy below a value."""
    if isinstance(value, list):
        return [rule for each in value for rule in find_rules(each)]
    if not isinstance(value, dict):
        return []
    own = value.get("podFailurePolicy", {}).get("rules", [])
    return own + [rule for each in value.values() for rule in find_rules(each)]


def test_kubernetes_builds_every_slice_once() -> None:
    slices, finalize = documents(BUILD)
    number = slices["spec"]["completions"]
    [command] = [word for word in slices["spec"]["template"]["spec"]["containers"][0]["args"] if "--slice" in word]
    assert re.findall(r"\+ 1\)\)/(\d+)", command) == [str(number)]
    words = finalize["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--slices") + 1] == str(number)
    for job in (slices, finalize):
        assert f"-l step={job['metadata']['labels']['step']}" in BUILD.read_text()
    assert f"job/{slices['metadata']['name']}" in BUILD.read_text()


def test_kubernetes_nodes_meet() -> None:
    [jobset] = documents(TRAIN)
    [job] = jobset["spec"]["replicatedJobs"]
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    name = jobset["metadata"]["name"]
    assert environment["MASTER_ADDR"] == f"{name}-{job['name']}-0-0.{name}"
    assert environment["NODES"] == str(job["template"]["spec"]["completions"])
    assert job["template"]["spec"]["completions"] == job["template"]["spec"]["parallelism"]
    assert environment["GPUS"] == container["resources"]["limits"]["nvidia.com/gpu"]
