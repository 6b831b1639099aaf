"""The page of the study: RUNS/study.html, study.md and study.csv."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import pyplot as plt

from benchmarks.study.findings import MAINS, PAIR_DIRECTIONS, Finding, Study, StudyRun, findings
from benchmarks.study.picture import draw_placements
from dataengine.storage.atomic import write_file
from trainer.reporting import figures
from trainer.reporting.tables import Cell, Row, Table, markdown

_TEMPLATES = Path(__file__).resolve().parents[2] / "trainer/reporting/templates"


# Sections.


@dataclass(frozen=True)
class Section:
    """A heading, sentences, tables and pictures."""

    name: str
    title: str
    text: Sequence[str]
    tables: Sequence[Table] = ()
    pictures: Sequence[str] = ()  # SVG


def score_row(label: str, runs: Sequence[StudyRun], directions: Sequence[str], shots: Sequence[int] = (0,)) -> Row:
    """BLEU of runs that differ in their seed only: mean and range."""
    cells = []
    for number in shots:
        for direction in directions:
            values = [run.score(direction, number) for run in runs if direction in run.directions]
            low_high = f"{min(values):.1f} to {max(values):.1f}" if len(values) > 1 else ""
            cells.append(Cell(f"{np.mean(values):.1f}" if values else "–", detail=low_high))
    return Row(label, cells)


def settings_section(study: Study) -> Section:
    """The paper's table of settings, zero- and one-shot, and BLEU over steps."""
    some = next(iter(study.of(study.mains[0]).values()))
    last = some.run.evaluations[-1]
    shots = sorted({one.shots for one in last.sets})
    words = {0: "zero-shot", 1: "one-shot"}
    rows = [score_row(MAINS[name], list(study.of(name).values()), PAIR_DIRECTIONS, shots) for name in study.mains]
    seeds = max(len(study.of(name)) for name in study.mains)
    table = Table(
        "settings",
        f"BLEU on test at the end of {last.tokens:,} predicted tokens"
        + (f": mean of {seeds} seeds, and their range" if seeds > 1 else ""),
        [direction for _ in shots for direction in PAIR_DIRECTIONS],
        rows,
        groups=[(words.get(number, f"{number}-shot"), 4) for number in shots],
    )
    return Section(
        "settings",
        "The paper's settings",
        [
            "Every setting predicts the same number of tokens with the same model; where there is parallel text, it is "
            "a quarter of them. Curves are zero-shot BLEU on dev along the checkpoints: each is a token budget of its "
            "own. Bands are the range over seeds."
        ],
        [table],
        [draw_curves(study)],
    )


def draw_curves(study: Study) -> str:
    """BLEU on dev over predicted tokens, one panel per direction."""
    with figures.style():
        figure, grid = plt.subplots(2, 2, figsize=(12.2, 6.8), layout="constrained", sharex=True, sharey=True)
        for axes, direction in zip(grid.flat, PAIR_DIRECTIONS, strict=True):
            for number, setting in enumerate(study.mains):
                draw_band(axes, list(study.of(setting).values()), direction, figures.PALETTE[number], MAINS[setting])
            axes.set_title(direction)
            axes.set_ylim(bottom=0)
        for axes in grid[:, 0]:
            axes.set_ylabel("BLEU on dev")
        for axes in grid[-1]:
            axes.set_xlabel("predicted tokens (millions)")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5)
    return figures.to_svg(figure, "curves", "BLEU on dev over tokens, by setting")


def standalone(svg: str) -> str:
    """A picture of a page as a separate file: on white, in a sans-serif font."""
    start = svg.index(">") + 1
    head = svg[:start].replace('style="', 'style="font-family:sans-serif;', 1)
    return f'{head}<rect width="100%" height="100%" fill="white"/>{svg[start:]}'


