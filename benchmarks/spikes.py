"""Does the loss-spike monitor stop at spikes only? `python benchmarks/spikes.py FILE [--seeds 5]`.

Trains tiny models by 22 schedules: ten of yamls/mini, and twelve that repeat a small stream until it is memorized. FILE
gets a line per run with each step's losses by stream; runs that are there are not trained again. At every 20th step the
losses of the same batch with a planted fault are recorded, too: with its tokens shuffled, and after an update at 100
times the learning rate. Then the detector of training judges the losses with other factors and floors. Printed are the
number of steps that it would have stopped at, and the planted faults that it would have missed. --json: as rows.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import orjson  # noqa: E402
import yaml  # noqa: E402

from benchmarks.rows import Row, show, to_stderr  # noqa: E402

DATA = ROOT / "demo" / "data"
MINI = [
    "multilingual", "no_parallel", "parallel_distributed", "parallel_first", "parallel_last_all",
    "parallel_last_all_continue", "parallel_last_all_proportional", "parallel_non_adjacent", "uni_en_zh", "uni_id_en",
]  # fmt: skip
ALONE = [{"name": "all", "steps": 300, "mix": {"small": 1}}]
MEMORISED: dict[str, dict[str, Any]] = {
    "alone": {"stages": ALONE},
    "alone, high rate": {"stages": ALONE, "learning_rate": 1e-2},
    "alone, two samples a step": {"stages": ALONE, "batch_size": 2},
    "eight samples in all": {"stages": [{"name": "all", "steps": 300, "mix": {"eight": 1}}]},
    "beside another": {"stages": [{"name": "all", "steps": 300, "mix": {"small": 1, "en-zh": 1}}]},
    "one sample of eight": {"stages": [{"name": "all", "steps": 300, "mix": {"small": 1, "mono": 7}}]},
    "comes back": {"stages": [{"name": "first", "steps": 120, "mix": {"small": 1}},
                              {"name": "other", "steps": 100, "mix": {"mono": 1}},
                              {"name": "again", "steps": 80, "mix": {"small": 1}}]},
    "comes back sooner": {"stages": [{"name": "first", "steps": 120, "mix": {"small": 1}},
                                     {"name": "other", "steps": 45, "mix": {"mono": 1}},
                                     {"name": "again", "steps": 60, "mix": {"small": 1}}]},
    "comes back soon": {"stages": [{"name": "first", "steps": 120, "mix": {"small": 1}},
                                   {"name": "other", "steps": 9, "mix": {"mono": 1}},
                                   {"name": "again", "steps": 30, "mix": {"small": 1}}]},
    "comes back again and again": {"stages": [{"name": f"{name}{n}", "steps": 30, "mix": {name: 1}}
                                              for n in range(5) for name in ("small", "mono")]},
    "ramp": {"stages": [{"name": "all", "steps": 300, "mix": {"mono": 9, "small": 1},
                         "to_mix": {"mono": 1, "small": 9}}]},
    "rate begins anew": {"stages": [{"name": name, "steps": 150, "mix": {"small": 1}, "restart_learning_rate": True}
                                    for name in ("first", "again")]},
}  # fmt: skip
SMALLER = {"seq_len": 32, "samples_per_shard": 64, "batch_size": 8,
           "model": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "num_key_value_heads": 2}}  # fmt: skip
EVERY = 20  # steps between planted faults
RISE = 100  # times the learning rate


def main() -> None:
    """Record missing runs, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="losses, JSON Lines")
    parser.add_argument("--seeds", type=int, default=5, help="runs a schedule (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    options.file.touch()
    with tempfile.TemporaryDirectory() as name, to_stderr():
        record(options.file, Path(name), options.seeds)
    runs = [orjson.loads(line) for line in options.file.read_bytes().splitlines()]
    if not options.json:
        print(f"{len(runs)} runs of {len({run['schedule'] for run in runs})} schedules")
    for factor in (1.5, 2.0, 3.0):
        for floor in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0):
            for what, count, of in judge(runs, factor, floor):
                row = Row(f"spikes_{factor}_{floor}_{what}", count, f"of {of:,}")
                show(row, as_json=options.json)


def record(file: Path, folder: Path, seeds: int) -> None:
    """Train what the file lacks."""
    known = {(run["schedule"], run["seed"]) for run in map(orjson.loads, file.read_bytes().splitlines())}
    for seed in range(seeds):
        for name, path in write_configs(folder):
            if (name, seed) not in known:
                rows = list(train(path, seed))
                with file.open("ab") as lines:
                    lines.write(orjson.dumps({"schedule": name, "seed": seed, "rows": rows}) + b"\n")
                print(f"{name}, seed {seed}: last loss {rows[-1]['losses']}", file=sys.stderr, flush=True)


