"""Train an experiment: `composer -n RANKS trainer/train.py CONFIG [key=value ...]`. The same command resumes it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from trainer.run.interrupts import NOT_BEGUN, end_plainly

    end_plainly(NOT_BEGUN)

from dataengine.build.build import experiment_url
from dataengine.config.schema import Config, load_config
from dataengine.errors import InputError, run_command
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.schedule.rates import horizon_notes
from dataengine.storage.s3_client import is_url
from trainer.checkpoints.find import Checkpoint, check_model, locate_checkpoint, newest_checkpoint
from trainer.checkpoints.uploads import Uploader, resume_uploads
from trainer.preflight.check import (
    Problem,
    Ranks,
    check_auto,
    check_init_checkpoint,
    check_one_folder,
    check_run,
    describe,
    last_step,
    past_differences,
    planned_checkpoints,
    raise_problems,
)
from trainer.run.folder import SMALL_FILES, Run, hold, hold_bucket, holder_of, open_run
from trainer.run.interrupts import NOT_BEGUN, end_plainly
from trainer.run.ranks import Group
from trainer.run.settings import History, history_before, put_aside_damaged, read_history, settings_from, tell_changes
from trainer.run.signals import let_rank_0_end_first
from trainer.run.step_log import gap_words, missing_steps, read_whole_rows
from trainer.training.pulse import Pulse
from trainer.training.spikes import BadStepError

log = logging.getLogger(__name__)

_MEETING = timedelta(minutes=10)  # for which nodes may start one after the other, or be late beside an outage


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0, 2 for unusable input, or 3 for a step that must not be trained on."""
    parser = argparse.ArgumentParser(
        prog="composer [-n RANKS] trainer/train.py",
        description="Train an experiment on its built streams, from the newest complete checkpoint under its `out` if "
        "there is one. Writes OUT/log.csv, OUT/checkpoints/, OUT/manifest.json and OUT/config.yaml; OUT may be in a "
        "bucket. SIGTERM or Ctrl-C ends it after the step under way, with a checkpoint. Exit codes: 0 finished or "
        "stopped so, 2 something has to be mended first, 3 a step's loss or gradient is bad (under `composer`, the "
        "launcher's own exit code may take their place; it is not 0 either).",
        epilog="example: composer -n 2 trainer/train.py yamls/mini/uni_en_zh.yaml train.max_steps=100",
    )
    parser.add_argument("config", metavar="CONFIG", help="the experiment's YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="settings that replace the file's, such as out=runs/second",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all that a run needs and describe it; train nothing"
    )
    options = parser.parse_intermixed_args(arguments)
    end_plainly(NOT_BEGUN)  # also where this is no script
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("trainer", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if _rank() == 0 else logging.ERROR)

    def load() -> Config:
        return load_config(options.config, options.overrides)

    try:
        code = run_command(lambda: dry_run(load) if options.dry_run else train(load), quiet=_rank() != 0)
    except BadStepError as error:
        code = 3
        if _rank() == 0:
            print(f"stopped: {error}", file=sys.stderr, flush=True)
    if code and _rank() != 0:
        let_rank_0_end_first()
    sys.exit(code)


@dataclass(frozen=True)
class Start:
    """What a run begins with, on each of its ranks."""

    config: Config
    manifest: Manifest
    ranks: Ranks
    group: Group
    pulse: Pulse
    run: Run
    resume: Checkpoint | None  # None: a new run

    @property
    def last(self) -> int:
        """Where training ends."""
        return last_step(self.config, self.manifest)


