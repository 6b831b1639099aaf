"""docs/reference/cli.md: the help of every command, from its parser."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator

from dataengine.cli import make_parser
from dataengine.commands.arguments import COMMANDS, PROGRAMS
from trainer.run.arguments import PARSERS

_HEAD = """<!-- Generated from the programs' parsers by docs/generate/cli.py. Do not edit: python -m docs.generate -->
# Commands

`dataengine COMMAND --help` prints the same. CONFIG is the YAML file of an experiment. KEY=VALUE replaces a setting,
such as `batch_size=64`. [Settings](config.md) and [exit codes](exit-codes.md) have pages of their own.

"""


def pages() -> dict[str, str]:
    """The page."""
    parsers = {**dataengine_parsers(), **trainer_parsers()}
    contents = "".join(f"- [`{name}`](#{_anchor(name)})\n" for name in parsers)
    return {"docs/reference/cli.md": _HEAD + contents + "".join(_section(*row) for row in parsers.items())}


def dataengine_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each subcommand of `dataengine`, by its command."""
    commands = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {f"dataengine {command.name}": commands.choices[command.name] for command in COMMANDS}


def trainer_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each program of the trainer that `dataengine` starts, by its command."""
    return {f"dataengine {program.name}": PARSERS[program.module]() for program in PROGRAMS}


def usage(parser: argparse.ArgumentParser) -> str:
    """The usage in lines of at most 90 characters, whatever the width of the terminal."""
    words = " ".join(parser.format_usage().removeprefix("usage: ").split())
    kept = re.sub(r"\[[^]]*\]", lambda option: option[0].replace(" ", "\0"), words)  # no line ends inside of an option
    lines = textwrap.wrap(kept, 90, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _anchor(title: str) -> str:
    """The anchor that Python-Markdown and GitHub give a heading of plain words."""
    return re.sub(r"[^\w -]", "", title).replace(" ", "-").lower()


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    lines = ["", f"## {name}", "", "```text", usage(parser), "```", "", _prose(parser.description or ""), ""]
    rows = [(_names(action), _meaning(parser, action)) for action in parser._actions if action.dest != "help"]
    lines += ["| argument | meaning |", "| --- | --- |", *(f"| {names} | {meaning} |" for names, meaning in rows), ""]
    return "\n".join([*lines, *_epilog(parser)]).rstrip() + "\n"


def _names(action: argparse.Action) -> str:
    metavar = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
    if action.choices is not None and action.metavar is None:
        metavar = f" {{{','.join(map(str, action.choices))}}}"
    if not action.option_strings:
        return f"`{action.metavar}`".replace("|", "\\|") + {"*": ", any number", "+": ", one or more"}.get(
            str(action.nargs), ""
        )
    return ", ".join(f"`{option}{metavar}`".replace("|", "\\|") for option in action.option_strings)


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return _prose(text + (" (required)" if action.required and action.option_strings else "")).replace("|", "\\|")


def _epilog(parser: argparse.ArgumentParser) -> Iterator[str]:
    """An example becomes a block of its own, so that a test can type it; all else is a paragraph."""
    text = parser.epilog or ""
    prose, _, example = text.partition("example:") if "example:" in text else (text, "", "")
    if prose.strip():
        yield from (_prose(prose), "")
    if example.strip():
        yield from ("Example:", "", *(f"    {line.strip()}" for line in example.strip().splitlines()))


def _prose(text: str) -> str:
    """One paragraph, with what would be Markdown or HTML as it is."""
    return " ".join(text.replace("-\n", "-").split()).replace("*", "\\*").replace("<", "&lt;")
