"""Train an experiment: `composer -n RANKS trainer/train.py CONFIG [key=value ...]`. The same command resumes it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

if __name__ == "__main__":  # as a script: find packages beside this folder, not modules of other names inside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dataengine.build import experiment_url
from dataengine.config import Config, load_config
from dataengine.errors import InputError, run_command
from dataengine.manifest import Manifest, read_manifest
from dataengine.objects import is_url
from trainer.checkpoints import Checkpoint, check_model, newest_checkpoint
from trainer.preflight import (
    Problem,
    Ranks,
    check_one_folder,
    check_run,
    describe,
    last_step,
    planned_checkpoints,
    raise_problems,
)
from trainer.runs import SMALL_FILES, Run, hold, hold_bucket, open_run, read_run_manifest
from trainer.settings import differences, put_aside_damaged, settings_at
from trainer.signals import end_at_once, let_rank_0_end_first
from trainer.step_log import read_whole_rows
from trainer.uploads import Uploader, resume_uploads
from trainer.watch import BadStepError

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
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("trainer", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if _rank() == 0 else logging.ERROR)

    def load() -> Config:
        return load_config(options.config, options.overrides)

    try:
        code = run_command(lambda: dry_run(load()) if options.dry_run else train(load), quiet=_rank() != 0)
    except BadStepError as error:
        code = 3
        if _rank() == 0:
            print(f"stopped: {error}", file=sys.stderr, flush=True)
    if code and _rank() != 0:
        let_rank_0_end_first()
    sys.exit(code)


def dry_run(config: Config) -> None:
    """Look at all that the run needs, and print what it will be. Raises InputError with all that is wrong."""
    ranks = Ranks.from_environment()
    manifest = read_manifest(experiment_url(config))
    raise_problems(check_run(config, manifest, ranks))
    run, resume = find_run(config, manifest, ranks)
    if resume is None:
        raise_problems(check_not_lost(config, manifest, run))
    if ranks.rank == 0:
        last, step = last_step(config, manifest), resume.step if resume else 0
        words = f"steps {step:,} to {last:,}, {f'from {resume.place}' if resume else 'a new run'}"
        print(describe(config, manifest, ranks.world_size))
        print(f"\nto be trained: {words if step < last else 'nothing, all steps are trained'}")


def train(load: Callable[[], Config]) -> None:
    """Train to the end of the schedule, or to `train.max_steps`.

    Raises InputError for what the user has to mend, on all ranks of all nodes what one of them has found, and
    BadStepError if a step must not be trained on.
    """
    ranks = Ranks.from_environment()
    if ranks.world_size == 1:
        load()  # a mistake is said before torch is imported
    # All that can be looked at is looked at before Composer is imported, which takes 20 s.
    from trainer.group import Group
    from trainer.pulse import Pulse

    end_at_once()
    group = Group(_MEETING)
    if ranks.world_size > 1:
        log.info("%d ranks meet at %s", ranks.world_size, group.address)
    with group, ExitStack() as held:
        config = group.together(load)
        group.timeout += timedelta(seconds=config.train.outage_limit)
        with Pulse(group, config.train.outage_limit) as pulse:
            manifest = group.together(lambda: read_manifest(experiment_url(config)))
            pulse.at("looking at what the run needs", may_wait=True)
            problems = check_run(config, manifest, ranks)
            raise_problems(problem for found in group.gather(problems) for problem in found)
            if not is_url(config.out):
                check_one_folder(Path(config.out), group)
            pulse.at("looking for checkpoints", may_wait=True)
            run, resume = group.together(lambda: find_run(config, manifest, ranks))
            last = last_step(config, manifest)
            if all(group.gather(resume is not None and resume.step >= last)):
                assert resume is not None
                pulse.close()
                if ranks.rank == 0:
                    _tell_finished(config, run, resume, last)
                return
            group.together(lambda: take_run(config, manifest, run, resume, held) if ranks.rank == 0 else None)
            pulse.at("importing Composer")
            log.info("%s: importing Composer, which takes a while", config.name)
            from trainer.session import run_session

            run_session(config, manifest, run, ranks, pulse, last=last)


def take_run(config: Config, manifest: Manifest, run: Run, resume: Checkpoint | None, held: ExitStack) -> None:
    """Hold the run's folder as long as `held` is open, if training may go on there. Raises InputError if it may not."""
    if resume is None:
        raise_problems(check_not_lost(config, manifest, run))
    else:
        _tell_changes(config, run, resume.step, "train.%s was %s so far and is %s from here on")
    held.enter_context(hold(run.folder))
    held.enter_context(hold_bucket(run))


