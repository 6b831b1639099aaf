from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from streaming import MDSWriter, StreamingDataset

from dataengine.json_files import decode_hashed, encode_hashed
from dataengine.mds.reader import SampleReader, view_shard
from dataengine.mds.types import Shard, Stream, mark, marked_dtype
from dataengine.mds.writer import ShardFormat, ShardWriter, encode_index
from dataengine.storage.local import LocalStore
from dataengine.storage.store import AddFile


def add_to(folder: Path) -> AddFile:
    folder.mkdir(exist_ok=True)

    def add(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)

    return add


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("count", [1, 64, 65, 200])
@pytest.mark.parametrize("hashes", [("xxh64",), ("sha256", "xxh3_128")])
def test_shards_and_index_are_those_of_mdswriter(tmp_path: Path, dtype: str, count: int, hashes: tuple[str]) -> None:
    width, form = 33, ShardFormat(64, hashes)
    samples = np.random.default_rng(0).integers(0, 60_000, (count, width)).astype(dtype)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    writer = ShardWriter(add_to(ours), form)
    for start in range(0, count, 50):
        writer.add(samples[start : start + 50])
    config = form.config(width, np.dtype(dtype))
    (ours / "index.json").write_bytes(encode_index(writer.finish(), config))

    columns = {"tokens": f"ndarray:{dtype}:{width}"}
    with MDSWriter(out=str(theirs), columns=columns, hashes=list(hashes), size_limit=config["size_limit"]) as reference:
        for sample in samples:
            reference.write({"tokens": sample})
    names = sorted(path.name for path in theirs.iterdir())
    assert names == sorted(path.name for path in ours.iterdir())
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    counts = [shard["samples"] for shard in json.loads((ours / "index.json").read_bytes())["shards"]]
    assert counts == [64] * (count // 64) + [count % 64] * bool(count % 64)


@pytest.mark.parametrize("compression", [None, "zstd:1", "zstd:9"])
def test_stock_streaming_dataset_reads_them(tmp_path: Path, compression: str | None) -> None:
    samples = np.arange(150 * 9, dtype=np.uint16).reshape(150, 9)
    form = ShardFormat(64, ("sha256",), compression)
    writer = ShardWriter(add_to(tmp_path / "remote"), form)
    writer.add(samples)
    shards = writer.finish()
    (tmp_path / "remote" / "index.json").write_bytes(encode_index(shards, form.config(9, samples.dtype)))
    dataset = StreamingDataset(
        local=str(tmp_path / "local"), remote=str(tmp_path / "remote"), batch_size=1, shuffle=False,
        validate_hash="sha256",
    )  # fmt: skip
    assert [dataset[k]["tokens"].tolist() for k in range(150)] == samples.tolist()
    first = (tmp_path / "remote" / shards[0].stored.basename).read_bytes()
    assert len(first) == shards[0].stored.bytes
    raw = zstandard.ZstdDecompressor().decompress(first) if compression else first
    assert len(raw) == shards[0].raw.bytes
    assert view_shard(raw, 9, samples.dtype).tolist() == samples[:64].tolist()


@pytest.mark.parametrize("compression", [None, "zstd:1"])
@pytest.mark.parametrize(("dtype", "width"), [("uint16", 33), ("uint32", 16)])
def test_marked_samples_have_a_second_column(tmp_path: Path, dtype: str, width: int, compression: str | None) -> None:
    random, form = np.random.default_rng(0), ShardFormat(64, ("sha256",), compression)
    tokens = random.integers(0, 60_000, (150, width)).astype(dtype)
    counts = random.random((150, width)) < 0.5
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    writer = ShardWriter(add_to(ours), form)
    writer.add(mark(tokens, counts))
    shards, config = writer.finish(), form.config(width, marked_dtype(tokens.dtype))
    (ours / "index.json").write_bytes(encode_index(shards, config))

    masks = np.packbits(counts, axis=1)
    columns = {"tokens": f"ndarray:{dtype}:{width}", "loss_mask": f"ndarray:uint8:{masks.shape[1]}"}
    with MDSWriter(
        out=str(theirs), columns=columns, hashes=["sha256"], size_limit=config["size_limit"], compression=compression
    ) as reference:
        for row, mask in zip(tokens, masks, strict=True):
            reference.write({"tokens": row, "loss_mask": mask})
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {
        path.name: path.read_bytes() for path in theirs.iterdir()
    }

    dataset = StreamingDataset(
        local=str(tmp_path / "local"), remote=str(ours), batch_size=1, shuffle=False, validate_hash="sha256"
    )
    assert [dataset[k]["tokens"].tolist() for k in range(150)] == tokens.tolist()
    assert [dataset[k]["loss_mask"].tolist() for k in range(150)] == masks.tolist()
    stream = Stream("s", "ours", "", 150, 150 * width, tuple(shards), loss_mask=True)
    reader = SampleReader.of_store(LocalStore(tmp_path), [stream], width, tokens.dtype)
    assert reader.read([149, 3, 64]).tolist() == tokens[[149, 3, 64]].tolist()
    mask = reader.read_mask([149, 3, 64])
    assert mask is not None
    assert mask.dtype == np.bool_
    assert mask.tolist() == counts[[149, 3, 64]].tolist()


def test_a_shard_reads_back_from_json() -> None:
    kept: list[bytes] = []
    for compression in (None, "zstd:1"):
        writer = ShardWriter(lambda name, content: kept.append(content), ShardFormat(4, compression=compression))
        writer.add(np.zeros((4, 5), np.uint16))
        (shard,) = writer.finish()
        assert decode_hashed(Shard, encode_hashed(shard)) == shard
