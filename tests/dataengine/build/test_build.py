from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from streaming import StreamingDataset
from tokenizers import Tokenizer, models, pre_tokenizers

from dataengine.build import prepare as prepare_module
from dataengine.build import rejects as rejects_module
from dataengine.build import tokenize
from dataengine.build.build import build
from dataengine.build.prepare import prepare, stream_notes
from dataengine.build.report import read_report, report_key
from dataengine.commands.build import describe_build
from dataengine.commands.estimate import describe_estimate, estimate
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import DamagedError, InputError
from dataengine.mds.summary import read_summary
from dataengine.records.rows import HEADING_OBEYED
from dataengine.storage.open import open_store
from dataengine.text.lost_text import UNKNOWN_TEXT
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import ConfigMaker, read_texts, set_everywhere, write_jsonl, write_pairs


def hashes(config: Config, pattern: str = "streams/**/*") -> dict[str, str]:
    """sha256 of each file of the store."""
    store = Path(config.store)
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.glob(pattern))
        if path.is_file()
    }


def stream_tokens(config: Config, name: str) -> list[int]:
    """All tokens of a built stream, in the order of its shards, as stock StreamingDataset reads them."""
    (folder,) = Path(config.store, "streams").glob(f"{name}-*")
    dataset = StreamingDataset(local=str(folder), batch_size=1, shuffle=False, validate_hash="xxh64")
    return np.concatenate([dataset[k]["tokens"] for k in range(len(dataset))]).tolist()  # type: ignore[no-any-return]


def test_second_build_does_nothing(make_config: ConfigMaker) -> None:
    config = make_config()
    first = build(config, workers=1)
    before = {path: path.stat().st_mtime_ns for path in Path(config.store).rglob("*")}
    second = build(config, workers=1)
    assert (first.new, second.new) == (True, False)
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in Path(config.store).rglob("*")} == before


