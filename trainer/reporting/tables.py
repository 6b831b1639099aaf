"""Tables of a report: runs in rows, the paper's values beside ours, marks of significance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

from trainer.evaluation import paper as paper_module
from trainer.evaluation.paper import mean
from trainer.evaluation.results import CometScore, Score
from trainer.reporting.comparable import Comparable
from trainer.reporting.runs import SetResult, TrainedRun
from trainer.reporting.significance import LEVEL, Significance

_OTHER = "≠: measured differently from most of the column, in the way given after it; not comparable."


@dataclass(frozen=True)
class Cell:
    """One value of a table, with its marks and notes."""

    value: str = ""
    detail: str = ""  # an interval
    mark: str = ""  # significantly above or below the baseline
    paper: str = ""
    delta: str = ""  # ours less the paper's
    best: bool = False
    other: str = ""  # how it was measured differently than its column


@dataclass(frozen=True)
class Row:
    """A run, or a model of the paper."""

    label: str
    cells: Sequence[Cell]
    run: str | None = None  # whose colour it has
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a heading of one or two lines."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()  # headings, each over a number of columns
    note: str = ""


def all_directions(runs: Sequence[TrainedRun]) -> list[str]:
    """Directions of the judged checkpoints, in the paper's order, others behind."""
    found = {one.direction for run in runs for one in run.sets}
    return sorted(found, key=paper_module.place_of)


def all_shots(runs: Sequence[TrainedRun]) -> list[int]:
    """Numbers of examples of the judged checkpoints."""
    return sorted({one.shots for run in runs for one in run.sets})


def shots_words(shots: int) -> str:
    """For headings."""
    return "zero-shot" if shots == 0 else f"{shots}-shot"


def is_of_paper(runs: Sequence[TrainedRun]) -> bool:
    """Whether a run has a setting of the paper's, by its name, and was evaluated on one of the paper's directions."""
    settings = any(run.setting in paper_module.SETTINGS for run in runs)
    return settings and bool(set(all_directions(runs)) & set(paper_module.DIRECTIONS))


@dataclass(frozen=True)
class _Bleu:
    """BLEU of one direction and number of examples, and the paper's: the table of translations in long form."""

    label: str  # of its row
    shots: int
    direction: str
    found: SetResult | None
    paper: float | None
    run: TrainedRun | None  # if its row is of one run
    quiet: bool  # of a model of the paper

    @property
    def score(self) -> float | None:
        """Ours."""
        return self.found.bleu.score if self.found else None


def translation_table(runs: Sequence[TrainedRun], significance: Significance) -> Table | None:
    """BLEU in the form of the paper's table 3, also of the settings in its tables 5 and 7."""
    directions, shots = all_directions(runs), all_shots(runs)
    if not directions:
        return None
    with_paper = is_of_paper(runs)
    values = list(_bleu_values(runs, significance.compared, with_paper=with_paper))
    rows = list(_pivot(values, significance))
    judged = {run.judged_on for run in runs if run.judged_on}
    return Table(
        "translation",
        f"Translation: BLEU on {' and '.join(sorted(judged))}" + " (the paper's tables 3, 5 and 7)" * with_paper,
        [*directions, "mean"] * len(shots),
        rows,
        groups=[(shots_words(number), len(directions) + 1) for number in shots],
        note=" ".join(_explain(runs, rows, significance, with_paper=with_paper)),
    )


def _bleu_values(runs: Sequence[TrainedRun], compared: Comparable, *, with_paper: bool) -> Iterator[_Bleu]:
    """The runs' BLEU; beside the paper's also last (uni), a run for each direction, and the paper's other models."""
    directions, shots = all_directions(runs), all_shots(runs)

    def row(
        label: str,
        paper: paper_module.PaperBleu | None,
        by_direction: Mapping[str, TrainedRun],
        run: TrainedRun | None = None,
    ) -> Iterator[_Bleu]:
        for number, direction in product(shots, directions):
            one = by_direction.get(direction)
            found = compared.pick(one.results, direction, number) if one else None
            theirs = paper_module.bleu_of(paper, direction, number)
            yield _Bleu(label, number, direction, found, theirs, run, quiet=not by_direction)

    for run in runs:
        yield from row(run.label, paper_module.BLEU.get(run.setting), dict.fromkeys(directions, run), run)
    own = {paper_module.UNI[run.setting]: run for run in runs if run.setting in paper_module.UNI}
    if len(own) > 1 and with_paper:
        yield from row("each uni run in its own direction", paper_module.BLEU[paper_module.LAST_UNI], own)
    for name, paper in paper_module.OTHER_MODELS.items() if with_paper else ():
        yield from row(f"{name} (paper)", paper, {})


