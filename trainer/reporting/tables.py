"""Tables of a report: a row per run, with the paper's values beside ours and marks of significance."""

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

_OTHER = "≠: not comparable with most of the column; the text after it says how the measurement differs."
_PAPER = (
    "Last line of a cell, or in parentheses: the paper's value for the setting of the same name. A signed number: the "
    "run's value minus the paper's. "
)


@dataclass(frozen=True)
class Cell:
    """One value of a table, with its annotations."""

    value: str = ""
    detail: str = ""  # an interval or a standard error
    mark: str = ""  # ▲ or ▼: significantly above or below the baseline
    paper: str = ""
    delta: str = ""  # our value minus the paper's
    best: bool = False
    other: str = ""  # how it was measured differently from most of its column


@dataclass(frozen=True)
class Row:
    """A run, or a model of the paper."""

    label: str
    cells: Sequence[Cell]
    run: str | None = None  # the run whose colour the row has
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a header of one or two lines."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()  # headings, each with its number of columns
    note: str = ""


def all_directions(runs: Sequence[TrainedRun]) -> list[str]:
    """Return the directions of the judged checkpoints: the paper's in its order, then others."""
    found = {one.direction for run in runs for one in run.sets}
    return sorted(found, key=paper_module.place_of)


def all_shots(runs: Sequence[TrainedRun]) -> list[int]:
    """Return the numbers of examples of the judged checkpoints."""
    return sorted({one.shots for run in runs for one in run.sets})


def shots_words(shots: int) -> str:
    """Return a number of examples as text, for headings."""
    return "zero-shot" if shots == 0 else f"{shots}-shot"


def is_of_paper(runs: Sequence[TrainedRun]) -> bool:
    """Return whether a run has the name of one of the paper's settings, and results in one of its directions."""
    settings = any(run.setting in paper_module.SETTINGS for run in runs)
    return settings and bool(set(all_directions(runs)) & set(paper_module.DIRECTIONS))


@dataclass(frozen=True)
class _Bleu:
    """BLEU of one direction and number of examples, ours and the paper's: the translation table in long form."""

    label: str  # of the row
    shots: int
    direction: str
    found: SetResult | None
    paper: float | None
    run: TrainedRun | None  # None if the row is not of a single run
    quiet: bool  # whether the row is one of the paper's other models

    @property
    def score(self) -> float | None:
        """Our BLEU."""
        return self.found.bleu.score if self.found else None


def translation_table(runs: Sequence[TrainedRun], significance: Significance) -> Table | None:
    """Return BLEU in the form of the paper's table 3, including the settings of its tables 5 and 7."""
    directions, shots = all_directions(runs), all_shots(runs)
    if not directions:
        return None
    with_paper = is_of_paper(runs)
    values = list(_bleu_values(runs, significance.compared, with_paper=with_paper))
    rows = list(_pivot(values, significance))
    judged = {run.judged_on for run in runs if run.judged_on}
    return Table(
        "translation",
        f"Translation: BLEU on {' and '.join(sorted(judged))}" + " (as in the paper's tables 3, 5 and 7)" * with_paper,
        [*directions, "mean"] * len(shots),
        rows,
        groups=[(shots_words(number), len(directions) + 1) for number in shots],
        note=" ".join(_explain(runs, rows, significance, with_paper=with_paper)),
    )


def _bleu_values(runs: Sequence[TrainedRun], compared: Comparable, *, with_paper: bool) -> Iterator[_Bleu]:
    """Yield the runs' BLEU; with the paper, also that of last (uni), a run per direction, and its other models."""
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
    """Yield rows of values, with a mean per number of examples; rows of the paper only if they have a value."""
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
    """Return the highest comparable BLEU of the runs in each column; only for columns with several runs."""
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
    """Return the differences of some cells, for their mean; empty if there is no mean."""
    others = dict.fromkeys(cell.other for cell in cells if cell.other)
    return "" if any(cell.value == "–" for cell in cells) else ", ".join(others)


def _explain(
    runs: Sequence[TrainedRun], rows: Sequence[Row], significance: Significance, *, with_paper: bool
) -> Iterator[str]:
    """Yield explanations of the signs that are in the table."""
    cells = [cell for row in rows for cell in row.cells]
    if any(cell.detail for cell in cells):
        yield "Ranges: 95 % bootstrap intervals."
    if significance.baseline is not None and len(runs) > 1:
        yield (
            f"▲ ▼: significantly better or worse than {significance.baseline.label} (p < {LEVEL}, paired approximate "
            f"randomization, {significance.trials:,} trials)."
        )
    if with_paper:
        yield f"{_PAPER}The paper's models and test sets may differ from those of this report."
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
    """Return chrF and COMET of the same translations."""
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
    """Count failed translations: in the wrong language, empty, copied, unfinished."""
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
        "Failed translations",
        ["sentences", "off-target", "references off-target", *(name.replace("_", " ") for name in counts)],
        rows,
        note=(
            "Off-target: the share of answers that are not in the target language, among those long enough to identify "
            "(lid.176). References off-target: the same share of the references, which is the error of the language "
            "identification. Copied: equal to the source. Unfinished: cut off at the limit of new tokens. Source cut: "
            "truncated to the limit of source tokens. Longer than context: prompt and new tokens exceed the sequence "
            "length of training."
        ),
    )


def contamination_table(runs: Sequence[TrainedRun]) -> Table | None:
    """Return the number of evaluation sentences in the training streams."""
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
        ["sentences", "found", "by stream"],
        rows,
        note="Found: a training text equals the sentence (of 5 words or more), or contains 13 consecutive words of it.",
    )


def reasoning_tables(runs: Sequence[TrainedRun]) -> list[Table]:
    """Return lm-eval's accuracies in the form of the paper's tables 4, 12 and 13, then those of other tasks.

    The paper's models have rows if a run has one of the paper's settings.
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
        f"Reasoning, {paper.language}" + f" (as in the paper's table {paper.table})" * with_paper,
        [*(f"{task.label} ({task.metric})" for task in paper.tasks), "mean"],
        rows,
        note="Zero-shot accuracy in percent, with its standard error. "
        + f"Each task shows acc or acc_norm, whichever the paper seems to report. {_PAPER}" * with_paper
        + _note_others(rows),
    )


def _other_tasks_table(runs: Sequence[TrainedRun], names: Sequence[str]) -> Table:
    """Return the accuracies of tasks that the paper does not report."""
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


_TASK_WAY = ("shots", "samples", "bos", "version")  # accuracies are comparable if these are equal


def _task_way(run: TrainedRun, task: str) -> tuple[Any, ...] | None:
    found = run.reasoning.get(task)
    return None if found is None else tuple(getattr(found, name) for name in _TASK_WAY)


def _usual_way(runs: Sequence[TrainedRun], task: str) -> tuple[Any, ...] | None:
    """Return the way in which most runs measured a task; the first one if several are equally common."""
    ways = Counter(way for run in runs if (way := _task_way(run, task)) is not None)
    return max(ways, key=lambda way: ways[way], default=None)


def _task_difference(run: TrainedRun, task: str, most: tuple[Any, ...] | None) -> str:
    """Describe how a run measured a task differently from most; empty if it did not."""
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
    """Return the counts of each stream in the build of run `number`; None without its report."""
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
    """Return a table as Markdown, with the paper's values in parentheses."""
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
