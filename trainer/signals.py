"""End a run on SIGTERM or Ctrl-C with a checkpoint, as schedulers and spot instances ask for it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

WAIT_FOR_RANK_0_S = 30.0

_PR_SET_PDEATHSIG = 1


@contextmanager
def asked_to_stop(ask: Callable[[], None]) -> Iterator[None]:
    """Call `ask` on SIGTERM and on the first Ctrl-C inside the block; a second Ctrl-C ends the process at once.

    Composer's launcher does not pass SIGTERM on, so this process also gets one when its parent ends.
    """
    interrupts = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            os._exit(130)
        ask()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    _follow_parent()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_at_once() -> None:
    """Until there is something to save, SIGTERM and Ctrl-C end the process wherever it is.

    Composer's import sets a handler in Python (core/engine.py), which does not run while a rank waits for others.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def let_rank_0_end_first() -> None:
    """Keep a failed rank that has nothing to say until the launcher ends it, which it does once rank 0 has ended.

    The first rank that ends has all others killed, and the launcher's exit code is that of the first rank in order.
    """
    end_at_once()
    time.sleep(WAIT_FOR_RANK_0_S)


def leave_signals_to_parent(worker: int) -> None:
    """For loader workers: what reaches the whole process group is the main process's to handle, which ends them.

    A second SIGTERM, which the loader sends to a worker that hangs, ends it.
    """

    def ignore_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _follow_parent() -> None:
    """Get SIGTERM when the parent ends (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
