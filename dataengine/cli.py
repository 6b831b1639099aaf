"""The `dataengine` command."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import select
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from dataengine.characters import escape_controls
from dataengine.errors import InputError, note, run_command
from dataengine.tables import table

if TYPE_CHECKING:
    from dataengine.build.build import BuildResult, Preparation
    from dataengine.build.executors import Engine, OthersNotDoneError
    from dataengine.config.schema import Config
    from dataengine.schedule.manifest import Manifest

_STORES = (
    "Sources and `store` may be local or s3://bucket/prefix (credentials as the AWS tools find them; S3_ENDPOINT_URL "
    "names another S3-compatible store)."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, 2 for unusable input, 3 if others have to go on first, 130 after Ctrl-C."""
    # argparse gives no `nargs="*"` what follows an option, so overrides after one arrive as unknown.
    options, rest = _make_parser().parse_known_args(arguments)
    _check_usage(options, rest)
    options.overrides += rest
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        code = run_command(lambda: run(options))
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        if not _has_no_reader(sys.stdout.fileno()):  # another pipe broke, such as that of a worker process
            raise
        # `dataengine inspect ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _has_no_reader(descriptor: int) -> bool:
    """Whether a descriptor is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or what a library made of it: compiled code and imports raise errors of their own.

    A panic of compiled Rust names it in its text only.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        if type(error).__name__ == "PanicException" and "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_usage(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """End with the command's usage if what it was given does not go together."""
    parser: argparse.ArgumentParser = options.parser
    known = re.findall(r"--[a-z-]+", parser.format_usage())
    for word in rest:
        if word.startswith("-"):
            near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
            parser.error(f"unknown option {word}" + (f" (did you mean {near[0]}?)" if near else ""))
    if options.command == "build" and options.sample_bytes and not options.dry_run:
        parser.error("--sample goes with --dry-run")
    if options.command == "build" and options.ray_address and options.engine != "ray":
        parser.error("--ray-address goes with --engine ray")
    if options.command == "plan" and options.text and not options.steps:
        parser.error("--text goes with --steps")
    if options.command == "plan" and options.gpus and not options.tokens_per_second:
        parser.error("--gpus goes with --tokens-per-second")


