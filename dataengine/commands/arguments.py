"""The subcommands of `dataengine`: their help and arguments, and which function runs each, imported only then."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

_STORES = (
    "Sources and `store` may be local or s3://bucket/prefix (credentials as the AWS tools find them; S3_ENDPOINT_URL "
    "names another S3-compatible store)."
)


@dataclass(frozen=True)
class Command:
    """A subcommand."""

    name: str
    runs: str  # a module of `commands` and its function
    help: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    misuse: Callable[[argparse.Namespace], str] = lambda options: ""  # of options that do not go together; "" for none
    config: str = "CONFIG"
    rest: str = "KEY=VALUE"


def positive(text: str) -> int:
    """Read a number from 1 on. Raises argparse.ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text[:30]) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, got {text[:30]}")
    if len(text) > 18:
        raise argparse.ArgumentTypeError(f"must be a number of at most 18 digits, got {text[:30]}")
    return int(text)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes (default: the processors of this machine)"
    )


def _add_build(parser: argparse.ArgumentParser) -> None:
    _add_workers(parser)
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="where units of work run: processes of this machine (default), or tasks of a Ray cluster",
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="the cluster (default: RAY_ADDRESS, or this machine's)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="estimate tokens, time, disk and drops from a sample; write no stream"
    )
    parser.add_argument(
        "--sample",
        dest="sample_bytes",
        metavar="BYTES",
        help="with --dry-run: read about so much of each stream (default: 4M)",
    )
    _add_slice(parser, required=False)
    parser.add_argument(
        "--finalize", action="store_true", help="publish what slices built; run no unit, and name what is not done"
    )
    _add_slices(parser)


def _misuse_of_build(options: argparse.Namespace) -> str:
    ways = (options.dry_run, options.engine == "ray", options.slice is not None, options.finalize)
    if sum(ways) > 1:
        return "only one of --dry-run, --engine ray, --slice and --finalize"
    rules = (
        ("--sample", options.sample_bytes, "--dry-run", options.dry_run),
        ("--ray-address", options.ray_address, "--engine ray", options.engine == "ray"),
        ("--wait", options.wait is not None, "--slice", options.slice is not None),
        ("--slices", options.slices, "--finalize", options.finalize),
    )
    return next((f"{key} goes with {other}" for key, given, other, stated in rules if given and not stated), "")


def _add_worker(parser: argparse.ArgumentParser) -> None:
    _add_slice(parser, required=True)
    _add_workers(parser)


def _add_slice(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--slice", required=required, metavar="I/N", help="run slice I of N, from 1/N to N/N, for a job array"
    )
    parser.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        help="with --slice: wait so long for others (default: a day), then end with exit code 3, to be started again",
    )


def _add_slices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slices", type=positive, metavar="N", help="the number of slices, to name those left")


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="pairs at a time (default: 64)")
    parser.add_argument("--slice", default="1/1", metavar="I/N", help="score slice I of N, such as one for each GPU")
    parser.add_argument("--stream", action="append", metavar="NAME", help="only this stream (may be repeated)")
    _add_workers(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stream", action="append", metavar="NAME", help="only this stream (may be repeated)")
    parser.add_argument("--reason", metavar="NAME", help="examples of this reason only")
    parser.add_argument("--count", type=positive, default=3, metavar="N", help="examples of each reason (default: 3)")
    parser.add_argument("--sample", type=int, metavar="K", help="with one --stream: sample K of the built stream")
    parser.add_argument("--line", metavar="FILE:LINE", help="the samples that hold this line of a source")
    _add_workers(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", metavar="A:B", help="the counts and sample ids of steps A to B - 1")
    parser.add_argument(
        "--text", type=positive, metavar="N", help="with --steps: the text of the first N samples of each step"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw mix, passes and learning rate over steps: .png, .svg, .pdf or .html"
    )
    parser.add_argument("--diff", metavar="OTHER", help="the first step at which OTHER (config or manifest) differs")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="machines that read (default: 1)")
    parser.add_argument("--tokens-per-second", type=positive, metavar="N", help="also say how many hours the run takes")
    parser.add_argument("--gpus", type=positive, metavar="N", help="and how many GPU-hours, if N give this speed")


def _misuse_of_plan(options: argparse.Namespace) -> str:
    if options.text and not options.steps:
        return "--text goes with --steps"
    return "--gpus goes with --tokens-per-second" if options.gpus and not options.tokens_per_second else ""


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="KEY", help="only this setting or section, such as train or streams.mono")


def _add_contamination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=positive, default=5, metavar="N", help="examples of records (default: 5)")
    _add_workers(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="FOLDER", help="a folder or URL that is empty or does not exist")
    parser.add_argument("--steps", metavar="A:B", help="only steps A to B - 1 (default: all)")


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="a SentencePiece .model or tokenizer.json (default: one among the paths)"
    )
    parser.add_argument(
        "--vocab-size", type=positive, metavar="N", help="train a tokenizer of N pieces (default without one: 8000)"
    )
    parser.add_argument("--to", metavar="FILE", help="the YAML to write (default: yamls/NAME.yaml, or NAME.yaml)")


