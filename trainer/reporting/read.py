"""Read the runs of a report from their folders or buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dataengine.build.report import StreamReport, read_report, report_key
from dataengine.config.layers import read_layers
from dataengine.errors import DamagedError, InputError
from dataengine.schedule.manifest import Manifest
from dataengine.storage.open import open_store
from dataengine.storage.paths import is_url
from trainer.checkpoints.find import all_checkpoints
from trainer.checkpoints.marker import checkpoint_folder, read_checkpoint
from trainer.evaluation.choice import read_choice
from trainer.evaluation.results import read_any_results
from trainer.reporting.runs import MEASURES, Evaluation, TrainedRun
from trainer.run.folder import Run, local_folder, open_run, read_run_manifest
from trainer.run.log_csv import read_log
from trainer.run.settings import SETTINGS, History, parse_history


def read_runs(runs: Sequence[str], cache: str) -> list[TrainedRun]:
    """Read run folders or URLs, each once, in the order given; labels are the shortest unique names.

    A folder that is not a run means all runs below it. Raises InputError for a place without a run and for damaged
    files.
    """
    return _label([_read_run(url, cache) for url in _each_run(runs)])


def read_usable_runs(runs: Sequence[str], cache: str) -> tuple[list[TrainedRun], list[str]]:
    """Read the runs that can be read; return them, and the problems of the others.

    Raises InputError if none can be read.
    """
    found: list[TrainedRun] = []
    problems: list[InputError] = []
    for url in _each_run(runs):
        try:
            found.append(_read_run(url, cache))
        except InputError as error:
            problems.append(error)
        except OSError as error:
            problems.append(InputError(f"cannot read {error.filename or url}: {error.strerror or error}."))
    if not found:
        raise problems[0]
    return _label(found), list(map(str, problems))


def _each_run(places: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(run for place in places for run in _runs_below(place.rstrip("/"))))


def _label(found: Sequence[TrainedRun]) -> list[TrainedRun]:
    labels = [run.setting for run in found]
    if len(set(labels)) < len(labels):
        labels = [run.manifest.name for run in found]
    if len(set(labels)) < len(labels):
        labels = [run.url for run in found]
    return [replace(run, label=label) for run, label in zip(found, labels, strict=True)]


def _runs_below(place: str) -> list[str]:
    """The place itself if it is a run, a URL or has no run below, else the folders of runs below it."""
    if is_url(place) or Path(place, "log.csv").is_file():
        return [place]
    return sorted(str(log.parent) for log in Path(place).rglob("log.csv")) or [place]


def _read_run(url: str, cache: str) -> TrainedRun:
    folder = local_folder(url, cache)
    if not (folder / "log.csv").is_file():
        raise InputError(f"no log.csv in {folder}: give the folder (a config's `out`) of a run that has trained")
    manifest, rows = read_run_manifest(folder), read_log(folder / "log.csv")
    config = _read_config(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    run = open_run(url, cache)
    if run.store is not None:
        results = [name for name in run.store.sizes("evaluations/") if name.endswith("/results.json")]
        run.fetch("chosen.json", *sorted(results))
    chosen = read_choice(folder / "chosen.json") if (folder / "chosen.json").is_file() else None
    places = sorted(folder.glob("evaluations/*/results.json"))
    evaluations = [Evaluation(**vars(read_any_results(path)), path=path) for path in places]
    anew = _trained_anew(run, evaluations)
    evaluations = [one for one in evaluations if one not in anew]
    built, note = _read_build(config, manifest)
    trained = TrainedRun(
        label="",
        url=url,
        manifest=manifest,
        config=config,
        history=_read_history(folder / SETTINGS),
        rows=rows,
        evaluations=tuple(sorted(evaluations, key=lambda one: one.step)),
        chosen=chosen,
        built=built,
        built_note=note,
    )
    for column in (*(f"loss/{name}" for name in trained.streams), *MEASURES):
        trained.column(column)  # raises where it is damaged
    if trained.judged and run.store is not None:
        _fetch_translations(run, trained.judged)
    problems = [
        f"{one.path} is from a checkpoint that was since trained again. Evaluate again: "
        f"python trainer/evaluate.py CONFIG --step {one.step}"
        for one in anew
    ]
    problems += [one.problem for one in trained.results if one.problem]
    return replace(trained, problems=tuple(problems))


def _trained_anew(run: Run, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those of a checkpoint in whose place there is another one now."""
    if run.store is not None:
        now = {found.step: found.identity for found in all_checkpoints(run)} if evaluations else {}
    else:
        now = {}
        for one in evaluations:
            with suppress(InputError):  # it is gone, or being saved
                now[one.step] = read_checkpoint(checkpoint_folder(run.folder, one.step)).identity
    return [one for one in evaluations if one.checkpoint and one.checkpoint != now.get(one.step, one.checkpoint)]


def _read_history(path: Path) -> History:
    return parse_history(path.read_bytes(), str(path)) if path.is_file() else []


def _read_config(path: Path) -> dict[str, Any]:
    """Read a config.yaml, also of an older version. Raises InputError if it is damaged."""
    values = _load_quickly(path) or read_layers(path, ())[0]
    streams = values["streams"] if isinstance(values.get("streams"), dict) else {}
    places: list[tuple[str, ...]] = [(key,) for key in ("train", "model", "streams", "languages", "evaluate")]
    places += [("evaluate", "bleu_tokenize"), *(("streams", name) for name in streams)]
    for place in places:
        section: Any = values
        for key in place:
            section = section.get(key) or {}
            if not isinstance(section, dict):
                raise InputError(
                    f"{path} is damaged: {'.'.join(place)} has no keys of its own. Bring it back from a copy: "
                    "STORE/experiments/NAME/config.yaml"
                )
    return values


def _load_quickly(path: Path) -> dict[str, Any] | None:
    """A resolved config, in a tenth of the time of `read_layers`, which says what is wrong where this is None."""
    try:
        values = yaml.load(path.read_bytes(), yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and "base" not in values else None


def _fetch_translations(run: Run, evaluation: Evaluation) -> None:
    run.fetch(*(one.path.relative_to(run.folder).as_posix() for one in evaluation.sets))


def _read_build(config: Mapping[str, Any], manifest: Manifest) -> tuple[tuple[StreamReport, ...], str]:
    """The report of the build that made a run's plan; nothing, and why, if it is not there."""
    store = config.get("store")
    if not store:
        return (), "config.yaml names no store"
    place = f"{store}/{report_key(manifest.name)}"
    try:
        report = read_report(open_store(str(store)), manifest.name)
    except DamagedError:
        return (), f"{place} cannot be read"
    except (OSError, InputError):
        return (), f"{place} is not there"
    if report.plan_id != manifest.plan_id:
        return (), f"{place} is from another build"
    return report.streams, ""
