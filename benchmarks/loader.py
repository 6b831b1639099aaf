"""How fast a rank reads its samples, against stock StreamingDataset and a numpy memmap: `python benchmarks/loader.py`.

All read the same shards of 2,049 random uint16 ids in batches of 16 that become int64 tensors, through torch's
DataLoader with 0, 1 and 2 workers: ours as the trainer sets it up, the peers collated to int64 in their workers. Stock
shuffles with py1e, the memmap by a permutation in memory. Samples/s after the first batch, median of runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, BATCH, PER_SHARD = 2049, 16, 1024


def main() -> None:
    """Print the table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="40,000 samples a run (default: 10,000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    samples = (40_000 if options.full else 10_000) // PER_SHARD * PER_SHARD
    peers = {f"mosaicml-streaming {version('mosaicml-streaming')}": stock, f"numpy {version('numpy')} memmap": memmap}
    with tempfile.TemporaryDirectory() as name:
        write_stream(Path(name), samples)
        if not options.json:
            print(f"{'loader':10} {'ours':>9}  samples/s")
        for workers in (0, 1, 2):
            rates: dict[str, list[float]] = {}
            for _ in range(options.runs):  # in turn, so that a slow moment of the machine affects all alike
                for peer, make in {"ours": ours, **peers}.items():
                    rates.setdefault(peer, []).append(in_process(make, Path(name), workers))
            rate = {peer: statistics.median(values) for peer, values in rates.items()}
            for peer in peers:
                if options.json:
                    row = {"benchmark": f"loader_w{workers}", "ours": rate["ours"], "unit": "samples/s", "peer": peer}
                    print(json.dumps({**row, "peer_value": rate[peer], "ratio": rate["ours"] / rate[peer]}), flush=True)
                else:
                    print(
                        f"loader_w{workers}  {rate['ours']:9,.0f}  {peer} {rate[peer]:9,.0f}  "
                        f"{rate['ours'] / rate[peer]:5.2f}x",
                        flush=True,
                    )


def in_process(make: Callable[[Path], Any], folder: Path, workers: int) -> float:
    """Samples/s of one run in a new process."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        result = manager.dict()
        process = context.Process(target=read_all, args=(make, folder, workers, result))
        process.start()
        process.join()
        return float(result["rate"])


def read_all(make: Callable[[Path], Any], folder: Path, workers: int, result: Any) -> None:
    """Read every sample once; the clock starts at the first batch."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    loader: Any
    if make is ours:
        from trainer.data.dataset import make_loader, to_tensors

        loader = map(to_tensors, make_loader(make(folder), workers))
    else:
        loader = DataLoader(make(folder), batch_size=BATCH, num_workers=workers, collate_fn=collate)
    batches = iter(loader)
    next(batches)
    begun, count = time.perf_counter(), 0
    for batch in batches:
        tokens = batch["tokens"] if make is ours else batch
        assert tokens.dtype == torch.int64
        assert tokens.shape == (BATCH, WIDTH)
        count += len(tokens)
    result["rate"] = count / (time.perf_counter() - begun)


def collate(items: list[dict[str, Any]]) -> Any:
    """Token ids of a batch, int64 (BATCH, WIDTH)."""
    import torch

    return torch.from_numpy(np.stack([item["tokens"] for item in items]).astype(np.int64))


def write_stream(folder: Path, samples: int) -> None:
    """Write a stream of random ids and its manifest."""
    import hashlib

    from dataengine.mds.types import Stream
    from dataengine.mds.writer import ShardFormat, encode_index, write_shards
    from dataengine.schedule.manifest import Manifest
    from dataengine.schedule.slots import Stage

    ids = np.random.default_rng(0).integers(0, 32_000, (samples, WIDTH)).astype(np.uint16)
    (folder / "stream").mkdir()
    form = ShardFormat(PER_SHARD)

    def add(name: str, content: bytes) -> None:
        (folder / "stream" / name).write_bytes(content)

    shards = write_shards(ids, add, 0, form)
    index = encode_index(shards, form.config(WIDTH, ids.dtype))
    (folder / "stream" / "index.json").write_bytes(index)
    sha256 = hashlib.sha256(index).hexdigest()
    stream = Stream("s", "stream", sha256, samples, samples * WIDTH, tuple(shards))
    stages = (Stage("all", samples // BATCH, {"s": samples}),)
    manifest = Manifest("m", "", 32_000, 2, WIDTH - 1, BATCH, 1, 17, 8 * PER_SHARD, (stream,), stages)
    (folder / "manifest.json").write_bytes(manifest.content)


def ours(folder: Path) -> Any:
    """Our dataset."""
    from dataengine.schedule.manifest import read_manifest
    from dataengine.schedule.shard_cache import ShardCache
    from dataengine.storage.open import open_store
    from trainer.data.dataset import ScheduledDataset

    manifest = read_manifest(folder / "manifest.json")
    cache = ShardCache(open_store(str(folder)), folder, manifest, limit=None, outage_limit=1)
    return ScheduledDataset(manifest, cache, world_size=1)


def stock(folder: Path) -> Any:
    """Stock streaming."""
    from streaming import StreamingDataset

    return StreamingDataset(local=str(folder / "stream"), batch_size=BATCH, shuffle=True, num_canonical_nodes=1)


def memmap(folder: Path) -> Any:
    """A permuted map-style dataset over the same files."""
    return MemmapDataset(folder)


class MemmapDataset:
    """Rows of mapped shards in a permutation."""

    def __init__(self, folder: Path) -> None:
        from dataengine.mds.reader import map_shard

        paths = sorted((folder / "stream").glob("*.mds"))
        self._shards = [map_shard(path, WIDTH, np.dtype(np.uint16)) for path in paths]
        self._order = np.random.default_rng(1).permutation(sum(map(len, self._shards)))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, row = divmod(int(self._order[index]), PER_SHARD)
        return {"tokens": self._shards[shard][row]}


if __name__ == "__main__":
    main()