def _pivot(values: Sequence[_Bleu], significance: Significance) -> Iterator[Row]:
    """Rows of values, with a mean for each number of examples; rows of the paper only if they have a value."""
    best = _best_bleu(values, significance.compared)
    for label, part in groupby(values, key=lambda value: value.label):
        line, cells = list(part), list[Cell]()
        for _, group in groupby(line, key=lambda value: value.shots):
            block = list(group)
            found = [_bleu_cell(value, best, significance) for value in block]
            average = _cell(mean([value.score for value in block]), mean([value.paper for value in block]))
            cells += [*found, replace(average, other=_joined(found))]
        run, quiet = line[0].run, line[0].quiet
        if quiet:
            cells = [Cell(paper=cell.paper) for cell in cells]
        if not quiet or any(cell.paper for cell in cells):
            yield Row(label, cells, run=run.label if run else None, quiet=quiet)


def _best_bleu(values: Sequence[_Bleu], compared: Comparable) -> dict[tuple[int, str], float]:
    """The highest BLEU of the runs in each column, of those measured as most are; only where there are several."""
    scores: dict[tuple[int, str], list[float]] = {}
    for value in values:
        if value.run and value.found and not compared.difference(value.found):
            scores.setdefault((value.shots, value.direction), []).append(value.found.bleu.score)
    return {column: max(found) for column, found in scores.items() if len(found) > 1}


def _bleu_cell(value: _Bleu, best: Mapping[tuple[int, str], float], significance: Significance) -> Cell:
    cell = _cell(value.score, value.paper)
    if value.found is None:
        return cell
    other = significance.compared.difference(value.found)
    return replace(
        cell,
        detail=_interval(value.found.bleu),
        mark=significance.mark(value.run, value.direction, value.shots) if value.run else "",
        best=bool(value.run) and not other and value.score == best.get((value.shots, value.direction)),
        other=other,
    )


def _joined(cells: Sequence[Cell]) -> str:
    """What is other in some cells, for their mean; only if it has one."""
    others = dict.fromkeys(cell.other for cell in cells if cell.other)
    return "" if any(cell.value == "–" for cell in cells) else ", ".join(others)


def _explain(
    runs: Sequence[TrainedRun], rows: Sequence[Row], significance: Significance, *, with_paper: bool
) -> Iterator[str]:
    """Explain the signs that the table has."""
    cells = [cell for row in rows for cell in row.cells]
    if any(cell.detail for cell in cells):
        yield "With 95 % bootstrap intervals."
    if significance.baseline is not None and len(runs) > 1:
        yield (
            f"▲ ▼: better or worse than {significance.baseline.label} with p < {LEVEL} by paired approximate "
            f"randomization ({significance.trials:,} trials)."
        )
    if with_paper:
        yield (
            "In grey the paper's value for the setting of the same name, and ours less it; the paper's models and test "
            "sets are its own."
        )
    if any(cell.best for cell in cells):
        yield "Bold: the best run of a column."
    if note := _note_others(rows):
        yield note


def _cell(value: float | None, paper: float | None) -> Cell:
    delta = "" if value is None or paper is None else f"{value - paper:+.2f}"
    return Cell(value=_number(value) or "–", paper=_number(paper), delta=delta)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(score: Score | CometScore, digits: int = 2) -> str:
    return "" if score.low is None or score.high is None else f"{score.low:.{digits}f}–{score.high:.{digits}f}"


