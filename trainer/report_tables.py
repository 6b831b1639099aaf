"""Tables of a report: runs in rows, the paper's values beside ours, marks of significance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataengine.storage import write_file
from trainer import paper_results
from trainer.metrics import compare_systems
from trainer.paper_results import mean
from trainer.report_data import Score, SetResult, TrainedRun

LEVEL = 0.05  # of significance (paper, section 4.1)


@dataclass(frozen=True)
class Cell:
    """One value of a table, and what stands around it."""

    value: str = ""
    detail: str = ""  # an interval
    mark: str = ""  # significantly above or below the baseline
    paper: str = ""
    delta: str = ""  # ours less the paper's
    best: bool = False


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


@dataclass
class Significance:
    """p-values of runs against the baseline, kept in a file, since each takes seconds."""

    baseline: TrainedRun
    trials: int
    path: Path
    known: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.known = dict(json.loads(self.path.read_bytes()))
        except (OSError, ValueError):
            self.known = {}  # made anew

    def p_value(self, run: TrainedRun, direction: str, shots: int) -> float | None:
        """Of the difference in BLEU; None if there is nothing to compare."""
        ours, theirs = self._both(run, direction, shots)
        if run is self.baseline or ours is None or theirs is None or ours.texts_sha256 != theirs.texts_sha256:
            return None
        before, after = ([row.hypothesis for row in one.translations] for one in (theirs, ours))
        references = [row.reference for row in ours.translations]
        if not references or len(before) != len(after):
            return None
        tokenize = dict((run.config.get("evaluate") or {}).get("bleu_tokenize") or {})
        content = json.dumps([before, after, references, direction, tokenize, self.trials], ensure_ascii=False)
        key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        if key not in self.known:
            found = compare_systems(before, after, references, direction, tokenize=tokenize, trials=self.trials)
            self.known[key] = found["bleu"]["p_value"]
            write_file(self.path, json.dumps(self.known, indent=0).encode())
        return self.known[key]

    def mark(self, run: TrainedRun, direction: str, shots: int) -> str:
        """An arrow if a run is significantly better or worse than the baseline."""
        p = self.p_value(run, direction, shots)
        if p is None or p >= LEVEL:
            return ""
        ours, theirs = self._both(run, direction, shots)
        assert ours is not None
        assert theirs is not None
        return "▲" if ours.bleu.score > theirs.bleu.score else "▼"

    def _both(self, run: TrainedRun, direction: str, shots: int) -> tuple[SetResult | None, SetResult | None]:
        """A run's result and the baseline's on the set that the run is judged on."""
        return run.result(direction, shots), self.baseline.result(direction, shots, run.judged_on)


def all_directions(runs: Sequence[TrainedRun]) -> list[str]:
    """Directions of the judged checkpoints, in the paper's order, others behind."""
    found = {one.direction for run in runs if run.judged for one in run.judged.sets}
    return [one for one in paper_results.DIRECTIONS if one in found] + sorted(found - set(paper_results.DIRECTIONS))


def all_shots(runs: Sequence[TrainedRun]) -> list[int]:
    """Numbers of examples of the judged checkpoints."""
    return sorted({one.shots for run in runs if run.judged for one in run.judged.sets})


def shots_words(shots: int) -> str:
    """For headings."""
    return "zero-shot" if shots == 0 else f"{shots}-shot"


def translation_table(runs: Sequence[TrainedRun], significance: Significance) -> Table | None:
    """BLEU in the form of the paper's table 3, also of the settings in its tables 5 and 7."""
    directions, shots = all_directions(runs), all_shots(runs)
    if not directions:
        return None
    columns = [(number, direction) for number in shots for direction in directions]
    best = {
        (number, direction): max(
            (one.bleu.score for run in runs if (one := run.result(direction, number))), default=None
        )
        for number, direction in columns
    }
    rows = []
    for run in runs:
        paper = paper_results.BLEU.get(run.setting)
        cells: list[Cell] = []
        for number in shots:
            found = [run.result(direction, number) for direction in directions]
            theirs = [paper_results.bleu_of(paper, direction, number) for direction in directions]
            for direction, one, value in zip(directions, found, theirs, strict=True):
                is_best = one is not None and len(runs) > 1 and one.bleu.score == best[number, direction]
                cells.append(_bleu_cell(one, value, significance.mark(run, direction, number), best=is_best))
            ours = mean([one.bleu.score if one else None for one in found])
            cells.append(_cell(ours, mean(theirs)))
        rows.append(Row(run.label, cells, run=run.label))
    own = {paper_results.UNI[run.setting]: run for run in runs if run.setting in paper_results.UNI}
    if len(own) > 1:
        rows.append(Row("each uni run in its own direction", _uni_cells(own, directions, shots)))
    if set(directions) & set(paper_results.DIRECTIONS):
        for name, paper in paper_results.OTHER_MODELS.items():
            cells = []
            for number in shots:
                theirs = [paper_results.bleu_of(paper, direction, number) for direction in directions]
                cells += [Cell(paper=_number(value)) for value in [*theirs, mean(theirs)]]
            if any(cell.paper for cell in cells):
                rows.append(Row(f"{name} (paper)", cells, quiet=True))
    judged = {run.judged_on for run in runs if run.judged}
    where = " and ".join(sorted(judged)) if len(judged) > 1 else next(iter(judged), "")
    return Table(
        "translation",
        f"Translation: BLEU on {where} (the paper's tables 3, 5 and 7)",
        [*directions, "mean"] * len(shots),
        rows,
        groups=[(shots_words(number), len(directions) + 1) for number in shots],
        note=(
            f"With 95 % bootstrap intervals. ▲ ▼: better or worse than {significance.baseline.label} with p < {LEVEL} "
            f"by paired approximate randomization ({significance.trials:,} trials). In grey the paper's value for the "
            "setting of the same name, and ours less it; the paper's models and test sets are its own. "
            "Bold: the best run of a column."
        ),
    )