def write_configs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and config of each schedule; their streams are in one store."""
    from dataengine.records.lines import read_lines

    pairs = list(read_lines(DATA / "en-zh.train.jsonl.zst"))
    for name, count in (("small", 60), ("eight", 12)):
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(pairs[:count]) + b"\n")
    places = {"store": str(folder / "store"), "out": str(folder / "run"), **SMALLER}
    for name in MINI:
        yield name, write(folder, {"base": str(ROOT / "yamls" / "mini" / f"{name}.yaml"), **places})
    for name, changes in MEMORISED.items():
        values = {"base": str(ROOT / "yamls" / "base" / "mini.yaml"), "name": "memorised", "budget": None, **places}
        values["streams"] = {
            key: {"pairs": [str(folder / f"{key}.jsonl")], "directions": ["en-zh"], "passes": 1000}
            for key in ("small", "eight")
        }
        values["train"] = {"learning_rate": changes.get("learning_rate", 3e-3)}
        yield name, write(folder, values | {key: changes[key] for key in ("stages", "batch_size") if key in changes})


def write(folder: Path, values: Mapping[str, Any]) -> Path:
    """A config's file."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(dict(values)))
    return path


def train(path: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Counts, losses by stream and gradient norm of each step, and the losses of planted faults."""
    import torch

    from dataengine.build.build import build
    from dataengine.config.load import load_config
    from dataengine.mds.writer import COLUMN
    from dataengine.schedule.rates import planned_settings
    from dataengine.schedule.reader import PlanReader
    from dataengine.storage.open import open_store
    from trainer.model.composer_model import build_model
    from trainer.model.optimizer import apply_settings, make_optimizer

    torch.set_num_threads(1)
    config = load_config(path, [f"seed={seed}"])
    manifest = build(config, workers=1).manifest
    torch.manual_seed(seed)
    model = build_model(config.model, manifest, config.train)
    optimizer = make_optimizer(model, config.train, fused=False)
    settings = planned_settings(config, manifest.schedule)
    reader = PlanReader.of_store(manifest, open_store(config.store))
    names = [stream.name for stream in manifest.streams]
    generator = np.random.default_rng(seed)

    def losses(tokens: Any, streams: Any) -> tuple[Any, dict[str, float]]:
        mean, each = model({COLUMN: torch.from_numpy(tokens)})
        return mean, {names[n]: float(each.detach()[streams == n].mean()) for n in np.unique(streams).tolist()}

    for step in range(manifest.schedule.steps):
        apply_settings(optimizer, settings, step)
        tokens, _, streams, _ = reader.read(step)
        tokens = tokens.astype(np.int64)
        optimizer.zero_grad()
        mean, found = losses(tokens, streams)
        mean.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm))
        row = {"counts": {names[n]: int((streams == n).sum()) for n in np.unique(streams).tolist()}, "losses": found}
        if step % EVERY == EVERY - 1:
            before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            with torch.no_grad():
                row["shuffled tokens"] = losses(generator.permuted(tokens, axis=1), streams)[1]
            for group in optimizer.param_groups:
                group["lr"] *= RISE
            optimizer.step()
            with torch.no_grad():
                row["blow-up"] = losses(tokens, streams)[1]
            model.load_state_dict(before[0])
            optimizer.load_state_dict(before[1])
        optimizer.step()
        yield {**row, "norm": norm}


def judge(runs: list[dict[str, Any]], factor: float, floor: float) -> Iterator[tuple[str, int, int]]:
    """The verdicts of a detector on all steps of all runs: what, how many, and of how many."""
    from trainer.training.spikes import SpikeDetector

    judged = stopped = 0
    bad_runs: set[tuple[str, int]] = set()
    planted: dict[str, list[bool]] = {"shuffled tokens": [], "blow-up": []}
    for run in runs:
        names = list(dict.fromkeys(name for row in run["rows"] for name in row["counts"]))
        detector = SpikeDetector(names, factor, 100, floor)
        for row in run["rows"]:
            if detector.compare(row["losses"], row["counts"]) is not None:
                judged += 1
                for kind, seen in planted.items():
                    if kind in row and all(math.isfinite(value) for value in row[kind].values()):
                        seen.append(detector.judge(row[kind], row["counts"], 1.0) is not None)
                if detector.judge(row["losses"], row["counts"], 1.0) is not None:
                    stopped += 1
                    bad_runs.add((run["schedule"], run["seed"]))
            detector.add(row["losses"], row["counts"])
    yield "stopped", stopped, judged
    yield "runs_stopped", len(bad_runs), len(runs)
    for kind, seen in planted.items():
        yield f"missed_{kind.replace(' ', '_')}", seen.count(False), len(seen)


if __name__ == "__main__":
    main()
