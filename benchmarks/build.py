"""How fast text becomes token shards, against other programs and a bare loop: `python benchmarks/build.py [--full]`.

The same JSON Lines, the same tokenizer (ours reads the SentencePiece model, the others the tokenizer.json made from it)
and the same number of workers, each with one processor. The program stops unless all count the same tokens. Each run is
a separate process: the clock starts when its modules are imported, with the input in the page cache and the tokenizer
loaded where a program can load it before, and stops when all files are written. Starting workers counts. Contenders
take turns; the figure is millions of tokens per CPU-second of the median round. A ratio above 1 means that ours is
faster.

build_en, build_zh, build_pairs   a stream of documents or pairs, against
                                  - bare loop: orjson.loads of each line, one call of gigatoken for 8,000 texts, and
                                    their ids at the end of one file; no checks, shuffle, EOS, samples or hashes
                                  - the tokenizer alone on texts in memory
                                  - tokenizers.encode_batch_fast and numpy, datasets.map, datatrove, llm-foundry
build_bpe128k                     English with byte-level BPE of 131,072 entries, against the first three
build_scaling                     two workers against one, both over the same two files, in tokens per second; without
                                  `--full` the text is short, and the start of the workers, half a second, decides
build_checksums                   with SHA-256 and zstd on against without

Short data are repeated, with a note, and in English every third word is changed: otherwise they favour ours, whose
tokenizer caches words. For real figures, give `--full` and a folder of real text. The first run makes an environment
for datatrove and folders for llm-foundry and the byte-level tokenizer (of mistral-common) under .bench/, with uv.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from rows import Row, medians, show

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".bench"
DATATROVE, LLM_FOUNDRY, MISTRAL = "datatrove==0.10.1", "llm-foundry==0.22.0", "mistral-common==1.13.1"
TEKKEN = PEERS / MISTRAL / "mistral_common" / "data" / "tekken_240911.json"
_RUNS = 3
QUICK, FULL = 5_000_000, 20_000_000  # bytes of text
FAST = 8  # times as much for the fast contenders
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
    tokenizer: str | None = None  # a tokenizer.json in place of that of the data


@dataclass(frozen=True)
class Bench:
    """Where input comes from, where output goes, and how much there is."""

    data: Path
    folder: Path
    full: bool
    model: Path
    tokenizer: Path  # the equal tokenizer.json
    control_tokens: tuple[str, ...]


def main() -> None:
    """Print the table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--full",
        action="store_true",
        help="all of the data, >= 20 MB, 3 rounds (default: 5 MB, for fast contenders 40 MB, 1 round)",
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
        path = Path(name) / "tokenizer.json"
        control_tokens = convert_tokenizer(models[0], path)
        bench = Bench(options.data, Path(name), options.full, models[0], path, control_tokens)
        for row in rows:
            for contenders in ROWS[row](bench, options.workers):
                for line in measure(row, contenders, options.full, bench):
                    show(line, as_json=options.json)


def build_en(bench: Bench, workers: int) -> list[dict[str, Contender]]:
    """English documents."""
    return against_all("en", bench, workers)


def build_zh(bench: Bench, workers: int) -> list[dict[str, Contender]]:
    """Chinese documents, and the Chinese sides of the pairs."""
    return against_all("zh", bench, workers)


def build_pairs(bench: Bench, workers: int) -> list[dict[str, Contender]]:
    """Pairs for ours, which also shuffles them over all files, and for the bare loop; for the others their training
    texts, in file order."""
    return against_all("pairs", bench, workers)


def build_bpe128k(bench: Bench, workers: int) -> list[dict[str, Contender]]:
    """English documents with byte-level BPE, on which the tokenizer is fastest."""
    install(MISTRAL, ["pip", "install", "--python", sys.executable, "--no-deps", "--target", PEERS / MISTRAL, MISTRAL])
    path = PEERS / MISTRAL / "tokenizer.json"
    if not path.exists():
        path.write_text(json.dumps(convert_tekken(json.loads(TEKKEN.read_text())), ensure_ascii=False))
    slow = {label: name for label, name in slow_names().items() if name == "tokenizers"}
    return against("en", bench, workers, slow, str(path))


def against_all(name: str, bench: Bench, workers: int) -> list[dict[str, Contender]]:
    """All who can build or tokenize a corpus."""
    install_peers()
    return against(name, bench, workers, slow_names())


def against(
    name: str, bench: Bench, workers: int, slow: Mapping[str, str], tokenizer: str | None = None
) -> list[dict[str, Contender]]:
    """The fast contenders, and some of the slow ones, which get less of a corpus: a start weighs less there."""
    large, small = make_corpus(name, bench, workers, FAST * QUICK), make_corpus(name, bench, workers)
    return [
        {label: Contender(who, corpus, workers, tokenizer=tokenizer) for label, who in names.items()}
        for corpus, names in ((large, fast_names()), (small, {"ours": "ours", **slow}))
    ]


def fast_names() -> dict[str, str]:
    """The contenders that gigatoken makes fast, by label."""
    gigatoken = f"gigatoken {version('gigatoken')}"
    return {
        "ours": "ours",
        f"bare loop: orjson + {gigatoken} + numpy": "bare",
        f"{gigatoken}, encode only": "gigatoken",
    }


