"""Certificates of runs, and the program that verifies them without the engine."""

from __future__ import annotations

import ast
import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.errors import InputError
from dataengine.mds.types import Shard, StoredFile, Stream
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from tests.conftest import ROOT, ConfigMaker
from tests.trainer.fake_checkpoints import describe, write_files
from tests.trainer.test_audit import lose, write_run
from trainer.audit import audit
from trainer.checkpoints.marker import mark_complete
from trainer.run.log_csv import read_log

PROGRAM = ROOT / "examples" / "verify_certificate.py"
VERIFIER = runpy.run_path(str(PROGRAM), run_name="verifier")


@dataclass(frozen=True)
class Proof:
    """What is handed to a reviewer."""

    run: Path
    certificate: Path
    store: Path

    @property
    def claim(self) -> dict[str, Any]:
        return dict(json.loads(self.certificate.read_bytes()))

    def verify(self, *more: object) -> str | int:
        """The message of the failure, or 0."""
        try:
            VERIFIER["verify"](self.certificate, self.run / "manifest.json", self.store, *more)
        except SystemExit as stop:
            return str(stop.code)
        return 0

    def write(self, claim: dict[str, Any]) -> None:
        """Write an altered certificate, with a hash that fits."""
        claim = {key: value for key, value in claim.items() if key != "sha256"}
        content = json.dumps(claim, sort_keys=True, separators=(",", ":")).encode()
        self.certificate.write_text(json.dumps({**claim, "sha256": hashlib.sha256(content).hexdigest()}))


def save(run: Path, step: int, digest: str = "") -> None:
    """A complete checkpoint with the digest of the log, or another one."""
    folder = write_files(run, step, size=100)
    digest = digest or read_log(run / "log.csv")[step - 1]["digest"]
    mark_complete(folder, replace(describe(folder, step), digest=digest, init={"model": "m"}, torch="2.7.0"))


@pytest.fixture
def prove(make_config: ConfigMaker, tmp_path: Path) -> Callable[..., Proof]:
    def make(skipped: tuple[int, ...] = (), **changes: Any) -> Proof:
        config = make_config(**changes)
        run = tmp_path / f"run-{config.name}"
        write_run(config, run, skipped)
        for step in (4, 12):
            save(run, step)
        audit(run, certificate=tmp_path / "certificate.json")
        return Proof(run, tmp_path / "certificate.json", Path(config.store))

    return make


def test_a_certificate_lists_the_sources_of_each_pair_of_an_entry(
    prove: Callable[..., Proof], corpora: Path, tmp_path: Path
) -> None:
    (tmp_path / "en-zh.jsonl").write_bytes((corpora / "pairs.0.jsonl").read_bytes())
    entry = {"pairs": f"{tmp_path}/{{src}}-{{tgt}}.jsonl", "directions": "all", "loss_on": "target"}
    proof = prove(streams={"bitext": entry}, stages=[{"name": "all", "steps": 16, "mix": {"bitext": 1}}])
    (stream,) = proof.claim["streams"]
    assert stream["name"] == "bitext/en-zh"
    assert [part["paths"] for part in stream["sources"]] == [[f"{tmp_path}/en-zh.jsonl"]]
    assert proof.verify() == 0


def test_the_verifier_needs_numpy_and_the_standard_library_alone() -> None:
    text = PROGRAM.read_text()
    names = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {str(name).partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "numpy"}
    assert len(text.splitlines()) < 175


