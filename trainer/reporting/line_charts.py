"""Small line charts as SVG text, for pages of hundreds of runs: matplotlib takes a second for what takes 10 ms here.

Equal input gives equal bytes. Lengths are pixels of the viewBox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 24, 24  # of a panel, around its plot


@dataclass
class Panel:
    """One plot within a picture: its steps, title and curves."""

    title: str
    place: tuple[float, float, float, float]  # left, top, width and height, including the labels around the plot
    steps: float  # the last one; the first is 0
    low: float
    high: float
    log: bool = False
    shapes: list[str] = field(default_factory=list)

    def line(self, steps: Floats, values: Floats, colour: str) -> None:
        """Draw a curve; it has gaps where a value is missing or outside."""
        inside = np.isfinite(values) & (values > 0 if self.log else True)
        for run in np.split(np.arange(len(values)), np.flatnonzero(~inside)):
            kept = run[inside[run]]
            if len(kept):
                points = zip(self._x(steps[kept]), self._y(values[kept]), strict=True)
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                path += f" {path}" * (len(kept) == 1)  # a dot
                self.shapes.append(f'<polyline points="{path}" stroke="{colour}"/>')

    def bands(self, edges: NDArray[np.int64], shares: Floats, colours: Sequence[str]) -> None:
        """Stack shares, shape (bands, steps), between edges, shape (steps + 1,)."""
        tops = np.vstack([np.zeros(shares.shape[1]), np.cumsum(shares, axis=0)])
        self.shapes += stack(self._x(edges), self._y(tops), colours)

    def rule(self, step: float) -> None:
        """Draw a dotted line at a step."""
        x = float(self._x(np.array([step]))[0])
        top, bottom = self._edges[1], self._edges[3]
        self.shapes.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="#999" stroke-dasharray="2 3" fill="none"/>')

    def name(self, step: float, words: str, *, upright: bool) -> None:
        """Write words at the top of the plot from a step on; `upright` where there is no room."""
        x, y = float(self._x(np.array([step]))[0]) + 4, self._edges[1] + 13
        turned = f' transform="rotate(90 {x:.1f} {y - 9:.1f})"' if upright else ""
        self.shapes.append(f'<text x="{x:.1f}" y="{y - 9 if upright else y:.1f}"{turned}>{escape(words)}</text>')

    def svg(self) -> str:
        """The panel as SVG elements."""
        left, top, right, bottom = self._edges
        parts = [f'<text x="{left}" y="{top - 9}" class="title">{escape(self.title)}</text>']
        for value in self._ticks():
            (y,) = self._y(np.array([value]))
            parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#e6e6e6"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        for step in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(0, max(self.steps, 1)):
            if 0 <= step <= self.steps:
                (x,) = self._x(np.array([step]))
                parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(step)}</text>')
        axes = f'<path d="M{left} {top}V{bottom}H{right}" stroke="#666" fill="none"/>'
        return "".join([*parts, *self.shapes, axes])

    @property
    def _edges(self) -> tuple[float, float, float, float]:
        left, top, width, height = self.place
        return left + _LEFT, top + _TOP, left + width - _RIGHT, top + height - _BOTTOM

    def _ticks(self) -> list[float]:
        locator = LogLocator(numticks=5) if self.log else MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
        found = [float(value) for value in locator.tick_values(self.low, self.high) if self.low <= value <= self.high]
        return found if len(found) > 1 else [self.low, self.high]

    def _x(self, steps: NDArray[Any]) -> Floats:
        left, _, right, _ = self._edges
        return np.asarray(left + steps / max(self.steps, 1) * (right - left), np.float64)

    def _y(self, values: Floats) -> Floats:
        _, top, _, bottom = self._edges
        scale = np.log if self.log else np.asarray
        low, high, at = scale(self.low), scale(self.high), scale(values)
        return np.asarray(bottom - (at - low) / ((high - low) or 1) * (bottom - top), np.float64)


def stack(xs: Floats, tops: Floats, colours: Sequence[str]) -> list[str]:
    """Bands of steps between `xs`, shape (steps + 1,), and `tops`, shape (bands + 1, steps), the first the ground."""
    shapes = []
    for below, above, colour in zip(tops, tops[1:], colours, strict=False):
        if np.array_equal(below, above):
            continue
        there = "".join(f"V{y:.1f}H{x:.1f}" for x, y in zip(xs[1:], above, strict=True))
        back = "".join(f"V{y:.1f}H{x:.1f}" for x, y in zip(xs[-2::-1], below[::-1], strict=True))
        shapes.append(f'<path d="M{xs[0]:.1f} {below[0]:.1f}{there}{back}Z" fill="{colour}" fill-opacity=".8"/>')
    return shapes


def picture(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """An <svg> element; `label` says what is seen."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:g} {height:g}" '
        f'class="lines" aria-label="{escape(label)}" style="max-width:{width:g}px">{"".join(parts)}</svg>'
    )


def limits(values: Floats, *, log: bool = False, from_zero: bool = False) -> tuple[float, float]:
    """Bounds of an axis that has all finite values in it; 0 to 1 (1 to 10) without any."""
    finite = values[np.isfinite(values) & (values > 0 if log else True)]
    if not len(finite):
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = float(finite.min()), float(finite.max())
    if log:
        return low / 1.1, high * 1.1
    low = min(0.0, low) if from_zero else low
    spare = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (low if from_zero else low - spare), high + spare


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
