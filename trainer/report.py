"""One page on many runs: `python trainer/report.py RUN... --out report.html` (also report.csv and report.md)."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # by path: what `python -m trainer report` does, in the copy that this file is of
    sys.argv.insert(1, "report")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

from dataengine.errors import run_command
from trainer.reporting.page import write_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)

    def report() -> None:
        made = write_report(
            options.runs,
            Path(options.out),
            baseline=options.baseline,
            cache=options.cache,
            trials=options.trials,
            samples=options.samples,
        )
        print(*made, sep="\n")

    sys.exit(run_command(report))


def make_parser() -> argparse.ArgumentParser:
    """Make the program's parser."""
    parser = argparse.ArgumentParser(
        prog="trainer/report.py",
        description="Make one self-contained page of runs: the paper's tables with ours beside them, BLEU over steps, "
        "training, translations side by side, data. Also NAME.csv, every number in long form, and NAME.md, the tables.",
        epilog="example: python trainer/report.py runs/mini/* --out report.html --baseline no_parallel",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, folders of runs, or URLs of runs (a config's `out`)"
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--baseline", metavar="NAME", help="the run to compare with (default: no_parallel, else none)")
    parser.add_argument("--cache", default="cache", metavar="FOLDER", help="where files of a URL go (%(default)s)")
    parser.add_argument("--trials", type=int, default=10_000, metavar="N", help="of significance tests (%(default)s)")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="sentences a direction (%(default)s)")
    return parser
