"""Translate with checkpoints, score, and choose one: `[composer -n RANKS | python] trainer/evaluate.py CONFIG`."""

from __future__ import annotations

import argparse
import logging
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":  # by path: what `python -m trainer evaluate` does, in the copy that this file is of
    sys.argv.insert(1, "evaluate")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.errors import InputError, run_command
from trainer.checkpoints.find import find_checkpoint
from trainer.checkpoints.marker import Checkpoint
from trainer.evaluation.candidates import evaluate_all, evaluate_one
from trainer.evaluation.results import read_all_results
from trainer.run.folder import open_run
from trainer.run.ranks import Ranks, Rendezvous
from trainer.run.signals import let_rank_0_end_first

log = logging.getLogger(__name__)
_SETS = ("dev", "test", "reasoning")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, or 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="[composer -n RANKS] trainer/evaluate.py",
        description="Translate the sets of `evaluate` with a checkpoint, score the translations, and write them and "
        "results.json to OUT/evaluations/step-N/. With --all or --follow: do so on `evaluate.dev` for every "
        "checkpoint, choose the one of the highest mean BLEU (OUT/chosen.json), and judge it on `evaluate.test` and "
        "`evaluate.reasoning`. What is finished is kept: the same command goes on after an interruption, and repeats "
        "nothing.",
        epilog="example: python trainer/evaluate.py yamls/mini/uni_en_zh.yaml --all evaluate.beams=5",
    )
    parser.add_argument("config", metavar="CONFIG", help="the experiment's YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="the checkpoint of so many steps (default: the newest)")
    which.add_argument("--all", action="store_true", help="every checkpoint on dev, then the best one on test")
    which.add_argument("--follow", action="store_true", help="as --all, while training: wait for new checkpoints")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="with --all, --follow: each K-th one")
    parser.add_argument(
        "--sets", type=_sets, default=["dev"], metavar="A,B", help="of one checkpoint: some of dev,test,reasoning (dev)"
    )
    options = parser.parse_intermixed_args(arguments)
    ranks = Ranks.from_environment()
    logging.basicConfig(format="%(message)s", level=logging.INFO if ranks.rank == 0 else logging.ERROR)

    def run() -> None:
        config = with_own_sets(load_config(options.config, options.overrides))
        if options.every < 1:
            raise InputError(f"--every {options.every}: expected 1 or more")
        many = options.all or options.follow
        _check_sets(config, ["dev"] if many else options.sets)
        found = None
        if ranks.rank == 0 and not options.follow:
            run = open_run(config.out, config.cache)
            if not (options.all and read_all_results(run)):  # of checkpoints that may all be gone
                found = find_checkpoint(run, options.step)
        log.info("%s: importing transformers, which takes a while", config.name)
        from transformers.utils import logging as transformers_log

        from trainer.evaluation.evaluator import Evaluation

        transformers_log.set_verbosity_error()  # it would warn of prompts beyond the context, which are counted
        transformers_log.disable_progress_bar()
        with Rendezvous(ranks) as group:
            evaluation = Evaluation(config, group)
            if many:
                evaluate_all(evaluation, every=options.every, follow=options.follow)
            else:
                evaluate_one(evaluation, cast(Checkpoint, group.run_on_rank0(lambda: found)), options.sets)

    code = run_command(run, quiet=ranks.rank != 0)
    if code and ranks.rank != 0:
        let_rank_0_end_first()
    sys.exit(code)


def _sets(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in _SETS]:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(_SETS)}")
    return names


def _check_sets(config: Config, names: Sequence[str]) -> None:
    for name in names:
        if not getattr(config.evaluate, name):
            example = "task, such as [arc_easy]" if name == "reasoning" else "set, such as {en-zh: a.jsonl}"
            raise InputError(f"nothing to evaluate: `evaluate.{name}` names no {example}")


def with_own_sets(config: Config) -> Config:
    """A config without the sets, of a base perhaps, in languages that are in no text that the run trains on.

    All stay if that cannot be told: where documents do not state their `language`, or the weights come from another
    run.
    """
    streams = [config.streams[name] for name in config.streams_in_use]
    if config.init or config.parent or not all(stream.languages for stream in streams):
        return config
    codes = {re.split("[-_]", code)[0] for stream in streams for code in stream.languages}
    settings, kept = config.evaluate, dict[str, Any]()
    for name in ("dev", "test"):
        sets = getattr(settings, name)
        kept[name] = {direction: place for direction, place in sets.items() if codes.issuperset(direction.split("-"))}
        for direction in [direction for direction in sets if direction not in kept[name]]:
            missing = next(code for code in direction.split("-") if code not in codes)
            log.warning("evaluate.%s.%s is left out: no stream of this run has text in %s", name, direction, missing)
    kept["choose_by"] = tuple(direction for direction in settings.choose_by if direction in kept["dev"])
    return config.model_copy(update={"evaluate": settings.model_copy(update=kept)})
