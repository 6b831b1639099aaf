"""A heartbeat of each rank over the rendezvous store, so that one rank that hangs, fails or dies soon ends all ranks.

A collective cannot name the missing rank, and its timeout must be longer than a bucket outage that one rank may wait
for. Here, a rank that waits for its batch has the time of an outage, and a rank that computes has STUCK_S. A thread in
each rank writes its state every BEAT_S; the thread of rank 0 judges all states. On a verdict every rank ends, even if
its main thread is blocked. Time in which a process is suspended (Ctrl-Z, a scheduler, a paused machine) does not
count. Needs no Composer.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from dataengine.errors import InputError, describe_disk, message_of
from trainer.run.ranks import Rendezvous
from trainer.training.spikes import BadStepError

BEAT_S = 5.0
LOST_S = 120.0  # without a heartbeat: the process, its machine or the network is gone or frozen
STUCK_S = 600.0  # at one place of a step, such as a microbatch
GRACE_S = 5.0  # for ranks that notice the failure themselves, and for rank 0 to print first

_VERDICT = "pulse/verdict"
_PAUSES = 6  # missing heartbeats of its own: this process was suspended, perhaps with all others, and starts over
_PLACES = 4  # places, and ranks per place, that a message names


@dataclass(frozen=True)
class State:
    """The state of a rank."""

    place: int = 0  # number of places passed; equal numbers on two ranks mean the same place
    doing: str = "starting"
    since_s: float = 0.0
    patience_s: float = STUCK_S
    pid: int = 0
    node: str = ""
    line: str = ""  # Python line of the main thread
    ended: bool = False


class _Place(NamedTuple):
    """The place of this rank, and its time."""

    number: int
    doing: str
    since: float  # time.monotonic()
    patience_s: float


def judge(states: Sequence[State], silent_s: Sequence[float]) -> str | None:
    """Return which ranks the others wait for without progress, and what to do; None while all ranks make progress.

    `silent_s`: seconds since each rank's last heartbeat.
    """
    running = {rank: state for rank, state in enumerate(states) if not state.ended}
    lost = {rank: state for rank, state in running.items() if silent_s[rank] > LOST_S}
    if lost:
        seconds = max(silent_s[rank] for rank in lost)
        return (
            f"no sign of life from {_names(lost)} for {seconds:.0f} s. The process was killed (check dmesg for the "
            "kernel's out-of-memory killer), or its machine or the network is down. Run the same command "
            "again to resume."
        )
    last = min((state.place for state in running.values()), default=0)
    behind = {rank: state for rank, state in running.items() if state.place == last}
    stuck = {rank: state for rank, state in behind.items() if state.since_s > state.patience_s}
    if not stuck:
        return None
    first = next(iter(stuck.values()))
    if len(behind) == len(running):
        return (
            f"no rank made progress for {first.since_s:.0f} s, all are {first.doing}, at {_lines(running)}. If all are "
            "at one line, check the network between the nodes and the GPUs (nvidia-smi). Run the same "
            "command again to resume."
        )
    return (
        f"{_names(stuck)} made no progress for {first.since_s:.0f} s while {first.doing}, at {first.line}, and the "
        "other ranks wait. Run the same command again to resume. If it hangs there again, look at that process "
        "(py-spy dump --pid PID), its GPU and its disk."
    )


def _names(ranks: Mapping[int, State]) -> str:
    return " and ".join(f"rank {rank} (process {state.pid} on {state.node})" for rank, state in ranks.items())


def _lines(ranks: Mapping[int, State]) -> str:
    """Return the places of ranks, the rarest first, since the others may wait for those ranks."""
    places: dict[str, list[str]] = {}
    for rank, state in ranks.items():
        places.setdefault(state.line, []).append(f"{rank} on {state.node}")
    found = sorted(places.items(), key=lambda place: len(place[1]))[:_PLACES]
    return "; ".join(
        f"{line} (rank {', '.join(names[:_PLACES])}{' ...' * (len(names) > _PLACES)})" for line, names in found
    )


def _line() -> str:
    """Return the Python line of the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})" if frame else "?"


