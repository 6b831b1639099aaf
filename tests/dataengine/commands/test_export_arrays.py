"""Exports as arrays, read by the published layouts byte by byte, and by Megatron-LM and OLMo-core where installed."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dataengine.build.build import build
from dataengine.cli import main
from dataengine.commands.export import export
from dataengine.commands.export_arrays import array_form, encode_idx
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.types import Stream
from dataengine.mds.writer import ShardFormat, encode_index, write_shards
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from dataengine.storage.local import LocalStore
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from tests.conftest import ConfigMaker
from tests.crashing_store import MOMENTS, CrashingStore
from tests.dataengine.commands.test_export import expected, files
from tests.object_store import ObjectStore, object_store  # noqa: F401

FORMATS = ("numpy", "megatron")
SMALL = ShardFormat(20)  # so that 128 samples are 7 files


def read_numpy(folder: Path) -> list[list[int]]:
    """The samples by index.json and memmap alone."""
    index = json.loads((folder / "index.json").read_bytes())
    width, samples = index["seq_len"] + 1, []
    for file in index["files"]:
        content = (folder / file["basename"]).read_bytes()
        assert len(content) == file["bytes"] == file["samples"] * width * np.dtype(index["dtype"]).itemsize
        flat: NDArray[Any] = np.memmap(folder / file["basename"], np.dtype(index["dtype"]).newbyteorder("<"), "r")
        samples += flat.reshape(-1, width).tolist()
    assert len(samples) == index["samples"] == (index["last_step"] - index["first_step"]) * index["batch_size"]
    return samples


def read_megatron(folder: Path) -> list[list[int]]:
    """The samples by Megatron-LM's layout: IndexedDataset, version 1."""
    samples = []
    for path in sorted(folder.glob("*.idx")):
        idx, content = path.read_bytes(), path.with_suffix(".bin").read_bytes()
        assert idx[:9] == b"MMIDIDX\x00\x00"
        version, code, count, documents = struct.unpack_from("<QBQQ", idx, 9)
        assert (version, documents) == (1, count + 1)
        dtype = {8: "<u2", 4: "<i4"}[code]
        lengths = struct.unpack_from(f"<{count}i", idx, 34)
        pointers = struct.unpack_from(f"<{count}q", idx, 34 + 4 * count)
        ends = struct.unpack_from(f"<{documents}q", idx, 34 + 12 * count)
        assert ends == tuple(range(count + 1))
        assert len(idx) == 34 + 12 * count + 8 * documents
        samples += [np.frombuffer(content, dtype, n, at).tolist() for n, at in zip(lengths, pointers, strict=True)]
        assert sum(lengths) * np.dtype(dtype).itemsize == len(content)
    return samples


READERS = {"numpy": read_numpy, "megatron": read_megatron}


def export_to(config: Config, manifest: Manifest, target: Store, to_format: str, first: int = 0, last: int = 16) -> int:
    return export(manifest, open_store(config.store), SMALL, target, first, last, to_format)


@pytest.mark.parametrize("to_format", FORMATS)
@pytest.mark.parametrize(("first", "last"), [(0, 16), (5, 8)])
def test_the_samples_are_in_the_order_of_training(
    make_config: ConfigMaker, tmp_path: Path, to_format: str, first: int, last: int
) -> None:
    config = make_config(lanes=2)
    manifest, folder = build(config).manifest, tmp_path / "out"
    count = export_to(config, manifest, LocalStore(str(folder)), to_format, first, last)
    samples = READERS[to_format](folder)
    assert samples == expected(manifest, open_store(config.store), first, last)
    assert len(samples) == count == (last - first) * 8
    assert len({tuple(sample) for sample in samples}) > 1
    index = json.loads((folder / "index.json").read_bytes())
    assert (index["plan_id"], index["dtype"]) == (manifest.plan_id, "uint16")
    for file in index["files"]:
        assert list(file["hashes"]) == ["xxh64"]


