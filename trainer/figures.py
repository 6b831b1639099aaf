"""Pictures of a report, as SVG to put into a page: text stays text, and equal input gives equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape

import matplotlib
import numpy as np
from numpy.typing import NDArray

from dataengine.plot import draw_mix
from dataengine.stages import stage_rows
from trainer.report_data import Floats, TrainedRun

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's colours, told apart by colour-blind readers; the yellow one is too light for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6F47", "#7A5195", "#6B6B6B")
_STREAMS = (
    "#8A97A8",
    "#C9694A",
    "#3E9C86",
    "#9C6BA8",
    "#C29A2E",
    "#4F86B8",
    "#A8577E",
    "#6F8F3C",
    "#5C5C8A",
    "#B07D52",
)
_MARKERS = "osD^vPX*<>"
_WIDTH = 12.2  # inches, a page's column
_POINTS = 400  # of a curve of training


def style() -> AbstractContextManager[None]:
    """Settings of all pictures."""
    return plt.rc_context(
        {
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#666666",
            "axes.labelcolor": "#333333",
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "axes.axisbelow": True,
            "axes.titlesize": 11.5,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
        }
    )


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Close a figure and return it as an <svg> element; `name` is its own in the page, `label` says what is seen."""
    picture = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r'((?:href="|url\()#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px", svg)  # the page's own font
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    begin = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {width} {height}" aria-label="{escape(label)}" style="max-width:{float(width) * 4 / 3:.0f}px">'
    )
    return re.sub(r"<svg [^>]*>", lambda _: begin, svg, count=1)


def run_colours(runs: Sequence[TrainedRun]) -> dict[str, str]:
    """A colour for each run, by label."""
    return {run.label: PALETTE[number % len(PALETTE)] for number, run in enumerate(runs)}


def stream_colours(runs: Sequence[TrainedRun]) -> dict[str, str]:
    """A colour for each stream, the same in all runs; documents come first."""
    kinds = {name: run.kind(name) for run in runs for name in run.streams}
    names = sorted(kinds, key=lambda name: (kinds[name] != "documents", kinds[name], name))
    return {name: _STREAMS[number % len(_STREAMS)] for number, name in enumerate(names)}


