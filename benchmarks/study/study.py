"""The study in miniature: `make study`, or `python benchmarks/study/study.py [--fast] [--seeds 3] [--text FOLDER]`.

Builds the streams of three made-up languages (world.py) once, trains every setting of the paper with several seeds and
the open questions with the first one, evaluates along the checkpoints, and writes study.html (page.py) with expected
and measured results (findings.py), all under runs/study. After an interruption the same command continues and repeats
nothing.

Each run follows its YAML under yamls/study; commands.txt lists the commands. There is one shortcut: a run whose first
steps are another run's, to the sample, begins with that run's checkpoint. The trainer proves from the manifests that
they are equal, and resumes bit for bit.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: find the packages beside benchmarks, not the modules in this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tqdm import tqdm

from benchmarks.study import findings, page, world
from dataengine.build.experiment import experiment_url
from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.errors import InputError, did_you_mean, run_command
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.schedule.rates import StageRate, planned_settings
from trainer.checkpoints.steps import checkpoint_steps

SETTINGS = (
    "no_parallel", "multilingual", "parallel_non_adjacent", "parallel_first", "parallel_distributed",
    "parallel_last_all", "uni_en_zh", "uni_zh_en", "uni_en_id", "uni_id_en",
)  # fmt: skip
FAST_SETTINGS = ("no_parallel", "parallel_non_adjacent", "parallel_first", "parallel_distributed",
                 "parallel_last_all", "uni_en_zh")  # fmt: skip
TEXT_SETTINGS = ("text/parallel_distributed", "text/parallel_last_all")
ROOT = Path(__file__).resolve().parents[2]
TEXT_FILES = [f"{name}.jsonl.zst" for name in ("mono.en", "en-zh.train", "en-zh.dev", "en-id.train", "en-id.dev")]
YAMLS = Path(os.path.relpath(ROOT / "yamls/study"))
WORLD_SEED = 17
_EVERY = 2  # checkpoints on dev: every second one
_OWN = ("name", "out", "seed", "model.init_seed")  # settings that differ from run to run
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    """One run: train, and evaluate along its checkpoints. `setting` is its YAML's path under yamls/study."""

    setting: str
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name; its folder follows from it."""
        return f"study/seed-{self.seed}/{self.setting}"

    @property
    def arguments(self) -> list[str]:
        """Config and overrides, as for all commands."""
        seeds = [f"seed={self.seed}", f"model.init_seed={self.seed}"]
        return [str(YAMLS / f"{self.setting}.yaml"), f"name={self.name}", *seeds, *self.overrides]

    @cached_property
    def config(self) -> Config:
        """The experiment."""
        return load_config(self.arguments[0], self.arguments[1:])

    @cached_property
    def manifest(self) -> Manifest:
        """The built schedule."""
        return read_manifest(experiment_url(self.config))

    @property
    def out(self) -> Path:
        """The run's folder."""
        return Path(self.config.out)

    @property
    def is_done(self) -> bool:
        """Whether it was trained and evaluated with this plan and these settings."""
        return self.note.get("done") is True and self.note.get("key") == self.key

    @property
    def note(self) -> dict[str, Any]:
        """The note in the run's folder about the study that began it: key, shared steps, whether it is done."""
        try:
            note = json.loads((self.out / "study.json").read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def write_note(self, shared: int, *, done: bool) -> None:
        """Write the note in the run's folder."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "study.json").write_text(json.dumps({"key": self.key, "shared": shared, "done": done}))

    @property
    def key(self) -> list[str]:
        """The values that identify the run: plan, config and interval of checkpoints."""
        return [self.manifest.plan_id, self.config.model_dump_json(), str(_EVERY)]


def main() -> None:
    """Run the command line; exit with 1 if a run fails, 2 for unusable input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all runs, such as budget.steps=400"
    )
    parser.add_argument("--fast", action="store_true", help="six settings, one seed, no open questions")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds a setting (default: %(default)s)")
    parser.add_argument("--only", metavar="A,B", help="only these settings, such as parallel_last_all,placement/at_50")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="runs at a time, a thread "
                        "each (default: a processor each, %(default)s)")  # fmt: skip
    parser.add_argument("--text", type=Path, metavar="FOLDER", help="also train on real text: a folder with "
                        + ", ".join(TEXT_FILES))  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="build, and print what would be trained")
    options = parser.parse_intermixed_args()
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be 1 or more")
    sys.exit(run_command(lambda: study(options)))


