"""Pictures of a report, as SVG to put into a page: text stays text, and equal input gives equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dataengine.schedule.plot import mix_shares
from dataengine.schedule.stages import stage_rows
from trainer.evaluation.results import Score
from trainer.reporting.line_charts import Panel, limits, picture, stack
from trainer.reporting.runs import Floats, TrainedRun

# Okabe and Ito's colours, which colour-blind readers can distinguish; yellow is too light for lines.
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
_SIGNS = "●■◆▲▼✚✖★◀▶"  # the same as text
_WIDTH = 12.2  # inches, a page's column
_POINTS = 240  # of a curve of training
_PANEL = (390, 200)  # pixels; a run's training has two lines of three
_PLACES = [(_PANEL[0] * column, _PANEL[1] * line, *_PANEL) for line in range(2) for column in range(3)]
_MEASURED = {
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens a second",
    "memory_gb": "memory of a rank (GB)",
}


def style() -> AbstractContextManager[None]:
    """Settings of all pictures."""
    return matplotlib.rc_context(
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
    """A figure as an <svg> element; `name` is its own in the page, `label` says what is seen."""
    picture = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
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


@dataclass(frozen=True)
class Curve:
    """BLEU on dev of one run in one direction, over its checkpoints."""

    label: str
    direction: str
    shots: int
    points: Sequence[tuple[int, Score]]  # by step
    others: Sequence[str] = ()  # ways in which results that are not among the points were measured


def run_colours(runs: Sequence[TrainedRun]) -> dict[str, str]:
    """A colour for each run, by label: of the palette, or around the circle if there are more."""
    if len(runs) <= len(PALETTE):
        return {run.label: PALETTE[number] for number, run in enumerate(runs)}
    shades = (hsv_to_rgb(k / len(runs), 0.85, (0.85, 0.6)[k % 2]) for k in range(len(runs)))
    return {run.label: to_hex(shade) for run, shade in zip(runs, shades, strict=True)}


def run_signs(runs: Sequence[TrainedRun]) -> dict[str, str]:
    """The sign of each run in the curves, by label."""
    return {run.label: _SIGNS[number % len(_SIGNS)] for number, run in enumerate(runs)}


def stream_colours(runs: Sequence[TrainedRun]) -> dict[str, str]:
    """A colour for each stream, the same in all runs; documents come first."""
    kinds = {name: run.kind(name) for run in runs for name in run.streams}
    names = sorted(kinds, key=lambda name: (kinds[name] != "documents", kinds[name], name))
    return {name: _STREAMS[number % len(_STREAMS)] for number, name in enumerate(names)}


def bleu_curves(runs: Sequence[TrainedRun], curves: Sequence[Curve], shots: int) -> str:
    """BLEU on dev over steps, one panel per direction: learning, and forgetting once the data are used up.

    The page itself has the key of colours and signs: hundreds of names would leave no room for the curves.
    """
    colours, directions = run_colours(runs), list(dict.fromkeys(one.direction for one in curves))
    signs = {run.label: _MARKERS[number % len(_MARKERS)] for number, run in enumerate(runs)}
    chosen = {run.label: run.chosen.step for run in runs if run.chosen}
    columns = min(2, len(directions))
    lines = -(-len(directions) // columns)
    with style():
        figure = Figure(figsize=(_WIDTH, 0.3 + 3.0 * lines), layout="constrained")
        grid: NDArray[Any] = np.array(figure.subplots(lines, columns, sharex=True, squeeze=False))
        for axes, direction in zip(grid.flat, directions, strict=False):
            for one in curves:
                if one.direction == direction and one.points:
                    _draw_curve(axes, one, colours[one.label], signs[one.label], chosen.get(one.label))
            axes.set_title(direction)
            axes.set_ylim(bottom=0)
            axes.set_ylabel("BLEU")
        for axes in list(grid.flat)[len(directions) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        _draw_boundaries(list(grid.flat)[: len(directions)], runs, colours)
    return to_svg(figure, f"bleu-{shots}", f"BLEU over steps, {shots}-shot, for {', '.join(directions)}")


def _draw_curve(axes: Axes, curve: Curve, colour: str, sign: str, chosen: int | None) -> None:
    steps = np.array([step for step, _ in curve.points])
    scores = np.array([score.score for _, score in curve.points])
    low, high = (
        np.array([np.nan if value is None else value for value in values])
        for values in ([s.low for _, s in curve.points], [s.high for _, s in curve.points])
    )
    axes.fill_between(steps, low, high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(steps, scores, color=colour, linewidth=1.6, marker=sign, markersize=4)
    if chosen is not None and chosen in steps:
        at = int(np.flatnonzero(steps == chosen)[0])
        axes.plot([chosen], [scores[at]], "o", ms=11, mfc="none", mec=colour, mew=1.4)


def _draw_boundaries(panels: Sequence[Axes], runs: Sequence[TrainedRun], colours: Mapping[str, str]) -> None:
    """Where stages of each run begin: a tick at the top in the run's colour."""
    for axes in panels:
        for run in runs:
            for start in [row.start for row in stage_rows(run.manifest.schedule)[1:]]:
                place = axes.get_xaxis_transform()
                axes.plot(
                    [start] * 2, [0.95, 1.0], color=colours[run.label], transform=place, linewidth=2.2, clip_on=False
                )


