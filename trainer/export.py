"""Write a checkpoint as a Hugging Face folder: `python trainer/export.py CONFIG [--step N] [key=value ...]`.

OUT/exports/step-00000040/   what transformers loads, and export.json, which says of which checkpoint it is
"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # by path: what `python -m trainer export` does, in the copy that this file is of
    sys.argv.insert(1, "export")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

from dataengine.config.load import load_config
from dataengine.errors import run_command
from trainer.huggingface.export import export
from trainer.run.arguments import config_parser, parse

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    options = parse(make_parser(), arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    sys.exit(run_command(lambda: print(export(load_config(options.config, options.overrides), options.step))))


def make_parser() -> argparse.ArgumentParser:
    """Make the program's parser."""
    parser = config_parser(
        prog="trainer/export.py",
        description="Write a checkpoint to OUT/exports/step-N as a folder that transformers loads; one that is there "
        "is kept if it is of this checkpoint. If OUT is in a bucket, the checkpoint is fetched to the folder of the "
        "run below `cache`, where the export lies then.",
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of so many steps (default: the newest)")
    return parser
