"""Build once from JSON Lines and say how long it took: `python build_once.py CONTENDER JOB`, called by ../build.py.

Runs in the interpreter of the contender, so that nothing but the standard library is imported above. JOB is JSON in the
shape of Job. Prints {"seconds", "cpu", "tokens"}: from files in the page cache to finished files, all imports of this
process done; CPU-seconds with those of its processes; tokens with an EOS a document, counted after the clock has
stopped.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

SEQ_LEN = 2048
EOS = "</s>"


@dataclass(frozen=True)
class Job:
    """What to build; `documents` and `pairs` have the same texts, at least one file per worker."""

    workers: int
    out: str  # a folder that does not exist
    documents: list[str]  # files of {"text": ...}
    pairs: list[str]  # files of {"en": ..., "zh": ...}, for a build of pairs
    model: str  # the SentencePiece .model
    tokenizer: str  # the equal tokenizer.json
    library: str  # folder with llm-foundry's package
    settings: dict[str, Any]  # further keys of our config


Contender = tuple[Callable[[], object], Callable[[], int]]  # the build, and what counts its tokens afterwards


def main() -> None:
    """Build, and print seconds and tokens."""
    job = Job(**json.loads(sys.argv[2]))
    # A worker and its helper threads share one processor.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.workers])
    build, count_tokens = CONTENDERS[sys.argv[1]](job)
    for path in job.documents + job.pairs:
        Path(path).read_bytes()  # into the page cache
    begun, used = time.perf_counter(), cpu_seconds()
    build()
    seconds, cpu = time.perf_counter() - begun, cpu_seconds() - used
    print(json.dumps({"seconds": seconds, "cpu": cpu, "tokens": count_tokens()}))


def cpu_seconds() -> float:
    """As in ../rows.py, which the interpreters of some contenders cannot import."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def ours(job: Job) -> Contender:
    """`dataengine build` of one stream."""
    import gigatoken  # noqa: F401 (imported by the build, as below)
    import sentencepiece  # noqa: F401

    from dataengine.build.build import build
    from dataengine.config.load import load_config
    from dataengine.text.tokenizers.load import load_tokenizer

    load_tokenizer(job.model)  # kept by the process for the build
    load_tokenizer(job.model, engine="auto")
    stream = {"pairs": job.pairs, "directions": ["en-zh", "zh-en"]} if job.pairs else {"documents": job.documents}
    Path(job.out).mkdir()
    experiment = Path(job.out) / "experiment.yaml"
    values = {
        "name": "benchmark",
        "store": f"{job.out}/store",
        "tokenizer": job.model,
        "seq_len": SEQ_LEN,
        "batch_size": 1,
        "streams": {"text": stream},
        "stages": [{"name": "all", "drain": True, "mix": {"text": 1}}],
        **job.settings,
    }
    experiment.write_text(json.dumps(values))  # JSON is YAML
    results: list[Any] = []

    def count_tokens() -> int:
        return sum(stream.tokens for stream in results[0].streams)

    return lambda: results.append(build(load_config(experiment), workers=job.workers)), count_tokens


def datatrove(job: Job) -> Contender:
    """JsonlReader -> DocumentTokenizer, one task and file per worker; documents keep their order, as ours do."""
    import orjson  # noqa: F401 (imported by the reader on its first line, and the next by the writer)
    import tokenizers  # noqa: F401
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    def build() -> None:
        reader = JsonlReader(str(Path(job.documents[0]).parent), glob_pattern="*.jsonl")
        writer = DocumentTokenizer(f"{job.out}/tokens", job.tokenizer, eos_token=EOS, shuffle_documents=False)
        tasks = len(job.documents)
        LocalPipelineExecutor([reader, writer], tasks, job.workers, logging_dir=f"{job.out}/logs").run()

    def count_tokens() -> int:
        metadata = Path(job.out, "tokens").glob("*.metadata")  # name, number of tokens, the same for people
        return sum(int(path.read_text().splitlines()[1]) for path in metadata)

    return build, count_tokens


def llm_foundry(job: Job) -> Contender:
    """The loop of its convert_dataset_json: ConcatTokensDataset -> MDSWriter. A process per file, as it has only one.

    Records come from orjson, which is faster than load_dataset of that program. Processes are forked with all modules
    loaded. Its package has many dependencies that this loop does not need, so its one file is loaded by itself.
    """
    from streaming import MDSWriter
    from transformers import PreTrainedTokenizerFast

    spec = importlib.util.spec_from_file_location("llmfoundry_data", f"{job.library}/llmfoundry/data/data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    counts: list[int] = []

    def convert(number: int) -> int:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=job.tokenizer, eos_token=EOS)
        tokenizer.model_max_length = int(1e30)  # as that program does
        records = _read(job.documents[number])
        dataset = module.ConcatTokensDataset(records, tokenizer, SEQ_LEN + 1, bos_text="", eos_text=EOS, no_wrap=False)
        assert len(dataset.eos_tokens) == 1
        dataset.tokenizer = counter = _CountingTokenizer(tokenizer)
        with MDSWriter(columns={"tokens": "ndarray:int32"}, out=f"{job.out}/{number}", compression=None) as writer:
            for sample in dataset:
                writer.write(sample)
        return counter.tokens  # including the last, partial sample, which it does not write

    return lambda: counts.extend(_each(convert, job)), lambda: sum(counts)


