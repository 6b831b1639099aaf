"""Train a small Llama on the batches of a manifest with the Trainer of transformers. Run again to resume.

python examples/hf_trainer.py [MANIFEST] [OUT] [STEPS]
torchrun --nproc_per_node 2 examples/hf_trainer.py [MANIFEST] [OUT] [STEPS]
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from plain_pytorch import MANIFEST, small_llama
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoConfig, Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import dataengine

OUT, ACCUMULATION = "runs/examples/hf_trainer", 2


class Microbatches(IterableDataset):
    """A rank's part of each batch, in ACCUMULATION pieces."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.batches:
            columns = (torch.from_numpy(column) for column in (batch.tokens, batch.labels, batch.sample_ids))
            pieces = zip(*(column.tensor_split(ACCUMULATION) for column in columns), strict=True)
            for tokens, labels, ids in pieces:
                labels = labels[:, 1:].contiguous()  # both keys: the Trainer counts `labels`, the loss takes the other
                yield {"input_ids": tokens[:, :-1], "labels": labels, "shift_labels": labels, "sample_ids": ids}


class PlanTrainer(Trainer):
    """The Trainer with the digest of all samples in its log."""

    digest = ""

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=None, num_workers=1)  # each rank reads its own part already

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, torch.Tensor]], Any]:
        pieces, targets = super().get_batch_samples(*args)  # of one optimizer step
        ids = torch.cat([piece.pop("sample_ids") for piece in pieces]).to(self.args.device)
        ids = self.accelerator.gather(ids).cpu().numpy()
        self.digest = dataengine.next_digest(self.digest, self.state.global_step, ids)
        return pieces, targets.clamp(min=1)  # no label of a step may count

    def log(self, logs: dict[str, Any], *args: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return super().log(logs, *args)
        super().log({**logs, "digest": self.digest}, *args)
        if self.is_world_process_zero():
            norm = f"gradient norm {logs['grad_norm']!r}"
            print(f"step {self.state.global_step}: loss {logs['loss']!r}, {norm}, digest {self.digest}", flush=True)


def train(manifest: dataengine.Manifest, out: Path, steps: int) -> None:
    """Train up to step `steps`, from the last checkpoint in `out` if there is one."""
    args = TrainingArguments(
        str(out),
        max_steps=steps,
        gradient_accumulation_steps=ACCUMULATION,
        ignore_data_skip=True,  # the batches begin at the checkpoint's step
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=10,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    model = small_llama(manifest)
    model.config.plan_id = manifest.plan_id  # kept in the config.json of each checkpoint
    state, checkpoint = TrainerState(), get_last_checkpoint(out) if out.is_dir() else None
    if checkpoint:
        state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        same = AutoConfig.from_pretrained(checkpoint).plan_id == manifest.plan_id
        assert same, f"{checkpoint} is from another plan: give another folder"
    batches = manifest.batches(state.global_step, rank=args.process_index, world_size=args.world_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer = PlanTrainer(model, args, train_dataset=Microbatches(batches), optimizers=(optimizer, None))
    trainer.digest = next((row["digest"] for row in reversed(state.log_history) if "digest" in row), "")
    trainer.train(resume_from_checkpoint=checkpoint)


if __name__ == "__main__":
    manifest = dataengine.read_manifest(*sys.argv[1:2] or [MANIFEST])
    train(manifest, Path(*sys.argv[2:3] or [OUT]), int(*sys.argv[3:4] or [manifest.schedule.steps]))