def other_metrics_table(runs: Sequence[TrainedRun], compared: Comparable) -> Table | None:
    """chrF and COMET of the same translations."""
    directions, shots = all_directions(runs), all_shots(runs)
    if not directions:
        return None
    models = dict.fromkeys(model for run in runs for one in run.sets for model in one.comet)
    metrics = [("chrF", 2), *((model, 4) for model in models)]

    def cell(run: TrainedRun, metric: str, digits: int, number: int, direction: str) -> Cell:
        found = compared.pick(run.results, direction, number)
        scores: dict[str, Score | CometScore] = {"chrF": found.chrf, **found.comet} if found else {}
        if found is None or metric not in scores:
            return Cell("–")
        score = scores[metric]
        return Cell(f"{score.score:.{digits}f}", _interval(score, digits), other=compared.difference(found))

    columns = list(product(metrics, shots, directions))
    rows = [
        Row(run.label, [cell(run, *metric, number, direction) for metric, number, direction in columns], run=run.label)
        for run in runs
    ]
    return Table(
        "metrics",
        "Other scores of the same translations",
        [direction for _, _, direction in columns],
        rows,
        groups=[
            (f"{Path(name).name}, {shots_words(number)}", len(directions)) for name, _ in metrics for number in shots
        ],
        note=_note_others(rows),
    )


def failures_table(runs: Sequence[TrainedRun]) -> Table | None:
    """How translations fail: wrong language, nothing, a copy, no end."""
    counts = ("empty", "copied", "unfinished", "source_cut", "longer_than_context")
    rows = []
    for run in runs:
        for one in run.results:
            found = one.languages
            shares = (found.off_target, found.references_off_target) if found else (None, None)
            cells = [
                Cell(f"{one.sentences:,}"),
                *(Cell("–" if share is None else f"{share:.1%}") for share in shares),
                *(Cell(f"{one.counts.get(name, 0):,}") for name in counts),
            ]
            search = f", {one.beams} beams" if one.beams > 1 else ""
            rows.append(Row(f"{run.label}, {one.direction}, {shots_words(one.shots)}{search}", cells, run=run.label))
    if not rows:
        return None
    return Table(
        "failures",
        "How translations fail",
        ["sentences", "off-target", "references' own", *(name.replace("_", " ") for name in counts)],
        rows,
        note=(
            "Off-target: the share of answers, of those long enough to identify, whose likeliest language (lid.176) is "
            "not the target; the same of the references is the identifier's own error. Unfinished: cut at the limit of "
            "new tokens. Longer than context: prompt and new tokens exceed the length that the model was trained on."
        ),
    )


def contamination_table(runs: Sequence[TrainedRun]) -> Table | None:
    """Evaluation sentences in the training streams."""
    rows = []
    for run in runs:
        for name, found in run.contamination.items():
            streams = ", ".join(f"{stream} {count:,}" for stream, count in found.by_stream.items()) or "none"
            cells = [Cell(f"{found.sentences:,}"), Cell(f"{found.contaminated:,}"), Cell(streams)]
            rows.append(Row(f"{run.label}, {name}", cells, run=run.label))
    if not rows:
        return None
    return Table(
        "contamination",
        "Evaluation sentences in the training data",
        ["sentences", "found", "in streams"],
        rows,
        note="Whole texts of 5 words or more, and 13 words in a row of them inside longer texts.",
    )


def reasoning_tables(runs: Sequence[TrainedRun]) -> list[Table]:
    """lm-eval's accuracies in the form of the paper's tables 4, 12 and 13, then other tasks.

    The paper's models appear beside ours if a run has a setting of the paper's.
    """
    with_paper = any(run.setting in paper_module.SETTINGS for run in runs)
    judged = [run for run in runs if run.reasoning]
    found = {name for run in judged for name in run.reasoning}
    papers = [paper for paper in paper_module.REASONING if found & {task.name for task in paper.tasks}]
    others = sorted(found - {task.name for paper in papers for task in paper.tasks})
    tables = [_reasoning_table(judged, paper, with_paper=with_paper) for paper in papers]
    return [*tables, _other_tasks_table(judged, others)] if others else tables


