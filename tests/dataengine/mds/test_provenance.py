from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import orjson
import pytest
from streaming import StreamingDataset

from dataengine.build import prepare, tokenize
from dataengine.build.build import build
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.provenance import StreamProvenance
from dataengine.storage.open import open_store
from dataengine.text.pairs import write_sides
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import ConfigMaker, read_texts, set_everywhere, write_pairs

STREAMS = {
    "mono": {"documents": ["mono.*.jsonl"]},
    "both": {"pairs": ["pairs.*.jsonl"], "directions": ["en-zh", "zh-en"]},
    "sides": {"pairs": ["pairs.*.jsonl"], "sides": ["zh", "en"]},
}


@pytest.fixture
def config(make_config: ConfigMaker, corpora: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Streams of several units, runs and ranges."""
    set_everywhere(monkeypatch, prepare, "MERGE_TOKENS", 5000)
    monkeypatch.setattr(tokenize, "_RUN_TOKENS", 3000)
    streams = {
        name: {key: [str(corpora / v) if "*" in v else v for v in values] for key, values in stream.items()}
        for name, stream in STREAMS.items()
    }
    config = make_config(
        streams=streams, stages=[{"name": "all", "drain": True, "mix": dict.fromkeys(STREAMS, "by_size")}]
    )
    build(config, workers=1)
    return config


def expected_ids(config: Config, name: str) -> dict[tuple[str, int], list[list[int]]]:
    """The ids, with EOS, of the documents of each source line."""
    tokenizer = load_tokenizer(config.tokenizer)
    found: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
    for pattern in config.streams[name].paths:
        for path in sorted(Path(pattern).parent.glob(Path(pattern).name)):
            keys = ("text",) if name == "mono" else ("en", "zh")
            for number, (line, record) in enumerate(read_texts(path, *keys)):
                columns = {key: [text] for key, text in zip(keys, record, strict=True)}
                if name == "mono":
                    texts = columns["text"]
                elif name == "sides":
                    texts = write_sides(columns, ("zh", "en"), config.languages)
                else:
                    texts = write_pairs(columns, number, ("en-zh", "zh-en"), config.languages)
                found[str(path), line] += [[*ids, tokenizer.eos_id] for ids in tokenizer.encode(texts)]
    return found


@pytest.mark.parametrize("name", list(STREAMS))
def test_every_token_of_every_sample_comes_from_where_it_says(config: Config, name: str) -> None:
    (folder,) = Path(config.store, "streams").glob(f"{name}-*")
    provenance = StreamProvenance(open_store(config.store), f"streams/{folder.name}", 33)
    dataset = StreamingDataset(local=str(folder), batch_size=1, shuffle=False)
    expected = expected_ids(config, name)
    covered = 0
    for sample in range(provenance.num_samples):
        tokens, at = dataset[sample]["tokens"].tolist(), 0
        for origin in provenance.origins(sample):
            part = tokens[at : at + origin.num_tokens]
            documents = expected[origin.path, origin.line]
            assert any(ids[origin.first_token : origin.first_token + origin.num_tokens] == part for ids in documents)
            at += origin.num_tokens
        assert at == 33
        covered += at
    total = sum(len(ids) for documents in expected.values() for ids in documents)
    assert covered == total - total % 33


@pytest.mark.parametrize("name", list(STREAMS))
def test_looking_up_a_line_is_the_inverse(config: Config, name: str) -> None:
    (folder,) = Path(config.store, "streams").glob(f"{name}-*")
    provenance = StreamProvenance(open_store(config.store), f"streams/{folder.name}", 33)
    samples: dict[tuple[str, int], set[int]] = defaultdict(set)
    for sample in range(provenance.num_samples):
        for origin in provenance.origins(sample):
            samples[origin.path, origin.line].add(sample)
    rng = np.random.default_rng(0)
    keys = list(expected_ids(config, name))
    for path, line in [keys[k] for k in rng.choice(len(keys), 40, replace=False)]:
        assert provenance.samples_of(path, line).tolist() == sorted(samples[path, line])
    assert provenance.samples_of(keys[0][0], 10**6).tolist() == []
    with pytest.raises(InputError, match=r"nowhere is not a source of .*; they are "):
        provenance.samples_of("nowhere", 1)


def test_streams_of_other_kinds(make_config: ConfigMaker, corpora: Path) -> None:
    """Non-adjacent and one-sided streams hold each sentence once."""
    pairs = [str(corpora / "pairs.0.jsonl")]
    config = make_config(
        streams={
            "moved": {"pairs": pairs, "directions": ["zh-en"], "adjacent": False},
            "zh": {"pairs": pairs, "sides": ["zh"]},
        },
        stages=[{"name": "all", "drain": True, "mix": {"moved": "by_size", "zh": "by_size"}}],
    )
    result = build(config, workers=1)
    tokenizer = load_tokenizer(config.tokenizer)
    records = [dict(zip(("en", "zh"), pair, strict=True)) for _, pair in read_texts(Path(pairs[0]), "en", "zh")]
    texts = {}
    for stream in result.manifest.streams:
        folder = Path(config.store, stream.remote)
        dataset = StreamingDataset(local=str(folder), batch_size=1, shuffle=False)
        flow = [t for k in range(len(dataset)) for t in dataset[k]["tokens"].tolist()]
        flow += np.load(folder / "remainder.npy").tolist()
        text = "".join(tokenizer.decode(part) + "\0" for part in _split(flow, tokenizer.eos_id))
        texts[stream.name] = text.split("\0")[:-1]
    assert sorted(texts["zh"]) == sorted(f"Chinese: {record['zh']}" for record in records)
    own = {record["zh"]: record["en"] for record in records}
    moved = [text.split("\nEnglish: ") for text in texts["moved"]]
    assert sorted(target for _, target in moved) == sorted(record["en"] for record in records)
    kept = [source for source, target in moved if own[source.removeprefix("Chinese: ")] == target]
    assert len(kept) <= len(records) - len({record["en"] for record in records})  # equal sentences of other pairs
    receipts = orjson.loads(Path(result.path).with_name("build_report.json").read_bytes())
    assert [stream["kept"] for stream in receipts["streams"]] == [200, 200]


def _split(flow: list[int], eos_id: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in flow:
        if token == eos_id:
            parts.append([])
        else:
            parts[-1].append(token)
    assert parts.pop() == []
    return parts


def test_a_pair_alone_is_an_error(make_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"en": "a", "zh": "b"}\n')
    config = make_config(
        streams={"moved": {"pairs": [str(path)], "directions": ["zh-en"], "adjacent": False}},
        stages=[{"name": "all", "drain": True, "mix": {"moved": 1}}],
    )
    with pytest.raises(InputError, match=r"stream 'moved' has a single pair"):
        build(config, workers=1)
