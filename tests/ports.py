"""Unused ports of loopback."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

_FIRST, _END = 20_000, 32_768  # from 32768 up, the system gives ports to connections, at any moment
_chance = random.SystemRandom()


def free_ports(number: int) -> list[int]:
    """Different ports on which nothing listens."""
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < number:
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", _chance.randrange(_FIRST, _END)))
            except OSError:
                continue
            found.append(one.getsockname()[1])
        return found


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
