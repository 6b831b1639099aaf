"""The Python API: the samples of every step, from any store, on any number of ranks."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dataengine
from dataengine.build.build import build as build_all
from dataengine.mds.reader import map_shard
from dataengine.schedule.log_csv import next_digest
from dataengine.schedule.reader import Batches, PlanReader
from dataengine.storage.open import open_store
from dataengine.text.tokenizers.load import load_tokenizer
from tests.conftest import DEMO, ROOT, ConfigMaker, small_experiment, write_jsonl
from tests.object_store import ObjectStore, object_store

__all__ = ["object_store"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> dataengine.Config:
    folder = tmp_path_factory.mktemp("api")
    experiment = small_experiment(corpora, tokenizer_path, folder)
    return dataengine.Config.model_validate({**experiment, "lanes": 2})


@pytest.fixture(scope="module")
def manifest(config: dataengine.Config) -> dataengine.Manifest:
    return dataengine.build(config, workers=1)


def parts(batches: Batches) -> list[tuple[int, list[list[int]], list[int], list[str]]]:
    return [(b.step, b.tokens.tolist(), b.sample_ids.tolist(), b.streams.tolist()) for b in batches]


@pytest.fixture(scope="module")
def whole(manifest: dataengine.Manifest) -> list[tuple[int, list[list[int]], list[int], list[str]]]:
    return parts(manifest.batches())


def test_a_batch_is_the_plans_samples_as_stored_in_the_shards(
    config: dataengine.Config, manifest: dataengine.Manifest
) -> None:
    rows = [
        (stream.name, row.tolist())
        for stream in manifest.streams
        for shard in stream.shards
        for row in map_shard(Path(config.store, stream.remote, shard.raw.basename), 33, np.dtype(np.uint16))
    ]
    batches = manifest.batches()
    assert len(batches) == manifest.schedule.steps == 16
    for step, batch in enumerate(batches):
        assert batch.step == step
        assert batch.tokens.dtype == np.int64
        assert batch.sample_ids.tolist() == manifest.order.sample_ids(step).tolist()
        assert list(zip(batch.streams, batch.tokens.tolist(), strict=True)) == [rows[k] for k in batch.sample_ids]


@settings(max_examples=20)
@given(start=st.integers(0, 16), world_size=st.sampled_from([1, 2, 4, 8]), first=st.integers(0, 20))
def test_any_start_is_the_tail_and_ranks_join_to_the_whole(manifest, whole, start, world_size, first) -> None:
    ranks = [manifest.batches(start, rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [
        (column[0][0], *([one for part in column for one in part[k]] for k in (1, 2, 3)))
        for column in zip(*map(parts, ranks), strict=True)
    ]
    assert joined == whole[start:]
    assert parts(manifest.batches(start)[first::3]) == whole[start:][first::3]


def test_the_samples_are_those_of_a_plan_reader(config: dataengine.Config, manifest: dataengine.Manifest) -> None:
    reader = PlanReader.of_store(manifest, open_store(config.store))
    for batch in manifest.batches(rank=1, world_size=4):
        expected = reader.read(batch.step, 2, 4)
        assert np.array_equal(batch.tokens, expected.tokens)


def test_batches_can_be_pickled_after_use(manifest: dataengine.Manifest, whole: list) -> None:
    batches = manifest.batches(3)
    assert batches[-1].step == 15
    assert parts(pickle.loads(pickle.dumps(batches))) == whole[3:]


def test_a_bucket_gives_the_arrays_of_a_local_store(
    manifest: dataengine.Manifest, whole: list, make_config: ConfigMaker, object_store: ObjectStore, tmp_path: Path
) -> None:
    url = f"{object_store.url}/store"
    there = dataengine.build(make_config(lanes=2, store=url), workers=1)
    assert there.store == url
    assert there == manifest
    assert parts(there.batches(cache=tmp_path / "cache")) == whole
    assert list((tmp_path / "cache").rglob("*.mds"))
    read = dataengine.read_manifest(f"{url}/experiments/small/manifest.json")
    assert parts(read.batches(12, cache=tmp_path / "cache")) == whole[12:]


def test_the_store_of_a_manifest_is_found_or_given(
    config: dataengine.Config,
    manifest: dataengine.Manifest,
    whole: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "manifest.json"
    copy.write_bytes(manifest.content)
    alone = dataengine.read_manifest(copy)
    assert (alone.store, alone) == ("", manifest)
    with pytest.raises(dataengine.InputError, match="the store of manifest 'small' is unknown"):
        alone.batches()
    assert parts(alone.batches(15, store=config.store)) == whole[15:]
    monkeypatch.chdir(config.store)
    assert dataengine.read_manifest("experiments/small/manifest.json").store == "."
    monkeypatch.chdir(Path(config.store).parent)
    assert dataengine.read_manifest("store/experiments/small/manifest.json").store == "store"
    assert pickle.loads(pickle.dumps(manifest)).store == config.store


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 17}, "start is 17, but the schedule has 16 steps: give one from 0 to 16"),
        ({"start": -1}, "start is -1, but"),
        ({"world_size": 3}, "rank 0 of 3 ranks: world_size must divide the batch size, 8, and ranks count from 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 ranks"),
        ({"world_size": 0}, "rank 0 of 0 ranks"),
    ],
)
def test_steps_and_ranks_that_do_not_exist(manifest: dataengine.Manifest, arguments: dict, message: str) -> None:
    with pytest.raises(dataengine.InputError, match=message):
        manifest.batches(**arguments)


def test_a_rank_is_a_whole_number_and_words_are_short(manifest: dataengine.Manifest) -> None:
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        manifest.batches(rank=0.5, world_size=2)  # type: ignore[arg-type]
    assert len(repr(manifest.batches())) < 300


def test_a_damaged_shard_is_refused(make_config: ConfigMaker) -> None:
    manifest = dataengine.build(make_config(), workers=1)
    for shard in Path(manifest.store).glob("streams/mono-*/*.mds"):
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    with pytest.raises(dataengine.InputError, match=r"shard.0000\d.mds is damaged: its xxh64 is"):
        list(manifest.batches())


def test_a_plan_is_the_built_manifest_or_the_assumed_one(make_config: ConfigMaker) -> None:
    config = make_config()
    with pytest.raises(dataengine.InputError, match="is not built in"):
        dataengine.read_manifest(config)
    with pytest.raises(dataengine.InputError, match="Build it "):
        dataengine.plan(config)
    built = dataengine.build(config, workers=1)
    assert dataengine.plan(config) == dataengine.read_manifest(config) == built
    assert (build_all(config).manifest, build_all(config).new) == (built, False)
    assumed = {name: {**stream.model_dump(), "assume": {"samples": 500}} for name, stream in config.streams.items()}
    other = make_config(name="other", streams=assumed)
    planned = dataengine.plan(other)
    assert planned.schedule.cursors(16) == built.schedule.cursors(16)
    with pytest.raises(dataengine.InputError, match="or build it first if it is only planned"):
        planned.batches()
    with pytest.raises(dataengine.InputError, match=r"was built with other settings \(seed\)"):
        dataengine.read_manifest(make_config(seed=1))


def test_decoded_text_is_that_of_the_documents(make_config: ConfigMaker, tmp_path: Path) -> None:
    texts = [f"The train number {k} leaves at noon." for k in range(100)]
    path = write_jsonl(tmp_path / "docs.jsonl", [{"text": text} for text in texts])
    config = make_config(
        streams={"mono": {"documents": [str(path)]}}, stages=[{"name": "only", "steps": 2, "mix": {"mono": 1}}]
    )
    decoded = [dataengine.decode(sample, config.tokenizer) for sample in dataengine.build(config).batches()[0].tokens]
    assert all(any(text in one for text in texts) for one in decoded)


@pytest.mark.parametrize("tokenizer", [*sorted(DEMO.glob("*.model"))])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Path) -> None:
    last = load_tokenizer(tokenizer).vocab_size - 1
    assert dataengine.decode([0, last], tokenizer)
    for token in (-1, last + 1, 2**40):
        with pytest.raises(dataengine.InputError, match=f"has no token {token}: its ids are 0 to {last:,}"):
            dataengine.decode([3, token], tokenizer)
    with pytest.raises(dataengine.InputError, match=r"not \(2, 3\): give batch\.tokens\[0\]"):
        dataengine.decode(np.zeros((2, 3), np.int64), tokenizer)


@pytest.mark.parametrize("steps", [0, -1])
def test_an_audit_of_no_steps_is_refused(manifest: dataengine.Manifest, tmp_path: Path, steps: int) -> None:
    log = tmp_path / "log.csv"
    log.write_text(f"step,stage,digest\n{'9' * 5000},a,{'0' * 64}\n")
    with pytest.raises(dataengine.InputError, match=f"steps is {steps}, and an audit compares at least one"):
        dataengine.audit(manifest, log, steps)
    with pytest.raises(dataengine.InputError, match="line 2 is not a row of a step after -1"):
        dataengine.audit(manifest, log)


def test_an_audit_finds_the_first_step_that_is_not_the_plans(manifest: dataengine.Manifest, tmp_path: Path) -> None:
    rows, digest = ["step,stage,skipped,digest"], ""
    for batch in manifest.batches():
        skipped = "spike" if batch.step == 5 else ""
        digest = next_digest(digest, batch.step, batch.sample_ids, skipped=bool(skipped))
        rows.append(f"{batch.step},any,{skipped},{digest}")
    log = tmp_path / "log.csv"
    log.write_text("\n".join([*rows[:8], *rows[10:]]) + "\n")
    found = dataengine.audit(manifest, log)
    assert (found.steps, found.digest, found.different_at) == (16, digest, None)
    assert (found.skipped, found.missing) == ({5: "spike"}, [(7, 8)])
    assert dataengine.audit(manifest, str(log), steps=4).steps == 4
    other = dataengine.audit(replace(manifest, seed=manifest.seed + 1), log)
    assert (other.different_at, other.steps) == (0, 0)
    log.write_text("\n".join([*rows, f"16,any,,{digest}"]) + "\n")
    assert dataengine.audit(manifest, log).different_at == 16
    with pytest.raises(dataengine.InputError, match=r"no log\.csv in"):
        dataengine.audit(manifest, tmp_path / "none.csv")


HEAVY = ("torch", "composer", "streaming", "transformers", "trainer")


def imported(code: str, names: tuple[str, ...]) -> set[str]:
    """Which of the modules a program imports."""
    ask = f"{code}\nimport sys; print(*(n for n in {names!r} if n in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("import dataengine; dir(dataengine)", (*HEAVY, "numpy", "pydantic", "yaml", "orjson")) == set()


def test_all_names_come_without_torch_after_any_imports() -> None:
    code = "import dataengine.build.build as module\nfrom dataengine import *\nimport dataengine as d\n"
    code += "assert all(callable(getattr(d, name)) for name in d.__all__)\n"
    code += "assert module is d.build.build and d.build is build"
    assert imported(code, HEAVY) == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dataengine' has no attribute 'bild'"):
        dataengine.bild  # noqa: B018
    assert set(dataengine.__all__) <= set(dir(dataengine))
