"""How fast text becomes token shards, against datatrove and llm-foundry: `python benchmarks/build.py [--full]`.

The same JSON Lines, the same tokenizer (ours reads the SentencePiece model, the others the tokenizer.json made from it)
and the same number of workers, each with one processor. The program stops unless all count the same tokens. Each run is
a separate process: the clock starts when its modules are imported, with the input in the page cache, and stops when all
files are written. Starting workers counts. Contenders take turns; the figure is Mtok/s of the median round. A ratio
above 1 means that ours is faster.

build_en, build_zh, build_pairs   a stream of documents or pairs; also against the tokenizer alone on texts in memory
build_scaling                     two workers against one, both over the same two files
build_checksums                   with SHA-256 and zstd on against without

Short data are repeated, with a note, and in English every third word is changed: otherwise they favour ours, whose
tokenizer caches words. Short input favours the others, which start faster. For real figures, give `--full` and a folder
of real text. The first run makes an environment for datatrove and a folder for llm-foundry under .bench/, with uv.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".bench"
DATATROVE, LLM_FOUNDRY = "datatrove==0.10.1", "llm-foundry==0.22.0"
QUICK, FULL = 10_000_000, 20_000_000  # bytes of text
SCALING = 1_200_000_000  # bytes, of build_scaling in full
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # else a worker of datatrove takes all cores
    "PYTHONDONTWRITEBYTECODE": "",  # where it is set, each new worker of each contender compiles what it imports
}
CHECKSUMS = {"shard_hashes": ["xxh64", "sha256"], "shard_compression": "zstd:1"}

Record = dict[str, str]  # "text"; of a pair also "en" and "zh"


@dataclass(frozen=True)
class Corpus:
    """Files of texts. For a stream of pairs also the pairs themselves, which ours reads."""

    documents: list[str]
    pairs: list[str]


@dataclass(frozen=True)
class Contender:
    """Who builds what; `name` is that of build_once.py."""

    name: str
    corpus: Corpus
    workers: int
    settings: dict[str, Any] = field(default_factory=dict)  # further keys of our config


@dataclass(frozen=True)
class Bench:
    """Where input comes from, where output goes, and how much there is."""

    data: Path
    folder: Path
    full: bool
    model: Path
    control_tokens: tuple[str, ...]

    @property
    def tokenizer(self) -> Path:
        """The tokenizer.json of the model."""
        return self.folder / "tokenizer.json"


def main() -> None:
    """Print the table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--full", action="store_true", help="all of the data, >= 20 MB, 3 rounds (default: 10 MB, 1 round)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "demo" / "data",
        help="folder of mono.en, en-zh.train and, if there, mono.zh (.jsonl.zst), and a .model; repeated where short "
        "(default: demo/data)",
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="of the first three rows and the last (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    rows = options.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"no row {unknown[0]}; there are {', '.join(ROWS)}")
    models = sorted(options.data.glob("*.model"))
    if len(models) != 1:
        parser.error(f"{options.data} has {len(models)} files *.model instead of one")
    with tempfile.TemporaryDirectory(prefix="build-") as name:
        control_tokens = convert_tokenizer(models[0], Path(name) / "tokenizer.json")
        bench = Bench(options.data, Path(name), options.full, models[0], control_tokens)
        if not options.json:
            print(f"{'build':15} {'ours':>8}  Mtok/s")
        for row in rows:
            rate = measure(ROWS[row](bench, options.workers), bench)
            for peer in [peer for peer in rate if peer != "ours"]:
                if options.json:
                    line = {"benchmark": row, "ours": rate["ours"], "unit": "Mtok/s", "peer": peer}
                    print(
                        json.dumps({**line, "peer_value": rate[peer], "ratio": rate["ours"] / rate[peer]}), flush=True
                    )
                else:
                    print(
                        f"{row:15} {rate['ours']:8.3f}  {peer:30} {rate[peer]:8.3f}  {rate['ours'] / rate[peer]:6.2f}x",
                        flush=True,
                    )


def build_en(bench: Bench, workers: int) -> dict[str, Contender]:
    """English documents."""
    return against_peers(make_corpus("en", bench, workers), workers)