def mix_strip(run: TrainedRun, colours: Mapping[str, str]) -> str:
    """The schedule of a run as a narrow band: the share of each stream over steps."""
    schedule = run.manifest.schedule
    edges, shares = mix_shares(run.manifest, _some_steps(schedule.steps, schedule.stage_starts), run.streams)
    tops: Floats = 20.0 - 20 * np.vstack([np.zeros(shares.shape[1]), np.cumsum(shares, axis=0)])
    shapes = stack(np.asarray(edges * 187 / edges[-1], np.float64), tops, [colours[name] for name in run.streams])
    return picture(187, 20, f"schedule of {run.label}: {_describe_mix(run)}", shapes)


def _describe_mix(run: TrainedRun) -> str:
    return ", then ".join(dict.fromkeys(stage.name for stage in run.manifest.stages))


def _some_steps(steps: int, starts: Sequence[int]) -> NDArray[np.int64]:
    """Steps at which a mix is drawn: few enough that a share is a mean over some steps, not the counts of one."""
    found = [*np.linspace(0, steps - 1, min(100, max(2, steps // 8))).astype(int).tolist(), *starts]
    return np.unique(np.array([step for step in found if step < steps], dtype=np.int64))


def training(run: TrainedRun, colours: Mapping[str, str]) -> str:
    """Loss per stream, mix, gradient norm, learning rate, speed and memory of one run, over steps."""
    losses = {name: _thin(*run.column(f"loss/{name}")) for name in run.streams}
    joined = np.concatenate([values for _, values in losses.values()])
    panels = [Panel("training loss (nats per token)", _PLACES[0], run.steps, *limits(joined))]
    for name, (steps, values) in losses.items():
        if len(steps):
            panels[0].line(steps, values, colours[name])
    for place, (column, label) in zip((1, 2, 4, 5), _MEASURED.items(), strict=True):
        steps, values = _thin(*run.column(column))
        log = column == "grad_norm"
        low, high = limits(values, log=log, from_zero=not log)
        panels.append(Panel(label, _PLACES[place], run.steps, low, high, log=log))
        if len(steps):
            panels[-1].line(steps, values, "#3A4656")
    for start in [row.start for row in stage_rows(run.manifest.schedule)[1:]]:
        for panel in panels if start <= run.steps else ():
            panel.rule(start)
    panels.append(_mix_panel(run, colours))
    label = f"training of {run.label}: loss, gradient norm, learning rate, mix, speed"
    return picture(_PANEL[0] * 3, _PANEL[1] * 2, label, [panel.svg() for panel in panels])


def _mix_panel(run: TrainedRun, colours: Mapping[str, str]) -> Panel:
    schedule = run.manifest.schedule
    edges, shares = mix_shares(
        run.manifest, _some_steps(min(run.steps, schedule.steps), schedule.stage_starts), run.streams
    )
    panel = Panel("share of the batch", _PLACES[3], float(edges[-1]), 0.0, 1.0)
    panel.bands(edges, shares, [colours[name] for name in run.streams])
    begins = 0
    for name, pieces in groupby(run.manifest.stages, key=lambda stage: stage.name):
        length = sum(piece.length for piece in pieces)
        if begins < edges[-1]:
            panel.name(begins, name, upright=min(length, edges[-1] - begins) * 40 < len(name) * edges[-1])
            if begins:
                panel.rule(begins)
        begins += length
    return panel


def _thin(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means over stretches of steps, at most `_POINTS` of them."""
    if len(steps) <= _POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), _POINTS)
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])
