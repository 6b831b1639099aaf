"""One page on many runs: `python trainer/report.py RUN... --out report.html` (also report.csv and report.md)."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # by path: as `python -m trainer report`, with the packages beside this file
    sys.argv.insert(1, "report")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

from dataengine.errors import run_command
from trainer.reporting.page import write_report
from trainer.run.arguments import parse, report_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 0, or 2 for unusable input."""
    options = parse(report_parser(), arguments)
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
