"""The subcommands of `dataengine`: their help and arguments, and the function that runs each, imported only then."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from dataengine.errors import did_you_mean

_STORES = (
    "Sources and `store` are local paths or s3://bucket/prefix. Credentials are those of the AWS tools; "
    "S3_ENDPOINT_URL names another S3-compatible store. Sources may also be hf://datasets/ORG/NAME/PATH and https:// "
    "URLs; the token of the hub is that of `hf auth login`, or HF_TOKEN."
)
BUILD, LOOK = "build data", "look at data and plans"  # groups of commands in the help


@dataclass(frozen=True)
class Command:
    """A subcommand."""

    name: str
    runs: str  # a module of `commands` and its function
    help: str
    description: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    misuse: Callable[[argparse.Namespace], str] = lambda options: ""  # why options do not go together; "" if they do
    config: str = "CONFIG"
    rest: str = "KEY=VALUE"  # metavar of the arguments after the first
    group: str = LOOK


@dataclass(frozen=True)
class Program:
    """A program of the trainer that `dataengine` starts."""

    name: str  # as a command
    module: str  # of the package `trainer`
    help: str
    ranks: bool = False  # whether Composer's launcher can start it on several ranks
    launched: bool = False  # whether the launcher starts it also without -n


PROGRAMS = (
    Program("train", "train", "train an experiment, or resume it", ranks=True, launched=True),
    Program("evaluate", "evaluate", "translate with checkpoints, score, and choose one", ranks=True),
    Program("report", "report", "make one page of many runs"),
    Program("audit", "audit", "prove what a run was trained on"),
    Program("replay", "replay", "show the samples of a training step and their losses"),
    Program("export-model", "export", "write a checkpoint as a Hugging Face folder"),
)


def refuse_option(parser: argparse.ArgumentParser, word: str) -> NoReturn:
    """Exit with the usage, and the nearest option, for an unknown option."""
    known = re.findall(r"--[a-z-]+", parser.format_usage())
    parser.error(f"unknown option {word}{did_you_mean(word.partition('=')[0], known)}")


def is_file(action: Any) -> None:
    """Let the shell complete an argument by files, as shtab's FILE does."""
    action.complete = {
        "bash": "_shtab_compgen_files",
        "zsh": "_files",
        "tcsh": "f",
        "fish": "(__fish_complete_path (commandline -ct))",
    }


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """The option of Composer's launcher that `dataengine` passes on."""
    parser.add_argument("-n", dest="ranks", type=positive, metavar="RANKS", help="processes on this machine")


