"""Settings that change how a step is computed or shown, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.run.log_csv import read_log


def assert_close(log: list[dict[str, str]], expected: list[dict[str, str]], rtol: float = 1e-4) -> None:
    """The same samples; losses and gradients but for the order of float sums."""
    assert [row["digest"] for row in log] == [row["digest"] for row in expected]
    for column in ("loss", "grad_norm"):
        values = np.array([[float(row[column]) for row in rows] for rows in (log, expected)])
        assert np.allclose(values[0], values[1], rtol=rtol), column


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_activation_checkpointing_gives_the_same_run(count: int, experiment: Experiment) -> None:
    out = experiment.folder / f"recomputed{count}"
    changes = ["train.activation_checkpointing=true", "train.max_steps=6"]
    assert_close(ranks.train(experiment.config, out, *changes, ranks=count), experiment.straight[:6])
    assert exact(ranks.train(experiment.config, out, ranks=count))[:6] == exact(ranks.read_log(out / "log.csv"))[:6]


@pytest.mark.slow
def test_compiled_layers_give_the_same_run(experiment: Experiment) -> None:
    out = experiment.folder / "compiled"
    log = ranks.train(experiment.config, out, "train.compile=true", "train.max_steps=6", ranks=1)
    assert_close(log, experiment.straight[:6], rtol=1e-3)
    assert_close(ranks.train(experiment.config, out, ranks=1), experiment.straight, rtol=1e-3)  # its weights load


@pytest.mark.slow
def test_tensorboard_and_wandb_offline_show_the_log(experiment: Experiment) -> None:
    """Also of a run that is resumed: each step once, and another W&B run if steps are trained again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = experiment.folder / "shown"
    changes = ["train.tensorboard=true", "train.wandb={project: test, mode: offline}"]
    ranks.kill_at(ranks.start(experiment.config, out, *changes), out, 9)
    logged = len(read_log(out / "log.csv"))
    log = ranks.train(experiment.config, out, *changes)
    assert exact(log) == exact(experiment.straight)
    events: Any = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert sorted(losses) == list(range(1, 17))
    assert [losses[step] for step in range(1, 17)] == pytest.approx([float(row["loss"]) for row in log], rel=1e-6)
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 17))  # none twice
    folders = list((out / "wandb").glob("offline-run-*"))
    anew = f"steps {logged} to 16" not in ranks.printed(out)
    assert len({path.name.rpartition("-")[2] for path in folders}) == 1 + anew
    assert any(list(path.glob("*.wandb")) for path in folders)


@pytest.mark.slow
def test_a_dry_run_describes_and_trains_nothing(experiment: Experiment) -> None:
    out = experiment.folder / "dry"
    processes = ranks.start(experiment.config, out, "--dry-run")
    assert ranks.finish(processes) == [0, 0]
    printed = ranks.printed(out)
    assert "training     16 of 16 steps, 4,096 tokens" in printed
    assert "8 samples of 32 tokens on 2 ranks: 4 per rank, microbatches of 2, 2 per step" in printed
    assert re.search(r"memory of a step on a GPU: \d+\.\d MB with microbatches of 2\n", printed)
    assert "to train: steps 0 to 16, a new run" in printed
    assert not Path(out).exists()
    assert ranks.finish(ranks.start(experiment.config, out, "--dry-run", "--gpu", "h100-80")) == [0, 0]
    assert "GPUs        2 x h100-80 with 84.9 GB\n" in ranks.printed(out)
    assert "microbatch  4 is the largest that leaves a tenth of the memory free\n" in ranks.printed(out)
    ranks.train(experiment.config, out, "train.max_steps=4")
    assert ranks.finish(ranks.start(experiment.config, out, "--dry-run")) == [0, 0]
    assert f"to train: steps 4 to 16, from {out}/checkpoints/step-00000004" in ranks.printed(out)
    changed = ranks.start(experiment.config, out, "--dry-run", "model.hidden_size=64")
    assert ranks.finish(changed) == [2, 2]
    assert "has a different model: hidden_size was 32 and is 64" in ranks.printed(out)
    keyless = ranks.start(experiment.config, out, "--dry-run", "train.wandb={project: test}")  # one rank looks for it
    assert ranks.finish(keyless) == [2, 2]
    assert "error: train.wandb is online, but there is no key for " in ranks.printed(out)


def test_all_problems_are_reported_at_once(experiment: Experiment) -> None:
    out = experiment.folder / "problems"
    changes = [
        "train.attention=flash_attention_2",
        "train.wandb={project: test}",
        "train.shard_ranks=1",
    ]
    processes = ranks.start(experiment.config, out, *changes, ranks=1)
    assert ranks.finish(processes) == [2]
    lines = ranks.printed(out).splitlines()
    assert lines[0] == "error: 3 problems:"
    assert all(any(word in line for line in lines[1:]) for word in ("flash_attention_2", "wandb", "shard_ranks"))
    assert not complete_checkpoints(out)