def slow_names() -> dict[str, str]:
    """The other contenders, by label."""
    return {
        f"tokenizers {version('tokenizers')} encode_batch_fast + numpy": "tokenizers",
        f"datasets {version('datasets')} map": "datasets",
        DATATROVE.replace("==", " "): "datatrove",
        LLM_FOUNDRY.replace("==", " "): "llm-foundry",
    }


def build_scaling(bench: Bench, workers: int) -> list[dict[str, Contender]]:
    """Several workers against one."""
    workers = max(2, workers)
    # Enough that starting a process, half a second, does not hide what is measured.
    corpus = make_corpus("en", bench, workers, SCALING if bench.full else FAST * QUICK)
    return [{"ours": Contender("ours", corpus, workers), "1 worker": Contender("ours", corpus, 1)}]


def build_checksums(bench: Bench, workers: int) -> list[dict[str, Contender]]:
    """The cost of SHA-256 and zstd."""
    corpus = make_corpus("en", bench, workers)
    return [{"ours": Contender("ours", corpus, workers, CHECKSUMS), "neither": Contender("ours", corpus, workers)}]


ROWS = {row.__name__: row for row in (build_en, build_zh, build_pairs, build_bpe128k, build_scaling, build_checksums)}


def measure(name: str, contenders: Mapping[str, Contender], full: bool, bench: Bench) -> list[Row]:
    """A row for each contender but ours. Exits if one fails or counts a different number of tokens."""
    found = medians(_RUNS, {label: partial(build_once, one, bench) for label, one in contenders.items()})
    tokens = {label: figures["tokens"] for label, figures in found.items()}
    if len(set(tokens.values())) > 1:
        sys.exit(f"token counts differ: {tokens}")
    by, unit = ("seconds", "Mtok/s") if name == "build_scaling" else ("cpu", "Mtok/CPU-s")
    rates = {label: tokens[label] / figures[by] / 1e6 for label, figures in found.items()}
    ours, cpu = rates["ours"], found["ours"]["cpu"]
    note(f"{name}: {tokens['ours']:,.0f} tokens by each")
    return [
        Row(name, ours, unit, label, rate, ours / rate, cpu, found[label]["cpu"], _RUNS)
        for label, rate in rates.items()
        if label != "ours"
    ]


def build_once(contender: Contender, bench: Bench) -> dict[str, float]:
    """Seconds, CPU-seconds and tokens of one build in a process of its own."""
    out = bench.folder / "out"
    job = {
        "workers": contender.workers,
        "out": str(out),
        "documents": contender.corpus.documents,
        "pairs": contender.corpus.pairs,
        "model": contender.tokenizer or str(bench.model),
        "tokenizer": contender.tokenizer or str(bench.tokenizer),
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
    wanted = max(FULL if bench.full else QUICK, at_least)
    while size < wanted:
        times += 1
        for record in read_records(name, bench.data):
            if times > 1 and name == "en":
                record = {"text": vary(record["text"], times)}
            if not bench.full and size >= wanted:
                break
            if any(token in record["text"] for token in bench.control_tokens):
                left_out += 1  # the peers take them for control tokens, for us they stay text
                continue
            records.append(record)
            size += len(record["text"].encode())
    repeated = f", the data up to {times} times over" if times > 1 else ""
    note(f"{name}: {size / 1e6:.1f} MB, {len(records):,} records{repeated}; {left_out} with control tokens left out")
    folder = bench.folder / f"{name}-{parts}-{at_least}"
    if name != "pairs":
        return Corpus(write_parts(records, folder / "documents", parts), [])
    # Of the pairs of a file, every second one is written from Chinese to English.
    texts = [{"text": record["back" if number // parts % 2 else "text"]} for number, record in enumerate(records)]
    sides = [{"en": record["en"], "zh": record["zh"]} for record in records]
    return Corpus(write_parts(texts, folder / "documents", parts), write_parts(sides, folder / "pairs", parts))


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
        return (
            {
                "text": f"English: {pair['en']}\nChinese: {pair['zh']}",
                "back": f"Chinese: {pair['zh']}\nEnglish: {pair['en']}",
                **pair,
            }
            for pair in pairs
        )
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


def convert_tekken(model: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json that equals a tokenizer of mistral-common, with its control tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    size, special = model["config"]["default_vocab_size"], model["config"]["default_num_special_tokens"]
    words = [base64.b64decode(token["token_bytes"]) for token in model["vocab"][: size - special]]
    ranks = {word: rank for rank, word in enumerate(words)}
    letters = bytes_to_unicode()

    def halves(word: bytes) -> list[str]:
        parts = [word[k : k + 1] for k in range(len(word))]
        while len(parts) > 2:
            first = min(range(len(parts) - 1), key=lambda k: ranks.get(parts[k] + parts[k + 1], size))
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        return ["".join(map(letters.__getitem__, part)) for part in parts]

    names = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{number}>" for number in range(3, special))]
    flags = {"special": True, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    vocab = [*names, *("".join(map(letters.__getitem__, word)) for word in words)]
    pattern = {"type": "Split", "pattern": {"Regex": model["config"]["pattern"]}, "behavior": "Isolated"}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": name, **flags} for number, name in enumerate(names)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**pattern, "invert": False}, by_bytes]},
        "post_processor": None,
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "byte_fallback": False,
            "fuse_unk": False,
            "vocab": {word: number for number, word in enumerate(vocab)},
            "merges": [halves(word) for word in words if len(word) > 1],
        },
    }


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
