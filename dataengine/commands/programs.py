"""Start the trainer's programs: `dataengine train` becomes Composer's launcher, which runs trainer/train.py.

The process is replaced, so signals, exit codes and the tree of processes are those of the launcher. Nothing of the
trainer, Composer or torch is imported here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from dataengine.commands.arguments import Program, add_ranks
from dataengine.errors import InputError


def become(program: Program, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by a program. Raises InputError if its packages are not installed."""
    command = command_of(program, arguments)
    sys.stdout.flush()
    os.execv(command[0], command)


def command_of(program: Program, arguments: Sequence[str]) -> list[str]:
    """The command that runs a program: on one process, or on several by Composer's launcher."""
    path = str(_trainer(program.name) / f"{program.module}.py")
    if not program.ranks or {"-h", "--help"} & set(arguments):
        return [sys.executable, path, *arguments]
    parser = argparse.ArgumentParser(f"dataengine {program.name}", add_help=False, allow_abbrev=False)
    add_ranks(parser)
    options, rest = parser.parse_known_args(arguments)
    if options.ranks is None and not program.launched:
        return [sys.executable, path, *rest]
    ranks = [] if options.ranks is None else ["-n", str(options.ranks)]
    return [sys.executable, "-P", "-m", "composer.cli", *ranks, path, *rest]  # -P: no module of this folder


def _trainer(name: str) -> Path:
    """The folder of the package `trainer`."""
    for package in ("trainer", "torch", "composer", "streaming", "transformers"):
        found = find_spec(package)
        if found is None or found.origin is None:
            raise InputError(
                f"`dataengine {name}` needs the package {package}, which is not installed for {sys.executable}. "
                "Install the trainer with its packages: `make install` in a clone, or pip install dataengine"
            )
        if package == "trainer":
            folder = Path(found.origin).parent
    return folder
