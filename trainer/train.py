"""Train an experiment: `composer -n RANKS trainer/train.py CONFIG [KEY=VALUE ...]`. The same command resumes it."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

if __name__ == "__main__":  # by path: as `python -m trainer train`, with the packages beside this file
    sys.argv.insert(1, "train")
    runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="__main__")

from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.errors import run_command
from dataengine.hardware.gpus import find_gpu
from trainer.checkpoints.marker import Checkpoint
from trainer.checkpoints.uploads import Uploader, resume_uploads
from trainer.preflight.problems import Problem
from trainer.run.arguments import parse, train_parser
from trainer.run.folder import Run
from trainer.run.imports import end_imports
from trainer.run.interrupts import NOT_BEGUN, end_plainly
from trainer.run.lock import hold, hold_bucket, holder_of
from trainer.run.log_csv import gap_words, missing_steps, read_whole_rows
from trainer.run.ranks import Ranks
from trainer.run.settings import put_aside_damaged, warn_of_changes
from trainer.run.signals import let_rank_0_end_first
from trainer.training.spikes import BadStepError
from trainer.training.start import Start, describe_start, looked_at, raise_gathered

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 0, 2 for unusable input, or 3 for a step that must not be trained on."""
    parser = train_parser()
    options = parse(parser, arguments)
    if options.gpu and not options.dry_run:
        parser.error("--gpu goes with --dry-run")
    end_plainly(NOT_BEGUN)  # `main` can be called directly, too
    rank = Ranks.from_environment().rank
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO if rank == 0 else logging.ERROR)

    def load() -> Config:
        return load_config(options.config, options.overrides)

    try:
        code = run_command(lambda: dry_run(load, options.gpu) if options.dry_run else train(load), quiet=rank != 0)
    except BadStepError as error:
        code = 3
        if rank == 0:
            print(f"stopped: {error}", file=sys.stderr, flush=True)
    if code and rank != 0:
        let_rank_0_end_first()
    sys.exit(code)


def dry_run(load: Callable[[], Config], gpu_name: str | None = None) -> None:
    """Check everything that the run needs, and describe the run. Raises InputError with all problems.

    With the name of a GPU, the run is described for such GPUs, and this machine needs none.
    """
    gpu = find_gpu(gpu_name) if gpu_name else None
    with looked_at(load, elsewhere=gpu is not None) as start:
        holder = holder_of(start.run) if start.group.ranks.rank == 0 else ""
        raise_gathered(start.group, [Problem(holder)] if holder else [])
        if start.group.ranks.rank == 0:
            describe_start(start, gpu)


def train(load: Callable[[], Config]) -> None:
    """Train to the end of the schedule, or to `train.max_steps`.

    Raises InputError for what the user must fix, on all ranks if one rank finds it, and BadStepError if a step must not
    be trained on.
    """
    with looked_at(load) as start, ExitStack() as held:
        config, resume, rank = start.config, start.resume, start.group.ranks.rank
        if all(start.group.gather(resume is not None and resume.step >= start.last)):
            assert resume is not None
            start.pulse.close()
            if rank == 0:
                _report_finished(start, resume)
            return
        start.group.run_on_rank0(lambda: take_run(start.run, held))
        start.pulse.at("importing Composer")
        log.info("%s: importing Composer, which takes a while", config.name)
        from trainer.training.session import run_session

        end_imports()
        run_session(config, start.manifest, start.run, start.group.ranks, start.pulse, last=start.last)


def take_run(run: Run, held: ExitStack) -> None:
    """Lock the run's folder while `held` is open. Raises InputError if another process trains there."""
    held.enter_context(hold(run.folder))
    held.enter_context(hold_bucket(run))


def _report_finished(start: Start, resume: Checkpoint) -> None:
    """Finish the uploads of a finished run; report changed settings, and that there is nothing to do."""
    finish_uploads(start.config, start.run, resume)
    _warn_of_lost_steps(start.run.folder / "log.csv", resume.step)
    words = "%s was %s in this run: changing it to %s has no effect now"
    warn_of_changes(put_aside_damaged(start.run.folder), start.last, start.config, start.manifest.schedule, words)
    log.info("nothing to do: %s has %d of %d steps", resume.place, resume.step, start.last)


def _warn_of_lost_steps(path: Path, steps: int) -> None:
    """Warn if the log of a finished run is damaged: no training will repair it."""
    rows, problem = read_whole_rows(path) if path.is_file() else ([], "it is missing")
    if gaps := missing_steps(rows, 0, steps):
        problem = problem or f"it has no rows of these: {gap_words(gaps)}"
    if problem:
        log.warning("%s is damaged, though all %d steps were trained: %s", path, steps, problem)


def finish_uploads(config: Config, run: Run, resume: Checkpoint) -> None:
    """Upload the files that a process left here when it was killed after its last step."""
    if run.store is None or resume.key:
        return
    uploader = Uploader(run, keep=config.train.keep_checkpoints, outage_limit_s=config.train.outage_limit)
    resume_uploads(run, uploader, resume)
    uploader.wait()
