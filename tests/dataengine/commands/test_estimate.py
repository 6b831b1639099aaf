from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dataengine.build import clean, near_units
from dataengine.build import prepare as prepare_module
from dataengine.build import publish as publish_module
from dataengine.build import stream as stream_module
from dataengine.build.build import build
from dataengine.build.prepare import Preparation, prepare
from dataengine.cli import main
from dataengine.commands.estimate import (
    StreamEstimate,
    describe_estimate,
    duplicate_range,
    estimate,
    estimate_disk,
)
from dataengine.commands.estimate_disk import peak
from dataengine.commands.estimate_sample import choose_places, margin
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.records.lines import read_lines
from dataengine.records.types import SourcePart
from dataengine.storage.open import open_store
from tests.conftest import DEMO, ConfigMaker, slow_but
from tests.counting_store import CountingStore
from tests.object_store import object_store

__all__ = ["object_store"]


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
        assert (made.whole.records, made.whole.kept, made.whole.tokens) == (built.records, built.kept, built.tokens)
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
@pytest.mark.parametrize("words", slow_but([15, 300, 3000], [300]))
@pytest.mark.parametrize("part_bytes", slow_but([10**9, 400_000], [400_000]))
def test_a_stream_that_is_sampled_in_part_has_about_the_tokens_of_its_build(
    make_config: ConfigMaker, tmp_path: Path, suffix: str, words: int, part_bytes: int
) -> None:
    content = write_documents(tmp_path / "docs.jsonl", 3_000_000, words)
    path = tmp_path / f"docs{suffix}"
    path.write_bytes(FORMS[suffix](content))
    made, records, tokens = estimate_and_build(make_config, path, 300_000, part_bytes=part_bytes)
    assert 0.7 * 300_000 < made.sampled_bytes < 1.1 * 300_000
    assert made.whole.tokens == pytest.approx(tokens, rel=0.1)
    assert made.whole.records == pytest.approx(records, rel=0.1 if words < 3000 else 0.3)  # of 150 documents


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
    assert made.whole.tokens == pytest.approx(built.tokens, rel=0.1)


