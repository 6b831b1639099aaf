from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dataengine.cli import main
from dataengine.config import dump_config
from tests.conftest import ConfigMaker


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_build_prints_tables_and_then_that_there_is_nothing_to_do(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config()))
    assert exit_code(["build", str(path), "--workers", "1", f"store={tmp_path / 'elsewhere'}"]) == 0
    printed = capsys.readouterr().out
    assert "24 samples (50.0%)" in printed
    assert exit_code(["build", "--workers", "1", str(path), f"store={tmp_path / 'elsewhere'}"]) == 0
    assert capsys.readouterr().out.startswith(f"nothing to do: {tmp_path}/elsewhere/experiments/small/")


def test_unusable_input_is_one_paragraph_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["build", str(tmp_path / "none.yaml")]) == 2
    path = tmp_path / "none.yaml"
    assert capsys.readouterr().err == (
        f"error: cannot read config {path}: No such file or directory. Give the path of a YAML file.\n"
    )


@pytest.mark.parametrize(
    "arguments", [[], ["bild"], ["build"], ["build", "x.yaml", "--worker-count", "1"], ["build", "x", "--workers", "0"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert exit_code(arguments) == 2


def test_the_build_path_imports_no_torch() -> None:
    heavy = "('torch', 'streaming', 'composer', 'transformers')"
    code = f"import sys, dataengine.build, dataengine.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
