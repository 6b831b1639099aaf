"""A build of millions of sentence pairs, round by round: `python benchmarks/scale.py [--pairs 10M --data FOLDER]`.

The pairs are real ones, varied: copy k of a pair has " (k)" behind both sides, and every twentieth pair repeats an
earlier one exactly. So the number of duplicates is known, and the build is wrong if it finds another. Cleaning applies
all pair rules, searches duplicates and, with --language-id, identifies the languages of both sides.

A row is a round of the build, or the memory of all processes in it, beside the same round at a tenth of the pairs: a
ratio of 1 means that time grows with the input, not faster, and memory not at all. Up to a million pairs, rows are the
medians of three builds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

import orjson  # noqa: E402
import psutil  # noqa: E402

from benchmarks.rows import Row, cpu_seconds, show  # noqa: E402
from dataengine.build.build import build  # noqa: E402
from dataengine.build.executors import Engine, LocalEngine  # noqa: E402
from dataengine.build.units import Receipt, Unit  # noqa: E402
from dataengine.config.fields import parse_count  # noqa: E402
from dataengine.config.schema import Config  # noqa: E402
from dataengine.records.lines import read_lines  # noqa: E402
from dataengine.storage.store import Store  # noqa: E402

REPEATED = 20  # one of so many pairs repeats an earlier one
PER_FILE = 1_000_000


def main() -> None:
    """Build a tenth, build all, print a row for each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=count_of, default=100_000, help="pairs to build (default: 100k)")
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "demo" / "data",
        help="folder of en-zh.train.jsonl.zst and a .model (default: demo/data)",
    )
    parser.add_argument("--folder", type=Path, help="where to put the pairs and the store (default: a temporary one)")
    parser.add_argument("--language-id", action="store_true", help="drop pairs in other languages, too")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.folder) as name:
        runs = 3 if options.pairs <= PER_FILE else 1
        small, large = (
            take_medians([Scale(options, Path(name) / f"{size}-{k}", size).build() for k in range(runs)])
            for size in (options.pairs // 10, options.pairs)
        )
        known = {one.title: one for one in small}
        for one in large:
            print_round(known.get(one.title), one, options, runs)


def count_of(text: str) -> int:
    """A count, such as 10M."""
    value = parse_count(text.upper())
    if not isinstance(value, int):
        raise argparse.ArgumentTypeError(f"{text} is not a count, such as 10M")
    return value


def take_medians(builds: Sequence[Sequence[Round]]) -> list[Round]:
    """Each round as it was in the build in which it took the median time."""
    return [sorted(rounds, key=lambda one: one.seconds)[len(rounds) // 2] for rounds in zip(*builds, strict=True)]


def print_round(before: Round | None, after: Round, options: argparse.Namespace, runs: int) -> None:
    """Print what a round did in a second, and the memory of all processes, at both sizes.

    `before` is None for a round of large builds alone.
    """
    words = f"scale_{after.title.replace(', ', '+').replace(' ', '_')}"
    rate, memory = after.pairs / after.seconds, after.memory / 2**20
    rows = [Row(words, rate, "pairs/s", cpu_seconds=after.cpu, runs=runs), Row(f"{words}_mb", memory, "MB", runs=runs)]
    if before is not None:
        peer = f"{before.pairs:,} pairs, {options.workers} processes"
        rate_before, memory_before = before.pairs / before.seconds, before.memory / 2**20
        rows = [
            Row(words, rate, "pairs/s", peer, rate_before, rate / rate_before, after.cpu, before.cpu, runs),
            Row(f"{words}_mb", memory, "MB", peer, memory_before, memory_before / max(memory, 1), runs=runs),
        ]
    for row in rows[: 2 if memory and rows[1].peer_value != 0 else 1]:  # a short round ends before it is looked at
        show(row, as_json=options.json)
    if not options.json:
        print(f"  {after.units:,} units, {after.seconds:.1f} s", flush=True)


@dataclass
class Round:
    """A round of units, or the whole build: its time, and the memory of all processes."""

    title: str
    pairs: int
    units: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    memory: int = 0  # bytes


@dataclass
class Scale:
    """A build of `pairs` pairs in a folder."""

    options: argparse.Namespace
    folder: Path
    pairs: int
    rounds: list[Round] = field(default_factory=list)

    def build(self) -> list[Round]:
        """The rounds of the build, and the build as a whole."""
        self.folder.mkdir()
        repeated = write_pairs(self.options.data / "en-zh.train.jsonl.zst", self.pairs, self.folder)
        whole = Round("whole build", self.pairs)
        with watched(whole):
            result = build(self.config(), engine=TimedEngine(LocalEngine(self.options.workers), self))
        found = result.streams[0].dropped.get("duplicate pair", 0)
        judged = sum(count for reason, count in result.streams[0].dropped.items() if reason != "duplicate pair")
        if not repeated - judged <= found <= repeated:
            raise SystemExit(f"{found:,} duplicates found among {repeated:,}")
        whole.units = sum(one.units for one in self.rounds)
        return [*self.rounds, whole]

    def config(self) -> Config:
        """Both directions of all pairs, drained."""
        (model,) = self.options.data.glob("*.model")
        clean = {"pair_rules": {}, "dedup": ["pair"]}
        if self.options.language_id:
            clean["min_language_score"] = 0.01
        return Config.model_validate(
            {
                "name": "scale",
                "store": str(self.folder / "store"),
                "tokenizer": str(model),
                "seq_len": 2048,
                "batch_size": 8,
                "streams": {
                    "en-zh": {
                        "pairs": [str(self.folder / "pairs.*.jsonl")],
                        "directions": ["en-zh", "zh-en"],
                        "clean": clean,
                    }
                },
                "stages": [{"name": "all", "drain": True, "mix": {"en-zh": 1}}],
            }
        )


@dataclass(frozen=True)
class TimedEngine(Engine):
    """Runs units as another engine does, and notes the rounds."""

    engine: Engine
    scale: Scale

    def run(self, units: Sequence[Unit], store: Store, title: str) -> list[Receipt]:
        """Run a round."""
        self.scale.rounds.append(Round(title, self.scale.pairs, len(units)))
        with watched(self.scale.rounds[-1]):
            return self.engine.run(units, store, title)


class watched:  # noqa: N801 (read as a word: with watched(...))
    """Measure what happens inside."""

    def __init__(self, one: Round) -> None:
        self._round, self._ended = one, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._begun = time.perf_counter(), cpu_seconds()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        begun, cpu = self._begun
        self._round.seconds, self._round.cpu = time.perf_counter() - begun, cpu_seconds() - cpu

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.2):
            used = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    used += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self._round.memory = max(self._round.memory, used)


def write_pairs(source: Path, pairs: int, folder: Path) -> int:
    """Write pairs as JSON Lines; return how many of them repeat an earlier one."""
    real = list(map(orjson.loads, read_lines(source)))
    made = islice(vary(real), pairs)
    for number in range(-(-pairs // PER_FILE)):
        with (folder / f"pairs.{number:03}.jsonl").open("wb") as file:
            file.writelines(orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE) for pair in islice(made, PER_FILE))
    return pairs // REPEATED


def vary(real: Sequence[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The real pairs without repetitions, again and again with another number, and the repetitions."""
    distinct = list({(pair["en"], pair["zh"]): pair for pair in real}.values())
    numbers, pair = count(), distinct[0]
    for number in count(1):
        if number % REPEATED:
            k, place = divmod(next(numbers), len(distinct))
            pair = {code: f"{text} ({k})" if k else text for code, text in distinct[place].items()}
        yield pair


if __name__ == "__main__":
    main()