def test_parquet_is_sampled_by_what_was_read(make_config: ConfigMaker, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    content = write_documents(tmp_path / "docs.jsonl", 6_000_000, 150)
    texts = [orjson.loads(line)["text"] for line in content.splitlines()]
    path = tmp_path / "docs.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=1_000_000)
    made, records, tokens = estimate_and_build(make_config, path, 600_000)
    assert made.scale > 3
    assert made.whole.tokens == pytest.approx(tokens, rel=0.1)
    assert made.whole.records == pytest.approx(records, rel=0.1)


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


def test_files_of_different_kinds_each_count_for_their_own_bytes(make_config: ConfigMaker, tmp_path: Path) -> None:
    """Two plain files with short texts, three zstd ones with long texts and two gzip ones, of different sizes."""
    files = [("a.jsonl", 300, 20), ("b.jsonl", 900, 20), ("a.jsonl.gz", 600, 60), ("b.jsonl.gz", 200, 60)]
    files += [(f"{k}.jsonl.zst", 400 * (k + 1), 100) for k in range(3)]
    records = 0
    for name, kilobytes, words in files:
        path = tmp_path / "sources" / name
        path.parent.mkdir(exist_ok=True)
        content = write_documents(path, kilobytes * 1000, words)
        path.write_bytes(FORMS["." + name.partition(".")[2]](content))
        records += content.count(b"\n")
    config = make_config(
        streams={"mono": {"documents": [str(tmp_path / "sources" / "*")]}},
        stages=[{"name": "all", "steps": 4, "mix": {"mono": 1}}],
        part_bytes=100_000,
    )
    (plan,) = prepared(config).streams.values()
    (built,) = build(config).streams
    made = estimate(plan, 400_000)
    assert made.scale > 2
    assert built.records == records
    assert made.whole.records == pytest.approx(records, rel=0.05)
    assert made.whole.tokens == pytest.approx(built.tokens, rel=0.05)
    assert abs(made.records * made.scale / records - 1) > 0.05  # what one ratio for all would say
    samples = list(made.samples.values())
    assert made.whole.seconds == pytest.approx(sum(one.seconds * one.weight for one in samples))
    assert max(one.seconds for one in samples) < made.whole.longest < made.whole.seconds


def make_corpus(folder: Path, rng: random.Random) -> int:
    """Some files of several kinds, each with texts of its own length, which some change on the way; their records."""
    records = 0
    for number in range(rng.randrange(1, 12)):
        suffix = rng.choice([".jsonl", ".jsonl", ".jsonl.zst", ".jsonl.gz"])
        words, drift = rng.randrange(30, 80), rng.choice([0, 0, 30])
        rows = []
        for place in range(rng.randrange(200, 700)):
            count = rng.randrange(words // 2, words * 3 // 2) + drift * (place // 20 % 2)
            rows.append(orjson.dumps({"text": " ".join(f"word{rng.randrange(3000)}" for _ in range(count))}) + b"\n")
        (folder / f"{number}{suffix}").write_bytes(FORMS[suffix](b"".join(rows)))
        records += len(rows)
    return records


@pytest.mark.slow
def test_the_truth_lies_within_the_range_stated(make_config: ConfigMaker, tmp_path: Path) -> None:
    inside: Counter[str] = Counter()
    widths = []
    for seed in range(20):
        folder = tmp_path / f"corpus {seed}"
        folder.mkdir()
        records = make_corpus(folder, random.Random(seed))
        config = make_config(
            streams={"mono": {"documents": [f"{folder}/*"], "clean": {"document_rules": {"max_characters": 600}}}},
            stages=[{"name": "all", "steps": 4, "mix": {"mono": 1}}],
            part_bytes=30_000,
        )
        (plan,) = prepared(config).streams.values()
        truth, made = estimate(plan, 10**9).whole, estimate(plan, sum(part.size for part in plan.parts) // 4)
        assert truth.records == records
        for name, off in (("records", False), ("tokens", True)):
            width = margin(list(made.samples.values()), made.num_parts, tokens=off)
            found, right = getattr(made.whole, name), getattr(truth, name)
            inside[name] += abs(found - right) <= width
            widths.append(width / right)
    assert min(inside["records"], inside["tokens"]) >= 18
    assert sorted(widths)[len(widths) // 2] < 0.25  # a range that says nothing would always be right


def test_the_range_of_a_stream_that_is_sampled_whole_is_empty(make_config: ConfigMaker) -> None:
    for plan in prepared(make_config()).streams.values():
        made = estimate(plan)
        assert made.samples
        assert margin(list(made.samples.values()), made.num_parts, tokens=True) == 0


@given(
    sizes=st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(["plain", "zst", "gz"])), min_size=1, max_size=40),
    sample=st.integers(1, 50_000),
)
def test_the_parts_sampled_stand_for_all_bytes_of_their_kind(sizes: list[tuple[int, str]], sample: int) -> None:
    parts = [SourcePart((f"{k}.{kind}",), ("",), "jsonl", 0, size, size, "") for k, (size, kind) in enumerate(sizes)]
    chosen = choose_places(parts, sample)
    for kind in {kind for _, kind in sizes}:
        whole = sum(size for size, its in sizes if its == kind)
        stands_for = sum(share for place, (_, share) in chosen.items() if sizes[place][1] == kind)
        assert stands_for == pytest.approx(whole)
    if sum(size for size, _ in sizes) <= sample:
        assert chosen == {k: (size, size) for k, (size, _) in enumerate(sizes)}


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.064, 0.3])
def test_the_share_of_duplicates_is_within_the_range_stated(
    make_config: ConfigMaker, tmp_path: Path, share: float, spread: bool
) -> None:
    """Copies are anywhere, or right behind the first."""
    rng = random.Random(1)
    texts = [[f"{k} {rng.random()}"] * (1 + (rng.random() < share / (1 - share))) for k in range(20_000)]
    rows = [text for copies in texts for text in copies]
    if spread:
        rng.shuffle(rows)
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in rows))
    config = make_config(
        streams={"mono": {"documents": [str(path)], "clean": {"dedup": ["text"]}}},
        stages=[{"name": "all", "steps": 4, "mix": {"mono": 1}}],
        part_bytes=50_000,
    )
    (plan,) = prepared(config).streams.values()
    made = estimate(plan, path.stat().st_size // 10)
    assert 8 < made.scale < 12
    lowest, highest = duplicate_range(made.dropped["duplicate text"], made.records, made.scale)
    truth = 1 - len(texts) / len(rows)
    assert lowest * 0.8 <= truth <= highest
    assert highest < truth * made.scale * 1.5 + 0.05


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
        "estimated from a sample; only the hashes of the sources were written "
        f"({config.store}/source_hashes.json), which the build reuses\n"
    )
    assert [path.name for path in Path(config.store).rglob("*")] == ["source_hashes.json"]
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(config.store)} == before


