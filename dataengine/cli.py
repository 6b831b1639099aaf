"""The `dataengine` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataengine.errors import run_command

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
    # argparse gives no `nargs="*"` what follows an option, so overrides after one arrive as unknown.
    options, rest = parser.parse_known_args(arguments)
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        parser.error(f"unknown option {' '.join(unknown)}")
    options.overrides += rest
    if options.workers is not None and options.workers < 1:
        parser.error("--workers must be at least 1")
    try:
        sys.exit(run_command(lambda: _build(options.config, options.overrides, options.workers)))
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _build(path: str, overrides: Sequence[str], workers: int | None) -> None:
    # Imported here so that --help answers at once.
    from dataengine.build import build
    from dataengine.config import load_config
    from dataengine.engines import default_workers

    print(describe_build(build(load_config(path, overrides), workers=workers or default_workers())))


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
                "built" if built.new else "taken up",
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
            *_table(streams),
            "",
            *_table(stages),
            *rejects,
            "",
            f"manifest {result.path} (plan {manifest.plan_id[:12]}) in {result.seconds:.1f} s",
        ]
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
