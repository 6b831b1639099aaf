"""Errors for unusable input: commands print them without a traceback and exit with code 2."""

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
    """The input cannot be used. The message says what is wrong, where, and what to do."""


class DamagedError(InputError):
    """Stored content differs from what was written. Fetching it again may help."""


class MissingError(InputError):
    """Something that should exist is missing."""


class OutageError(InputError):
    """A store fails or does not answer, after all attempts. It may work again later."""

    wait_s = 0.0  # that the server asks for before another attempt


_PATH = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_ROOM = "Finished work is kept: free some space, and run the same command again."
_LIMIT = "Finished work is kept: raise the limit (ulimit -n), and run the same command again."
_DISK = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EMFILE: _LIMIT,
    errno.ENFILE: "Finished work is kept: close other programs, and run the same command again.",
    errno.EROFS: "Choose another place, or make this one writable, and run the same command again.",
    errno.EIO: "The disk fails. Finished work is kept: repair the disk, and run the same command again.",
}


def stream_key(name: str) -> str:
    """The key of a stream in a config; of a stream of an entry, such as bitext/en-zh, the key of the entry."""
    return f"streams.{name.partition('/')[0]}"


def did_you_mean(word: str, known: Collection[str], paths: Mapping[str, str] = MappingProxyType({})) -> str:
    """A hint for the end of a message about an unknown word: the nearest known word, or "" if none is near.

    `paths` maps words of other places to how they are shown. A known word with a single slip comes before them.
    """
    shown = {**paths, **{name: name for name in known}}
    slips = difflib.get_close_matches(word, known, n=1, cutoff=0.85)
    close = slips or difflib.get_close_matches(word, list(shown), n=1)
    return f" (did you mean '{shown[close[0]]}'?)" if close else ""


def note(text: str) -> None:
    """Print a note on stderr. Control characters are escaped, so that quoted text cannot control the terminal."""
    print(f"note: {escape_controls(text)}", file=sys.stderr, flush=True)


def message_of(error: InputError) -> str:
    """The message of an error, without the traceback that torch's DataLoader adds to the error of a worker."""
    text = str(error)
    for kind in (InputError, *InputError.__subclasses__()):
        text = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2]
    return text.strip()


def run_command(command: Callable[[], object], *, quiet: bool = False) -> int:
    """Run a command. Return its exit code: 0, or 2 after a message on stderr, without a traceback.

    With `quiet`, another rank of the same run prints the message. Full disks and unusable paths give a message, too,
    wherever they occur.
    """
    try:
        command()
    except InputError as error:
        if not quiet:
            print(f"error: {escape_controls(message_of(error))}", file=sys.stderr, flush=True)
        return 2
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch.distributed.checkpoint's CheckpointException is not an Exception
        words = describe_disk(error)
        if words is None and isinstance(error, OSError) and error.errno in _PATH and error.filename:
            words = f"cannot use {os.fspath(error.filename)}: {error.strerror}. Check the path and its permissions."
        if words is None:
            raise
        print(f"error: {escape_controls(words)}", file=sys.stderr, flush=True)  # other ranks may not have this error
        return 2
    return 0


@contextmanager
def naming(place: str | os.PathLike[str]) -> Iterator[None]:
    """Add `place` to disk errors that are raised in the block and name no file."""
    try:
        yield
    except BaseException as error:  # torch.distributed.checkpoint's CheckpointException is not an Exception
        for fault in _disk_faults(error):
            if fault.filename is None:
                fault.filename = os.fspath(place)
        compiled = re.search(r"\(os error (\d+)\)", str(error))  # safetensors is Rust, which makes no OSError
        if compiled and int(compiled[1]) in _DISK and not isinstance(error, OSError):
            raise OSError(int(compiled[1]), os.strerror(int(compiled[1])), os.fspath(place)) from error
        raise


def describe_disk(error: BaseException) -> str | None:
    """A message for an error caused by a full, failing or read-only disk, or by too many open files; None for other
    errors."""
    for fault in _disk_faults(error):
        place = f": {fault.filename}" if fault.filename else ""
        return f"{fault.strerror}{place}. {_DISK[fault.errno or 0]}"
    return None


def _disk_faults(error: BaseException) -> Iterator[OSError]:
    """The disk errors among an error, its causes and the errors that it collects."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        candidate = waiting.pop()
        if candidate is None or id(candidate) in seen:
            continue
        seen.add(id(candidate))
        if isinstance(candidate, OSError) and candidate.errno in _DISK:
            yield candidate
        waiting += [candidate.__cause__, candidate.__context__]
        failures = getattr(candidate, "failures", None)  # torch.distributed.checkpoint: rank -> (error, traceback)
        if isinstance(failures, Mapping):
            waiting += [failure[0] for failure in failures.values()]
