"""Tables of a report: runs in rows, the paper's values beside ours, marks of significance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.evaluation import paper as paper_module
from trainer.evaluation.paper import mean
from trainer.reporting.comparable import Comparable
from trainer.reporting.runs import Score, SetResult, TrainedRun
from trainer.reporting.significance import LEVEL, Significance

_OTHER = "≠: measured otherwise than most of the column, in the way that stands behind it; not to be compared."


@dataclass(frozen=True)
class Cell:
    """One value of a table, and what stands around it."""

    value: str = ""
    detail: str = ""  # an interval
    mark: str = ""  # significantly above or below the baseline
    paper: str = ""
    delta: str = ""  # ours less the paper's
    best: bool = False
    other: str = ""  # how it was measured otherwise than its column


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
    groups: Sequence[tuple[str, int]] = ()  # headings over so many columns
    note: str = ""


def all_directions(runs: Sequence[TrainedRun]) -> list[str]:
    """Directions of the judged checkpoints, in the paper's order, others behind."""
    found = {one.direction for run in runs if run.judged for one in run.judged.sets}
    return sorted(found, key=paper_module.place_of)


def all_shots(runs: Sequence[TrainedRun]) -> list[int]:
    """Numbers of examples of the judged checkpoints."""
    return sorted({one.shots for run in runs if run.judged for one in run.judged.sets})


def shots_words(shots: int) -> str:
    """For headings."""
    return "zero-shot" if shots == 0 else f"{shots}-shot"


def is_of_paper(runs: Sequence[TrainedRun]) -> bool:
    """Whether a run has a setting of the paper's, by its name, and was evaluated on one of the paper's directions."""
    settings = any(run.setting in paper_module.SETTINGS for run in runs)
    return settings and bool(set(all_directions(runs)) & set(paper_module.DIRECTIONS))


def translation_table(runs: Sequence[TrainedRun], significance: Significance) -> Table | None:
    """BLEU in the form of the paper's table 3, also of the settings in its tables 5 and 7."""
    directions, shots = all_directions(runs), all_shots(runs)
    if not directions:
        return None
    compared, with_paper = significance.compared, is_of_paper(runs)
    best = {
        (number, direction): _best_bleu([compared.pick_alike(run.results, direction, number) for run in runs])
        for number in shots
        for direction in directions
    }
    rows = []
    for run in runs:
        paper = paper_module.BLEU.get(run.setting)
        cells: list[Cell] = []
        for number in shots:
            found = [compared.pick(run.results, direction, number) for direction in directions]
            theirs = [paper_module.bleu_of(paper, direction, number) for direction in directions]
            for direction, one, value in zip(directions, found, theirs, strict=True):
                other = compared.difference(one) if one else ""
                is_best = one is not None and one.bleu.score == best[number, direction] and not other
                cell = _bleu_cell(one, value, significance.mark(run, direction, number), best=is_best)
                cells.append(replace(cell, other=other))
            ours = mean([one.bleu.score if one else None for one in found])
            cells.append(replace(_cell(ours, mean(theirs)), other=_joined(cells[-len(directions) :])))
        rows.append(Row(run.label, cells, run=run.label))
    own = {paper_module.UNI[run.setting]: run for run in runs if run.setting in paper_module.UNI}
    if len(own) > 1 and with_paper:
        rows.append(Row("each uni run in its own direction", _uni_cells(own, directions, shots, compared)))
    if with_paper:
        for name, paper in paper_module.OTHER_MODELS.items():
            cells = []
            for number in shots:
                theirs = [paper_module.bleu_of(paper, direction, number) for direction in directions]
                cells += [Cell(paper=_number(value)) for value in [*theirs, mean(theirs)]]
            if any(cell.paper for cell in cells):
                rows.append(Row(f"{name} (paper)", cells, quiet=True))
    judged = {run.judged_on for run in runs if run.judged_on}
    return Table(
        "translation",
        f"Translation: BLEU on {' and '.join(sorted(judged))}" + " (the paper's tables 3, 5 and 7)" * with_paper,
        [*directions, "mean"] * len(shots),
        rows,
        groups=[(shots_words(number), len(directions) + 1) for number in shots],
        note=" ".join(_explain(runs, rows, significance, with_paper=with_paper)),
    )


