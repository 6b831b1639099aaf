"""One page on many runs: `python trainer/report.py RUN... --out report.html` (also report.csv and report.md)."""

from __future__ import annotations

import argparse
import csv
import io
import sys
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

from dataengine.errors import InputError, run_command
from dataengine.stages import stage_rows
from dataengine.storage import write_file
from trainer import figures, paper_results
from trainer import report_tables as tables
from trainer.metrics import sentence_chrf
from trainer.report_data import Score, SetResult, TrainedRun, read_runs
from trainer.report_tables import Significance
from trainer.settings import differences

_OFF_TARGET = 0.2  # from here on it is worth a sentence
_TRAIN = ("learning_rate", "min_learning_rate", "warmup_steps", "decay_steps", "weight_decay", "clip_norm", "seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
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
    parser.add_argument(
        "--baseline", metavar="NAME", help="the run to compare with (default: no_parallel, or the first)"
    )
    parser.add_argument("--cache", default="cache", metavar="FOLDER", help="where files of a URL go (%(default)s)")
    parser.add_argument("--trials", type=int, default=10_000, metavar="N", help="of significance tests (%(default)s)")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="sentences a direction (%(default)s)")
    options = parser.parse_args(arguments)
    sys.exit(
        run_command(
            lambda: print(
                *write_report(
                    options.runs,
                    Path(options.out),
                    baseline=options.baseline,
                    cache=options.cache,
                    trials=options.trials,
                    samples=options.samples,
                ),
                sep="\n",
            )
        )
    )


def write_report(
    places: Sequence[str], out: Path, *, baseline: str | None = None, cache: str = "cache", trials: int = 10_000,
    samples: int = 8,
) -> list[Path]:  # fmt: skip
    """Write a report on runs; return the paths of its page, its CSV and its Markdown.

    Raises InputError for places without a run, damaged files and a baseline that is none of the runs.
    """
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"--out {out}: the page's name must end in .html")
    if trials < 1:
        raise InputError(f"--trials {trials}: expected 1 or more")
    order = list(paper_results.SETTINGS)
    runs = sorted(
        read_runs(places, cache),
        key=lambda run: order.index(run.setting) if run.setting in order else len(order),
    )
    significance = Significance(_find_baseline(runs, baseline), trials, out.with_suffix(".significance.json"))
    made = {
        out: _page(runs, significance, samples),
        out.with_suffix(".csv"): _csv(runs, significance),
        out.with_suffix(".md"): _markdown(runs, significance),
    }
    for path, content in made.items():
        write_file(path, content.encode())
    return list(made)


def _find_baseline(runs: Sequence[TrainedRun], name: str | None) -> TrainedRun:
    if name is None:
        return next((run for run in runs if run.setting == "no_parallel"), runs[0])
    for run in runs:
        if name in (run.label, run.setting, run.manifest.name, run.url):
            return run
    raise InputError(f"--baseline {name} is none of the runs: {', '.join(run.label for run in runs)}")


@dataclass(frozen=True)
class Sample:
    """A sentence, and what each run made of it with its chrF; runs by label."""

    source: str
    reference: str
    answers: Sequence[tuple[str, str, float]]


@dataclass(frozen=True)
class Samples:
    """Sentences of one direction."""

    direction: str
    languages: tuple[str, str]
    words: str  # the set and the shots
    sentences: Sequence[Sample]