def study(options: argparse.Namespace) -> None:
    """Build, train, evaluate and report. Raises InputError for problems that the user has to fix."""
    begun = time.monotonic()
    jobs = choose_jobs(fast=options.fast, seeds=options.seeds, only=options.only, text=options.text)
    for override in options.overrides:
        if override.partition("=")[0] in _OWN:
            raise InputError(
                f"override '{override}': the study gives every run its own {', '.join(_OWN)}. Leave it out"
            )
    jobs = [dataclasses.replace(job, overrides=tuple(options.overrides)) for job in jobs]
    for job in jobs:
        job.config  # noqa: B018, raises for a mistaken override before anything is made
    make_inputs(options.text)
    build(jobs)
    todo = [job for job in jobs if not job.is_done]
    for job in todo:
        check_same(job)
    shared = {job: shared_steps(job, jobs) for job in todo}
    first = {job: max(shared[job], _steps_trained(job.out)) for job in todo}
    steps = sum(job.manifest.schedule.steps - first[job] for job in todo)
    print(f"{len(jobs)} runs, {len(todo)} of them to do: {steps:,} steps, {options.jobs} at a time", flush=True)
    if options.dry_run:
        for job in todo:
            print(f"{job.name}: steps {first[job]:,} to {job.manifest.schedule.steps:,}")
        return
    failed = run_all(todo, jobs, shared, first, options.jobs) if todo else []
    note_time(time.monotonic() - begun, bool(todo))
    done = [job for job in jobs if job.is_done]
    page.write(done_runs(done), Path("runs/study"))
    mains = [str(job.out) for job in done if job.seed == 1 and "/" not in job.setting]
    if mains:
        command = [
            sys.executable,
            str(ROOT / "trainer/report.py"),
            *mains,
            "--out",
            "runs/study/report.html",
            "--trials",
            "1000",
        ]
        subprocess.run(command, check=True)
    print(f"took {time.monotonic() - begun:.0f} s")
    if failed:
        sys.exit("failed: " + ", ".join(f"{job.name} (see {job.out}.txt)" for job in failed))


def choose_jobs(*, fast: bool, seeds: int, only: str | None, text: Path | None) -> list[Job]:
    """The runs, in an order in which every run comes after those that it may begin with."""
    names = sorted(path.relative_to(YAMLS).with_suffix("").as_posix() for path in YAMLS.rglob("*.yaml"))
    questions = [name for name in names if "/" in name and not name.startswith("text/")]
    wanted = [Job(name, seed) for name in (FAST_SETTINGS if fast else SETTINGS) for seed in range(1, seeds + 1)]
    wanted = [job for job in wanted if job.seed == 1] if fast else wanted + [Job(name, 1) for name in questions]
    if text is not None:
        wanted = [*(Job(name, 1) for name in TEXT_SETTINGS), *wanted]
    if only is not None:
        for name in only.split(","):
            if name not in names:
                hint = did_you_mean(name, names)
                raise InputError(f"--only: '{name}' is not a setting{hint}. Settings: {', '.join(names)}")
            if all(job.setting != name for job in wanted):
                remedy = "Add --text FOLDER" if name.startswith("text/") and text is None else "Leave out --fast"
                raise InputError(f"--only: '{name}' is not part of this study. {remedy}")
        wanted = [job for job in wanted if job.setting in only.split(",")]
    return sorted(wanted, key=lambda job: (job.setting not in TEXT_SETTINGS, job.setting != "no_parallel",
                                           job.setting in SETTINGS[5:] or "/" in job.setting))  # fmt: skip


# Streams and schedules.


def make_inputs(text: Path | None) -> None:
    """The source files of the streams."""
    folder = Path("runs/study/world")
    stamp = folder / "of.txt"
    made_by = f"seed {WORLD_SEED}\n{Path(world.__file__).read_text()}"
    if not stamp.is_file() or stamp.read_text() != made_by:
        print(f"making three languages in {folder}", flush=True)
        world.write(folder, WORLD_SEED)
        stamp.write_text(made_by)
    if text is not None:
        if missing := [name for name in TEXT_FILES if not (text / name).is_file()]:
            raise InputError(f"--text {text}: no {', '.join(missing)} there")
        link = Path("runs/study/text")
        link.unlink(missing_ok=True)
        link.symlink_to(text.resolve(), target_is_directory=True)