def _misuse_of_init(options: argparse.Namespace) -> str:
    return "only one of --tokenizer and --vocab-size" if options.tokenizer and options.vocab_size else ""


COMMANDS = (
    Command(
        "init",
        "init.run",
        "your files -> a first experiment",
        "Look at a bounded part of each file, detect formats, keys, pairs and languages, and write a commented "
        "experiment. Files named like evaluation sets become evaluation sets. Existing files stay. Without a "
        "tokenizer, train one on the samples. Print what was found, what was not used and why, and the next commands.",
        "init mine demo/data",
        _add_init,
        _misuse_of_init,
        config="NAME",
        rest="PATH",
    ),
    Command(
        "build",
        "build.run_build",
        "sources -> streams of MDS shards -> manifest",
        "Build the streams that an experiment's stages draw from, and its manifest. What is already built is taken up "
        "as it is: a killed build goes on where it stopped, a second build does nothing, and experiments that define a "
        "stream alike share it. The bytes do not depend on the engine or the number of workers. In a job array (Slurm, "
        "Kubernetes indexed job, spark foreach), give each machine another --slice of one store; between rounds a "
        "slice waits for the others. Then --finalize publishes the streams and the manifest. "
        f"{_STORES}",
        "build yamls/mini/uni_en_zh.yaml --workers 8 store=/data/store",
        _add_build,
        _misuse_of_build,
    ),
    Command(
        "worker",
        "build.run_worker",
        "the earlier name of build --slice",
        "Run one slice of a build's units of work, as `dataengine build CONFIG --slice I/N` does.",
        "worker yamls/uni_en_zh.yaml --slice $((SLURM_ARRAY_TASK_ID + 1))/64 store=s3://bucket/store",
        _add_worker,
    ),
    Command(
        "finalize",
        "build.run_finalize",
        "the earlier name of build --finalize",
        "Publish what the slices of a build made, as `dataengine build CONFIG --finalize` does.",
        "finalize yamls/uni_en_zh.yaml --slices 64 store=s3://bucket/store",
        _add_slices,
    ),
    Command(
        "score",
        "score.run",
        "score pairs by a COMET model",
        "Score the pairs that cleaning keeps, for streams with `scores`, by a reference-free COMET model such as "
        "CometKiwi. Scores are kept in the store by pair and model: a score is never computed twice, a killed run goes "
        "on, and a new threshold costs a build but no scoring.",
        "score yamls/parallel_last_all_filtered.yaml --device cuda",
        _add_score,
    ),
    Command(
        "inspect",
        "inspect.run",
        "what cleaning drops, and what samples hold",
        "Show how many records are unusable and how many each rule drops, with examples from the sources; or a sample "
        "with the files and lines that it is made of; or the samples that hold a source line.",
        "inspect yamls/parallel_last_all_filtered.yaml --stream zh-filtered --reason 'score zh-en' --count 20",
        _add_inspect,
    ),
    Command(
        "plan",
        "plan.run",
        "what each step will be made of",
        "Show the schedule of a manifest, or of a config whether its streams are built or only assumed: stages, "
        "shares, passes, what is never drawn, and what reading costs.",
        "plan yamls/parallel_last_all.yaml --plot plan.png --diff yamls/parallel_first.yaml",
        _add_plan,
        _misuse_of_plan,
        config="CONFIG|MANIFEST",
    ),
    Command(
        "config",
        "config.run",
        "every setting, and the file and line that set it",
        "Print all settings of an experiment as YAML, each with the file and line, the override or the default that "
        "set it. The output is an experiment's file itself. With --key, print one setting with its description.",
        "config yamls/mini/uni_en_zh.yaml --key train.learning_rate",
        _add_config,
    ),
    Command(
        "contamination",
        "contamination.run",
        "evaluation sentences in the training streams",
        "Look for the sentences of `evaluate.dev` and `evaluate.test`, source or reference, in the records that the "
        "build kept: whole, or 13 words in a row of them inside a longer text. Done once for a stream and its sets; "
        "`clean.decontaminate` removes what is found.",
        "contamination yamls/uni_en_zh.yaml --count 20",
        _add_contamination,
    ),
    Command(
        "verify",
        "verify.run",
        "hash what was built again",
        "Read and hash every shard of an experiment's streams, or of one stream's folder, local or remote, and name "
        "each that is not as it was written.",
        "verify s3://bucket/store/streams/mono-0123456789ab",
        config="CONFIG|FOLDER",
    ),
    Command(
        "export",
        "export.run",
        "the samples in the order of training, for other trainers",
        "Write the samples of a schedule in the order of training as one MDS stream, which any trainer that reads MDS "
        "can go through without shuffling. A killed export goes on.",
        "export yamls/mini/uni_en_zh.yaml --to s3://bucket/mixed --steps 0:1000",
        _add_export,
    ),
)
