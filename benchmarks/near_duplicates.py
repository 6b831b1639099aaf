"""Near duplicates: false removals, missed removals, and the cost.

    python benchmarks/near_duplicates.py                       # the table, some minutes
    python benchmarks/near_duplicates.py --template 1000000    # texts of one template: 10 %, 50 % and all of them

Texts are made with known similarities (Jaccard, sets of five words or ten Chinese characters). Time is the CPU time of
all processes that clean and compare, beside the time of the keys only, which any MinHash needs. The peer is rensa's own
RMinHashDeduplicator, which decides by a similarity that it estimates from the same signatures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import orjson  # noqa: E402
import rensa  # noqa: E402

from benchmarks.rows import Row, show  # noqa: E402
from dataengine.build.executors import LocalEngine  # noqa: E402
from dataengine.build.prepare import prepare  # noqa: E402
from dataengine.build.rounds import run_rounds  # noqa: E402
from dataengine.build.stream import clean_stream  # noqa: E402
from dataengine.cleaning.minhash import PERMUTATIONS, shingle_texts  # noqa: E402
from dataengine.config.load import load_config  # noqa: E402
from dataengine.storage.open import open_store  # noqa: E402
from dataengine.tables import table  # noqa: E402

THRESHOLD = 0.8
_SEED = 17
Texts = list[str]


def main() -> None:
    """Print the table, or the growth with texts of one template."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=int, metavar="N", help="only the growth with N texts of one template")
    parser.add_argument("--run", nargs=3, metavar=("FILE", "STORE", "WORKERS"), help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=3, help="runs of each contender (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(Path(options.run[0]), options.run[1], int(options.run[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.template:
            show_growth(Path(folder), options.template)
        else:
            show_cases(Path(folder), options.runs, as_json=options.json)


def show_cases(folder: Path, runs: int, *, as_json: bool) -> None:
    """What is dropped in each case, for any number of workers and after a kill, and the cost: a table, or JSON rows."""
    heading = (
        "case,texts,dropped,falsely,missed at +0.05,at +0.1,keys only,in total,ratio,memory,peer: dropped,falsely,time"
    )
    rows = [tuple(heading.split(","))]
    rensa_version = f"rensa {version('rensa')}"
    for name, texts in make_cases():
        path = write(folder / f"{name}.jsonl", texts)
        ours, peers = [], []
        for turn in range(runs):
            ours.append(run(path, folder / f"{name}.1.{turn}", 1))
            peers.append(run_peer(texts))
        found, (peer_gone, _) = ours[0], peers[0]
        assert all(one["twins"] == found["twins"] for one in ours), "runs differ in what is dropped"
        seconds, keys = (median([one[figure] for one in ours]) for figure in ("seconds", "keys"))
        peer_seconds = median([used for _, used in peers])
        for workers in (2, 3):
            assert run(path, folder / f"{name}.{workers}", workers)["twins"] == found["twins"]
        assert run_killed(path, folder / f"{name}.killed")["twins"] == found["twins"], "a kill changed what is dropped"
        gone = {record for record, _, _ in found["twins"]}
        sets = [frozenset(found_set) for found_set in sets_of(texts)]
        falsely = sum(similarity(sets[record], sets[kept]) < THRESHOLD or kept in gone
                      for record, kept, _ in found["twins"])  # fmt: skip
        peer_falsely = count_false(peer_gone, sets)
        if as_json:
            label, ratio = f"near_{name.replace(' ', '_')}", peer_seconds / seconds
            for row in (
                Row(label, seconds, "s", rensa_version, peer_seconds, ratio, seconds, peer_seconds, runs),
                Row(f"{label}_falsely", falsely, "texts", rensa_version, peer_falsely, runs=runs),
            ):
                show(row, as_json=True)
            continue
        rows.append(
            (
                name, f"{len(texts):,}", f"{len(gone):,}", f"{falsely:,}", *missed(gone, sets),
                f"{keys:.1f} s", f"{seconds:.1f} s", f"{seconds / keys:.2f}",
                f"{found['megabytes']:,} MB", f"{len(peer_gone):,}", f"{peer_falsely:,}", f"{peer_seconds:.1f} s",
            )
        )  # fmt: skip
    if as_json:
        return
    print("\n".join(table(rows)))
    print("The same texts are dropped with 1, 2 and 3 workers, and after a SIGKILL in the middle.")


def show_growth(folder: Path, count: int) -> None:
    """Time and memory for texts of one template, where every tenth is a near copy of the one before."""
    rows = [("texts", "near copies", "gone", "keys alone", "in all", "microseconds a text", "memory of a process")]
    for size in (count // 10, count // 2, count):
        path = folder / "template.jsonl"
        with path.open("wb") as file:
            for text in make_templated(size):
                file.write(orjson.dumps({"text": text}) + b"\n")
        found = run(path, folder / "store", 2)
        shutil.rmtree(folder / "store")
        rows.append(
            (f"{size:,}", f"{size // 10:,}", f"{len(found['twins']):,}", f"{found['keys']:.0f} s",
             f"{found['seconds']:.0f} s", f"{found['seconds'] / size * 1e6:.0f}", f"{found['megabytes']:,} MB")
        )  # fmt: skip
    print("\n".join(table(rows)))


# --- Texts ---


def make_words(chance: random.Random, count: int) -> Texts:
    """Random words of a vocabulary of 30,000."""
    return [_VOCABULARY[chance.randrange(len(_VOCABULARY))] for _ in range(count)]


_LETTERS = random.Random(0)
_VOCABULARY = [
    "".join(_LETTERS.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(_LETTERS.randint(3, 9))) for _ in range(30_000)
]


def make_cases() -> Iterator[tuple[str, Texts]]:
    """Names and texts."""
    chance = random.Random(1)
    boilerplate = make_words(chance, 255)
    yield "template 0.74", [" ".join(boilerplate + make_words(chance, 45)) for _ in range(3000)]
    text = make_words(chance, 3000 * 6 + 300)
    yield "chain", [" ".join(text[6 * k : 6 * k + 300]) for k in range(3000)]
    yield "twins", edit([make_words(chance, 300) for _ in range(3000)], _VOCABULARY, chance, " ")
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    chinese = [[chance.choice(characters) for _ in range(300)] for _ in range(3000)]
    yield "Chinese twins", edit(chinese, characters, chance, "")
    yield "no twins", [" ".join(make_words(chance, 300)) for _ in range(6000)]


def edit(texts: list[list[str]], words: Texts, chance: random.Random, space: str) -> Texts:
    """The texts, and a copy of each with 0 to 16 words replaced."""
    twins = []
    for text in texts:
        twin = list(text)
        for place in chance.sample(range(len(twin)), chance.randint(0, 16)):
            twin[place] = chance.choice(words)
        twins.append(twin)
    return [space.join(text) for text in [*texts, *twins]]


def make_templated(count: int) -> Iterator[str]:
    """Texts with 85 words in common and 15 of their own; every tenth is the one before with one word changed."""
    chance = random.Random(2)
    boilerplate, last = make_words(chance, 85), make_words(chance, 100)
    for number in range(count):
        if number % 10 == 9:
            last[-1 - chance.randrange(2)] = chance.choice(_VOCABULARY)
        else:
            last = boilerplate + make_words(chance, 15)
        yield " ".join(last)


def write(path: Path, texts: Texts) -> Path:
    """JSON Lines of texts."""
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    return path


# --- Truth ---


def sets_of(texts: Texts) -> Iterator[list[int]]:
    """The shingles of each text."""
    shingles = shingle_texts(texts)
    ends = shingles.ends.tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        yield shingles.hashes[start:end].tolist()


def similarity(one: frozenset[int], other: frozenset[int]) -> float:
    """Jaccard."""
    return len(one & other) / len(one | other)


def neighbours(sets: list[frozenset[int]]) -> list[set[int]]:
    """For each text, the earlier texts with which it shares rare shingles."""
    places: dict[int, list[int]] = {}
    for number, mine in enumerate(sets):
        for shingle in mine:
            places.setdefault(shingle, []).append(number)
    found: list[set[int]] = [set() for _ in sets]
    for numbers in places.values():
        if 1 < len(numbers) <= 64:
            for place, number in enumerate(numbers):
                found[number].update(numbers[:place])
    return found


def missed(gone: set[int], sets: list[frozenset[int]]) -> tuple[str, str]:
    """How many texts stay although a kept earlier one is 0.05 (0.1) above the threshold."""
    near, cells = neighbours(sets), []
    for margin in (0.05, 0.1):
        wanted = [
            number
            for number, others in enumerate(near)
            if any(similarity(sets[number], sets[k]) >= THRESHOLD + margin for k in others - gone)
        ]
        cells.append(f"{sum(number not in gone for number in wanted)} of {len(wanted):,}")
    return cells[0], cells[1]


def count_false(gone: set[int], sets: list[frozenset[int]]) -> int:
    """Dropped texts that no kept earlier text resembles."""
    near = neighbours(sets)
    return sum(not any(similarity(sets[number], sets[k]) >= THRESHOLD for k in near[number] - gone) for number in gone)


# --- Runs ---


def run(path: Path, store: Path, workers: int) -> dict[str, Any]:
    """`measure` in a separate process."""
    command = [sys.executable, __file__, "--run", str(path), str(store), str(workers)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def run_killed(path: Path, store: Path) -> dict[str, Any]:
    """The same, killed as soon as the comparison has finished a first task, and started again."""
    command = [sys.executable, __file__, "--run", str(path), str(store), "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(store.glob("units/*/pairs.npy")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return run(path, store, 2)


def measure(path: Path, store: str, workers: int) -> dict[str, Any]:
    """Clean and compare a file of texts: what is dropped, CPU seconds of the keys and in total, peak memory."""
    config_path = path.with_suffix(f".{os.getpid()}.yaml")
    config_path.write_text(
        f"name: n\ntokenizer: {ROOT / 'demo/data/tokenizer.model'}\nseq_len: 128\nbatch_size: 1\nstore: {store}\n"
        f"streams:\n  s:\n    documents: ['{path}']\n    clean: {{near_dedup: {THRESHOLD}}}\n"
        "stages: [{name: a, drain: true, mix: {s: 1}}]\n"
    )
    config = load_config(config_path)
    prepared = prepare(config, open_store(store))
    seconds: list[float] = []

    class Timed(LocalEngine):
        def run(self, *arguments: Any) -> Any:
            before = _cpu_seconds()
            receipts = super().run(*arguments)
            seconds.append(_cpu_seconds() - before)
            return receipts

    begun = _cpu_seconds()
    cleaned = run_rounds(
        {"s": clean_stream(prepared.streams["s"], config, prepared.store)}, Timed(workers), prepared.store
    )
    lines = [0]
    for receipt in cleaned["s"].receipts:
        lines.append(lines[-1] + receipt.lines)
    twins = [
        [lines[record >> 32] + (record & 0xFFFFFFFF), lines[kept >> 32] + (kept & 0xFFFFFFFF), alike]
        for record, kept, alike in cleaned["s"].twins.tolist()
    ]
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"twins": twins, "keys": seconds[0], "seconds": _cpu_seconds() - begun, "megabytes": usage >> 10}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_peer(texts: Texts) -> tuple[set[int], float]:
    """The texts that rensa's deduplicator removes, and its CPU seconds."""
    begun = time.process_time()
    peer, gone = rensa.RMinHashDeduplicator(THRESHOLD, PERMUTATIONS, True, 16, _SEED), set()
    for number, text in enumerate(texts):
        words = text.split() if " " in text else list(text)
        size = 5 if " " in text else 10
        shingles = [" ".join(words[k : k + size]) for k in range(max(1, len(words) - size + 1))]
        signature = rensa.RMinHash(PERMUTATIONS, _SEED)
        signature.update(shingles)
        if not peer.add(str(number), signature):
            gone.add(number)
    return gone, time.process_time() - begun


if __name__ == "__main__":
    main()
