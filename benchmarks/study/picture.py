"""The study in one picture: BLEU over tokens for each placement of parallel text, and the placements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.study.findings import Study, StudyRun
from dataengine.schedule.plot import mix_shares
from trainer.reporting import figures

PLACEMENTS = {  # setting -> label, color
    "parallel_last_all": ("last", "#0072B2"),
    "parallel_distributed": ("distributed", "#E69F00"),
    "parallel_first": ("first", "#CC79A7"),
    "no_parallel": ("none", "#6B6B6B"),
}
_MONOLINGUAL = "#E3E7EC"
_POINTS = 240


def draw_placements(study: Study) -> str:
    """Draw mean zero-shot BLEU on dev of the four directions, with its range over seeds, above a strip of the mix per
    placement. Return SVG."""
    shown = {setting: look for setting, look in PLACEMENTS.items() if setting in study}
    with figures.style():
        figure, (curves, strips) = plt.subplots(
            2, 1, figsize=(8.4, 4.7), layout="constrained", sharex=True, height_ratios=(3.2, 1)
        )
        for row, (setting, (label, color)) in enumerate(shown.items()):
            runs = list(study.of(setting).values())
            _draw_curve(curves, runs, label, color)
            _draw_strip(strips, runs[0], len(shown) - 1 - row, color)
        curves.set(ylabel="BLEU on dev, mean of 4 directions", ylim=(0, None))
        strips.set_yticks(range(len(shown)), [label for label, _ in reversed(shown.values())])
        strips.set(xlabel="predicted tokens (millions)", ylim=(-0.5, len(shown) - 0.5), xlim=(0, None))
        strips.set_title("where the parallel text is (colored; grey: monolingual text)")
        strips.grid(False)
        strips.tick_params(axis="y", length=0)
    return figures.to_svg(figure, "placements", "BLEU over tokens by placement of the parallel text")


def _draw_curve(axes: Axes, runs: Sequence[StudyRun], label: str, color: str) -> None:
    """Draw the mean of some runs' mean curves, their range, and the label where 60 % of the peak are reached."""
    curves = [run.mean_curve() for run in runs]
    steps = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])  # (runs, steps)
    tokens, mean = np.array(steps) * _tokens_of_step(runs[0]) / 1e6, values.mean(0)
    axes.fill_between(tokens, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    axes.plot(tokens, mean, color=color, linewidth=2, marker="o", markersize=3)
    at = int((mean >= 0.6 * mean.max()).argmax())
    axes.annotate(label, (tokens[at], mean[at]), (-4, 6), textcoords="offset points", color=color, ha="right")


def _draw_strip(axes: Axes, run: StudyRun, row: int, color: str) -> None:
    """Fill a strip with the share of parallel text in the batches along the run."""
    manifest = run.run.manifest
    grid = np.linspace(0, manifest.schedule.steps - 1, _POINTS).astype(np.int64)
    steps = np.unique(np.concatenate([grid, manifest.schedule.stage_starts]))
    edges, mono = mix_shares(manifest, steps, ["mono"])
    tokens = edges * _tokens_of_step(run) / 1e6
    low, share = row - 0.4, 1 - np.append(mono[0], mono[0][-1])
    axes.fill_between(tokens, low, low + 0.8, color=_MONOLINGUAL, linewidth=0)
    axes.fill_between(tokens, low, low + 0.8 * share, color=color, step="post", linewidth=0)


def _tokens_of_step(run: StudyRun) -> int:
    return run.run.manifest.batch_size * run.run.manifest.seq_len