def test_it_says_whether_the_schedule_fits(make_config: ConfigMaker) -> None:
    fits = describe_estimate(prepared(make_config()), workers=1)
    assert fits.endswith("\nby these estimates the schedule fits: 16 steps, 4,096 tokens")
    short = describe_estimate(prepared(make_config(["stages.0.steps=1000"])), workers=1)
    assert "\nby these estimates the schedule does not fit: stream 'mono' is too small: stage 'first' draws 8," in short


def stopping(make_config: ConfigMaker, path: Path, sample_bytes: int = 10**6, **stream: Any) -> str:
    """Why the build would stop, by a dry run; and the build stops for that reason, too."""
    config = make_config(
        streams={"mono": {"documents": [str(path)], **stream}},
        stages=[{"name": "all", "steps": 4, "mix": {"mono": 1}}],
        part_bytes=3000,
    )
    shown = describe_estimate(prepared(config), workers=1, sample_bytes=sample_bytes)
    assert "schedule fits" not in shown
    words = shown.partition("\nthe build would stop: ")[2]
    with pytest.raises(InputError) as caught:
        build(config)
    assert str(caught.value).partition(":")[0] == words.partition(":")[0]
    return words


@pytest.mark.parametrize("clean", [{}, {"dedup": ["text"], "near_dedup": 0.8}])
def test_a_stream_without_a_usable_record_stops_the_build(
    make_config: ConfigMaker, tmp_path: Path, clean: dict[str, Any]
) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"content": "a text"}\n' * 10)
    assert stopping(make_config, path, clean=clean) == (
        f"stream 'mono': all 10 records are unusable (10 no key 'text'). The first: {path}, line 1: no key 'text': "
        '{"content": "a text"}. Name the key that they have (streams.mono.text_key: ...), or check the format and the '
        "encoding of the files."
    )
    path.write_text("\n")
    assert "its files contain no records" in stopping(make_config, path, clean=clean)


def test_too_many_unusable_records_stop_the_build(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    content = write_documents(path, 20_000, 30).splitlines(keepends=True)
    bad = (len(content) - 1) // 10
    path.write_bytes(b"".join(line + b"{broken\n" * (k % 10 == 0 and k > 0) for k, line in enumerate(content)))
    assert f"stream 'mono': {bad} of {len(content) + bad} records are unusable ({bad} not JSON), more than " in (
        words := stopping(make_config, path)
    )
    assert f"max_bad_fraction 0.001 allows. The first: {path}, line 12: not JSON: " in words
    assert "records sampled are unusable" in stopping(make_config, path, 10_000)


def test_a_stream_of_which_cleaning_leaves_nothing_stops_the_build(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    write_documents(path, 20_000, 30)
    words = stopping(make_config, path, clean={"document_rules": {"max_characters": 1}})
    assert "cleaning drops all" in words
    path.write_text('{"text": "a"}\n')
    assert "too few for one sample of 33" in stopping(make_config, path)


def test_a_dry_run_notes_evaluation_sets_that_are_not_there(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config(evaluate={"dev": {"en-zh": "none.tsv"}})))
    with pytest.raises(SystemExit) as stop:
        main(["build", str(path), "--dry-run"])
    assert stop.value.code == 0
    assert "note: evaluate.dev.en-zh is none.tsv, which does not exist yet\n" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["800k", "800K", "1M"])