def large_plan(folder: Path) -> tuple[Manifest, Store, NDArray[np.uint32]]:
    """A plan whose ids do not fit 16 bits: 12 samples of 5 ids, up to the largest of 2^18."""
    tokens = np.arange(60, dtype=np.uint32).reshape(12, 5) + np.uint32((1 << 18) - 60)
    store, form = LocalStore(str(folder)), ShardFormat(4)
    shards = write_shards(tokens, lambda name, content: store.write(f"streams/a/{name}", content), 0, form)
    index = encode_index(shards, form.config(5, tokens.dtype))
    store.write("streams/a/index.json", index)
    stream = Stream("a", "streams/a", hashlib.sha256(index).hexdigest(), 12, 60, tuple(shards))
    stages = (Stage("s", 6, {"a": 12}),)
    return Manifest("large", "t", 1 << 18, 2, 4, 2, 1, 17, 8, (stream,), stages), store, tokens


@pytest.mark.parametrize(("to_format", "dtype"), [("numpy", "uint32"), ("megatron", "int32")])
def test_more_than_65_536_ids_need_32_bits(tmp_path: Path, to_format: str, dtype: str) -> None:
    manifest, store, tokens = large_plan(tmp_path / "store")
    folder = tmp_path / "out"
    export(manifest, store, ShardFormat(5), LocalStore(str(folder)), 0, 6, to_format)
    ids = np.concatenate([manifest.order.sample_ids(step) for step in range(6)])
    assert sorted(ids.tolist()) == list(range(12))
    assert READERS[to_format](folder) == tokens[ids].tolist()
    assert json.loads((folder / "index.json").read_bytes())["dtype"] == dtype


def test_megatrons_index_is_that_of_a_worked_example() -> None:
    """Two sequences of three int32: 34 bytes of header, two lengths, two offsets, three document edges."""
    assert encode_idx(2, 3, "int32").hex(" ", 1) == " ".join(
        [
            "4d 4d 49 44 49 44 58 00 00",  # MMIDIDX
            "01 00 00 00 00 00 00 00 04",  # version 1, int32
            "02 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00",
            "03 00 00 00 03 00 00 00",
            "00 00 00 00 00 00 00 00 0c 00 00 00 00 00 00 00",
            "00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00",
        ]
    )


