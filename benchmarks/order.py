"""How long a run waits for its sample order, against peers: `python benchmarks/order.py [--full] [--json]`.

All mix two streams of half the samples each. Ours: make the run's order of shards of 4,096 samples, and find the
samples of a step in its middle. Stock StreamingDataset (py1e, default batching): generate the epoch's order, which it
does at every start and epoch. grain: make the pipeline (`MapDataset.mix` of two shuffled ranges), and take the elements
of the same step. `permute` is the permutation alone, of 100,000 indices. Milliseconds are CPU time; each run has a
process of its own, and `_mb` is what the order adds to it. levanter's permutation needs jax, and is not compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rows import Row, medians, show

BATCH = 512
SHARD = 4096
INDICES = 100_000


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also 30M samples, and 400M in 8 streams")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    streaming = f"mosaicml-streaming {version('mosaicml-streaming')}"
    grain = f"grain {version('grain')}"
    sizes = {"order_1m": 10**6, "order_10m": 10**7} | ({"order_30m": 3 * 10**7} if options.full else {})
    for name, samples in sizes.items():
        works = {"ours": our_order, streaming: stock_order, grain: grain_order}
        for row in compare(name, works, samples // 2 // SHARD, options.runs, with_memory=True):
            show(row, as_json=options.json)
    for row in compare("permute", {"ours": our_permutation, grain: grain_permutation}, 10**9, options.runs):
        show(row, as_json=options.json)
    if options.full:
        for row in compare("order_400m_8_streams", {"ours": large_order}, 12_207, options.runs, with_memory=True):
            show(row, as_json=options.json)


def compare(
    name: str, works: dict[str, Callable[[int], float]], size: int, runs: int, *, with_memory: bool = False
) -> list[Row]:
    """Rows of our milliseconds, and our memory, beside each peer's."""
    found = medians(runs, {peer: lambda work=work: measure(work, size) for peer, work in works.items()})  # type: ignore[misc]
    ours, peers = found.pop("ours"), found
    rows = []
    for label, key, unit in ((name, "ms", "ms"), (f"{name}_mb", "mb", "MB"))[: 1 + with_memory]:
        rows += [Row(label, ours[key], unit, runs=runs)] if not peers else []
        for peer, theirs in peers.items():
            cpu = (ours["ms"] / 1e3, theirs["ms"] / 1e3)
            rows.append(Row(label, ours[key], unit, peer, theirs[key], theirs["ms"] / ours["ms"], *cpu, runs))
            if key == "mb":  # often 0
                rows[-1] = replace(rows[-1], ratio=None)
    return rows


def our_permutation(size: int) -> float:
    """Permute indices."""
    from dataengine.permutation import permute

    indices = np.arange(min(INDICES, size), dtype=np.int64)
    begun = time.process_time()
    permute(indices, max(size, INDICES), 17)
    return time.process_time() - begun


def grain_permutation(size: int) -> float:
    """The same number of grain's."""
    from grain._src.python.experimental.index_shuffle.python.index_shuffle_module import index_shuffle

    begun = time.process_time()
    for index in range(min(INDICES, size)):
        index_shuffle(index, max_index=max(size, INDICES) - 1, seed=17, rounds=4)
    return time.process_time() - begun


def grain_order(shards: int) -> float:
    """Make grain's pipeline of two shuffled ranges and find a step in its middle."""
    import grain

    begun = time.process_time()
    half = shards * SHARD
    ranges = [grain.MapDataset.range(first, first + half).shuffle(seed=17) for first in (0, half)]
    mixed = grain.MapDataset.mix(ranges, weights=[0.5, 0.5])
    middle = len(mixed) // BATCH // 2 * BATCH
    assert len([mixed[index] for index in range(middle, middle + BATCH)]) == BATCH
    return time.process_time() - begun


def large_order(shards: int) -> float:
    """Make the order of 8 streams and find a step in its middle."""
    from dataengine.schedule.order import RunOrder
    from dataengine.schedule.slots import Schedule, Stage

    sizes = {f"s{number}": [SHARD] * shards for number in range(8)}
    steps = 8 * shards * SHARD // BATCH
    begun = time.process_time()
    schedule = Schedule(BATCH, 1, (Stage("all", steps, dict.fromkeys(sizes, steps * BATCH // 8)),))
    order = RunOrder.build(schedule, sizes, seed=17, shuffle_block=8 * SHARD)
    assert len(order.sample_ids(steps // 2)) == BATCH
    return time.process_time() - begun


def measure(work: Callable[[int], float], size: int) -> dict[str, float]:
    """CPU milliseconds, and MB, of a piece of work, in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(in_process, (work, size))


def in_process(work: Callable[[int], float], size: int) -> dict[str, float]:
    """The figures of one run; a small run goes first, so imports do not count."""
    work(20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = work(size)
    return {"ms": seconds * 1e3, "mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def our_order(shards: int) -> float:
    """Make our order and find a step in its middle."""
    from dataengine.schedule.order import RunOrder
    from dataengine.schedule.slots import Schedule, Stage

    sizes = {"a": [SHARD] * shards, "b": [SHARD] * shards}
    steps = 2 * shards * SHARD // BATCH
    begun = time.process_time()
    half = steps * BATCH // 2
    schedule = Schedule(BATCH, 1, (Stage("all", steps, {"a": half, "b": half}),))
    order = RunOrder.build(schedule, sizes, seed=17, shuffle_block=8 * SHARD)
    assert len(order.sample_ids(steps // 2)) == BATCH
    return time.process_time() - begun


def stock_order(shards: int) -> float:
    """Generate stock streaming's order from the sizes alone, without files."""
    from streaming import StreamingDataset
    from streaming.base.batching import generate_work

    sizes = np.full(2 * shards, SHARD, np.int64)
    dataset: Any = SimpleNamespace(
        num_streams=2,
        streams=[SimpleNamespace(choose=shards * SHARD)] * 2,
        shard_offset_per_stream=np.array([0, shards]),
        shards_per_stream=np.array([shards, shards]),
        samples_per_shard=sizes,
        sample_offset_per_shard=np.cumsum(sizes) - sizes,
        sampling_method="balanced",
        sampling_granularity=1,
        epoch_seed_change=True,
        shuffle=True,
        shuffle_seed=17,
        shuffle_algo="py1e",
        shuffle_block_size=8 * SHARD,
        partition_algo="relaxed",
        epoch_size=2 * shards * SHARD,
        num_canonical_nodes=1,
        initial_physical_nodes=None,
        batch_size=BATCH // 8,
    )
    dataset.resample_streams = lambda epoch: StreamingDataset.resample_streams(dataset, epoch)
    world: Any = SimpleNamespace(num_nodes=1, ranks_per_node=8, workers_per_rank=2, num_ranks=8)
    begun = time.process_time()
    work = generate_work("random", dataset, world, 0, 0)
    assert work.size >= 2 * shards * SHARD
    return time.process_time() - begun


if __name__ == "__main__":
    main()
