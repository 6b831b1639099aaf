"""A rank that hangs, fails or dies ends the others soon, and they name it. On real processes, without Composer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import FrameType

import pytest

from dataengine.errors import InputError, run_command
from tests.conftest import slow_but
from tests.end_to_end.ranks import rank_environment
from tests.ports import free_port
from trainer.preflight.places import check_one_folder
from trainer.run.ranks import Ranks, Rendezvous
from trainer.training import pulse
from trainer.training.pulse import LOST_S, STUCK_S, Pulse, State, judge

_FORK = multiprocessing.get_context("fork")
STATES = [
    State(place=7, doing="training step 6", pid=100 + rank, node="abc"[rank], line="x.py:1 (wait)") for rank in range(3)
]

Course = Callable[[Rendezvous, Path], None]


def test_all_is_well_while_ranks_continue_or_may_wait() -> None:
    assert judge(STATES, [0.0, 1.0, 2.0]) is None
    old = [replace(state, since_s=STUCK_S + 1) for state in STATES]
    waiting = replace(STATES[1], place=6, since_s=STUCK_S + 2, patience_s=4000.0)  # for a bucket; all wait for it
    assert judge([old[0], waiting, old[2]], [0.0] * 3) is None
    ended = replace(old[0], place=3, ended=True)
    assert judge([ended, *STATES[1:]], [LOST_S + 1, 0.0, 0.0]) is None


def test_the_rank_that_others_wait_for_is_named() -> None:
    old = [replace(state, since_s=STUCK_S + 1) for state in STATES]
    words = judge([old[0], replace(old[1], place=6), old[2]], [0.0] * 3)
    assert words is not None
    assert words.startswith(
        "rank 1 (process 101 on b) made no progress for 601 s while training step 6, at x.py:1 (wait), and"
    )
    words = judge([old[0], replace(old[1], line="y.py:2 (read)"), old[2]], [0.0] * 3)
    assert str(words).startswith(
        "no rank made progress for 601 s, all are training step 6, at y.py:2 (read) (rank 1 on b); x.py:1 (wait) (rank "
        "0 on a, 2 on c). If all are at one line, check"
    )
    words = judge(STATES, [0.0, 0.0, LOST_S + 1])
    assert str(words).startswith("no sign of life from rank 2 (process 102 on c) for 121 s.")


def run(course: Course, folder: Path, ranks: int = 3, nodes: int = 1) -> tuple[list[int | None], list[str]]:
    """Run ranks in folders of their nodes; return their exit codes and what they printed."""
    port, processes = free_port(), []
    for rank in range(ranks):
        environment = rank_environment(rank, ranks, port)
        environment |= {"LOCAL_WORLD_SIZE": str(ranks // nodes), "LOCAL_RANK": str(rank % (ranks // nodes))}
        place = folder / f"node{rank // (ranks // nodes)}"
        place.mkdir(exist_ok=True)
        processes.append(_FORK.Process(target=_rank, args=(environment, place, folder / f"{rank}.txt", course)))
        processes[-1].start()
    deadline = time.monotonic() + 120
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes, [(folder / f"{rank}.txt").read_text() for rank in range(ranks)]


def _rank(environment: dict[str, str], place: Path, printed: Path, course: Course) -> None:
    os.environ.update(environment)
    os.chdir(place)
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)  # not what pytest put there
    pulse.BEAT_S, pulse.LOST_S, pulse.STUCK_S, pulse.GRACE_S = 0.1, 5.0, 1.0, 0.5

    def command() -> None:
        with Rendezvous(Ranks.from_environment(), timedelta(seconds=60)) as group:
            course(group, place)

    sys.exit(run_command(command))


def hang(group: Rendezvous, place: Path) -> None:
    with Pulse(group, outage_limit_s=3600.0) as own:
        own.at("training step 0")
        if group.ranks.rank == 1:
            time.sleep(600)
        own.at("training step 1")
        group.gather(None)  # as in a collective
        own.close()


def wait_for_a_bucket(group: Rendezvous, place: Path) -> None:
    with Pulse(group, outage_limit_s=3600.0) as own:
        own.at("waiting for the batch of step 0", may_wait=True)
        if group.ranks.rank == 1:
            time.sleep(3)
        own.at("training step 0")
        group.gather(None)
        own.close()


def fail(group: Rendezvous, place: Path) -> None:
    with Pulse(group, outage_limit_s=0.0) as own:
        fail_within(own, group)


def fail_within(own: Pulse, group: Rendezvous) -> None:
    own.at("training step 0", may_wait=True)
    if group.ranks.rank == 2:
        raise InputError("a shard is damaged")
    group.gather(None)


def crash(group: Rendezvous, place: Path) -> None:
    with Pulse(group, outage_limit_s=0.0) as own:
        own.at("training step 0", may_wait=True)
        if group.ranks.rank == 1:
            raise KeyError("a bug")
        group.gather(None)


def die(group: Rendezvous, place: Path) -> None:
    with Pulse(group, outage_limit_s=3600.0) as own:
        own.at("waiting for the batch of step 0", may_wait=True)
        if group.ranks.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        group.gather(None)


def lose_the_first(group: Rendezvous, place: Path) -> None:
    with Pulse(group, outage_limit_s=3600.0):
        if group.ranks.rank == 0:
            time.sleep(1)  # all have met
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


COURSES = [
    (hang, [1, 1, 1], "rank 1 (process "),
    (fail, [2, 2, 2], ": a shard is damaged\n"),
    (wait_for_a_bucket, [0, 0, 0], ""),
    (crash, [1, 1, 1], " failed: KeyError: 'a bug'\n"),
    (die, [1, 1, -9], "no sign of life from rank 2 (process "),
    (lose_the_first, [-9, 1, 1], "rank 0 (127.0.0.1:"),
]


@pytest.mark.parametrize(
    ("course", "codes", "words"),
    slow_but(COURSES, COURSES[:2]),
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_all_ranks_end_and_name_the_one(tmp_path: Path, course: Course, codes: list[int], words: str) -> None:
    found, printed = run(course, tmp_path)
    assert found == codes, printed
    speaker = 0 if codes[0] >= 0 else 1
    assert words in printed[speaker]
    assert ("error: " in printed[speaker]) == bool(words)


def fail_during_a_save(group: Rendezvous, place: Path) -> None:
    with Pulse(group, outage_limit_s=0.0) as own:
        own.before_end = (place / f"{group.ranks.rank}.saved").touch
        fail_within(own, group)


@pytest.mark.slow
def test_the_others_finish_what_they_began_when_a_rank_fails(tmp_path: Path) -> None:
    codes, printed = run(fail_during_a_save, tmp_path)
    assert codes == [2, 2, 2], printed
    assert sorted(path.name for path in tmp_path.glob("node0/*.saved")) == ["0.saved", "1.saved"]


def take_steps(group: Rendezvous, place: Path) -> None:
    pulse.STUCK_S = 3.0
    with Pulse(group, outage_limit_s=3600.0) as own:
        (place / f"{group.ranks.rank}.pid").write_text(str(os.getpid()))
        for step in range(50):
            own.at(f"training step {step}")
            time.sleep(0.1)
            group.gather(None)
        own.close()


@pytest.mark.slow
def test_ranks_that_are_suspended_together_continue(tmp_path: Path) -> None:
    """As by Ctrl-Z and `fg`, by a scheduler that suspends jobs, or in a machine that is paused."""

    def suspend() -> None:
        while len(found := list(tmp_path.glob("node0/*.pid"))) < 3:
            time.sleep(0.05)
        time.sleep(1)
        pids = [int(path.read_text()) for path in sorted(found)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(7)  # longer than anything may take
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.5)

    thread = threading.Thread(target=suspend, daemon=True)
    thread.start()
    codes, printed = run(take_steps, tmp_path)
    thread.join(1)
    assert not thread.is_alive()
    assert codes == [0, 0, 0], printed
    assert printed == ["", "", ""]


def test_a_beat_in_the_middle_of_a_move_has_one_place() -> None:
    """A rank that has waited long for a bucket may have no state of the next place with the old one's time."""
    own = Pulse(Rendezvous(Ranks()), outage_limit_s=3600.0)
    seen = []

    def look(frame: FrameType, event: str, argument: object) -> object:
        seen.append((own._now.doing, own._now.patience_s))
        return look

    own.at("waiting for a batch", may_wait=True)
    sys.settrace(look)
    own.at("training")
    sys.settrace(None)
    assert set(seen) == {("waiting for a batch", STUCK_S + 3600.0), ("training", STUCK_S)}


