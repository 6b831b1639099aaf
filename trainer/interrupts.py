"""Ctrl-C and SIGTERM end a program wherever it is, with a line and without a traceback. Imports nothing slow."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

NOT_BEGUN = "stopped before the first step; the same command begins again"
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def end_plainly(words: str) -> None:
    """From here on Ctrl-C and SIGTERM say `words`, on the first rank, and end the process with exit code 130 or 143.

    What is under way is left by way of an exception, so temporary files go. A second signal ends the process on the
    spot.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        for each in _NUMBERS:
            signal.signal(each, signal.SIG_DFL)
        _say(words)
        sys.excepthook = _make_hook(128 + number)
        raise SystemExit(128 + number)

    for each in _NUMBERS:
        signal.signal(each, handle)


@contextmanager
def importing_composer() -> Iterator[None]:
    """Composer sets handlers of its own in the middle of its import, which say nothing."""
    ours = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if end.code in (130, 143) and signal.getsignal(signal.SIGINT) not in (ours, signal.SIG_DFL):
            _say(NOT_BEGUN)
        raise


def _say(words: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        line = f"{words}\n"
        os.write(2, (f"\n{line}" if os.isatty(2) else line).encode())  # a handler may not print: print may be under way


def _make_hook(code: int) -> Callable[..., None]:
    """For what compiled code makes of the exception: an import of numpy, say, makes an ImportError of it."""

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        os._exit(code)

    return end