def build(jobs: Sequence[Job]) -> None:
    """Build all streams and schedules; a second build takes a moment."""
    import contextlib
    import io

    from dataengine.cli import main as dataengine

    for job in tqdm(jobs, desc="build", unit="plan", disable=None):
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                dataengine(["build", *job.arguments])
        except SystemExit as end:
            if end.code:
                raise InputError(f"{job.name}: {said.getvalue().rpartition('error: ')[2].strip()}") from None


def base_of(job: Job, jobs: Sequence[Job]) -> Job | None:
    """The first run of the same model, settings and seed: one that `job` may begin with."""
    return next(
        (one for one in jobs[: jobs.index(job)]
         if one.seed == job.seed and (one.config.model, one.config.train) == (job.config.model, job.config.train)),
        None,
    )  # fmt: skip


def shared_steps(job: Job, jobs: Sequence[Job]) -> int:
    """The last checkpoint of its base before which both train on the same samples."""
    base = base_of(job, jobs)
    if base is None:
        return 0
    interval = base.config.train.checkpoint_interval
    last = min(base.manifest.schedule.steps, job.manifest.schedule.steps) - 1
    for step in range(last - last % interval, 0, -interval):
        same_samples = base.manifest.prefix_sha256(step) == job.manifest.prefix_sha256(step)
        if same_samples and rate_course(base, step) == rate_course(job, step):
            return step
    return 0


def rate_course(job: Job, step: int) -> tuple[list[int], int | None, list[StageRate]]:
    """What decides the learning rate before `step`: its restarts, the end that it decays to, stages with a schedule."""
    planned = planned_settings(job.config, job.manifest.schedule)
    restarts = [restart for restart in planned.restarts if restart < step]
    return restarts, planned.end, [stage for stage in planned.stages if stage.begin < step]


# Runs.


def check_same(job: Job) -> None:
    """Raise InputError if the run was begun with other settings: its results would count for these."""
    if (before := job.note.get("key")) in (None, job.key):
        return
    was, now = (_flat(json.loads(key[1])) for key in (before, job.key))
    differ = [f"{key} was {was.get(key)}, is {now.get(key)}" for key in now if was.get(key) != now[key]]
    raise InputError(
        f"{job.out} was begun with other settings ({'; '.join(differ[:3]) or 'another plan'}). "
        f"Move or remove {job.out.parents[job.setting.count('/')]}, or use the earlier settings"
    )


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return flat


def run_all(
    todo: Sequence[Job], jobs: Sequence[Job], shared: Mapping[Job, int], first: Mapping[Job, int], at_once: int
) -> list[Job]:
    """Train and evaluate, `at_once` runs at a time; return those that failed.

    A run begins with its `shared` steps and trains from its `first` one on; it may have passed that already.
    """
    _CONTEXT.set_forkserver_preload(["__main__", "trainer.train", "trainer.training.session", "trainer.evaluate",
                                      "composer.utils.parallelism"])  # fmt: skip
    futures: dict[Job, Future[float]] = {}
    total = sum(job.manifest.schedule.steps - first[job] for job in todo)
    failed: list[Job] = []
    with (
        ThreadPoolExecutor(at_once) as pool,
        tqdm(total=total, desc="train", unit="step", disable=None, smoothing=0.02) as bar,
    ):
        say = threading.Lock()
        for number, job in enumerate(todo, 1):
            base = base_of(job, jobs)

            def work(job: Job = job, base: Job | None = base, number: int = number) -> float:
                begun = time.monotonic()
                try:
                    if shared[job] and base in futures:
                        futures[base].result()  # begun before this one, as `todo` is ordered
                    run_one(job, base, shared[job], first[job], bar.update)
                except RuntimeError as error:
                    with say:
                        failed.append(job)
                        bar.write(f"[{number}/{len(todo)}] {job.name}: {error}")
                    raise
                seconds = time.monotonic() - begun
                with say:
                    bar.write(f"[{number}/{len(todo)}] {job.name}: steps {first[job]:,} to "
                              f"{job.manifest.schedule.steps:,} in {seconds:.0f} s; {last_scores(job)}")  # fmt: skip
                return seconds

            futures[job] = pool.submit(work)
        try:
            wait(futures.values())
        except KeyboardInterrupt:  # the runs get the signal as well, and save
            pool.shutdown(cancel_futures=True)
            sys.exit("stopped; the same command continues")
    return failed


