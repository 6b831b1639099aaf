"""Records come to their ranges in their order; requests grow with the files and the bytes, not with their product."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.build import clean, near_duplicates, near_units, split, stream
from dataengine.build.build import build
from dataengine.build.executors import LocalEngine
from dataengine.build.external_sort import Form, Source, read_table, whole_bucket, write_buckets
from dataengine.build.rounds import run_rounds
from dataengine.storage.local import LocalStore
from dataengine.storage.store import Store
from tests.conftest import ConfigMaker, write_jsonl
from tests.counting_store import CountingStore

KEYED = Form(np.dtype([("hash", "<u8"), ("size", "<u2")]), "hash", "size", np.dtype("<u4"))
GROUPED = Form(np.dtype([("group", "<u4")]), "group")


def write_parts(store: Store, form: Form, parts: Sequence[Sequence[int]], scale: int) -> list[tuple[Source, int]]:
    """A file for each part, with records of these numbers times `scale` and up to 2 elements each."""
    files = []
    for part, numbers in enumerate(parts):
        heads = np.zeros(len(numbers), form.head)
        heads[form.by] = [number * scale for number in numbers]
        arrays = [heads]
        if form.element:
            heads["size"] = [number % 3 for number in numbers]
            arrays.append(np.repeat(np.array(numbers, "<u4"), heads["size"]))
        write_buckets(
            lambda name, content, part=part: store.write(f"units/{part:032x}/{name}", content),  # type: ignore[misc]
            "run.00000",
            list(map(whole_bucket, arrays)),
        )
        size = len(heads) * form.moved.itemsize + sum(array.nbytes for array in arrays[1:])
        files.append((Source(f"{part:032x}", "run.00000", part=part), size))
    return files


def split_all(store: Store, files: Sequence[tuple[Source, int]], form: Form, ranges: int) -> list[split.Places]:
    return run_rounds({"s": split.split("splitting", files, form, ranges)}, LocalEngine(1), store)["s"]


@pytest.mark.parametrize("form", [KEYED, GROUPED])
@settings(max_examples=6)
@given(
    parts=st.lists(st.lists(st.integers(0, 63), max_size=9), min_size=1, max_size=6),
    ranges=st.sampled_from([1, 5, 16]),
    size=st.sampled_from([20, 100, 10**6]),
    files=st.sampled_from([1, 3, 100]),
    few=st.sampled_from([0, 16]),
)
def test_each_range_has_its_records_in_the_order_of_parts(
    tmp_path_factory: pytest.TempPathFactory,
    form: Form,
    parts: list[list[int]],
    ranges: int,
    size: int,
    files: int,
    few: int,
) -> None:
    store = LocalStore(str(tmp_path_factory.mktemp("store")))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SPLIT_BYTES", size), ("MOST_FILES", files), ("_FEW", few)):
            patch.setattr(split, name, value)
        if form is GROUPED:
            parts = [[number % ranges for number in numbers] for numbers in parts]
        scale = 1 << 58 if form is KEYED else 1
        places = split_all(store, write_parts(store, form, parts, scale), form, ranges)
    assert len(places) == ranges
    for number, sources in enumerate(places):
        table = read_table(store, sources, form)
        wanted = [
            (each, part)
            for part, numbers in enumerate(parts)
            for each in numbers
            if (each * ranges // 64 if form is KEYED else each) == number
        ]
        assert list(zip((table.heads[form.by] // scale).tolist(), table.heads["part"].tolist(), strict=True)) == wanted
        if form.element:
            assert table.elements.tolist() == [each for each, _ in wanted for _ in range(each % 3)]


@pytest.mark.parametrize("few", [0, 10**6])
def test_requests_are_those_of_the_files_and_of_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """In one step (all groups are few) and in two."""
    monkeypatch.setattr(split, "SPLIT_BYTES", 4096)
    monkeypatch.setattr(split, "_BLOCK", 256)
    monkeypatch.setattr(split, "_FEW", few)
    chance = random.Random(1)
    for count in (30, 90):
        inner = LocalStore(str(tmp_path / str(count)))
        files = write_parts(inner, GROUPED, [[chance.randrange(count) for _ in range(64)] for _ in range(count)], 1)
        store = CountingStore(inner.url, inner)
        places = split_all(store, files, GROUPED, count)
        for sources in places:
            read_table(store, sources, GROUPED)
        reads = sum(n for (kind, name), n in store.requests.items() if kind.startswith("read") and "json" not in name)
        groups = -(-count * 64 * 8 // 4096)
        if few:
            assert reads == count + 2 * groups * len(places) - _empty(inner, places)
        else:
            assert reads <= count + 4 * (count * 64 * 8) / 256 + 4 * (len(places) + groups)


def _empty(store: Store, places: Sequence[split.Places]) -> int:
    """The buckets without records: their bytes are not asked for."""
    return sum(not len(source.read(store, GROUPED).heads) for sources in places for source in sources)


def test_a_build_asks_as_often_for_each_part_of_many_and_gives_the_same_bytes(
    make_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges and groups grow with the parts here, as they do from some size on."""
    chance = random.Random(5)
    words = [f"w{number}" for number in range(60)]
    texts = [" ".join(chance.choices(words, k=25)) for _ in range(24 * 4)]
    for number in range(4, len(texts), 4):
        texts[number] = texts[number - chance.randrange(1, 4)]
        texts[number - 1] = f"{texts[number - 3]} more"
    records = [{"text": text, "en": text, "zh": f"第{number}句"} for number, text in enumerate(texts)]
    asked = {}
    for parts in (8, 24):
        folder = tmp_path / str(parts)
        folder.mkdir()
        for number in range(parts):
            write_jsonl(folder / f"{number:02d}.jsonl", records[4 * number : 4 * number + 4])
        shared = {
            "seq_len": 16,
            "streams": {
                "mono": {
                    "documents": [f"{folder}/*.jsonl"],
                    "clean": {"dedup": ["text"], "near_dedup": 0.7},
                },
                "pairs": {"pairs": [f"{folder}/*.jsonl"], "directions": ["en-zh"]},
            },
            "stages": [{"name": "all", "steps": 1, "mix": {"mono": 1, "pairs": 1}}],
        }
        shards = []
        for small in (True, False)[: 1 + (parts == 8)]:
            inner = LocalStore(str(tmp_path / f"store-{parts}-{small}"))
            store = CountingStore(inner.url, inner)
            config = make_config(**shared, store=inner.url)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stream, "MERGE_TOKENS", 600)
                patch.setattr(near_duplicates, "_LEAST_GROUP", 8)
                patch.setattr(near_duplicates, "_MOST_GROUP", 8)
                if small:
                    patch.setattr(clean, "RANGE_KEYS", 16)
                    patch.setattr(near_units, "RANGE_KEYS", 400)
                    for name, value in (("SPLIT_BYTES", 2000), ("_FEW", 1)):
                        patch.setattr(split, name, value)
                build(config, store=store)
            keys = [key for key in inner.sizes("streams/") if not key.endswith(".summary")]
            shards.append({key: inner.read(key) for key in keys})
            if small:
                asked[parts] = sum(store.requests.values())
        assert shards[0] == shards[-1]
    assert asked[24] < 3.4 * asked[8]


