"""Time and memory of large inputs, each at two sizes: `python benchmarks/limits.py [--full] [--json]`.

Twice the size may take twice as long, not more: the peer of each CPU time is that of half the size, twice. Plans and
orders of up to 100 million samples need no data; the rest is built from real text. Each figure comes from a separate
process; `_mb` is its peak memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from benchmarks.rows import Row, cpu_seconds, medians, show, to_stderr  # noqa: E402

DATA = ROOT / "demo" / "data"
Made = Callable[[], object]


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the sizes in docs/internals/reliability.md (quick: 10 %%)")
    parser.add_argument("--only", metavar="NAME", help="one row")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    part = 1 if options.full else 10
    rows: dict[str, tuple[Callable[[Path, int], Made], int, str]] = {
        "plan": (plan, 100_000_000 // part, "samples in 50 streams, planned from assumed sizes"),
        "order": (order, 100_000_000 // part, "samples in 50 streams: read the manifest, prove a prefix, find a step"),
        "shards": (shards, 10_000 // part, "shards in one stream, built"),
        "read": (read, 10_000 // part, "shards in one stream, every sample read in the order of training"),
        "files": (files, 1_000 // part, "source files, built"),
        "document": (document, 50_000_000 // part, "bytes in one document, built"),
        "streams": (streams, 50 // min(part, 5), "streams, built"),
    }
    for name, (make, size, words) in rows.items():
        if options.only in (None, name):
            with to_stderr():
                print(f"{name}: {size:,} {words}", flush=True)
                works = {"half": lambda: measure(make, size // 2), "whole": lambda: measure(make, size)}  # noqa: B023
                found = medians(options.runs, works)
            (half, whole), runs = (found["half"]["s"], found["whole"]["s"]), options.runs
            show(
                Row(f"limit_{name}", whole, "s", "half the size, twice", 2 * half, 2 * half / whole, whole, half, runs),
                as_json=options.json,
            )
            show(Row(f"limit_{name}_mb", found["whole"]["mb"], "MB", runs=runs), as_json=options.json)


def measure(make: Callable[[Path, int], Made], size: int) -> dict[str, float]:
    """CPU-seconds and MB of the work that `make` returns, in a separate process."""
    for warm in (True, False):
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        ):
            found = pool.submit(in_process, make, Path(folder), size, warm).result()
    return found


def in_process(make: Callable[[Path, int], Made], folder: Path, size: int, warm: bool) -> dict[str, float]:
    """Prepare, and measure; `warm` only loads files and libraries into memory."""
    work = make(folder, max(8, size // 10) if warm else size)
    begun = cpu_seconds()
    work()
    return {"s": cpu_seconds() - begun, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def write_config(folder: Path, **changes: Any) -> Path:
    """A config over the folder."""
    values: dict[str, Any] = {
        "name": "limits", "store": str(folder / "store"), "tokenizer": str(DATA / "tokenizer.model"), "seq_len": 128,
        "batch_size": 8, "stages": [{"name": "all", "drain": True, "mix": {"mono": 1}}],
    }  # fmt: skip
    path = folder / "limits.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return path


def texts(count: int) -> list[str]:
    """Real documents, repeated."""
    import orjson

    from dataengine.records.lines import read_lines

    found = [orjson.loads(line)["text"] for line in read_lines(DATA / "mono.en.jsonl.zst")]
    return [found[number % len(found)] for number in range(count)]


def build_config(path: Path) -> Made:
    """The build of a config, in this process."""
    from dataengine.build.build import build
    from dataengine.config.load import load_config

    return lambda: build(load_config(path), workers=1)


def plan(folder: Path, size: int) -> Made:
    """`dataengine plan` on streams that are not built."""
    import contextlib
    import io

    from dataengine.cli import main as dataengine

    names = [f"s{number}" for number in range(50)]
    path = write_config(
        folder,
        streams={name: {"documents": ["nowhere.jsonl"], "assume": {"samples": max(1, size // 50)}} for name in names},
        stages=[{"name": name, "drain": True, "mix": {name: 1}} for name in names[:25]]
        + [{"name": "rest", "drain": True, "mix": dict.fromkeys(names[25:], "by_size")}],
        batch_size=512 if size >= 10**6 else 8,
    )

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            dataengine(["plan", str(path)])

    return work


def order(folder: Path, size: int) -> Made:
    """The work of a rank with a manifest before its first step."""
    from dataengine.mds.types import Shard, StoredFile, Stream, shard_name
    from dataengine.schedule.manifest import Manifest, read_manifest
    from dataengine.schedule.slots import Stage

    per_stream = max(4096, size // 50 // 4096 * 4096)
    made = tuple(
        Stream(
            f"s{number:02}", f"streams/s{number:02}", "0" * 64, per_stream, per_stream * 2049,
            tuple(Shard(4096, StoredFile(shard_name(k), 16 << 20, {"xxh64": "0" * 16}))
                  for k in range(per_stream // 4096)),
        )
        for number in range(50)
    )  # fmt: skip
    steps = per_stream * 50 // 512
    stage = Stage("all", steps, {stream.name: steps * 512 // 50 for stream in made})
    short = steps * 512 - sum(stage.samples.values())
    stage = Stage("all", steps, {**stage.samples, "s00": stage.samples["s00"] + short})
    manifest = Manifest("limits", "0" * 64, 32_000, 2, 2048, 512, 1, 17, 32_768, made, (stage,))
    path = folder / "manifest.json"
    path.write_bytes(manifest.content)

    def work() -> None:
        found = read_manifest(path)
        found.prefix_sha256(steps // 2)
        assert len(found.order.sample_ids(steps // 2)) == 512

    return work


def many_shards(folder: Path, size: int) -> Path:
    """A config of one stream with N shards of 4 samples of 16 tokens."""
    import orjson

    path = folder / "mono.jsonl"
    words = " ".join(texts(size + 50))[: 4 * 16 * size * 8]  # fewer than five letters per token
    length = len(words) // 100 + 1
    parts = [words[start : start + length] for start in range(0, len(words), length)]
    path.write_bytes(b"".join(orjson.dumps({"text": part}) + b"\n" for part in parts))
    streams = {"mono": {"documents": [str(path)]}}
    stages = [{"name": "all", "samples": 4 * size // 8 * 8 or 8, "mix": {"mono": 1}}]
    return write_config(folder, streams=streams, stages=stages, seq_len=15, samples_per_shard=4, shuffle_block=64)


def shards(folder: Path, size: int) -> Made:
    """Build them."""
    return build_config(many_shards(folder, size))


def read(folder: Path, size: int) -> Made:
    """Go through a run's loader."""
    from dataengine.config.load import load_config
    from dataengine.schedule.shard_cache import ShardCache
    from dataengine.storage.open import open_store
    from trainer.data.dataset import ScheduledDataset

    path = many_shards(folder, size)
    build_config(path)()
    config = load_config(path)

    def work() -> None:
        from dataengine.build.experiment import experiment_url
        from dataengine.schedule.manifest import read_manifest

        manifest = read_manifest(experiment_url(config))
        cache = ShardCache(open_store(config.store), folder / "cache", manifest, limit=None, outage_limit=1)
        dataset = ScheduledDataset(manifest, cache, world_size=1)
        assert sum(1 for _ in dataset) == manifest.schedule.steps

    return work