_CONFIGS = {
    "CONFIG": "the experiment's YAML file",
    "CONFIG|MANIFEST": "the experiment's YAML file, or a built manifest.json",
    "CONFIG|FOLDER": "the experiment's YAML file, or the folder or URL of one stream",
}


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dataengine",
        description="Turn documents and sentence pairs into token streams and a training schedule.",
    )
    parser.add_argument("--version", action="version", version=f"dataengine {version('dataengine')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str, description: str, example: str,
                *, config: str = "CONFIG") -> argparse.ArgumentParser:  # fmt: skip
        made = commands.add_parser(
            name, help=help, description=textwrap.fill(description, 79), epilog=f"example:\n  dataengine {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        made.set_defaults(run=run, parser=made)
        made.add_argument("config", metavar=config, help=_CONFIGS[config])
        made.add_argument(
            "overrides",
            nargs="*",
            default=[],
            metavar="KEY=VALUE",
            help="settings that replace the file's, such as batch_size=64",
        )
        return made

    build = command(
        "build", _build, "sources -> streams of MDS shards -> manifest",
        "Build the streams that an experiment's stages draw from, and its manifest. What is already built is taken up "
        "as it is: a killed build goes on where it stopped, a second build does nothing, and experiments that define a "
        f"stream alike share it. The bytes do not depend on the engine or the number of workers. {_STORES}",
        "build yamls/mini/uni_en_zh.yaml --workers 8 store=/data/store",
    )  # fmt: skip
    _add_workers(build)
    build.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="where units of work run: processes of this machine (default), or tasks of a Ray cluster",
    )  # fmt: skip
    build.add_argument("--ray-address", metavar="ADDRESS", help="the cluster (default: RAY_ADDRESS, or this machine's)")
    build.add_argument(
        "--dry-run", action="store_true", help="estimate tokens, time, disk and drops from a sample; write no stream"
    )
    build.add_argument(
        "--sample", dest="sample_bytes", metavar="BYTES",
        help="with --dry-run: read about so much of each stream (default: 4M)",
    )  # fmt: skip

    worker = command(
        "worker", _worker, "one slice of a build, for a job array",
        "Run one slice of a build's units of work: the same command with another --slice on each machine (Slurm array, "
        "Kubernetes indexed job, spark foreach), all on one store. Between rounds a worker waits for the other slices. "
        "Then `dataengine finalize` publishes the streams and the manifest.",
        "worker yamls/uni_en_zh.yaml --slice $((SLURM_ARRAY_TASK_ID + 1))/64 store=s3://bucket/store",
    )  # fmt: skip
    worker.add_argument("--slice", required=True, metavar="I/N", help="slice I of N, from 1/N to N/N")
    worker.add_argument(
        "--wait", type=float, metavar="SECONDS", default=86_400.0,
        help="wait so long for other slices (default: a day), then end with exit code 3, to be started again",
    )  # fmt: skip
    _add_workers(worker)
    finalize = command(
        "finalize", _finalize, "publish what workers built",
        "Publish the streams and the manifest once every unit is done; runs none itself, and names the slices that "
        "are not done.",
        "finalize yamls/uni_en_zh.yaml --slices 64 store=s3://bucket/store",
    )  # fmt: skip
    finalize.add_argument("--slices", type=_positive, metavar="N", help="the number of slices, to name those left")

    score = command(
        "score", _score, "score pairs by a COMET model",
        "Score the pairs that cleaning keeps, for streams with `scores`, by a reference-free COMET model such as "
        "CometKiwi. Scores are kept in the store by pair and model: a score is never computed twice, a killed run goes "
        "on, and a new threshold costs a build but no scoring.",
        "score yamls/parallel_last_all_filtered.yaml --device cuda",
    )  # fmt: skip
    score.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    score.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="pairs at a time (default: 64)")
    score.add_argument("--slice", default="1/1", metavar="I/N", help="score slice I of N, such as one for each GPU")
    score.add_argument("--stream", action="append", metavar="NAME", help="only this stream (may be repeated)")
    _add_workers(score)

    inspect = command(
        "inspect", _inspect, "what cleaning drops, and what samples hold",
        "Show how many records are unusable and how many each rule drops, with examples from the sources; or a sample "
        "with the files and lines that it is made of; or the samples that hold a source line.",
        "inspect yamls/parallel_last_all_filtered.yaml --stream zh-filtered --reason 'score zh-en' --count 20",
    )  # fmt: skip
    inspect.add_argument("--stream", action="append", metavar="NAME", help="only this stream (may be repeated)")
    inspect.add_argument("--reason", metavar="NAME", help="examples of this reason only")
    inspect.add_argument("--count", type=_positive, default=3, metavar="N", help="examples of each reason (default: 3)")
    inspect.add_argument("--sample", type=int, metavar="K", help="with one --stream: sample K of the built stream")
    inspect.add_argument("--line", metavar="FILE:LINE", help="the samples that hold this line of a source")
    _add_workers(inspect)

    plan = command(
        "plan", _plan, "what each step will be made of",
        "Show the schedule of a manifest, or of a config whether its streams are built or only assumed: stages, "
        "shares, passes, what is never drawn, and what reading costs.",
        "plan yamls/parallel_last_all.yaml --plot plan.png --diff yamls/parallel_first.yaml",
        config="CONFIG|MANIFEST",
    )  # fmt: skip
    plan.add_argument("--steps", metavar="A:B", help="the counts and sample ids of steps A to B - 1")
    plan.add_argument(
        "--text", type=_positive, metavar="N", help="with --steps: the text of the first N samples of each step"
    )
    plan.add_argument(
        "--plot", metavar="FILE", help="draw mix, passes and learning rate over steps: .png, .svg, .pdf or .html"
    )
    plan.add_argument("--diff", metavar="OTHER", help="the first step at which OTHER (config or manifest) differs")
    plan.add_argument("--nodes", type=_positive, default=1, metavar="N", help="machines that read (default: 1)")
    plan.add_argument("--tokens-per-second", type=_positive, metavar="N", help="also say how many hours the run takes")
    plan.add_argument("--gpus", type=_positive, metavar="N", help="and how many GPU-hours, if N give this speed")

    contamination = command(
        "contamination", _contamination, "evaluation sentences in the training streams",
        "Look for the sentences of `evaluate.dev` and `evaluate.test`, source or reference, in the records that the "
        "build kept: whole, or 13 words in a row of them inside a longer text. Done once for a stream and its sets; "
        "`clean.decontaminate` removes what is found.",
        "contamination yamls/uni_en_zh.yaml --count 20",
    )  # fmt: skip
    contamination.add_argument(
        "--count", type=_positive, default=5, metavar="N", help="examples of records (default: 5)"
    )
    _add_workers(contamination)

    command(
        "verify", _verify, "hash what was built again",
        "Read and hash every shard of an experiment's streams, or of one stream's folder, local or remote, and name "
        "each that is not as it was written.",
        "verify s3://bucket/store/streams/mono-0123456789ab",
        config="CONFIG|FOLDER",
    )  # fmt: skip
    export = command(
        "export", _export, "the samples in the order of training, for other trainers",
        "Write the samples of a schedule in the order of training as one MDS stream, which any trainer that reads MDS "
        "can go through without shuffling. A killed export goes on.",
        "export yamls/mini/uni_en_zh.yaml --to s3://bucket/mixed --steps 0:1000",
    )  # fmt: skip
    export.add_argument("--to", required=True, metavar="FOLDER", help="a folder or URL that is empty or does not exist")
    export.add_argument("--steps", metavar="A:B", help="only steps A to B - 1 (default: all)")
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="processes (default: the processors of this machine)"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text[:30]) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, got {text[:30]}")
    if len(text) > 18:
        raise argparse.ArgumentTypeError(f"must be a number of at most 18 digits, got {text[:30]}")
    return int(text)


