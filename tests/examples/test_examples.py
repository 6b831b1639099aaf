"""The examples do what they say, in a folder of the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dataengine
from dataengine.schedule.log_csv import next_digest
from tests.conftest import ROOT, ConfigMaker, read_texts

# What `make demo` prints: the digest of all samples of yamls/mini/uni_en_zh.yaml
DEMO_DIGEST = "420829f7f2b4b7ace8d35daa0cae777d7d3876aaae42c88aadbecad11ca63270"


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dataengine.Config:
    """yamls/mini/uni_en_zh.yaml, built."""
    folder = tmp_path_factory.mktemp("mini")
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    config = dataengine.load_config("yamls/mini/uni_en_zh.yaml", [f"store={folder}/store", f"out={folder}/run"])
    dataengine.build(config, workers=1)
    patch.undo()
    return config


def start(example: str, *arguments: object, folder: Path = ROOT, ranks: int = 1) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, str(ROOT / "examples" / example), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)


def printed(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def test_the_readme_names_every_example() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    assert all(f" examples/{path.name} " in text for path in (ROOT / "examples").glob("*.py"))


def test_the_batches_of_the_demonstration_have_its_digest(mini: dataengine.Config) -> None:
    digest = ""
    for batch in dataengine.read_manifest(mini).batches():
        digest = next_digest(digest, batch.step, batch.sample_ids)
    assert digest == DEMO_DIGEST


def test_a_plan_is_drawn(mini: dataengine.Config, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"base: {ROOT}/yamls/mini/uni_en_zh.yaml\nname: {mini.name}\nstore: {mini.store}\nout: run\n")
    assert printed(start("plots.py", config, tmp_path / "made.png")) == f"picture {tmp_path}/made.png\n"
    assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")


def test_a_rule_of_ones_own_drops_beside_the_engines(tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out" / "filtered.jsonl"
    good = {"en": "Open the file (again).", "zh": "再次打开文件（重试）。"}
    rows = [
        good,
        {"en": "Open the file (again).", "zh": "再次打开文件。"},
        {"en": "Hello <b> there", "zh": "你好"},
        {"en": "a"},
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = printed(start("add_a_rule.py", pairs, out))
    assert sorted(line.split(maxsplit=1)[1] for line in output.splitlines()) == [
        "kept",
        "markup",
        "own rule",
        "unusable",
    ]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [good]


def test_subtitles_become_documents_that_a_build_reads(make_config: ConfigMaker, tmp_path: Path) -> None:
    assert printed(start("own_format.py", folder=tmp_path)) == "1 documents in runs/examples/films.jsonl\n"
    out = tmp_path / "runs/examples/films.jsonl"
    assert read_texts(out, "text") == [(1, ("The train leaves at noon.\nHurry!",))]


@pytest.mark.slow
def test_a_loop_that_is_killed_and_resumed_has_the_losses_of_one_that_is_not(
    make_config: ConfigMaker, tmp_path: Path
) -> None:
    config = make_config(stages=[{"name": "only", "steps": 14, "mix": {"mono": 1}}])
    dataengine.build(config, workers=1)
    manifest = f"{config.store}/experiments/{config.name}/manifest.json"
    printed(start("plain_pytorch.py", manifest, tmp_path / "whole", 14))
    stopped = start("plain_pytorch.py", manifest, tmp_path / "stopped", 14)
    assert stopped.stdout is not None
    for line in stopped.stdout:  # killed between two checkpoints
        if line.startswith("step 12:"):
            break
    stopped.send_signal(signal.SIGKILL)
    stopped.wait()
    assert "step 10:" not in printed(start("plain_pytorch.py", manifest, tmp_path / "stopped", 14))
    losses = [(tmp_path / name / "losses.txt").read_text().splitlines() for name in ("whole", "stopped")]
    assert len(losses[0]) == 14
    assert losses[0] == losses[1]
    assert float(losses[0][-1]) < float(losses[0][0])
