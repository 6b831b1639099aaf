"""Command lines of programs that take a config."""

from __future__ import annotations

import shlex

import pytest

from dataengine.commands.arguments import PROGRAMS
from dataengine.config.load import load_config
from tests.conftest import ROOT
from trainer.run.arguments import PARSERS, config_parser, parse


def test_overrides_may_come_before_and_after_options() -> None:
    parser = config_parser("program", "It does.", "program a.yaml")
    parser.add_argument("--step", type=int)
    options = parse(parser, ["a.yaml", "out=b", "--step", "4", "cache=c"])
    assert (options.config, options.overrides, options.step) == ("a.yaml", ["out=b", "cache=c"], 4)


@pytest.mark.parametrize(
    ("word", "hint"), [("--stp", " (did you mean '--step'?)"), ("--stp=4", " (did you mean '--step'?)"), ("--xyz", "")]
)
def test_an_unknown_option_is_named_with_the_nearest(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = config_parser("program", "It does.", "program a.yaml")
    parser.add_argument("--step", type=int)
    with pytest.raises(SystemExit) as exit:
        parse(parser, ["a.yaml", word])
    assert exit.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"dataengine program: error: unknown option {word}{hint}"


@pytest.mark.parametrize("program", PARSERS)
def test_examples_of_help_can_be_typed(program: str) -> None:
    parser = PARSERS[program]()
    name = next(row.name for row in PROGRAMS if row.module == program)
    _, _, examples = parser.format_help().partition("\nexample:\n")
    lines = examples.splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line.removeprefix(f"  dataengine {name} "))
        options = parse(parser, words[2:] if words[0] == "-n" else words)
        if "config" in options:
            load_config(ROOT / options.config, options.overrides)


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_ranks_are_the_launchers(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(PARSERS[program](), ["-n", "2", "a.yaml"])
    assert exit.value.code == 2
    assert f"-n is an option of the launcher: give it to `dataengine {program}`" in capsys.readouterr().err


def test_unknown_sets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(PARSERS["evaluate"](), ["a.yaml", "--sets", "dev,test"]).sets == ["dev", "test"]
    with pytest.raises(SystemExit):
        parse(PARSERS["evaluate"](), ["a.yaml", "--sets", "dev,tset"])
    assert "'tset' is not one of dev, test, reasoning (did you mean 'test'?)" in capsys.readouterr().err
