"""A plan's samples in the order of training, against a loop over the files themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dataengine.build.build import build
from dataengine.errors import DamagedError, MissingError
from dataengine.mds.reader import SampleReader, map_shard, read_index, view_shard
from dataengine.mds.types import mark, token_dtype
from dataengine.mds.writer import ShardFormat, encode_shard
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.reader import PlanReader
from dataengine.schedule.slots import Stage, apportion
from dataengine.storage.open import open_store
from tests.conftest import ConfigMaker
from tests.dataengine.mds.test_shard_map import streams_of


def all_rows(manifest: Manifest, folder: Path) -> list[tuple[int, list[int]]]:
    """The stream number and the tokens of every sample, in id order; of a store of uncompressed shards."""
    return [
        (number, row.tolist())
        for number, stream in enumerate(manifest.streams)
        for shard in stream.shards
        for row in map_shard(folder / stream.remote / shard.raw.basename, manifest.seq_len + 1, np.dtype(np.uint16))
    ]


@pytest.mark.parametrize("compression", [None, "zstd:1"])
def test_a_step_is_the_samples_of_its_slots(make_config: ConfigMaker, tmp_path: Path, compression: str | None) -> None:
    plain = make_config(lanes=2)
    manifest = build(plain).manifest
    rows = all_rows(manifest, Path(plain.store))
    stored = make_config(lanes=2, store=str(tmp_path / "again"), shard_compression=compression)
    reader = PlanReader.of_store(build(stored).manifest, open_store(stored.store))
    for step in range(manifest.schedule.steps):
        tokens, sample_ids, streams, loss_mask = reader.read(step)
        assert loss_mask is None
        assert sample_ids.tolist() == manifest.order.sample_ids(step).tolist()
        assert list(zip(streams.tolist(), tokens.tolist(), strict=True)) == [rows[k] for k in sample_ids.tolist()]
        parts = [reader.read(step, start, start + 2) for start in range(0, manifest.batch_size, 2)]
        assert np.concatenate([part.tokens for part in parts]).tolist() == tokens.tolist()


@st.composite
def plans(draw: st.DrawFn) -> Manifest:
    """Streams with and without masks, in up to three stages and lanes, read up to several times over."""
    counts = draw(st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=3))
    streams = [replace(stream, loss_mask=draw(st.booleans())) for stream in streams_of(counts)]
    lanes, width = draw(st.integers(1, 3)), draw(st.integers(1, 15))
    used = [stream.name for stream in streams if stream.samples >= lanes]
    stages = []
    for number in range(draw(st.integers(1, 3)) if used else 0):
        steps = draw(st.integers(1, 8))
        parts = apportion([draw(st.integers(1, 9)) for _ in used], steps * width)
        stages.append(Stage(f"s{number}", steps, {n: part * lanes for n, part in zip(used, parts, strict=True)}))
    vocabulary = draw(st.sampled_from([1000, 100_000]))
    block = draw(st.integers(1, 30))
    return Manifest("m", "", vocabulary, 2, WIDTH - 1, lanes * width, lanes, 17, block, tuple(streams), tuple(stages))


WIDTH = 9


@settings(max_examples=60)
@given(plans(), st.integers(1, 3), st.data())
def test_many_steps_are_the_samples_of_each_read_one_by_one(manifest: Manifest, kept: int, data: st.DataObject) -> None:
    """Tokens, masks, ids and streams, from any step, every n-th step, for any rank, with few shards open."""
    rng, dtype = np.random.default_rng(0), token_dtype(manifest.vocab_size)
    shards: dict[tuple[int, int], NDArray[Any]] = {}
    plain = []  # (tokens, mask) of each sample, in the order of ids
    for number, stream in enumerate(manifest.streams):
        for shard, about in enumerate(stream.shards):
            tokens = rng.integers(0, manifest.vocab_size, (about.samples, WIDTH)).astype(dtype)
            masks = rng.random((about.samples, WIDTH)) < 0.5 if stream.loss_mask else np.full(tokens.shape, True)
            plain += zip([number] * about.samples, tokens.tolist(), masks.tolist(), strict=True)
            samples = mark(tokens, masks) if stream.loss_mask else tokens
            content = encode_shard([samples], ShardFormat(20).config(WIDTH, samples.dtype))
            shards[number, shard] = view_shard(content, WIDTH, dtype, loss_mask=stream.loss_mask)
    reader = PlanReader(manifest, SampleReader(manifest.streams, lambda *place: shards[place], WIDTH, dtype, kept=kept))
    world = data.draw(st.sampled_from([w for w in range(1, 46) if manifest.batch_size % w == 0]))
    b, rank = manifest.batch_size // world, data.draw(st.integers(0, world - 1))
    first, every = data.draw(st.integers(0, manifest.schedule.steps)), data.draw(st.integers(1, 3))
    steps = range(first, manifest.schedule.steps, every)
    masked = any(stream.loss_mask for stream in manifest.streams)
    batches = list(reader.each(steps, rank * b, (rank + 1) * b))
    for step, batch in zip(steps, batches, strict=True):
        ids = manifest.order.sample_ids(step)[rank * b : (rank + 1) * b].tolist()
        assert batch.tokens.dtype == dtype
        assert batch.sample_ids.tolist() == ids
        masks = batch.loss_mask.tolist() if batch.loss_mask is not None else [[True] * WIDTH] * b
        assert list(zip(batch.streams.tolist(), batch.tokens.tolist(), masks, strict=True)) == [plain[k] for k in ids]
        assert (batch.loss_mask is not None) == masked


def test_an_index_is_the_manifests_or_refused(make_config: ConfigMaker) -> None:
    config = make_config()
    stream, store = build(config).manifest.streams[1], open_store(config.store)
    path = Path(config.store, stream.remote, "index.json")
    content = path.read_bytes()
    assert read_index(store, stream) == content
    path.write_bytes(content + b" ")
    with pytest.raises(DamagedError, match=rf"'{stream.name}': .* is not the one that the manifest was made with"):
        read_index(store, stream)
    path.unlink()
    with pytest.raises(MissingError, match=rf"stream '{stream.name}': no index.json in {path.parent}"):
        read_index(store, stream)
