"""Builds say in the store that they run, so that nothing removes units which another build still reads.

running/OWNER~PID~ID    the streams that a build makes, and when it last said so; removed when it ends
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from dataengine.errors import InputError
from dataengine.json_files import decode_hashed, encode_hashed
from dataengine.storage.atomic import is_dead, owner_and_pid
from dataengine.storage.store import Store

_RENEW_S, _EXPIRES_S = 60.0, 600.0


@dataclass(frozen=True)
class Running:
    """A build that runs."""

    streams: tuple[str, ...]
    """Folders of the streams that it makes."""
    at: float
    """When it last said so, in seconds since 1970."""
    slices: int = 1
    """How many slices share its tasks; 1 if it builds alone."""


Alone = Callable[[], bool]


@contextmanager
def say_running(streams: Sequence[str], store: Store, *, slices: int = 1) -> Iterator[Alone]:
    """Say in the store that this process makes some streams, until the block ends.

    Yields a function that tells whether no other build runs; slices of one build count as one. To remove what others
    may read, a build first writes that it is removed, and then asks. So a build that starts meanwhile is either seen,
    or sees that.
    """
    key, ended = f"running/{owner_and_pid()}~{uuid.uuid4().hex[:8]}", threading.Event()

    def say() -> None:
        store.write(key, encode_hashed(Running(tuple(streams), time.time(), slices)))

    def renew() -> None:
        while not ended.wait(_RENEW_S):
            with suppress(OSError, InputError):  # the next time may succeed
                say()

    def alone() -> bool:
        others = [one for name, one in _running(store) if name != key]
        return all(slices > 1 and (one.slices, sorted(one.streams)) == (slices, sorted(streams)) for one in others)

    say()
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield alone
    finally:
        ended.set()
        thread.join()
        with suppress(OSError, InputError):
            store.remove(key)


def running_builds(store: Store) -> list[Running]:
    """The builds that run in a store, also slices. One that was killed counts for ten minutes, unless it was here."""
    return [one for _, one in _running(store)]


def _running(store: Store) -> Iterator[tuple[str, Running]]:
    for key in store.sizes("running/"):
        with suppress(FileNotFoundError, ValueError):
            said = decode_hashed(Running, store.read(key))
            if said.at > time.time() - _EXPIRES_S and not is_dead(key.rpartition("/")[2]):
                yield key, said
