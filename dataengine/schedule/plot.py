"""Draw a schedule: the mix over steps, the tokens drawn from each stream, and the learning rate."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from dataengine.errors import InputError
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings
from dataengine.schedule.stages import stage_rows

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_POINTS = 1500


def plot_plan(manifest: Manifest, path: Path, settings: Settings | None = None, first: int = 0) -> None:
    """Write a picture of a plan as .png, .svg, .pdf or .html. `settings` add the learning rate from step `first`."""
    schedule, panels = manifest.schedule, 3 if settings else 2
    figure, axes = plt.subplots(panels, 1, figsize=(10, 3.25 * panels), sharex=True, layout="constrained")
    above, below = axes[:2]
    figure.suptitle(
        f"{manifest.name}: {schedule.steps:,} steps of {manifest.batch_size:,} x {manifest.seq_len:,} tokens"
    )
    starts = np.array([*schedule.stage_starts, schedule.steps])
    between = np.array([schedule.steps * k // (_POINTS - 1) for k in range(_POINTS)])
    steps = np.unique(np.concatenate([between, starts, starts[1:] - 1]))
    draw_mix(above, manifest, steps)
    cursors = [schedule.cursors(int(step)) for step in steps]
    colours = stream_colours(manifest)
    for stream in manifest.streams:
        drawn = np.array([cursor.get(stream.name, 0) for cursor in cursors])
        label = f"{stream.name}: {drawn[-1] * manifest.seq_len:,} tokens"
        below.plot(steps, drawn / max(stream.samples, 1), color=colours[stream.name], label=label)
    below.set(ylabel="epochs of the stream", ylim=(0, None))
    below.grid(alpha=0.3)
    below.legend(frameon=False)
    if settings:
        _draw_rate(axes[2], settings, np.append(steps, _turns(settings)), first, schedule.steps)
    axes[-1].set_xlabel("step")
    save_figure(figure, path)


def _turns(settings: Settings) -> NDArray[np.int64]:
    """Steps at which the rate turns: restarts, the steps before them, and the ends of warm-ups."""
    begins = np.array([0, *settings.restarts])
    return np.concatenate([begins, begins - 1, begins + settings.train.warmup_steps])


def _draw_rate(axes: Axes, settings: Settings, steps: NDArray[np.int64], first: int, last: int) -> None:
    shown = np.unique(steps[(steps >= first) & (steps < last)])
    axes.plot(shown, [settings.rate(int(step)) for step in shown], color="black", linewidth=1.2)
    axes.set(ylabel="learning rate", ylim=(0, None))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.grid(alpha=0.3)


def stream_colours(manifest: Manifest) -> dict[str, str]:
    """A colour for each stream. The stream with the most samples in the run gets the first."""
    drawn = manifest.schedule.cursors(manifest.schedule.steps)
    names = sorted((stream.name for stream in manifest.streams), key=lambda name: -drawn.get(name, 0))
    return {name: f"C{number}" for number, name in enumerate(names)}


def mix_shares(
    manifest: Manifest, steps: NDArray[np.int64], names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The share of each stream in the batches between two of `steps`: edges (n + 1,), shares (names, n)."""
    schedule = manifest.schedule
    edges = np.append(steps[steps < schedule.steps], min(int(steps[-1]) + 1, schedule.steps))
    edges = np.unique(edges)
    cursors = [schedule.cursors(int(step)) for step in edges]
    counts = np.array([[cursor.get(name, 0) for cursor in cursors] for name in names])
    return edges, np.diff(counts, axis=1) / np.diff(edges) / manifest.batch_size


def draw_mix(axes: Axes, manifest: Manifest, steps: NDArray[np.int64]) -> None:
    """Stack the shares of the streams between two of `steps`, and name the stages."""
    colours = stream_colours(manifest)
    edges, shares = mix_shares(manifest, steps, list(colours))
    shares = np.concatenate([shares, shares[:, -1:]], axis=1)  # a step plot needs the last value twice
    axes.stackplot(edges, shares, labels=list(colours), colors=list(colours.values()), step="post", alpha=0.8)
    axes.set(ylabel="share of the batch", ylim=(0, 1), xlim=(0, edges[-1]))
    for row in stage_rows(manifest.schedule):
        if row.start < edges[-1]:
            narrow = row.steps < 0.12 * edges[-1]  # the name is vertical
            axes.annotate(
                row.name,
                (row.start, 1),
                xytext=(2 if narrow else 4, -4),
                textcoords="offset points",
                fontsize=8 if narrow else 9,
                rotation=90 if narrow else 0,
                verticalalignment="top",
            )
            if row.start:
                axes.axvline(row.start, color="black", linewidth=0.8, linestyle=":")


def save_figure(figure: Figure, path: Path) -> None:
    """Save and close a figure; .html is a page with the SVG. Raises InputError for an unknown suffix."""
    if path.suffix == ".html":
        picture = io.StringIO()
        figure.savefig(picture, format="svg")
        svg = picture.getvalue()
        page = f"<!doctype html><meta charset='utf-8'><title>{path.stem}</title>{svg[svg.index('<svg') :]}"
        path.write_text(page, encoding="utf-8")
    elif path.suffix in (".png", ".svg", ".pdf"):
        figure.savefig(path, dpi=130)
    else:
        raise InputError(f"cannot draw into {path}: the name must end in .png, .svg, .pdf or .html")
    plt.close(figure)