@contextmanager
def looked_at(load: Callable[[], Config]) -> Iterator[Start]:
    """All that a run needs, looked at before Composer is imported, which takes 20 s; a dry run looks at the same.

    Raises InputError, on all ranks of all nodes, with what one of them has found.
    """
    ranks = Ranks.from_environment()
    group = Group(_MEETING)
    if group.size > 1:
        log.info("%d ranks meet at %s", group.size, group.address)
    with group:
        config = group.together(load)
        group.timeout += timedelta(seconds=config.train.outage_limit)
        with Pulse(group, config.train.outage_limit) as pulse:
            manifest = group.together(lambda: read_manifest(experiment_url(config)))
            pulse.at("looking at what the run needs", may_wait=True)
            raise_gathered(group, check_run(config, manifest, ranks))
            if not is_url(config.out):
                check_one_folder(Path(config.out), group)
            pulse.at("looking for checkpoints", may_wait=True)
            run, resume = group.together(lambda: find_run(config, ranks))
            found = group.together(
                lambda: check_past(config, manifest, run, resume) if resume else check_new(config, manifest, run)
            )
            raise_gathered(group, [*found, *check_auto(config)])
            yield Start(config, manifest, ranks, group, pulse, run, resume)


def raise_gathered(group: Group, problems: list[Problem]) -> None:
    """Raise InputError on all ranks if one of them has found a problem."""
    raise_problems(problem for found in group.gather(problems) for problem in found)


def dry_run(load: Callable[[], Config]) -> None:
    """Look at all that the run needs, and print what it will be. Raises InputError with all that is wrong."""
    with looked_at(load) as start:
        holder = holder_of(start.run) if start.ranks.rank == 0 else ""
        raise_gathered(start.group, [Problem(holder)] if holder else [])
        if start.ranks.rank == 0:
            describe_start(start)


def describe_start(start: Start) -> None:
    """Print what a run will be."""
    config, manifest, resume = start.config, start.manifest, start.resume
    from trainer.model.microbatch import describe_memory

    step = resume.step if resume else config.first_step
    history = history_so_far(config, start.run, resume)
    tell_changes(history, step, config, manifest.schedule)
    settings = settings_from(history, step, config, manifest.schedule)
    for words in horizon_notes(config, settings, manifest.schedule.steps):
        log.warning("%s", words)
    where = f"steps {step:,} to {start.last:,}, {f'from {resume.place}' if resume else 'a new run'}"
    print(describe(config, manifest, start.ranks.world_size, settings=settings, first=step))
    print(f"\n{describe_memory(config, manifest, start.ranks.world_size)}")
    print(f"to be trained: {where if step < start.last else 'nothing, all steps are trained'}")


def train(load: Callable[[], Config]) -> None:
    """Train to the end of the schedule, or to `train.max_steps`.

    Raises InputError for what the user has to mend, on all ranks of all nodes what one of them has found, and
    BadStepError if a step must not be trained on.
    """
    with looked_at(load) as start, ExitStack() as held:
        config, resume, rank = start.config, start.resume, start.ranks.rank
        if all(start.group.gather(resume is not None and resume.step >= start.last)):
            assert resume is not None
            start.pulse.close()
            if rank == 0:
                _tell_finished(start, resume)
            return
        start.group.first(lambda: take_run(start.run, held))
        start.pulse.at("importing Composer")
        log.info("%s: importing Composer, which takes a while", config.name)
        from trainer.training.session import run_session

        run_session(config, start.manifest, start.run, start.ranks, start.pulse, last=start.last)


def take_run(run: Run, held: ExitStack) -> None:
    """Hold the run's folder as long as `held` is open. Raises InputError if another process trains there."""
    held.enter_context(hold(run.folder))
    held.enter_context(hold_bucket(run))


def _tell_finished(start: Start, resume: Checkpoint) -> None:
    """Bring a finished run home; say what differs, and that there is nothing to do."""
    finish_uploads(start.config, start.run, resume)
    _tell_log(start.run.folder / "log.csv", resume.step)
    words = "%s was %s in this run: %s would change nothing any more"
    tell_changes(put_aside_damaged(start.run.folder), start.last, start.config, start.manifest.schedule, words)
    log.info("nothing to do: %s has %d of %d steps", resume.place, resume.step, start.last)


def find_run(config: Config, ranks: Ranks) -> tuple[Run, Checkpoint | None]:
    """The run at the config's `out`, and its newest checkpoint, None for a new run."""
    run = open_run(config.out, config.cache)
    run.fetch(*SMALL_FILES) if ranks.rank == 0 else run.fetch("manifest.json", "config.yaml")
    return run, newest_checkpoint(run)


