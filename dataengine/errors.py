"""The one exception that commands turn into a message and exit code 2."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from dataengine.characters import escape_controls


class InputError(ValueError):
    """What the user gave cannot be used; the message says what is wrong, where, and what to do."""


class DamagedError(InputError):
    """What was stored is not what was written; it may arrive whole when it is fetched again."""


class MissingError(InputError):
    """What was to be there is not."""


class OutageError(InputError):
    """A store fails or does not answer, also after all attempts; it may work again later."""


_PATH = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_ROOM = "What is finished stays: make room, and run the same command again."
_LIMIT = "What is finished stays: raise the limit (ulimit -n), and run the same command again."
_DISK = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EMFILE: _LIMIT,
    errno.ENFILE: "What is finished stays: close other programs, and run the same command again.",
    errno.EROFS: "Choose another place, or make this one writable, and run the same command again.",
    errno.EIO: "The disk fails. What is finished stays: once it is repaired, run the same command again.",
}


def did_you_mean(word: str, known: Collection[str], paths: Mapping[str, str] = MappingProxyType({})) -> str:
    """A hint at the end of what is said of an unknown word: the nearest one that is known; empty if none is near.

    `paths` are words of other places, and what is shown of each if it is nearer than a word with more than a slip.
    """
    shown = {**paths, **{one: one for one in known}}
    slips = difflib.get_close_matches(word, known, n=1, cutoff=0.85)
    close = slips or difflib.get_close_matches(word, list(shown), n=1)
    return f" (did you mean '{shown[close[0]]}'?)" if close else ""


def note(text: str) -> None:
    """Say on stderr what the user may not expect; what it quotes of files cannot command the terminal."""
    print(f"note: {escape_controls(text)}", file=sys.stderr, flush=True)


def message_of(error: InputError) -> str:
    """What it says, without the traceback that torch's DataLoader puts before the words of a worker's error."""
    text = str(error)
    for kind in (InputError, *InputError.__subclasses__()):
        text = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2]
    return text.strip()


def run_command(command: Callable[[], object], *, quiet: bool = False) -> int:
    """Run a command; return its exit code: 0, or 2 after a one-paragraph message on stderr, without traceback.

    `quiet` leaves the message to another rank of the same run. A full disk and a path that cannot be used are messages,
    too, wherever they are met.
    """
    try:
        command()
    except InputError as error:
        if not quiet:
            print(f"error: {escape_controls(message_of(error))}", file=sys.stderr, flush=True)
        return 2
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch.distributed.checkpoint's CheckpointException is no Exception
        words = describe_disk(error)
        if words is None and isinstance(error, OSError) and error.errno in _PATH and error.filename:
            words = f"cannot use {os.fspath(error.filename)}: {error.strerror}. Check the path and its permissions."
        if words is None:
            raise
        print(f"error: {escape_controls(words)}", file=sys.stderr, flush=True)  # the other ranks may not have met it
        return 2
    return 0


@contextmanager
def naming(place: str | os.PathLike[str]) -> Iterator[None]:
    """What is written in the block lies at `place`: say so in an error of the disk that names no file."""
    try:
        yield
    except BaseException as error:  # torch.distributed.checkpoint's CheckpointException is no Exception
        for fault in _disk_faults(error):
            if fault.filename is None:
                fault.filename = os.fspath(place)
        compiled = re.search(r"\(os error (\d+)\)", str(error))  # safetensors is Rust, which makes no OSError
        if compiled and int(compiled[1]) in _DISK and not isinstance(error, OSError):
            raise OSError(int(compiled[1]), os.strerror(int(compiled[1])), os.fspath(place)) from error
        raise


def describe_disk(error: BaseException) -> str | None:
    """What to do about an error that comes from a full, failing or read-only disk or too many open files; None for
    others."""
    for fault in _disk_faults(error):
        place = f": {fault.filename}" if fault.filename else ""
        return f"{fault.strerror}{place}. {_DISK[fault.errno or 0]}"
    return None


def _disk_faults(error: BaseException) -> Iterator[OSError]:
    """The errors of the disk that an error is, comes from or gathers."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in _DISK:
            yield one
        waiting += [one.__cause__, one.__context__]
        failures = getattr(one, "failures", None)  # torch.distributed.checkpoint: rank -> (error, traceback)
        if isinstance(failures, Mapping):
            waiting += [failure[0] for failure in failures.values()]
