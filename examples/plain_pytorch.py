"""Train a small Llama on the batches of a manifest with PyTorch and transformers alone. Run again to resume.

python examples/plain_pytorch.py [MANIFEST] [OUT] [STEPS]
"""

import os
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import dataengine

MANIFEST, OUT, SAVE_EVERY = "store/experiments/mini/uni_en_zh/manifest.json", "runs/examples/plain_pytorch", 10


def small_llama(manifest: dataengine.Manifest) -> LlamaForCausalLM:
    """The model of these examples, always with the same weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=manifest.vocab_size,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(config)


def mean_loss(model: LlamaForCausalLM, batch: dataengine.Batch) -> torch.Tensor:
    """The mean over the labels of a batch that count; 0 if none does."""
    tokens, labels = torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels)  # (batch_size, seq_len + 1)
    counted = (labels[:, 1:] != -100).sum().clamp(min=1)
    return model(input_ids=tokens, labels=labels, num_items_in_batch=counted).loss  # transformers shifts the labels


def train(manifest: dataengine.Manifest, out: Path, steps: int) -> None:
    """Train up to step `steps`, from the checkpoint in `out` if there is one. Losses go to out/losses.txt."""
    model = small_llama(manifest)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start, losses, checkpoint = 0, [], out / "checkpoint.pt"
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        assert state["plan_id"] == manifest.plan_id, f"{checkpoint} is from another plan: give another folder"
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, losses = state["step"], state["losses"]
    batches = manifest.batches(start)[: max(steps - start, 0)]  # the whole state of the data is the step
    for batch in DataLoader(batches, batch_size=None, num_workers=1):
        loss = mean_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        done = batch.step + 1
        print(f"step {done}: loss {losses[-1]:.4f}")
        if done % SAVE_EVERY == 0 or done == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "losses": losses}
            torch.save({**state, "plan_id": manifest.plan_id}, out / "checkpoint.new")
            os.replace(out / "checkpoint.new", checkpoint)  # whole or not at all
    (out / "losses.txt").write_text("".join(f"{loss!r}\n" for loss in losses))


if __name__ == "__main__":
    manifest = dataengine.read_manifest(*sys.argv[1:2] or [MANIFEST])
    train(manifest, Path(*sys.argv[2:3] or [OUT]), int(*sys.argv[3:4] or [manifest.schedule.steps]))
