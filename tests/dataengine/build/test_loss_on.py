"""What `loss_on: target` adds to a stream: the samples stay, and the tokens of targets are marked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml
from streaming import StreamingDataset

from dataengine.build import prepare, tokenize
from dataengine.build.build import BuildResult, build
from dataengine.build.report import read_report
from dataengine.commands.export import export
from dataengine.commands.inspect_samples import describe_sample
from dataengine.commands.verify import verify
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.writer import ShardFormat
from dataengine.schedule.manifest import read_manifest
from dataengine.storage.local import LocalStore
from dataengine.storage.open import open_store
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import ConfigMaker, read_texts, set_everywhere
from tests.crashing_store import CrashingStore
from tests.dataengine.build.test_executors import in_child

BOTH = ["en-zh", "zh-en"]


def stream(corpora: Path, **keys: Any) -> dict[str, Any]:
    return {"pairs": [str(corpora / "pairs.*.jsonl")], "directions": BOTH, **keys}


def make(make_config: ConfigMaker, corpora: Path, *overrides: str, **keys: Any) -> Config:
    """An experiment with pairs whose targets alone count, and documents."""
    return make_config(
        list(overrides),
        streams={
            "mono": {"documents": [str(corpora / "mono.*.jsonl")]},
            "both": stream(corpora, **{"loss_on": "target", **keys}),
        },
        stages=[{"name": "all", "steps": 20, "mix": {"mono": 1, "both": 1}}],
    )


def read_units(config: Config, name: str) -> Iterator[tuple[list[int], list[bool]]]:
    """The tokens of each unit of a stream and their marks, joined again from what stock streaming reads."""
    (folder,) = Path(config.store, "streams").glob(f"{name}-*")
    dataset = StreamingDataset(local=str(folder), batch_size=1, shuffle=False, validate_hash="xxh64")
    rows = [dataset[k] for k in range(len(dataset))]
    rest = np.load(folder / "remainder.npy")
    tokens = np.concatenate([*(row["tokens"] for row in rows), rest["token"]])
    width = len(rows[0]["tokens"])
    masks = [np.unpackbits(row["loss_mask"], count=width).astype(bool) for row in rows]
    marks = np.concatenate([*masks, rest["counts"]])
    segments = np.array(orjson.loads((folder / "stream.summary").read_bytes())["segments"])
    for unit in np.unique(segments[:, 0]):
        places = np.concatenate([np.arange(at, at + n) for one, at, _, n in segments if one == unit])
        yield tokens[places].tolist(), marks[places].tolist()


def common(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("adjacent", [True, False])
@pytest.mark.parametrize("bos", [False, True])
def test_what_follows_the_text_before_the_target_counts(
    make_config: ConfigMaker, corpora: Path, monkeypatch: pytest.MonkeyPatch, adjacent: bool, bos: bool
) -> None:
    """Each document of the stream is found by its tokens, and its marks are those of the rule."""
    monkeypatch.setattr(tokenize, "_RUN_TOKENS", 3000)
    set_everywhere(monkeypatch, prepare, "MERGE_TOKENS", 4000)
    config = make(make_config, corpora, f"bos={bos}", adjacent=adjacent)
    result = build(config)
    tokenizer = load_tokenizer(config.tokenizer)
    sources = [pair for path in sorted(corpora.glob("pairs.*.jsonl")) for _, pair in read_texts(path, "en", "zh")]
    befores = [f"English: {en}\nChinese: " for en, _ in sources] + [f"Chinese: {zh}\nEnglish: " for _, zh in sources]
    # With shuffled targets, the source of a document is known by its first line.
    contexts = {text.split("\n")[0]: ids for text, ids in zip(befores, tokenizer.encode(befores), strict=True)}
    seen = counted = 0
    for tokens, marks in read_units(config, "both"):
        counted += sum(marks)
        while tokens:
            end = tokens.index(tokenizer.eos_id) + 1
            ids = tokens[bos : end - 1]
            context = common(ids, contexts[tokenizer.decode(ids).split("\n")[0]])
            assert marks[:end] == [False] * (bos + context) + [True] * (end - bos - context)
            assert tokenizer.decode(ids[context:]).strip() in {text.strip() for pair in sources for text in pair}
            tokens, marks, seen = tokens[end:], marks[end:], seen + 1
    built = result.streams[1]
    assert seen == built.kept == len(sources)
    assert counted == built.counted
    assert 0.2 < counted / built.tokens < 0.8
    report = read_report(open_store(config.store), config.name)
    assert [one.counted_tokens for one in report.streams] == [None, built.counted]


def test_tokens_and_order_stay(make_config: ConfigMaker, corpora: Path, tmp_path: Path) -> None:
    marked, plain = (
        read_manifest(build(make(make_config, corpora, f"store={tmp_path / name}", loss_on=name)).path)
        for name in ("target", "all")
    )
    assert plain.plan_id != marked.plan_id
    for one, other in zip(plain.batches(), marked.batches(), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert one.streams.tolist() == other.streams.tolist()
        assert one.loss_mask is None
        assert one.labels is one.tokens
        assert other.loss_mask is not None
        assert np.array_equal(other.labels[other.loss_mask], other.tokens[other.loss_mask])
        assert (other.labels[~other.loss_mask] == -100).all()
        assert other.loss_mask.shape == other.tokens.shape
        assert other.loss_mask[other.streams == "mono"].all()
        assert not other.loss_mask[other.streams == "both"].all()


def content(result: BuildResult) -> dict[str, str]:
    store = Path(result.path).parents[2]
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.glob("streams/**/*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_workers_and_a_crash_change_no_byte(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, crashed = (
        make(make_config, corpora, f"store={tmp_path / name}", template={"paper": 1, "instruct": 1})
        for name in ("one", "two", "crashed")
    )
    set_everywhere(monkeypatch, prepare, "MERGE_TOKENS", 4000)
    set_everywhere(monkeypatch, prepare, "TAIL_TOKENS", 3000)
    expected = content(build(one, workers=1))
    assert content(build(two, workers=2)) == expected
    store = open_store(crashed.store)
    for moment in ("after a run", "after a unit is published", "before index.json"):
        crashing = CrashingStore(store.url, store, moment, str(tmp_path / moment))
        assert in_child(partial(build, crashed, store=crashing)) == 9
    assert content(build(crashed)) == expected


@pytest.mark.parametrize("compression", [None, "zstd:1"])
def test_every_reader_gives_the_same_marks(
    make_config: ConfigMaker, corpora: Path, tmp_path: Path, compression: str | None
) -> None:
    config = make(make_config, corpora, *([f"shard_compression={compression}"] if compression else []))
    result = build(config)
    manifest, store = read_manifest(result.path), open_store(config.store)
    assert manifest == result.manifest
    assert [one.loss_mask for one in manifest.streams] == [one.name == "both" for one in manifest.streams]
    assert verify(store, manifest.streams)[0] == []
    batches = list(manifest.batches(cache=tmp_path / "cache"))
    target = LocalStore(tmp_path / "export")
    export(manifest, store, ShardFormat(50, compression=compression), target, 0, len(batches))
    dataset = StreamingDataset(
        local=str(tmp_path / "local"), remote=str(tmp_path / "export"), batch_size=1, shuffle=False
    )
    exported = [dataset[k] for k in range(len(dataset))]
    assert [row["tokens"].tolist() for row in exported] == [row for batch in batches for row in batch.tokens.tolist()]
    masks = [np.unpackbits(row["loss_mask"], count=33).astype(bool).tolist() for row in exported]
    assert masks == [row for batch in batches for row in batch.loss_mask.tolist()]


def test_templates_share_the_pairs_of_a_stream(make_config: ConfigMaker, corpora: Path, tmp_path: Path) -> None:
    (tmp_path / "my.jinja").write_text("{{ source_code }}>{{ target_code }} {{ source }} => {{ target }}")
    weights = {"paper": 2, str(tmp_path / "my.jinja"): 2, "instruct": 1}
    config = make(make_config, corpora, adjacent=False, template=weights)
    built = build(config).streams[1]
    report = read_report(open_store(config.store), "small").streams[1]
    assert report.templates == dict(zip(weights, built.templates, strict=True))
    assert sum(built.templates) == built.kept == 600
    tokenizer = load_tokenizer(config.tokenizer)
    texts, targets = [], []
    for tokens, marks in read_units(config, "both"):
        ends = np.flatnonzero(np.array(tokens) == tokenizer.eos_id) + 1
        for begin, end in zip([0, *ends.tolist()], ends.tolist(), strict=False):
            texts.append(tokenizer.decode(tokens[begin : end - 1]))
            own = [token for token, counts in zip(tokens[begin:end], marks[begin:end], strict=True) if counts]
            targets.append(tokenizer.decode(own[:-1]).strip())
    assert all(text.endswith(target) and target for text, target in zip(texts, targets, strict=True))
    kinds = [("=> " in text, text.startswith("Translate this")) for text in texts]
    assert (kinds.count((True, False)), kinds.count((False, True))) == built.templates[1:]
    assert all(text.startswith(("en>zh ", "zh>en ")) for text in texts if "=> " in text)


def test_a_sample_is_shown_with_what_counts(make_config: ConfigMaker, corpora: Path) -> None:
    config = make(make_config, corpora, directions=["en-zh"])
    manifest, store = build(config).manifest, open_store(config.store)
    tokenizer = load_tokenizer(config.tokenizer)
    head, *lines = describe_sample(manifest, store, tokenizer, "both", 1).split("\n")
    assert " tokens, of which " in head
    shown = [line for line in lines if line.startswith("  ")]
    assert any(line.startswith("  | English: ") for line in shown)
    after = [shown[k + 1] for k, line in enumerate(shown[:-1]) if line.strip("| ").startswith("Chinese:")]
    assert after
    assert all(line.startswith("  > ") and not line[4:].isascii() for line in after)
    assert " count" not in describe_sample(manifest, store, tokenizer, "mono", 1)


def test_a_config_without_it_is_stored_as_before(make_config: ConfigMaker, corpora: Path) -> None:
    plain, marked = (yaml.safe_load(dump_config(make(make_config, corpora, loss_on=on))) for on in ("all", "target"))
    assert marked["streams"]["both"].pop("loss_on") == "target"
    assert plain == marked
    assert all("loss_on" not in one for one in plain["streams"].values())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"directions": [], "sides": ["zh"]}, "`loss_on: target` needs `directions`"),
        ({"loss_on": "source"}, "loss_on"),
        ({"template": {"paper": 0}}, "template.paper: expected a number greater than 0, got 0"),
        ({"template": {}}, "`template` names at least one template"),
        ({"template": ["paper"]}, "template: expected a mapping"),
        ({"loss_on": "all", "directions": [], "sides": ["zh"], "template": "plain"}, "`template` needs `directions`"),
    ],
)
def test_what_cannot_be_is_refused(make_config: ConfigMaker, corpora: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(make_config, corpora, **keys)


def test_a_stream_of_documents_has_no_such_key(make_config: ConfigMaker, corpora: Path) -> None:
    mono = {"documents": [str(corpora / "mono.*.jsonl")], "loss_on": "target"}
    with pytest.raises(InputError, match="loss_on"):
        make_config(streams={"mono": mono}, stages=[{"name": "all", "steps": 2, "mix": {"mono": 1}}])


def test_a_stream_whose_samples_count_nothing_is_refused(make_config: ConfigMaker, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_bytes(orjson.dumps({"en": "word " * 600, "zh": "字"}))
    config = make_config(
        seq_len=500,
        streams={"long": {"pairs": [str(tmp_path / "long.jsonl")], "directions": ["en-zh"], "loss_on": "target"}},
        stages=[{"name": "all", "drain": True, "mix": {"long": 1}}],
        batch_size=1,
    )
    with pytest.raises(InputError, match="stream 'long': no token of its samples counts in the loss"):
        build(config)
