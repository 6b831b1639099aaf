"""End a run on SIGTERM or Ctrl-C with a checkpoint, as schedulers and spot instances ask for it."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
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


def end_on_interrupt(words: str) -> None:
    """From now on Ctrl-C ends the process at once with exit code 130, wherever it is; rank 0 says `words`.

    A thread acts, woken by the interpreter's own handler: one in Python waits until a library has returned, and an
    exception may be caught by one, or come up in the middle of an import. What is written is whole or not there.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)  # as set_wakeup_fd wants it

    def wait() -> None:
        while signal.SIGINT not in os.read(read, 1):
            pass
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"\n{words}\n".encode())  # past the lock of sys.stderr
        os._exit(130)

    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    threading.Thread(target=wait, name="interrupts", daemon=True).start()


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
