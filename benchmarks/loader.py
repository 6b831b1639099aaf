"""How fast a rank reads its samples, against stock streaming, litdata, grain and a numpy memmap:
`python benchmarks/loader.py [--full]`.

All read the same samples of 2,049 random uint16 ids, shuffled, in batches of 16 that become int64 tensors, with 0, 1
and 2 workers. Ours reads as the trainer does, with the hash of every shard checked. Stock (py1e), the memmap (a
permutation in memory) and grain (its own shuffle of the mapped rows) read the same shards, litdata its own chunks of
the same size. Each peer gets the faster of two ways: ids become int64 in its workers, or in this process.

loader_w0, 1, 2          from a folder
loader_cached_w0, 1, 2   from a cache that was filled from another store before; the memmap reads the folder

Samples per CPU-second of all processes, from the first batch to the last; the median of runs, in which the
contenders take turns. The first run makes a folder for litdata under .bench/, with uv.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from build import PEERS, install
from rows import Row, medians, show

WIDTH, BATCH, PER_SHARD = 2049, 16, 1024
LITDATA = "litdata==0.2.76"
Batches = Callable[[Path, int, bool], Iterator[Any]]  # (folder, workers, cached) -> int64 tensors


def main() -> None:
    """Print the table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="80,000 samples a run (default: 10,000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    library = ["pip", "install", "--python", sys.executable, "--no-deps", "--target", PEERS / LITDATA, LITDATA]
    install(LITDATA, library)  # what it needs is here
    with tempfile.TemporaryDirectory(prefix="loader-") as name:
        write_stream(Path(name), (80_000 if options.full else 10_000) // PER_SHARD * PER_SHARD)
        contenders = {
            "ours": Contender(ours, Path(name)),
            LITDATA.replace("==", " "): Contender(litdata, Path(name)),
            f"grain {version('grain')}": Contender(grain, Path(name)),
            f"mosaicml-streaming {version('mosaicml-streaming')}": Contender(stock, Path(name)),
            f"numpy {version('numpy')} memmap": Contender(memmap, Path(name)),
        }
        for cached in (False, True):
            for workers in options.workers:
                reading = {n: c for n, c in contenders.items() if not cached or c.batches not in (stock, grain)}
                found = medians(options.runs, {n: partial(c.read, workers, cached) for n, c in reading.items()})
                mine = found.pop("ours")
                for peer, theirs in found.items():
                    row = Row(
                        benchmark=f"loader_cached_w{workers}" if cached else f"loader_w{workers}",
                        ours=mine["rate"],
                        unit="samples/CPU-s",
                        peer=peer,
                        peer_value=theirs["rate"],
                        ratio=mine["rate"] / theirs["rate"],
                        cpu_seconds=mine["cpu"],
                        peer_cpu_seconds=theirs["cpu"],
                        runs=options.runs,
                    )
                    show(row, as_json=options.json)
        for contender in contenders.values():
            contender.end()


class Contender:
    """A process that reads all samples when it is asked to; what it imports is not measured."""

    def __init__(self, batches: Batches, folder: Path) -> None:
        self.batches = batches
        context = multiprocessing.get_context("spawn")
        self._asked, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(batches, folder, theirs))
        self._process.start()
        theirs.close()
        self._asked.recv()  # ready

    def read(self, workers: int, cached: bool) -> dict[str, float]:
        """Samples per CPU-second, and CPU-seconds."""
        self._asked.send((workers, cached))
        result: dict[str, float] = self._asked.recv()
        return result

    def end(self) -> None:
        """End the process."""
        self._asked.send(None)
        self._process.join()


def serve(batches: Batches, folder: Path, asked: Connection) -> None:
    """Read all samples as often as asked."""
    import torch

    os.dup2(2, 1)  # what libraries print is no row
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    for workers, cached in ((0, False), (0, True)):  # imports, files of its own, the cache
        read_all(batches(folder, workers, cached))
    asked.send("ready")
    while job := asked.recv():
        asked.send(read_all(batches(folder, *job)))


def read_all(loader: Iterator[Any]) -> dict[str, float]:
    """Read all batches of a loader; the first is not measured."""
    import torch

    next(loader)
    begun, count = cpu_of_all(), 0
    for batch in loader:
        assert batch.dtype == torch.int64, batch.dtype
        assert batch.shape == (BATCH, WIDTH), batch.shape
        count += len(batch)
    del loader, batch
    cpu = cpu_of_all() - begun
    gc.collect()  # ends workers that are part of a cycle
    return {"rate": count / cpu, "cpu": cpu}


