"""The page of a report on many runs, with its CSV and its Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dataengine.errors import InputError, note
from dataengine.schedule.stages import stage_rows
from dataengine.storage.atomic import write_file
from dataengine.storage.paths import refuse_url
from trainer.evaluation import paper
from trainer.evaluation.results import CometScore, Score
from trainer.reporting import figures, tables
from trainer.reporting.comparable import Comparable, way_of
from trainer.reporting.figures import Curve
from trainer.reporting.highlights import describe_highlights
from trainer.reporting.read import read_usable_runs
from trainer.reporting.runs import SetResult, TrainedRun
from trainer.reporting.samples import choose_samples
from trainer.reporting.significance import Significance
from trainer.run.settings import differences

_COLUMNS = {
    "run": "Short name of the run in the report.",
    "setting": "Name of the experiment without folders.",
    "step": "Steps that the checkpoint was trained for.",
    "tokens": "Tokens predicted up to this step.",
    "set": "`dev`, `test`, or the name of a reasoning task.",
    "direction": "Language direction, such as en-zh; empty for a reasoning task.",
    "shots": "Examples in the prompt.",
    "beams": "Beams of the search; 1 is greedy.",
    "metric": "Name of the metric.",
    "value": "Its value.",
    "low": "Lower bound of the 95 % interval.",
    "high": "Upper bound of the interval.",
    "signature": "Signature of the metric; of `bleu_p_value` the baseline.",
    "sentences": "Sentences of the set.",
    "texts_sha256": "SHA-256 of the sources and references.",
}
_TRAIN = ("learning_rate", "min_learning_rate", "warmup_steps", "decay_steps", "weight_decay", "clip_norm", "seed")


def write_report(
    places: Sequence[str],
    out: Path,
    *,
    baseline: str | None = None,
    cache: str = "cache",
    trials: int = 10_000,
    samples: int = 8,
) -> list[Path]:
    """Write a report on runs; return the paths of its page, its CSV and its Markdown.

    Runs and results that cannot be used are left out, with a note, also on the page. Raises InputError if no run is
    left, and for a baseline that is none of the runs.
    """
    refuse_url(out)
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"--out {out}: the page's name must end in .html")
    if trials < 1:
        raise InputError(f"--trials {trials}: expected 1 or more")
    order = list(paper.SETTINGS)
    found, left_out = read_usable_runs(places, cache)
    runs = sorted(found, key=lambda run: order.index(run.setting) if run.setting in order else len(order))
    problems = [*left_out, *(problem for run in runs for problem in run.problems)]
    for problem in problems:
        note(f"left out: {problem}")
    compared = Comparable([run.results for run in runs])
    path = out.with_suffix(".significance.json")
    significance = Significance(_find_baseline(runs, baseline), compared, trials, path)
    made = {
        out: _page(runs, significance, samples, problems),
        out.with_suffix(".csv"): _csv(runs, significance),
        out.with_suffix(".md"): _markdown(runs, significance, problems),
    }
    for path, content in made.items():
        write_file(path, content.encode())
    return list(made)


def _find_baseline(runs: Sequence[TrainedRun], name: str | None) -> TrainedRun | None:
    if name is None:
        return next((run for run in runs if run.setting == "no_parallel"), None)
    for run in runs:
        if name in (run.label, run.setting, run.manifest.name, run.url):
            return run
    raise InputError(f"--baseline {name} is none of the runs: {', '.join(run.label for run in runs)}")


def _page(runs: Sequence[TrainedRun], significance: Significance, samples: int, problems: Sequence[str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    directions, shots = tables.all_directions(runs), tables.all_shots(runs)
    streams = figures.stream_colours(runs)
    curves = _curves(runs)
    found = {
        "runs": runs,
        "with_paper": any(run.setting in paper.SETTINGS for run in runs),
        "problems": problems,
        "colours": figures.run_colours(runs),
        "signs": figures.run_signs(runs),
        "strips": [Markup(figures.mix_strip(run, streams)) for run in runs],
        "streams": streams,
        "means": {name: _means(runs, name, directions, shots) for name in ("dev", "test")},
        "highlights": list(describe_highlights(runs, directions, shots, significance, curves)),
        "translation": tables.translation_table(runs, significance),
        "metrics": tables.other_metrics_table(runs, significance.compared),
        "curves": [
            (tables.shots_words(number), Markup(figures.bleu_curves(runs, here, number)), _not_drawn(here))
            for number, here in _by_shots(curves).items()
        ],
        "reasoning": tables.reasoning_tables(runs),
        "training": [Markup(figures.training(run, streams)) if run.steps else "" for run in runs],
        "samples": list(choose_samples(runs, directions, shots, samples, significance.compared)),
        "failures": tables.failures_table(runs),
        "contamination": tables.contamination_table(runs),
        "data": [(run, tables.data_table(run, number)) for number, run in enumerate(runs)],
        "measured": _measured(runs),
        "settings": [(run, _settings(run)) for run in runs],
        "title": _title(runs),
    }
    return environment.get_template("report.html.jinja").render(found)


def _title(runs: Sequence[TrainedRun]) -> str:
    labels = ", ".join(run.label for run in runs)
    return labels if len(runs) == 1 else f"{len(runs)} runs: {labels}"


def _curves(runs: Sequence[TrainedRun]) -> list[Curve]:
    """BLEU on dev over the checkpoints of each run, direction and number of examples, measured as in most runs."""
    results = [[result for one in run.evaluations for result in one.on("dev")] for run in runs]
    compared = Comparable(results)
    columns = {(one.shots, one.direction) for found in results for one in found}
    curves = []
    for shots, direction in sorted(columns, key=lambda column: (column[0], paper.place_of(column[1]))):
        for run in runs:
            found = [(one.step, compared.pick(one.on("dev"), direction, shots)) for one in run.evaluations]
            alike = [(step, one.bleu) for step, one in found if one and not compared.difference(one)]
            others = [compared.difference(one) for _, one in found if one and compared.difference(one)]
            if alike or others:
                curves.append(Curve(run.label, direction, shots, alike, tuple(dict.fromkeys(others))))
    return curves


def _by_shots(curves: Sequence[Curve]) -> dict[int, list[Curve]]:
    return {number: [one for one in curves if one.shots == number] for number in {one.shots: None for one in curves}}


def _not_drawn(curves: Sequence[Curve]) -> str:
    """The results that have no place in a picture, and why."""
    words = [f"{one.label} {one.direction} ({', '.join(one.others)})" for one in curves if one.others]
    return f"Measured differently, and not drawn: {'; '.join(words)}." if words else ""


def _means(
    runs: Sequence[TrainedRun], set_name: str, directions: Sequence[str], shots: Sequence[int]
) -> dict[str, tuple[str, str]]:
    """By label: mean BLEU of the judged checkpoint with the fewest shots, and how it differs from those of others."""
    results = {run.label: run.judged.on(set_name) if run.judged else () for run in runs}
    compared = Comparable(list(results.values()))
    means = {}
    for label, there in results.items():
        found = [one for direction in directions if (one := compared.pick(there, direction, shots[0]))]
        others = list(dict.fromkeys(word for one in found if (word := compared.difference(one))))
        if 0 < len(found) < len(directions):
            others.append(f"of {', '.join(one.direction for one in found)}")
        score = f"{sum(one.bleu.score for one in found) / len(found):.2f}" if found else "–"
        means[label] = score, ", ".join(others)
    return means


def _measured(runs: Sequence[TrainedRun]) -> list[tuple[SetResult, list[str]]]:
    """The ways of measuring: one result of each, and the runs measured so."""
    ways: dict[object, tuple[SetResult, list[str]]] = {}
    for run in runs:
        for one in run.results:
            ways.setdefault((way_of(one), one.files), (one, []))[1].append(run.label)
    return list(ways.values())


def _settings(run: TrainedRun) -> list[tuple[str, str]]:
    """The settings of a run that matter most to a reader."""
    first = run.history[0][1].train.model_dump() if run.history else run.config.get("train") or {}
    changes = [
        f"; from step {step:,}: "
        + ", ".join(f"{key.removeprefix('train.')} {now}" for key, _, now in differences(before, after))
        for (_, before), (step, after) in pairwise(run.history)
    ]
    model = run.config.get("model") or {}
    rows = stage_rows(run.manifest.schedule)
    stages = ", ".join(f"{row.name} {row.steps:,} steps" for row in rows[:12]) + (" ..." if len(rows) > 12 else "")
    return [
        ("plan id", run.manifest.plan_id),
        ("place", run.url),
        (
            "schedule",
            f"{run.manifest.schedule.steps:,} steps of {run.manifest.batch_size:,} x {run.manifest.seq_len:,}",
        ),
        ("stages", stages),
        ("model", ", ".join(f"{key} {value}" for key, value in model.items())),
        ("training", ", ".join(f"{key} {first[key]}" for key in _TRAIN if key in first) + "".join(changes)),
        ("tokenizer", str(run.config.get("tokenizer", ""))),
    ]


def _csv(runs: Sequence[TrainedRun], significance: Significance) -> str:
    """Every score of every evaluated checkpoint, a row each; p-values of the judged ones."""
    content = io.StringIO()
    writer = csv.DictWriter(content, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerows(_csv_rows(run, significance))
    return content.getvalue()


def _csv_rows(run: TrainedRun, significance: Significance) -> Iterator[dict[str, object]]:
    columns = {(one.direction, one.shots) for one in run.results}
    picked = [significance.compared.pick(run.results, *column) for column in columns]
    for one in run.evaluations:
        head = {"run": run.label, "setting": run.setting, "step": one.step, "tokens": one.tokens}
        for found in one.sets:
            of = {"set": found.set, "direction": found.direction, "shots": found.shots, "beams": found.beams}
            row = {**head, **of, "sentences": found.sentences, "texts_sha256": found.texts_sha256}
            for metric, score in _scores(found):
                bounds = {"low": score.low, "high": score.high, "signature": score.signature}
                yield {**row, "metric": metric, "value": score.score, **bounds}
            if significance.baseline and any(found is one for one in picked):
                p = significance.p_value(run, found.direction, found.shots)
                if p is not None:
                    yield {**row, "metric": "bleu_p_value", "value": p, "signature": significance.baseline.label}
            off_target = found.languages.off_target if found.languages else None
            for name, value in {**found.counts, "off_target": off_target}.items():
                yield {**row, "metric": name, "value": value}
        for task, scores in one.reasoning.items():
            for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
                if (value := getattr(scores, metric)) is not None:
                    yield {**head, "set": task, "shots": 0, "metric": metric, "value": value}


def _scores(found: SetResult) -> Iterator[tuple[str, Score | CometScore]]:
    yield "bleu", found.bleu
    yield "chrf", found.chrf
    yield from found.comet.items()


def _markdown(runs: Sequence[TrainedRun], significance: Significance, problems: Sequence[str]) -> str:
    made = [
        tables.translation_table(runs, significance),
        tables.other_metrics_table(runs, significance.compared),
        *tables.reasoning_tables(runs),
        tables.failures_table(runs),
        tables.contamination_table(runs),
    ]
    title = f"# {_title(runs)}\n"
    judged = [f"- {run.label}: step {run.judged.step:,}, {run.judged_because}" for run in runs if run.judged]
    checkpoints = ["Checkpoints:\n", *judged, ""] if judged else []
    missing = ["Left out:\n", *(f"- {problem}" for problem in problems), ""] if problems else []
    return "\n".join([title, *missing, *checkpoints, *(tables.markdown(one) for one in made if one is not None)])
