"""Translate with checkpoints, score, and choose one: `[composer -n RANKS | python] trainer/evaluate.py CONFIG`."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

if __name__ == "__main__":  # by path: as `python -m trainer evaluate`, with the packages beside this file
    sys.argv.insert(1, "evaluate")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

from dataengine.config.load import load_config
from dataengine.errors import InputError, run_command
from trainer.checkpoints.find import find_checkpoint
from trainer.checkpoints.marker import Checkpoint
from trainer.evaluation.own_sets import check_sets, with_own_sets
from trainer.evaluation.results import read_all_results
from trainer.run.arguments import evaluate_parser, parse
from trainer.run.folder import open_run
from trainer.run.ranks import Ranks, Rendezvous
from trainer.run.signals import let_rank_0_end_first

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 0, or 2 for unusable input."""
    options = parse(evaluate_parser(), arguments)
    ranks = Ranks.from_environment()
    logging.basicConfig(format="%(message)s", level=logging.INFO if ranks.rank == 0 else logging.ERROR)
    code = run_command(lambda: _evaluate(options, ranks), quiet=ranks.rank != 0)
    if code and ranks.rank != 0:
        let_rank_0_end_first()
    sys.exit(code)


def _evaluate(options: argparse.Namespace, ranks: Ranks) -> None:
    config = with_own_sets(load_config(options.config, options.overrides))
    if options.every < 1:
        raise InputError(f"--every {options.every}: expected 1 or more")
    many = options.all or options.follow
    check_sets(config.evaluate, ["dev"] if many else options.sets)
    checkpoint = None
    if ranks.rank == 0 and not options.follow:
        run = open_run(config.out, config.cache)
        if not (options.all and read_all_results(run)):  # the checkpoints may all be gone
            checkpoint = find_checkpoint(run, options.step)
    log.info("%s: importing transformers, which takes a while", config.name)
    from transformers.utils import logging as transformers_log

    from trainer.evaluation.candidates import evaluate_all, evaluate_one
    from trainer.evaluation.evaluator import Evaluation

    transformers_log.set_verbosity_error()  # it warns of prompts beyond the context, which we count
    transformers_log.disable_progress_bar()
    with Rendezvous(ranks) as group:
        evaluation = Evaluation(config, group)
        if many:
            evaluate_all(evaluation, every=options.every, follow=options.follow)
        else:
            evaluate_one(evaluation, cast(Checkpoint, group.run_on_rank0(lambda: checkpoint)), options.sets)
