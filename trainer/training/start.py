"""Check everything that a run needs, before Composer is imported."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from dataengine.build.experiment import experiment_url
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.hardware.fitting import Work
from dataengine.hardware.gpus import Gpu
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.schedule.rates import Settings, horizon_notes
from dataengine.schedule.slots import Schedule
from dataengine.storage.paths import is_url
from trainer.checkpoints.find import locate_checkpoint, newest_checkpoint
from trainer.checkpoints.marker import Checkpoint, check_model
from trainer.checkpoints.steps import last_step, planned_checkpoints
from trainer.preflight.agreement import past_differences
from trainer.preflight.base import check_base, settle_base
from trainer.preflight.check import check_run
from trainer.preflight.describe import describe
from trainer.preflight.init_checkpoint import check_init_checkpoint
from trainer.preflight.places import check_one_folder
from trainer.preflight.problems import Problem, raise_problems
from trainer.run.folder import SMALL_FILES, Run, open_run
from trainer.run.log_csv import read_whole_rows
from trainer.run.ranks import Collective, Ranks, Rendezvous
from trainer.run.settings import History, history_before, read_history, settings_from, warn_of_changes
from trainer.training.pulse import Pulse

log = logging.getLogger(__name__)
_MEETING = timedelta(minutes=10)  # allowed between the starts of nodes, in addition to an outage


@dataclass(frozen=True)
class Start:
    """The start of a run, on each of its ranks."""

    config: Config
    manifest: Manifest
    group: Rendezvous
    pulse: Pulse
    run: Run
    resume: Checkpoint | None  # None: a new run

    @property
    def last(self) -> int:
        """The step at which training ends."""
        return last_step(self.config.train.max_steps, self.manifest.schedule)


@contextmanager
def looked_at(load: Callable[[], Config], *, elsewhere: bool = False) -> Iterator[Start]:
    """Check everything that a run needs before the import of Composer, which takes 20 s; a dry run checks the same.

    With `elsewhere`, the GPUs of another machine are meant: see `check_run`.

    Raises InputError on all ranks of all nodes, with the problems that any of them found.
    """
    ranks = Ranks.from_environment()
    group = Rendezvous(ranks, _MEETING)
    if ranks.world_size > 1:
        log.info("%d ranks meet at %s", ranks.world_size, group.address)
    with group:
        config = group.run_on_all(load)
        group.timeout += timedelta(seconds=config.train.outage_limit)
        with Pulse(group, config.train.outage_limit) as pulse:
            manifest = group.run_on_all(lambda: read_manifest(experiment_url(config)))
            pulse.at("checking what the run needs", may_wait=True)
            config = settle_base(config, group)
            raise_gathered(group, check_run(config, manifest, ranks, elsewhere=elsewhere))
            if not is_url(config.out):
                check_one_folder(Path(config.out), group)
            pulse.at("looking for checkpoints", may_wait=True)
            run, resume = group.run_on_all(lambda: find_run(config.out, config.cache, ranks))
            found = group.run_on_all(
                lambda: check_past(config, manifest, run, resume) if resume else check_new(config, manifest, run)
            )
            if resume is None and ranks.rank == 0:
                found += check_base(config, manifest)
            raise_gathered(group, found)
            yield Start(config, manifest, group, pulse, run, resume)


def raise_gathered(group: Collective, problems: list[Problem]) -> None:
    """Raise InputError on all ranks if one of them has found a problem."""
    raise_problems(problem for found in group.gather(problems) for problem in found)


def describe_start(start: Start, gpu: Gpu | None) -> None:
    """Print a description of the run, and what it needs of GPUs: of this kind, or of this process's."""
    config, manifest, resume, world_size = start.config, start.manifest, start.resume, start.group.ranks.world_size
    from trainer.model.device import own_gpu
    from trainer.model.memory import step_bytes
    from trainer.model.microbatch import describe_needs

    step = resume.step if resume else config.first_step
    settings = settings_ahead(history_so_far(config, start.run, resume), step, config, manifest.schedule)
    where = f"steps {step:,} to {start.last:,}, {f'from {resume.place}' if resume else 'a new run'}"
    print(describe(config, manifest, world_size, settings=settings, first=step))
    work = Work(config.model, manifest, config.train, world_size, step_bytes)
    print(f"\n{describe_needs(work, gpu or own_gpu(), max(start.last - step, 0))}")
    print(f"to train: {where if step < start.last else 'nothing, all steps are trained'}")


