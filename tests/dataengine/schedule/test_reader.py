"""A plan's samples in the order of training, against a loop over the files themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataengine.build.build import build
from dataengine.errors import DamagedError, MissingError
from dataengine.mds.reader import map_shard, read_index
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.reader import PlanReader
from dataengine.storage.open import open_store
from tests.conftest import ConfigMaker


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
