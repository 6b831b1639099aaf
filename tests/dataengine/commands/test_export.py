from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import StreamingDataset

from dataengine.build.build import BuildResult, build
from dataengine.cli import main
from dataengine.commands.export import export
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.errors import InputError
from dataengine.mds.reader import SampleReader
from dataengine.mds.types import token_dtype
from dataengine.mds.writer import ShardFormat
from dataengine.schedule.manifest import Manifest
from dataengine.storage.local import LocalStore
from dataengine.storage.open import open_store
from dataengine.storage.store import Store
from tests.conftest import ConfigMaker
from tests.crashing_store import MOMENTS, CrashingStore
from tests.object_store import ObjectStore, object_store  # noqa: F401

PLAIN = ShardFormat(20)


def expected(manifest: Manifest, store: Store, first: int, last: int) -> list[list[int]]:
    """The samples of the steps, each read by itself from its stream."""
    width, dtype = manifest.seq_len + 1, token_dtype(manifest.vocab_size)
    readers = [SampleReader.of_store(store, [stream], width, dtype) for stream in manifest.streams]
    samples = []
    for step in range(first, last):
        for sample in manifest.order.sample_ids(step).tolist():
            number = int(manifest.order.stream_numbers(np.array([sample]))[0])
            samples += readers[number].read([sample - int(manifest.order.first_ids[number])]).tolist()
    return samples


def read_stock(folder: Path, **options: Any) -> list[list[int]]:
    """The samples as a trainer that only knows MDS reads them."""
    dataset = StreamingDataset(local=str(folder), batch_size=1, shuffle=False, **options)
    return [dataset[k]["tokens"].tolist() for k in range(len(dataset))]


def files(store: Store) -> dict[str, str]:
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.sizes("")}


def export_to(config: Config, result: BuildResult, folder: Store, first: int, last: int, form: ShardFormat) -> int:
    return export(result.manifest, open_store(config.store), form, folder, first, last)


@pytest.mark.parametrize(("first", "last"), [(0, 16), (5, 8), (15, 16)])
def test_stock_streaming_reads_the_samples_in_the_order_of_training(
    make_config: ConfigMaker, tmp_path: Path, first: int, last: int
) -> None:
    config = make_config(lanes=2)
    result = build(config)
    assert export_to(config, result, LocalStore(str(tmp_path / "mixed")), first, last, PLAIN) == (last - first) * 8
    samples = read_stock(tmp_path / "mixed", validate_hash="xxh64")
    assert samples == expected(result.manifest, open_store(config.store), first, last)
    assert len({tuple(sample) for sample in samples}) > 1


@pytest.mark.parametrize("store_form", [{}, {"shard_compression": "zstd:1"}])
@pytest.mark.parametrize("form", [PLAIN, ShardFormat(20, ("sha256", "xxh64"), "zstd:3")])
def test_shards_may_be_compressed_in_the_store_and_in_the_export(
    make_config: ConfigMaker, tmp_path: Path, store_form: dict[str, str], form: ShardFormat
) -> None:
    config = make_config(**store_form)
    result = build(config)
    export_to(config, result, LocalStore(str(tmp_path / "mixed")), 0, 16, form)
    assert read_stock(tmp_path / "mixed", keep_zip=False) == expected(result.manifest, open_store(config.store), 0, 16)


def test_to_and_from_a_bucket(
    make_config: ConfigMaker,
    tmp_path: Path,
    object_store: ObjectStore,  # noqa: F811
) -> None:
    local, remote = make_config(), make_config(store=f"{object_store.url}/store")
    export_to(local, build(local), LocalStore(str(tmp_path / "mixed")), 0, 16, PLAIN)
    mixed = open_store(f"{object_store.url}/mixed")
    export_to(remote, build(remote), mixed, 0, 16, PLAIN)
    assert files(mixed) == files(LocalStore(str(tmp_path / "mixed")))


# What of an export is written before it dies: moments are named after builds.
EXPORT_MOMENTS = {
    "before an export's shard": ("write", "shard.00003.mds", False),
    "after an export's shard": ("write", "shard.00003.mds", True),
    "before export.summary": ("write", "export.summary", False),
    "after export.summary": ("write", "export.summary", True),
    "before index.json": MOMENTS["before index.json"],
    "after index.json": MOMENTS["after index.json"],
}


