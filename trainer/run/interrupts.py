"""Ctrl-C and SIGTERM end a program at any point, with one line and no traceback. Imports nothing slow."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from types import FrameType

from trainer.run.ranks import Ranks

NOT_BEGUN = "stopped before the first step; run the same command again"

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_GRACE_S = 2.0  # for the exception to end the process; compiled code that waits for other ranks ignores it


def end_plainly(words: str) -> None:
    """Make Ctrl-C and SIGTERM end the process with exit code 130 or 143; the first rank prints `words`.

    The handler raises an exception, so temporary files are removed. If the process does not end soon, a thread ends it:
    compiled code may block, or turn the exception into another error. The thread also prints the words, because
    Composer's import installs a handler that prints nothing.
    """
    printed, rank = threading.Event(), Ranks.from_environment().rank

    def handle(number: int, frame: FrameType | None) -> None:
        for each in _NUMBERS:
            signal.signal(each, signal.SIG_DFL)  # a second one ends the process on the spot
        printed.wait(_GRACE_S)
        raise SystemExit(128 + number)

    def listen() -> None:
        while (number := os.read(reading, 1)[0]) not in _NUMBERS:
            pass
        sys.excepthook = lambda *error: os._exit(128 + number)
        sys.unraisablehook = lambda error: None  # raised where exceptions are ignored; this thread ends the process
        if rank == 0:
            line = f"{words}\n"
            os.write(2, (f"\n{line}" if os.isatty(2) else line).encode())
        printed.set()
        time.sleep(_GRACE_S)
        os._exit(128 + number)

    reading = _signal_pipe()
    threading.Thread(target=listen, name="interrupts", daemon=True).start()
    for each in _NUMBERS:  # last: from here on the words are printed
        signal.signal(each, handle)


def _signal_pipe() -> int:
    """Return a descriptor from which a thread reads signal numbers; Python writes them for signals with a handler."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _leave_children_alone()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


@cache
def _leave_children_alone() -> None:
    """Keep the pipe from forked children: a signal to a child would end this process."""
    held: list[int] = []  # the pipe, while a process is forked

    def let_go() -> None:
        with suppress(ValueError):  # forked by another thread than the main one
            held.append(signal.set_wakeup_fd(-1))

    def take() -> None:
        if held:
            signal.set_wakeup_fd(held.pop(), warn_on_full_buffer=False)

    def forget() -> None:
        held.clear()
        with suppress(ValueError):
            for each, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
                if getattr(signal.getsignal(each), "__module__", "") == __name__:
                    signal.signal(each, default)

    os.register_at_fork(before=let_go, after_in_parent=take, after_in_child=forget)