def cpu_of_all() -> float:
    """CPU-seconds of this process and all below it, those that have ended too."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ticks = 0
    for pid in live_children(os.getpid()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # its own, and those of its ended children
    return sum(usage.ru_utime + usage.ru_stime for usage in used) + ticks / os.sysconf("SC_CLK_TCK")


def live_children(pid: int) -> list[int]:
    """All processes below one."""
    try:
        own = [
            int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
        ]
    except FileNotFoundError:  # ended just now
        return []
    return own + [below for child in own for below in live_children(child)]


def ours(folder: Path, workers: int, cached: bool) -> Iterator[Any]:
    """Our loader. The cache is filled from a compressed copy of the shards."""
    from dataengine.schedule.manifest import read_manifest
    from dataengine.schedule.shard_cache import ShardCache
    from dataengine.storage.open import open_store
    from trainer.data.dataset import ScheduledDataset, make_loader

    store = folder / "compressed" if cached else folder
    manifest = read_manifest(store / "manifest.json")
    cache = ShardCache(open_store(str(store)), folder / "cache", manifest, limit=None, outage_limit=1)
    assert cache.remote == cached
    return (batch["tokens"] for batch in make_loader(ScheduledDataset(manifest, cache, world_size=1), workers))


def stock(folder: Path, workers: int, cached: bool) -> Iterator[Any]:
    """Stock streaming."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    dataset = StreamingDataset(local=str(folder / "stream"), batch_size=BATCH, shuffle=True, num_canonical_nodes=1)
    return iter(DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate))


def memmap(folder: Path, workers: int, cached: bool) -> Iterator[Any]:
    """A permuted map-style dataset over the same files."""
    from torch.utils.data import DataLoader

    return iter(DataLoader(MemmapDataset(folder), batch_size=BATCH, num_workers=workers, collate_fn=collate))


def litdata(folder: Path, workers: int, cached: bool) -> Iterator[Any]:
    """litdata's chunks of tokens."""
    import torch

    sys.path.append(str(PEERS / LITDATA))
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.writer import BinaryWriter

    chunks = folder / "litdata"
    if not chunks.exists():
        writer = BinaryWriter(str(chunks), chunk_size=PER_SHARD * WIDTH, item_loader=TokensLoader(WIDTH))
        for number, row in enumerate(row for shard in MemmapDataset(folder).shards for row in shard):
            writer.add_item(number, torch.from_numpy(row.copy()))
        writer.done()
        writer.merge()
    place = {"input_dir": f"local:{chunks}", "cache_dir": str(folder / "lit")} if cached else {"input_dir": str(chunks)}
    dataset = StreamingDataset(**place, item_loader=TokensLoader(WIDTH), shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=torch.stack)
    return (batch.to(torch.int64) for batch in loader)


def grain(folder: Path, workers: int, cached: bool) -> Iterator[Any]:
    """Grain over the mapped rows."""
    import grain
    import torch

    rows = grain.MapDataset.source(MemmapDataset(folder, ordered=True)).map(lambda item: item["tokens"])
    batches = rows.shuffle(seed=1).batch(BATCH)
    loader = batches.to_iter_dataset(grain.ReadOptions(num_threads=min(workers, 1), prefetch_buffer_size=4))
    if workers:
        loader = loader.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return (torch.from_numpy(batch.astype(np.int64)) for batch in loader)


def collate(items: list[dict[str, Any]]) -> Any:
    """Token ids of a batch, int64 (BATCH, WIDTH)."""
    import torch

    return torch.from_numpy(np.stack([item["tokens"] for item in items]).astype(np.int64))


class MemmapDataset:
    """Rows of mapped shards, in a permutation or in their order."""

    def __init__(self, folder: Path, *, ordered: bool = False) -> None:
        from dataengine.mds.reader import map_shard

        paths = sorted((folder / "stream").glob("*.mds"))
        self.shards = [map_shard(path, WIDTH, np.dtype(np.uint16)) for path in paths]
        count = sum(map(len, self.shards))
        self._order = np.arange(count) if ordered else np.random.default_rng(1).permutation(count)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, row = divmod(int(self._order[index]), PER_SHARD)
        return {"tokens": self.shards[shard][row]}


def write_stream(folder: Path, samples: int) -> None:
    """Write a stream of random ids and its manifest; both again, compressed, in a folder of their own."""
    import hashlib

    from dataengine.mds.types import Stream
    from dataengine.mds.writer import ShardFormat, encode_index, write_shards
    from dataengine.schedule.manifest import Manifest
    from dataengine.schedule.slots import Stage

    ids = np.random.default_rng(0).integers(0, 32_000, (samples, WIDTH)).astype(np.uint16)
    for store, compression in ((folder, None), (folder / "compressed", "zstd:1")):
        place = store / "stream"
        place.mkdir(parents=True)
        form = ShardFormat(PER_SHARD, compression=compression)
        shards = write_shards(ids, lambda name, content, place=place: (place / name).write_bytes(content), 0, form)
        index = encode_index(shards, form.config(WIDTH, ids.dtype))
        (place / "index.json").write_bytes(index)
        sha256 = hashlib.sha256(index).hexdigest()
        stream = Stream("s", "stream", sha256, samples, samples * WIDTH, tuple(shards))
        stages = (Stage("all", samples // BATCH, {"s": samples}),)
        manifest = Manifest("m", "", 32_000, 2, WIDTH - 1, BATCH, 1, 17, 2 * PER_SHARD, (stream,), stages)
        (store / "manifest.json").write_bytes(manifest.content)


if __name__ == "__main__":
    main()