@pytest.mark.parametrize("moment", EXPORT_MOMENTS)
@pytest.mark.parametrize("where", ["local", "bucket"])
def test_an_export_that_was_killed_resumes_to_the_same_bytes(
    make_config: ConfigMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    object_store: ObjectStore,  # noqa: F811
    moment: str,
    where: str,
) -> None:
    monkeypatch.setitem(MOMENTS, moment, EXPORT_MOMENTS[moment])
    config = make_config()
    result = build(config)
    whole = LocalStore(str(tmp_path / "whole"))
    export_to(config, result, whole, 2, 16, PLAIN)
    target = open_store(str(tmp_path / "killed") if where == "local" else f"{object_store.url}/killed")
    child = os.fork()
    if child == 0:
        crashing = CrashingStore(target.url, target, moment, str(tmp_path / "died"))
        export_to(config, result, crashing, 2, 16, PLAIN)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9
    there = target.sizes("")
    assert ("index.json" in there) == (moment == "after index.json")
    export_to(config, result, target, 2, 16, PLAIN)
    assert files(target) == files(whole)
    assert not list(tmp_path.rglob(".writing-*"))


def test_shards_that_are_there_are_not_written_again(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    result, folder = build(config), tmp_path / "mixed"
    export_to(config, result, LocalStore(str(folder)), 0, 16, PLAIN)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.mds")}
    (folder / "index.json").unlink()
    export_to(config, result, LocalStore(str(folder)), 0, 16, PLAIN)
    assert (folder / "index.json").exists()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.mds")} == times


def test_another_export_in_the_folder_is_refused(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    result, folder = build(config), LocalStore(str(tmp_path / "mixed"))
    export_to(config, result, folder, 0, 4, PLAIN)
    before = files(folder)
    with pytest.raises(InputError) as error:
        export_to(config, result, folder, 0, 5, PLAIN)
    assert str(error.value) == (
        f"{folder.url} holds another export: last_step 4 (now 5). Give a folder that is empty or new."
    )
    other = make_config(seed=18)
    with pytest.raises(InputError, match=r"holds another export: plan_id [0-9a-f]{64} \(now [0-9a-f]{64}\)\. Give"):
        export_to(other, build(other), folder, 0, 4, PLAIN)
    assert files(folder) == before


def test_a_folder_with_other_files_is_left_alone(make_config: ConfigMaker) -> None:
    """Such as that of a stream, whose index.json an export would replace."""
    config = make_config()
    result = build(config)
    stream = LocalStore(f"{config.store}/{result.manifest.streams[0].remote}")
    before = files(stream)
    with pytest.raises(
        InputError, match=r"mono-\w+ holds other files \(documents\.00000\.npy \.\.\.\)\. Give a folder"
    ):
        export_to(config, result, stream, 0, 4, PLAIN)
    assert files(stream) == before


@pytest.mark.parametrize(("first", "last"), [(0, 17), (3, 3), (4, 3)])
def test_steps_must_be_within_the_schedule(make_config: ConfigMaker, tmp_path: Path, first: int, last: int) -> None:
    config = make_config()
    with pytest.raises(InputError) as error:
        export_to(config, build(config), LocalStore(str(tmp_path / "mixed")), first, last, PLAIN)
    assert str(error.value) == f"--steps {first}:{last} is not within the schedule, whose 16 steps are 0:16"
    assert not (tmp_path / "mixed").exists()


def test_the_command(make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config()
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))

    def run(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["export", str(path), "--to", str(tmp_path / "mixed"), *more])
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    code, _, error = run()
    assert (code, error) == (2, f"error: 'small' is not built in {config.store}. "
                                f"Build it first: dataengine build {path}\n")  # fmt: skip
    plan_id = build(config).manifest.plan_id
    code, printed, _ = run("--steps", "2:4")
    assert (code, printed) == (0, f"16 samples of steps 2 to 3 in {tmp_path}/mixed (plan {plan_id[:12]})\n")
    # The plan that was built has batches of 8; to export it for one of 4 would be silently wrong.
    code, _, error = run("--steps", "2:4", "batch_size=4")
    assert (code, error) == (2, "error: 'small' was built with other settings (batch_size). "
                                f"Build it with these settings: dataengine build {path} batch_size=4, "
                                "or give the settings of the build: batch_size=8\n")  # fmt: skip
    assert run("--steps", "2:4", "train.learning_rate=0.5")[0] == 0  # decides nothing of the plan
    assert run("--steps", "4")[0] == 2


def test_a_damaged_shard_is_not_exported(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    result = build(config)
    for shard in Path(config.store, result.manifest.streams[0].remote).glob("*.mds"):
        content = bytearray(shard.read_bytes())
        content[-5] ^= 1
        shard.write_bytes(content)
    form = ShardFormat(config.samples_per_shard)
    with pytest.raises(InputError, match=r"shard\.\d+\.mds is damaged: its xxh64 is "):
        export(result.manifest, open_store(config.store), form, open_store(str(tmp_path / "out")), 0, 16)
