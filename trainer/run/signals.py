"""Stop a run with a checkpoint on SIGTERM or Ctrl-C, as schedulers and spot instances request."""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from trainer.run.ranks import Ranks

WAIT_FOR_RANK_0_S = 30.0
END_LAUNCHER_S = 15.0  # after a SIGTERM; Composer's launcher sends SIGKILL after 30 s (CLEANUP_TIMEOUT)

_PR_SET_PDEATHSIG = 1


@dataclass
class Stopping:
    """State of a run that may be asked to stop."""

    alone: bool = False  # whether this rank no longer waits for others


@contextmanager
def asked_to_stop(ask: Callable[[], None]) -> Iterator[Stopping]:
    """Call `ask` on SIGTERM and on the first Ctrl-C inside the block. A second Ctrl-C ends the process at once.

    A thread calls it, because a main thread that waits for the device or for other ranks runs no signal handlers.
    Composer's launcher does not forward SIGTERM, so this process also gets one when its parent ends. The launcher kills
    its ranks 30 s after it is asked to stop. Before that, a rank ends it (`_Launcher.end`), and the ranks finish alone.
    """
    stopping = Stopping()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, _noted) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reading, ask, stopping), name="signals", daemon=True).start()
    _follow_parent()
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.write(writing, b"\0")  # ends the thread
        os.close(writing)


def _noted(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python has written the signal's number to the pipe of `_listen`."""


def _listen(reading: int, ask: Callable[[], None], stopping: Stopping) -> None:
    interrupts, launcher = 0, _Launcher.find()
    with open(reading, "rb", buffering=0) as signals:
        while True:
            if not select.select([signals], [], [], launcher.wait_s() if launcher else None)[0]:
                assert launcher is not None
                launcher.end(stopping)
                continue
            for number in signals.read(256):
                if number == 0:
                    return
                interrupts += number == signal.SIGINT
                if interrupts > 1:
                    os._exit(130)
                if number in (signal.SIGTERM, signal.SIGINT):
                    ask()
                if number == signal.SIGTERM and launcher is not None:
                    launcher.end_soon()


@dataclass
class _Launcher:
    """Composer's launcher, this process's parent."""

    process: psutil.Process
    written: int | None  # bytes of output before it was asked to stop; None: unknown on this system
    due: float = math.inf  # time.monotonic() at which to end it

    @classmethod
    def find(cls) -> _Launcher | None:
        """Return the parent, if it is Composer's launcher."""
        with suppress(psutil.Error):
            parent = psutil.Process(os.getppid())
            if any(Path(part).name in ("composer", "composer.cli.launcher") for part in parent.cmdline()):
                return cls(parent, _written(parent))
        return None

    def end_soon(self) -> None:
        """Schedule `end`, unless it is scheduled. Ranks act one after another, so usually only the first one acts."""
        wait_s = END_LAUNCHER_S * (1 + 0.05 * Ranks.from_environment().local_rank)
        self.due = min(self.due, time.monotonic() + wait_s)

    def wait_s(self) -> float | None:
        """Return the seconds until `end` is due; None if it is not scheduled."""
        return None if self.due == math.inf else max(0.0, self.due - time.monotonic())

    def end(self, stopping: Stopping) -> None:
        """End the launcher before it kills ranks that are still saving.

        A second SIGTERM ends it without killing its ranks. A launcher that was not asked to stop is left alone: it
        waits for its ranks. One that was asked prints a line first, so its output has grown. It is also left alone if
        one of its ranks has ended while others may wait for that one: they would wait forever.
        """
        self.due = math.inf
        if os.getppid() != self.process.pid:  # it has ended
            return
        with suppress(psutil.Error):
            if self.written is not None and _written(self.process) == self.written:
                return
            ranks = [child for child in self.process.children() if child.status() != psutil.STATUS_ZOMBIE]
            if stopping.alone or len(ranks) >= Ranks.from_environment().local_world_size:
                self.process.terminate()


def _written(process: psutil.Process) -> int | None:
    """Return the bytes that a process has written to files and pipes."""
    try:
        return int(process.io_counters().write_chars)
    except (AttributeError, psutil.Error, OSError):  # not Linux, or not allowed
        return None


def end_at_once() -> None:
    """Let SIGTERM and Ctrl-C end the process at once, while there is nothing to save.

    Composer's import installs a Python handler (core/engine.py), which does not run while a rank waits for others.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def let_rank_0_end_first() -> None:
    """Wait on a failed rank other than rank 0 until the launcher ends it, which happens when rank 0 ends.

    When a rank fails, the launcher kills the others. Its exit code is that of the lowest failed rank.
    """
    end_at_once()
    time.sleep(WAIT_FOR_RANK_0_S)


def leave_signals_to_parent(worker: int) -> None:
    """Ignore signals to the process group in a loader worker: the main process handles them and ends its workers.

    A second SIGTERM, which the loader sends to a worker that hangs, ends the worker.
    """

    def ignore_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.set_wakeup_fd(-1)  # the pipe belongs to the main process
    signal.signal(signal.SIGTERM, ignore_once)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _follow_parent() -> None:
    """Receive SIGTERM when the parent ends (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