def _uni_cells(own: Mapping[str, TrainedRun], directions: Sequence[str], shots: Sequence[int]) -> list[Cell]:
    """Last (uni) of the paper: `own` has the run that was trained on a direction."""
    paper = paper_results.BLEU[paper_results.LAST_UNI]
    cells = []
    for number in shots:
        found = [own[direction].result(direction, number) if direction in own else None for direction in directions]
        theirs = [paper_results.bleu_of(paper, direction, number) for direction in directions]
        cells += [_bleu_cell(one, value, "", best=False) for one, value in zip(found, theirs, strict=True)]
        cells.append(_cell(mean([one.bleu.score if one else None for one in found]), mean(theirs)))
    return cells


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


def other_metrics_table(runs: Sequence[TrainedRun]) -> Table | None:
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
                    found = run.result(direction, number)
                    score = read(found) if found else None
                    cells.append(Cell(f"{score.score:.{digits}f}", _interval(score, digits)) if score else Cell("–"))
        rows.append(Row(run.label, cells, run=run.label))
    return Table(
        "metrics",
        "Other scores of the same translations",
        [f"{direction}" for _ in metrics for number in shots for direction in directions],
        rows,
        groups=[
            (f"{name}, {shots_words(number)}", len(directions)) for name, _, _ in metrics for number in shots
        ],
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
            beams = one.decoding["beams"]
            search = f", {beams} beams" if beams > 1 else ""
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
    """lm-eval's accuracies in the form of the paper's tables 4, 12 and 13, then other tasks, then the means."""
    with_results = [run for run in runs if run.judged and run.judged.reasoning]
    if not with_results:
        return []
    tables = []
    known: set[str] = set()
    means: list[tuple[str, dict[str, Cell]]] = []
    for paper in paper_results.REASONING:
        names = [task.name for task in paper.tasks]
        known |= set(names)
        if not any(name in run.judged.reasoning for run in with_results for name in names if run.judged):
            continue
        rows, averages = [], {}
        for run in with_results:
            cells, values = [], []
            for task in paper.tasks:
                value = _accuracy(run, task.name, task.metric)
                values.append(value)
                error = _accuracy(run, task.name, f"{task.metric}_stderr")
                cell = _cell(value, paper.score(run.setting, task.name))
                cells.append(replace(cell, detail="" if error is None else f"± {error:.2f}"))
            averages[run.label] = _cell(mean(values), paper_results.reasoning_mean(run.setting, paper.language))
            rows.append(Row(run.label, [*cells, averages[run.label]], run=run.label))
        for name in paper_results.OTHER_MODELS:
            if name in paper.scores:
                cells = [Cell(paper=_number(score)) for score in paper.scores[name]]
                rows.append(Row(f"{name} (paper)", cells, quiet=True))
        means.append((paper.language, averages))
        tables.append(
            Table(
                f"reasoning-{paper.table}",
                f"Reasoning, {paper.language} (the paper's table {paper.table})",
                [*(f"{task.label} ({task.metric})" for task in paper.tasks), "mean"],
                rows,
                note="Zero-shot accuracy in percent and its standard error; acc_norm where the paper's level says so.",
            )
        )
    others = sorted({name for run in with_results if run.judged for name in run.judged.reasoning} - known)
    if others:
        rows = [
            Row(run.label, [Cell(_both(run, name)) for name in others], run=run.label) for run in with_results
        ]  # fmt: skip
        tables.append(Table("reasoning-others", "Other tasks (acc / acc_norm, percent)", others, rows))
    return tables


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
        rows.append(Row(one.name, [*cells, Cell(f"{one.remainder:,} tokens")]))
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
            cells.append(" ".join(word for word in words if word).replace("|", "\\|"))
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])
