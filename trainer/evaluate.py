"""Translate with checkpoints, score, and choose one: `[composer -n RANKS | python] trainer/evaluate.py CONFIG`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dataengine.config import Config, load_config
from dataengine.errors import InputError, run_command
from dataengine.tables import table
from trainer.checkpoints import Checkpoint, all_checkpoints, find_checkpoint
from trainer.choice import Choice, choose, mean
from trainer.export import export
from trainer.runs import open_run
from trainer.signals import let_rank_0_end_first

if TYPE_CHECKING:  # for it imports torch and transformers, which takes 10 s
    from trainer.evaluation import Evaluation

log = logging.getLogger(__name__)

_SETS = ("dev", "test", "reasoning")
_POLL_S = 30  # between looks for a new checkpoint


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
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(format="%(message)s", level=logging.INFO if rank == 0 else logging.ERROR)

    def run() -> None:
        config = load_config(options.config, options.overrides)
        if options.every < 1:
            raise InputError(f"--every {options.every}: expected 1 or more")
        many = options.all or options.follow
        _check_sets(config, ["dev"] if many else options.sets)
        found = None
        if rank == 0 and not options.follow:
            found = find_checkpoint(open_run(config.out, config.cache), options.step)
        log.info("%s: importing transformers, which takes a while", config.name)
        from transformers.utils import logging as transformers_log

        from trainer.evaluation import Evaluation
        from trainer.group import Group

        transformers_log.set_verbosity_error()  # it would warn of prompts beyond the context, which are counted
        transformers_log.disable_progress_bar()
        with Group() as group:
            evaluation = Evaluation(config, group)
            if many:
                evaluate_all(evaluation, every=options.every, follow=options.follow)
            else:
                evaluation.of(cast(Checkpoint, group.first(lambda: found))).evaluate(options.sets)

    try:
        code = run_command(run, quiet=rank != 0)
    except KeyboardInterrupt:
        if rank == 0:
            print("stopped; the same command goes on with what is left", file=sys.stderr, flush=True)
        os._exit(130)  # at once: other ranks are not waited for
    if code and rank != 0:
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


def evaluate_all(evaluation: Evaluation, *, every: int = 1, follow: bool = False) -> Choice:
    """Every `every`-th checkpoint on dev, the choice, and the chosen one on test and reasoning tasks.

    `evaluate.dev` names a set. With `follow`, wait for new checkpoints until the run is at its end. Raises InputError
    if there is no checkpoint.
    """
    config, group, run = evaluation.config, evaluation.group, evaluation.run
    directions = config.evaluate.choose_by or tuple(config.evaluate.dev)
    done: dict[int, tuple[Checkpoint, dict[str, Any]]] = {}
    choice = None
    seen: dict[int, Checkpoint] = {}  # older ones may be removed meanwhile
    while True:
        found = group.first(lambda: all_checkpoints(run))
        seen.update({checkpoint.step: checkpoint for checkpoint in found})
        wanted = list(seen.values())[every - 1 :: every]
        ended = bool(found) and found[-1].step >= _last_step(evaluation)
        if found[-1:] != wanted[-1:] and (ended or not follow):
            wanted += found[-1:]  # the last one always
        for checkpoint in wanted:
            if checkpoint.step in done:
                continue
            done[checkpoint.step] = (checkpoint, evaluation.of(checkpoint).evaluate(["dev"]))
            found_so_far = [results for _, results in done.values()]
            choice = choose(found_so_far, directions, config.evaluate.shots[0], config.evaluate.beams)
            if config.train.keep_checkpoints and choice.step == checkpoint.step:
                step = choice.step  # the training may remove the checkpoint before it is judged
                group.first(lambda step=step: export(config, step))  # type: ignore[misc]
        if ended or not follow:
            break
        time.sleep(_POLL_S)
    if choice is None:
        raise InputError(f"no checkpoint under {run.url}/checkpoints. Train first: composer trainer/train.py CONFIG")
    content = json.dumps(choice.describe(), indent=2).encode()
    group.first(lambda: run.publish("chosen.json", content))
    if group.rank == 0:
        print(describe_choice(choice), flush=True)
    if sets := [name for name in ("test", "reasoning") if getattr(config.evaluate, name)]:
        evaluation.of(done[choice.step][0]).evaluate(sets)
    return choice


def _last_step(evaluation: Evaluation) -> int:
    return min(evaluation.manifest.schedule.steps, evaluation.config.train.max_steps or sys.maxsize)


def describe_choice(choice: Choice) -> str:
    """A table of the candidates, the chosen one marked."""
    rows = [("checkpoint", *choice.directions, "mean BLEU", "")]
    for step, scores in sorted(choice.candidates.items()):
        cells = [f"{scores[direction]:.2f}" for direction in choice.directions]
        mark = "chosen" if step == choice.step else ""
        rows.append((f"step {step:,}", *cells, f"{mean(scores, choice.directions):.2f}", mark))
    return "\n".join(["", f"dev, {choice.shots}-shot", *table(rows, left=(0, len(rows[0]) - 1))])


if __name__ == "__main__":
    main()