class Pulse:
    """The heartbeat of this rank. In the `with` block, an exception on one rank ends all; a single rank has none."""

    def __init__(self, group: Rendezvous, outage_limit_s: float) -> None:
        self._group, self._outage_limit_s = group, outage_limit_s
        self._now = _Place(0, "", 0.0, 0.0)
        self._ended = threading.Event()
        self._beating = threading.Lock()
        self._beaten = self._judged = self._awake = time.monotonic()
        self._heard: dict[int, tuple[bytes, float]] = {}  # each rank's last beat, and when it came
        self.before_end: Callable[[], None] = lambda: None  # finishes what this rank began, when another one failed
        self.at("starting", may_wait=True)

    def at(self, doing: str, *, may_wait: bool = False) -> None:
        """Move to the next place, the same one on all ranks.

        `may_wait`: whether the rank may wait for a bucket or a slow disk there.
        """
        patience_s = STUCK_S + (self._outage_limit_s if may_wait else 0.0)
        self._now = _Place(self._now.number + 1, doing, time.monotonic(), patience_s)  # the thread reads it

    def __enter__(self) -> Pulse:
        """Start, on all ranks together."""
        if self._group.ranks.world_size > 1:
            self._store = self._group.connect(LOST_S)
            self._beat()
            self._group.gather(None)  # from here on every rank has a state
            threading.Thread(target=self._work, name="pulse", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; report the error to the other ranks, if any."""
        if error is not None:
            self.fail(error)
        self.close()

    def fail(self, error: BaseException) -> None:
        """Report to the other ranks why this rank ends, and stop. They do not wait for its remaining uploads."""
        if self._group.ranks.world_size > 1 and not self._ended.is_set():
            with suppress(RuntimeError):
                self._store.compare_set(_VERDICT, "", pickle.dumps(_verdict(self._group.ranks.rank, error)).hex())
        self.close()

    def close(self) -> None:
        """Stop: other ranks no longer wait for this one."""
        if self._group.ranks.world_size > 1 and not self._ended.is_set():
            self._ended.set()
            with suppress(RuntimeError):
                self._beat()

    def _work(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._beat()
                verdict = self._verdict()
            except RuntimeError:  # from the store, which rank 0 serves
                verdict = 1, f"rank 0 ({self._group.address}) is gone or does not answer"
            if verdict is not None:
                self._end(*verdict)

    def _beat(self) -> None:
        with self._beating:  # the heartbeat that reports the end is the last one
            now, place = time.monotonic(), self._now
            if now - self._beaten > _PAUSES * BEAT_S:
                self._awake = now
            self._beaten = now
            since_s = now - max(place.since, self._awake)
            ended = self._ended.is_set()
            me = os.getpid(), platform.node(), _line()
            state = State(place.number, place.doing, since_s, place.patience_s, *me, ended)
            self._store.set(f"pulse/{self._group.ranks.rank}", pickle.dumps((now, state)))

    def _verdict(self) -> tuple[int, str] | None:
        """Return exit code and message, None so far; rank 0 judges first."""
        if self._group.ranks.rank == 0 and (words := self._judge()) is not None:
            self._store.compare_set(_VERDICT, "", pickle.dumps((1, words)).hex())
        if not self._store.check([_VERDICT]):
            return None
        found: tuple[int, str] = pickle.loads(bytes.fromhex(self._store.get(_VERDICT).decode()))
        return found

    def _judge(self) -> str | None:
        now = time.monotonic()
        if now - self._judged > _PAUSES * BEAT_S:
            self._heard.clear()
        self._judged = now
        beats = self._store.multi_get([f"pulse/{rank}" for rank in range(self._group.ranks.world_size)])
        for rank, beat in enumerate(beats):
            if self._heard.get(rank, (b"", 0.0))[0] != beat:
                self._heard[rank] = bytes(beat), now
        states = [pickle.loads(beat)[1] for beat in beats]
        return judge(states, [now - self._heard[rank][1] for rank in range(self._group.ranks.world_size)])

    def _end(self, code: int, words: str) -> None:
        """End this process, unless its main thread ends it first."""
        if self._ended.wait(GRACE_S):
            return
        print(f"error: {words}", file=sys.stderr, flush=True)
        self.before_end()
        time.sleep(2 * BEAT_S if self._group.ranks.rank == 0 else 0)  # the store must live until all have read
        for process in multiprocessing.active_children():  # last: torch raises in the main thread if a worker dies
            process.kill()
        os._exit(code)


def _verdict(rank: int, error: BaseException) -> tuple[int, str]:
    """Return exit code and message for the error that ends a rank."""
    name = f"rank {rank} on {platform.node()}"
    if isinstance(error, InputError):
        return 2, f"{name}: {message_of(error)}"
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code, f"{name} was asked to stop"
    if isinstance(error, BadStepError):
        return 3, f"{name}: {error}"
    if (words := describe_disk(error)) is not None:
        return 2, f"{name}: {words}"
    return 1, f"{name} failed: {type(error).__name__}: {error}"
