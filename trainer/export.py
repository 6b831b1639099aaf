"""Write a checkpoint as a Hugging Face folder: `python trainer/export.py CONFIG [--step N] [KEY=VALUE ...]`.

OUT/exports/step-00000040/   files that transformers loads, and export.json, which names the checkpoint

`--average-last N` writes the mean of the N newest checkpoints to OUT/exports/step-00000040-average-N.
"""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # by path: as `python -m trainer export`, with the packages beside this file
    sys.argv.insert(1, "export")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

from dataengine.config.load import load_config
from dataengine.errors import run_command
from trainer.huggingface.export import export
from trainer.run.arguments import export_parser, parse

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 0, or 2 for unusable input."""
    options = parse(export_parser(), arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    sys.exit(
        run_command(
            lambda: print(export(load_config(options.config, options.overrides), options.step, options.average_last))
        )
    )