def _show(text: str) -> None:
    """Print what a command found; what it quotes of files cannot command the terminal."""
    print(escape_controls(text))


# The commands import what they need themselves, so that --help answers at once.


def _load(options: argparse.Namespace) -> tuple[Config, int]:
    """The config, and the number of workers."""
    from dataengine.build.executors import default_workers
    from dataengine.config.schema import load_config

    config = load_config(options.config, options.overrides)
    return config, getattr(options, "workers", None) or default_workers()


def _again(options: argparse.Namespace, command: str, *more: str) -> str:
    """Another command about the same experiment, to be typed next."""
    return shlex.join(["dataengine", command, options.config, *more, *options.overrides])


def _read_manifest(options: argparse.Namespace, config: Config) -> Manifest:
    """The manifest of an experiment that is built."""
    from dataengine.build.build import experiment_url
    from dataengine.schedule.manifest import read_manifest
    from dataengine.storage.atomic import open_store

    if open_store(config.store).size(f"experiments/{config.name}/manifest.json") is None:
        raise InputError(f"'{config.name}' is not built in {config.store}. Build it first: {_again(options, 'build')}")
    return read_manifest(experiment_url(config))


def _read_built(options: argparse.Namespace, config: Config) -> Manifest:
    """The manifest of an experiment that is built as its config stands now."""
    from dataengine.build.agreement import build_differences, read_built_config
    from dataengine.storage.atomic import open_store

    manifest = _read_manifest(options, config)
    built = read_built_config(open_store(config.store), config.name)
    if changed := build_differences(config, built, manifest):
        keys = ", ".join(one.key for one in changed)
        plain = [one for one in changed if isinstance(one.then, int | float | str) and one.key != "tokenizer"]
        then = shlex.join(f"{one.key}={one.then}" for one in plain)
        words = f", or give those that it was built with: {then}" if len(plain) == len(changed) else ""
        raise InputError(
            f"'{config.name}' was built with other settings ({keys}). "
            f"Build it as they are now: {_again(options, 'build')}{words}"
        )
    return manifest