def check_past(config: Config, manifest: Manifest, run: Run, resume: Checkpoint) -> list[Problem]:
    """A run that goes on keeps its model, and the samples that it was trained on."""
    found = [problem.text for problem in check_not_removed(run, resume)]
    try:
        check_model(config.model, resume, resume=True)
    except InputError as error:
        found.append(str(error))
    if changed := past_differences(manifest, run, resume.step):
        found.append(
            f"the {resume.step:,} steps that {run.url} has trained would change: {', '.join(changed)}. Build with "
            f"{run.url}/config.yaml and the sources of then, change only what comes after these steps (stages can be "
            "added), or give this run another `out`."
        )
    return [Problem(text) for text in found]


def check_not_removed(run: Run, resume: Checkpoint) -> list[Problem]:
    """A run that was removed from its bucket must not go on, or come back, by the copy that is left on this disk.

    Before its first step a run puts its manifest there, so a checkpoint that no upload has reached yet tells nothing.
    """
    if run.store is None or resume.key or run.store.size("manifest.json") is not None:
        return []
    return [
        Problem(
            f"{run.url} has no manifest.json, though {resume.folder} is a checkpoint of this run: it was removed from "
            f"the bucket, and this disk has a copy. To begin anew, remove {run.folder}. To go on with the copy, put "
            f"{run.folder}/manifest.json there again; its checkpoints are uploaded then."
        )
    ]


def check_new(config: Config, manifest: Manifest, run: Run) -> list[Problem]:
    """A run that begins must not be one that lost its checkpoints; what it begins with must be usable."""
    return [*check_not_lost(config, manifest, run), *check_init_checkpoint(config, manifest)]


def history_so_far(config: Config, run: Run, resume: Checkpoint | None) -> History:
    """The settings of the steps that a run has behind it: its own, or those of the run that it continues."""
    if resume is None and config.init is not None and config.first_step:
        run, _ = locate_checkpoint(config.init.checkpoint, config.cache)
        run.fetch(*SMALL_FILES)
    elif resume is None:
        return []
    try:
        return history_before(read_history(run.folder), resume.step if resume else config.first_step)
    except InputError as error:  # a training goes on without it
        log.warning("%s", error)
        return []


def check_not_lost(config: Config, manifest: Manifest, run: Run) -> list[Problem]:
    """A run that has no checkpoint must not have logged steps beyond its first one: then its checkpoints were removed.

    In a bucket, checkpoints may arrive later than the log.
    """
    if run.store is not None or not (run.folder / "log.csv").is_file():
        return []
    rows, _ = read_whole_rows(run.folder / "log.csv")
    before = config
    with suppress(InputError):  # the intervals may have been others; a damaged copy is written anew
        before = load_config(run.folder / "config.yaml")
    first = next(iter(planned_checkpoints(before, manifest)), manifest.schedule.steps)
    if not rows or int(rows[-1]["step"]) < first:
        return []
    return [
        Problem(
            f"{run.folder} has no checkpoint, though its log.csv has steps up to {int(rows[-1]['step']):,} and the "
            f"first was due after {first:,}. Restore {run.folder}/checkpoints, or remove log.csv to begin at step "
            f"{config.first_step:,}."
        )
    ]


def _tell_log(path: Path, steps: int) -> None:
    """Say if the log of a finished run is damaged, which no training will mend."""
    rows, problem = read_whole_rows(path) if path.is_file() else ([], "it is missing")
    if gaps := missing_steps(rows, 0, steps):
        problem = problem or f"it has no rows of these: {gap_words(gaps)}"
    if problem:
        log.warning("%s is damaged, though all %d steps were trained: %s", path, steps, problem)


def finish_uploads(config: Config, run: Run, resume: Checkpoint) -> None:
    """Upload what a process that was killed after its last step left here."""
    if run.store is None or resume.key:
        return
    uploader = Uploader(run, keep=config.train.keep_checkpoints, outage_limit_s=config.train.outage_limit)
    resume_uploads(run, uploader, resume)
    uploader.wait()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    main()
