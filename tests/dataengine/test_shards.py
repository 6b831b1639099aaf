from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter, StreamingDataset

from dataengine.shards import ShardWriter, encode_index, shard_config


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_shards_and_index_are_those_of_mdswriter(tmp_path: Path, dtype: str, count: int) -> None:
    width, per_shard = 33, 64
    samples = np.random.default_rng(0).integers(0, 60_000, (count, width)).astype(dtype)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    writer = ShardWriter(ours, per_shard)
    for start in range(0, count, 50):
        writer.add(samples[start : start + 50])
    config = shard_config(width, np.dtype(dtype), per_shard)
    (ours / "index.json").write_bytes(encode_index(writer.finish(), config))

    columns = {"tokens": f"ndarray:{dtype}:{width}"}
    with MDSWriter(out=str(theirs), columns=columns, hashes=["xxh64"], size_limit=config["size_limit"]) as reference:
        for sample in samples:
            reference.write({"tokens": sample})
    names = sorted(path.name for path in theirs.iterdir())
    assert names == sorted(path.name for path in ours.iterdir())
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    counts = [shard["samples"] for shard in json.loads((ours / "index.json").read_bytes())["shards"]]
    assert counts == [per_shard] * (count // per_shard) + [count % per_shard] * bool(count % per_shard)


def test_stock_streaming_dataset_reads_them(tmp_path: Path) -> None:
    samples = np.arange(150 * 9, dtype=np.uint16).reshape(150, 9)
    writer = ShardWriter(tmp_path, 64)
    writer.add(samples)
    config = shard_config(9, samples.dtype, 64)
    (tmp_path / "index.json").write_bytes(encode_index(writer.finish(), config))
    dataset = StreamingDataset(local=str(tmp_path), batch_size=1, shuffle=False, validate_hash="xxh64")
    assert [dataset[k]["tokens"].tolist() for k in range(150)] == samples.tolist()