def test_a_certificate_is_verified(
    prove: Callable[..., Proof], tokenizer_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = prove()
    written = capsys.readouterr().out
    claim, log = proof.claim, read_log(proof.run / "log.csv")
    assert f"certificate {proof.certificate}: 16 steps, 2 checkpoints, {len(claim['shards'])} shards\n" in written
    assert f"its SHA-256 is {hashlib.sha256(proof.certificate.read_bytes()).hexdigest()}\n" in written
    assert claim["checkpoints"] == [{"step": step, "digest": log[step - 1]["digest"]} for step in (4, 12)]
    assert (claim["steps"], claim["digest"], claim["skipped"]) == (16, log[-1]["digest"], {})
    assert claim["tokenizer_sha256"] == hashlib.sha256(tokenizer_path.read_bytes()).hexdigest()
    assert (claim["init"], claim["software"]["torch"]) == ({"model": "m"}, "2.7.0")
    assert [stream["drawn"] for stream in claim["streams"]] == [72, 8, 48]  # mono, both, en-zh
    assert {Path(path).name for part in claim["streams"][0]["sources"] for path in part["paths"]} == {
        "mono.0.jsonl",
        "mono.1.jsonl",
    }
    assert all(len(part["digest"]) == 32 for part in claim["streams"][0]["sources"])
    command = [sys.executable, PROGRAM, proof.certificate, proof.run / "manifest.json", proof.store, tokenizer_path]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith(f"small: 16 steps of plan {claim['plan_id'][:12]}, 0 of them skipped\n")
    assert "NOT PROVEN: that a training took place" in printed.stdout


@pytest.mark.parametrize(
    "changes",
    [
        {"lanes": 4},
        {"shard_compression": "zstd:1"},
        {"shard_hashes": ["xxh3_128", "sha256"], "samples_per_shard": 7},
        {"skipped": (3, 15)},
        {"shuffle_block": 3, "lanes": 2, "stages": [{"name": "s", "steps": 400, "mix": {"mono": 2, "en-zh": 1}}]},
    ],
    ids=["lanes", "compressed", "sha256 in the manifest", "skipped", "several passes"],
)
def test_every_kind_of_run_is_verified(
    prove: Callable[..., Proof], corpora: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if "stages" in changes:
        pairs = {"pairs": [str(corpora / "pairs.*.jsonl")], "directions": ["en-zh"], "epochs": 9}
        mono = {"documents": [str(corpora / "mono.*.jsonl")], "epochs": 9}
        changes = {**changes, "streams": {"mono": mono, "en-zh": pairs}}
    proof = prove(**changes)
    assert proof.verify() == 0
    assert f"{len(changes.get('skipped', ()))} of them skipped" in capsys.readouterr().out
    drawn = {stream["name"]: stream["drawn"] for stream in proof.claim["streams"]}
    sizes = {s["name"]: s["samples"] for s in json.loads((proof.run / "manifest.json").read_bytes())["streams"]}
    assert ("stages" in changes) == any(drawn[name] > 1.5 * sizes[name] for name in drawn)


def test_a_fork_is_verified_from_step_0_on(prove: Callable[..., Proof]) -> None:
    parent = prove(lanes=2)
    manifest = parent.run / "manifest.json"
    child = prove(
        name="child",
        lanes=2,
        parent={"manifest": str(manifest), "step": 9},  # within the parent's second stage
        stages=[{"name": "tail", "steps": 4, "mix": {"both": 1}}],
    )
    assert child.claim["parent"] == {"plan_id": hashlib.sha256(manifest.read_bytes()).hexdigest(), "step": 9}
    assert child.claim["steps"] == 13
    assert child.verify() == 0
    child.write({**child.claim, "parent": None})
    assert child.verify() == "FAILED: one of tokenizer_sha256, seq_len, batch_size, parent is not the plan's"


def test_no_key_of_a_certificate_can_be_changed(prove: Callable[..., Proof]) -> None:
    """Its own hash covers all keys, also those that do not follow from the plan."""
    proof = prove()
    for key, value in proof.claim.items():
        claim = proof.claim
        claim[key] = [value]
        original = proof.certificate.read_bytes()
        proof.certificate.write_text(json.dumps(claim))
        assert proof.verify() == "FAILED: the certificate has changed since it was written"
        proof.certificate.write_bytes(original)
    assert proof.verify() == 0


def flipped(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


def test_what_follows_from_the_plan_fails_even_if_the_hash_of_the_certificate_fits(prove: Callable[..., Proof]) -> None:
    proof = prove()
    claim = proof.claim
    first, second = claim["checkpoints"]
    stream, shard = claim["streams"][0], next(iter(claim["shards"]))
    others = {key: value for key, value in claim["shards"].items() if key != shard}
    not_the_plans = "FAILED: one of tokenizer_sha256, seq_len, batch_size, parent is not the plan's"
    not_its_plan = f"FAILED: {proof.run}/manifest.json is not the plan of the certificate"
    of_streams = "FAILED: the plan reads other streams or shards"
    alterations: list[tuple[dict[str, Any], str]] = [
        ({"plan_id": flipped(claim["plan_id"])}, not_its_plan),
        ({"tokenizer_sha256": flipped(claim["tokenizer_sha256"])}, not_the_plans),
        ({"seq_len": 33}, not_the_plans),
        ({"batch_size": 4}, not_the_plans),
        ({"digest": flipped(claim["digest"])}, "FAILED: the digest after 16 steps is another"),
        ({"steps": 15}, "FAILED: the digest after 15 steps is another"),
        ({"steps": 17}, "FAILED: its steps are not those of the plan"),
        ({"checkpoints": [{**first, "step": 5}, second]}, "FAILED: the digest after 5 steps is another"),
        ({"checkpoints": [{**first, "step": 17}, second]}, "FAILED: the digest after 17 steps is another"),
        (
            {"checkpoints": [first, {**second, "digest": flipped(second["digest"])}]},
            "FAILED: the digest after 12 steps is another",
        ),
        ({"skipped": {"15": "loss"}}, "FAILED: the digest after 16 steps is another"),
        ({"skipped": {"16": "loss"}}, "FAILED: its steps are not those of the plan"),
        ({"streams": claim["streams"][1:]}, of_streams),
        ({"streams": [{**stream, "drawn": stream["drawn"] + 1}, *claim["streams"][1:]]}, of_streams),
        ({"streams": [{**stream, "index_sha256": "0"}, *claim["streams"][1:]]}, of_streams),
        ({"shards": others}, of_streams),
        ({"shards": {**others, shard: "0" * 64}}, f"FAILED: {shard} is not the shard that was hashed"),
        ({"version": 2}, "FAILED: this program reads version 1 of certificates, 2 and 3 of manifests"),
    ]  # fmt: skip
    for change, words in alterations:
        proof.write({**claim, **change})
        assert proof.verify() == words, change
    proof.write(claim)
    assert proof.verify() == 0


def test_every_byte_of_what_was_read_counts(prove: Callable[..., Proof], tokenizer_path: Path, tmp_path: Path) -> None:
    proof = prove()
    shard = list(proof.claim["shards"])[-1]
    for path, words in (
        (proof.store / shard, f"FAILED: {shard} is not the shard that was hashed"),
        (proof.run / "manifest.json", f"FAILED: {proof.run}/manifest.json is not the plan of the certificate"),
    ):
        original = path.read_bytes()
        at = original.index(b'"seed":17') + 8 if path.suffix == ".json" else len(original) - 1
        path.unlink()  # shards are hard links
        path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
        assert proof.verify() == words
        path.write_bytes(original)
    other = tmp_path / "other.model"
    other.write_bytes(tokenizer_path.read_bytes()[:-1])
    assert proof.verify(other) == "FAILED: TOKENIZER is another"
    assert proof.verify(tokenizer_path) == 0


def test_a_missing_file_is_said_in_words(prove: Callable[..., Proof]) -> None:
    proof = prove()
    shutil.rmtree(proof.store / "streams")
    command = [sys.executable, PROGRAM, proof.certificate, proof.run / "manifest.json", proof.store]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert printed.returncode == 1
    assert printed.stderr.startswith(
        "FAILED: a file cannot be read, or does not hold what it should: FileNotFoundError"
    )
    assert "Traceback" not in printed.stderr


def test_no_certificate_for_a_log_with_gaps_a_foreign_checkpoint_or_a_damaged_shard(
    prove: Callable[..., Proof], tmp_path: Path
) -> None:
    proof, target = prove(), tmp_path / "second.json"
    save(proof.run, 8, digest="d" * 64)
    with pytest.raises(
        InputError, match=r"step-00000008 has the digest dddddddddddddddd, and log.csv has [0-9a-f]{16} "
    ):
        audit(proof.run, certificate=target)
    shutil.rmtree(proof.run / "checkpoints" / "step-00000008")
    shard = proof.store / next(iter(proof.claim["shards"]))
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"\.mds is damaged: its xxh64 is "):
        audit(proof.run, certificate=target)
    shard.write_bytes(content)
    lose(proof.run, 9)
    with pytest.raises(SystemExit, match="1"):
        audit(proof.run, certificate=target)
    assert not target.exists()
    audit(proof.run, step=9, certificate=target)  # the steps before the gap
    assert Proof(proof.run, target, proof.store).verify() == 0
    assert [point["step"] for point in json.loads(target.read_bytes())["checkpoints"]] == [4]


def test_sources_that_have_changed_are_not_listed(
    prove: Callable[..., Proof], corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.jsonl"
    shutil.copy(corpora / "mono.1.jsonl", copy)
    streams = {"mono": {"documents": [str(copy)], "epochs": 9}}
    proof = prove(streams=streams, stages=[{"name": "s", "steps": 12, "mix": {"mono": 1}}])
    assert proof.claim["streams"][0]["sources"][0]["paths"] == [str(copy)]
    capsys.readouterr()
    copy.write_bytes(copy.read_bytes() + b'{"text": "more"}\n')
    audit(proof.run, certificate=proof.certificate)
    assert "without sources, which are not where the build read them: mono\n" in capsys.readouterr().out
    assert proof.claim["streams"][0]["sources"] is None
    assert proof.verify() == 0


NAMES = ["b", "a/x", "a/y", "c", "b-b/z"]  # of streams: two are of one entry


def plan_of(
    sizes: list[list[int]], parts: list[tuple[int, list[int], bool]], lanes: int, width: int, block: int
) -> Manifest:
    """A plan over streams with shards of these sizes. Each stage has its steps, weights of the streams, and a rule."""
    streams = tuple(
        Stream(name, f"r{k}", "x", sum(shards), 0, tuple(Shard(n, StoredFile("b", 1, {})) for n in shards))
        for k, (name, shards) in enumerate(zip(NAMES, sizes, strict=False))
    )
    stages = []
    for number, (steps, weights, balanced) in enumerate(parts):
        weights = weights[: len(sizes)]
        quotas = [steps * width * weight // sum(weights) for weight in weights]
        quotas[0] += steps * width - sum(quotas)
        samples = {name: quota * lanes for name, quota in zip(NAMES, quotas, strict=False)}
        stages.append(Stage(f"t{number}", steps, samples, balanced=balanced))
    stages[0] = replace(stages[0], cut=max(1, stages[0].steps // 2))
    return Manifest("m", "t", 100, 2, 8, lanes * width, lanes, 5, block, streams, tuple(stages))


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.integers(1, 40), min_size=1, max_size=5).filter(lambda s: sum(s) >= 4), min_size=1, max_size=5
    ),
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=5, max_size=5), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 4),
    st.integers(1, 7),
    st.integers(1, 60),
)
def test_the_verifiers_order_is_that_of_the_engine(
    sizes: list[list[int]], parts: list[tuple[int, list[int], bool]], lanes: int, width: int, block: int
) -> None:
    manifest = plan_of(sizes, parts, lanes, width, block)
    plan, steps = json.loads(manifest.content), manifest.schedule.steps
    expected = np.stack([manifest.order.sample_ids(step) for step in range(steps)])
    firsts = manifest.order.first_ids.tolist()
    orders = {s["name"]: VERIFIER["Order"](plan, s, first) for s, first in zip(plan["streams"], firsts, strict=False)}
    found = np.concatenate(list(VERIFIER["batches"](plan, orders, steps)))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("balanced", [False, True])
def test_the_verifier_deals_stages_of_any_size(balanced: bool) -> None:
    samples = {"a/x": 10**17 + 7, "a/y": 5 * 10**17, "b": 10**18 + 1, "c": 3, "d": 10**9}
    stage, first = Stage("huge", 1, samples, balanced=balanced), sum(samples.values()) * 2 // 3
    streams, cursors = stage.tree.deal(np.arange(first, first + 300))
    found: list[Any] = [None] * 300
    for name, slots, begin in VERIFIER["deal"](stage.described, first, 300):
        for cursor, slot in enumerate(slots.tolist(), start=begin):
            found[slot] = (name, cursor)
    assert found == [(stage.tree.names[stream], cursor) for stream, cursor in zip(streams, cursors, strict=True)]
