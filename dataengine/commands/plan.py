"""Show a run's schedule: of a manifest, of a built config, or of a config as it would be built."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from dataengine.build.agreement import build_differences, read_built_config
from dataengine.build.experiment import experiment_url, make_built_manifest, make_manifest
from dataengine.build.stored import find_stored_streams
from dataengine.commands.common import parse_steps, show
from dataengine.config.aliases import second_name
from dataengine.config.load import load_config, without_collections
from dataengine.config.schema import Config
from dataengine.config.streams import AssumeConfig
from dataengine.errors import InputError, note
from dataengine.hardware.cost import describe_cost
from dataengine.hardware.fitting import Work
from dataengine.hardware.gpus import Gpu, find_gpu
from dataengine.hardware.memory import ERROR, step_bytes
from dataengine.hardware.sizes import divisors
from dataengine.mds.types import Shard, StoredFile, Stream
from dataengine.pretrained import model_in_closed_form
from dataengine.schedule.differences import describe_difference
from dataengine.schedule.fork import settings_after_parents
from dataengine.schedule.idle import idle_streams
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.schedule.rates import Settings, horizon_notes
from dataengine.schedule.reader import PlanReader
from dataengine.schedule.slots import Stage
from dataengine.schedule.stages import by_entry, entry_of, stage_rows
from dataengine.storage.open import open_store
from dataengine.storage.paths import is_url, where_it_would_be
from dataengine.storage.store import Store
from dataengine.tables import few, size_words, table
from dataengine.text.tokenizers.load import load_tokenizer

_MOST_SHARDS = 1 << 18  # of a stream that is not built; more are counted as larger shards
_MOST_LISTED = 100_000  # samples of a step whose ids are shown
_VOCABULARY = 32_000  # tokens, if the tokenizer is not there: the paper's
_PAIRS = 3  # of an entry that are shown: as many of the largest and of the smallest
_PROBES = 200  # steps of a stage at which its drift is measured
_UNKNOWN = "assumed"  # in place of the hashes of streams that are not built


@without_collections()
def run(options: argparse.Namespace) -> None:
    """Show a plan, some of its steps, or the first difference between two plans."""
    plan = load_plan(options.config, options.overrides)
    if plan.origin and (options.diff or options.steps):
        note(f"{plan.manifest.name} is {plan.origin}")
    if options.diff:
        show(describe_difference(plan.manifest, load_plan(options.diff).manifest))
    elif options.steps:
        first, last = parse_steps(options.steps)
        for line in describe_steps(plan, first, last, options.text or 0):
            show(line)
    else:
        speed = options.tokens_per_second
        show(describe_plan(plan, nodes=options.nodes, tokens_per_second=speed, gpus=options.gpus, gpu=options.gpu))
    if words := stale_note(plan):
        note(words)
    if options.plot:
        from dataengine.schedule.plot import plot_plan  # which imports matplotlib

        settings, _ = settings_and_notes(plan)
        plot_plan(plan.manifest, Path(options.plot), settings, plan.config.first_step if plan.config else 0)
        print(f"picture {options.plot}")


@dataclass(frozen=True)
class Plan:
    """A schedule to look at. `assumed` streams are not built: their sizes are stated, not counted.

    `origin` says what a plan that is not built comes from; it is empty for a built one. `missing` has the reason why
    the store does not have a stream.
    """

    manifest: Manifest
    assumed: tuple[str, ...]
    store: Store | None  # where the streams are, if any is built
    config: Config | None
    origin: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)


def load_plan(path: str, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a manifest (.json) or a config (YAML).

    If the config is built as it is, this is the built plan. Otherwise it is the plan that a build would make of the
    streams in the store; a stream that is not there has its assumed size. Writes nothing.
    """
    if path.endswith(".json"):
        if overrides:
            raise InputError("a manifest cannot be changed: give overrides with a config")
        return Plan(read_manifest(path), (), None, None)
    return _plan_config(load_config(path, overrides))


def plan(config: Config) -> Manifest:
    """Return the manifest of a config without building, as `dataengine plan` shows it.

    If the config is built and has not changed, this is the built manifest. Otherwise it is the manifest that a build
    would make of the streams in the store. A stream that is not there has the size that the config assumes
    (`streams.NAME.assume`): the schedule is exact for this size, but there are no samples to read. Raises InputError if
    a size is unknown.

        config = dataengine.load_config("yamls/mini/uni_en_zh.yaml")
        schedule = dataengine.plan(config).schedule
        print(schedule.steps, schedule.cursors(schedule.steps))  # steps; samples that the run draws from each stream
    """
    return _plan_config(config).manifest