def _joined(cells: Sequence[Cell]) -> str:
    """What is other in some cells, for their mean; only if it has one."""
    others = dict.fromkeys(cell.other for cell in cells if cell.other)
    return "" if any(cell.value == "–" for cell in cells) else ", ".join(others)


def _explain(
    runs: Sequence[TrainedRun], rows: Sequence[Row], significance: Significance, *, with_paper: bool
) -> Iterator[str]:
    """The signs of the table, those that it has."""
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
    if any(cell.other for cell in cells):
        yield _OTHER


def _uni_cells(
    own: Mapping[str, TrainedRun], directions: Sequence[str], shots: Sequence[int], compared: Comparable
) -> list[Cell]:
    """Last (uni) of the paper: `own` has the run that was trained on a direction."""
    paper = paper_module.BLEU[paper_module.LAST_UNI]
    cells: list[Cell] = []
    for number in shots:
        found = [
            compared.pick(own[direction].results, direction, number) if direction in own else None
            for direction in directions
        ]
        theirs = [paper_module.bleu_of(paper, direction, number) for direction in directions]
        for one, value in zip(found, theirs, strict=True):
            cell = _bleu_cell(one, value, "", best=False)
            cells.append(replace(cell, other=compared.difference(one) if one else ""))
        ours = mean([one.bleu.score if one else None for one in found])
        cells.append(replace(_cell(ours, mean(theirs)), other=_joined(cells[-len(directions) :])))
    return cells


def _best_bleu(found: Sequence[SetResult | None]) -> float | None:
    """The highest BLEU of several results; None if fewer than two are there to compare."""
    scores = [one.bleu.score for one in found if one]
    return max(scores) if len(scores) > 1 else None


def _bleu_cell(found: SetResult | None, paper: float | None, mark: str, *, best: bool) -> Cell:
    if found is None:
        return Cell(value="–", paper=_number(paper))
    return Cell(
        value=f"{found.bleu.score:.2f}",
        detail=_interval(found.bleu),
        mark=mark,
        paper=_number(paper),
        delta="" if paper is None else f"{found.bleu.score - paper:+.2f}",
        best=best,
    )


def _cell(value: float | None, paper: float | None, digits: int = 2) -> Cell:
    delta = "" if value is None or paper is None else f"{value - paper:+.{digits}f}"
    return Cell(value=_number(value) or "–", paper=_number(paper), delta=delta)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(score: Score, digits: int = 2) -> str:
    return "" if score.low is None or score.high is None else f"{score.low:.{digits}f}–{score.high:.{digits}f}"


def other_metrics_table(runs: Sequence[TrainedRun], compared: Comparable) -> Table | None:
    """chrF and COMET of the same translations."""
    directions, shots = all_directions(runs), all_shots(runs)
    if not directions:
        return None
    models = list(
        dict.fromkeys(
            model for run in runs if run.judged for one in run.judged.sets for model in one.comet
        )
    )  # fmt: skip
    metrics: list[tuple[str, Callable[[SetResult], Score | None], int]] = [("chrF", lambda one: one.chrf, 2)]
    metrics += [(Path(model).name, lambda one, model=model: one.comet.get(model), 4) for model in models]  # type: ignore[misc]
    rows = []
    for run in runs:
        cells = []
        for _, read, digits in metrics:
            for number in shots:
                for direction in directions:
                    found = compared.pick(run.results, direction, number)
                    score = read(found) if found else None
                    if found is None or score is None:
                        cells.append(Cell("–"))
                        continue
                    value, other = f"{score.score:.{digits}f}", compared.difference(found)
                    cells.append(Cell(value, _interval(score, digits), other=other))
        rows.append(Row(run.label, cells, run=run.label))
    return Table(
        "metrics",
        "Other scores of the same translations",
        [f"{direction}" for _ in metrics for number in shots for direction in directions],
        rows,
        groups=[
            (f"{name}, {shots_words(number)}", len(directions)) for name, _, _ in metrics for number in shots
        ],
        note=_OTHER * any(cell.other for row in rows for cell in row.cells),
    )  # fmt: skip