def _build(options: argparse.Namespace) -> None:
    from dataengine.build.build import build, prepare
    from dataengine.build.executors import LocalEngine, RayEngine
    from dataengine.config.schema import parse_count
    from dataengine.schedule.stages import budget_steps, idle_streams
    from dataengine.storage.atomic import open_store

    config, workers = _load(options)
    if options.dry_run:
        from dataengine.commands.estimate import describe_estimate

        sample = parse_count(options.sample_bytes or "4M")
        if not isinstance(sample, int) or sample < 1:
            raise InputError(f"--sample {options.sample_bytes} is not a number of bytes, such as 4M")
        _show(describe_estimate(prepare(config, open_store(config.store)), workers=workers, sample_bytes=sample))
        _note_missing_sets(config)
        return
    engine: Engine = RayEngine(options.ray_address) if options.engine == "ray" else LocalEngine(workers)
    result = build(config, workers=workers, engine=engine)
    _show(describe_build(result))
    for words in idle_streams(config.stages, result.manifest.schedule.own_stages, config.lanes):
        note(words)
    steps, total = result.manifest.schedule.steps, budget_steps(config.budget, config.batch_size, config.seq_len)
    if total is not None and steps < total:
        note(f"the stages take {steps:,} of the budget's {total:,} steps")
    _note_missing_sets(config)


def _note_missing_sets(config: Config) -> None:
    """Say which evaluation sets do not exist yet."""
    from pathlib import Path

    from dataengine.storage.s3_client import is_url

    for name, sets in (("dev", config.evaluate.dev), ("test", config.evaluate.test)):
        for direction, place in sets.items():
            for path in [place] if isinstance(place, str) else place.values():
                if not is_url(path) and not Path(path).exists():
                    note(f"evaluate.{name}.{direction} is {path}, which does not exist yet")


def _worker(options: argparse.Namespace) -> None:
    from dataengine.build.build import work
    from dataengine.build.executors import OthersNotDoneError, SliceEngine

    config, workers = _load(options)
    number, slices = _parse_slice(options.slice)
    try:
        work(config, SliceEngine(number, slices, workers, options.wait))
    except OthersNotDoneError as waits:
        again = _again(options, "worker", "--slice", options.slice)
        print(
            f"slice {options.slice} has done its part of {waits.title} and waits for {_left(waits, slices)}. "
            f"When they are done, start this one again: {again}",
            file=sys.stderr,
        )
        sys.exit(3)
    print(f"slice {options.slice} is done with all its units. When all slices are: "
          f"{_again(options, 'finalize', '--slices', str(slices))}")  # fmt: skip


def _finalize(options: argparse.Namespace) -> None:
    from dataengine.build.build import build
    from dataengine.build.executors import FinishedEngine, OthersNotDoneError

    config, _ = _load(options)
    try:
        _show(describe_build(build(config, engine=FinishedEngine(options.slices or 1))))
    except OthersNotDoneError as waits:
        left = _left(waits, options.slices) if options.slices else _units(sum(waits.left.values()))
        raise InputError(
            f"{waits.title} is not finished; to be done: {left}. Start their workers again, or do the rest here: "
            f"{_again(options, 'build')}"
        ) from None


def _left(waits: OthersNotDoneError, slices: int) -> str:
    """Which slices have units left, in words."""
    return ", ".join(f"slice {number + 1}/{slices} ({_units(count)})" for number, count in sorted(waits.left.items()))


def _units(count: int) -> str:
    return f"{count:,} unit{'s' if count > 1 else ''}"


def _score(options: argparse.Namespace) -> None:
    from dataengine.commands.score import score_streams

    config, workers = _load(options)
    number, slices = _parse_slice(options.slice)
    names = _names(config, options.stream, [name for name in config.streams_in_use if config.streams[name].scores])
    _show(
        score_streams(
            config, names, device=options.device, batch_size=options.batch_size, number=number, slices=slices,
            workers=workers,
        )
    )  # fmt: skip


