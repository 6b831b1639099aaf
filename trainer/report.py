"""One page on many runs: `python trainer/report.py RUN... --out report.html` (also report.csv and report.md)."""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dataengine.errors import InputError, note, run_command
from dataengine.schedule.stages import stage_rows
from dataengine.storage.atomic import refuse_url, write_file
from trainer.evaluation import paper
from trainer.evaluation.metrics import sentence_chrf
from trainer.reporting import figures, tables
from trainer.reporting.comparable import Comparable
from trainer.reporting.figures import Curve
from trainer.reporting.runs import Score, SetResult, TrainedRun, read_usable_runs
from trainer.reporting.tables import Significance
from trainer.run.settings import differences

_OFF_TARGET = 0.2  # from here on it is worth a sentence
_LEARNED = 2.0  # BLEU; a run that never had as much has nothing to forget
_LOOKED_AT = 20_000  # answers of a direction that are scored one by one, to find where the runs differ
_TRAIN = ("learning_rate", "min_learning_rate", "warmup_steps", "decay_steps", "weight_decay", "clip_norm", "seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, 2 for unusable input, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="trainer/report.py",
        description="Make one self-contained page of runs: the paper's tables with ours beside them, BLEU over steps, "
        "training, translations side by side, data. Also NAME.csv, every number in long form, and NAME.md, the tables.",
        epilog="example: python trainer/report.py runs/mini/* --out report.html --baseline no_parallel",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, folders of runs, or URLs of runs (a config's `out`)"
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--baseline", metavar="NAME", help="the run to compare with (default: no_parallel, else none)")
    parser.add_argument("--cache", default="cache", metavar="FOLDER", help="where files of a URL go (%(default)s)")
    parser.add_argument("--trials", type=int, default=10_000, metavar="N", help="of significance tests (%(default)s)")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="sentences a direction (%(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)

    def report() -> None:
        made = write_report(
            options.runs,
            Path(options.out),
            baseline=options.baseline,
            cache=options.cache,
            trials=options.trials,
            samples=options.samples,
        )
        print(*made, sep="\n")

    try:
        code = run_command(report)
    except KeyboardInterrupt:
        print("stopped before the report was whole; the same command makes it", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code)


def write_report(
    places: Sequence[str], out: Path, *, baseline: str | None = None, cache: str = "cache", trials: int = 10_000,
    samples: int = 8,
) -> list[Path]:  # fmt: skip
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


@dataclass(frozen=True)
class Sample:
    """A sentence, and what each run made of it: label, how it was measured otherwise, the answer and its chrF."""

    source: str
    reference: str
    answers: Sequence[tuple[str, str, str, float]]


@dataclass(frozen=True)
class Samples:
    """Sentences of one direction."""

    direction: str
    languages: tuple[str, str]
    words: str  # the set and the shots
    sentences: Sequence[Sample]


def _page(runs: Sequence[TrainedRun], significance: Significance, samples: int, problems: Sequence[str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "reporting/templates"),
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
        "highlights": list(_highlights(runs, directions, shots, significance, curves)),
        "translation": tables.translation_table(runs, significance),
        "metrics": tables.other_metrics_table(runs, significance.compared),
        "curves": [
            (tables.shots_words(number), Markup(figures.bleu_curves(runs, here, number)), _not_drawn(here))
            for number, here in _by_shots(curves).items()
        ],
        "reasoning": tables.reasoning_tables(runs),
        "training": [Markup(figures.training(run, streams)) if run.steps else "" for run in runs],
        "samples": list(_samples(runs, directions, shots, samples, significance.compared)),
        "failures": tables.failures_table(runs),
        "contamination": tables.contamination_table(runs),
        "data": [(run, tables.data_table(run, number)) for number, run in enumerate(runs)],
        "measured": list(_measured(runs)),
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
    return f"Measured otherwise, and not drawn: {'; '.join(words)}." if words else ""


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


def _highlights(
    runs: Sequence[TrainedRun],
    directions: Sequence[str],
    shots: Sequence[int],
    significance: Significance,
    curves: Sequence[Curve],
) -> Iterator[str]:
    """What stands out, in words."""
    pick = significance.compared.pick_alike
    for number in shots:
        best = []
        for direction in directions:
            scored = [(found.bleu.score, run.label) for run in runs if (found := pick(run.results, direction, number))]
            if len(scored) > 1:
                score, label = max(scored, key=lambda pair: pair[0])
                best.append(f"{direction} {label} ({score:.2f})")
        if best:
            yield f"Best in BLEU, {tables.shots_words(number)}: {', '.join(best)}."
    for run in runs:
        if run.lost_steps:
            yield f"{run.label}: log.csv has lost steps {run.lost_steps}; its curves go straight across them."
        if run.skipped:
            shown = ", ".join(f"{step:,}" for step in run.skipped)
            yield f"{run.label}: steps that were seen and not trained on, which its curves leave out: {shown}."
        marks = [significance.mark(run, direction, number) for number in shots for direction in directions]
        if any(marks) and significance.baseline is not None:
            yield (
                f"{run.label} is significantly better than {significance.baseline.label} in {marks.count('▲')} "
                f"and worse in {marks.count('▼')} of {len(marks)} comparisons."
            )
    yield from (words for one in curves if one.shots == curves[0].shots and (words := _forgetting(one)))
    for run in runs:
        astray = [
            f"{direction} {share:.0%}"
            for direction in directions
            if (found := significance.compared.pick(run.results, direction, shots[0]))
            and (share := found.languages.get("off_target")) is not None
            and share - (found.languages.get("references_off_target") or 0) >= _OFF_TARGET
        ]
        if astray:
            yield f"{run.label} answers in a wrong language: {', '.join(astray)}."


def _forgetting(curve: Curve) -> str:
    """What is said of a run whose last checkpoint is far below its best one, with intervals apart; else nothing.

    Nor is anything said of a run whose best score is near zero.
    """
    if len(curve.points) < 3:
        return ""
    step, peak = max(curve.points, key=lambda point: point[1].score)
    end, last = curve.points[-1]
    if peak.score < _LEARNED or peak.low is None or last.high is None:
        return ""
    if last.high >= peak.low or last.score >= peak.score / 2:
        return ""
    return (
        f"{curve.label} forgets {curve.direction}: BLEU {peak.score:.2f} at step {step:,}, "
        f"{last.score:.2f} at step {end:,}."
    )


def _samples(
    runs: Sequence[TrainedRun], directions: Sequence[str], shots: Sequence[int], count: int, compared: Comparable
) -> Iterator[Samples]:
    """Sentences for each direction: half spread over the set, half those that the runs differ most in."""
    for direction in directions:
        picked = [(run, one) for run in runs if (one := compared.pick(run.results, direction, shots[0]))]
        found = [(run, one) for run, one in picked if one.translations]
        if not found or not count:
            continue
        texts = Counter(one.texts_sha256 for _, one in found)
        first = max((one for _, one in found), key=lambda one: texts[one.texts_sha256])
        found = [(run, one) for run, one in found if one.texts_sha256 == first.texts_sha256]
        total = len(first.translations)
        looked_at = _spread(total, max(count, _LOOKED_AT // len(found)))
        scores = {run.label: _sentence_scores(one, looked_at) for run, one in found}
        spread = np.ptp(np.array(list(scores.values())), axis=0)  # (sentences looked at,)
        chosen = [int(np.searchsorted(looked_at, number)) for number in _spread(total, -(-count // 2))]
        chosen = list(dict.fromkeys(min(place, len(looked_at) - 1) for place in chosen))
        by_spread = np.argsort(-spread, kind="stable").tolist()
        chosen += [place for place in by_spread if place not in chosen][: count - len(chosen)]
        source, target = direction.split("-")
        yield Samples(
            direction,
            (source, target),
            f"{first.set_name}, {tables.shots_words(first.shots)}, {total:,} sentences",
            [
                Sample(
                    first.translations[looked_at[place]].source,
                    first.translations[looked_at[place]].reference,
                    [
                        (
                            run.label,
                            compared.difference(one),
                            one.translations[looked_at[place]].hypothesis,
                            scores[run.label][place],
                        )
                        for run, one in found
                    ],
                )
                for place in sorted(chosen)
            ],
        )


def _spread(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly apart, the first and the last among them."""
    return list(dict.fromkeys(np.linspace(0, total - 1, min(total, count)).astype(int).tolist()))


def _sentence_scores(one: SetResult, numbers: Sequence[int]) -> list[float]:
    rows = [one.translations[number] for number in numbers]
    return sentence_chrf([row.hypothesis for row in rows], [row.reference for row in rows])


def _measured(runs: Sequence[TrainedRun]) -> Iterator[dict[str, Any]]:
    """How scores came about; equal ways once, with the runs that they hold for."""
    ways: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        for one in run.judged.sets if run.judged else ():
            if one.set_name == run.judged_on:
                decoding = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in one.decoding.items())
                key = (one.set_name, one.direction, one.shots, one.bleu.signature, one.chrf.signature, decoding,
                       one.prompt, one.files, one.texts_sha256, one.sentences)  # fmt: skip
                ways.setdefault(key, []).append(run.label)
    names = ("set", "direction", "shots", "bleu", "chrf", "decoding", "prompt", "files", "sha256", "sentences")
    for key, labels in ways.items():
        yield {**dict(zip(names, key, strict=True)), "runs": labels}


def _settings(run: TrainedRun) -> list[tuple[str, str]]:
    """The settings of a run that a reader asks for first."""
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
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("run", "setting", "step", "tokens", "set", "direction", "shots", "beams", "metric", "value",
                     "low", "high", "signature", "sentences", "texts_sha256"))  # fmt: skip
    for run in runs:
        columns = {(one.direction, one.shots) for one in run.results}
        picked = [significance.compared.pick(run.results, *column) for column in columns]
        for one in run.evaluations:
            head = (run.label, run.setting, one.step, one.tokens)
            for found in one.sets:
                place = (found.set_name, found.direction, found.shots, found.decoding["beams"])
                of = (found.sentences, found.texts_sha256)
                for metric, score in _scores(found):
                    writer.writerow((*head, *place, metric, score.score, score.low, score.high, score.signature, *of))
                p = (
                    significance.p_value(run, found.direction, found.shots)
                    if any(found is one for one in picked)
                    else None
                )
                if p is not None and significance.baseline is not None:
                    writer.writerow((*head, *place, "bleu_p_value", p, None, None, significance.baseline.label, *of))
                for name, value in {**found.counts, "off_target": found.languages.get("off_target")}.items():
                    writer.writerow((*head, *place, name, value, None, None, None, *of))
            for task, scores in one.reasoning.items():
                for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
                    if metric in scores:
                        writer.writerow((*head, task, None, 0, None, metric, scores[metric], *[None] * 5))
    return content.getvalue()


def _scores(found: SetResult) -> Iterator[tuple[str, Score]]:
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


if __name__ == "__main__":
    main()