def bleu_curves(runs: Sequence[TrainedRun], directions: Sequence[str], shots: int) -> str:
    """BLEU on dev over steps, a panel a direction: what is learned, and forgotten once its data are used up."""
    colours = run_colours(runs)
    columns = min(2, len(directions))
    lines = -(-len(directions) // columns)
    with style():
        figure, grid = plt.subplots(
            lines, columns, figsize=(_WIDTH, 0.6 + 3.0 * lines), layout="constrained", sharex=True, squeeze=False
        )
        for axes, direction in zip(grid.flat, directions, strict=False):
            for number, run in enumerate(runs):
                found = [(one.step, one.find("dev", direction, shots)) for one in run.evaluations]
                points = [(step, one.bleu) for step, one in found if one is not None]
                if not points:
                    continue
                steps = np.array([step for step, _ in points])
                scores = np.array([score.score for _, score in points])
                low, high = (
                    np.array([np.nan if value is None else value for value in values])
                    for values in ([s.low for _, s in points], [s.high for _, s in points])
                )
                colour = colours[run.label]
                axes.fill_between(steps, low, high, color=colour, alpha=0.14, linewidth=0)
                axes.plot(
                    steps, scores, color=colour, linewidth=1.6, marker=_MARKERS[number % len(_MARKERS)], markersize=4
                )
                chosen = run.chosen["step"] if run.chosen else None
                if chosen in steps:
                    at = int(np.flatnonzero(steps == chosen)[0])
                    axes.plot(
                        [chosen], [scores[at]], "o", markersize=11, markerfacecolor="none", markeredgecolor=colour,
                        markeredgewidth=1.4,
                    )  # fmt: skip
            axes.set_title(direction)
            axes.set_ylim(bottom=0)
            axes.set_ylabel("BLEU")
        for axes in list(grid.flat)[len(directions) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        _draw_boundaries(list(grid.flat)[: len(directions)], runs, colours)
        _legend(figure, {run.label: colours[run.label] for run in runs}, _MARKERS)
    return to_svg(figure, f"bleu-{shots}", f"BLEU over steps, {shots}-shot, for {', '.join(directions)}")


def _draw_boundaries(panels: Sequence[Axes], runs: Sequence[TrainedRun], colours: Mapping[str, str]) -> None:
    """Where stages of each run begin: a tick at the top in the run's colour."""
    for axes in panels:
        for run in runs:
            for start in [row.start for row in stage_rows(run.manifest.schedule)[1:]]:
                axes.plot([start, start], [0.95, 1.0], color=colours[run.label], transform=axes.get_xaxis_transform(),
                          linewidth=2.2, clip_on=False)  # fmt: skip


def _legend(figure: Figure, colours: Mapping[str, str], markers: str) -> None:
    handles = [
        Line2D([], [], color=colour, marker=markers[number % len(markers)] or None, markersize=4, label=name)
        for number, (name, colour) in enumerate(colours.items())
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(5, len(handles)))


def mix_strip(run: TrainedRun, number: int, colours: Mapping[str, str]) -> str:
    """The schedule of a run as a narrow band: the share of each stream over steps."""
    schedule = run.manifest.schedule
    with style():
        figure, axes = plt.subplots(figsize=(2.6, 0.28))
        figure.subplots_adjust(0, 0, 1, 1)
        draw_mix(axes, run.manifest, _some_steps(schedule.steps, schedule.stage_starts), colours)
        for text in list(axes.texts):
            text.remove()
        axes.axis("off")
    return to_svg(figure, f"strip-{number}", f"schedule of {run.label}: {_describe_mix(run)}")


def _describe_mix(run: TrainedRun) -> str:
    return ", then ".join(dict.fromkeys(stage.name for stage in run.manifest.stages))


def _some_steps(steps: int, starts: Sequence[int]) -> NDArray[np.int64]:
    """Steps at which a mix is drawn: few enough that a share is a mean over some steps, not the counts of one."""
    found = [*np.linspace(0, steps - 1, min(100, max(2, steps // 8))).astype(int).tolist(), *starts]
    return np.unique(np.array([step for step in found if step < steps], dtype=np.int64))


def training(run: TrainedRun, number: int, colours: Mapping[str, str]) -> str:
    """Loss per stream, mix, gradient norm, learning rate, speed and memory of one run, over steps."""
    schedule = run.manifest.schedule
    with style():
        figure, grid = plt.subplots(2, 3, figsize=(_WIDTH, 5.6), layout="constrained", sharex=True)
        (loss, norm, rate), (mix, speed, memory) = grid
        for stream in run.streams:
            steps, losses = run.column(f"loss/{stream}")
            if len(steps):
                loss.plot(*_thin(steps, losses), color=colours[stream], linewidth=1.4, label=stream)
        loss.set(ylabel="training loss (nats a token)")
        loss.legend()
        draw_mix(mix, run.manifest, _some_steps(min(run.steps, schedule.steps), schedule.stage_starts), colours)
        for axes, column, label in (
            (norm, "grad_norm", "gradient norm"),
            (rate, "learning_rate", "learning rate"),
            (speed, "tokens_per_second", "tokens a second"),
            (memory, "memory_gb", "memory of a rank (GB)"),
        ):
            steps, values = run.column(column)
            if len(steps):
                axes.plot(*_thin(steps, values), color="#3A4656", linewidth=1.2)
            axes.set_ylabel(label)
            if column == "grad_norm":
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            for start in [row.start for row in stage_rows(schedule)[1:]]:
                if start <= run.steps:
                    axes.axvline(start, color="#999999", linewidth=0.8, linestyle=":")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        speed.ticklabel_format(axis="y", style="plain")
        for axes in grid[1]:
            axes.set_xlabel("step")
    return to_svg(
        figure, f"training-{number}", f"training of {run.label}: loss, gradient norm, learning rate, mix, speed"
    )


def _thin(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means over stretches of steps, at most `_POINTS` of them."""
    if len(steps) <= _POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), _POINTS)
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])
