from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config import StageConfig
from dataengine.errors import InputError
from dataengine.manifest import Manifest, Stream, read_manifest, resolve_stages
from dataengine.schedule import Schedule, Stage
from dataengine.shards import Shard


def resolve(stages: list[dict[str, object]], available: dict[str, int], **sizes: int) -> tuple[Stage, ...]:
    sizes = {"batch_size": 10, "lanes": 1, "seq_len": 100, **sizes}
    return resolve_stages(
        [StageConfig.model_validate({"name": f"stage{k}", **stage}) for k, stage in enumerate(stages)],
        available,
        dict.fromkeys(available, sizes.pop("passes", 1)),
        **sizes,
    )


def test_steps_tokens_and_drain_worked_by_hand() -> None:
    stages = resolve(
        [
            {"steps": 3, "mix": {"a": 2, "b": 1}},
            {"tokens": "4.5K", "mix": {"a": 1}},  # 4,500 tokens = 4.5 batches: 4 steps
            {"drain": True, "mix": {"a": 1, "b": 1}},
        ],
        {"a": 100, "b": 33},
    )
    assert stages == (
        Stage("stage0", 3, {"a": 20, "b": 10}),
        Stage("stage1", 4, {"a": 40}),
        Stage("stage2", 4, {"a": 20, "b": 20}),  # b has 23 left
    )


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3000), min_size=1),
    st.data(),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_what_resolves_is_exact_and_drain_leaves_less_than_a_batch(
    available: dict[str, int], data: st.DataObject, lanes: int, width: int, passes: int
) -> None:
    mix = {name: data.draw(st.floats(0.05, 5)) for name in available}
    batch = lanes * width
    try:
        (stage,) = resolve([{"drain": True, "mix": mix}], available, batch_size=batch, lanes=lanes, passes=passes)
    except InputError:
        return
    Schedule(batch, lanes, (stage,))  # checks that the quotas fill the steps
    assert all(stage.samples[name] <= available[name] // lanes * lanes * passes for name in mix)
    with pytest.raises(InputError, match="is too small"):
        resolve([{"steps": stage.steps + 1, "mix": mix}], available, batch_size=batch, lanes=lanes, passes=passes)


def test_a_stream_that_is_too_small_is_named_with_its_numbers() -> None:
    with pytest.raises(InputError) as error:
        resolve([{"steps": 2, "mix": {"a": 1}}, {"steps": 5, "mix": {"a": 1}}], {"a": 32})
    assert str(error.value) == (
        "stream 'a' is too small: stage 'stage1' draws 50 samples (5,000 tokens), but it has 12 left (32 samples x 1 "
        "pass(es), 20 drawn by earlier stages). Add sources to streams.a, shorten the stage, lower its weight, or "
        "repeat the stream with streams.a.passes: 3."
    )
    assert resolve([{"steps": 2, "mix": {"a": 1}}, {"steps": 5, "mix": {"a": 1}}], {"a": 32}, passes=3)


def test_a_stage_without_a_batch_is_an_error() -> None:
    with pytest.raises(InputError, match=r"stage 'stage0' has no step: its tokens fill no batch of 10 samples x 100"):
        resolve([{"tokens": 999, "mix": {"a": 1}}], {"a": 32})
    with pytest.raises(InputError, match=r"stage 'stage0' has no step: its streams have no full batch left"):
        resolve([{"drain": True, "mix": {"a": 1}}], {"a": 9})


def manifest(stages: tuple[Stage, ...], **changes: object) -> Manifest:
    shards = tuple(Shard(f"shard.{k:05d}.mds", 50, 1000 + k, f"{k:016x}") for k in range(3))
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
    with pytest.raises(InputError, match=r"no manifest at .*Build the streams first: dataengine build CONFIG"):
        read_manifest(path)
    content = manifest(STAGES).content
    path.write_bytes(content[:-10])
    with pytest.raises(InputError, match=r"manifest\.json is damaged: .*Build again"):
        read_manifest(path)
    path.write_bytes(content.replace(b'"seed":17', b'"seed": 17'))
    with pytest.raises(InputError, match=r"is not as it was written"):
        read_manifest(path)
    path.write_bytes(content.replace(b'"version":1', b'"version":9'))
    with pytest.raises(InputError, match=r"has version 9, this program reads 1"):
        read_manifest(path)


def test_prefix_hash_changes_only_with_what_came_before() -> None:
    one, longer = manifest(STAGES[:1]), manifest(STAGES)
    for step in range(6):
        assert one.prefix_sha256(step) == longer.prefix_sha256(step)
    assert longer.prefix_sha256(5) != longer.prefix_sha256(6)
    assert manifest(STAGES, seed=18).prefix_sha256(5) != longer.prefix_sha256(5)
    other = manifest((Stage("x", 5, {"b": 50}), STAGES[1]))
    assert other.prefix_sha256(1) != longer.prefix_sha256(1)
    assert other.prefix_sha256(0) == longer.prefix_sha256(0)
