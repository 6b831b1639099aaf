"""Peak GPU memory of a step, for plans of several sizes, without a GPU: `python benchmarks/memory.py`.

Each plan is counted by PyTorch on two models of 3 and 4 layers, as `train.microbatch_size: auto` and `--dry-run` do,
and computed in closed form, as `dataengine plan --gpu` does. With --whole the model of all layers is counted as well:
one to three minutes each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from dataengine.config.load import load_config  # noqa: E402
from dataengine.config.training import ModelConfig  # noqa: E402
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
    """Print the table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="also run the models of all layers")
    parser.add_argument("--only", metavar="MODEL", help="1b, 3b or 7b")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    for name, ranks, microbatch, recompute in PLANS:
        if options.only not in (None, name):
            continue
        config = load_config(ROOT / f"yamls/ladder/{name}_distributed.yaml")
        manifest = Manifest("m", "t", 32_000, 2, config.seq_len, 512, 1, 17, 8, (), (Stage("s", 1, {"x": 512}),))

        def count(function: Callable[..., int], model: ModelConfig = config.model) -> tuple[float, float]:
            begun = time.perf_counter()
            found = function(model, manifest, microbatch, shard_ranks=ranks, recompute=recompute)  # noqa: B023
            return found / 1e9, time.perf_counter() - begun

        (gigabytes, seconds), (closed, _) = count(step_bytes), count(closed_form)
        line = f"{name} {ranks:3} ranks, microbatch {microbatch:2}{', recomputed' if recompute else '            '}: "
        line += f"{gigabytes:6.2f} GB in {seconds:3.0f} s; closed form {closed:6.2f} GB"
        row = {"benchmark": "memory", "model": name, "ranks": ranks, "microbatch": microbatch, "recompute": recompute}
        row |= {"ours": round(gigabytes, 2), "closed_form": round(closed, 2), "unit": "GB"}
        if options.whole:
            whole, took = count(fake_step_bytes)
            line += f"; all layers {whole:6.2f} GB in {took:3.0f} s"
            row |= {"peer": "all layers", "peer_value": round(whole, 2), "ratio": round(gigabytes / whole, 4)}
        print(json.dumps(row) if options.json else line, flush=True)


if __name__ == "__main__":
    main()
