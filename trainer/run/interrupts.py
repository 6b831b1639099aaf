"""Ctrl-C and SIGTERM end a program wherever it is, with a line and without a traceback. Imports nothing slow."""

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

NOT_BEGUN = "stopped before the first step; the same command begins again"

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_GRACE_S = 2.0  # for what is under way to be left; compiled code that waits for other ranks is not


def end_plainly(words: str) -> None:
    """From here on Ctrl-C and SIGTERM say `words`, on the first rank, and end the process with exit code 130 or 143.

    What is under way is left by way of an exception, so that temporary files go. Where that does not end the process
    soon, a thread does: compiled code may wait, or make an error of its own of the exception. It says the words, too,
    for Composer's import sets a handler that says nothing.
    """
    told, rank = threading.Event(), Ranks.from_environment().rank

    def handle(number: int, frame: FrameType | None) -> None:
        for each in _NUMBERS:
            signal.signal(each, signal.SIG_DFL)  # a second one ends the process on the spot
        told.wait(_GRACE_S)
        raise SystemExit(128 + number)

    def listen() -> None:
        while (number := os.read(reading, 1)[0]) not in _NUMBERS:
            pass
        sys.excepthook = lambda *error: os._exit(128 + number)
        sys.unraisablehook = lambda error: None  # it came up where none can be raised; this thread ends the process
        if rank == 0:
            line = f"{words}\n"
            os.write(2, (f"\n{line}" if os.isatty(2) else line).encode())
        told.set()
        time.sleep(_GRACE_S)
        os._exit(128 + number)

    reading = _signal_pipe()
    threading.Thread(target=listen, name="interrupts", daemon=True).start()
    for each in _NUMBERS:  # the last: from here on the words are said
        signal.signal(each, handle)


def _signal_pipe() -> int:
    """Where a thread can read the numbers of signals that have a handler in Python, which writes them there."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _leave_children_alone()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


@cache
def _leave_children_alone() -> None:
    """A forked child would have our pipe: a signal to it would end this process."""
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
