"""How long a run waits for its sample order, against stock StreamingDataset: `python benchmarks/order.py [--full]`.

Both mix two streams of half the samples each, in shards of 4,096. Ours: make the run's order and find the samples of a
step in its middle. Stock (py1e, default batching): generate the epoch's order, which it does at every start and epoch.
Each figure is the median of several runs in separate processes; memory is what the order adds to a process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np

BATCH = 512
SHARD = 4096


def main() -> None:
    """Print the table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="1M, 10M and 30M samples (default: 1M and 10M)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    peer = f"mosaicml-streaming {version('mosaicml-streaming')}"
    if not options.json:
        print(f"{'order':10} {'ours, ms':>10} {'MB':>6}   {peer + ', ms':>30} {'MB':>6} {'ratio':>8}")
    for name, samples in {"order_1m": 10**6, "order_10m": 10**7, "order_30m": 3 * 10**7}.items():
        if name == "order_30m" and not options.full:
            continue
        shards = samples // 2 // SHARD
        (ours, our_mb), (theirs, their_mb) = (measure(run, shards, options.runs) for run in (our_order, stock_order))
        if options.json:
            row = {"benchmark": name, "ours": ours, "unit": "s", "peer": peer, "peer_value": theirs}
            print(json.dumps({**row, "ratio": theirs / ours}), flush=True)
        else:
            print(
                f"{name:10} {ours * 1e3:10.1f} {our_mb:6.0f}   {theirs * 1e3:30,.0f} {their_mb:6.0f} "
                f"{theirs / ours:7,.0f}x",
                flush=True,
            )
    if not options.json:
        ours, our_mb = measure(large_order, 12_207, options.runs)
        print(
            f"400M samples in 8 streams: {ours * 1e3:.1f} ms and {our_mb:.0f} MB to start and find a step in the middle"
        )


def large_order(shards: int) -> float:
    """Make the order of 8 streams and find a step in its middle."""
    from dataengine.schedule.order import RunOrder
    from dataengine.schedule.slots import Schedule, Stage

    sizes = {f"s{number}": [SHARD] * shards for number in range(8)}
    steps = 8 * shards * SHARD // BATCH
    begun = time.perf_counter()
    schedule = Schedule(BATCH, 1, (Stage("all", steps, dict.fromkeys(sizes, steps * BATCH // 8)),))
    order = RunOrder.build(schedule, sizes, seed=17, shuffle_block=8 * SHARD)
    assert len(order.sample_ids(steps // 2)) == BATCH
    return time.perf_counter() - begun


def measure(work: Callable[[int], float], shards: int, runs: int) -> tuple[float, float]:
    """Median seconds and MB of a piece of work, each run in a new process."""
    context = multiprocessing.get_context("spawn")
    results = []
    for _ in range(runs):
        with context.Pool(1) as pool:
            results.append(pool.apply(in_process, (work, shards)))
    return statistics.median(r[0] for r in results), statistics.median(r[1] for r in results)


def in_process(work: Callable[[int], float], shards: int) -> tuple[float, float]:
    """Seconds of one run, and growth of its peak memory in MB; a small run goes first, so imports do not count."""
    work(20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = work(shards)
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def our_order(shards: int) -> float:
    """Make our order and find a step in its middle."""
    from dataengine.schedule.order import RunOrder
    from dataengine.schedule.slots import Schedule, Stage

    sizes = {"a": [SHARD] * shards, "b": [SHARD] * shards}
    steps = 2 * shards * SHARD // BATCH
    begun = time.perf_counter()
    half = steps * BATCH // 2
    schedule = Schedule(BATCH, 1, (Stage("all", steps, {"a": half, "b": half}),))
    order = RunOrder.build(schedule, sizes, seed=17, shuffle_block=8 * SHARD)
    assert len(order.sample_ids(steps // 2)) == BATCH
    return time.perf_counter() - begun


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
    begun = time.perf_counter()
    work = generate_work("random", dataset, world, 0, 0)
    assert work.size >= 2 * shards * SHARD
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