def build_zh(bench: Bench, workers: int) -> dict[str, Contender]:
    """Chinese documents, and the Chinese sides of the pairs."""
    return against_peers(make_corpus("zh", bench, workers), workers)


def build_pairs(bench: Bench, workers: int) -> dict[str, Contender]:
    """Pairs for ours, which also shuffles them over all files; for the others their training texts, in file order."""
    return against_peers(make_corpus("pairs", bench, workers), workers)


def against_peers(corpus: Corpus, workers: int) -> dict[str, Contender]:
    """All who can build or tokenize a corpus."""
    install_peers()
    names = {
        "ours": "ours",
        DATATROVE.replace("==", " "): "datatrove",
        LLM_FOUNDRY.replace("==", " "): "llm-foundry",
        f"gigatoken {version('gigatoken')}, encode only": "gigatoken",
    }
    return {label: Contender(name, corpus, workers) for label, name in names.items()}


def build_scaling(bench: Bench, workers: int) -> dict[str, Contender]:
    """Several workers against one."""
    workers = max(2, workers)
    # Enough that starting a process, half a second, does not hide what is measured.
    corpus = make_corpus("en", bench, workers, SCALING if bench.full else QUICK)
    return {"ours": Contender("ours", corpus, workers), "1 worker": Contender("ours", corpus, 1)}


def build_checksums(bench: Bench, workers: int) -> dict[str, Contender]:
    """The cost of SHA-256 and zstd."""
    corpus = make_corpus("en", bench, workers)
    return {"ours": Contender("ours", corpus, workers, CHECKSUMS), "neither": Contender("ours", corpus, workers)}


ROWS = {row.__name__: row for row in (build_en, build_zh, build_pairs, build_scaling, build_checksums)}


def measure(contenders: Mapping[str, Contender], bench: Bench) -> dict[str, float]:
    """Mtok/s of each. Exits if one fails or counts a different number of tokens."""
    labels, seconds, tokens = list(contenders), dict[str, list[float]](), dict[str, int]()
    for turn in range(3 if bench.full else 1):
        shift = turn % len(labels)
        for label in labels[shift:] + labels[:shift]:
            result = build_once(contenders[label], bench)
            seconds.setdefault(label, []).append(result["seconds"])
            if tokens.setdefault(label, result["tokens"]) != result["tokens"] or len(set(tokens.values())) > 1:
                sys.exit(f"token counts differ: {tokens}, now {label}: {result['tokens']}")
    note(f"{tokens[labels[0]]:,} tokens by each; seconds: {seconds}")
    return {label: tokens[label] / statistics.median(seconds[label]) / 1e6 for label in labels}


