from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataengine.errors import InputError
from dataengine.mds.summary import read_summary
from dataengine.mds.types import Shard, StoredFile, Stream
from dataengine.schedule.manifest import Manifest, read_manifest
from dataengine.schedule.slots import Stage
from dataengine.storage.open import open_store


def manifest(stages: tuple[Stage, ...], **changes: object) -> Manifest:
    shards = tuple(Shard(50, StoredFile(f"shard.{k:05d}.mds", 1000 + k, {"xxh64": f"{k:016x}"})) for k in range(3))
    streams = tuple(Stream(name, f"streams/{name}-0", name * 64, 150, 15_150, shards) for name in ("a", "b"))
    fields: dict[str, object] = {
        "name": "m", "tokenizer_sha256": "t" * 64, "vocab_size": 6000, "eos_id": 2, "seq_len": 100, "batch_size": 10,
        "lanes": 1, "seed": 17, "shuffle_block": 64, "streams": streams, "stages": stages,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


STAGES = (Stage("x", 5, {"a": 50}), Stage("y", 5, {"a": 20, "b": 30}))


def test_a_manifest_reads_back_equal_and_its_hash_is_the_plan_id(tmp_path: Path) -> None:
    written = manifest(STAGES)
    path = tmp_path / "manifest.json"
    path.write_bytes(written.content)
    assert read_manifest(path) == written
    assert written.plan_id == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_manifest_that_is_read_has_the_order_of_the_one_that_was_written(tmp_path: Path) -> None:
    written = manifest((Stage("x", 9, {"b": 60, "a": 30}),))
    path = tmp_path / "manifest.json"
    path.write_bytes(written.content)
    read = read_manifest(path)
    for step in range(9):
        assert read.order.sample_ids(step).tolist() == written.order.sample_ids(step).tolist()


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(InputError, match=r"no manifest at .*Build the streams first: dataengine build CONFIG$"):
        read_manifest(path)
    content = manifest(STAGES).content
    path.write_bytes(content[:-10])
    with pytest.raises(InputError, match=r"manifest\.json is damaged: .*Build again"):
        read_manifest(path)
    path.write_bytes(content.replace(b'"seed":17', b'"seed": 17'))
    with pytest.raises(InputError, match=r"has changed since it was written"):
        read_manifest(path)
    path.write_bytes(content.replace(b'"version":2', b'"version":9'))
    with pytest.raises(InputError, match=r"has version 9, this program reads 2 and 3"):
        read_manifest(path)


def test_a_store_that_is_not_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        read_manifest("a/store/experiments/mini/x/manifest.json")
    assert str(error.value) == (
        "no manifest at a/store/experiments/mini/x/manifest.json: No such file or directory. Build the streams first: "
        f"dataengine build CONFIG. There is no folder {tmp_path}/a: relative paths begin at the working directory, "
        f"{tmp_path}"
    )
    (tmp_path / "a" / "store" / "experiments").mkdir(parents=True)
    with pytest.raises(InputError, match=r"dataengine build CONFIG$"):
        read_manifest("a/store/experiments/mini/x/manifest.json")


def test_a_stream_of_a_store_that_is_not_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        read_summary(open_store("store"), "streams/mono-1")
    assert str(error.value) == (
        f"store/streams/mono-1/stream.summary is missing. There is no folder {tmp_path}/store: relative paths begin at "
        f"the working directory, {tmp_path}"
    )
    (tmp_path / "store").mkdir()
    with pytest.raises(
        InputError, match=r"is missing. Remove store/streams/mono-1, and store/units, .* build again\.$"
    ):
        read_summary(open_store("store"), "streams/mono-1")


def test_of_many_differences_the_first_are_named() -> None:
    names = [f"stream-{number}" for number in range(40)]
    stages = tuple(Stage(f"stage-{number}", 1, dict.fromkeys(names, 1)) for number in range(60))
    others = tuple(Stage(stage.name, 1, {**stage.samples, "stream-7": 2, "stream-8": 0}) for stage in stages)
    before, now = (manifest(part, batch_size=40) for part in (stages, others))
    found = before.differences(now, 60)
    assert found[0] == (
        "stage 'stage-0' was 1 steps of 1 stream-7, 1 stream-8, 1 stream-0, 1 stream-1, and 36 more and is 1 steps of "
        "2 stream-7, 0 stream-8, 1 stream-0, 1 stream-1, and 36 more"
    )
    assert found[4:] == ["and 56 more"]


def test_a_stage_that_ends_later_is_not_a_difference_before_that() -> None:
    before, now = (manifest((Stage("x", length, {"a": 60, "b": 30}),)) for length in (9, 7))
    assert before.differences(now, 7) == ["the order of streams or stages has changed"]
    assert before.differences(now, 8) == [
        "stage 'x' was 9 steps of 60 a, 30 b and is 7 steps of 60 a, 30 b",
    ]


def test_prefix_hash_changes_only_with_what_came_before() -> None:
    one, longer = manifest(STAGES[:1]), manifest(STAGES)
    for step in range(6):
        assert one.prefix_sha256(step) == longer.prefix_sha256(step)
    assert longer.prefix_sha256(5) != longer.prefix_sha256(6)
    assert manifest(STAGES, seed=18).prefix_sha256(5) != longer.prefix_sha256(5)
    other = manifest((Stage("x", 5, {"b": 50}), STAGES[1]))
    assert other.prefix_sha256(1) != longer.prefix_sha256(1)
    assert other.prefix_sha256(0) == longer.prefix_sha256(0)


def plan_of_version_2() -> Manifest:
    """Stages of up to seven streams and pairs, in two lanes, with a ramp and a fork."""
    names = ["a", "b", "c", "bitext/de-en", "bitext/en-zh", "bitext/fr-en", "d"]
    shards = tuple(Shard(50, StoredFile(f"shard.{k:05d}.mds", 1000 + k, {"xxh64": f"{k:016x}"})) for k in range(6))
    streams = tuple(Stream(name, f"streams/{name}-0", name[0] * 64, 300, 30_300, shards) for name in names)
    stages = (
        Stage("x", 9, {"a": 30, "b": 6, "c": 54, "d": 18}),
        Stage("y", 7, {"a": 20, "bitext/de-en": 4, "bitext/en-zh": 30, "bitext/fr-en": 12, "d": 18}, cut=5),
        Stage("y", 2, {"a": 12, "d": 12}),
        Stage("z", 10, {name: 2 * (k + 1) for k, name in enumerate(names)} | {"d": 120 - 42}),
    )
    parent = {"plan_id": "p", "step": 14}
    return manifest(stages, batch_size=12, lanes=2, streams=streams, parent=parent)


def test_plans_of_version_2_keep_their_id_and_their_samples(tmp_path: Path) -> None:
    """Golden: of the last program that wrote version 2."""
    plan, path = plan_of_version_2(), tmp_path / "manifest.json"
    path.write_bytes(plan.content)
    assert (plan.version, read_manifest(path)) == (2, plan)
    assert plan.plan_id == "ca87b0edb9d231b72a18a896da10e566cf50132f6df00371877cadaa6fa38cbb"
    assert plan.prefix_sha256(20) == "39fe09640106e8e35fe81449c176dd3b8e5550032172f8bb5947b5bc94a32e2c"
    ids = np.concatenate([plan.order.sample_ids(step) for step in range(26)]).astype("<i8")
    assert hashlib.sha256(ids.tobytes()).hexdigest() == (
        "e072996bf50f8bc9d4326688c341b9bc4e511af64a6bd5b962a3ddd45cd8c5fc"
    )


def test_plans_of_version_3_keep_their_id_and_their_samples(tmp_path: Path) -> None:
    """Golden, of the same mixes."""
    old, path = plan_of_version_2(), tmp_path / "manifest.json"
    plan = replace(old, stages=tuple(replace(stage, balanced=len(stage.samples) > 2) for stage in old.stages))
    path.write_bytes(plan.content)
    assert (plan.version, read_manifest(path)) == (3, plan)
    assert plan.plan_id == "b32245a1c03d877d7534f205ac56f96bab008eb1dccb28cb40b6d5dfe1ace869"
    ids = np.concatenate([plan.order.sample_ids(step) for step in range(26)]).astype("<i8")
    assert hashlib.sha256(ids.tobytes()).hexdigest() == (
        "4cfbc597bb1e1a3e23e5ae6cc90f5e4d9dbb445cb79bd60e7b892648e785f677"
    )


def test_the_version_is_that_of_the_stages(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(plan_of_version_2().content.replace(b'"version":2', b'"version":3'))
    with pytest.raises(InputError, match=r"has changed since it was written"):
        read_manifest(path)
