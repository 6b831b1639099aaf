"""The `dataengine` command."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import select
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from dataengine.commands.arguments import COMMANDS
from dataengine.errors import run_command

_CONFIGS = {
    "CONFIG": "the experiment's YAML file",
    "CONFIG|MANIFEST": "the experiment's YAML file, or a built manifest.json",
    "CONFIG|FOLDER": "the experiment's YAML file, or the folder or URL of one stream",
    "NAME": "the experiment's name",
}
_REST = {
    "KEY=VALUE": "settings that replace the file's, such as batch_size=64",
    "PATH": "files, folders, globs or s3:// URLs",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, 2 for unusable input, 3 if others have to go on first, 130 after Ctrl-C."""
    # argparse gives no `nargs="*"` what follows an option, so overrides after one arrive as unknown.
    options, rest = _make_parser().parse_known_args(arguments)
    _check_usage(options, rest)
    options.overrides += rest
    try:
        code = run_command(lambda: _run(options))
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        if not _has_no_reader(sys.stdout.fileno()):  # another pipe broke, such as that of a worker process
            raise
        # `dataengine inspect ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _has_no_reader(descriptor: int) -> bool:
    """Whether a descriptor is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or what a library made of it: compiled code and imports raise errors of their own.

    A panic of compiled Rust names it in its text only.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        if type(error).__name__ == "PanicException" and "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_usage(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """End with the command's usage if what it was given does not go together."""
    parser: argparse.ArgumentParser = options.parser
    known = re.findall(r"--[a-z-]+", parser.format_usage())
    for word in rest:
        if word.startswith("-"):
            near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
            parser.error(f"unknown option {word}" + (f" (did you mean {near[0]}?)" if near else ""))
    if words := options.chosen.misuse(options):
        parser.error(words)


def _run(options: argparse.Namespace) -> None:
    """Import the command and run it: --help answers at once."""
    module, _, function = options.chosen.runs.partition(".")
    getattr(import_module(f"dataengine.commands.{module}"), function)(options)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dataengine",
        description="Turn documents and sentence pairs into token streams and a training schedule.",
    )
    parser.add_argument("--version", action="version", version=f"dataengine {version('dataengine')}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        one = parsers.add_parser(
            command.name,
            help=command.help,
            description=textwrap.fill(command.description, 79),
            epilog=f"example:\n  dataengine {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        one.set_defaults(chosen=command, parser=one)
        one.add_argument("config", metavar=command.config, help=_CONFIGS[command.config])
        one.add_argument(
            "overrides",
            nargs="*",
            default=[],
            metavar=command.rest,
            help=_REST[command.rest],
        )
        command.add_arguments(one)
    return parser