def build_once(contender: Contender, bench: Bench) -> dict[str, Any]:
    """Seconds and tokens of one build in a process of its own."""
    out = bench.folder / "out"
    job = {
        "workers": contender.workers,
        "out": str(out),
        "documents": contender.corpus.documents,
        "pairs": contender.corpus.pairs,
        "model": str(bench.model),
        "tokenizer": str(bench.tokenizer),
        "library": str(PEERS / LLM_FOUNDRY),
        "settings": contender.settings,
    }
    python = PEERS / DATATROVE / "bin" / "python" if contender.name == "datatrove" else sys.executable
    script = Path(__file__).parent / "peers" / "build_once.py"
    process = subprocess.run(
        [python, script, contender.name, json.dumps(job)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    shutil.rmtree(out, ignore_errors=True)
    if process.returncode:
        sys.exit(f"{contender.name} failed:\n{process.stderr[-3000:]}")
    return json.loads(process.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def make_corpus(name: str, bench: Bench, parts: int, at_least: int = 0) -> Corpus:
    """Write at least N bytes of records of "en", "zh" or "pairs" to several files of each kind, in turn."""
    records, size, times, left_out = list[Record](), 0, 0, 0
    while size < max(FULL if bench.full else QUICK, at_least):
        times += 1
        for record in read_records(name, bench.data):
            if times > 1 and name == "en":
                record = {"text": vary(record["text"], times)}
            if not bench.full and size >= QUICK:
                break
            if any(token in record["text"] for token in bench.control_tokens):
                left_out += 1  # the peers take them for control tokens, for us they stay text
                continue
            records.append(record)
            size += len(record["text"].encode())
    repeated = f", the data up to {times} times over" if times > 1 else ""
    note(f"{name}: {size / 1e6:.1f} MB, {len(records):,} records{repeated}; {left_out} with control tokens left out")
    folder = bench.folder / f"{name}-{parts}-{at_least}"
    documents = write_parts([{"text": record["text"]} for record in records], folder / "documents", parts)
    if name != "pairs":
        return Corpus(documents, [])
    sides = [{"en": record["en"], "zh": record["zh"]} for record in records]
    return Corpus(documents, write_parts(sides, folder / "pairs", parts))


def vary(text: str, turn: int) -> str:
    """A text with every third word replaced, by others in each turn: a tokenizer caches words that it has seen."""
    words = text.split(" ")
    for place in range(turn % 3, len(words), 3):
        words[place] = words[place][::-1] if place % 2 else words[place] + chr(97 + turn % 26)
    return " ".join(words)


def read_records(name: str, data: Path) -> Iterator[Record]:
    """Records of the data as their texts."""
    pairs = (
        {code: " ".join(pair[code].strip().splitlines()) for code in ("en", "zh")}  # as pairs are read
        for pair in read_lines(data / "en-zh.train.jsonl.zst")
    )
    if name == "pairs":
        return ({"text": f"English: {pair['en']}\nChinese: {pair['zh']}", **pair} for pair in pairs)
    mono = data / f"mono.{name}.jsonl.zst"
    documents = ({"text": record["text"]} for record in (read_lines(mono) if name == "en" or mono.exists() else ()))
    return documents if name == "en" else chain(documents, ({"text": pair["zh"]} for pair in pairs))


def read_lines(path: Path) -> Iterator[Record]:
    """Records of a compressed JSON Lines file."""
    import zstandard

    with path.open("rb") as file, io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file)) as lines:
        yield from map(json.loads, lines)


def write_parts(records: Sequence[Record], folder: Path, parts: int) -> list[str]:
    """Write records to files in turn; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part.{number:02d}.jsonl" for number in range(parts)]
    for number, path in enumerate(paths):
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records[number::parts])
    return list(map(str, paths))


def convert_tokenizer(model: Path, path: Path) -> tuple[str, ...]:
    """Write the tokenizer.json that equals a SentencePiece model; return its control tokens."""
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    content = sentencepiece_to_tokenizer_json(model.read_bytes())
    path.write_text(content, encoding="utf-8")
    return tuple(token["content"] for token in json.loads(content)["added_tokens"])


def install_peers() -> None:
    """Make datatrove's environment, and a folder with only the package of llm-foundry, as its dependencies are here."""
    here, datatrove, llm_foundry = sys.executable, PEERS / DATATROVE, PEERS / LLM_FOUNDRY
    packages = [DATATROVE, "tokenizers==0.23.3", "orjson==3.13.0"]
    install(
        DATATROVE,
        ["venv", "--python", here, datatrove],
        ["pip", "install", "--python", datatrove, *packages],
    )
    install(LLM_FOUNDRY, ["pip", "install", "--python", here, "--no-deps", "--target", llm_foundry, LLM_FOUNDRY])


def install(peer: str, *commands: list[str | Path]) -> None:
    """Fill a peer's folder by commands of uv unless it is complete. Exits if one fails."""
    folder = PEERS / peer
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if (folder / ".complete").exists():
        return
    if uv is None:
        sys.exit(f"uv is needed to install {peer}. Install it: {sys.executable} -m pip install uv")
    shutil.rmtree(folder, ignore_errors=True)
    for command in commands:
        process = subprocess.run([uv, *command], capture_output=True, text=True)
        if process.returncode:
            sys.exit(f"cannot install {peer}:\n{process.stderr[-3000:]}")
    (folder / ".complete").touch()


def note(text: str) -> None:
    """Print a note beside the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
