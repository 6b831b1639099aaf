"""`python -m trainer PROGRAM ...`: the door to the six programs, also for one that is run by its path.

`composer trainer/train.py ...` is `python -m trainer train ...` of the folder that this file is in.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

if not __package__:  # by path: import the packages beside this folder; its own modules hide none of their names
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(entry for entry in sys.path if Path(entry).resolve() != _FOLDER)]

from trainer.run.interrupts import NOT_BEGUN, end_plainly

_PROGRAMS = {
    "train": "train an experiment, or go on with it",
    "evaluate": "translate with checkpoints, score, and choose one",
    "report": "make one page of many runs",
    "audit": "prove what a run was trained on",
    "replay": "look at what a step was trained on",
    "export": "write a checkpoint as a Hugging Face folder",
}
# What a program says when it is ended by a signal while it is imported.
_STOPPED = {
    "train": NOT_BEGUN,
    "evaluate": "stopped; the same command goes on with what is left",
    "report": "stopped before the report was whole; the same command makes it",
    "audit": "stopped",
    "replay": "stopped",
    "export": "stopped; no part of the export is left",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a program with the arguments that follow its name; exit as it does, or with 2 if there is none such."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        usage="%(prog)s PROGRAM ...",
        description="Train, evaluate and look at experiments; PROGRAM --help says more.",
        epilog="programs:\n" + "".join(f"  {name:10}{help}\n" for name, help in _PROGRAMS.items()) + "\n"
        "example, on two ranks: composer -n 2 -m trainer train yamls/mini/uni_en_zh.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("program", metavar="PROGRAM", help="one of those below")
    program = parser.parse_args(arguments[:1]).program
    if program not in _PROGRAMS:
        near = difflib.get_close_matches(program, _PROGRAMS, n=1)
        parser.error(f"unknown program {program}" + (f" (did you mean {near[0]}?)" if near else ""))
    end_plainly(_STOPPED[program])
    import_module(f"trainer.{program}").main(arguments[1:])


if __name__ == "__main__":
    main()