def draw_band(axes: plt.Axes, runs: Sequence[StudyRun], direction: str, colour: str, label: str) -> None:
    """The mean of some runs' curves, and their range."""
    curves = [run.curve(direction) for run in runs]
    steps = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])  # (runs, steps)
    manifest = runs[0].run.manifest
    tokens = np.array(steps) * manifest.batch_size * manifest.seq_len / 1e6
    axes.fill_between(tokens, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.plot(tokens, values.mean(0), color=colour, linewidth=1.6, marker="o", markersize=3, label=label)


def findings_section(found: Sequence[Finding]) -> Section:
    """Expected, measured, verdict."""
    rows = [Row(one.expected, [Cell(one.measure), Cell(one.measured), Cell(one.verdict)]) for one in found]
    table = Table("findings", "Expected of the paper, and measured here", ["measure", "mean [range]", "verdict"], rows)
    return Section(
        "findings",
        "Does the paper's picture show?",
        ["Expectations were written down before the runs; settings were not tuned one by one. BLEU is zero-shot, on "
         "test, of the last checkpoint; a verdict says in how many seeds the expectation holds."],
        [table],
    )  # fmt: skip


def placement_section(study: Study) -> Section | None:
    """How late pairs must come to be remembered."""
    runs = {100: study.first("parallel_last_all")} if "parallel_last_all" in study else {}
    if "parallel_first" in study:
        runs[0] = study.first("parallel_first")
    runs |= {int(name[-2:]): study.first(name) for name in study.named("placement/")}
    if len(runs) < 3:
        return None
    places = sorted(runs)
    rows = [score_row(f"after {place} %", [runs[place]], PAIR_DIRECTIONS) for place in places]
    table = Table("placement-table", "BLEU on test at the end, by the place of the pairs", list(PAIR_DIRECTIONS), rows)
    means = {place: runs[place].mean() for place in places}
    kept = [place for place in places if means[place] >= means[places[-1]] / 2]
    peaks = {place: max(runs[place].mean_curve().values()) for place in places}
    words = (
        f"The same pairs after 0 to 100 % of the monolingual text. At the end the mean BLEU of the four directions is "
        f"{means[places[0]]:.1f} with the pairs first and {means[places[-1]]:.1f} with the pairs last; it is at least "
        f"half of the latter from {kept[0]} % on. The dotted line is what had been learned at its best."
        if kept
        else "Nothing is translated wherever the pairs are."
    )
    with figures.style():
        figure, axes = plt.subplots(figsize=(8.2, 3.8), layout="constrained")
        for number, direction in enumerate(PAIR_DIRECTIONS):
            scores = [runs[place].score(direction) for place in places]
            axes.plot(places, scores, color=figures.PALETTE[number], marker="o", markersize=4, label=direction)
        axes.plot(places, [peaks[place] for place in places], color="#999999", linestyle=":",
                  label="peak on dev, mean of directions")  # fmt: skip
        axes.set(xlabel="monolingual text before the pairs (%)", ylabel="BLEU at the end", ylim=(0, None))
        axes.legend()
    return Section(
        "placement",
        "Placement in steps of 10 %",
        [words],
        [table],
        [figures.to_svg(figure, "placement", "BLEU at the end by the place of the pairs")],
    )  # fmt: skip


def compare_section(
    study: Study, name: str, title: str, text: str, settings: Mapping[str, str], directions: Sequence[str]
) -> Section | None:
    """A table of some settings of the first seed, by label; None if the question has no run of its own."""
    found = {label: setting for label, setting in settings.items() if 1 in study.of(setting)}
    if len(found) < 2 or set(found.values()) <= MAINS.keys():
        return None
    rows = [score_row(label, [study.first(setting)], directions) for label, setting in found.items()]
    table = Table(f"{name}-table", "BLEU on test at the end", [*directions, "mean with English"], [
        Row(row.label, [*row.cells, Cell(f"{study.first(setting).mean():.1f}")])
        for row, setting in zip(rows, found.values(), strict=True)
    ])  # fmt: skip
    return Section(name, title, [text], [table])


def question_sections(study: Study) -> Iterator[Section | None]:
    """The questions that the paper left open."""
    yield placement_section(study)
    yield compare_section(
        study, "pivot", "Chinese-Indonesian pairs only",
        "No English stands beside another language; is English translated to and from all the same?",
        {"no parallel": "no_parallel", "Chinese-Indonesian last": "pivot/zh_id", "last (all)": "parallel_last_all"},
        (*PAIR_DIRECTIONS, "id-zh", "zh-id"),
    )  # fmt: skip
    yield ladder_section(study)
    yield compare_section(
        study, "order", "Proportional mix against the reference order",
        "The reference code's file order gave mostly Chinese first and a tail of mostly Indonesian. Here the same "
        "pairs in both orders, equal in sum: what differs is the order alone.",
        {"proportional (last, all)": "parallel_last_all", "reference order": "order/reference_order"}, PAIR_DIRECTIONS,
    )  # fmt: skip
    yield compare_section(
        study, "rate", "Learning rate: restart against continue",
        "A rate that decays by a cosine over the whole budget, and one that warms up again when the pairs begin, as "
        "the paper's second stage did.",
        {"continue": "rate/continue", "restart": "rate/restart"}, PAIR_DIRECTIONS,
    )  # fmt: skip
    yield compare_section(
        study, "replay", "Monolingual text replayed between the last pairs",
        "The last 40 % of the steps hold three eighths of monolingual text and as many pairs as last (all).",
        {"pairs alone (last, all)": "parallel_last_all", "with replay": "replay/replay",
         "evenly spread (distributed)": "parallel_distributed"}, PAIR_DIRECTIONS,
    )  # fmt: skip
    yield compare_section(
        study, "volume", "One direction against all, at equal volume per direction",
        "Last (uni) spends all pairs on one direction. Here each uni run has as many pairs of its direction as last "
        "(all) has of each of four, so what the other directions add or take is seen.",
        {"last (all)": "parallel_last_all", **{f"uni {one}": f"volume/uni_{one.replace('-', '_')}"
                                               for one in PAIR_DIRECTIONS}}, PAIR_DIRECTIONS,
    )  # fmt: skip


def ladder_section(study: Study) -> Section | None:
    """Three sizes of model."""
    names = ("ladder/small_distributed", "parallel_distributed", "ladder/large_distributed")
    runs = [study.first(name) for name in names if 1 in study.of(name)]
    if len(runs) < 2:
        return None
    rows = []
    for run in runs:
        curve = run.mean_curve()
        half = min(curve, key=lambda step: abs(step - max(curve) / 2))
        label = f"{count_parameters(run) / 1e6:.2f}M parameters"
        row = score_row(label, [run], PAIR_DIRECTIONS)
        rows.append(Row(label, [*row.cells, Cell(f"{curve[half]:.1f}"), Cell(f"{curve[max(curve)]:.1f}")]))
    header = [*PAIR_DIRECTIONS, "mean on dev, half the budget", "mean on dev, the whole"]
    return Section("ladder", "Three sizes of model", ["Distributed, the same tokens, the same learning rate."],
                   [Table("ladder-table", "BLEU on test at the end", header, rows)])  # fmt: skip


def count_parameters(run: StudyRun) -> int:
    """The number of parameters, from the model's exact shape."""
    from dataengine.config.training import ModelConfig
    from trainer.model.decoder import empty_model

    model = ModelConfig(**run.run.config["model"])
    return sum(parameter.numel() for parameter in empty_model(model, run.run.manifest).parameters())


def text_section(study: Study) -> Section | None:
    """Real text: losses and BLEU over steps."""
    names = study.named("text/")
    if not names:
        return None
    tables, pictures = [], []
    for number, name in enumerate(names):
        run = study.first(name)
        curves = {direction: run.curve(direction) for direction in run.directions}
        steps = sorted(next(iter(curves.values())))
        losses = {stream: dict(zip(*(part.tolist() for part in run.run.column(f"loss/{stream}")), strict=True))
                  for stream in run.run.streams}  # fmt: skip
        rows = []
        for step in steps:
            cells = [Cell(f"{curves[direction][step]:.2f}") for direction in run.directions]
            for stream in run.run.streams:
                near = [loss for at, loss in losses[stream].items() if step - 50 < at <= step]
                cells.append(Cell(f"{np.mean(near):.3f}" if near else "–"))
            rows.append(Row(f"step {step:,}", cells))
        tables.append(Table(f"text-{number}", f"{name[5:]}: BLEU on dev, and training loss (nats per token)",
                            [*run.directions, *run.run.streams], rows))  # fmt: skip
        colours = figures.stream_colours([run.run])
        pictures.append(figures.training(run.run, colours))
    tokens = study.first(names[0]).run.evaluations[-1].tokens
    return Section(
        "text", "Real text",
        [f"The same path on real English documents and real pairs, {tokens:,} predicted tokens a run: far too few for "
         "translation, enough to see every stream learned."],
        tables, pictures,
    )  # fmt: skip


# The page.


def write(runs: Sequence[StudyRun], folder: Path) -> None:
    """Write the page, the tables as Markdown, and all numbers as CSV; print the verdicts."""
    study = Study(runs)
    found = list(findings(study))
    made = [findings_section(found)] if found else []
    settings = settings_section(study) if study.mains else None
    made += [settings] if settings else []
    made += [one for one in question_sections(study) if one is not None]
    if (text := text_section(study)) is not None:
        made.append(text)
    tables = "\n".join(
        [f"## {one.title}\n\n" + "\n\n".join(one.text) + "\n\n" + "\n".join(map(markdown, one.tables)) for one in made]
    )
    digest = hashlib.sha256(tables.encode()).hexdigest()
    facts = describe_study(study, folder, digest)
    environment = Environment(loader=FileSystemLoader([Path(__file__).parent, _TEMPLATES]), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    page = environment.get_template("study.html.jinja").render(
        sections=made, facts=facts, colours={}, report=(folder / "report.html").name, safe=Markup
    )
    write_file(folder / "study.html", page.encode())
    write_file(folder / "study.md", (tables + "\n" + "".join(f"- {key}: {value}\n" for key, value in facts)).encode())
    write_file(folder / "study.csv", _csv(study).encode())
    if settings:
        write_file(folder / "curves.svg", standalone(settings.pictures[0]).encode())
        write_file(folder / "placements.svg", standalone(draw_placements(study)).encode())
    for one in found:
        print(f"{one.verdict:22} {one.expected}: {one.measure} {one.measured}")
    print(f"tables sha256 {digest}\n{folder / 'study.html'}\n{folder / 'study.md'}\n{folder / 'study.csv'}", flush=True)


def describe_study(study: Study, folder: Path, digest: str) -> list[tuple[str, str]]:
    """Size, time and machine."""
    trained = 0
    for one in study.runs:
        shared = json.loads((Path(one.run.url) / "study.json").read_text())["shared"]
        manifest = one.run.manifest
        rows = one.run.rows[shared:]
        trained += len(rows) * manifest.batch_size * manifest.seq_len
    times = folder / "times.json"
    seconds = sum(json.loads(times.read_text())) if times.is_file() else 0
    return [
        ("runs", f"{len(study.runs)}"),
        ("tokens trained on", f"{trained:,} (steps that runs share are trained once)"),
        ("time", f"{seconds / 60:.0f} minutes, builds and evaluations included"),
        ("machine", f"{_processor()}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}"),
        ("SHA-256 of the tables", digest),
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _csv(study: Study) -> str:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("setting", "seed", "step", "tokens", "set", "direction", "shots", "bleu", "chrf"))
    for one in study.runs:
        for evaluation in one.run.evaluations:
            for found in evaluation.sets:
                writer.writerow((one.setting, one.seed, evaluation.step, evaluation.tokens, found.set,
                                 found.direction, found.shots, found.bleu.score, found.chrf.score))  # fmt: skip
    return content.getvalue()
