"""How fast a training step is against a plain PyTorch loop: `python benchmarks/train_step.py [--full]`.

Ours is the trainer as a run uses it, on one rank: a real plan over streams built here, loader workers, FSDP, the sample
tracker, the loss-spike monitor and the log of every step. The peer is the same decoder, loss, AdamW, clipping and
microbatches in a bare loop with its tokens in memory. Both run in one process and take turns of several steps; medians
over the turns. `_checks` is the share of our step spent in checks and logs.

step_cpu              the model of yamls/base/mini.yaml, fp32
step_cuda_1b          TinyLlama 1.1B, bf16; skipped with a note where there is no CUDA device. Not run so far.
checkpoints_cpu       the mini model with a checkpoint every 10 steps; the peer is the same run in turns without one
checkpoint_stall_cpu  time that training waits for a checkpoint; the peer writes the same state in place
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": "0"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29476"}

import torch  # noqa: E402
from composer import Trainer  # noqa: E402
from torch.distributed import checkpoint as dcp  # noqa: E402

from benchmarks.gpu.check import SMALL  # noqa: E402
from benchmarks.rows import Row, show, to_stderr  # noqa: E402
from dataengine.build.build import build  # noqa: E402
from dataengine.config.load import load_config  # noqa: E402
from dataengine.config.schema import Config  # noqa: E402
from dataengine.hardware.flops import flops_per_token  # noqa: E402
from dataengine.hardware.sizes import num_parameters  # noqa: E402
from dataengine.schedule.manifest import Manifest  # noqa: E402
from dataengine.schedule.rates import planned_settings  # noqa: E402
from trainer.model.composer_model import TranslationModel, build_model  # noqa: E402
from trainer.model.device import device_peak  # noqa: E402
from trainer.model.microbatch import choose_microbatch  # noqa: E402
from trainer.model.optimizer import make_optimizer  # noqa: E402
from trainer.run.folder import open_run  # noqa: E402
from trainer.run.ranks import ProcessGroup, Ranks  # noqa: E402
from trainer.training.callbacks.gradients import ClipGradients  # noqa: E402
from trainer.training.callbacks.make import make_callbacks  # noqa: E402
from trainer.training.callbacks.protocol import Callback, State  # noqa: E402
from trainer.training.callbacks.rng import RestoreRng  # noqa: E402
from trainer.training.callbacks.save import SaveCheckpoints  # noqa: E402
from trainer.training.callbacks.settings import OptimizerSettings  # noqa: E402
from trainer.training.callbacks.stop import StopRequest  # noqa: E402
from trainer.training.composer_adapter import Adapter, adapt  # noqa: E402
from trainer.training.composer_trainer import join_group, make_trainer  # noqa: E402
from trainer.training.resume import Beginning  # noqa: E402
from trainer.training.session import end_workers  # noqa: E402

COMMON = {
    "tokenizer": str(ROOT / "demo/data/tokenizer.model"),
    "streams": {"mono": {"documents": [str(ROOT / "demo/data/mono.en.jsonl.zst")], "passes": 1000}},
}
CPU = {**SMALL, "batch_size": 16, "train": {"microbatch_size": 8, "loader_workers": 1}}
CUDA = {"seq_len": 2048, "batch_size": 32, "train": {"microbatch_size": 8, "loader_workers": 2}}


@dataclass(eq=False)
class Turns(Callback):
    """Let the peer take `steps` steps after each `steps` of ours; record both times."""

    steps: int
    peer: Callable[[], None]
    ours_s: list[float] = field(default_factory=list)  # a step
    peer_s: list[float] = field(default_factory=list)
    checks_s: list[float] = field(default_factory=list)  # a step of ours
    spent: float = 0.0  # in checks, since the turn began
    count: int = 0
    begun: float = 0.0

    def batch_checkpoint(self, state: State) -> None:
        """The last event of a step."""
        self.count += 1
        if self.count % self.steps:
            return
        _wait()
        now = time.perf_counter()
        if self.count > self.steps:  # the first turn warms up
            self.ours_s.append((now - self.begun) / self.steps)
            self.checks_s.append(self.spent / self.steps)
        for _ in range(self.steps):
            self.peer()
        _wait()
        self.spent, self.begun = 0.0, time.perf_counter()
        if self.count > self.steps:
            self.peer_s.append((self.begun - now) / self.steps)


@dataclass(eq=False)
class Windows(Callback):
    """Time `steps` steps that begin with a checkpoint, and as many without one, in turn."""

    steps: int
    save: SaveCheckpoints
    with_s: list[float] = field(default_factory=list)
    without_s: list[float] = field(default_factory=list)
    stall_s: list[float] = field(default_factory=list)  # of the training, by a checkpoint
    begun: float = 0.0

    def batch_checkpoint(self, state: State) -> None:
        """Save at the end of each second window; its time is in the next one."""
        if state.step % self.steps:
            return
        now, window = time.perf_counter(), state.step // self.steps
        if window > 2:  # the first windows warm up
            (self.with_s if window % 2 else self.without_s).append(now - self.begun)
        if window % 2 == 0:
            self.save.save_now(state)
            self.stall_s.append(time.perf_counter() - now)
        self.begun = now


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="15 turns of 20 steps (default: 5 of 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    turns, steps = (15, 20) if options.full else (5, 10)
    with to_stderr():
        join_group(timeout_s=900)
    for row, values in (("step_cpu", CPU), ("step_cuda_1b", CUDA)):
        if (row == "step_cuda_1b") != torch.cuda.is_available():
            which = "a" if torch.cuda.is_available() else "no"
            print(f"{row}: not run, because there is {which} CUDA device", file=sys.stderr, flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="step-") as folder, to_stderr():
            found = measure(values, Path(folder), turns, steps)
        peer = f"plain loop, torch {torch.__version__}"
        ratio = found["ours"] / found["peer"]
        found_rows = [
            Row(row, found["ours"], "tokens/s", peer, found["peer"], ratio, runs=turns),
            Row(f"{row}_checks", found["checks"], "of a step", runs=turns),
            Row(f"{row}_mb", found["memory_gb"] * 1e3, "MB", runs=turns),
            *([Row(f"{row}_mfu", found["mfu"], "of the peak", runs=turns)] if found["mfu"] else []),
        ]
        for one in found_rows:
            show(one, as_json=options.json)
    if not torch.cuda.is_available():
        with tempfile.TemporaryDirectory(prefix="step-") as folder, to_stderr():
            found = measure_checkpoints(Path(folder), turns)
        ours, without, stall, in_place = (found[name] for name in ("with", "without", "stall", "in_place"))
        peer = f"torch.distributed.checkpoint {torch.__version__}"
        for one in (
            Row("checkpoints_cpu", ours, "tokens/s", "without checkpoints", without, ours / without, runs=turns),
            Row("checkpoint_stall_cpu", stall, "ms", peer, in_place, in_place / stall, runs=turns),
        ):
            show(one, as_json=options.json)


def measure_checkpoints(folder: Path, turns: int, steps: int = 10) -> dict[str, float]:
    """Train with a checkpoint in each second window of steps; tokens/s of both, and ms that a checkpoint costs."""
    values = {**CPU, "train": {**CPU["train"], "checkpoint_interval": 10**6, "keep_checkpoints": 1}}
    _, manifest, _, trainer = prepare(values, folder, (2 * turns + 3) * steps)
    save = next(found for found in map(_callback, trainer.state.callbacks) if isinstance(found, SaveCheckpoints))
    watch = Windows(steps, save)
    trainer.state.callbacks.insert(len(trainer.state.callbacks) - 2, adapt(watch))
    try:
        trainer.fit()
        in_place = []
        for turn in range(turns):
            begun = time.perf_counter()
            dcp.save({"state": trainer.state.state_dict()}, checkpoint_id=folder / f"in_place{turn}")
            in_place.append(time.perf_counter() - begun)
        trainer.close()
    finally:
        end_workers()
    tokens = steps * manifest.batch_size * manifest.seq_len
    return {
        "with": tokens / statistics.median(watch.with_s),
        "without": tokens / statistics.median(watch.without_s),
        "stall": 1e3 * statistics.median(watch.stall_s),
        "in_place": 1e3 * statistics.median(in_place),
    }


def _callback(adapter: object) -> object:
    return getattr(adapter, "callback", None)


def measure(values: dict[str, Any], folder: Path, turns: int, steps: int) -> dict[str, Any]:
    """Train for several turns of several steps; tokens/s of both, and the other columns of the table."""
    total = (turns + 1) * steps
    config, manifest, microbatch, trainer = prepare(values, folder, total)
    watch = Turns(steps, plain_loop(config, manifest, microbatch))
    for adapter in trainer.state.callbacks:
        assert isinstance(adapter, Adapter)
        if not isinstance(adapter.callback, ClipGradients | OptimizerSettings):  # the peer clips, too
            _time(adapter.callback, watch)
    trainer.state.callbacks.insert(len(trainer.state.callbacks) - 2, adapt(watch))  # before checkpoints are saved
    try:
        trainer.fit()
        trainer.close()
    finally:
        end_workers()
    tokens = manifest.batch_size * manifest.seq_len
    ours = tokens / statistics.median(watch.ours_s)
    peak = device_peak() or cpu_peak()
    return {
        "ours": ours,
        "peer": tokens / statistics.median(watch.peer_s),
        "checks": statistics.median(watch.checks_s) / statistics.median(watch.ours_s),
        "mfu": ours * flops_per_token(config.model, manifest.vocab_size, manifest.seq_len) / peak,
        "memory_gb": _memory_gb(),
        "parameters": num_parameters(config.model, manifest.vocab_size),
    }


def prepare(
    values: dict[str, Any], folder: Path, steps: int, vocab_size: int | None = None
) -> tuple[Config, Manifest, int, Trainer]:
    """Build a store in a folder; return a trainer over it, as a run has it, and its microbatch size.

    `vocab_size` gives the model the vocabulary of another tokenizer, for its size and speed.
    """
    path = folder / "experiment.yaml"
    experiment = {
        **COMMON,
        **values,
        "name": "benchmark",
        "out": str(folder / "run"),
        "store": str(folder / "store"),
        "stages": [{"name": "all", "steps": steps, "mix": {"mono": 1}}],
    }
    path.write_text(json.dumps(experiment))  # JSON is YAML
    config = load_config(path)
    manifest = build(config, workers=1).manifest
    manifest = replace(manifest, vocab_size=vocab_size or manifest.vocab_size)
    run = open_run(config.out, config.cache)
    run.folder.mkdir()
    group = ProcessGroup(Ranks())
    microbatch = choose_microbatch(config.model, manifest, config.train, run.folder, group)
    begin, rng, settings = Beginning(), RestoreRng(0), planned_settings(config, manifest.schedule)
    callbacks = make_callbacks(
        config, manifest, run, group, begin, settings, rng, last=steps, uploader=None, stop=StopRequest()
    )
    trainer = make_trainer(config, manifest, run, group, begin, callbacks, rng, last=steps, microbatch=microbatch)
    return config, manifest, microbatch, trainer


def plain_loop(config: Config, manifest: Manifest, microbatch: int) -> Callable[[], None]:
    """A step of the same model in a bare loop."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: TranslationModel = build_model(config.model, manifest, config.train).to(device)
    optimizer = make_optimizer(model, config.train, fused=device == "cuda")
    size = (8, manifest.batch_size, manifest.seq_len + 1)
    batches = torch.randint(0, manifest.vocab_size, size, device=device)
    turn: Iterator[int] = iter(range(1 << 30))
    parameters = list(model.parameters())

    def step() -> None:
        for part in batches[next(turn) % len(batches)].split(microbatch):
            with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
                loss = model({"tokens": part})[0]
            (loss * (len(part) / manifest.batch_size)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def cpu_peak() -> float:
    """Operations per second of a large fp32 product on this CPU."""
    left, right = torch.rand(1024, 1024), torch.rand(1024, 1024)
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begun)
    return 2 * 1024**3 / min(times)


def _time(callback: Callback, watch: Turns) -> None:
    """Add the time of a callback's hooks to `watch.spent`."""
    for name in ("before_dataloader", "batch_start", "after_loss", "after_train_batch", "batch_end"):
        if name in type(callback).__dict__:
            setattr(callback, name, _timed(getattr(callback, name), watch))


def _timed(hook: Callable[[State], None], watch: Turns) -> Callable[[State], None]:
    def call(state: State) -> None:
        begun = time.perf_counter()
        hook(state)
        watch.spent += time.perf_counter() - begun

    return call


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory_gb() -> float:
    import psutil

    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
    return peak / 1e9


if __name__ == "__main__":
    main()
