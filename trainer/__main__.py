"""`python -m trainer PROGRAM ...` runs one of the six programs. A program that is run by its path starts here, too.

`composer trainer/train.py ...` is `python -m trainer train ...` of the folder that this file is in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

if not __package__:  # by path: import the packages beside this folder; its own modules hide none of their names
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(entry for entry in sys.path if Path(entry).resolve() != _FOLDER)]

from dataengine.commands.arguments import PROGRAMS
from dataengine.errors import did_you_mean
from trainer.run.arguments import PARSERS, parse
from trainer.run.imports import begin_imports
from trainer.run.interrupts import NOT_BEGUN, end_plainly

# What a program prints if a signal ends it during its imports.
_STOPPED = {
    "train": NOT_BEGUN,
    "evaluate": "stopped; run the same command again to resume",
    "report": "stopped before the report was written; run the same command again",
    "audit": "stopped",
    "replay": "stopped",
    "export": "stopped; nothing is exported",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a program with the arguments that follow its name. Exits as the program does, or with 2 for a usage error.

    The arguments are checked first, so that `--help` and usage errors do not wait for imports.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        usage="%(prog)s PROGRAM ...",
        description="Train, evaluate, and look at experiments. Add --help to a program for its options.",
        epilog="programs:\n" + "".join(f"  {row.module:10}{row.help}\n" for row in PROGRAMS) + "\n"
        "example:\n  composer -n 2 -m trainer train yamls/mini/uni_en_zh.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("program", metavar="PROGRAM", help="one of those below")
    program = parser.parse_args(arguments[:1]).program
    if program not in PARSERS:
        parser.error(f"unknown program {program}{did_you_mean(program, PARSERS)}")
    end_plainly(_STOPPED[program])
    parse(PARSERS[program](), arguments[1:])
    if program == "train":
        begin_imports()
    import_module(f"trainer.{program}").main(arguments[1:])


if __name__ == "__main__":
    main()