class _CountingTokenizer:
    """Counts the tokens that a tokenizer returns, and an EOS for each text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.tokens = tokenizer, 0

    def __call__(self, text: str, **options: Any) -> Any:
        encoded = self._tokenizer(text, **options)
        self.tokens += len(encoded["input_ids"]) + 1
        return encoded


def gigatoken(job: Job) -> Contender:
    """The tokenizer alone, already loaded, on texts in memory: one call per file."""
    tokenizer = _load_gigatoken(job)
    texts = [[record["text"] for record in _read(path)] for path in job.documents]
    counts: list[int] = []

    def encode(number: int) -> int:
        return int(tokenizer.encode_batch(texts[number], parallel=False).layout.offsets.data[-1])

    return lambda: counts.extend(_each(encode, job)), lambda: sum(counts) + sum(map(len, texts))


def bare(job: Job) -> Contender:
    """A loop that could not be shorter: each line by orjson, a call of gigatoken for many texts, ids to one file.

    Pairs become the same documents as in our build, in the order of their lines.
    """
    import numpy as np
    import orjson

    tokenizer, batch = _load_gigatoken(job), 8000
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    counts: list[int] = []
    Path(job.out).mkdir()

    def write(number: int) -> int:
        total = 0
        with open((job.pairs or job.documents)[number], "rb") as lines, open(f"{job.out}/{number}", "wb") as out:
            while records := list(map(orjson.loads, islice(lines, batch))):
                texts = _documents(records) if job.pairs else [record["text"] for record in records]
                ids = np.asarray(tokenizer.encode_batch(texts, parallel=False).layout.content.data)
                ids.astype(dtype).tofile(out)
                total += len(ids) + len(texts)
        return total

    return lambda: counts.extend(_each(write, job)), lambda: sum(counts)


def _documents(pairs: list[dict[str, str]]) -> list[str]:
    """The texts of pairs, given after an even number of others: directions take turns."""
    return [
        f"Chinese: {pair['zh']}\nEnglish: {pair['en']}" if turn % 2 else f"English: {pair['en']}\nChinese: {pair['zh']}"
        for turn, pair in enumerate(pairs)
    ]


def _load_gigatoken(job: Job) -> Any:
    import awkward  # noqa: F401 (imported by the first call)
    from gigatoken import Tokenizer

    spec = json.loads(Path(job.tokenizer).read_text(encoding="utf-8"))
    return Tokenizer.from_json(json.dumps({**spec, "added_tokens": []}))


def tokenizers(job: Job) -> Contender:
    """The fastest conventional loop, as of OLMo-core: encode_batch_fast, and numpy to one file."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(job.tokenizer)
    eos = tokenizer.token_to_id(EOS)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    counts: list[int] = []
    Path(job.out).mkdir()

    def write(number: int) -> int:
        total, records = 0, _read(job.documents[number])
        with open(f"{job.out}/{number}", "wb") as out:
            while texts := [record["text"] for record in islice(records, 1000)]:
                encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                ids = np.concatenate([np.array([*one.ids, eos], dtype) for one in encoded])
                ids.tofile(out)
                total += len(ids)
        return total

    return lambda: counts.extend(_each(write, job)), lambda: sum(counts)


def datasets(job: Job) -> Contender:
    """load_dataset of JSON Lines, and map in batches with a tokenizer of transformers; its cache holds the ids."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import PreTrainedTokenizerFast

    disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=job.tokenizer, eos_token=EOS)
    eos = tokenizer.eos_token_id
    made: list[Any] = []

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [[*ids, eos] for ids in tokenizer(batch["text"], add_special_tokens=False)["input_ids"]]}

    def build() -> None:
        texts = load_dataset("json", data_files=job.documents, split="train", cache_dir=job.out)
        made.append(texts.map(encode, batched=True, remove_columns="text", num_proc=job.workers, keep_in_memory=False))

    def count_tokens() -> int:
        return sum(len(chunk.flatten()) for chunk in made[0].data.column("ids").chunks)

    return build, count_tokens


def _each(work: Callable[[int], int], job: Job) -> list[int]:
    """Do the work for each file number: here, or in forked processes."""
    numbers = range(len(job.documents))
    if job.workers == 1:
        return list(map(work, numbers))
    global _work
    _work = work  # a fork inherits it; it need not be picklable
    with ProcessPoolExecutor(job.workers, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(_do, numbers))


def _do(number: int) -> int:
    return _work(number)


_work: Callable[[int], int]


def _read(path: str) -> Iterator[dict[str, str]]:
    import orjson

    with open(path, "rb") as file:
        yield from map(orjson.loads, file)


CONTENDERS = {
    "ours": ours,
    "bare": bare,
    "gigatoken": gigatoken,
    "tokenizers": tokenizers,
    "datasets": datasets,
    "datatrove": datatrove,
    "llm-foundry": llm_foundry,
}

if __name__ == "__main__":
    main()