def failures_table(runs: Sequence[TrainedRun]) -> Table | None:
    """How translations fail: wrong language, nothing, a copy, no end."""
    counts = ("empty", "copied", "unfinished", "source_cut", "longer_than_context")
    rows = []
    for run in runs:
        for one in run.judged.sets if run.judged else ():
            if one.set_name != run.judged_on:
                continue
            share, error = one.languages.get("off_target"), one.languages.get("references_off_target")
            cells = [
                Cell(f"{one.sentences:,}"),
                Cell("–" if share is None else f"{share:.1%}"),
                Cell("–" if error is None else f"{error:.1%}"),
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
            "Off-target: the share of answers, of those long enough to tell, whose likeliest language (lid.176) is not "
            "the target; the same of the references is the identifier's own error. Unfinished: cut at the limit of new "
            "tokens. Longer than context: prompt and new tokens exceed the length that the model was trained on."
        ),
    )


def contamination_table(runs: Sequence[TrainedRun]) -> Table | None:
    """Evaluation sentences in the training streams."""
    rows = []
    for run in runs:
        for name, found in (run.judged.contamination if run.judged else {}).items():
            streams = ", ".join(f"{stream} {count:,}" for stream, count in found["by_stream"].items()) or "none"
            cells = [Cell(f"{found['sentences']:,}"), Cell(f"{found['contaminated']:,}"), Cell(streams)]
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

    The paper's models stand beside ours if a run has a setting of the paper's.
    """
    with_paper = any(run.setting in paper_module.SETTINGS for run in runs)
    with_results = [run for run in runs if run.judged and run.judged.reasoning]
    if not with_results:
        return []
    tables = []
    known: set[str] = set()
    for paper in paper_module.REASONING:
        names = [task.name for task in paper.tasks]
        known |= set(names)
        if not any(name in run.judged.reasoning for run in with_results for name in names if run.judged):
            continue
        rows = []
        most = {name: _usual_way(with_results, name) for name in names}
        for run in with_results:
            cells, values = [], []
            for task in paper.tasks:
                value = _accuracy(run, task.name, task.metric)
                values.append(value)
                error = _accuracy(run, task.name, f"{task.metric}_stderr")
                cell = _cell(value, paper.score(run.setting, task.name))
                detail = "" if error is None else f"± {error:.2f}"
                cells.append(replace(cell, detail=detail, other=_task_difference(run, task.name, most[task.name])))
            average = _cell(mean(values), paper_module.reasoning_mean(run.setting, paper.language))
            rows.append(Row(run.label, [*cells, replace(average, other=_joined(cells))], run=run.label))
        for name in paper_module.OTHER_MODELS:
            if name in paper.scores and with_paper:
                cells = [Cell(paper=_number(score)) for score in paper.scores[name]]
                rows.append(Row(f"{name} (paper)", cells, quiet=True))
        tables.append(
            Table(
                f"reasoning-{paper.table}",
                f"Reasoning, {paper.language}" + f" (the paper's table {paper.table})" * with_paper,
                [*(f"{task.label} ({task.metric})" for task in paper.tasks), "mean"],
                rows,
                note="Zero-shot accuracy in percent and its standard error"
                + ("; acc_norm where the paper's level says so. " if with_paper else ". ")
                + _OTHER * any(cell.other for row in rows for cell in row.cells),
            )
        )
    others = sorted({name for run in with_results if run.judged for name in run.judged.reasoning} - known)
    if others:
        most = {name: _usual_way(with_results, name) for name in others}
        rows = [
            Row(
                run.label,
                [Cell(_both(run, name), other=_task_difference(run, name, most[name])) for name in others],
                run=run.label,
            )
            for run in with_results
        ]
        note = _OTHER * any(cell.other for row in rows for cell in row.cells)
        tables.append(Table("reasoning-others", "Other tasks (acc / acc_norm, percent)", others, rows, note=note))
    return tables


_TASK_WAY = ("shots", "samples", "bos", "version")  # what must be equal for accuracies of a task to be compared


def _task_way(run: TrainedRun, task: str) -> tuple[Any, ...] | None:
    found = run.judged.reasoning.get(task) if run.judged else None
    return None if found is None else tuple(found.get(name) for name in _TASK_WAY)


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
    found: Mapping[str, Any] = (run.judged.reasoning if run.judged else {}).get(task, {})
    return 100 * found[metric] if found.get(metric) is not None else None


def _both(run: TrainedRun, task: str) -> str:
    values = [_accuracy(run, task, metric) for metric in ("acc", "acc_norm")]
    return " / ".join(_number(value) or "–" for value in values)


def data_table(run: TrainedRun, number: int) -> Table | None:
    """What the build made of the sources of run `number`."""
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
