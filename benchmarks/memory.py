"""Peak GPU memory of a step, for plans of several sizes, without a GPU: `python benchmarks/memory.py`.

Each plan is computed in closed form, as `dataengine plan --gpu` does. Its peer is PyTorch's count on two models of 3
and 4 layers, as `train.microbatch_size: auto` and `--dry-run` do. With --whole the model of all layers is counted as
well: one to three minutes each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.rows import Row, cpu_seconds, medians, show, to_stderr  # noqa: E402
from dataengine.config.load import load_config  # noqa: E402
from dataengine.hardware.memory import step_bytes as closed_form  # noqa: E402
from dataengine.schedule.manifest import Manifest  # noqa: E402
from dataengine.schedule.slots import Stage  # noqa: E402
from trainer.model.memory import fake_step_bytes, step_bytes  # noqa: E402

PLANS = [  # model, ranks, microbatch, activation checkpointing
    ("1b", 8, 16, False),
    ("1b", 8, 32, False),
    ("1b", 64, 8, False),
    ("3b", 8, 8, False),
    ("7b", 8, 4, True),
    ("7b", 8, 8, True),
    ("7b", 8, 4, False),
    ("7b", 64, 4, True),
]


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="also run the models of all layers")
    parser.add_argument("--only", metavar="MODEL", help="1b, 3b or 7b")
    parser.add_argument("--runs", type=int, default=1, help="runs of each count, which is exact (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    for name, ranks, microbatch, recompute in PLANS:
        if options.only not in (None, name):
            continue
        config = load_config(ROOT / f"yamls/ladder/{name}_distributed.yaml")
        manifest = Manifest("m", "t", 32_000, 2, config.seq_len, 512, 1, 17, 8, (), (Stage("s", 1, {"x": 512}),))

        label = f"memory_{name}_{ranks}x{microbatch}{'_recomputed' if recompute else ''}"
        closed = closed_form(config.model, manifest, microbatch, shard_ranks=ranks, recompute=recompute) / 1e9
        counts = {"3 and 4 layers": step_bytes} | ({"all layers": fake_step_bytes} if options.whole else {})
        for layers, count in counts.items():
            work = partial(count, config.model, manifest, microbatch, shard_ranks=ranks, recompute=recompute)
            with to_stderr():
                found = medians(options.runs, {layers: partial(measure, work)})[layers]
            peer = f"torch {version('torch')}, {layers}"
            ratio = found["gb"] / closed
            row = Row(label, closed, "GB", peer, found["gb"], ratio, 0.0, found["cpu"], options.runs)
            show(row, as_json=options.json)


def measure(count: Callable[[], int]) -> dict[str, float]:
    """The GB that are counted, and the CPU-seconds that it takes."""
    begun = cpu_seconds()
    return {"gb": count() / 1e9, "cpu": cpu_seconds() - begun}


if __name__ == "__main__":
    main()
