"""Random faults in real processes: `make chaos SEEDS=20`, or `python -m tests.chaos.chaos --seeds 20 [--first 1]`.

Each seed builds, trains and evaluates a small experiment in real processes and, half of the time, in a bucket of a real
server. The faults follow from the seed (scenario.py). The program prints a table of faults and outcomes, appends every
seed to RESULTS, and exits with 1 if one hangs, crashes, refuses without naming what is damaged, or differs from the
undisturbed run. `--seeds 1 --first N` repeats seed N.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from tests.chaos.results import Event, Scenario, report


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="number of seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first seed (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("runs/chaos/results.jsonl"), metavar="FILE",
                        help="a line per seed is appended here (default: %(default)s)")  # fmt: skip
    parser.add_argument("--disk-only", action="store_true", help="no object store")
    parser.add_argument("--table", action="store_true", help="only print the table of RESULTS")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if options.table:
        lines = options.results.read_text().splitlines()
        latest = {one["seed"]: one for one in map(json.loads, lines)}
        report([Scenario(**{**one, "events": [Event(**event) for event in one["events"]]}) for one in latest.values()])
        return
    from tests.chaos.scenario import Lab  # with torch and Composer

    begun = time.monotonic()
    done: list[Scenario] = []
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        print("the undisturbed run", flush=True)
        lab = Lab(Path(folder), buckets=not options.disk_only)
        for seed in tqdm(range(options.first, options.first + options.seeds), unit="seed", disable=None):
            made = lab.scenario(seed)
            done.append(made)
            with options.results.open("a") as file:
                file.write(json.dumps(made.describe()) + "\n")
            faults = "; ".join(f"{event.fault} ({event.outcome})" for event in made.events)
            tqdm.write(f"seed {seed}, {made.place}, {made.seconds:.0f} s: {made.verdict}. {faults}")
            if made.verdict != "equal":
                tqdm.write(made.words)
            sys.stdout.flush()
    report(done)
    print(f"took {time.monotonic() - begun:.0f} s")
    sys.exit(1 if any(one.verdict != "equal" for one in done) else 0)


if __name__ == "__main__":
    main()
