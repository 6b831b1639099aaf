"""The command lines of the trainer's programs. Imports nothing slow: a program's --help answers at once."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from dataengine.commands.arguments import refuse_option
from dataengine.errors import did_you_mean

SETS = ("dev", "test", "reasoning")  # of `evaluate`


def train_parser() -> argparse.ArgumentParser:
    """The command line of trainer/train.py."""
    parser = config_parser(
        "train",
        "Train an experiment on its built streams. If `out` has a complete checkpoint, training resumes from the "
        "newest one. Writes OUT/log.csv, OUT/checkpoints/, OUT/manifest.json and OUT/config.yaml; OUT can be in a "
        "bucket. On SIGTERM or Ctrl-C, training finishes the current step, saves a checkpoint and exits.\n\n"
        "`dataengine train` runs Composer's launcher, as `composer trainer/train.py` does. For several machines, set "
        "the launcher's variables WORLD_SIZE, NODE_RANK, MASTER_ADDR and MASTER_PORT.",
        "train -n 2 yamls/mini/uni_en_zh.yaml train.max_steps=100",
        "train yamls/mini/uni_en_zh.yaml --dry-run",
        more="Exit codes: 0 finished, or stopped by a signal; 2 something must be fixed first; 3 the loss or gradient "
        "of a step is bad. Composer's launcher may replace 2 and 3 by a code of its own, which is not 0 either.",
    )
    _add_ranks(parser, "default: one for each GPU, or one without GPUs")
    parser.add_argument("--dry-run", action="store_true", help="check and describe the run; train nothing")
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="with --dry-run: memory and hours on GPUs such as h100-80, a100-40 or h200 (default: this machine's)",
    )
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """The command line of trainer/evaluate.py."""
    parser = config_parser(
        "evaluate",
        "Translate the sets of `evaluate` with a checkpoint, score the translations, and write them and results.json "
        "to OUT/evaluations/step-N/. --all and --follow evaluate every checkpoint on `evaluate.dev`, choose the one "
        "with the highest mean BLEU (OUT/chosen.json), and evaluate that one on `evaluate.test` and "
        "`evaluate.reasoning`. Finished results are kept: after an interruption, run the same command again to resume.",
        "evaluate yamls/mini/uni_en_zh.yaml --all evaluate.num_beams=5",
        "evaluate -n 2 yamls/mini/uni_en_zh.yaml --step 80 --sets dev,test",
    )
    _add_ranks(parser, "default: one")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="the checkpoint after N steps (default: the newest)")
    which.add_argument("--all", action="store_true", help="every checkpoint on dev, then the best one on test")
    which.add_argument("--follow", action="store_true", help="as --all, during training: wait for new checkpoints")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="with --all, --follow: every K-th checkpoint")
    parser.add_argument(
        "--sets", type=_sets, default=["dev"], metavar="A,B", help="with one checkpoint: dev, test, reasoning (dev)"
    )
    return parser


def report_parser() -> argparse.ArgumentParser:
    """The command line of trainer/report.py."""
    parser = _program_parser(
        "report",
        "Make one self-contained page of runs: the paper's tables with the runs' results beside them, BLEU over steps, "
        "training, translations side by side, and data. Also writes NAME.csv with every score in long form, and "
        "NAME.md with the tables.",
        ("report runs/mini/* --out report.html --baseline no_parallel",),
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, folders of runs, or URLs of runs (`out` of a config)"
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--baseline", metavar="NAME", help="run to compare with (default: no_parallel if it is there)")
    _add_cache(parser)
    parser.add_argument(
        "--trials", type=int, default=10_000, metavar="N", help="trials of significance tests (default: %(default)s)"
    )
    parser.add_argument(
        "--samples", type=int, default=8, metavar="N", help="sentences for each direction (default: %(default)s)"
    )
    return parser


def audit_parser() -> argparse.ArgumentParser:
    """The command line of trainer/audit.py."""
    parser = _program_parser(
        "audit",
        "Recompute the digest of every logged step from the run's manifest and compare. --lines writes down every "
        "document that was trained on; --find shows the steps that saw a source line. Steps count from 0, lines from 1 "
        "with the heading.",
        ("audit runs/mini/uni_en_zh", "audit runs/mini/uni_en_zh --find demo/data/mono.en.jsonl.zst:17"),
        more="Exit codes: 0 the log is complete and agrees with the manifest; 1 it differs, or has lost steps; 2 "
        " something cannot be read.",
    )
    _add_run(parser)
    _add_cache(parser)
    parser.add_argument("--step", type=int, metavar="N", help="check the first N steps (default: all that are logged)")
    parser.add_argument(
        "--lines",
        type=Path,
        metavar="FILE",
        help="write a JSON line for each part of a document: step, slot, file, line",
    )
    parser.add_argument("--find", metavar="FILE:LINE", help="show the steps that saw this source line")
    parser.add_argument(
        "--certificate",
        type=Path,
        metavar="FILE",
        help="hash the shards that were read, and write what examples/verify_certificate.py can check",
    )
    return parser


def replay_parser() -> argparse.ArgumentParser:
    """The command line of trainer/replay.py."""
    parser = _program_parser(
        "replay",
        "Rebuild the batch of a step on one process. Shows each sample's source lines, text and loss, and the batch's "
        "gradient norm, by the newest checkpoint at or before that step; highest losses first.",
        ("replay runs/mini/uni_en_zh --step 90 --top 5",),
    )
    _add_run(parser)
    parser.add_argument("--step", type=int, metavar="N", help="step (default: that of the newest bad-step file of RUN)")
    parser.add_argument(
        "--catch-up",
        action="store_true",
        help="first train the steps between the checkpoint and step N, so that the weights are those of step N up to "
        "the order of float sums",
    )
    parser.add_argument("--top", type=int, default=20, metavar="N", help="show N samples (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything, with whole texts, as JSON")
    _add_cache(parser)
    return parser


def export_parser() -> argparse.ArgumentParser:
    """The command line of trainer/export.py."""
    parser = config_parser(
        "export-model",
        "Write a checkpoint to OUT/exports/step-N as a folder that transformers loads. An existing export of the same "
        "checkpoint is kept. If OUT is in a bucket, the checkpoint and the export go to the run's folder in `cache`.",
        "export-model yamls/mini/uni_en_zh.yaml --step 80",
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint after N steps (default: the newest)")
    parser.add_argument(
        "--average-last",
        type=at_least_two,
        metavar="N",
        help="write the mean of the weights of the N newest checkpoints, at or before --step, to "
        "OUT/exports/step-N-average-N",
    )
    return parser


def at_least_two(text: str) -> int:
    """A whole number from 2."""
    if not text.isdecimal() or not 2 <= int(text[:10]) <= 10**6:
        raise argparse.ArgumentTypeError(f"expected a number of checkpoints from 2, got {text}")
    return int(text)


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {  # by module
    "train": train_parser,
    "evaluate": evaluate_parser,
    "report": report_parser,
    "audit": audit_parser,
    "replay": replay_parser,
    "export": export_parser,
}


def config_parser(name: str, description: str, *examples: str, more: str = "") -> argparse.ArgumentParser:
    """Make a parser that knows CONFIG and KEY=VALUE."""
    parser = _program_parser(name, description, examples, more=more)
    parser.add_argument("config", metavar="CONFIG", help="the experiment's YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="settings that replace those of the file, such as out=runs/second",
    )
    return parser


def _program_parser(name: str, description: str, examples: Sequence[str], *, more: str = "") -> argparse.ArgumentParser:
    parts = [textwrap.fill(paragraph, 79) for paragraph in description.split("\n\n")]
    shown = "example:\n" + "\n".join(f"  dataengine {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=f"dataengine {name}",
        description="\n\n".join(parts),
        epilog="\n\n".join(filter(None, (textwrap.fill(more, 79), shown))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class _OfLauncher(argparse.Action):
    """An option that `dataengine` and Composer's launcher take before the program starts."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(f"-n is an option of the launcher: give it to `{parser.prog}`, or to `composer`")


def _add_ranks(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("-n", action=_OfLauncher, metavar="RANKS", help=f"processes on this machine ({default})")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder or URL (`out` of a config)")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", default="cache", metavar="FOLDER", help="folder for the files of a URL (default: %(default)s)"
    )


def _sets(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SETS]:
        raise argparse.ArgumentTypeError(
            f"'{unknown[0]}' is not one of {', '.join(SETS)}{did_you_mean(unknown[0], SETS)}"
        )
    return names


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse options at any position. For an unknown option, exit with the usage and the nearest known option."""
    options, rest = parser.parse_known_intermixed_args(arguments)
    if rest:
        refuse_option(parser, rest[0])
    return options
