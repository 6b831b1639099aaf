"""The commands build, worker and finalize, and their output."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path

from dataengine.build.build import BuildResult, build, work
from dataengine.build.executors import Engine, FinishedEngine, LocalEngine, OthersNotDoneError, RayEngine, SliceEngine
from dataengine.build.prepare import prepare, refuse_branches
from dataengine.commands.common import command_again, load_experiment, parse_slice, show
from dataengine.commands.estimate import describe_estimate
from dataengine.config.fields import parse_count
from dataengine.config.training import EvaluateConfig
from dataengine.errors import InputError, note
from dataengine.schedule.idle import idle_streams
from dataengine.schedule.stages import budget_steps, by_entry, entry_of, stage_rows
from dataengine.storage.open import open_store
from dataengine.storage.paths import is_remote
from dataengine.tables import table

_DAY_S = 86_400.0
_REJECTS = 5  # files of unusable records that are named for an entry


def run_build(options: argparse.Namespace) -> None:
    """Run a whole build, one slice, or its end. With --dry-run, estimate the build."""
    if options.slice is not None:
        return run_worker(options)
    if options.finalize:
        return run_finalize(options)
    config, workers = load_experiment(options, look=True)
    if options.dry_run:
        sample = parse_count((options.sample_bytes or "4M").upper())
        if not isinstance(sample, int) or sample < 1:
            raise InputError(f"--sample {options.sample_bytes} is not a number of bytes, such as 800K, 4M or 1B")
        show(describe_estimate(prepare(config, open_store(config.store)), workers=workers, sample_bytes=sample))
        _note_missing_sets(config.evaluate)
        return
    engine: Engine = RayEngine(options.ray_address) if options.engine == "ray" else LocalEngine(workers)
    result = build(config, workers=workers, engine=engine)
    show(describe_build(result))
    for words in idle_streams(config.stages, result.manifest.schedule.own_stages, config.lanes, config.entries):
        note(words)
    steps, total = result.manifest.schedule.steps, budget_steps(config.budget, config.batch_size, config.seq_len)
    if total is not None and steps < total:
        note(f"the stages take {steps:,} of the budget's {total:,} steps")
    _note_missing_sets(config.evaluate)


def _note_missing_sets(evaluate: EvaluateConfig) -> None:
    """Report the evaluation sets that do not exist yet."""
    for name, sets in (("dev", evaluate.dev), ("test", evaluate.test)):
        for direction, place in sets.items():
            for path in [place] if isinstance(place, str) else place.values():
                if not is_remote(path) and not Path(path).exists():
                    note(f"evaluate.{name}.{direction} is {path}, which does not exist yet")


def run_worker(options: argparse.Namespace) -> None:
    """Run one slice of a build. Exits with 3 if other slices must continue first."""
    config, workers = load_experiment(options, look=True)
    number, slices = parse_slice(options.slice)
    try:
        work(config, SliceEngine(number, slices, workers, _DAY_S if options.wait is None else options.wait))
    except OthersNotDoneError as waits:
        again = command_again(options, "build", "--slice", options.slice)
        print(
            f"slice {options.slice} has finished its part of {waits.title} and waits for {_left(waits, slices)}. "
            f"When they are done, start this slice again: {again}",
            file=sys.stderr,
        )
        sys.exit(3)
    again = command_again(options, "build", "--finalize", "--slices", str(slices))
    print(f"slice {options.slice} has finished all its units. When all slices have: {again}")


def run_finalize(options: argparse.Namespace) -> None:
    """Publish the output of a build's slices."""
    config, _ = load_experiment(options, look=True)
    refuse_branches(config)
    try:
        show(describe_build(build(config, engine=FinishedEngine(options.slices or 1))))
    except OthersNotDoneError as waits:
        left = _left(waits, options.slices) if options.slices else _units(sum(waits.left.values()))
        raise InputError(
            f"{waits.title} is not finished; unfinished: {left}. Start these slices again, or run the rest here: "
            f"{command_again(options, 'build')}"
        ) from None


def _left(waits: OthersNotDoneError, slices: int) -> str:
    """The slices with unfinished units, in words."""
    return ", ".join(f"slice {number + 1}/{slices} ({_units(count)})" for number, count in sorted(waits.left.items()))


def _units(count: int) -> str:
    return f"{count:,} unit{'s' if count > 1 else ''}"


def describe_build(result: BuildResult) -> str:
    """A build's streams and stages as text tables."""

    manifest = result.manifest
    if not result.new:
        return f"nothing to do: {result.path} is up to date (plan {manifest.plan_id[:12]})"
    records = [("stream", "records", "unusable", "dropped", "kept", "tokens", "samples", "remainder", "shards", "")]
    groups = {name: list(streams) for name, streams in groupby(result.streams, lambda one: entry_of(one.stream.name))}
    for name, group in groups.items():
        new = sum(built.new for built in group)
        records.append(
            (
                name if name == group[0].stream.name else f"{name} ({len(group):,} pairs)",
                f"{sum(built.records for built in group):,}",
                f"{sum(sum(built.rejected.values()) for built in group):,}",
                f"{sum(sum(built.dropped.values()) for built in group):,}",
                f"{sum(built.kept for built in group):,}",
                f"{sum(built.tokens for built in group):,}",
                f"{sum(built.stream.samples for built in group):,}",
                f"{sum(built.remainder for built in group):,} tokens",
                f"{sum(len(built.stream.shards) for built in group):,}",
                {0: "reused", len(group): "built"}.get(new, f"{new:,} built"),
            )
        )
    parents = dict.fromkeys(entry_of(stream.name) for stream in manifest.streams)
    names = [*(name for name in parents if name not in groups), *groups]  # a parent's come first
    stages = [("stage", "steps", "predicted tokens", *names)]
    for row in stage_rows(manifest.schedule):
        tokens = row.steps * manifest.batch_size * manifest.seq_len
        drawn = by_entry(row.drawn)
        shares = [f"{drawn[name]:,} samples ({row.share(name)})" if name in drawn else "-" for name in names]
        stages.append((row.name, f"{row.steps:,}", f"{tokens:,}", *shares))
    reasons = [
        f"{name}: {count:,} {word}: {reason}"
        for name, group in groups.items()
        for word, counts in (
            ("unusable", sum((Counter(built.rejected) for built in group), Counter[str]())),
            ("dropped", sum((Counter(built.dropped) for built in group), Counter[str]())),
        )
        for reason, count in counts.most_common()
    ]
    reasons += [
        f"{name}: {count:,} {words}"
        for name, group in groups.items()
        for count, words in (
            (sum(built.unknown for built in group), "unknown tokens: text that the tokenizer does not know"),
            (sum(built.vanished for built in group), "characters vanished: the tokenizer has no token for them"),
        )
        if count
    ]
    store = result.path.rpartition("/experiments/")[0]
    rejects = [
        f"{built.stream.name}: unusable records with files and lines: {store}/{built.rejects}"
        for group in groups.values()
        for built in [one for one in group if one.rejects][:_REJECTS]
    ]
    return "\n".join(
        [
            *table(records),
            *reasons,
            *rejects,
            "",
            *table(stages),
            "",
            f"manifest {result.path} (plan {manifest.plan_id[:12]}) in {result.seconds:.1f} s",
        ]
    )
