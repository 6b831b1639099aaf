"""Train a small Llama on the batches of a manifest with Lightning. Run again to resume.

python examples/lightning_module.py [MANIFEST] [OUT] [STEPS]
torchrun --nproc_per_node 2 examples/lightning_module.py [MANIFEST] [OUT] [STEPS]

`lightning.pytorch` has the same classes as `pytorch_lightning`: in one program, import only one of them.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from plain_pytorch import MANIFEST, small_llama
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

import dataengine

OUT = "runs/examples/lightning"


class Remaining(IterableDataset):
    """The batches from some step on, without a length: Lightning counts from the first step of the run."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            yield {"step": batch.step, "tokens": batch.tokens, "labels": batch.labels, "sample_ids": batch.sample_ids}


class Plan(pl.LightningDataModule):
    """The batches of a manifest. A checkpoint keeps the number of steps and their digest."""

    def __init__(self, manifest: dataengine.Manifest) -> None:
        super().__init__()
        self.manifest, self.step, self.digest = manifest, 0, ""

    def train_dataloader(self) -> DataLoader:
        part = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return DataLoader(Remaining(self.manifest.batches(self.step, **part)), batch_size=None, num_workers=1)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "digest": self.digest, "plan_id": self.manifest.plan_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["plan_id"] == self.manifest.plan_id, "the checkpoint is from another plan: give another folder"
        self.step, self.digest = state["step"], state["digest"]


class Model(pl.LightningModule):
    """A small Llama. Prints loss and digest of each step."""

    def __init__(self, manifest: dataengine.Manifest) -> None:
        super().__init__()
        self.model = small_llama(manifest)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        tokens, labels = batch["tokens"], batch["labels"]
        counted = self.all_gather((labels[:, 1:] != -100).sum()).sum().clamp(min=1) / self.trainer.world_size
        loss = self.model(input_ids=tokens, labels=labels, num_items_in_batch=counted).loss  # it shifts the labels
        plan, ids = self.trainer.datamodule, self.all_gather(batch["sample_ids"]).flatten().cpu().numpy()
        plan.step, plan.digest = batch["step"] + 1, dataengine.next_digest(plan.digest, batch["step"], ids)
        mean = self.all_gather(loss.detach()).mean().item()
        if self.trainer.is_global_zero:
            print(f"step {plan.step}: loss {mean!r}, digest {plan.digest}", flush=True)
        return loss


if __name__ == "__main__":
    manifest = dataengine.read_manifest(*sys.argv[1:2] or [MANIFEST])
    out, steps = Path(*sys.argv[2:3] or [OUT]), int(*sys.argv[3:4] or [manifest.schedule.steps])
    trainer = pl.Trainer(
        max_steps=steps,
        gradient_clip_val=1.0,
        devices=int(os.environ.get("WORLD_SIZE", 1)),
        callbacks=[ModelCheckpoint(out, "last", every_n_train_steps=10, enable_version_counter=False)],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(Model(manifest), datamodule=Plan(manifest), ckpt_path="last" if (out / "last.ckpt").is_file() else None)
