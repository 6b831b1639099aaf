"""Translate with checkpoints, score, and choose one: `[composer -n RANKS | python] trainer/evaluate.py CONFIG`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from trainer.run.signals import end_on_interrupt

    end_on_interrupt("stopped; the same command goes on with what is left")  # also during the imports below

from dataengine.config.schema import Config, load_config
from dataengine.errors import InputError, run_command
from dataengine.tables import table
from trainer.checkpoints.find import HOW_TO_TRAIN, Checkpoint, CheckpointError, all_checkpoints, find_checkpoint, lease
from trainer.evaluation.choice import Choice, choose, mean
from trainer.evaluation.results import Results, read_all_results
from trainer.export import export_checkpoint
from trainer.run.folder import Run, open_run
from trainer.run.signals import let_rank_0_end_first

if TYPE_CHECKING:  # for it imports torch and transformers, which takes 10 s
    from trainer.evaluation.evaluator import Evaluation

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
        config = with_own_sets(load_config(options.config, options.overrides))
        if options.every < 1:
            raise InputError(f"--every {options.every}: expected 1 or more")
        many = options.all or options.follow
        _check_sets(config, ["dev"] if many else options.sets)
        found = None
        if rank == 0 and not options.follow:
            run = open_run(config.out, config.cache)
            if not (options.all and read_all_results(run)):  # of checkpoints that may all be gone
                found = find_checkpoint(run, options.step)
        log.info("%s: importing transformers, which takes a while", config.name)
        from transformers.utils import logging as transformers_log

        from trainer.evaluation.evaluator import Evaluation
        from trainer.run.ranks import Group

        transformers_log.set_verbosity_error()  # it would warn of prompts beyond the context, which are counted
        transformers_log.disable_progress_bar()
        with Group() as group:
            evaluation = Evaluation(config, group)
            if many:
                evaluate_all(evaluation, every=options.every, follow=options.follow)
            else:
                evaluate_one(evaluation, cast(Checkpoint, group.first(lambda: found)), options.sets)

    code = run_command(run, quiet=rank != 0)
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


def with_own_sets(config: Config) -> Config:
    """A config without the sets, of a base perhaps, in languages that are in no text that the run trains on.

    All stay if that cannot be told: where documents do not state their `language`, or the weights come from another
    run.
    """
    streams = [config.streams[name] for name in config.streams_in_use]
    if config.init or config.parent or any(stream.documents and not stream.language for stream in streams):
        return config
    codes = {re.split("[-_]", code)[0] for one in streams for code in (*one.languages, one.language) if code}
    settings, kept = config.evaluate, dict[str, Any]()
    for name in ("dev", "test"):
        sets = getattr(settings, name)
        kept[name] = {direction: place for direction, place in sets.items() if codes.issuperset(direction.split("-"))}
        for direction in [direction for direction in sets if direction not in kept[name]]:
            missing = next(code for code in direction.split("-") if code not in codes)
            log.warning("evaluate.%s.%s is left out: no stream of this run has text in %s", name, direction, missing)
    kept["choose_by"] = tuple(direction for direction in settings.choose_by if direction in kept["dev"])
    return config.model_copy(update={"evaluate": settings.model_copy(update=kept)})


def evaluate_one(evaluation: Evaluation, checkpoint: Checkpoint, sets: Sequence[str]) -> None:
    """Evaluate a checkpoint on some of dev, test and reasoning. Raises InputError if it cannot be read."""
    evaluation.check(sets)
    try:
        with lease(checkpoint):
            evaluation.of(checkpoint).evaluate(sets)
    except CheckpointError as error:
        raise InputError(f"{error}. Restore this checkpoint or remove it, or take another one with --step") from None


def evaluate_all(evaluation: Evaluation, *, every: int = 1, follow: bool = False) -> Choice:
    """Every `every`-th checkpoint on dev, the choice, and the chosen one on test and reasoning tasks.

    `evaluate.dev` names a set. With `follow`, wait for new checkpoints until the run is at its end. What cannot be read
    is passed over. The choice is among all that was ever evaluated with these settings, whether it still exists. Raises
    InputError if nothing could be evaluated, or the chosen checkpoint is gone and was not exported.
    """
    config, group, run = evaluation.config, evaluation.group, evaluation.run
    judged_on = [name for name in ("test", "reasoning") if getattr(config.evaluate, name)]
    evaluation.check(["dev", *judged_on])
    seen: dict[int, Checkpoint] = {}  # older ones may be removed meanwhile
    looked_at: set[str] = set()  # by identity: a step may be trained anew
    passed_over: dict[int, str] = {}
    while True:
        found = group.first(lambda: all_checkpoints(run))
        seen.update({checkpoint.step: checkpoint for checkpoint in found})
        ended = bool(found) and found[-1].step >= _last_step(evaluation)
        wanted = _every(list(seen.values()), every, with_last=ended or not follow)
        for checkpoint in wanted:
            if checkpoint.identity not in looked_at:
                looked_at.add(checkpoint.identity)
                passed_over.pop(checkpoint.step, None)
                if reason := _evaluate_on_dev(evaluation, checkpoint):
                    passed_over[checkpoint.step] = reason
        if ended or not follow:
            break
        time.sleep(_POLL_S)
    results = group.first(evaluation.finished)
    if not any(one["translation"] for one in results):
        raise InputError(_nothing_evaluated(run, passed_over))
    choice = _choose(evaluation, results)
    content = json.dumps(choice.describe(passed_over), indent=2).encode()
    group.first(lambda: run.publish("chosen.json", content))
    if group.rank == 0:
        print(describe_choice(choice), flush=True)
    for step, reason in sorted(passed_over.items()):
        log.warning("step %s was passed over: %s", f"{step:,}", reason)
    if judged_on:
        _judge(evaluation, next(one for one in results if one["step"] == choice.step), judged_on)
    return choice


def _every(checkpoints: Sequence[Checkpoint], every: int, *, with_last: bool) -> list[Checkpoint]:
    """Each `every`-th of checkpoints, oldest first, and, if asked for, the last one."""
    wanted = list(checkpoints[every - 1 :: every])
    return [*wanted, *checkpoints[-1:]] if with_last and checkpoints[-1:] != wanted[-1:] else wanted


def _evaluate_on_dev(evaluation: Evaluation, checkpoint: Checkpoint) -> str:
    """Evaluate a checkpoint, and export it if it is the best so far and may be removed. Why it could not be read."""
    config, step = evaluation.config, checkpoint.step
    with lease(checkpoint):
        try:
            evaluation.of(checkpoint).evaluate(["dev"])
        except CheckpointError as error:
            log.warning("passing over step %s: %s", f"{step:,}", error)
            return str(error)
        if config.train.keep_checkpoints:
            evaluation.group.first(lambda: _export_best(evaluation, checkpoint))
    return ""


def _export_best(evaluation: Evaluation, checkpoint: Checkpoint) -> None:
    """Export a checkpoint if it is the best so far: the training may remove it before it is judged. On one rank."""
    if _choose(evaluation, evaluation.finished()).identity == checkpoint.identity:
        try:
            export_checkpoint(evaluation.config, evaluation.run, checkpoint)
        except InputError as error:
            log.warning("step %s was not exported: %s", f"{checkpoint.step:,}", error)


def _choose(evaluation: Evaluation, results: Sequence[Results]) -> Choice:
    settings = evaluation.config.evaluate
    return choose(results, settings.choose_by or tuple(settings.dev), settings.shots[0], settings.beams)


def _judge(evaluation: Evaluation, results: Results, sets: Sequence[str]) -> None:
    """The chosen checkpoint on test and reasoning tasks. Raises InputError if neither it nor its export can be read."""
    chosen = evaluation.of_results(results)
    try:
        with chosen.lease():
            chosen.evaluate(sets)
    except CheckpointError as error:
        raise InputError(
            f"step {results['step']:,} was chosen and cannot be judged on {' and '.join(sets)}: {error}. Bring it back "
            "from a copy; what was found on dev stays."
        ) from None


def _nothing_evaluated(run: Run, passed_over: Mapping[int, str]) -> str:
    if passed_over:
        reasons = "; ".join(f"step {step:,}: {reason}" for step, reason in sorted(passed_over.items()))
        return f"none of {len(passed_over)} checkpoints under {run.url}/checkpoints could be evaluated: {reasons}"
    return f"no checkpoint under {run.url}/checkpoints. {HOW_TO_TRAIN}"


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
