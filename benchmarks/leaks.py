"""Does anything grow over time? `python benchmarks/leaks.py [--full]`: a long training and a large build, from outside.

Trains many tiny steps, with a loader worker and a checkpoint every 100 steps, and builds from many megabytes. At each
10 % it looks at memory, open files and threads of the process and its children. A row has the last figure; its peer is
the figure of the first half, so a ratio far below 1 is growth. `--full` is 5,000 steps and 1 GB (quick: 300 steps and
30 MB). Without --json it also prints each look.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import yaml  # noqa: E402

from benchmarks.rows import Row, cpu_seconds, medians, show  # noqa: E402

DATA = ROOT / "demo" / "data"


def main() -> None:
    """Print the rows of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="5,000 steps and 1 GB")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    steps, megabytes = (5_000, 1_000) if options.full else (300, 30)
    works = {
        "train": partial(train, steps, as_json=options.json),
        "build": partial(build, megabytes, as_json=options.json),
    }
    for name, found in medians(options.runs, works).items():
        cpu = found.pop("cpu")
        for what, unit in (("memory", "MB"), ("files", "files"), ("threads", "threads")):
            early, late = found[f"{what} before"], found[what]
            peer = "most in the first half"
            show(
                Row(f"{name}_{what}", late, unit, peer, early, early / max(late, 1), cpu, runs=options.runs),
                as_json=options.json,
            )


def train(steps: int, *, as_json: bool) -> dict[str, float]:
    """Train."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder, steps)
        subprocess.run([sys.executable, "-m", "dataengine", "build", str(config)], check=True, capture_output=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0",
                       "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": "29777"}  # fmt: skip
        log = folder / "run" / "log.csv"
        return watch(
            "train",
            [sys.executable, "trainer/train.py", str(config)],
            lambda: log.read_bytes().count(b"\n") - 1 if log.is_file() else 0,
            steps,
            environment,
            as_json=as_json,
        )


def build(megabytes: int, *, as_json: bool) -> dict[str, float]:
    """Build."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "large.jsonl"
        write_source(source, megabytes)
        path = folder / "large.yaml"
        path.write_text(yaml.safe_dump({**settings(folder, "large"), "streams": {"mono": {"documents": [str(source)]}},
                                        "part_bytes": 8_000_000}))  # fmt: skip
        units = folder / "store" / "units"
        return watch(
            "build",
            [sys.executable, "-m", "dataengine", "build", str(path), "--workers", "2"],
            lambda: len(list(units.glob("*/receipt.json"))),
            megabytes // 8,
            dict(os.environ),
            as_json=as_json,
        )


def settings(folder: Path, name: str) -> dict[str, Any]:
    """What both configs share."""
    return {
        "name": name, "store": str(folder / "store"), "out": str(folder / "run"), "seq_len": 32, "batch_size": 4,
        "tokenizer": str(DATA / "tokenizer.model"), "stages": [{"name": "all", "drain": True, "mix": {"mono": 1}}],
    }  # fmt: skip


def write_config(folder: Path, steps: int) -> Path:
    """The training."""
    path = folder / "train.yaml"
    values = settings(folder, "train") | {
        "samples_per_shard": 128,
        "shuffle_block": 512,
        "streams": {"mono": {"documents": [str(DATA / "mono.en.jsonl.zst")], "passes": 9}},
        "stages": [{"name": "all", "steps": steps, "mix": {"mono": 1}}],
        "model": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "num_key_value_heads": 2},
        "train": {"microbatch_size": 4, "checkpoint_interval": 100, "keep_checkpoints": 2, "log_interval": 1000,
                  "loader_workers": 1, "spike_factor": None},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


def write_source(path: Path, megabytes: int) -> None:
    """Real documents, repeated, each with its own number."""
    import orjson

    from dataengine.records.lines import read_lines

    texts = [orjson.loads(line)["text"] for line in read_lines(DATA / "mono.en.jsonl.zst")]
    with path.open("wb") as file:
        number = 0
        while file.tell() < megabytes * 10**6:
            file.write(orjson.dumps({"text": f"{number} {texts[number % len(texts)]}"}) + b"\n")
            number += 1


def watch(
    name: str, command: list[str], done: Callable[[], int], total: int, environment: dict[str, str], *, as_json: bool
) -> dict[str, float]:
    """Run a command, and look at each 10 % at what its processes hold: most in the first half, and at the end."""
    begun, looks = cpu_seconds(), [(0.0, 0, 0)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    tenths = [total * tenth // 10 for tenth in range(1, 11)]
    while process.poll() is None:
        time.sleep(0.05)
        if tenths and (now := done()) >= tenths[0]:
            tenths = [tenth for tenth in tenths if tenth > now]
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                held = [(one.memory_full_info().pss, one.num_fds(), one.num_threads()) for one in family]
            except psutil.Error:
                continue
            memory, files, threads = (sum(column) for column in zip(*held, strict=True))
            looks.append((memory / 1e6, files, threads))
            if not as_json:
                print(f"{name} {now:8,}: {memory / 1e6:7,.0f} MB {files:6} files {threads:6} threads", flush=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}")
    half = looks[: 1 + len(looks) // 2]
    names, found = ("memory", "files", "threads"), {"cpu": cpu_seconds() - begun}
    for what, early, late in zip(names, map(max, *half), looks[-1], strict=True):
        found |= {f"{what} before": early, what: late}
    return found


if __name__ == "__main__":
    main()