def test_files_have_a_bounded_size(tmp_path: Path) -> None:
    manifest, _, _ = large_plan(tmp_path)
    form = array_form(manifest, ("sha256",))
    assert form == ShardFormat((256 << 20) // 20, ("sha256",), None)
    huge = Manifest("m", "t", 1000, 2, 1 << 30, 1, 1, 17, 8, (), (Stage("s", 1, {"x": 1}),))
    assert array_form(huge, ()).samples_per_shard == 1


@pytest.mark.parametrize("to_format", FORMATS)
@pytest.mark.parametrize(
    ("name", "done"),
    [("export.summary", True), ("tokens.00002.idx", True), ("tokens.00003.bin", True), ("index.json", False)],
)
def test_an_export_that_was_killed_resumes_to_the_same_bytes(
    make_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_format: str, name: str, done: bool
) -> None:
    monkeypatch.setitem(MOMENTS, "killed", ("write", name, done))
    config = make_config()
    manifest, whole, target = build(config).manifest, LocalStore(str(tmp_path / "w")), LocalStore(str(tmp_path / "k"))
    export_to(config, manifest, whole, to_format)
    child = os.fork()
    if child == 0:
        export_to(config, manifest, CrashingStore(target.url, target, "killed", str(tmp_path / "died")), to_format)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == (0 if to_format == "numpy" and name.endswith(".idx") else 9)
    export_to(config, manifest, target, to_format)
    assert files(target) == files(whole)
    assert not list(tmp_path.rglob(".writing-*"))


def test_to_a_bucket(
    make_config: ConfigMaker,
    tmp_path: Path,
    object_store: ObjectStore,  # noqa: F811
) -> None:
    config = make_config(shard_compression="zstd:1")
    manifest, local = build(config).manifest, LocalStore(str(tmp_path / "local"))
    for target in (local, open_store(f"{object_store.url}/mixed")):
        export_to(config, manifest, target, "megatron")
        assert files(target) == files(local)


def test_the_summary_names_the_format_and_that_of_mds_is_as_before(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    manifest, store = build(config).manifest, LocalStore(str(tmp_path / "out"))
    before = {
        "plan_id": manifest.plan_id,
        "first_step": 0,
        "last_step": 4,
        "batch_size": 8,
        "samples_per_shard": 20,
        "compression": None,
        "hashes": ["xxh64"],
    }
    export_to(config, manifest, store, "mds", last=4)
    assert store.read("export.summary") == json.dumps(before, indent=2).encode()
    assert store.read("index.json").startswith(b'{"shards": [{"column_encodings"')
    with pytest.raises(InputError, match=r"out holds another export: format mds \(now numpy\)\. Give a folder that is"):
        export_to(config, manifest, store, "numpy", last=4)
    arrays = LocalStore(str(tmp_path / "arrays"))
    export_to(config, manifest, arrays, "numpy", last=4)
    assert json.loads(arrays.read("export.summary")) == {**before, "format": "numpy"}
    with pytest.raises(InputError, match=r"arrays holds another export: format numpy \(now mds\)\. Give a folder that"):
        export_to(config, manifest, arrays, "mds", last=4)


def test_the_command(make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(shard_compression="zstd:1")
    path, folder = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(dump_config(config))
    manifest = build(config).manifest
    with pytest.raises(SystemExit) as stop:
        main(["export", str(path), "--to", str(folder), "--to-format", "numpy", "--steps", "2:4"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"16 samples of steps 2 to 3 in {folder} (plan {manifest.plan_id[:12]})\n"
    assert sorted(file.name for file in folder.iterdir()) == ["export.summary", "index.json", "tokens.00000.bin"]
    assert read_numpy(folder) == expected(manifest, open_store(config.store), 2, 4)


@pytest.mark.slow
def test_megatrons_own_reader_sees_the_samples(make_config: ConfigMaker, tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="needs megatron-core")
    config = make_config(lanes=2)
    manifest = build(config).manifest
    export_to(config, manifest, LocalStore(str(tmp_path / "small")), "megatron")
    parts = [indexed.IndexedDataset(str(path.with_suffix(""))) for path in sorted((tmp_path / "small").glob("*.idx"))]
    samples = [part[k].tolist() for part in parts for k in range(len(part))]
    assert samples == expected(manifest, open_store(config.store), 0, 16)
    large, store, _ = large_plan(tmp_path / "store")
    export(large, store, ShardFormat(12), LocalStore(str(tmp_path / "large")), 0, 6, "megatron")
    dataset = indexed.IndexedDataset(str(tmp_path / "large" / "tokens.00000"))
    assert [row.tolist() for row in dataset[0:12]] == expected(large, store, 0, 6)


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_olmo_cores_own_reader_sees_the_samples(make_config: ConfigMaker, tmp_path: Path, large: bool) -> None:
    numpy_dataset = pytest.importorskip("olmo_core.data.numpy_dataset", reason="needs ai2-olmo-core")
    config = make_config(lanes=2)
    manifest, store = (
        large_plan(tmp_path / "store")[:2] if large else (build(config).manifest, open_store(config.store))
    )
    folder = tmp_path / "out"
    export(manifest, store, ShardFormat(5), LocalStore(str(folder)), 0, manifest.schedule.steps, "numpy")
    dataset = numpy_dataset.NumpyFSLDataset(
        *sorted(folder.glob("*.bin")),
        sequence_length=manifest.seq_len + 1,
        pad_token_id=0,
        eos_token_id=manifest.eos_id,
        vocab_size=manifest.vocab_size,
        dtype=np.uint32 if large else np.uint16,
    )
    samples = [dataset[k]["input_ids"].tolist() for k in range(len(dataset))]
    assert samples == expected(manifest, store, 0, manifest.schedule.steps)
