"""Train an experiment without Composer and streaming: python -m tests.end_to_end.plain_loop CONFIG [RANKS OUT ...]

The loop that would replace `composer_trainer`, `composer_adapter` and `data/dataset`: torch, FSDP2, the reading of
`dataengine`, and the trainer's own callbacks and checkpoints. On CPU only; on a GPU it would need the device and a
MixedPrecisionPolicy of bf16. Ranks are forked from one process, which has imported everything.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from dataengine.build.experiment import experiment_url
from dataengine.config.load import load_config
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.schedule.reader import Batch
from tests.end_to_end.ranks import rank_environment
from tests.ports import free_port
from trainer.checkpoints.steps import last_step
from trainer.model.microbatch import choose_microbatch
from trainer.model.optimizer import make_optimizer
from trainer.model.packed import PackedDecoder, build_decoder
from trainer.run.folder import open_run
from trainer.run.ranks import ProcessGroup, Ranks
from trainer.training.callbacks.make import make_callbacks
from trainer.training.callbacks.protocol import Callback
from trainer.training.callbacks.rng import RestoreRng
from trainer.training.callbacks.stop import StopRequest
from trainer.training.restore import load_state
from trainer.training.resume import find_beginning, prepare_folder


@dataclass
class Loop:
    """A training, as its callbacks see it. Checkpoints are a part of Composer's, under the same names."""

    model: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    callbacks: list[Callback]
    step: int
    batch: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.zeros(()), torch.zeros(0)))
    loss: float = float("nan")
    stopped: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def run_event(self, name: str) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(self)

    def train(self, batch: Mapping[str, Tensor], microbatch: int) -> None:
        """One step."""
        self.batch = batch
        self.run_event("batch_start")
        self.optimizer.zero_grad()
        parts = [
            {name: part[first : first + microbatch] for name, part in batch.items()}
            for first in range(0, len(batch["tokens"]), microbatch)
        ]
        counts, total = [count_labels(part) for part in parts], torch.zeros(())
        counted = torch.tensor(sum(counts))
        distributed.all_reduce(counted)
        average = max(counted.item(), 1) / distributed.get_world_size()
        for self.batch, count in zip(parts, counts, strict=True):
            self.outputs = self.model["decoder"](self.batch["tokens"], self.batch.get("loss_mask"))
            self.run_event("after_loss")
            loss = self.outputs[0] * (count / average)  # gradients are averaged over the ranks
            loss.backward()
            total += loss.detach()
            self.run_event("after_backward")
        self.run_event("after_train_batch")
        self.optimizer.step()
        distributed.all_reduce(total)
        self.loss = total.item() / distributed.get_world_size()
        self.step += 1
        self.run_event("batch_end")
        self.run_event("batch_checkpoint")

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optimizers": {"AdamW": get_optimizer_state_dict(self.model, self.optimizer)},
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in self.callbacks},
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        set_model_state_dict(self.model, content["model"])
        set_optimizer_state_dict(self.model, self.optimizer, content["optimizers"]["AdamW"])
        for callback in self.callbacks if "callbacks" in content else ():
            callback.load_state_dict(content["callbacks"][type(callback).__name__])

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        pass

    def stop(self) -> None:
        self.stopped = True


def train(path: Path, out: str) -> None:
    """Train from the run's newest checkpoint, or from the start, in this process's group."""
    config = load_config(path, [f"out={out}"])
    manifest, run = read_manifest(experiment_url(config)), open_run(config.out, config.cache)
    group = ProcessGroup(Ranks.from_environment())
    begin, rng, stop = find_beginning(config, manifest, run, group), RestoreRng(group.ranks.rank), StopRequest()
    settings = group.run_on_rank0(lambda: prepare_folder(config, manifest, run, begin))
    last = last_step(config.train.max_steps, manifest.schedule)
    microbatch = choose_microbatch(config.model, manifest, config.train, run.folder, group)
    decoder = build_decoder(config.model, manifest, config.train)
    if group.ranks.world_size > 1:
        shard(decoder)
    model = nn.ModuleDict({"decoder": decoder})  # so that weights have the names of `TranslationModel`
    optimizer = make_optimizer(model, config.train, fused=False)
    callbacks = make_callbacks(config, manifest, run, group, begin, settings, rng, last=last, uploader=None, stop=stop)
    loop = Loop(model, optimizer, callbacks, begin.step)
    if begin.checkpoint:
        rng.states = load_state(loop, begin.checkpoint, group, restart=begin.restart)
    loop.run_event("fit_start")
    batches = iter(manifest.batches(begin.step, rank=group.ranks.rank, world_size=group.ranks.world_size))
    while loop.step < last and not loop.stopped:
        loop.run_event("before_dataloader")
        loop.train(to_tensors(manifest, next(batches)), microbatch)
    for callback in callbacks:
        callback.close()


def shard(decoder: PackedDecoder) -> None:
    """Shard each layer, and the rest with the root."""
    for layer in filter(decoder.fsdp_wrap_fn, decoder.modules()):
        fully_shard(layer)
    fully_shard(decoder)


def count_labels(batch: Mapping[str, Tensor]) -> int:
    """The labels of a microbatch that count in the loss."""
    return int(batch["loss_mask"][:, 1:].sum()) if "loss_mask" in batch else batch["tokens"][:, 1:].numel()


def to_tensors(manifest: Manifest, batch: Batch) -> dict[str, Tensor]:
    """The batch as the callbacks expect it."""
    numbers = {stream.name: number for number, stream in enumerate(manifest.streams)}
    tensors = {
        "tokens": torch.from_numpy(batch.tokens),
        "stream": torch.tensor([numbers[name] for name in batch.streams]),
        "sample_id": torch.from_numpy(batch.sample_ids),
    }
    return tensors if batch.loss_mask is None else {**tensors, "loss_mask": torch.from_numpy(batch.loss_mask)}


def start(world_size: int, config: Path, out: str) -> None:
    """Fork the ranks of a run, and wait for them. Exits with 1 if one of them fails."""
    port, context = free_port(), multiprocessing.get_context("fork")
    environments = [rank_environment(rank, world_size, port) for rank in range(world_size)]
    processes = [context.Process(target=_train_rank, args=(one, config, out)) for one in environments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(f"{out} failed on {world_size} ranks")


def _train_rank(environment: dict[str, str], config: Path, out: str) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    train(config, out)
    distributed.barrier()  # the group is left as it is: torch 2.7 may hang where it destroys one of gloo
    imported = " ".join(sorted({"composer", "streaming", "torch"} & sys.modules.keys()))
    sys.stdout.write(f"imported: {imported}\n")  # one write: lines of ranks do not mix, also where stdout is unbuffered
    sys.stdout.flush()


if __name__ == "__main__":
    for world_size, out in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        start(int(world_size), Path(sys.argv[1]), out)
