"""Train a small Llama on the batches of a manifest, read by the worker processes of Grain. Run again to resume.

python examples/grain_source.py [MANIFEST] [OUT] [STEPS]

The batches of a manifest are a data source of Grain as they are. This example trains with PyTorch; with JAX, give
`rank=jax.process_index(), world_size=jax.process_count()` to `batches`, and save the state of the iterator with Orbax.
"""

import os
import sys
from pathlib import Path

import grain

import dataengine

MANIFEST, OUT, SAVE_EVERY = "store/experiments/mini/uni_en_zh/manifest.json", "runs/examples/grain", 10


def loader(batches: grain.sources.RandomAccessDataSource, workers: int = 2) -> grain.DatasetIterator:
    """The batches in the order of the plan, from any number of workers. Grain would read 500 batches ahead."""
    dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    return iter(dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))


def train(manifest: dataengine.Manifest, out: Path, steps: int) -> None:
    """Train up to step `steps`, from the checkpoint in `out` if there is one."""
    import torch  # here, because the workers import this file
    from plain_pytorch import mean_loss, small_llama

    model, batches, digest, checkpoint = small_llama(manifest), loader(manifest.batches()[:steps]), "", out / "last.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    out.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        assert state["plan_id"] == manifest.plan_id, f"{checkpoint} is from another plan: give another folder"
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        batches.set_state(state["batches"])
        digest = state["digest"]
    for batch in batches:
        loss = mean_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        digest = dataengine.next_digest(digest, batch.step, batch.sample_ids)
        print(f"step {batch.step + 1}: loss {loss.item()!r}, digest {digest}", flush=True)
        if (batch.step + 1) % SAVE_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "batches": batches.get_state()}
            torch.save({**state, "digest": digest, "plan_id": manifest.plan_id}, out / "last.new")
            os.replace(out / "last.new", checkpoint)  # whole or not at all


if __name__ == "__main__":
    manifest = dataengine.read_manifest(*sys.argv[1:2] or [MANIFEST])
    train(manifest, Path(*sys.argv[2:3] or [OUT]), int(*sys.argv[3:4] or [manifest.schedule.steps]))