def _inspect(options: argparse.Namespace) -> None:
    from dataengine.build.build import prepare, stream_notes
    from dataengine.build.executors import LocalEngine
    from dataengine.commands import inspect as inspect_module
    from dataengine.storage.atomic import open_store

    config, workers = _load(options)
    if options.line is not None:
        manifest = _read_built(options, config)
        prepared = _prepare_sources(options, config, manifest)
        store, engine = open_store(config.store), LocalEngine(workers)
        _show(inspect_module.describe_line(manifest, store, options.line, prepared, engine))
        return
    names = _names(config, options.stream, list(config.streams_in_use))
    if options.sample is not None:
        if len(names) != 1:
            raise InputError(f"--sample needs the --stream whose sample it is, one of {', '.join(names)}")
        manifest = _read_built(options, config)
        prepared = _prepare_sources(options, config, manifest)
        current = inspect_module.current_names(prepared) if prepared else {}
        _show(inspect_module.describe_sample(manifest, config, names[0], options.sample, current))
        return
    prepared = prepare(config, open_store(config.store))
    _show(
        inspect_module.describe_cleaning(
            prepared, LocalEngine(workers), names=names, reason=options.reason, count=options.count
        )
    )
    for words in stream_notes(prepared, names):
        note(words)


def _prepare_sources(options: argparse.Namespace, config: Config, manifest: Manifest) -> Preparation | None:
    """The sources of built streams as they are now; None, with a note, if they cannot be listed.

    Says which streams were built of other sources.
    """
    from dataengine.build.build import prepare
    from dataengine.commands.inspect import changed_streams
    from dataengine.storage.atomic import open_store

    try:
        prepared = prepare(config, open_store(config.store))
    except InputError as error:
        note(f"files are named as they were when the streams were built, for the sources cannot be listed: {error}")
        return None
    if changed := changed_streams(manifest, prepared):
        note(
            f"the sources of {', '.join(changed)} changed since the build, and what is shown is as they were then. "
            f"Build again: {_again(options, 'build')}"
        )
    return prepared


def _contamination(options: argparse.Namespace) -> None:
    from dataengine.commands.contamination import run_contamination

    config, workers = _load(options)
    _show(run_contamination(config, workers, options.count))


def _plan(options: argparse.Namespace) -> None:
    from pathlib import Path

    from dataengine.commands.plan import (
        describe_difference,
        describe_plan,
        describe_steps,
        load_plan,
        settings_and_notes,
    )

    plan = load_plan(options.config, options.overrides)
    if options.diff:
        _show(describe_difference(plan, load_plan(options.diff)))
    elif options.steps:
        first, last = _parse_steps(options.steps)
        for line in describe_steps(plan, first, last, options.text or 0):
            _show(line)
    else:
        _show(describe_plan(plan, nodes=options.nodes, tokens_per_second=options.tokens_per_second, gpus=options.gpus))
    if options.plot:
        from dataengine.schedule.plot import plot_plan

        settings, _ = settings_and_notes(plan)
        plot_plan(plan.manifest, Path(options.plot), settings, plan.config.first_step if plan.config else 0)
        print(f"picture {options.plot}")


def _verify(options: argparse.Namespace) -> None:
    from dataengine.commands.verify import open_stream, verify
    from dataengine.storage.atomic import open_store

    if options.config.endswith((".yaml", ".yml")):
        config, _ = _load(options)
        store, streams = open_store(config.store), _read_manifest(options, config).streams
        remedy = (
            f"Remove the folders of the streams named here, and {store.url}/units (on a disk its files are the same "
            f"ones), then build again: {_again(options, 'build')}"
        )
    elif options.overrides:
        raise InputError(f"settings ({' '.join(options.overrides)}) go with a config; {options.config} is a folder")
    else:
        store, stream = open_stream(options.config)
        streams, remedy = (stream,), "Fetch or build this stream again."
    problems, shards, size = verify(store, streams)
    if problems:
        count, of = (f"{n:,} {word}{'s' * (n != 1)}" for n, word in ((len(problems), "problem"), (shards, "shard")))
        found = f"{count} in {of}. {remedy}"
        raise InputError("\n".join([*problems, found]))
    print(f"{shards:,} shards, {size:,} bytes: all as they were written")
    if bare := sum(not shard.stored.hashes for stream in streams for shard in stream.shards):
        note(f"{bare:,} of these shards were written without hashes (shard_hashes): only their sizes were compared")