def _plan_config(config: Config) -> Plan:
    store = open_store(config.store)
    if store.size(f"experiments/{config.name}/manifest.json") is None:
        return _plan_unbuilt(config, store, f"is not built in {config.store}")
    manifest = read_manifest(experiment_url(config))
    if changed := build_differences(config, read_built_config(store, config.name), manifest):
        keys = ", ".join(second_name(one.key) for one in changed)
        return _plan_unbuilt(config, store, f"was built with other settings ({keys})", manifest)
    return Plan(manifest, (), store, config)


def _plan_unbuilt(config: Config, store: Store, reason: str, last: Manifest | None = None) -> Plan:
    """The plan that a build would make, as far as the store has the streams; else with the sizes that are stated."""
    stored = find_stored_streams(config, store)
    if any(config.all_streams[name].assume is None for name in stored.missing):
        raise InputError(_missing_sizes(config, stored.missing, reason))
    width, in_shard = config.seq_len + 1, config.samples_per_shard
    assumed = {name: _assumed_stream(name, config.all_streams[name].assume, width, in_shard) for name in stored.missing}
    streams = {name: assumed[name] if name in assumed else stored.streams[name] for name in config.streams_in_use}
    origin = " and ".join([f"streams in {config.store}"] * bool(stored.streams) + ["assumed sizes"] * bool(assumed))
    if assumed or stored.tokenizer is None:
        manifest = make_manifest(config, streams, tokenizer_sha256=_UNKNOWN, vocab_size=0, eos_id=0, last=last)
    else:
        manifest = make_built_manifest(config, streams, stored.tokenizer, last)
    return Plan(
        manifest,
        assumed=tuple(assumed),
        store=store if stored.streams else None,
        config=config,
        origin=f"not built, planned from {origin}",
        missing=stored.missing,
    )


def stale_note(plan: Plan) -> str:
    """Why a build may give another plan than the built one that is shown; "" if it gives the same."""
    if plan.origin or plan.config is None or plan.store is None:
        return ""
    built = f"{plan.manifest.name} is shown as it is built"
    try:
        stored = find_stored_streams(plan.config, plan.store)
        if stored.missing or stored.tokenizer is None:
            return f"{built}; a build may give another plan. {_reasons(stored.missing)}"
        again = make_built_manifest(plan.config, stored.streams, stored.tokenizer, plan.manifest)
    except InputError as error:
        return f"{built}; a build would fail: {error}"
    same = again.content == plan.manifest.content
    return (
        "" if same else f"{built}; a build would give plan {again.plan_id[:12]}. Build again: dataengine build CONFIG"
    )


def _missing_sizes(config: Config, missing: Mapping[str, str], reason: str) -> str:
    """Why a config cannot be planned, and what to do."""
    unknown = [name for name in missing if config.all_streams[name].assume is None]
    first = entry_of(unknown[0])
    elsewhere = "" if is_url(config.store) else where_it_would_be(Path(config.store, "experiments"))
    return (
        f"'{config.name}' {reason}, and the sizes of streams {few(unknown)} are unknown. "
        f"{_reasons({name: missing[name] for name in unknown})} Build it (dataengine build CONFIG), or state sizes: "
        f"streams.{first}.assume: {{tokens: 1B}}{elsewhere}"
    )


def _reasons(missing: Mapping[str, str]) -> str:
    """Why the store does not have some streams; streams of one reason together."""
    names: dict[str, list[str]] = {}
    for name, reason in missing.items():
        names.setdefault(reason.removeprefix(f"stream '{name}': ").rstrip("."), []).append(name)
    return " ".join(f"{few(streams)}: {reason}." for reason, streams in names.items())


