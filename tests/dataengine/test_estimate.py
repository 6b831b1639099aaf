from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from dataengine.build import Preparation, build, prepare
from dataengine.cli import main
from dataengine.config import Config, dump_config
from dataengine.estimate import StreamEstimate, describe_estimate, estimate
from dataengine.sources import read_lines
from dataengine.storage import open_store
from tests.conftest import DEMO, ConfigMaker


def prepared(config: Config) -> Preparation:
    return prepare(config, open_store(config.store))


def write_documents(path: Path, size: int, words_a_text: int) -> bytes:
    """JSON Lines of about `size` bytes in another order of the demonstration's words, so that no stretch repeats."""
    words = b" ".join(read_lines(DEMO / "mono.en.jsonl.zst")).decode().replace('{"text": ', "").split()
    rng = random.Random(0)
    lines: list[bytes] = []
    total = 0
    while total < size:
        text = " ".join(rng.choices(words, k=rng.randrange(words_a_text // 2, words_a_text * 3 // 2)))
        lines.append(orjson.dumps({"text": text}) + b"\n")
        total += len(lines[-1])
    content = b"".join(lines)
    path.write_bytes(content)
    return content


@pytest.mark.parametrize(
    "changes",
    [
        {"shard_compression": "zstd:1"},
        {"bos": True},
        {"part_bytes": 20_000},  # more parts than are sampled of a larger stream
    ],
)
def test_a_stream_that_is_sampled_whole_has_the_counts_of_its_build(
    make_config: ConfigMaker, corpora: Path, changes: dict[str, Any]
) -> None:
    pairs = {"pairs": [str(corpora / "pairs.*.jsonl"), str(corpora / "pairs.0.jsonl")]}
    rules = {"pair_rules": {"max_characters": 150}, "dedup": ["pair", "zh"]}
    streams = {
        "mono": {
            "documents": [str(corpora / "mono.*.jsonl"), str(corpora / "mono.0.jsonl")],
            "clean": {"document_rules": {}, "dedup": ["text"], "near_dedup": 0.7},
        },
        "both": {**pairs, "directions": ["en-zh", "zh-en"], "clean": rules},
        "sides": {**pairs, "sides": ["zh", "en"], "clean": rules},
        "all": {"pairs": pairs["pairs"][:1], "directions": ["zh-en"]},
    }
    stages = [{"name": "all", "steps": 4, "mix": dict.fromkeys(streams, 1)}]
    config = make_config(streams=streams, stages=stages, **changes)
    estimates = {name: estimate(plan) for name, plan in prepared(config).streams.items()}
    for built in build(config).streams:
        made = estimates[built.stream.name]
        assert made.scale == 1
        assert (made.records, made.kept, made.tokens) == (built.records, built.kept, built.tokens)
        assert (+made.dropped, +made.rejected) == (Counter(built.dropped), Counter(built.rejected))
        assert bool(built.dropped) == (built.stream.name != "all")
        size = sum(shard.stored.bytes for shard in built.stream.shards)
        assert made.tokens * made.bytes_per_token == pytest.approx(size, rel=0.06)  # headers of tiny shards


FORMS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda content: content,
    ".jsonl.zst": zstandard.compress,
    ".jsonl.gz": gzip.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.bz2": bz2.compress,
    ".zst.jsonl": zstandard.compress,  # an archive is what its first bytes say
}


@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("words", [15, 300, 3000])
@pytest.mark.parametrize("part_bytes", [10**9, 400_000])
def test_a_stream_that_is_sampled_in_part_has_about_the_tokens_of_its_build(
    make_config: ConfigMaker, tmp_path: Path, suffix: str, words: int, part_bytes: int
) -> None:
    content = write_documents(tmp_path / "docs.jsonl", 3_000_000, words)
    path = tmp_path / f"docs{suffix}"
    path.write_bytes(FORMS[suffix](content))
    made, records, tokens = estimate_and_build(make_config, path, 300_000, part_bytes=part_bytes)
    assert 0.7 * 300_000 < made.sampled_bytes < 1.1 * 300_000
    assert made.tokens * made.scale == pytest.approx(tokens, rel=0.1)
    assert made.records * made.scale == pytest.approx(records, rel=0.1 if words < 3000 else 0.3)  # of 150 documents


def test_a_tsv_is_sampled_by_the_columns_of_its_heading(make_config: ConfigMaker, tmp_path: Path) -> None:
    rows = [f"{n}\t第 {n} 句话\tsentence number {n}\n" for n in range(20_000)]
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(["id\tzh\ten\n", *rows]))
    config = make_config(
        streams={"pairs": {"pairs": [str(path)], "directions": ["en-zh"], "columns": ["en", "zh"]}},
        stages=[{"name": "all", "steps": 4, "mix": {"pairs": 1}}],
        part_bytes=100_000,
    )
    (plan,) = prepared(config).streams.values()
    assert len(plan.parts) > 5
    (built,) = build(config).streams
    made = estimate(plan, 100_000)
    assert made.scale > 5
    assert not made.rejected
    assert made.tokens * made.scale == pytest.approx(built.tokens, rel=0.1)


def test_parquet_is_sampled_by_what_was_read(make_config: ConfigMaker, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    content = write_documents(tmp_path / "docs.jsonl", 6_000_000, 150)
    texts = [orjson.loads(line)["text"] for line in content.splitlines()]
    path = tmp_path / "docs.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=1_000_000)
    made, records, tokens = estimate_and_build(make_config, path, 600_000)
    assert made.scale > 3
    assert made.tokens * made.scale == pytest.approx(tokens, rel=0.1)
    assert made.records * made.scale == pytest.approx(records, rel=0.1)


def estimate_and_build(
    make_config: ConfigMaker, path: Path, sample: int, **changes: Any
) -> tuple[StreamEstimate, int, int]:
    config = make_config(
        streams={"mono": {"documents": [str(path)]}},
        stages=[{"name": "all", "steps": 4, "mix": {"mono": 1}}],
        **changes,
    )
    (plan,) = prepared(config).streams.values()
    (built,) = build(config, workers=2).streams
    return estimate(plan, sample), built.records, built.tokens


def test_unusable_records_are_counted(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    content = write_documents(path, 100_000, 30).splitlines(keepends=True)
    path.write_bytes(b"".join(line + b"{broken\n" * (k % 10 == 0) for k, line in enumerate(content)))
    config = make_config(
        streams={"mono": {"documents": [str(path)]}}, stages=[{"name": "all", "steps": 4, "mix": {"mono": 1}}]
    )
    (plan,) = prepared(config).streams.values()
    made = estimate(plan, 50_000)
    assert made.rejected["not JSON"] / made.records == pytest.approx(1 / 11, rel=0.1)
    assert f"mono: {made.rejected['not JSON'] / made.records:.2%} unusable: not JSON" in describe_estimate(
        prepared(config), workers=1, sample_bytes=50_000
    )


def test_nothing_is_written_but_the_hashes_of_sources(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(config.store)}
    shown = describe_estimate(prepared(config), workers=1)
    assert shown.startswith(
        "estimated from a sample; nothing was written but the hashes of the sources "
        f"({config.store}/source_hashes.json), which the build takes up\n"
    )
    assert [path.name for path in Path(config.store).rglob("*")] == ["source_hashes.json"]
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(config.store)} == before


def test_it_says_whether_the_schedule_fits(make_config: ConfigMaker) -> None:
    fits = describe_estimate(prepared(make_config()), workers=1)
    assert fits.endswith("\nby these estimates the schedule fits: 16 steps, 4,096 tokens")
    short = describe_estimate(prepared(make_config(["stages.0.steps=1000"])), workers=1)
    assert "\nby these estimates the schedule does not fit: stream 'mono' is too small: stage 'first' draws 8," in short


def test_a_dry_run_notes_evaluation_sets_that_are_not_there(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config(evaluate={"dev": {"en-zh": "none.tsv"}})))
    with pytest.raises(SystemExit) as stop:
        main(["build", str(path), "--dry-run"])
    assert stop.value.code == 0
    assert "note: evaluate.dev.en-zh is none.tsv, which does not exist yet\n" in capsys.readouterr().err
