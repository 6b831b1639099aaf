"""Draw a run: `python trainer/report.py RUN...` writes RUN/report.png, loss per stream and mix over steps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from matplotlib import pyplot as plt

from dataengine.errors import InputError, run_command
from dataengine.manifest import read_manifest
from dataengine.plot import draw_mix, save_figure, stream_colours
from trainer.runs import local_folder
from trainer.step_log import read_log


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="trainer/report.py",
        description="Draw loss per stream and mix over steps of runs, to RUN/report.png each; of a run in a bucket, "
        "to its folder below the cache.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or their URLs (a config's `out`)")
    parser.add_argument("--cache", default="cache", metavar="FOLDER", help="where the log of a URL goes (%(default)s)")
    options = parser.parse_args(arguments)
    sys.exit(run_command(lambda: _draw(options.runs, options.cache)))


def _draw(runs: Sequence[str], cache: str) -> None:
    for run in runs:
        print(draw_run(local_folder(run, cache)))


def draw_run(run: Path) -> Path:
    """Draw one run from its log and manifest; return the picture's path."""
    if not (run / "log.csv").is_file():
        raise InputError(f"no log.csv in {run}: give the folder (a config's `out`) of a run that has trained")
    manifest = read_manifest(run / "manifest.json")
    rows = read_log(run / "log.csv")
    if not rows:
        raise InputError(f"{run / 'log.csv'} has no steps yet")
    names = [stream.name for stream in manifest.streams]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    steps = np.array([int(row["step"]) for row in rows])
    colours = stream_colours(manifest)
    for name in names:
        losses = np.array([float(row[f"loss/{name}"] or "nan") for row in rows])
        above.plot(steps, losses, color=colours[name], linewidth=1.2, label=name)
    above.set_ylabel("training loss (nats a token)")
    above.legend(title="stream", frameon=False)
    above.grid(alpha=0.3)
    above.set_title(f"{manifest.name}: {len(rows):,} of {manifest.schedule.steps:,} steps", loc="left")
    draw_mix(below, manifest, steps)
    below.set(xlabel="step")
    for start in manifest.schedule.stage_starts[1:]:
        if start <= steps[-1]:
            above.axvline(start, color="black", linewidth=0.8, linestyle=":")
    path = run / "report.png"
    save_figure(figure, path)
    return path


if __name__ == "__main__":
    main()
