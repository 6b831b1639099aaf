"""The `dataengine` command."""

from __future__ import annotations

import argparse
import os
import select
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from dataengine.commands.arguments import COMMANDS, PROGRAMS, Command, Program, add_ranks, is_file, refuse_option
from dataengine.errors import did_you_mean, run_command

_SHELLS = ("bash", "zsh", "tcsh", "fish")
_EPILOG = """Add --help to a command for its options.

example:
  dataengine build yamls/mini/uni_en_zh.yaml
  dataengine train -n 2 yamls/mini/uni_en_zh.yaml

completion in bash, for zsh and fish alike:
  eval "$(dataengine --print-completion bash)"
"""
_CONFIGS = {
    "CONFIG": "the experiment's YAML file",
    "CONFIG|MANIFEST": "the experiment's YAML file, or a built manifest.json",
    "CONFIG|FOLDER": "the experiment's YAML file, or the folder or URL of one stream",
    "STORE|CONFIG": "a store, or an experiment's YAML file",
    "NAME": "the experiment's name",
}
_REST = {
    "KEY=VALUE": "settings that replace the file's, such as batch_size=64",
    "CONFIG|KEY=VALUE": "more experiments' YAML files, and settings that replace those of all of them",
    "PATH": "files, folders, globs or URLs",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exits with 0; 2 for unusable input; 3 if other slices must continue first; 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    if arguments and not arguments[0].startswith("-"):
        _check_command(parser, arguments[0])
        for program in PROGRAMS:
            if program.name == arguments[0]:
                _start(program, arguments[1:])
    # argparse does not assign what follows an option to `nargs="*"`, so overrides after one arrive as unknown.
    options, rest = parser.parse_known_args(arguments)
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
        print("stopped; run the same command again to resume", file=sys.stderr)
        sys.exit(130)


def _has_no_reader(descriptor: int) -> bool:
    """Whether a descriptor is a pipe whose reader has closed it."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C or was caused by it: compiled code and imports raise errors of their own.

    A panic in compiled Rust names it only in its text.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        if type(error).__name__ == "PanicException" and "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_command(parser: argparse.ArgumentParser, word: str) -> None:
    """Exit with the usage, and the nearest command, for an unknown command."""
    names = [row.name for row in (*COMMANDS, *PROGRAMS)]
    if word not in names:
        parser.error(f"unknown command {word}{did_you_mean(word, names)}. The commands are {', '.join(names)}")


def _check_usage(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Exit with the command's usage for unknown options and for options that do not go together."""
    parser: argparse.ArgumentParser = options.parser
    for word in rest:
        if word.startswith("-"):
            refuse_option(parser, word)
    if words := options.chosen.misuse(options):
        parser.error(words)


def _start(program: Program, arguments: Sequence[str]) -> NoReturn:
    """Become a program of the trainer."""
    from dataengine.commands.programs import become

    sys.exit(run_command(lambda: become(program, arguments)))


def _run(options: argparse.Namespace) -> None:
    """Import the command and run it. It is imported only here, so that --help is quick."""
    module, _, function = options.chosen.runs.partition(".")
    getattr(import_module(f"dataengine.commands.{module}"), function)(options)


def make_parser(*, listed: bool = False) -> argparse.ArgumentParser:
    """Make the parser of all commands.

    The help lists commands in groups. With `listed`, argparse lists them itself, for tools that read the parser.
    """
    parser = argparse.ArgumentParser(
        prog="dataengine",
        usage="%(prog)s COMMAND ...",
        description="Turn documents and sentence pairs into token streams and a training schedule, and train on them.",
        epilog=f"{_describe_groups()}\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action=_PrintVersion,
        nargs=0,
        help="show program's version number and exit",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=_SHELLS, help="print a script for the shell and exit"
    )
    parsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="dataengine", help=None if listed else argparse.SUPPRESS
    )
    for command in COMMANDS:
        _add_command(parsers.add_parser(command.name, **_texts(command)), command)
    for program in PROGRAMS:  # `main` starts these without parsing; here they serve shell completion
        one = parsers.add_parser(program.name, help=program.help, add_help=False)
        if program.ranks:
            add_ranks(one)
        is_file(one.add_argument("arguments", nargs="*"))
    return parser


def installed_version() -> str:
    """Return the installed version. A checkout runs without being installed, from its own folder."""
    from importlib.metadata import PackageNotFoundError, version  # as slow as all other imports of --help together

    try:
        return version("dataengine")
    except PackageNotFoundError:
        return "(not installed)"


def _texts(command: Command) -> dict[str, Any]:
    return {
        "help": command.help,
        "description": textwrap.fill(command.description, 79),
        "epilog": "example:\n" + "\n".join(f"  dataengine {example}" for example in command.examples),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _add_command(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.set_defaults(chosen=command, parser=parser)
    is_file(parser.add_argument("config", metavar=command.config, help=_CONFIGS[command.config]))
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar=command.rest,
        help=_REST[command.rest],
    )
    command.add_arguments(parser)


def _describe_groups() -> str:
    """The commands and what they do, in groups."""
    groups: dict[str, list[Command | Program]] = {}
    for command in COMMANDS:
        groups.setdefault(command.group, []).append(command)
    groups["train and evaluate"] = list(PROGRAMS)
    return "\n".join(
        f"{group}:\n" + "".join(f"  {row.name:14}{row.help}\n" for row in rows) for group, rows in groups.items()
    )


class _PrintVersion(argparse.Action):
    """Print the version, which is found only if it is asked for."""

    def __call__(self, parser: object, namespace: object, values: Any, option_string: str | None = None) -> None:
        print(f"dataengine {installed_version()}")
        sys.exit(0)


class _PrintCompletion(argparse.Action):
    """Print a script that completes commands, options and files in a shell."""

    def __call__(self, parser: object, namespace: object, values: Any, option_string: str | None = None) -> None:
        import shtab

        print(shtab.complete(make_parser(listed=True), values))
        sys.exit(0)