def _export(options: argparse.Namespace) -> None:
    from dataengine.commands.export import export
    from dataengine.mds.writer import ShardFormat
    from dataengine.storage.atomic import open_store

    config, _ = _load(options)
    manifest = _read_built(options, config)
    first, last = _parse_steps(options.steps) if options.steps else (0, manifest.schedule.steps)
    form = ShardFormat(config.samples_per_shard, config.shard_hashes, config.shard_compression)
    count = export(manifest, open_store(config.store), form, open_store(options.to), first, last)
    print(f"{count:,} samples of steps {first:,} to {last - 1:,} in {options.to} (plan {manifest.plan_id[:12]})")


def _parse_slice(text: str) -> tuple[int, int]:
    """The number of a slice, from 0, and the number of slices."""
    number, _, slices = text.partition("/")
    if not (number.isdecimal() and slices.isdecimal() and 1 <= int(number[:30]) <= int(slices[:30]) < 10**9):
        raise InputError(f"--slice {text} is not of the form I/N with I from 1 to N, such as 3/8")
    return int(number) - 1, int(slices)


def _parse_steps(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and len(first) < 30 and len(last) < 30):
        raise InputError(f"--steps {text} is not of the form A:B, such as 0:3")
    return int(first), int(last)


def _names(config: Config, chosen: list[str] | None, usual: list[str]) -> list[str]:
    """The streams that a command is about."""
    for name in chosen or ():
        if name not in config.streams_in_use:
            raise InputError(f"--stream {name}: the stages use {', '.join(config.streams_in_use)}")
    return chosen or usual


def describe_build(result: BuildResult) -> str:
    """A build's streams and stages as text tables."""
    from dataengine.schedule.stages import stage_rows

    manifest = result.manifest
    if not result.new:
        return f"nothing to do: {result.path} is up to date (plan {manifest.plan_id[:12]})"
    records = [("stream", "records", "unusable", "dropped", "kept", "tokens", "samples", "remainder", "shards", "")]
    for built in result.streams:
        records.append(
            (
                built.stream.name,
                f"{built.records:,}",
                f"{sum(built.rejected.values()):,}",
                f"{sum(built.dropped.values()):,}",
                f"{built.kept:,}",
                f"{built.tokens:,}",
                f"{built.stream.samples:,}",
                f"{built.remainder:,} tokens",
                f"{len(built.stream.shards):,}",
                "built" if built.new else "reused",
            )
        )
    own = [built.stream.name for built in result.streams]
    names = [*(stream.name for stream in manifest.streams if stream.name not in own), *own]  # a parent's come first
    stages = [("stage", "steps", "predicted tokens", *names)]
    for row in stage_rows(manifest.schedule):
        tokens = row.steps * manifest.batch_size * manifest.seq_len
        shares = [f"{row.drawn[name]:,} samples ({row.share(name)})" if name in row.drawn else "-" for name in names]
        stages.append((row.name, f"{row.steps:,}", f"{tokens:,}", *shares))
    reasons = [
        f"{built.stream.name}: {count:,} {word}: {reason}"
        for built in result.streams
        for word, counts in (("unusable", built.rejected), ("dropped", built.dropped))
        for reason, count in Counter(counts).most_common()
    ]
    reasons += [
        f"{built.stream.name}: {count:,} {words}"
        for built in result.streams
        for count, words in (
            (built.unknown, "unknown tokens: text that the tokenizer does not know"),
            (built.vanished, "characters vanished: the tokenizer has no token for them"),
        )
        if count
    ]
    store = result.path.rpartition("/experiments/")[0]
    rejects = [
        f"{built.stream.name}: unusable records with files and lines: {store}/{built.rejects}"
        for built in result.streams
        if built.rejects
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