def test_a_part_of_documents_takes_these_requests(make_config: ConfigMaker, tmp_path: Path) -> None:
    """Those of docs/internals/scale.md, in a store with so many files that each unit is asked for by name."""
    words, chance, asked = [f"w{number}" for number in range(500)], random.Random(5), []
    cleaning = {"dedup": ["text"], "near_dedup": 0.7, "min_language_score": 1e-9}
    for number in range(6):
        write_jsonl(tmp_path / f"{number}.jsonl", [{"text": " ".join(chance.choices(words, k=25))} for _ in range(4)])
    for parts in (3, 6):
        inner = LocalStore(str(tmp_path / f"store-{parts}"))
        store = CountingStore(inner.url, inner)
        paths = [str(tmp_path / f"{number}.jsonl") for number in range(parts)]
        build(
            make_config(
                store=inner.url,
                streams={"mono": {"documents": paths, "language": "en", "clean": cleaning}},
                stages=[{"name": "all", "steps": 1, "mix": {"mono": 1}}],
                samples_per_shard=1000,
            ),
            store=store,
        )
        counted: Counter[tuple[str, str]] = Counter()
        for (operation, name), times in store.requests.items():
            if "~" not in name:  # it says that the build runs
                counted[operation, re.sub(r"\d{5}", "N", name)] += times
        asked.append(counted)
    more = {key: times / 3 for key, times in (asked[1] - asked[0]).items()}
    written = ("near.N", "near.N.held", "run.N", "values.npy", "dropped.npy", "documents.npy", "tail.npy")
    assert more == {
        **{("write", name): 1 for name in written},
        **{("read", name): 1 for name in ("near.N", "run.N", "dropped.npy", "documents.npy", "tail.npy")},
        ("write", "receipt.json"): 6,  # three measures, cleaning, the same when its near keys go, tokenizing
        ("read", "receipt.json"): 4,  # of each unit, and of keys: none is there
        ("size", "receipt.json"): 1,  # of the languages
        ("list", ""): 1,  # the folder of the near keys
        ("remove", "near.N"): 1,
        ("remove", "near.N.held"): 1,
        ("remove", "receipt.json"): 1,
        ("link", "documents.N.npy"): 1,
    }
