"""The `dataengine` command."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import select
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from dataengine.commands.build import build_command, finalize_command, worker_command
from dataengine.commands.common import (
    choose_streams,
    command_again,
    load_experiment,
    parse_slice,
    parse_steps,
    read_built_manifest,
    read_experiment_manifest,
    show,
)
from dataengine.errors import InputError, note, run_command

if TYPE_CHECKING:
    from dataengine.build.prepare import Preparation
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
        "build", build_command, "sources -> streams of MDS shards -> manifest",
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
        "worker", worker_command, "one slice of a build, for a job array",
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
        "finalize", finalize_command, "publish what workers built",
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


def _score(options: argparse.Namespace) -> None:
    from dataengine.commands.score import score_streams

    config, workers = load_experiment(options)
    number, slices = parse_slice(options.slice)
    names = choose_streams(config, options.stream, [name for name in config.streams_in_use if name in config.scores])
    show(
        score_streams(
            config, names, device=options.device, batch_size=options.batch_size, number=number, slices=slices,
            workers=workers,
        )
    )  # fmt: skip


def _inspect(options: argparse.Namespace) -> None:
    from dataengine.build.executors import LocalEngine
    from dataengine.build.prepare import prepare, stream_notes
    from dataengine.commands import inspect as inspect_module
    from dataengine.commands import inspect_samples
    from dataengine.storage.open import open_store

    config, workers = load_experiment(options)
    if options.line is not None:
        manifest = read_built_manifest(options, config)
        prepared = _prepare_sources(options, config, manifest)
        store, engine = open_store(config.store), LocalEngine(workers)
        show(inspect_samples.describe_line(manifest, store, options.line, prepared, engine))
        return
    names = choose_streams(config, options.stream, list(config.streams_in_use))
    if options.sample is not None:
        if len(names) != 1:
            raise InputError(f"--sample needs the --stream whose sample it is, one of {', '.join(names)}")
        manifest = read_built_manifest(options, config)
        prepared = _prepare_sources(options, config, manifest)
        current = inspect_samples.current_names(prepared) if prepared else {}
        show(inspect_samples.describe_sample(manifest, config, names[0], options.sample, current))
        return
    prepared = prepare(config, open_store(config.store))
    show(
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
    from dataengine.build.prepare import prepare
    from dataengine.commands.inspect_samples import changed_streams
    from dataengine.storage.open import open_store

    try:
        prepared = prepare(config, open_store(config.store))
    except InputError as error:
        note(f"files are named as they were when the streams were built, for the sources cannot be listed: {error}")
        return None
    if changed := changed_streams(manifest, prepared):
        note(
            f"the sources of {', '.join(changed)} changed since the build, and what is shown is as they were then. "
            f"Build again: {command_again(options, 'build')}"
        )
    return prepared


def _contamination(options: argparse.Namespace) -> None:
    from dataengine.commands.contamination import run_contamination

    config, workers = load_experiment(options)
    show(run_contamination(config, workers, options.count))


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
        show(describe_difference(plan, load_plan(options.diff)))
    elif options.steps:
        first, last = parse_steps(options.steps)
        for line in describe_steps(plan, first, last, options.text or 0):
            show(line)
    else:
        show(describe_plan(plan, nodes=options.nodes, tokens_per_second=options.tokens_per_second, gpus=options.gpus))
    if options.plot:
        from dataengine.schedule.plot import plot_plan

        settings, _ = settings_and_notes(plan)
        plot_plan(plan.manifest, Path(options.plot), settings, plan.config.first_step if plan.config else 0)
        print(f"picture {options.plot}")


def _verify(options: argparse.Namespace) -> None:
    from dataengine.commands.verify import open_stream, verify
    from dataengine.storage.open import open_store

    if options.config.endswith((".yaml", ".yml")):
        config, _ = load_experiment(options)
        store, streams = open_store(config.store), read_experiment_manifest(options, config).streams
        remedy = (
            f"Remove the folders of the streams named here, and {store.url}/units (on a disk its files are the same "
            f"ones), then build again: {command_again(options, 'build')}"
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
    from dataengine.storage.open import open_store

    config, _ = load_experiment(options)
    manifest = read_built_manifest(options, config)
    first, last = parse_steps(options.steps) if options.steps else (0, manifest.schedule.steps)
    form = ShardFormat(config.samples_per_shard, config.shard_hashes, config.shard_compression)
    count = export(manifest, open_store(config.store), form, open_store(options.to), first, last)
    print(f"{count:,} samples of steps {first:,} to {last - 1:,} in {options.to} (plan {manifest.plan_id[:12]})")