def test_the_bytes_of_a_sample_are_written_as_other_counts(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config()))
    with pytest.raises(SystemExit) as stop:
        main(["build", str(path), "--dry-run", "--sample", size])
    assert stop.value.code == 0
    assert "the schedule fits" in capsys.readouterr().out


@dataclass(frozen=True)
class WatchedStore(CountingStore):
    """Notes how large the store is before files are removed, which is when it is largest."""

    most: list[int] = field(default_factory=lambda: [0])

    def watch(self) -> None:
        if (folder := Path(self.inner.url)).is_dir():  # a hard link takes no space
            files = [path.stat() for path in folder.rglob("*") if path.is_file()]
            size = sum({one.st_ino: one.st_size for one in files}.values())
        else:
            size = sum(self.inner.sizes("").values())
        self.most[0] = max(self.most[0], size)

    def remove_files(self, keys: Sequence[str]) -> None:
        self.watch()
        super().remove_files(keys)


def write_near_copies(path: Path) -> None:
    """Documents of which one in five is a near copy of an earlier one, and one in ten an exact copy."""
    rng, texts = random.Random(3), []
    for _ in range(2000):
        copied = rng.random()
        if texts and copied < 0.3:
            texts.append(rng.choice(texts) + (" and more" if copied < 0.2 else ""))
        else:
            texts.append(" ".join(f"w{rng.randrange(30_000)}" for _ in range(80)))
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))


DISK_CASES: dict[str, dict[str, Any]] = {
    "pairs": {"pairs": ["pairs.jsonl"], "directions": ["en-zh", "zh-en"]},
    "documents": {"documents": ["docs.jsonl"], "clean": {"dedup": ["text"]}},
    "pairs in a bucket": {"pairs": ["pairs.jsonl"], "directions": ["en-zh"], "clean": {"dedup": ["pair", "zh"]}},
    "documents with near duplicates": {"documents": ["near.jsonl"], "clean": {"dedup": ["text"], "near_dedup": 0.7}},
    "pairs and documents": {"pairs": ["pairs.jsonl"], "directions": ["en-zh"], "clean": {"near_dedup": 0.8}},
}


@pytest.mark.parametrize(
    "case", ["documents", "pairs", *(pytest.param(name, marks=pytest.mark.slow) for name in list(DISK_CASES)[2:])]
)
def test_a_build_takes_the_disk_that_is_estimated(
    case: str, make_config: ConfigMaker, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges are small, so that all steps take place."""
    for module in (prepare_module, stream_module):
        monkeypatch.setattr(module, "MERGE_TOKENS", 30_000)
    monkeypatch.setattr(clean, "RANGE_KEYS", 1000)
    monkeypatch.setattr(near_units, "RANGE_KEYS", 10_000)
    monkeypatch.setattr(publish_module, "MOVED_AT_ONCE", 2)
    write_documents(tmp_path / "docs.jsonl", 1_000_000, 60)
    write_near_copies(tmp_path / "near.jsonl")
    rng = random.Random(5)
    rows = [
        {
            "en": f"line {k} " * rng.randrange(2, 12),
            "zh": "".join(rng.choices("的一是在不了有和人这中大", k=20)) + str(k),
        }
        for k in range(4000)
    ]
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    streams = {"first": DISK_CASES[case]}
    if case == "pairs and documents":
        streams["second"] = DISK_CASES["documents with near duplicates"]
    store = request.getfixturevalue("object_store").url if "bucket" in case else str(tmp_path / "store")
    config = make_config(
        streams=streams,
        stages=[{"name": "all", "steps": 4, "mix": dict.fromkeys(streams, 1)}],
        store=store,
        part_bytes=100_000,
        samples_per_shard=256,
    )
    ready = prepared(config)
    takes = [estimate_disk(plan, estimate(plan)) for plan in ready.streams.values()]
    watched = WatchedStore(config.store, open_store(config.store))
    build(config, store=watched)
    watched.watch()
    assert peak(takes, copies=watched.copies_links) == pytest.approx(watched.most[0], rel=0.25)