def _assumed_stream(name: str, assume: AssumeConfig | None, width: int, samples_per_shard: int) -> Stream:
    """A stream of the assumed size. Its samples have `width` tokens."""
    assert assume is not None
    samples = assume.samples or (assume.tokens or 0) // width
    in_shard = max(samples_per_shard, -(-samples // _MOST_SHARDS))
    full, rest = divmod(samples, in_shard)
    size = in_shard * (width * 2 + 4)  # uint16 tokens and their offsets
    shards = [Shard(in_shard, StoredFile("", size, {}))] * full
    shards += [Shard(rest, StoredFile("", rest * (width * 2 + 4), {}))] * bool(rest)
    return Stream(name, "", _UNKNOWN, samples, samples * width, tuple(shards))


def describe_plan(
    plan: Plan,
    *,
    nodes: int = 1,
    tokens_per_second: float | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
) -> str:
    """Tables of a plan: stages, streams, bytes that each of `nodes` nodes reads, and hours on `gpus` GPUs in total.

    `gpu` is the short name of a GPU: then also memory, the microbatch that fits, and hours without a measured speed.
    """
    manifest, schedule = plan.manifest, plan.manifest.schedule
    plan_id = "" if plan.assumed else f"plan {manifest.plan_id[:12]}"
    title = f"{manifest.name}: {', '.join(filter(None, (plan_id, plan.origin)))}"
    total = schedule.steps * manifest.batch_size * manifest.seq_len
    lines = [
        f"{title}, {schedule.steps:,} steps of {manifest.batch_size:,} x {manifest.seq_len:,} = {total:,} tokens",
        "",
    ]
    settings, notes = settings_and_notes(plan)
    first = plan.config.first_step if plan.config else 0
    stages = [("stage", "from step", "steps", "predicted tokens", "mix", "drift", "learning rate")]
    for row in stage_rows(schedule):
        mix = " -> ".join(_mix(piece) for piece in (row.pieces[0], row.pieces[-1])[: len(row.pieces)])
        drift = _drift(row.pieces, manifest.lanes, manifest.batch_size)
        tokens = row.steps * manifest.batch_size * manifest.seq_len
        rate = settings.describe(max(row.start, first), row.start + row.steps) if settings else ""
        stages.append((row.name, f"{row.start:,}", f"{row.steps:,}", f"{tokens:,}", mix, f"{drift:.1f}", rate))
    lines += [
        *table(stages if settings else [row[:-1] for row in stages], left=(0, 4, 6)),
        "",
        "drift: the largest number of samples by which a stream is ahead of or behind its share",
        "",
    ]
    cursors = schedule.cursors(schedule.steps)
    rows = [("stream", "samples", "drawn", "tokens drawn", "share", "epochs", "never drawn", "read by a node")]
    entries = _by_entry(manifest.streams)
    sizes = {stream.name: sum(shard.stored.bytes for shard in stream.shards) for stream in manifest.streams}
    lanes_part = 1 / nodes if manifest.lanes % nodes == 0 else 1.0  # its lanes' part of the samples of the first epoch
    read = {
        stream.name: sizes[stream.name] * min(cursors.get(stream.name, 0) / max(stream.samples, 1), 1) * lanes_part
        for stream in manifest.streams
    }
    assumed = set(plan.assumed)
    for name, streams in entries.items():
        draws = [cursors.get(stream.name, 0) for stream in streams]
        samples, drawn = sum(stream.samples for stream in streams), sum(draws)
        mark = f" ({len(streams):,} pairs)" if name != streams[0].name else ""
        mark += " (assumed)" if any(stream.name in assumed for stream in streams) else ""
        both = list(zip(streams, draws, strict=True))
        rows.append(
            (
                name + mark,
                f"{samples:,}",
                f"{drawn:,}",
                f"{drawn * manifest.seq_len:,}",
                f"{drawn / (schedule.steps * manifest.batch_size):.2%}",
                f"{drawn / max(samples, 1):.3f}",
                f"{sum(max(stream.samples - count, 0) for stream, count in both):,}",
                size_words(sum(read[stream.name] for stream in streams)),
            )
        )
    lines += table(rows)
    lines += [line for name in entries for line in _pair_lines(name, entries[name], cursors)]
    whole, cache = size_words(sum(read.values())), size_words(_cache(manifest, nodes, sizes))
    lines += ["", f"each of {nodes} node(s) reads {whole} in total and needs at least {cache} of cache"]
    if tokens_per_second:
        steps = _steps_to_train(plan)
        hours = steps * manifest.batch_size * manifest.seq_len / tokens_per_second / 3600
        of_gpus = f" on {gpus} GPUs: {hours * gpus:,.0f} GPU-hours" if gpus else ""
        part = "" if steps == schedule.steps else f" for {steps:,} steps"
        lines.append(f"{hours:,.1f} hours{part} at {tokens_per_second:,.0f} tokens/s{of_gpus}")
    if gpu:
        lines += ["", *gpu_cost(plan, find_gpu(gpu), gpus or 1, tokens_per_second), ""]
    if plan.assumed:
        lines.append("Sizes marked (assumed) are the config's. The build counts them: dataengine build CONFIG")
    if plan.missing:
        lines.append(f"Not in {plan.config.store if plan.config else ''}: {_reasons(plan.missing)}")
    if plan.config:
        notes += idle_streams(plan.config.stages, schedule.own_stages, schedule.lanes, plan.config.entries)
    return "\n".join([*lines, *(f"note: {words}" for words in notes)])


def _by_entry(streams: Sequence[Stream]) -> dict[str, list[Stream]]:
    """Streams by name; those of an entry for many pairs under its name."""
    entries: dict[str, list[Stream]] = {}
    for stream in streams:
        entries.setdefault(entry_of(stream.name), []).append(stream)
    return entries


def _pair_lines(name: str, streams: Sequence[Stream], cursors: Mapping[str, int]) -> list[str]:
    """A line on the streams of an entry that the run draws most and least from, and on those that repeat most."""
    if streams[0].name == name:
        return []
    drawn = {stream.name: cursors.get(stream.name, 0) for stream in streams}
    epochs = {stream.name: drawn[stream.name] / max(stream.samples, 1) for stream in streams}
    ordered = sorted(streams, key=lambda stream: (-drawn[stream.name], stream.name))
    ends = [ordered] if len(ordered) <= 2 * _PAIRS else [ordered[:_PAIRS], ordered[-_PAIRS:]]
    words = " ... ".join(", ".join(f"{one.name.partition('/')[2]} {drawn[one.name]:,}" for one in end) for end in ends)
    return [f"{name}, samples drawn by pair: {words}; {min(epochs.values()):.3f} to {max(epochs.values()):.3f} epochs"]


def gpu_cost(plan: Plan, gpu: Gpu, gpus: int, tokens_per_second: float | None = None) -> list[str]:
    """Lines on what the run needs of GPUs of a kind: memory, the microbatch that fits, hours.

    Raises InputError for a plan without a model, or a number of GPUs that does not divide the batch or cannot be
    grouped by `train.shard_ranks`.
    """
    config, manifest = plan.config, plan.manifest
    if config is None:
        raise InputError("--gpu needs a config: a manifest has no model")
    if manifest.batch_size % gpus:
        fitting = [n for n in divisors(manifest.batch_size) if n < 2 * gpus]
        raise InputError(
            f"batch_size {manifest.batch_size:,} is not divisible by {gpus:,} GPUs. Give --gpus {fitting[-1]:,}, or "
            f"another batch_size."
        )
    if gpus % (config.train.shard_ranks or 1):
        raise InputError(
            f"train.shard_ranks is {config.train.shard_ranks}, which does not divide {gpus:,} GPUs. Give --gpus a "
            "multiple of it, or leave it out."
        )
    vocabulary, note = _vocabulary(plan)
    try:
        model = model_in_closed_form(config)
    except InputError as error:
        return [f"memory and hours on GPUs are not known: {error}"]
    work = Work(model, replace(manifest, vocab_size=vocabulary), config.train, gpus, step_bytes)
    return [*describe_cost(work, gpu, _steps_to_train(plan), error=ERROR, tokens_per_second=tokens_per_second), *note]


def _steps_to_train(plan: Plan) -> int:
    """The steps that a new run of the config trains: up to `train.max_steps`, without those of a run it continues."""
    steps, config = plan.manifest.schedule.steps, plan.config
    return max(min(config.train.max_steps or steps, steps) - config.first_step, 0) if config else steps


def _vocabulary(plan: Plan) -> tuple[int, list[str]]:
    """The tokens of a plan's vocabulary; and a line if the number is assumed, since there is no tokenizer yet."""
    if plan.manifest.vocab_size or plan.config is None:
        return plan.manifest.vocab_size, []
    try:
        return load_tokenizer(plan.config.tokenizer, plan.config.eos_token).vocab_size, []
    except InputError:
        return _VOCABULARY, [f"{plan.config.tokenizer} cannot be read: assumed a vocabulary of {_VOCABULARY:,} tokens"]


def settings_and_notes(plan: Plan) -> tuple[Settings | None, list[str]]:
    """The training settings of the steps, if they are known, and notes on the learning rate."""
    if plan.config is None:
        return None, []
    try:
        settings = settings_after_parents(plan.config, plan.manifest.schedule)
    except InputError as error:
        return None, [f"learning rates are not shown: {error}"]
    return settings, horizon_notes(
        settings, plan.manifest.schedule.steps, first=plan.config.first_step, init=plan.config.init
    )


def describe_steps(plan: Plan, first: int, last: int, texts: int = 0) -> Iterator[str]:
    """Lines for steps first..last: stage, the sample ids of each stream in slot order, and the text of some samples.

    At most 100,000 samples of a step are listed. Raises InputError for steps outside the schedule.
    """
    schedule = plan.manifest.schedule
    if not 0 <= first < last <= schedule.steps:
        raise InputError(
            f"steps {first}:{last} are not within the schedule's {schedule.steps:,} steps (0:{schedule.steps})"
        )
    return (line for step in range(first, last) for line in _step_lines(plan, step, texts))


def _step_lines(plan: Plan, step: int, texts: int) -> Iterator[str]:
    manifest, schedule = plan.manifest, plan.manifest.schedule
    listed = min(manifest.batch_size, _MOST_LISTED)
    ids = manifest.order.sample_ids(step, 0, listed)
    numbers = manifest.order.stream_numbers(ids)
    counts = schedule.counts(step)
    yield f"step {step} ({schedule.stages[schedule.stage_index(step)].name})"
    for number, stream in enumerate(manifest.streams):
        mine = ids[numbers == number] - manifest.order.first_ids[number]
        if count := counts.get(stream.name, 0):
            more = [f"... and {count - len(mine):,} more"] if count > len(mine) else []
            yield f"  {stream.name}: {count} samples: {' '.join([*map(str, mine.tolist()), *more])}"
    for slot in range(min(texts, len(ids))):
        yield from _sample_text(plan, int(numbers[slot]), int(ids[slot]), slot)


def _mix(stage: Stage) -> str:
    total = sum(stage.samples.values())
    return ", ".join(f"{name} {samples / total:.2%}" for name, samples in by_entry(stage.samples).items() if samples)


def _drift(pieces: Sequence[Stage], lanes: int, batch_size: int) -> float:
    """The largest deviation of a stream or an entry from its share, in samples, over some steps of a stage."""
    return max(_piece_drift(piece, lanes, batch_size, max(_PROBES // len(pieces), 2)) for piece in pieces)


def _piece_drift(stage: Stage, lanes: int, batch_size: int, probes: int) -> float:
    tree = stage.tree
    probes, exact = min(stage.length, probes), stage.steps * batch_size * tree.whole[0] < 1 << 63
    steps = [stage.length * k // probes for k in range(probes + 1)]
    slots = np.array([step * batch_size // lanes for step in steps], dtype=np.int64 if exact else object)
    counts = tree.count_each(slots)
    quotas = np.array([[stage.samples[name]] for name in tree.names])
    firsts = [next(group)[0] for _, group in groupby(enumerate(tree.names), lambda pair: entry_of(pair[1]))]
    return max(
        float(np.abs(drawn - slots * (quota / tree.whole[0])).max()) * lanes
        for drawn, quota in ((counts, quotas), (np.add.reduceat(counts, firsts), np.add.reduceat(quotas, firsts)))
    )


def _cache(manifest: Manifest, nodes: int, sizes: Mapping[str, int]) -> float:
    """Bytes that hold two shuffle blocks (one read, one fetched ahead) of each stream of a stage and each lane.

    `sizes`: bytes of each stream in the store.
    """
    lanes = -(-manifest.lanes // nodes)
    need = {
        stream.name: 2 * manifest.shuffle_block / stream.shards[0].samples * stream.shards[0].raw.bytes * lanes
        for stream in manifest.streams
    }
    return max(sum(min(need[name], sizes[name]) for name in stage.samples) for stage in manifest.stages)


def _sample_text(plan: Plan, number: int, sample_id: int, slot: int) -> list[str]:
    stream = plan.manifest.streams[number]
    if plan.store is None or plan.config is None or stream.name in plan.assumed:
        raise InputError("the text of samples needs a config whose streams are built: dataengine build CONFIG")
    position = sample_id - int(plan.manifest.order.first_ids[number])
    (tokens,) = PlanReader.of_store(plan.manifest, plan.store).read_ids(np.array([sample_id])).tokens
    text = load_tokenizer(plan.config.tokenizer, plan.config.eos_token).decode(tokens.tolist())
    return [f"  slot {slot}, {stream.name} {position}:", *[f"    | {line}" for line in text.split("\n")]]
