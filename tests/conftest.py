"""Small real corpora for tests, cut from the demonstration data."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from _pytest.mark import ParameterSet
from hypothesis import HealthCheck, settings

from dataengine.config.load import load_config
from dataengine.config.schema import Config
from dataengine.records.lines import read_lines
from dataengine.records.parts import whole_file
from dataengine.records.read import read_records
from dataengine.records.types import RecordFormat

# No test fails because its machine is slow.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A forked process leaves alone what its parent has not cleaned up yet. Else it may find a process group of an earlier
# test among the garbage, whose destructor waits for ever for threads that only the parent has.
os.register_at_fork(after_in_child=gc.freeze)

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "data"


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Programs called within a test set the levels of their loggers; the next test finds them as they were."""
    loggers = [logging.getLogger(name) for name in (None, "dataengine", "trainer")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """So are the signals that they handle, of which one to a child may reach this process."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def set_everywhere(patch: pytest.MonkeyPatch, module: ModuleType, name: str, value: object) -> None:
    """Set a module's name for a test, in the module and in all modules that import it."""
    own = getattr(module, name)
    for place in list(sys.modules.values()):
        if place.__name__.partition(".")[0] in ("dataengine", "trainer") and vars(place).get(name) is own:
            patch.setattr(place, name, value)


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    return DEMO / "tokenizer.model"


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two files of documents and two of pairs."""
    return write_corpora(tmp_path_factory.mktemp("corpora"))


def write_corpora(folder: Path) -> Path:
    """Fill a folder with two files of documents and two of pairs."""
    documents = list(read_lines(DEMO / "mono.en.jsonl.zst"))[:120]
    pairs = list(read_lines(DEMO / "en-zh.train.jsonl.zst"))[:600]
    for name, lines in (
        ("mono.0.jsonl", documents[:50]),
        ("mono.1.jsonl", documents[50:]),
        ("pairs.0.jsonl", pairs[:200]),
        ("pairs.1.jsonl", pairs[200:]),
    ):
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder


def slow_but(values: Iterable[Any], quick: Container[Any]) -> list[ParameterSet]:
    """Values of a test's parameter, or tuples of several ones, of which only some are in the quick tier."""
    rows = [(value, value if isinstance(value, tuple) else (value,)) for value in values]
    return [pytest.param(*row, marks=[] if value in quick else [pytest.mark.slow]) for value, row in rows]


ConfigMaker = Callable[..., Config]


@pytest.fixture
def make_config(tmp_path: Path, corpora: Path, tokenizer_path: Path) -> ConfigMaker:
    """A config over the corpora, in a folder of the test; keyword arguments replace top-level keys."""

    def make(overrides: list[str] | None = None, **changes: Any) -> Config:
        path = tmp_path / "experiment.yaml"
        path.write_text(
            yaml.safe_dump({**small_experiment(corpora, tokenizer_path, tmp_path), **changes}, sort_keys=False)
        )
        return load_config(path, overrides or [])

    return make


def small_experiment(corpora: Path, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Three streams, three stages with mixes, a model of a few thousand parameters."""
    return {
        "name": "small",
        "out": str(folder / "run"),
        "store": str(folder / "store"),
        "tokenizer": str(tokenizer),
        "seq_len": 32,
        "batch_size": 8,
        "samples_per_shard": 64,
        "shuffle_block": 100,
        "streams": {
            "mono": {"documents": [str(corpora / "mono.*.jsonl")]},
            "en-zh": {"pairs": [str(corpora / "pairs.*.jsonl")], "directions": ["en-zh"]},
            "both": {"pairs": [str(corpora / "pairs.*.jsonl")], "directions": ["en-zh", "zh-en"]},
        },
        "stages": [
            {"name": "first", "steps": 6, "mix": {"mono": 1}},
            {"name": "mixed", "steps": 6, "mix": {"mono": 3, "en-zh": 2, "both": 1}},
            {"name": "last", "steps": 4, "mix": {"en-zh": 1}},
        ],
        "model": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "train": {
            "learning_rate": 0.01,
            "min_learning_rate": 0.001,
            "warmup_steps": 4,
            "decay_steps": 16,
            "microbatch_size": 2,
            "checkpoint_interval": 4,
            "log_interval": 1,
            "loader_workers": 1,
        },
        "evaluate": {"dev": {"en-zh": str(DEMO / "en-zh.dev.jsonl")}, "max_sentences": 4, "max_new_tokens": 8},
    }


def read_texts(path: Path, *keys: str) -> list[tuple[int, tuple[str, ...]]]:
    """Line and texts of each record of a file; two keys make it one of pairs."""
    form = RecordFormat(keys, one_line=len(keys) > 1)
    return [
        (line, texts)
        for batch in read_records(whole_file(path), form, lambda count: None)
        for line, texts in zip(batch.lines, zip(*batch.texts, strict=True), strict=True)
    ]


def write_pairs(
    columns: Mapping[str, Sequence[str]], first: int, directions: Sequence[str], languages: Mapping[str, str]
) -> list[str]:
    """Pairs in the form of the paper, one after the other; `first` is the number of the first."""
    texts = []
    for k in range(len(next(iter(columns.values())))):
        source, target = directions[(first + k) % len(directions)].split("-")
        texts.append(f"{languages[source]}: {columns[source][k]}\n{languages[target]}: {columns[target][k]}")
    return texts


def write_jsonl(path: Path, records: list[Any]) -> Path:
    """Write records as JSON Lines."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
