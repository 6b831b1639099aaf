"""A run ends early: it is asked to, or a step is bad. Nothing that was trained is lost."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from tests.conftest import slow_but
from tests.end_to_end import ranks
from tests.end_to_end.straight import Experiment, exact
from tests.trainer.fake_checkpoints import complete_checkpoints
from trainer.run.log_csv import read_log

SIGNALS = [(signal.SIGTERM, [0, 1]), (signal.SIGTERM, [1]), (signal.SIGINT, [0])]  # to which ranks


@pytest.mark.parametrize(("number", "asked"), slow_but(SIGNALS, SIGNALS[:1]))
def test_a_signal_to_any_rank_saves_and_ends_all_with_0(
    experiment: Experiment,
    number: signal.Signals,
    asked: list[int],
) -> None:
    out = experiment.folder / f"{number.name}{len(asked)}"
    processes = ranks.start(experiment.config, out, "train.checkpoint_interval=1000")
    ranks.wait_for(r"step 8/16", out)
    for rank in asked:
        os.kill(processes[rank].pid or 0, number)
    assert ranks.finish(processes) == [0, 0], ranks.printed(out)
    step = len(read_log(out / "log.csv"))
    assert 8 <= step <= 10
    assert (
        f"stopped as requested after {step} steps, with a checkpoint; run the same command again to resume"
        in ranks.printed(out)
    )
    assert complete_checkpoints(out)[-1].step == step
    log = ranks.train(experiment.config, out)
    assert f"steps {step} to 16" in ranks.printed(out)
    assert exact(log) == exact(experiment.straight)


def test_a_loss_that_is_not_a_number_stops_all_ranks_before_the_update(experiment: Experiment) -> None:
    out = experiment.folder / "nan"
    codes = ranks.finish(ranks.start(experiment.config, out, probe="nan"))
    assert codes == [3, 3], ranks.printed(out)
    path = out / "bad-step-00000006.json"
    message = next(line for line in ranks.printed(out).splitlines() if line.startswith("stopped: "))
    assert message.startswith(
        "stopped: step 6: the gradient's norm is nan (the loss is "
    )  # the losses of the samples are good here
    assert f"The samples are in {path}. Look at them: python trainer/replay.py {out}." in message
    assert "Traceback" not in ranks.printed(out)
    written = json.loads(path.read_text())
    assert [sample["sample_id"] for sample in written["samples"]] == experiment.manifest.order.sample_ids(6).tolist()
    assert all(sample["loss"] > 0 for sample in written["samples"])
    assert len(read_log(out / "log.csv")) == 6
    assert complete_checkpoints(out)[-1].step == 6
    log = ranks.train(experiment.config, out)
    assert exact(log) == exact(experiment.straight)


@pytest.mark.slow
def test_a_rank_that_waits_for_another_ends_when_asked(experiment: Experiment) -> None:
    """The other one never comes: there is nothing to save and no rank to wait for."""
    out = experiment.folder / "alone"
    first, second = ranks.start(experiment.config, out)
    second.kill()
    ranks.wait_for("2 ranks meet at", out)
    first.join(3)
    assert first.is_alive(), ranks.printed(out)
    first.terminate()
    first.join(20)
    assert first.exitcode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_rank_that_hangs_ends_all_by_name(experiment: Experiment) -> None:
    out = experiment.folder / "hangs"
    codes = ranks.finish(ranks.start(experiment.config, out, probe="hang"))
    assert codes == [1, 1], ranks.printed(out)
    place = r"training step 6, at ranks.py:\d+ \(loss\)"
    words = rf"error: rank 1 \(process \d+ on .*\) made no progress for \d+ s while {place}"
    assert re.search(words, ranks.printed(out)), ranks.printed(out)
    assert exact(ranks.train(experiment.config, out)) == exact(experiment.straight)
