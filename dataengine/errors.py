"""The one exception that commands turn into a message and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """What the user gave cannot be used; the message says what is wrong, where, and what to do."""


class OutageError(InputError):
    """A store fails or does not answer, also after all attempts; it may work again later."""


def run_command(command: Callable[[], object], *, quiet: bool = False) -> int:
    """Run a command; return its exit code: 0, or 2 after a one-paragraph message on stderr, without traceback.

    `quiet` leaves the message to another rank of the same run.
    """
    try:
        command()
    except InputError as error:
        if not quiet:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0