def config_of_one_node(group: Rendezvous, place: Path) -> None:
    def load() -> str:
        if group.ranks.rank == 1:
            raise InputError(f"cannot read config {place}/none.yaml")
        return "config"

    group.run_on_all(load)


def test_an_error_of_one_node_before_all_else_ends_the_others_with_its_words(tmp_path: Path) -> None:
    codes, printed = run(config_of_one_node, tmp_path, ranks=2, nodes=2)
    assert codes == [2, 2]
    assert printed == [f"error: cannot read config {tmp_path}/node1/none.yaml\n"] * 2


def stay_away(group: Rendezvous, place: Path) -> None:
    if group.ranks.rank == 1:
        time.sleep(10)
    group.timeout = timedelta(seconds=1)
    group.gather(None)


def test_ranks_that_do_not_come_are_named(tmp_path: Path) -> None:
    _, printed = run(stay_away, tmp_path)
    assert "error: of 3 ranks, these did not connect to 127.0.0.1:" in printed[0]
    assert " within 1 s: 1. Start the same command on every node" in printed[0]


def own_folder(group: Rendezvous, place: Path) -> None:
    check_one_folder(Path("runs/own"), group)  # relative: each node's own


def shared_folder(group: Rendezvous, place: Path) -> None:
    check_one_folder(place.parent / "shared", group)


def test_nodes_must_have_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.preflight.places._LOOK_S", 0.5)
    codes, printed = run(own_folder, tmp_path, ranks=4, nodes=2)
    assert codes == [2] * 4
    assert printed[0].startswith("error: out runs/own is not shared by all nodes: ")
    assert "(rank 0) does not see the file of " in printed[0]
    assert "(rank 2). Each node would save" in printed[0]
    assert len(set(printed)) == 1
    assert not list(tmp_path.rglob("own")), "nothing is left"
    codes, printed = run(shared_folder, tmp_path, ranks=4, nodes=2)
    assert codes == [0] * 4, printed
    assert not list(tmp_path.rglob(".probe-*"))