def files(folder: Path, size: int) -> Made:
    """One document a file."""
    import orjson

    for number, text in enumerate(texts(size)):
        (folder / f"part-{number:05}.jsonl").write_bytes(orjson.dumps({"text": text}) + b"\n")
    return build_config(write_config(folder, streams={"mono": {"documents": [str(folder / "part-*.jsonl")]}}))


def document(folder: Path, size: int) -> Made:
    """One text."""
    import orjson

    whole = "\n".join(texts(300))
    text = (whole * (size // len(whole) + 1))[:size]
    path = folder / "mono.jsonl"
    path.write_bytes(orjson.dumps({"text": text}) + b"\n")
    return build_config(write_config(folder, streams={"mono": {"documents": [str(path)]}}))


def streams(folder: Path, size: int) -> Made:
    """50 documents a stream."""
    import orjson

    found = texts(50)
    for number in range(size):
        path = folder / f"s{number:02}.jsonl"
        path.write_bytes(b"".join(orjson.dumps({"text": f"{number} {text}"}) + b"\n" for text in found))
    names = [f"s{number:02}" for number in range(size)]
    return build_config(
        write_config(
            folder,
            streams={name: {"documents": [str(folder / f"{name}.jsonl")]} for name in names},
            stages=[{"name": "all", "drain": True, "mix": dict.fromkeys(names, "by_size")}],
        )
    )


if __name__ == "__main__":
    main()
