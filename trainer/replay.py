"""Show the samples of a training step and their losses: `python trainer/replay.py RUN [--step N]`."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # by path: as `python -m trainer replay`, with the packages beside this file
    sys.argv.insert(1, "replay")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

import orjson

from dataengine.characters import escape_controls
from dataengine.errors import run_command
from dataengine.storage.atomic import output_file
from dataengine.tables import table
from trainer.run.arguments import parse, replay_parser
from trainer.run.folder import open_run
from trainer.training.replay import Replay, replay

log = logging.getLogger(__name__)
_TEXT = 60  # characters of a sample that the table shows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 0, or 2 for unusable input."""
    options = parse(replay_parser(), arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO)

    def run() -> None:
        with output_file(options.out) if options.out else nullcontext() as file:
            made = replay(open_run(options.run, options.cache), options.step, catch_up=options.catch_up)
            if file is not None:
                file.write(orjson.dumps(asdict(made), option=orjson.OPT_INDENT_2))
        print(escape_controls("\n".join(describe(made, options.top))))

    sys.exit(run_command(run))


def describe(made: Replay, top: int) -> list[str]:
    """A replay as lines of text, highest losses first."""
    if made.weights_of is None:
        head = f"step {made.step:,}; no checkpoint at or before it, so there are no losses"
    else:
        head = (
            f"step {made.step:,}, by the weights after {made.weights_of:,} steps: loss {made.loss:.4f}, gradient norm "
            f"{made.grad_norm:.4f}"
        )
        if made.weights_of < made.step:
            head += f" (--catch-up first trains the steps between: {made.step - made.weights_of:,})"
    ranked = sorted(made.samples, key=lambda sample: -(sample.loss if sample.loss is not None else 0.0))[:top]
    rows = [("slot", "stream", "sample id", "loss", "from", "text")]
    for sample in ranked:
        more = f" and {len(sample.sources) - 1} more" if len(sample.sources) > 1 else ""
        loss = "" if sample.loss is None else f"{sample.loss:.4f}"
        text = " ".join(sample.text.split())[:_TEXT]
        rows.append((str(sample.slot), sample.stream, f"{sample.sample_id}", loss, f"{sample.sources[0]}{more}", text))
    return [head, *table(rows, left=(1, 4, 5))]