def find_run(out: str, cache: str, ranks: Ranks) -> tuple[Run, Checkpoint | None]:
    """Return the run at `out`, and its newest checkpoint, None for a new run."""
    run = open_run(out, cache)
    run.fetch(*SMALL_FILES) if ranks.rank == 0 else run.fetch("manifest.json", "config.yaml")
    return run, newest_checkpoint(run)


def check_past(config: Config, manifest: Manifest, run: Run, resume: Checkpoint) -> list[Problem]:
    """Return problems of a resumed run: its model, and the samples that it was trained on, must not change."""
    found = [problem.text for problem in check_not_removed(run, resume)]
    try:
        check_model(config.model, resume, resume=True)
    except InputError as error:
        found.append(str(error))
    if changed := past_differences(manifest, run, resume.step):
        found.append(
            f"the {resume.step:,} trained steps of {run.url} would change: {', '.join(changed)}. Build with "
            f"{run.url}/config.yaml and its sources, change only what comes after these steps (you can add stages), "
            "or give this run another `out`."
        )
    return [Problem(text) for text in found]


def check_not_removed(run: Run, resume: Checkpoint) -> list[Problem]:
    """Return the problem of a run that was removed from its bucket but has a copy on this disk: it must not come back.

    A run uploads its manifest before its first step, so the manifest decides, not the uploaded checkpoints.
    """
    if run.store is None or resume.key or run.store.size("manifest.json") is not None:
        return []
    return [
        Problem(
            f"{run.url} has no manifest.json, although {resume.folder} is a checkpoint of this run: the run was "
            f"removed from the bucket, and this disk has a copy. To start over, remove {run.folder}. To continue with "
            f"the copy, upload {run.folder}/manifest.json again; its checkpoints are then uploaded, too."
        )
    ]


def check_new(config: Config, manifest: Manifest, run: Run) -> list[Problem]:
    """Return problems of a new run: lost checkpoints, or an unusable `init`."""
    return [*check_not_lost(config, manifest, run), *check_init_checkpoint(config, manifest)]


def settings_ahead(history: History, step: int, config: Config, schedule: Schedule) -> Settings:
    """Return a run's settings from a step on; warn of changes, and of a learning rate that hardly falls."""
    warn_of_changes(history, step, config, schedule)
    settings = settings_from(history, step, config, schedule)
    for words in horizon_notes(settings, schedule.steps, first=config.first_step, init=config.init):
        log.warning("%s", words)
    return settings


def history_so_far(config: Config, run: Run, resume: Checkpoint | None) -> History:
    """Return the settings of the steps so far: the run's own, or those of the run that it continues."""
    if resume is None and config.init is not None and config.first_step:
        run, _ = locate_checkpoint(str(config.init.checkpoint), config.cache)
        run.fetch(*SMALL_FILES)
    elif resume is None:
        return []
    try:
        return history_before(read_history(run.folder), resume.step if resume else config.first_step)
    except InputError as error:  # training continues without it
        log.warning("%s", error)
        return []


def check_not_lost(config: Config, manifest: Manifest, run: Run) -> list[Problem]:
    """Return the problem of a run that must have saved a checkpoint, by its logged steps, but has none.

    The first checkpoint is written beside the steps, and the second one waits for it: a run that was killed before the
    second had perhaps none. Not for buckets: there, checkpoints may arrive later than the log.
    """
    if run.store is not None or not (run.folder / "log.csv").is_file():
        return []
    rows, _ = read_whole_rows(run.folder / "log.csv")
    before = config
    with suppress(InputError):  # the intervals may have been different; a damaged copy is replaced
        before = load_config(run.folder / "config.yaml")
    due = planned_checkpoints(before, manifest)[:2] or [manifest.schedule.steps]
    if not rows or int(rows[-1]["step"]) < due[-1]:
        return []
    return [
        Problem(
            f"{run.folder} has no checkpoint, although its log.csv has steps up to {int(rows[-1]['step']):,} and the "
            f"first checkpoint was due after {due[0]:,} steps. Restore {run.folder}/checkpoints, or remove log.csv to "
            f"start at step {config.first_step:,}."
        )
    ]
