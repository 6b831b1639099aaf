"""Start training ranks cheaply: one warm process imports Composer and forks a process a rank."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.ports import free_port
from trainer.run.log_csv import read_log

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["trainer.train", "trainer.training.session", "composer.utils.parallelism"])
DEADLINE_S = 240


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment that Composer's launcher gives a rank of one machine, and the variables of a bucket."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **thread_and_bucket(),
    }


def thread_and_bucket() -> dict[str, str]:
    """One thread, and the variables by which a process reaches the test's bucket."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "S3_", "NO_PROXY", "HF_"))}
    return {"OMP_NUM_THREADS": "1", **passed}


def start(config: Path, out: Path, *overrides: str, ranks: int = 2, probe: str = "") -> list[ForkServerProcess]:
    """Start the ranks of a run; their output goes to OUT.rank0.txt and so on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = []
    for rank in range(ranks):
        environment = rank_environment(rank, ranks, port)
        printed = out.with_name(f"{out.name}.rank{rank}.txt")
        arguments = (environment, str(config), [f"out={out}", *overrides], printed, probe)
        processes.append(CONTEXT.Process(target=_train_rank, args=arguments))
        printed.unlink(missing_ok=True)  # of the start before
        processes[-1].start()
    return processes


def finish(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    """Wait for the ranks to end; return their exit codes. Ends them all if they take too long."""
    deadline = time.monotonic() + DEADLINE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def train(config: Path, out: Path, *overrides: str, ranks: int = 2, probe: str = "") -> list[dict[str, str]]:
    """Run to the end; return the log. Fails with what rank 0 printed."""
    codes = finish(start(config, out, *overrides, ranks=ranks, probe=probe))
    assert codes == [0] * ranks, (codes, printed(out))
    return read_log(out / "log.csv")


def refuse(config: Path, out: Path, *overrides: str, ranks: int = 2) -> str:
    """Start a run that must end with exit code 2 on every rank; return the one message of rank 0."""
    codes = finish(start(config, out, *overrides, ranks=ranks))
    assert codes == [2] * ranks, (codes, printed(out))
    assert "Traceback" not in printed(out)
    return next(line for line in printed(out).splitlines() if line.startswith("error: "))


def kill_at(processes: Sequence[ForkServerProcess], out: Path, rows: int, delay_s: float = 0.0) -> None:
    """SIGKILL all ranks once the log has this number of rows, or a little later."""
    deadline = time.monotonic() + DEADLINE_S
    log = out / "log.csv"
    while not (log.is_file() and len(read_log(log)) >= rows):
        assert time.monotonic() < deadline, printed(out)
        assert processes[0].is_alive(), printed(out)
        time.sleep(0.005)
    time.sleep(delay_s)
    for process in processes:
        os.kill(process.pid or 0, signal.SIGKILL)
    for process in processes:
        process.join()


def wait_for(pattern: str, out: Path) -> re.Match[str]:
    """Wait until rank 0 has printed something."""
    deadline = time.monotonic() + DEADLINE_S
    path = out.with_name(f"{out.name}.rank0.txt")
    while (found := re.search(pattern, printed(out) if path.is_file() else "")) is None:
        assert time.monotonic() < deadline, printed(out)
        time.sleep(0.01)
    return found


def printed(out: Path) -> str:
    """What rank 0 of the last start printed."""
    return out.with_name(f"{out.name}.rank0.txt").read_text(errors="replace")


def _train_rank(environment: dict[str, str], config: str, overrides: list[str], printed: Path, probe: str) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in a run by the launcher
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    import trainer.preflight.check
    import trainer.run.signals
    import trainer.train
    import trainer.training.composer_trainer
    import trainer.training.session
    import trainer.training.start

    trainer.run.signals.WAIT_FOR_RANK_0_S = 3.0  # no launcher ends the others
    torch.set_num_threads(1)
    if probe == "random":
        _draw_random_numbers(trainer.training.session)
    if probe == "cuda":
        _seem_to_have_cuda(trainer.training.composer_trainer)
    if probe == "memory of a GPU":
        trainer.preflight.check.check_auto = lambda train: []
        import dataengine.hardware.gpus
        import trainer.model.microbatch

        trainer.model.microbatch.own_gpu = lambda: dataengine.hardware.gpus.Gpu("Test", 10**9)
    if probe == "mesh of one":
        trainer.training.composer_trainer.is_sharded = lambda world_size: True
    if probe == "nan" and environment["RANK"] == "1":
        _lose_a_number()
    if probe == "stray" and environment["RANK"] == "1":
        _stray_from_the_plan()
    if probe == "die":
        _die_before_the_first_step(trainer.training.session)
    if ":" in probe:
        _apply(probe)
    if probe == "hang":
        _hang(environment["RANK"] == "1")
    trainer.train.main([config, *overrides])
    sys.exit("main returns only through sys.exit")


def _seem_to_have_cuda(module: Any) -> None:
    """Let checkpoints hold what those of a run on CUDA do: a random state of the device, and a fused optimizer."""
    import torch

    import trainer.training.callbacks.rng

    own, make = trainer.training.callbacks.rng.own_rng_state, module.make_optimizer
    cuda = torch.full((16,), int(os.environ["RANK"]), dtype=torch.uint8)
    trainer.training.callbacks.rng.own_rng_state = lambda: {**own(), "cuda": cuda}
    module.make_optimizer = lambda model, config, *, fused: make(model, config, fused=True)


def _lose_a_number() -> None:
    """Let the first microbatch of step 6 on this rank have a NaN loss."""
    import trainer.model.composer_model

    own, calls = trainer.model.composer_model.TranslationModel.loss, iter(range(1000))

    def loss(model: Any, outputs: Any, batch: Any) -> Any:
        return own(model, outputs, batch) * (float("nan") if next(calls) == 6 * 2 else 1.0)

    trainer.model.composer_model.TranslationModel.loss = loss  # type: ignore[method-assign, assignment]


def _apply(probe: str) -> None:
    """Spoil something: by `loss:ID,ID:FACTOR` losses with these samples, by `weight:STEP` a weight of rank 1."""
    import torch

    import trainer.model.composer_model
    import trainer.training.callbacks.save
    import trainer.training.finite

    kind, which, *rest = probe.split(":")
    if kind == "loss":
        own, ids = trainer.model.composer_model.TranslationModel.loss, torch.tensor(list(map(int, which.split(","))))

        def loss(model: Any, outputs: Any, batch: Any) -> Any:
            return own(model, outputs, batch) * (float(rest[0]) if torch.isin(ids, batch["sample_id"]).any() else 1.0)

        trainer.model.composer_model.TranslationModel.loss = loss  # type: ignore[method-assign, assignment]
    elif os.environ["RANK"] == "1":

        def damage(self: Any, state: Any) -> None:
            if state.step == int(which) + 1:
                with torch.no_grad():
                    rows = state.model.decoder.hf.model.embed_tokens.weight.to_local()
                    rows[-1 if kind == "weight" else slice(None), 0] = float("nan")

        trainer.training.callbacks.save.SaveCheckpoints.batch_end = damage  # type: ignore[method-assign]


def _hang(this_rank: bool) -> None:
    """Let the first microbatch of step 6 on this rank never end, and let that be noticed sooner than in life."""
    import trainer.model.composer_model
    import trainer.training.pulse

    trainer.training.pulse.BEAT_S, trainer.training.pulse.STUCK_S, trainer.training.pulse.GRACE_S = 0.2, 5.0, 1.0
    own, calls = trainer.model.composer_model.TranslationModel.loss, iter(range(1000))

    def loss(model: Any, outputs: Any, batch: Any) -> Any:
        if next(calls) == 6 * 2:
            time.sleep(1000)
        return own(model, outputs, batch)

    if this_rank:
        trainer.model.composer_model.TranslationModel.loss = loss  # type: ignore[method-assign]


def _stray_from_the_plan() -> None:
    """Let this rank's loader give two samples of step 3 in each other's place."""
    from dataengine.schedule.reader import PlannedSamples, PlanReader

    own = PlanReader.each

    def exchanged(reader: PlanReader, steps: range, start: int, stop: int) -> Iterator[PlannedSamples]:
        for step, found in zip(steps, own(reader, steps, start, stop), strict=True):
            yield reader.read_ids(found.sample_ids[[1, 0, 2, 3]]) if step == 3 else found  # 4 of 2 ranks each

    PlanReader.each = exchanged  # type: ignore[method-assign, assignment]


def _die_before_the_first_step(module: Any) -> None:
    """End as by a loss of power, once the run's folder is prepared."""

    def make(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    module.make_trainer = make


def _draw_random_numbers(module: Any) -> None:
    """Let every step draw a random number on each rank and note it in OUT/random.RANK.txt."""
    from trainer.training.callbacks.protocol import Callback, State
    from trainer.training.composer_adapter import adapt

    class Probe(Callback):
        def __init__(self, path: Path) -> None:
            self.path = path

        def after_loss(self, state: State) -> None:
            import torch

            with self.path.open("a") as file:
                file.write(f"{state.step} {torch.rand(1).item()!r}\n")

    make = module.make_trainer

    def make_with_probe(config: Any, *arguments: Any, **named: Any) -> Any:
        made = make(config, *arguments, **named)
        Path(config.out).mkdir(parents=True, exist_ok=True)
        made.state.callbacks.append(adapt(Probe(Path(config.out) / f"random.{os.environ['RANK']}.txt")))
        return made

    module.make_trainer = make_with_probe
