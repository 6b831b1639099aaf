"""The `dataengine` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataengine.errors import InputError, run_command
from dataengine.tables import table

if TYPE_CHECKING:
    from dataengine.build import BuildResult


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, 2 for unusable input, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="dataengine",
        description="Turn documents and sentence pairs into token streams and a training schedule.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build",
        help="sources -> streams of MDS shards -> manifest",
        description="Build the streams that an experiment's stages draw from, and its manifest. What is already built "
        "is taken up as it is: a killed build goes on where it stopped, a second build does nothing, and experiments "
        "that define a stream alike share it. The bytes do not depend on the number of workers.",
        epilog="example: dataengine build yamls/mini/uni_en_zh.yaml --workers 8 store=/data/store",
    )
    build.add_argument("config", metavar="CONFIG", help="the experiment's YAML file")
    build.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that replace the file's, such as batch_size=64",
    )
    build.add_argument("--workers", type=int, metavar="N", help="processes (default: the processors of this machine)")
    plan = commands.add_parser(
        "plan",
        help="what each step will be made of",
        description="Show the schedule of a manifest, or of a config whether its streams are built or only assumed: "
        "stages, shares, passes, what is never drawn, and what reading costs.",
        epilog="example: dataengine plan yamls/parallel_last_all.yaml --plot plan.png --diff yamls/parallel_first.yaml",
    )
    plan.add_argument("config", metavar="CONFIG|MANIFEST", help="an experiment's YAML file, or a manifest.json")
    plan.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    plan.add_argument("--steps", metavar="A:B", help="the counts and sample ids of steps A to B - 1")
    plan.add_argument(
        "--text", type=int, metavar="N", help="with --steps: the text of the first N samples of each step"
    )
    plan.add_argument("--plot", metavar="FILE", help="draw mix and tokens over steps: .png, .svg, .pdf or .html")
    plan.add_argument("--diff", metavar="OTHER", help="the first step at which OTHER (config or manifest) differs")
    plan.add_argument("--nodes", type=int, default=1, metavar="N", help="machines that read (default: 1)")
    plan.add_argument("--tokens-per-second", type=float, metavar="X", help="also say how many hours the run takes")
    # argparse gives no `nargs="*"` what follows an option, so overrides after one arrive as unknown.
    options, rest = parser.parse_known_args(arguments)
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        parser.error(f"unknown option {' '.join(unknown)}")
    options.overrides += rest
    if options.command == "build" and options.workers is not None and options.workers < 1:
        parser.error("--workers must be at least 1")
    command = {"build": _build, "plan": _plan}[options.command]
    try:
        sys.exit(run_command(lambda: command(options)))
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _plan(options: argparse.Namespace) -> None:
    from pathlib import Path

    from dataengine.plan import describe_difference, describe_plan, describe_steps, load_plan

    plan = load_plan(options.config, options.overrides)
    if options.diff:
        print(describe_difference(plan, load_plan(options.diff)))
    elif options.steps:
        first, colon, last = options.steps.partition(":")
        if not (colon and first.isdigit() and last.isdigit()):
            raise InputError(f"--steps {options.steps} is not of the form A:B, such as 0:3")
        print(describe_steps(plan, int(first), int(last), options.text or 0))
    else:
        print(describe_plan(plan, nodes=options.nodes, tokens_per_second=options.tokens_per_second))
    if options.plot:
        from dataengine.plot import plot_plan

        plot_plan(plan.manifest, Path(options.plot))
        print(f"picture {options.plot}")


def _build(options: argparse.Namespace) -> None:
    # Imported here so that --help answers at once.
    from pathlib import Path

    from dataengine.build import build
    from dataengine.config import load_config
    from dataengine.engines import default_workers

    config = load_config(options.config, options.overrides)
    print(describe_build(build(config, workers=options.workers or default_workers())))
    for direction, path in config.evaluate.dev.items():
        if not Path(path).is_file():
            print(f"note: evaluate.dev.{direction} is {path}, which does not exist yet", file=sys.stderr)


def describe_build(result: BuildResult) -> str:
    """A build's streams and stages as text tables."""
    manifest = result.manifest
    if not result.new:
        return f"nothing to do: {result.path} is up to date (plan {manifest.plan_id[:12]})"
    streams = [("stream", "records", "kept", "tokens", "samples", "remainder", "shards", "")]
    for built in result.streams:
        streams.append(
            (
                built.stream.name,
                f"{built.records:,}",
                f"{built.kept:,}",
                f"{built.tokens:,}",
                f"{built.stream.samples:,}",
                f"{built.remainder:,} tokens",
                f"{len(built.stream.shards):,}",
                "built" if built.new else "reused",
            )
        )
    names = [built.stream.name for built in result.streams]
    stages = [("stage", "steps", "predicted tokens", *names)]
    for stage in manifest.stages:
        samples = stage.steps * manifest.batch_size
        shares = [
            f"{stage.samples[name]:,} samples ({stage.samples[name] / samples:.1%})" if name in stage.samples else "-"
            for name in names
        ]
        stages.append((stage.name, f"{stage.steps:,}", f"{samples * manifest.seq_len:,}", *shares))
    rejects = [
        f"{built.stream.name}: dropped {count:,} records: {reason}"
        for built in result.streams
        for reason, count in built.rejected.items()
    ]
    return "\n".join(
        [
            *table(streams),
            "",
            *table(stages),
            *rejects,
            "",
            f"manifest {result.path} (plan {manifest.plan_id[:12]}) in {result.seconds:.1f} s",
        ]
    )