def positive(text: str) -> int:
    """Read a number from 1 on. Raises argparse.ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text[:30]) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, got {text[:30]}")
    if len(text) > 18:
        raise argparse.ArgumentTypeError(f"must be a number of at most 18 digits, got {text[:30]}")
    return int(text)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one for each processor)")


def _add_build(parser: argparse.ArgumentParser) -> None:
    _add_workers(parser)
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="the executor: processes of this machine (default), or tasks of a Ray cluster",
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="address of the Ray cluster (default: RAY_ADDRESS, or a local one)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="estimate tokens, time, disk and drops from a sample; write no stream"
    )
    parser.add_argument(
        "--sample",
        dest="sample_bytes",
        metavar="BYTES",
        help="with --dry-run: bytes to read of each stream (default: 4M)",
    )
    _add_slice(parser, required=False)
    parser.add_argument(
        "--finalize",
        action="store_true",
        help="publish what the slices built; fail and name the slices if some are unfinished",
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
        "--slice", required=required, metavar="I/N", help="run slice I of N, from 1/N to N/N, in a job array"
    )
    parser.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        help="with --slice: wait this long for other slices (default: one day), then exit with code 3; start it again",
    )


def _add_slices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slices", type=positive, metavar="N", help="with --finalize: number of slices, to name unfinished ones"
    )


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="pairs in a batch (default: 64)")
    parser.add_argument(
        "--slice", default="1/1", metavar="I/N", help="score slice I of N, such as one slice for each GPU"
    )
    parser.add_argument("--stream", action="append", metavar="NAME", help="only this stream; can be repeated")
    _add_workers(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stream", action="append", metavar="NAME", help="only this stream; can be repeated")
    parser.add_argument("--reason", metavar="NAME", help="only examples of this reason")
    parser.add_argument(
        "--count", type=positive, default=3, metavar="N", help="number of examples for each reason (default: 3)"
    )
    parser.add_argument("--sample", type=int, metavar="K", help="with one --stream: show sample K of the built stream")
    parser.add_argument("--line", metavar="FILE:LINE", help="show the samples that hold this source line")
    _add_workers(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", metavar="A:B", help="show the counts and sample ids of steps A to B - 1")
    parser.add_argument(
        "--text", type=positive, metavar="N", help="with --steps: also show the text of the first N samples"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="plot mix, epochs and learning rate over steps: .png, .svg, .pdf or .html"
    )
    parser.add_argument(
        "--diff", metavar="OTHER", help="show the first step at which OTHER, a config or manifest, differs"
    )
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="number of nodes (default: 1)")
    parser.add_argument(
        "--gpu", metavar="NAME", help="estimate memory, microbatch and hours on GPUs such as h100-80, a100-40 or h200"
    )
    parser.add_argument(
        "--gpus", type=positive, metavar="N", help="with --gpu, --tokens-per-second: number of GPUs in total"
    )
    parser.add_argument(
        "--tokens-per-second",
        type=positive,
        metavar="N",
        help="hours at this speed of all GPUs together, instead of an estimate",
    )


def _misuse_of_plan(options: argparse.Namespace) -> str:
    if options.text and not options.steps:
        return "--text goes with --steps"
    goes = options.tokens_per_second or options.gpu
    return "--gpus goes with --gpu or --tokens-per-second" if options.gpus and not goes else ""


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="KEY", help="only this setting or section, such as train or streams.mono")


def _add_contamination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=positive, default=5, metavar="N", help="number of examples (default: 5)")
    _add_workers(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="FOLDER", help="a folder or URL that is empty or missing")
    parser.add_argument("--steps", metavar="A:B", help="only steps A to B - 1 (default: all)")
    parser.add_argument(
        "--to-format",
        choices=("mds", "megatron", "numpy"),
        default="mds",
        help="an MDS stream (default), .bin and .idx files of Megatron-LM, or raw token arrays",
    )


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="a SentencePiece .model or tokenizer.json (default: one among the paths)"
    )
    parser.add_argument(
        "--vocab-size", type=positive, metavar="N", help="train a tokenizer of N pieces (default without one: 8000)"
    )
    parser.add_argument("--to", metavar="FILE", help="the YAML to write (default: yamls/NAME.yaml, or NAME.yaml)")


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove it (default: only list it)")


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
        ("init mine demo/data",),
        _add_init,
        _misuse_of_init,
        config="NAME",
        rest="PATH",
        group=BUILD,
    ),
    Command(
        "build",
        "build.run_build",
        "sources -> streams of MDS shards -> manifest",
        "Build the streams that an experiment's stages draw from, and its manifest. A build reuses what is already "
        "built: after a kill it resumes, a second build does nothing, and experiments with the same stream share it. "
        "The bytes do not depend on the executor or the number of workers. In a job array (Slurm, Kubernetes indexed "
        "job, spark foreach), give each machine another --slice of the same store. Slices wait for each other between "
        f"phases. Then --finalize publishes the streams and the manifest. {_STORES}",
        (
            "build yamls/mini/uni_en_zh.yaml --workers 8 store=/data/store",
            "build yamls/mini/uni_en_zh.yaml --dry-run",
        ),
        _add_build,
        _misuse_of_build,
        group=BUILD,
    ),
    Command(
        "worker",
        "build.run_worker",
        "old name of build --slice",
        "Run one slice of a build, as `dataengine build CONFIG --slice I/N` does.",
        ("worker yamls/uni_en_zh.yaml --slice $((SLURM_ARRAY_TASK_ID + 1))/64 store=s3://bucket/store",),
        _add_worker,
        group=BUILD,
    ),
    Command(
        "finalize",
        "build.run_finalize",
        "old name of build --finalize",
        "Publish the output of a build's slices, as `dataengine build CONFIG --finalize` does.",
        ("finalize yamls/uni_en_zh.yaml --slices 64 store=s3://bucket/store",),
        _add_slices,
        group=BUILD,
    ),
    Command(
        "score",
        "score.run",
        "score pairs with a COMET model",
        "Score the pairs that cleaning keeps, in streams with `scores`, with a reference-free COMET model such as "
        "CometKiwi. The store keeps scores by pair and model. No score is computed twice, a killed run resumes, and a "
        "new threshold needs a build but no scoring.",
        ("score yamls/parallel_last_all_filtered.yaml --device cuda",),
        _add_score,
        group=BUILD,
    ),
    Command(
        "inspect",
        "inspect.run",
        "what cleaning drops, and what samples hold",
        "Show how many records are unusable and how many each rule drops, with examples from the sources. --sample "
        "shows a sample with its source files and lines. --line shows the samples that hold a source line.",
        (
            "inspect yamls/parallel_last_all_filtered.yaml --stream zh-filtered --reason 'score zh-en' --count 20",
            "inspect yamls/mini/uni_en_zh.yaml --stream mono --sample 7",
        ),
        _add_inspect,
    ),
    Command(
        "plan",
        "plan.run",
        "the content of every training step",
        "Show the schedule of a manifest or a config: stages, shares, epochs, samples that are never drawn, and the "
        "cost of reading; with --gpu also memory, the microbatch that fits, and hours on GPUs. A config that is not "
        "built, or not with these settings, is planned from the streams in the store and from assumed sizes. Nothing "
        "is written, so `plan` answers what a changed setting would do.",
        (
            "plan yamls/parallel_last_all.yaml --plot plan.png --diff yamls/parallel_first.yaml",
            "plan yamls/mini/uni_en_zh.yaml stages.0.steps=60 --diff yamls/mini/uni_en_zh.yaml",
            "plan yamls/parallel_last_all.yaml --gpu h100-80 --gpus 8",
        ),
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
        ("config yamls/mini/uni_en_zh.yaml", "config yamls/mini/uni_en_zh.yaml --key train.learning_rate"),
        _add_config,
    ),
    Command(
        "contamination",
        "contamination.run",
        "evaluation sentences in the training streams",
        "Search the records that the build kept for the sentences of `evaluate.dev` and `evaluate.test`, source and "
        "reference: the whole sentence, or 13 words in a row inside a longer text. Each stream is searched once for "
        "each set. `clean.decontaminate` removes such records.",
        ("contamination yamls/uni_en_zh.yaml --count 20",),
        _add_contamination,
    ),
    Command(
        "verify",
        "verify.run",
        "check the hashes of built streams",
        "Read and hash every shard of an experiment's streams, or of one stream's folder, local or remote. Report "
        "each shard that has changed since it was written.",
        (
            "verify yamls/mini/uni_en_zh.yaml",
            "verify s3://bucket/store/streams/mono-0123456789ab",
        ),
        config="CONFIG|FOLDER",
    ),
    Command(
        "prune",
        "prune.run",
        "remove what no experiment needs of a store",
        "List, and with --yes remove, the streams, tasks and decisions of a store that nothing needs. Kept are the "
        "streams that a manifest of the store names, and all that a build of the given experiments would reuse. Name "
        "every experiment that you will build again; without any, all of units/ goes, and the next build of a changed "
        "experiment takes longer. Scores, manifests and sources stay. Refuses while a build runs.",
        (
            "prune yamls/mini/uni_en_zh.yaml yamls/mini/no_parallel.yaml",
            "prune s3://bucket/store --yes",
        ),
        _add_prune,
        config="STORE|CONFIG",
        rest="CONFIG|KEY=VALUE",
        group=BUILD,
    ),
    Command(
        "export",
        "export.run",
        "samples in training order, for other trainers",
        "Write the samples of a schedule, in training order, as one MDS stream, for Megatron-LM, or as raw arrays. Any "
        "trainer that reads the format can read them without shuffling. A killed export resumes.",
        (
            "export yamls/mini/uni_en_zh.yaml --to s3://bucket/mixed --steps 0:1000",
            "export yamls/mini/uni_en_zh.yaml --to megatron/uni_en_zh --to-format megatron",
        ),
        _add_export,
        group=BUILD,
    ),
)