def test_a_source_changed_in_place_with_its_size_and_time_restored_is_built_again(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mono.jsonl"
    content = (corpora / "mono.0.jsonl").read_bytes()
    path.write_bytes(content)
    config = make_config(
        streams={"mono": {"documents": [str(path)]}}, stages=[{"name": "all", "steps": 2, "mix": {"mono": 1}}]
    )
    first, status = build(config, workers=1), path.stat()
    path.write_bytes(content.replace(b" the ", b" THE ", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    second = build(config, workers=1)
    assert second.new
    assert second.manifest.plan_id != first.manifest.plan_id
    path.write_bytes(content)
    assert build(config, workers=1).manifest.plan_id == first.manifest.plan_id  # hashed once more, and the same


def test_a_file_read_by_several_names_is_reported(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mono, link, hard = corpora / "mono.0.jsonl", tmp_path / "link.jsonl", tmp_path / "hard.jsonl"
    link.symlink_to(mono)
    os.link(mono, hard)
    dotted = f"{corpora}/./mono.0.jsonl"
    documents = [str(mono), dotted, str(link), str(hard), str(mono), str(corpora / "mono.1.jsonl")]
    config = make_config(
        streams={"mono": {"documents": documents}}, stages=[{"name": "all", "steps": 2, "mix": {"mono": 1}}]
    )
    build(config, workers=1)
    notes = [line for line in capfd.readouterr().err.splitlines() if " times" in line]
    assert notes == [f"note: stream 'mono' reads {mono} (also as {dotted}, {link}, {hard}) 5 times"]


def test_bytes_do_not_depend_on_workers(make_config: ConfigMaker, tmp_path: Path) -> None:
    one, two, three = (make_config(store=str(tmp_path / f"workers{n}"), part_bytes=20_000) for n in (1, 2, 3))
    plans = [build(config, workers=n).manifest.plan_id for n, config in ((1, one), (2, two), (3, three))]
    assert plans[0] == plans[1] == plans[2]
    assert hashes(one) == hashes(two) == hashes(three)
    assert len([name for name in hashes(one) if name.endswith(".mds")]) > 6


def test_documents_keep_their_order_and_no_token_is_lost(make_config: ConfigMaker, corpora: Path) -> None:
    config = make_config()
    result = build(config, workers=2)
    tokenizer = load_tokenizer(config.tokenizer)
    flows = []
    for path in sorted(corpora.glob("mono.*.jsonl")):
        texts = [text for _, (text,) in read_texts(path, "text")]
        flows.append([token for ids in tokenizer.encode(texts) for token in [*ids, tokenizer.eos_id]])
    assert unit_flows(config, "mono") == flows
    total = sum(map(len, flows))
    assert (result.streams[0].tokens, result.streams[0].remainder) == (total, total % 33)
    assert [shard.samples for shard in result.streams[0].stream.shards[:-1]] == [64] * (total // 33 // 64)


def unit_flows(config: Config, name: str) -> list[list[int]]:
    """The tokens of each unit of a stream, joined again from its samples and the reported remainder."""
    (folder,) = Path(config.store, "streams").glob(f"{name}-*")
    tokens = stream_tokens(config, name) + np.load(folder / "remainder.npy").tolist()
    summary = orjson.loads((folder / "stream.summary").read_bytes())
    flows: list[list[int]] = [[] for _ in summary["packed"]]
    at = 0
    for unit, start, inside, count in summary["segments"]:
        assert (start, inside) == (at, len(flows[unit]))
        flows[unit] += tokens[start : start + count]
        at += count
    assert at == len(tokens)
    return flows


def split_documents(tokens: list[int], eos_id: int) -> list[tuple[int, ...]]:
    documents, current = [], []
    for token in tokens:
        if token == eos_id:
            documents.append(tuple(current))
            current = []
        else:
            current.append(token)
    return documents


@pytest.mark.parametrize("merge_tokens", [1 << 25, 2000])
@pytest.mark.parametrize("run_tokens", [1 << 23, 3000])
def test_pairs_come_once_each_shuffled_over_all_files(
    make_config: ConfigMaker, corpora: Path, monkeypatch: pytest.MonkeyPatch, merge_tokens: int, run_tokens: int
) -> None:
    set_everywhere(monkeypatch, prepare_module, "MERGE_TOKENS", merge_tokens)
    monkeypatch.setattr(tokenize, "_RUN_TOKENS", run_tokens)
    config = make_config()
    result = build(config, workers=1)
    tokenizer = load_tokenizer(config.tokenizer)
    expected = []
    for path in sorted(corpora.glob("pairs.*.jsonl")):
        en, zh = zip(*(pair for _, pair in read_texts(path, "en", "zh")), strict=True)
        texts = write_pairs({"en": en, "zh": zh}, 0, ("en-zh", "zh-en"), config.languages)
        expected += [tuple(ids) for ids in tokenizer.encode(texts)]
    flow = unit_flows(config, "both")
    got = [document for unit in flow for document in split_documents(unit, tokenizer.eos_id)]
    assert Counter(got) == Counter(expected)
    assert len(flow) == (1 if merge_tokens > 2000 else -(-result.streams[2].tokens // 2000))
    places = {document: place for place, document in enumerate(expected)}
    order = [places[document] for document in got]
    assert np.mean(np.abs(np.diff(order))) > len(expected) / 4  # a random order has a third
    assert hashlib.sha256(repr(order).encode()).hexdigest()[:16] == ORDER_OF_PAIRS  # for any runs and ranges


ORDER_OF_PAIRS = "0f020c339a9dce5c"


def test_a_file_that_is_named_twice_is_shuffled_twice(make_config: ConfigMaker, corpora: Path) -> None:
    pairs = [str(corpora / "pairs.1.jsonl")] * 2
    config = make_config(
        streams={"en-zh": {"pairs": pairs, "directions": ["en-zh"]}},
        stages=[{"name": "only", "drain": True, "mix": {"en-zh": 1}}],
    )
    build(config, workers=1)
    eos_id = load_tokenizer(config.tokenizer).eos_id
    documents = [one for flow in unit_flows(config, "en-zh") for one in split_documents(flow, eos_id)]
    assert Counter(Counter(documents).values())[2] > 390
    neighbours = sum(one == other for one, other in itertools.pairwise(documents))
    assert neighbours < 10  # a copy is not beside its twin


def test_a_stream_is_shared_and_a_changed_source_rebuilds_only_its_unit(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path
) -> None:
    for name in ("mono.0.jsonl", "mono.1.jsonl"):
        (tmp_path / name).write_bytes((corpora / name).read_bytes())
    streams = {"mono": {"documents": [str(tmp_path / "mono.*.jsonl")]}}
    stages = [{"name": "only", "steps": 4, "mix": {"mono": 1}}]
    config = make_config(streams=streams, stages=stages)
    build(config, workers=1)
    other = make_config(streams=streams, stages=stages, name="other", batch_size=4)
    assert [built.new for built in build(other, workers=1).streams] == [False]

    first = {path.name for path in Path(config.store, "units").iterdir()}
    with (tmp_path / "mono.1.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert [built.new for built in build(config, workers=1).streams] == [True]
    new = {path.name for path in Path(config.store, "units").iterdir()} - first
    assert len(new) == 1


def test_units_may_be_removed_after_a_build(make_config: ConfigMaker) -> None:
    config = make_config()
    build(config, workers=1)
    subprocess.run(["rm", "-r", str(Path(config.store, "units"))], check=True)
    assert not build(config, workers=1).new


@pytest.mark.parametrize("moment", [0.05, 0.3, 0.6])
def test_killed_build_resumes_to_the_same_bytes(make_config: ConfigMaker, tmp_path: Path, moment: float) -> None:
    whole = make_config(store=str(tmp_path / "whole"))
    build(whole, workers=1)
    config = make_config(store=str(tmp_path / "killed"))
    path = tmp_path / "killed.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-m", "dataengine", "build", str(path), "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    store = Path(config.store)
    while not list(store.glob("units/*")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(moment)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert hashes(config) == hashes(whole)
    assert not list(store.rglob(".writing-*"))


def documents_only(make_config: ConfigMaker, path: Path, **changes: Any) -> Config:
    return make_config(
        streams={"mono": {"documents": [str(path)]}},
        stages=[{"name": "only", "drain": True, "mix": {"mono": 1}}],
        batch_size=1,
        **changes,
    )


def build_error(config: Config) -> str:
    with pytest.raises(InputError) as error:
        build(config, workers=1)
    assert not list(Path(config.store).rglob(".writing-*"))
    assert not list(Path(config.store).rglob("index.json"))
    assert not list(Path(config.store).rglob("manifest.json"))
    return str(error.value)


def test_few_bad_records_are_written_down_and_left_out(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", [{"text": f"document number {n}"} for n in range(99)])
    with path.open("a") as file:
        file.write("{broken\n")
    config = documents_only(make_config, path, max_bad_fraction=0.01)
    (built,) = build(config, workers=1).streams
    assert (built.records, built.kept, built.rejected) == (100, 99, {"not JSON": 1})
    assert built.rejects == f"{built.stream.remote}/rejects.jsonl"
    reject = json.loads(Path(config.store, built.rejects).read_text())
    excerpt = reject.pop("excerpt")
    assert reject == {"file": str(path), "line": 100, "reason": "not JSON"}
    assert excerpt.endswith(": {broken")
    report = orjson.loads(Path(config.store, "experiments/small/build_report.json").read_bytes())
    assert report["streams"][0]["rejects"] == built.rejects


def test_unusable_records_are_named_by_the_line_in_their_file(make_config: ConfigMaker, tmp_path: Path) -> None:
    """Files of many parts, one of them named twice; blank lines count."""
    paths = []
    for name in "ab":
        lines = [f'{{"text": "document number {n} of {name}"}}' for n in range(90)]
        for place in range(5, 90, 10):
            lines[place : place + 1] = ["", f"{{broken {place}"]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n")
    config = make_config(
        streams={"mono": {"documents": [str(path) for path in (*paths, paths[0])]}},
        stages=[{"name": "only", "drain": True, "mix": {"mono": 1}}],
        part_bytes=300,
        max_bad_fraction=0.2,
    )
    (built,) = build(config, workers=1).streams
    assert len(list(Path(config.store).glob("units/*/rejects.jsonl"))) > 10
    assert built.rejects is not None
    rows = [json.loads(line) for line in Path(config.store, built.rejects).read_text().splitlines()]
    assert [row["file"] for row in rows] == [str(path) for path in (*paths, paths[0]) for _ in range(9)]
    for row in rows:
        line = Path(row["file"]).read_text().split("\n")[row["line"] - 1]
        assert line.startswith("{broken ")
        assert row["excerpt"].endswith(line)
    assert build_error(make_config(max_bad_fraction=0.01, store=str(tmp_path / "other"), part_bytes=300,
                                   streams={"mono": {"documents": [str(paths[1])]}},
                                   stages=[{"name": "only", "drain": True, "mix": {"mono": 1}}],
                                   )).startswith(
        "stream 'mono': 9 of 90 records are unusable (9 not JSON), more than max_bad_fraction 0.01 allows. The first: "
        f"{paths[1]}, line 7: not JSON: "
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "total", "limit"),
    [([5, 1, 9], 100, 100), ([5, 1, 9], 15, 15), ([5, 1, 9], 11, 5), ([5, 1, 9], 7, 3), ([5, 1, 9], 2, 1), ([], 3, 3)],
)
def test_parts_share_the_room_for_unusable_records(counts: list[int], total: int, limit: int) -> None:
    found = rejects_module._even_limit(counts, total)
    written = [min(count, found) for count in counts]
    assert min(found, 9) == min(limit, 9)
    assert sum(written) <= max(total, len(counts))
    assert found == total or sum(min(count, found + 1) for count in counts) > total


def test_few_unusable_records_of_many_are_written_down(
    make_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects_module, "REJECTS", 5)
    files = [write_jsonl(tmp_path / f"{name}.jsonl", [{"txt": "x"}] * count) for name, count in (("a", 40), ("b", 1))]
    config = make_config(
        streams={"mono": {"documents": [str(path) for path in files]}},
        stages=[{"name": "only", "drain": True, "mix": {"mono": 1}}],
    )
    assert f" (5 of them, with files and lines: {config.store}/streams/mono-" in build_error(config)
    (rejects,) = Path(config.store).glob("streams/*/rejects.jsonl")
    rows = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rows] == [
        *((str(files[0]), n) for n in (1, 2, 3, 4)),
        (str(files[1]), 1),
    ]


def test_too_many_bad_records_fail_the_build(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", [{"text": "good"}] * 98 + [{"text": " "}, {"txt": "x"}])
    config = documents_only(make_config, path, max_bad_fraction=0.01)
    message = build_error(config)
    (rejects,) = Path(config.store).glob("streams/mono-*/rejects.jsonl")
    assert message == (
        "stream 'mono': 2 of 100 records are unusable (1 'text' is empty, 1 no key 'text'), more than max_bad_fraction "
        f'0.01 allows. The first: {path}, line 99: \'text\' is empty: {{"text": " "}} (all of them, with files and '
        f"lines: {rejects}). Fix them, or raise max_bad_fraction to continue without them."
    )
    assert [json.loads(line) for line in rejects.read_text().splitlines()] == [
        {"file": str(path), "line": 99, "reason": "'text' is empty", "excerpt": '{"text": " "}'},
        {"file": str(path), "line": 100, "reason": "no key 'text'", "excerpt": '{"txt": "x"}'},
    ]
    (built,) = build(documents_only(make_config, path, max_bad_fraction=0.02), workers=1).streams
    assert built.rejects == str(rejects.relative_to(config.store))


def test_nothing_usable_is_not_a_matter_of_max_bad_fraction(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", [{"txt": "x"}] * 60)
    message = build_error(documents_only(make_config, path, max_bad_fraction=1))
    (rejects,) = (tmp_path / "store").glob("streams/mono-*/rejects.jsonl")
    assert message == (
        f"stream 'mono': all 60 records are unusable (60 no key 'text'). The first: {path}, line 1: no key 'text': "
        f'{{"txt": "x"}} (all of them, with files and lines: {rejects}). '
        "Name the key that they have (streams.mono.text_key: ...), or check the format and the encoding of the files."
    )
    write_jsonl(path, [{"text": " "}])
    assert build_error(documents_only(make_config, path)).startswith(
        f"stream 'mono': the only record is unusable (1 'text' is empty). The first: {path}, line 1: 'text' is empty: "
    )


def lossy_tokenizer(folder: Path) -> Path:
    """A tokenizer that knows small Latin letters, the space and no other text, and has no unknown token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokenizer = Tokenizer(models.BPE({"</s>": 0, **{letter: k for k, letter in enumerate(letters, 1)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    path = folder / "lossy.json"
    tokenizer.save(str(path))
    return path


def test_a_record_of_which_the_tokenizer_knows_nothing_is_unusable(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"letters of text {k}" for k in range(97)]  # a number is two digits or one, all vanish
    path = write_jsonl(tmp_path / "docs.jsonl", [{"text": text} for text in [*texts, "打开文件", "打 a", "2024"]])
    settings: dict[str, Any] = {"tokenizer": str(lossy_tokenizer(tmp_path)), "seq_len": 8}
    config = documents_only(make_config, path, **settings, max_bad_fraction=0.02)
    result = build(config, workers=1)
    (built,) = result.streams
    assert (built.records, built.kept, built.rejected) == (100, 98, {UNKNOWN_TEXT: 2})
    vanished = sum(len(str(k)) for k in range(97)) + 1
    assert (built.unknown, built.vanished) == (0, vanished)
    (flow,) = unit_flows(config, "mono")
    documents = split_documents(flow, 0)
    assert len(documents) == 98
    assert all(documents)
    assert built.rejects is not None
    rejects = [json.loads(line) for line in Path(config.store, built.rejects).read_text().splitlines()]
    assert [(reject["file"], reject["line"], reject["reason"], reject["excerpt"]) for reject in rejects] == [
        (str(path), 98, UNKNOWN_TEXT, "打开文件"), (str(path), 100, UNKNOWN_TEXT, "2024")
    ]  # fmt: skip
    (stream,) = orjson.loads(Path(result.path).with_name("build_report.json").read_bytes())["streams"]
    assert (stream["unknown_tokens"], stream["vanished_characters"]) == (0, vanished)
    assert f"mono: {vanished} characters vanished: the tokenizer has no token for them" in describe_build(result)
    notes = capsys.readouterr().err
    assert notes.count("has no token for a line break, so it joins the lines of a document and the two sides") == 1
    assert notes.count("collapses repeated spaces and tabs, so documents lose the indentation of") == 1
    assert build_error(documents_only(make_config, path, **settings, store=str(tmp_path / "strict"))).endswith(
        f"The first: {path}, line 98: {UNKNOWN_TEXT}: 打开文件 (all of them, with files and lines: {tmp_path}/strict/"
        f"{built.rejects}). Fix them, use a tokenizer that knows these texts or falls back to bytes, "
        "or raise max_bad_fraction to continue without them."
    )


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"directions": ["en-zh"]}, 10),
        ({"directions": ["en-zh"], "adjacent": False}, 10),
        ({"sides": ["zh"]}, 10),
        ({"sides": ["en"]}, 0),
    ],
)
def test_a_pair_with_a_side_of_which_the_tokenizer_knows_nothing_is_unusable(
    make_config: ConfigMaker, tmp_path: Path, changes: dict[str, Any], lost: int
) -> None:
    pairs = [{"en": f"some text {k}", "zh": "打开" if k % 5 == 1 else f"其他 text {'打' * k}"} for k in range(50)]
    path = write_jsonl(tmp_path / "pairs.jsonl", [*pairs, pairs[0]])
    stream = {"pairs": [str(path)], **changes, "keys": {"en": "en", "zh": "zh"}, "clean": {"dedup": ["pair"]}}
    config = make_config(
        tokenizer=str(lossy_tokenizer(tmp_path)), seq_len=8, max_bad_fraction=0.5, streams={"pairs": stream},
        stages=[{"name": "only", "steps": 1, "mix": {"pairs": 1}}],
    )  # fmt: skip
    (built,) = build(config, workers=1).streams
    assert (built.records, built.kept, built.rejected) == (51, 50 - lost, {UNKNOWN_TEXT: lost} if lost else {})
    assert built.dropped == {"duplicate pair": 1}
    estimated = estimate(prepare_module.prepare(config, open_store(config.store)).streams["pairs"])
    assert (estimated.records, estimated.kept, estimated.rejected) == (built.records, built.kept, built.rejected)
    assert read_summary(open_store(config.store), built.stream.remote).vanished == built.vanished > 0


@pytest.mark.parametrize(
    ("clean", "lost", "twins"),
    [
        ({"dedup": ["text"]}, "ＯＰＥＮ ＴＨＥ ＦＩＬＥ", "open the file"),  # equal by normalization
        ({"near_dedup": 0.7}, "Ａ Ｂ Ｃ Ｄ Ｅ Ｆ Ｇ Ｈ", "a b c d e f g h"),
    ],
)
def test_no_document_goes_for_one_that_the_tokenizer_loses(
    make_config: ConfigMaker, tmp_path: Path, clean: dict[str, Any], lost: str, twins: str
) -> None:
    texts = [lost, twins, twins, *(f"another text of words {'abcdefghij'[k] * 7}" for k in range(10))]
    path = write_jsonl(tmp_path / "docs.jsonl", [{"text": text} for text in texts])
    config = make_config(
        tokenizer=str(lossy_tokenizer(tmp_path)), seq_len=8, max_bad_fraction=0.5,
        streams={"mono": {"documents": [str(path)], "clean": clean}},
        stages=[{"name": "only", "steps": 1, "mix": {"mono": 1}}],
    )  # fmt: skip
    (built,) = build(config, workers=1).streams
    assert (built.records, built.kept, built.rejected) == (13, 11, {UNKNOWN_TEXT: 1})
    assert sum(built.dropped.values()) == 1
    estimated = estimate(prepare_module.prepare(config, open_store(config.store)).streams["mono"])
    assert (estimated.kept, estimated.rejected, estimated.dropped) == (built.kept, built.rejected, built.dropped)
    (flow,) = unit_flows(config, "mono")
    assert len(split_documents(flow, 0)) == 11


@pytest.mark.parametrize("changes", [{"directions": ["en-zh"]}, {"sides": ["zh"]}, {"sides": ["en"]}])
def test_no_pair_goes_for_one_that_the_tokenizer_loses(
    make_config: ConfigMaker, tmp_path: Path, changes: dict[str, Any]
) -> None:
    first = [{"en": "the one side", "zh": "打开"}, {"en": "the one side", "zh": "da kai"}]
    pairs = [{"en": f"some text {'abcdefghij'[k]}", "zh": f"qi ta {'abcdefghij'[k]}"} for k in range(10)]
    path = write_jsonl(tmp_path / "pairs.jsonl", [*first, *pairs])
    stream = {"pairs": [str(path)], **changes, "keys": {"en": "en", "zh": "zh"}, "clean": {"dedup": ["en"]}}
    config = make_config(
        tokenizer=str(lossy_tokenizer(tmp_path)), seq_len=8, max_bad_fraction=0.5, streams={"pairs": stream},
        stages=[{"name": "only", "steps": 1, "mix": {"pairs": 1}}],
    )  # fmt: skip
    (built,) = build(config, workers=1).streams
    if changes == {"sides": ["en"]}:  # zh is not written: nothing is lost
        assert (built.kept, built.rejected, built.dropped) == (11, {}, {"duplicate en": 1})
    else:
        assert (built.kept, built.rejected, built.dropped) == (11, {UNKNOWN_TEXT: 1}, {})


def test_streams_that_do_not_state_lost_text_stay_readable(make_config: ConfigMaker) -> None:
    config = make_config()
    first = build(config, workers=1)
    for path in list(Path(config.store).rglob("stream.summary")):
        fields = orjson.loads(path.read_bytes())
        del fields["unknown"], fields["vanished"], fields["xxh3"]
        path.with_name("stream.json").write_bytes(orjson.dumps(fields))
        path.unlink()
    again = build(config, workers=1)
    assert again.manifest == first.manifest
    assert [(built.unknown, built.vanished) for built in again.streams] == [(0, 0)] * 3


@pytest.mark.parametrize("directions", [["en-zh"], ["en-zh", "zh-en"]])
@pytest.mark.parametrize("sizes", [(1, 1), (2,), (3,), (1, 0, 1), (1, 1, 1, 1, 1), (7, 1), (1, 7), (2, 9, 3, 1, 1)])
def test_any_two_pairs_can_exchange_their_targets(
    make_config: ConfigMaker, tmp_path: Path, sizes: tuple[int, ...], directions: list[str]
) -> None:
    total = 0
    for number, size in enumerate(sizes):
        pairs = [{"en": f"source number {k}", "zh": f"目标 {k}"} for k in range(total, total + size)]
        path = tmp_path / f"part{number}.jsonl"
        write_jsonl(path, pairs or [{"en": "x", "zh": "x"}])
        total += size
    stream = {"pairs": [str(tmp_path / "part*.jsonl")], "directions": directions, "adjacent": False}
    if 0 in sizes:
        stream["clean"] = {"pair_rules": {"min_script_share": None, "min_letter_share": None}}
    stores = []
    for workers in (1, 2) if sizes == (2, 9, 3, 1, 1) else (1,):
        config = make_config(
            streams={"moved": stream}, stages=[{"name": "only", "drain": True, "mix": {"moved": 1}}], seq_len=4,
            batch_size=1, store=str(tmp_path / f"store{workers}"),
        )  # fmt: skip
        (built,) = build(config, workers=workers).streams
        stores.append(hashes(config))
    assert stores[0] == stores[-1]
    assert (built.kept, built.records) == (total, total + sizes.count(0))
    tokenizer = load_tokenizer(config.tokenizer)
    documents = [
        tokenizer.decode(list(ids)) for flow in unit_flows(config, "moved") for ids in split_documents(flow, 2)
    ]
    found = [re.findall(r"\d+", document) for document in documents]
    assert sorted(int(first) for first, _ in found) == list(range(total))
    assert sorted(int(second) for _, second in found) == list(range(total))
    assert all(first != second for first, second in found)
    both = len({document[:7] for document in documents})
    assert both == (len(directions) if total >= 2 * len(directions) else 1)


def test_one_pair_cannot_exchange_its_target(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"en": "a", "zh": "一"}])
    stream = {"pairs": [str(path)], "directions": ["en-zh", "zh-en"], "adjacent": False}
    config = make_config(streams={"moved": stream}, stages=[{"name": "only", "drain": True, "mix": {"moved": 1}}])
    assert build_error(config) == (
        "stream 'moved' has a single pair, and `targets: shuffled` needs two. Add pairs to streams.moved."
    )


def test_wrong_encoding_is_named(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes('{"text": "编码"}\n'.encode("gbk") * 20)
    message = build_error(documents_only(make_config, path))
    assert message.startswith("stream 'mono': all 20 records are unusable (20 not UTF-8). The first: ")
    assert f"The first: {path}, line 1: not UTF-8: byte 10: " in message


def test_empty_side_of_a_pair_is_named(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"en": "a", "zh": "一"}, {"en": "b", "zh": ""}])
    config = make_config(
        streams={"en-zh": {"pairs": [str(path)], "directions": ["en-zh"]}},
        stages=[{"name": "only", "drain": True, "mix": {"en-zh": 1}}],
    )
    message = build_error(config)
    assert message.startswith("stream 'en-zh': 1 of 2 records are unusable (1 'zh' is empty), more than ")
    assert f'The first: {path}, line 2: \'zh\' is empty: {{"en": "b", "zh": ""}}' in message


def test_hopeless_input_stops_early(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", [{"content": "x"}] * 12_000)
    assert build_error(documents_only(make_config, path)) == (
        f"{path}: 10,000 of the first 10,000 records are unusable, the last one for no key 'text' (line 10,000: "
        '{"content": "x"}). Check the file\'s format, encoding and keys.'
    )


def test_empty_and_tiny_sources(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text("\n\n")
    assert build_error(documents_only(make_config, path)) == (
        "stream 'mono': its files contain no records. Name other files in streams.mono."
    )
    write_jsonl(path, [{"text": "tiny"}])
    message = build_error(documents_only(make_config, path))
    found = re.fullmatch(
        r"stream 'mono' has (\d+) tokens in 1 record, too few for one sample of 33 \(seq_len \+ 1\)\. "
        r"Add sources to streams\.mono, or lower seq_len to (\d+) or less\.",
        message,
    )
    assert found is not None
    tokens, seq_len = map(int, found.groups())
    assert seq_len == tokens - 1
    assert build(documents_only(make_config, path, seq_len=seq_len)).streams[0].stream.samples == 1  # the advice helps
    write_jsonl(path, [{"text": "tiny"}] * 9)
    config = make_config(
        streams={"mono": {"documents": [str(path)], "clean": {"dedup": ["text"]}}},
        stages=[{"name": "only", "drain": True, "mix": {"mono": 1}}],
        store=str(tmp_path / "other"),
    )
    assert ", loosen streams.mono.clean (cleaning drops 8 records: 8 duplicate text), or lower seq_len to " in (
        build_error(config)
    )


def test_missing_file_truncated_archive_and_small_stream(make_config: ConfigMaker, tmp_path: Path) -> None:
    assert build_error(documents_only(make_config, tmp_path / "none.jsonl")).startswith("stream 'mono': no file ")
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00")
    assert "the archive ends early, after 0 bytes of text" in build_error(documents_only(make_config, path))
    config = make_config(["stages.0.steps=1000000"])
    with pytest.raises(InputError, match=r"stream 'mono' is too small: stage 'first' draws 8,000,000 samples"):
        build(config, workers=1)
    assert not list(Path(config.store).rglob("manifest.json"))


def test_shards_beyond_mds_are_refused(make_config: ConfigMaker) -> None:
    assert "an MDS shard must be smaller than 4 GiB" in build_error(make_config(samples_per_shard=100_000_000))


def test_bos_begins_documents(make_config: ConfigMaker) -> None:
    config = make_config(bos=True)
    build(config, workers=1)
    tokens = stream_tokens(config, "en-zh")
    starts = [tokens[k + 1] for k, token in enumerate(tokens[:-1]) if token == 2]
    assert set(starts) == {1}
    assert tokens[0] == 1


def test_damaged_shard_is_noticed_and_removal_fixes_it(make_config: ConfigMaker) -> None:
    config = make_config()
    build(config, workers=1)
    shard = next(Path(config.store, "streams").glob("mono-*/shard.00000.mds"))
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"shard\.00000\.mds is missing or damaged\. Remove .*/units, .* build"):
        build(config, workers=1)
    subprocess.run(["rm", "-r", str(shard.parent)], check=True)
    build(config, workers=1)
    assert shard.read_bytes() == content


@pytest.mark.parametrize("name", ["documents.npy", "rejects.jsonl", "tail.npy"])
@pytest.mark.parametrize("damage", ["removed", "cut", "changed"])
def test_damaged_file_of_a_unit_is_not_published(
    make_config: ConfigMaker, tmp_path: Path, name: str, damage: str
) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", [{"text": f"document number {n}"} for n in range(200)] + [{"txt": "x"}])
    config = documents_only(make_config, path, max_bad_fraction=0.01)
    (built,) = build(config, workers=1).streams
    before = hashes(config)
    shutil.rmtree(Path(config.store, built.stream.remote))
    (file,) = Path(config.store, "units").glob(f"*/{name}")
    content = file.read_bytes()
    file.unlink()
    if damage != "removed":
        file.write_bytes(content[:-5] if damage == "cut" else content[:20] + b"?" + content[21:])
    if (name, damage) == ("rejects.jsonl", "changed"):
        file.write_bytes(b"?" + content[1:])
    with pytest.raises(InputError) as error:
        build(config, workers=1)
    assert str(error.value) == (
        f"{file} is missing or damaged. Remove the folder units/{file.parent.name} and build again."
    )
    shutil.rmtree(file.parent)
    build(config, workers=1)
    assert hashes(config) == before


def test_damaged_index_is_noticed(make_config: ConfigMaker) -> None:
    config = make_config()
    build(config, workers=1)
    index = next(Path(config.store, "streams").glob("mono-*/index.json"))
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"index\.json is damaged: its hash differs\. Remove .*, and build again"):
        build(config, workers=1)


def test_report_counts_every_record(make_config: ConfigMaker) -> None:
    config = make_config()
    result = build(config, workers=1)
    report = read_report(open_store(config.store), config.name)
    assert (report.plan_id, report.stages) == (result.manifest.plan_id, result.manifest.stages)
    assert report.content == Path(result.path).with_name("build_report.json").read_bytes()
    for stream in report.streams:
        assert stream.records == stream.kept + stream.unusable + sum(stream.dropped.values())
        assert stream.tokens == stream.samples * 33 + stream.remainder_tokens


def test_a_report_of_an_earlier_version_is_read(make_config: ConfigMaker) -> None:
    config = make_config()
    build(config)
    store = open_store(config.store)
    report = read_report(store, config.name)
    fields = orjson.loads(report.content)
    for stream in fields["streams"]:
        stream["rejects"] = {"docs.jsonl": "units/0123/rejects.jsonl"}
        del stream["notes"], stream["unknown_tokens"], stream["vanished_characters"]
    store.write(report_key(config.name), orjson.dumps(fields))
    assert [s.unusable for s in read_report(store, config.name).streams] == [s.unusable for s in report.streams]


def test_a_damaged_report_is_named_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / report_key("a/b")
    path.parent.mkdir(parents=True)
    path.write_text('{"plan_id": "1", "streams": [{"name": "s", "folder": "streams/s-1", "records": "3"}]}')
    with pytest.raises(DamagedError, match=r"/a/b/build_report\.json is damaged: streams\.0\.records: .*build again\."):
        read_report(open_store(str(tmp_path)), "a/b")


def test_what_was_said_of_the_records_of_a_stream_is_kept_with_it(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.tsv"
    path.write_text("zh\ten\n" + "".join(f"第 {n} 句话\tsentence number {n}\n" for n in range(200)))
    settings: dict[str, Any] = {
        "streams": {"pairs": {"pairs": [str(path)], "directions": ["en-zh"], "columns": ["en", "zh"]}},
        "stages": [{"name": "all", "steps": 4, "mix": {"pairs": 1}}],
    }
    config = make_config(**settings)
    words = f"stream 'pairs': {HEADING_OBEYED} (1 times, first in {path}, line 1: zh\ten)"
    dry = describe_estimate(prepare(config, open_store(config.store)), workers=1)
    assert f"note: {words}" in dry
    sampled = describe_estimate(prepare(config, open_store(config.store)), workers=1, sample_bytes=3000)
    assert "(in the sample, 1 times, first in " in sampled
    capsys.readouterr()
    for changes in ({}, {"name": "other"}):  # built, then reused
        (built,) = build(make_config(**settings, **changes), workers=1).streams
        assert built.notes == (words,)
        assert capsys.readouterr().err.count(f"note: {words}") == 1
        report = Path(config.store) / "experiments" / changes.get("name", "small") / "build_report.json"
        assert orjson.loads(report.read_bytes())["streams"][0]["notes"] == [words]
    build(make_config(**settings), workers=1)
    assert "note" not in capsys.readouterr().err
    assert stream_notes(prepare(config, open_store(config.store)), ["pairs"]) == [words]
