"""Build the streams of an experiment and its manifest.

store/units/FINGERPRINT/            results of units of work; the next build reuses them, and you may remove them
store/keeps/                        which records of a part cleaning keeps; you may remove them, too
store/streams/NAME-FINGERPRINT/     shards and index.json, shared by all experiments with the same stream definition;
                                    stream.summary and rejects.jsonl: how it was made (`mds.summary`)
store/experiments/NAME/             manifest.json, config.yaml, build_report.json

A stream passes through rounds of units (clean, compare, tokenize, shuffle). The rounds of all streams run together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from dataengine.build.agreement import differences, read_built_config
from dataengine.build.executors import Engine, LocalEngine, SliceEngine, slice_of
from dataengine.build.experiment import experiment_url, last_manifest, make_built_manifest
from dataengine.build.finished import spend_units
from dataengine.build.prepare import (
    Preparation,
    StreamPlan,
    label_notes,
    load_token_format,
    missing_streams,
    prepare,
    read_if_there,
    refuse_branches,
    try_write,
)
from dataengine.build.publish import BuiltStream, publish_stream, read_built_stream
from dataengine.build.report import BuildReport, StreamReport, report_key
from dataengine.build.rounds import run_rounds
from dataengine.build.running import Alone, say_running
from dataengine.build.sources import share_hashes
from dataengine.build.stream import make_stream
from dataengine.build.units import Receipt, Unit
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.config.streams import DocumentStream, PairStream
from dataengine.errors import InputError, note
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.stages import entry_of
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from dataengine.tables import few
from dataengine.text.tokenizers.base import keeps_line_breaks, keeps_spaces
from dataengine.text.tokenizers.load import load_tokenizer

_NOTES = 20  # of the streams of an entry


@dataclass(frozen=True)
class BuildResult:
    """The result of a build: the manifest and its streams. `new` if anything was written."""

    manifest: Manifest
    path: str
    streams: list[BuiltStream]
    new: bool
    seconds: float


def build(config: Config, *, workers: int = 1, engine: Engine | None = None, store: Store | None = None) -> BuildResult:
    """Build what is missing, publish the manifest, and return it. Raises InputError for unusable input.

    Finished units and streams are reused, so a killed build continues where it stopped and a second build does nothing.
    The bytes do not depend on the engine (default: `workers` processes on this machine).
    """
    begun = time.monotonic()
    _note_pairs(config, store or open_store(config.store))
    prepared = prepare(config, store or open_store(config.store), threads=max(workers, 4))
    store = prepared.store
    missing = missing_streams(prepared)
    if missing:
        _note_losses(prepared, missing)
    labels = label_notes(missing, config)
    _print_notes(labels)
    if missing:
        _make_streams(missing, config, engine or LocalEngine(workers), store)
    built = {name: read_built_stream(plan, store, new=name in missing) for name, plan in prepared.streams.items()}
    streams = {name: one.stream for name, one in built.items()}
    manifest = make_built_manifest(config, streams, prepared.tokenizer, last_manifest(config))
    folder = f"experiments/{config.name}"
    before = read_if_there(store, f"{folder}/manifest.json")
    new = bool(missing) or before != manifest.content
    recorded = None if new else _recorded_config(config, store)
    relabelled = recorded is not None and _changed_languages(recorded, config)
    if new or relabelled:
        reused = {name: plan for name, plan in prepared.streams.items() if name not in missing}
        labels |= label_notes(reused, config)
        _print_notes({name: (*labels[name], *built[name].notes) for name in reused})
    built = {name: replace(one, notes=(*labels.get(name, ()), *one.notes)) for name, one in built.items()}
    if before not in (None, manifest.content):
        note(f"{config.name} was built before with another plan; this build replaces it")
    result = BuildResult(manifest, experiment_url(config), list(built.values()), new, time.monotonic() - begun)
    if new:
        if before not in (None, manifest.content):  # a killed build never leaves it beside the config of another plan
            store.remove(f"{folder}/manifest.json")
        store.write(report_key(config.name), _report(config, result).content)
        store.write(f"{folder}/config.yaml", dump_config(config).encode())
        store.write(f"{folder}/manifest.json", manifest.content)
    elif recorded is None or differences(recorded, config, of=("bytes", "plan", "training")):  # paths do not count
        if relabelled:
            try_write(store, report_key(config.name), _report(config, result).content)
        try_write(store, f"{folder}/config.yaml", dump_config(config).encode())
    return result


def _make_streams(missing: Mapping[str, StreamPlan], config: Config, engine: Engine, store: Store) -> None:
    """Run the units of streams and publish them. What nothing reads any more goes while the build runs."""
    rounds = {name: make_stream(plan, config, store) for name, plan in missing.items()}
    folders = [plan.folder for plan in missing.values()]
    with say_running(folders, store) as alone:
        packed = run_rounds(rounds, engine, store, partial(_spend, store=store, alone=alone))
        uses = Counter(unit.fingerprint for one in packed.values() for unit in {*one.units, *one.tails})
        for name, plan in missing.items():
            uses.subtract(unit.fingerprint for unit in {*packed[name].units, *packed[name].tails})
            needed = {fingerprint for fingerprint, streams in uses.items() if streams}
            publish_stream(plan, packed[name], store, needed=needed, alone=alone)


def _spend(done: list[tuple[Unit, Receipt]], *, store: Store, alone: Alone) -> None:
    """Remove the files of units that only later units read, unless another build may read them."""
    if done and alone():
        try:
            spend_units(done, store, alone)
        except InputError as error:
            note(f"files that the build does not need any more stay: {str(error).partition('. ')[0]}")


def _print_notes(notes: Mapping[str, Sequence[str]]) -> None:
    """Print the notes on each stream; of the streams of an entry only the first ones. build_report.json has all."""
    for _, names in groupby(notes, entry_of):
        words = [words for name in names for words in notes[name]]
        for line in words[:_NOTES]:
            note(line)
        if more := words[_NOTES:]:
            note(f"and {len(more):,} more notes like these: see build_report.json beside the manifest")


def _note_pairs(config: Config, store: Store) -> None:
    """Print the pairs of each entry that have come or gone since the last build."""
    recorded = _recorded_config(config, store) if config.entries else None
    for name, pairs in config.entries.items():
        before = recorded.entries.get(name, pairs) if recorded else pairs
        for words, one, other in (("new", pairs, before), ("gone", before, pairs)):
            if changed := sorted({*one} - {*other}):
                note(f"{len(changed):,} pairs are {words} since the last build: {few(changed)}")


def _note_losses(prepared: Preparation, missing: Collection[str]) -> None:
    """Print what the tokenizer loses of the texts of missing streams, and why it falls back to the slow engine."""
    config, tokenizer = prepared.config, prepared.tokenizer
    if not keeps_line_breaks(tokenizer):
        note(
            f"tokenizer {config.tokenizer} has no token for a line break, so it joins the lines of a document and the "
            "two sides of a pair"
        )
    if any(isinstance(config.all_streams[name], DocumentStream) for name in missing) and not keeps_spaces(tokenizer):
        note(
            f"tokenizer {config.tokenizer} collapses repeated spaces and tabs, so documents lose the indentation of "
            "code and the columns of tables"
        )
    if config.tokenizer_engine == "auto":
        fast = load_tokenizer(config.tokenizer, config.eos_token, engine="auto")
        if fast.fallback_reason:
            note(f"tokenizing with {fast.engine}, which is slower: {fast.fallback_reason}")


def _recorded_config(config: Config, store: Store) -> Config | None:
    """The config that the experiment was built with; None if it cannot be read."""
    try:
        return read_built_config(store, config.name)
    except InputError:
        return None


def _changed_languages(built: Config, config: Config) -> bool:
    """Whether the stated language of documents changed since the experiment was built."""
    return any(
        name in built.all_streams and built.all_streams[name].codes != config.all_streams[name].codes
        for name in config.streams_in_use
    )


def work(config: Config, engine: SliceEngine) -> None:
    """Run a slice of the units of a build. Publishes nothing."""
    refuse_branches(config)
    load_token_format(config)  # a wrong tokenizer is reported before slices wait for each other
    share_hashes(config, engine, open_store(config.store))
    prepared = prepare(config, open_store(config.store))
    store, missing = prepared.store, missing_streams(prepared)
    folders = [plan.folder for plan in missing.values()]
    rounds = {name: make_stream(plan, config, store) for name, plan in missing.items()}

    def spend(done: list[tuple[Unit, Receipt]], alone: Alone) -> None:
        mine = [one for one in done if slice_of(int(one[0].fingerprint, 16), engine.slices) == engine.slice]
        _spend(mine, store=store, alone=alone)

    with say_running(folders, store, slices=engine.slices) as alone:
        run_rounds(rounds, engine, store, partial(spend, alone=alone))


def _named(config: Config, built: BuiltStream) -> dict[str, int]:
    """The pairs in each template of a stream, by the names in the config."""
    stream = config.all_streams[built.stream.name]
    return dict(zip(stream.template if isinstance(stream, PairStream) else (), built.templates, strict=False))


def _report(config: Config, result: BuildResult) -> BuildReport:
    manifest = result.manifest
    streams = [
        StreamReport(
            name=built.stream.name,
            folder=built.stream.remote,
            records=built.records,
            rejected=built.rejected,
            dropped=built.dropped,
            kept=built.kept,
            tokens=built.tokens,
            samples=built.stream.samples,
            remainder_tokens=built.remainder,
            rejects=built.rejects,
            unknown_tokens=built.unknown,
            vanished_characters=built.vanished,
            notes=built.notes,
            counted_tokens=built.counted,
            templates=_named(config, built),
        )
        for built in result.streams
    ]
    seconds = round(result.seconds, 3)
    return BuildReport(plan_id=manifest.plan_id, seconds=seconds, streams=tuple(streams), stages=manifest.stages)
