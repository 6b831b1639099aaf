"""The command that users type, with Composer's own launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.run.log_csv import read_log

pytestmark = pytest.mark.slow
COMPOSER = Path(sys.executable).parent / "composer"


def launch(*arguments: str, program: Sequence[str] = ("trainer/train.py",)) -> subprocess.Popen[str]:
    command = [str(COMPOSER), "-n", "2", *program, *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as many as the ranks without a launcher have
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_killed_with_its_launcher_and_started_again(experiment: Experiment) -> None:
    killed = experiment.folder / "killed_with_launcher"
    process = launch(str(experiment.config), f"out={killed}")
    log = killed / "log.csv"
    while not (log.is_file() and len(read_log(log)) > 8):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    process = launch(str(experiment.config), f"out={killed}", program=("-m", "trainer", "train"))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "resuming from" in printed
    assert exact(read_log(log)) == exact(experiment.straight)


def test_a_tokenizer_that_is_not_the_manifests_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"some words to learn from {n}" for n in range(200)))
    SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "other"), vocab_size=60, model_type="bpe", minloglevel=2
    )
    process = launch(str(experiment.config), f"tokenizer={tmp_path / 'other.model'}", f"out={tmp_path / 'run'}")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "error: tokenizer mismatch: the streams of manifest " in printed
    assert "Set `tokenizer` to the file that the build used, or build again: dataengine build CONFIG" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_sigterm_to_the_launcher_lets_its_ranks_save(experiment: Experiment) -> None:
    """As a scheduler sends it, to all processes or to the first one, which does not pass it on."""

    def terminate(out: Path) -> str:
        process = launch(str(experiment.config), f"out={out}", "train.checkpoint_interval=1000")
        log = out / "log.csv"
        while not (log.is_file() and len(read_log(log)) > 4):
            assert process.poll() is None
            time.sleep(0.01)
        if out.name == "terminated_group":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
        return process.communicate(timeout=300)[0]  # until the last rank has closed it

    outs = [experiment.folder / name for name in ("terminated_group", "terminated_launcher")]
    with ThreadPoolExecutor(2) as pool:  # they wait for imports most of the time
        ends = list(pool.map(terminate, outs))
    for out, printed in zip(outs, ends, strict=True):
        steps = complete_checkpoints(out)[-1].step
        assert f"stopped as requested after {steps} steps" in printed
        resumed = ranks.train(experiment.config, out)
        assert f"steps {steps} to 16" in ranks.printed(out)
        assert exact(resumed) == exact(experiment.straight)
