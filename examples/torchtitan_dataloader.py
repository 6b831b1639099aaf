"""Train the debug model of torchtitan on the batches of a manifest. Run again to resume.

torchrun --nproc_per_node 2 examples/torchtitan_dataloader.py [MANIFEST] [OUT] [STEPS]

In a configuration of your own, set `dataloader=PlanDataLoader.Config(manifest=...)`, and `seq_len` and
`global_batch_size` as in the manifest. Needs torchtitan 0.3.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from plain_pytorch import MANIFEST
from torch.utils.data import DataLoader
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import DebugConfig, TrainingConfig
from torchtitan.models.llama3 import model_registry
from torchtitan.tools.logging import init_logger, logger
from torchtitan.trainer import Trainer

import dataengine

OUT, ACCUMULATION = "runs/examples/torchtitan", 2


class PlanDataLoader(BaseDataLoader):
    """A rank's part of each batch, `local_batch_size` samples at a time. A checkpoint fits any number of ranks."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        manifest: str = MANIFEST

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **_: Any
    ) -> None:
        manifest = dataengine.read_manifest(config.manifest)
        assert manifest.seq_len == seq_len, f"set training.seq_len to {manifest.seq_len}"
        self.plan_id, self.size, self.step, self.digest = manifest.plan_id, local_batch_size, 0, ""
        self.batches = manifest.batches(rank=dp_rank, world_size=dp_world_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        for batch in DataLoader(self.batches[self.step :], batch_size=None, num_workers=1):
            self.step, self.sample_ids = batch.step + 1, batch.sample_ids
            columns = torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels)
            for tokens, labels in zip(*(column.split(self.size) for column in columns), strict=True):
                positions = torch.arange(self.batches.manifest.seq_len).repeat(len(tokens), 1)
                yield {"input": tokens[:, :-1].contiguous(), "positions": positions}, labels[:, 1:].contiguous()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "digest": self.digest, "plan_id": self.plan_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["plan_id"] == self.plan_id, "the checkpoint is from another plan: give another folder"
        self.step, self.digest = state["step"], state["digest"]


class NoTokenizer(BaseTokenizer):
    """The batches are token ids already."""

    encode = decode = get_vocab_size = None

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__()


class PlanTrainer(Trainer):
    """The Trainer with the digest of all samples in its log."""

    def train_step(self, batches: Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]) -> None:
        super().train_step(batches)
        loader, ids = self.dataloader, [self.dataloader.sample_ids]
        assert loader.step == self.step, "set training.global_batch_size to the batch_size of the manifest"
        if self.parallel_dims.dp_enabled:
            group = self.parallel_dims.get_mesh("batch").get_group()
            ids *= group.size()
            torch.distributed.all_gather_object(ids, loader.sample_ids, group)
        loader.digest = dataengine.next_digest(loader.digest, self.step - 1, np.concatenate(ids))
        logger.info(f"step {self.step}: digest {loader.digest}")


def configured(path: str, out: str, steps: int | None) -> Trainer.Config:
    """The debug model of torchtitan, with the vocabulary and the batches of a manifest."""
    manifest, spec = dataengine.read_manifest(path), model_registry("debugmodel")
    spec.model.vocab_size = manifest.vocab_size
    spec.model.tok_embeddings.num_embeddings = spec.model.lm_head.out_features = manifest.vocab_size
    part = manifest.batch_size // int(os.environ["WORLD_SIZE"])
    return Trainer.Config(
        model_spec=spec,
        dump_folder=out,
        tokenizer=NoTokenizer.Config(),
        dataloader=PlanDataLoader.Config(manifest=path),
        loss=CrossEntropyLoss.Config(global_vocab_size=manifest.vocab_size),
        optimizer=default_adamw(),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=part // ACCUMULATION,
            global_batch_size=manifest.batch_size,
            seq_len=manifest.seq_len,
            steps=steps or manifest.schedule.steps,
        ),
        metrics=MetricsProcessor.Config(log_freq=1),
        debug=DebugConfig(seed=0),
        checkpoint=CheckpointManager.Config(enable=True, interval=10, last_save_model_only=False),
    )


if __name__ == "__main__":
    init_logger()
    path, out, steps = sys.argv[1:2] or [MANIFEST], sys.argv[2:3] or [OUT], sys.argv[3:4] or [0]
    trainer = PlanTrainer(configured(*path, *out, int(*steps)))
    trainer.train()
    trainer.close()
    torch.distributed.destroy_process_group()