def _tell_finished(config: Config, run: Run, resume: Checkpoint, last: int) -> None:
    """Bring a finished run home; say what differs, and that there is nothing to do."""
    finish_uploads(config, run, resume)
    _tell_log(run.folder / "log.csv", resume.step)
    _tell_changes(config, run, last, "train.%s was %s in this run: %s would change nothing any more")
    log.info("nothing to do: %s has %d of %d steps", resume.place, resume.step, last)


def find_run(config: Config, manifest: Manifest, ranks: Ranks) -> tuple[Run, Checkpoint | None]:
    """The run at the config's `out`, and its newest checkpoint, None for a new run.

    Raises InputError if the run cannot go on from there with this config and manifest.
    """
    run = open_run(config.out, config.cache)
    run.fetch(*SMALL_FILES) if ranks.rank == 0 else run.fetch("manifest.json", "config.yaml")
    resume = newest_checkpoint(run)
    if resume is not None:
        check_model(config.model, resume)
        check_past(manifest, run, resume.step)
    return run, resume


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
    begun = config.parent.step if config.parent and config.init and config.init.mode == "continue" else 0
    first = next((step for step in planned_checkpoints(before, manifest) if step > begun), manifest.schedule.steps)
    if not rows or int(rows[-1]["step"]) < first:
        return []
    return [
        Problem(
            f"{run.folder} has no checkpoint, though its log.csv has steps up to {int(rows[-1]['step']):,} and the "
            f"first was due after {first:,}. Restore {run.folder}/checkpoints, or remove log.csv to begin at step 0."
        )
    ]


def _tell_log(path: Path, steps: int) -> None:
    """Say if the log of a finished run is damaged, which no training will mend."""
    rows, problem = read_whole_rows(path) if path.is_file() else ([], "it is missing")
    if problem or not rows or int(rows[-1]["step"]) != steps - 1:
        words = problem or f"it ends after step {rows[-1]['step'] if rows else 'none'}"
        log.warning("%s is damaged, though all %d steps were trained: %s", path, steps, words)


def finish_uploads(config: Config, run: Run, resume: Checkpoint) -> None:
    """Upload what a process that was killed after its last step left here."""
    if run.store is None or resume.key:
        return
    uploader = Uploader(run, keep=config.train.keep_checkpoints, outage_limit_s=config.train.outage_limit)
    resume_uploads(run, uploader, resume)
    uploader.wait()


def check_past(manifest: Manifest, run: Run, step: int) -> None:
    """Raise InputError, with the reason, unless the manifest gives the samples that a run was trained on up to a step.

    The dataset checks the same by the hash in the checkpoint; this knows what differs.
    """
    if not (run.folder / "manifest.json").is_file():  # a checkpoint that was copied here, for a fork
        return
    before = read_run_manifest(run.folder, run.url)
    if before.prefix_sha256(step) != manifest.prefix_sha256(step):
        raise InputError(
            f"the {step:,} steps that {run.url} has trained would change: "
            f"{', '.join(before.differences(manifest, step))}. Build with {run.url}/config.yaml and the sources of "
            "then, change only what comes after these steps (stages can be added), or give this run another `out`."
        )


def _tell_changes(config: Config, run: Run, step: int, words: str) -> None:
    """Say which training settings differ from those of the step before `step`; they may, but not unseen."""
    before = settings_at(put_aside_damaged(run.folder), step - 1)
    for change in differences(before, config.train) if before else ():
        log.warning(words, *change)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    main()
