"""Command lines of programs that take a config."""

from __future__ import annotations

import pytest

from trainer.run.arguments import config_parser, parse


def test_overrides_stand_before_and_after_options() -> None:
    parser = config_parser("program", "It does.")
    parser.add_argument("--step", type=int)
    options = parse(parser, ["a.yaml", "out=b", "--step", "4", "cache=c"])
    assert (options.config, options.overrides, options.step) == ("a.yaml", ["out=b", "cache=c"], 4)


@pytest.mark.parametrize(
    ("word", "hint"), [("--stp", " (did you mean '--step'?)"), ("--stp=4", " (did you mean '--step'?)"), ("--xyz", "")]
)
def test_an_unknown_option_is_named_with_the_nearest(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = config_parser("program", "It does.")
    parser.add_argument("--step", type=int)
    with pytest.raises(SystemExit) as exit:
        parse(parser, ["a.yaml", word])
    assert exit.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"program: error: unknown option {word}{hint}"