def run_one(job: Job, base: Job | None, shared: int, seen: int, advance: Callable[[int], object]) -> None:
    """Continue one run at step `seen`. Raises RuntimeError, with its last message, if a command fails."""
    job.write_note(shared, done=False)
    if base is not None and shared and not (job.out / "checkpoints").is_dir():
        begin_with(job, base, shared)
    printed = Path(f"{job.out}.txt")
    printed.unlink(missing_ok=True)
    process = _start("trainer.train", job.arguments, printed)
    while process.is_alive():
        process.join(1.0)
        if (steps := _steps_trained(job.out)) > seen:
            advance(steps - seen)
            seen = steps
    if process.exitcode or _steps_trained(job.out) < job.manifest.schedule.steps:  # it was asked to stop
        raise RuntimeError(last_words(printed))
    advance(job.manifest.schedule.steps - seen)
    remove_stops(job, shared)
    last = ["--sets", ",".join(name for name in ("dev", "test") if getattr(job.config.evaluate, name))]
    for options in (["--all", "--every", str(_EVERY)], last):  # along the way and the chosen one; the last one
        process = _start("trainer.evaluate", [*job.arguments, *options], printed)
        process.join()
        if process.exitcode:
            raise RuntimeError(last_words(printed))
    job.write_note(shared, done=True)


def last_words(printed: Path) -> str:
    """The file that says why a run did not finish, and the last error in it, if any."""
    lines = [line for line in printed.read_text(errors="replace").splitlines() if "error: " in line.lower()]
    return "\n    ".join([f"did not finish, see {printed}", *lines[-1:]])


def remove_stops(job: Job, shared: int) -> None:
    """Remove checkpoints of an interruption, so that results do not depend on when a study was stopped."""
    schedule, interval = job.manifest.schedule, job.config.train.checkpoint_interval
    planned = {shared, *checkpoint_steps(schedule, {}, interval, schedule.steps)}
    for folder in (job.out / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) not in planned:
            shutil.rmtree(folder)


def begin_with(job: Job, base: Job, step: int) -> None:
    """Copy the base's checkpoint of a step, its log and its evaluations until then, the checkpoint last."""
    name = f"step-{step:08d}"
    for folder in (f"evaluations/step-{earlier:08d}" for earlier in range(1, step + 1)):
        if (base.out / folder).is_dir():
            shutil.copytree(base.out / folder, job.out / folder, dirs_exist_ok=True)
    job.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base.out / "log.csv", job.out / "log.csv")
    partial = job.out / "copying"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base.out / "checkpoints" / name, partial / name)
    partial.rename(job.out / "checkpoints")


def _start(module: str, arguments: list[str], printed: Path) -> multiprocessing.process.BaseProcess:
    with Path("runs/study/commands.txt").open("a") as file:
        file.write(f"python {module.replace('.', '/')}.py {' '.join(arguments)}\n")
    process = _CONTEXT.Process(target=_command, args=(module, arguments, str(printed)))
    process.start()
    return process


def _command(module: str, arguments: list[str], printed: str) -> None:
    """A command of the trainer in a process forked from one that has imported it, on one thread."""
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    if module == "trainer.train":
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    import torch

    torch.set_num_threads(1)
    try:
        sys.modules[module].main(arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips exit handlers; streaming removes its shared memory in one


def _steps_trained(out: Path) -> int:
    """The steps so far, by the last line of the log."""
    try:
        with (out / "log.csv").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return int(file.read().splitlines()[-1].split(b",")[0]) + 1
    except (OSError, ValueError, IndexError):
        return 0


# Results.


def done_runs(jobs: Sequence[Job]) -> list[findings.StudyRun]:
    """Finished runs, in the form that findings take."""
    return [findings.StudyRun.read(job.setting, job.seed, job.out) for job in jobs]


def last_scores(job: Job) -> str:
    """BLEU of the last checkpoint."""
    run = findings.StudyRun.read(job.setting, job.seed, job.out)
    return "BLEU " + ", ".join(f"{name} {run.score(name):.1f}" for name in run.directions)


def note_time(seconds: float, worked: bool) -> None:
    """Add to the time of the study, over all calls of the command that had something to do."""
    path = Path("runs/study/times.json")
    times = json.loads(path.read_text()) if path.is_file() else []
    if worked:
        path.write_text(json.dumps([*times, round(seconds)]))


if __name__ == "__main__":
    main()
