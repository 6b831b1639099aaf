"""Look at what a step was trained on, or was not: `python trainer/replay.py RUN [--step N]`."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # by path: what `python -m trainer replay` does, in the copy that this file is of
    sys.argv.insert(1, "replay")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

import orjson

from dataengine.characters import escape_controls
from dataengine.errors import run_command
from dataengine.storage.atomic import output_file
from dataengine.tables import table
from trainer.run.folder import open_run
from trainer.training.replay import Replay, replay

log = logging.getLogger(__name__)
_TEXT = 60  # characters of a sample that the table shows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO)

    def run() -> None:
        with output_file(options.out) if options.out else nullcontext() as file:
            made = replay(open_run(options.run, options.cache), options.step, catch_up=options.catch_up)
            if file is not None:
                file.write(orjson.dumps(asdict(made), option=orjson.OPT_INDENT_2))
        print(escape_controls("\n".join(describe(made, options.top))))

    sys.exit(run_command(run))


def make_parser() -> argparse.ArgumentParser:
    """Make the program's parser."""
    parser = argparse.ArgumentParser(
        prog="trainer/replay.py",
        description="Rebuild the batch of a step on one process: each sample's source lines and text, and its loss and "
        "the batch's gradient norm by the newest checkpoint at or before that step. Highest losses first.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder or URL (a config's `out`)")
    parser.add_argument("--step", type=int, metavar="N", help="default: that of the newest bad-step file of RUN")
    parser.add_argument(
        "--catch-up",
        action="store_true",
        help="train the steps between the checkpoint and N first, so that the weights are those of step N, but for the "
        "order in which floats are added",
    )
    parser.add_argument("--top", type=int, default=20, metavar="N", help="show so many samples (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything, with whole texts, as JSON")
    parser.add_argument("--cache", default="cache", metavar="FOLDER", help="where files of a URL go (%(default)s)")
    return parser


def describe(made: Replay, top: int) -> list[str]:
    """A replay as lines for people, the samples of the highest loss first."""
    if made.weights_of is None:
        head = f"step {made.step:,}; no checkpoint at or before it, so there are no losses"
    else:
        head = (
            f"step {made.step:,}, by the weights after {made.weights_of:,} steps: loss {made.loss:.4f}, gradient norm "
            f"{made.grad_norm:.4f}"
        )
        if made.weights_of < made.step:
            head += f" (--catch-up first trains what is between: {made.step - made.weights_of:,})"
    ranked = sorted(made.samples, key=lambda sample: -(sample.loss if sample.loss is not None else 0.0))[:top]
    rows = [("slot", "stream", "sample id", "loss", "from", "text")]
    for sample in ranked:
        more = f" and {len(sample.sources) - 1} more" if len(sample.sources) > 1 else ""
        loss = "" if sample.loss is None else f"{sample.loss:.4f}"
        text = " ".join(sample.text.split())[:_TEXT]
        rows.append((str(sample.slot), sample.stream, f"{sample.sample_id}", loss, f"{sample.sources[0]}{more}", text))
    return [head, *table(rows, left=(1, 4, 5))]