def _page(runs: Sequence[TrainedRun], significance: Significance, samples: int) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    directions, shots = tables.all_directions(runs), tables.all_shots(runs)
    streams = figures.stream_colours(runs)
    curves = [
        (tables.shots_words(number), Markup(figures.bleu_curves(runs, shown, number)))
        for number in shots
        if (shown := [one for one in directions if _has_curve(runs, one, number)])
    ]
    found = {
        "runs": runs,
        "baseline": significance.baseline,
        "colours": figures.run_colours(runs),
        "strips": [Markup(figures.mix_strip(run, number, streams)) for number, run in enumerate(runs)],
        "streams": streams,
        "means": {run.label: {name: _mean_bleu(run, name, directions) for name in ("dev", "test")} for run in runs},
        "highlights": list(_highlights(runs, directions, shots, significance)),
        "translation": tables.translation_table(runs, significance),
        "metrics": tables.other_metrics_table(runs),
        "curves": curves,
        "reasoning": tables.reasoning_tables(runs),
        "training": [Markup(figures.training(run, number, streams)) for number, run in enumerate(runs)],
        "samples": list(_samples(runs, directions, shots, samples)),
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


def _has_curve(runs: Sequence[TrainedRun], direction: str, shots: int) -> bool:
    return any(one.find("dev", direction, shots) for run in runs for one in run.evaluations)


def _mean_bleu(run: TrainedRun, set_name: str, directions: Sequence[str]) -> float | None:
    """Mean BLEU of the judged checkpoint with the fewest shots over the directions that it has."""
    shots = min(tables.all_shots([run]), default=0)
    found = [run.result(direction, shots, set_name) for direction in directions]
    scores = [one.bleu.score for one in found if one is not None]
    return sum(scores) / len(scores) if scores else None


def _highlights(
    runs: Sequence[TrainedRun], directions: Sequence[str], shots: Sequence[int], significance: Significance
) -> Iterator[str]:
    """What stands out, in words."""
    for number in shots:
        best = []
        for direction in directions:
            scored = [(found.bleu.score, run.label) for run in runs if (found := run.result(direction, number))]
            if scored and len(runs) > 1:
                score, label = max(scored, key=lambda pair: pair[0])
                best.append(f"{direction} {label} ({score:.2f})")
        if best:
            yield f"Best in BLEU, {tables.shots_words(number)}: {', '.join(best)}."
    for run in runs:
        if run.lost_steps:
            yield f"{run.label}: log.csv has lost steps {run.lost_steps}; its curves go straight across them."
        marks = [significance.mark(run, direction, number) for number in shots for direction in directions]
        if any(marks):
            yield (
                f"{run.label} is significantly better than {significance.baseline.label} in {marks.count('▲')} "
                f"and worse in {marks.count('▼')} of {len(marks)} comparisons."
            )
    for run in runs:
        for direction in directions:
            curve = [(one.step, found.bleu) for one in run.evaluations
                     if (found := one.find("dev", direction, shots[0]))]  # fmt: skip
            if len(curve) > 2:
                step, peak = max(curve, key=lambda point: point[1].score)
                end, last = curve[-1][0], curve[-1][1].score
                if last < peak.score / 2 and last < (peak.score if peak.low is None else peak.low):
                    yield (
                        f"{run.label} forgets {direction}: BLEU {peak.score:.2f} at step {step:,}, "
                        f"{last:.2f} at step {end:,}."
                    )
    for run in runs:
        astray = [
            f"{direction} {share:.0%}"
            for direction in directions
            if (found := run.result(direction, shots[0]))
            and (share := found.languages.get("off_target")) is not None
            and share - (found.languages.get("references_off_target") or 0) >= _OFF_TARGET
        ]
        if astray:
            yield f"{run.label} answers in a wrong language: {', '.join(astray)}."


def _samples(
    runs: Sequence[TrainedRun], directions: Sequence[str], shots: Sequence[int], count: int
) -> Iterator[Samples]:
    """Sentences for each direction: half spread over the set, half those that the runs differ most in."""
    for direction in directions:
        found = [(run, one) for run in runs if (one := run.result(direction, shots[0])) and one.translations]
        if not found or not count:
            continue
        first = found[0][1]
        found = [(run, one) for run, one in found if one.texts_sha256 == first.texts_sha256]
        references = [row.reference for row in first.translations]
        scores = np.array(
            [sentence_chrf([row.hypothesis for row in one.translations], references) for _, one in found]
        )  # (runs, sentences)
        chosen = list(dict.fromkeys(np.linspace(0, len(references) - 1, -(-count // 2)).astype(int).tolist()))
        by_spread = np.argsort(-np.ptp(scores, axis=0), kind="stable").tolist()
        chosen += [number for number in by_spread if number not in chosen][: count - len(chosen)]
        source, target = direction.split("-")
        yield Samples(
            direction,
            (source, target),
            f"{first.set_name}, {tables.shots_words(first.shots)}, {len(references):,} sentences",
            [
                Sample(
                    first.translations[number].source,
                    references[number],
                    [
                        (run.label, one.translations[number].hypothesis, float(scores[row, number]))
                        for row, (run, one) in enumerate(found)
                    ],
                )
                for number in sorted(chosen)
            ],
        )


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
                     "low", "high", "signature"))  # fmt: skip
    for run in runs:
        for one in run.evaluations:
            head = (run.label, run.setting, one.step, one.tokens)
            for found in one.sets:
                place = (found.set_name, found.direction, found.shots, found.decoding["beams"])
                for metric, score in _scores(found):
                    writer.writerow((*head, *place, metric, score.score, score.low, score.high, score.signature))
                if one is run.judged and found.set_name == run.judged_on:
                    p = significance.p_value(run, found.direction, found.shots)
                    writer.writerow((*head, *place, "bleu_p_value", p, None, None, significance.baseline.label))
                for name, value in {**found.counts, "off_target": found.languages.get("off_target")}.items():
                    writer.writerow((*head, *place, name, value, None, None, None))
            for task, scores in one.reasoning.items():
                for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
                    if metric in scores:
                        writer.writerow((*head, task, None, 0, None, metric, scores[metric], None, None, None))
    return content.getvalue()


def _scores(found: SetResult) -> Iterator[tuple[str, Score]]:
    yield "bleu", found.bleu
    yield "chrf", found.chrf
    yield from found.comet.items()


def _markdown(runs: Sequence[TrainedRun], significance: Significance) -> str:
    made = [
        tables.translation_table(runs, significance),
        tables.other_metrics_table(runs),
        *tables.reasoning_tables(runs),
        tables.failures_table(runs),
        tables.contamination_table(runs),
    ]
    title = f"# {_title(runs)}\n"
    judged = [f"- {run.label}: step {run.judged.step:,}, {run.judged_because}" for run in runs if run.judged]
    checkpoints = ["Checkpoints:\n", *judged, ""] if judged else []
    return "\n".join([title, *checkpoints, *(tables.markdown(one) for one in made if one is not None)])


if __name__ == "__main__":
    main()
