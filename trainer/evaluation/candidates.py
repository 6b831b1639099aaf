"""Evaluate the checkpoints of a run on dev, choose one, and evaluate it on test and reasoning tasks."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from dataengine.errors import InputError
from trainer.checkpoints.find import HOW_TO_TRAIN, all_checkpoints
from trainer.checkpoints.marker import Checkpoint, CheckpointError
from trainer.checkpoints.retention import lease
from trainer.evaluation.checkpoint import CheckpointEvaluation
from trainer.evaluation.choice import Choice, PassedOver, choose
from trainer.evaluation.evaluator import Evaluation
from trainer.evaluation.results import Results
from trainer.huggingface.export import export_checkpoint
from trainer.run.folder import Run

log = logging.getLogger(__name__)
_POLL_S = 30  # between searches for a new checkpoint


def evaluate_one(evaluation: Evaluation, checkpoint: Checkpoint, sets: Sequence[str]) -> None:
    """Evaluate a checkpoint on some of dev, test and reasoning. Raises InputError if it cannot be read."""
    evaluation.check(sets)
    try:
        with lease(checkpoint):
            CheckpointEvaluation.of(evaluation, checkpoint).evaluate(sets)
    except CheckpointError as error:
        raise InputError(f"{error}. Restore this checkpoint or remove it, or choose another one with --step") from None


def evaluate_all(evaluation: Evaluation, *, every: int = 1, follow: bool = False) -> Choice:
    """Evaluate every `every`-th checkpoint on dev, choose one, and evaluate it on test and reasoning tasks.

    `evaluate.dev` must name a set. With `follow`, wait for new checkpoints until the run ends. Unreadable checkpoints
    are skipped. The choice includes all checkpoints that were ever evaluated with these settings, even if they no
    longer exist. Raises InputError if no checkpoint could be evaluated, or if the chosen one no longer exists and was
    not exported.
    """
    config, group, run = evaluation.config, evaluation.group, evaluation.run
    judged_on = [name for name in ("test", "reasoning") if getattr(config.evaluate, name)]
    evaluation.check(["dev", *judged_on])
    find, until = partial(group.run_on_rank0, partial(all_checkpoints, run)), partial(_last_step, evaluation)
    passed_over: dict[int, str] = {}
    for checkpoint in each_checkpoint(find, every, until if follow else None):
        passed_over.pop(checkpoint.step, None)
        if reason := _evaluate_on_dev(evaluation, checkpoint):
            passed_over[checkpoint.step] = reason
    results = group.run_on_rank0(evaluation.finished)
    if not any(one.translation for one in results):
        raise InputError(_nothing_evaluated(run, passed_over))
    missed = tuple(PassedOver(*one) for one in sorted(passed_over.items()))
    choice = replace(_choose(evaluation, results), passed_over=missed)
    group.run_on_rank0(lambda: run.publish("chosen.json", choice.encode()))
    if group.ranks.rank == 0:
        print(choice.table(), flush=True)
    for step, reason in sorted(passed_over.items()):
        log.warning("step %s was passed over: %s", f"{step:,}", reason)
    if judged_on:
        _judge(evaluation, next(one for one in results if one.step == choice.step), judged_on)
    return choice


def each_checkpoint(
    find: Callable[[], Sequence[Checkpoint]], every: int, until: Callable[[], int] | None
) -> Iterator[Checkpoint]:
    """Yield every `every`-th checkpoint, oldest first, and the last one.

    With `until`, wait for new ones up to that step; it is called once there is a checkpoint. A step that is trained
    again comes again. Checkpoints that are removed meanwhile come, too.
    """
    seen: dict[int, Checkpoint] = {}
    given: set[str] = set()  # by identity
    ended = False
    while not ended:
        found = find()
        seen.update({checkpoint.step: checkpoint for checkpoint in found})
        ended = until is None or (bool(found) and found[-1].step >= until())
        for checkpoint in _every(list(seen.values()), every, with_last=ended):
            if checkpoint.identity not in given:
                given.add(checkpoint.identity)
                yield checkpoint
        if not ended:
            time.sleep(_POLL_S)


def _every(checkpoints: Sequence[Checkpoint], every: int, *, with_last: bool) -> list[Checkpoint]:
    """Return every `every`-th checkpoint, oldest first, and the last one if `with_last`."""
    wanted = list(checkpoints[every - 1 :: every])
    return [*wanted, *checkpoints[-1:]] if with_last and checkpoints[-1:] != wanted[-1:] else wanted


def _evaluate_on_dev(evaluation: Evaluation, checkpoint: Checkpoint) -> str:
    """Evaluate a checkpoint; export it if it is the best and may be removed. Return why it is unreadable."""
    config, step = evaluation.config, checkpoint.step
    with lease(checkpoint):
        try:
            CheckpointEvaluation.of(evaluation, checkpoint).evaluate(["dev"])
        except CheckpointError as error:
            log.warning("passing over step %s: %s", f"{step:,}", error)
            return str(error)
        if config.train.keep_checkpoints:
            evaluation.group.run_on_rank0(lambda: _export_best(evaluation, checkpoint))
    return ""


def _export_best(evaluation: Evaluation, checkpoint: Checkpoint) -> None:
    """Export a checkpoint if it is the best so far, since training may remove it before the end. On one rank."""
    if _choose(evaluation, evaluation.finished()).checkpoint == checkpoint.identity:
        try:
            export_checkpoint(evaluation.config, evaluation.run, checkpoint)
        except InputError as error:
            log.warning("step %s was not exported: %s", f"{checkpoint.step:,}", error)


def _choose(evaluation: Evaluation, results: Sequence[Results]) -> Choice:
    settings = evaluation.config.evaluate
    return choose(results, settings.choose_by or tuple(settings.dev), settings.shots[0], settings.beams)


def _judge(evaluation: Evaluation, results: Results, sets: Sequence[str]) -> None:
    """Evaluate the chosen checkpoint on more sets. Raises InputError if neither it nor its export can be read."""
    chosen = CheckpointEvaluation.of_results(evaluation, results)
    try:
        with chosen.lease():
            chosen.evaluate(sets)
    except CheckpointError as error:
        raise InputError(
            f"step {results.step:,} was chosen but cannot be evaluated on {' and '.join(sets)}: {error}. Restore it "
            "from a copy; its results on dev are kept."
        ) from None


def _nothing_evaluated(run: Run, passed_over: Mapping[int, str]) -> str:
    if passed_over:
        reasons = "; ".join(f"step {step:,}: {reason}" for step, reason in sorted(passed_over.items()))
        return f"none of {len(passed_over)} checkpoints under {run.url}/checkpoints could be evaluated: {reasons}"
    return f"no checkpoint under {run.url}/checkpoints. {HOW_TO_TRAIN}"


def _last_step(evaluation: Evaluation) -> int:
    return min(evaluation.manifest.schedule.steps, evaluation.config.train.max_steps or sys.maxsize)