def _reasoning_table(runs: Sequence[TrainedRun], paper: paper_module.ReasoningTable, *, with_paper: bool) -> Table:
    most = {task.name: _usual_way(runs, task.name) for task in paper.tasks}
    rows = []
    for run in runs:
        values = [_accuracy(run, task.name, task.metric) for task in paper.tasks]
        cells = []
        for task, value in zip(paper.tasks, values, strict=True):
            error = _accuracy(run, task.name, f"{task.metric}_stderr")
            detail, other = "" if error is None else f"± {error:.2f}", _task_difference(run, task.name, most[task.name])
            cells.append(replace(_cell(value, paper.score(run.setting, task.name)), detail=detail, other=other))
        average = _cell(mean(values), paper_module.reasoning_mean(run.setting, paper.language))
        rows.append(Row(run.label, [*cells, replace(average, other=_joined(cells))], run=run.label))
    for name in paper_module.OTHER_MODELS if with_paper else ():
        if name in paper.scores:
            rows.append(
                Row(f"{name} (paper)", [Cell(paper=_number(score)) for score in paper.scores[name]], quiet=True)
            )
    return Table(
        f"reasoning-{paper.table}",
        f"Reasoning, {paper.language}" + f" (the paper's table {paper.table})" * with_paper,
        [*(f"{task.label} ({task.metric})" for task in paper.tasks), "mean"],
        rows,
        note="Zero-shot accuracy in percent and its standard error"
        + ("; acc_norm where the paper's level says so. " if with_paper else ". ")
        + _note_others(rows),
    )


def _other_tasks_table(runs: Sequence[TrainedRun], names: Sequence[str]) -> Table:
    """Tasks that the paper has not."""
    most = {name: _usual_way(runs, name) for name in names}
    rows = [
        Row(
            run.label,
            [Cell(_both(run, name), other=_task_difference(run, name, most[name])) for name in names],
            run=run.label,
        )
        for run in runs
    ]
    title = "Other tasks (acc / acc_norm, percent)"
    return Table("reasoning-others", title, names, rows, note=_note_others(rows))


def _note_others(rows: Sequence[Row]) -> str:
    return _OTHER * any(cell.other for row in rows for cell in row.cells)


_TASK_WAY = ("shots", "samples", "bos", "version")  # what must be equal for accuracies of a task to be compared


def _task_way(run: TrainedRun, task: str) -> tuple[Any, ...] | None:
    found = run.reasoning.get(task)
    return None if found is None else tuple(getattr(found, name) for name in _TASK_WAY)


def _usual_way(runs: Sequence[TrainedRun], task: str) -> tuple[Any, ...] | None:
    """How most runs measured a task; of equals the first."""
    ways = Counter(way for run in runs if (way := _task_way(run, task)) is not None)
    return max(ways, key=lambda way: ways[way], default=None)


def _task_difference(run: TrainedRun, task: str, most: tuple[Any, ...] | None) -> str:
    """How a run measured a task otherwise than most, in words."""
    way = _task_way(run, task)
    if way is None or most is None:
        return ""
    return ", ".join(
        f"{name} {ours}" for name, ours, theirs in zip(_TASK_WAY, way, most, strict=True) if ours != theirs
    )


def _accuracy(run: TrainedRun, task: str, metric: str) -> float | None:
    found = run.reasoning.get(task)
    value: float | None = None if found is None else getattr(found, metric)
    return None if value is None else 100 * value


def _both(run: TrainedRun, task: str) -> str:
    values = [_accuracy(run, task, metric) for metric in ("acc", "acc_norm")]
    return " / ".join(_number(value) or "–" for value in values)


def data_table(run: TrainedRun, number: int) -> Table | None:
    """The build's counts of the sources of run `number`."""
    if not run.built:
        return None
    rows = []
    for one in run.built:
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in one.dropped.items()) or "0"
        numbers = (one.records, one.unusable, one.kept, one.tokens, one.samples)
        cells = [Cell(f"{number:,}") for number in numbers]
        cells.insert(2, Cell(dropped))
        rows.append(Row(one.name, [*cells, Cell(f"{one.remainder_tokens:,} tokens")]))
    return Table(
        f"data-{number}",
        f"Data of {run.label}",
        ["records", "unusable", "dropped", "kept", "tokens", "samples", "remainder"],
        rows,
    )


def markdown(table: Table) -> str:
    """A table as Markdown, the paper's values in parentheses."""
    header = list(table.header)
    if table.groups:
        names = [name for name, count in table.groups for _ in range(count)]
        header = [f"{column} ({name})" for column, name in zip(header, names, strict=True)]
    lines = [f"### {table.title}", "", "| | " + " | ".join(header) + " |", "|---|" + "---:|" * len(header)]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            words = [f"**{cell.value}**" if cell.best else cell.value, cell.mark]
            words += [f"[{cell.detail}]" * bool(cell.detail), f"({cell.paper})" * bool(cell.paper)]
            words += [f"≠ {cell.other}" * bool(cell.other)]
            cells.append(" ".join(word for word in words if word).replace("|", "\\|"))
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])
