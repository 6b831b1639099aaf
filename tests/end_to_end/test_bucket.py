"""Real training from and to a bucket, on a real server: what a run gives does not depend on what fails around it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from dataengine.build.build import build
from dataengine.config.load import load_config
from dataengine.schedule.manifest import Manifest
from dataengine.storage.atomic import write_file
from dataengine.storage.open import open_store
from tests.conftest import ROOT, small_experiment
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from tests.object_store import ObjectStore, faulty_proxy, new_bucket
from trainer.audit import audit
from trainer.checkpoints.find import all_checkpoints
from trainer.checkpoints.marker import MARKER
from trainer.huggingface.export import export
from trainer.run.folder import Run, open_run

pytestmark = pytest.mark.slow

DOWN_S = 25  # many attempts, with longer and longer pauses


@dataclass(frozen=True)
class Bucket:
    """A built experiment in a bucket, and the log of an undisturbed run there on 2 ranks."""

    store: ObjectStore
    config: Path
    folder: Path
    manifest: Manifest
    straight: list[dict[str, str]]

    def run(self, name: str) -> Run:
        """A run in the bucket; its working copy is in a cache of its own."""
        return open_run(f"{self.store.url}/{name}", str(self.folder / f"{name}.cache"))

    def changes(self, run: Run) -> list[str]:
        """Overrides that make the experiment this run."""
        return [f"out={run.url}", f"cache={run.folder.parent.parent}"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, corpora: Path, tokenizer_path: Path) -> Iterator[Bucket]:
    folder = tmp_path_factory.mktemp("bucket")
    with pytest.MonkeyPatch.context() as environment:
        store = new_bucket(environment)
        values = small_experiment(corpora, tokenizer_path, folder)
        values |= {"store": f"{store.url}/store", "cache": str(folder / "cache"), "shard_compression": "zstd:1"}
        path = folder / "small.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        manifest = build(load_config(path), workers=1).manifest
        made = Bucket(store, path, folder, manifest, [])
        made.straight.extend(train(made, "straight"))
        yield made


def train(bucket: Bucket, name: str, *overrides: str, number: int = 2, probe: str = "") -> list[dict[str, str]]:
    """Train a run to its end, or to `train.max_steps`; return its log."""
    run = bucket.run(name)
    return ranks.train(bucket.config, run.folder, *bucket.changes(run), *overrides, ranks=number, probe=probe)


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket: Bucket, experiment: Experiment) -> None:
    assert exact(bucket.straight) == exact(experiment.straight)
    run = bucket.run("straight")
    assert run.store is not None
    assert run.store.read("log.csv") == (run.folder / "log.csv").read_bytes()
    assert [found.step for found in all_checkpoints(run)] == [4, 6, 10, 12, 16]
    assert all(found.key for found in all_checkpoints(run))
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-00000016"]  # the others went


def test_ten_kills_at_random_steps_change_nothing(bucket: Bucket) -> None:
    chance = random.Random(5)
    run = bucket.run("killed")
    resumed = 0
    for kill in range(10):
        if kill in (3, 6):
            shutil.rmtree(run.folder.parent.parent)  # another machine resumes
        processes = ranks.start(bucket.config, run.folder, *bucket.changes(run), "train.checkpoint_interval=2")
        begun = ranks.wait_for(r"steps (\d+) to 16 of plan", run.folder)
        rows = min(15, int(begun[1]) + chance.randint(0, 3))
        ranks.kill_at(processes, run.folder, rows, chance.random() / 5)
        resumed += "resuming from" in ranks.printed(run.folder)
        if kill == 0:  # from here on the bucket has a checkpoint, however slow the machine
            train(bucket, "killed", "train.checkpoint_interval=2", "train.max_steps=2")
    log = train(bucket, "killed", "train.checkpoint_interval=2")
    assert resumed >= 7
    assert exact(log) == exact(bucket.straight)
    assert run.store is not None
    assert run.store.read("log.csv") == (run.folder / "log.csv").read_bytes()
    assert all_checkpoints(run)[-1].step == 16
    assert all_checkpoints(run)[-1].key


def test_faults_of_the_server_cost_time_only(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(8)
    faults: list[int | str] = [500, 503, "cut", "reset"]

    def fault(number: int, method: str, headers: Mapping[str, str]) -> int | str | None:
        return chance.choice(faults) if chance.random() < 0.2 else None

    with faulty_proxy(bucket.store.endpoint, fault) as (endpoint, methods):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        log = train(bucket, "faulty")
        found = all_checkpoints(bucket.run("faulty"))
    assert exact(log) == exact(bucket.straight)
    assert {"GET", "PUT"} <= set(methods)
    assert [one.step for one in found if one.key] == [4, 6, 10, 12, 16]


@pytest.mark.slow
def test_a_server_that_is_down_for_long(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes down with the first upload; training continues meanwhile, and the end waits for it."""
    begun: list[float] = []

    def fault(number: int, method: str, headers: Mapping[str, str]) -> int | str | None:
        if method == "PUT" and int(headers.get("Content-Length", 0)) > 10_000 and not begun:
            begun.append(time.monotonic())
        return "cut" if begun and time.monotonic() < begun[0] + DOWN_S else None

    with faulty_proxy(bucket.store.endpoint, fault) as (endpoint, _):
        monkeypatch.setenv("S3_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        log = train(bucket, "down")
        found = all_checkpoints(bucket.run("down"))
    assert time.monotonic() > begun[0] + DOWN_S
    assert exact(log) == exact(bucket.straight)
    assert [one.step for one in found if one.key] == [4, 6, 10, 12, 16]
    assert "training continues" in ranks.printed(bucket.run("down").folder)


@pytest.mark.parametrize("fault", ["no marker", "file cut short", "file missing", "content changed"])
def test_a_damaged_checkpoint_is_never_taken(bucket: Bucket, fault: str) -> None:
    name = fault.replace(" ", "_")
    client, place = bucket.store.client, {"Bucket": bucket.store.bucket}
    for key in bucket.store.keys():  # noqa: SIM118 (no dict)
        if key.startswith("straight/") and "step-00000016" not in key:
            client.copy_object(CopySource={**place, "Key": key}, **place, Key=key.replace("straight", name, 1))
    newest = f"{name}/checkpoints/step-00000012"
    if fault == "no marker":
        client.delete_object(**place, Key=f"{newest}/{MARKER}")
    elif fault == "file missing":
        client.delete_object(**place, Key=f"{newest}/__1_0.distcp")
    else:
        key = f"{newest}/__0_0.distcp"
        content = bytearray(client.get_object(**place, Key=key)["Body"].read())
        content[len(content) // 2] ^= 1
        client.put_object(**place, Key=key, Body=bytes(content[:-1] if fault == "file cut short" else content))
    log = train(bucket, name)
    printed = ranks.printed(bucket.run(name).folder)
    assert "passing over " in printed
    assert "steps 10 to 16" in printed
    assert exact(log) == exact(bucket.straight)


def test_sample_ids_stay_along_a_run_on_2_1_4_and_2_ranks(bucket: Bucket) -> None:
    for number, last in ((2, 4), (1, 8), (4, 12), (2, 16)):
        log = train(bucket, "elastic", f"train.max_steps={last}", number=number)
    assert [row["digest"] for row in log] == [row["digest"] for row in bucket.straight]
    for column in ("loss", "grad_norm"):  # sums over ranks round differently
        values = np.array([[float(row[column]) for row in rows] for rows in (log, bucket.straight)])
        assert np.allclose(values[0], values[1], rtol=1e-4), column


def test_a_second_stage_begins_with_a_checkpoint_of_the_bucket(bucket: Bucket) -> None:
    """And a kill inside of it resumes there, also elsewhere."""
    run = bucket.run("second")
    changes = [f"init={{checkpoint: {bucket.store.url}/straight/checkpoints/step-00000012, mode: restart}}"]
    whole = train(bucket, "second_whole", *changes)
    processes = ranks.start(bucket.config, run.folder, *bucket.changes(run), *changes)
    ranks.kill_at(processes, run.folder, 11)
    shutil.rmtree(run.folder.parent.parent)
    uploaded = bucket.store.keys()
    has_checkpoint = any(re.match("second/checkpoints/.*COMPLETE.json", key) for key in uploaded)
    log = train(bucket, "second", *changes)
    assert ("resuming from" in ranks.printed(run.folder)) == has_checkpoint  # the kill may come before the first upload
    assert exact(log) == exact(whole)
    assert [row["digest"] for row in log] == [row["digest"] for row in bucket.straight]  # the same plan, from its start
    assert float(log[0]["loss"]) < float(bucket.straight[0]["loss"]) - 0.3  # other weights
    found = all_checkpoints(run)[-1]
    assert found.init is not None
    assert found.init["checkpoint"] == f"{bucket.store.url}/straight/checkpoints/step-00000012"
    assert found.init["digest"] == bucket.straight[11]["digest"]


def test_a_run_continues_from_the_bucket(bucket: Bucket) -> None:
    """With the plan, the log and the checkpoint that are there."""
    straight = f"{bucket.store.url}/straight"
    parent = f"parent={{manifest: {straight}/manifest.json, step: 10}}"
    stages = "stages=[{name: other, steps: 4, mix: {mono: 1, both: 3}}]"
    init = f"init={{checkpoint: {straight}/checkpoints/step-00000010, mode: continue}}"
    changes = ["name=continued", parent, stages, init]
    child = build(load_config(bucket.config, changes), workers=1).manifest
    log = train(bucket, "continued", *changes)
    assert exact(log[:10]) == exact(bucket.straight[:10])
    assert [row["stage"] for row in log[10:]] == ["other"] * 4
    drawn = np.concatenate([child.order.sample_ids(step) for step in range(14)])
    assert len(np.unique(drawn)) == len(drawn)
    audit(bucket.run("continued").folder)


def test_a_run_that_is_asked_to_stop_uploads_before_it_ends(bucket: Bucket) -> None:
    run = bucket.run("asked")
    processes = ranks.start(bucket.config, run.folder, *bucket.changes(run), "train.checkpoint_interval=1000")
    ranks.wait_for(r"step 7/16", run.folder)
    os.kill(processes[1].pid or 0, signal.SIGTERM)
    assert ranks.finish(processes) == [0, 0], ranks.printed(run.folder)
    shutil.rmtree(run.folder.parent.parent)  # the machine is gone
    (found,) = [one.step for one in all_checkpoints(run) if one.step not in (6,)]
    assert 7 <= found <= 9
    log = train(bucket, "asked")
    assert f"steps {found} to 16" in ranks.printed(run.folder)
    assert exact(log) == exact(bucket.straight)


def test_a_checkpoint_of_the_bucket_is_exported(bucket: Bucket) -> None:
    run = bucket.run("straight")
    config = load_config(bucket.config, bucket.changes(run))
    here = export(config, 16)
    elsewhere = load_config(bucket.config, [f"out={run.url}", f"cache={bucket.folder / 'elsewhere'}"])
    there = export(elsewhere, 16)
    ids = torch.arange(1, 33)[None]
    logits = [LlamaForCausalLM.from_pretrained(path)(ids).logits for path in (here, there)]
    assert here != there
    assert torch.equal(logits[0], logits[1])


def test_a_run_in_a_bucket_is_audited(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    run, certificate = bucket.run("straight"), bucket.folder / "certificate.json"
    audit(run.folder, certificate=certificate, origin=run)
    assert f"digest {bucket.straight[-1]['digest']}" in capsys.readouterr().out
    claim = json.loads(certificate.read_bytes())
    assert [point["step"] for point in claim["checkpoints"]] == [4, 6, 10, 12, 16]  # most are only in the bucket
    for key in claim["shards"]:
        write_file(bucket.folder / "copy" / key, open_store(f"{bucket.store.url}/store").read(key))
    check = [sys.executable, ROOT / "examples" / "verify_certificate.py", certificate]
    subprocess.run([*check, run.folder / "manifest.json", bucket.folder / "copy"], check=True)
