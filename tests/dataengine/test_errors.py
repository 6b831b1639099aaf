"""What commands turn into a message, and what stays a traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from dataengine.errors import (
    DamagedError,
    InputError,
    MissingError,
    OutageError,
    message_of,
    naming,
    note,
    run_command,
)


class GatheredError(BaseException):
    """As torch.distributed.checkpoint raises them."""

    def __init__(self, failures: dict[int, tuple[BaseException, str]]) -> None:
        super().__init__("on some ranks")
        self.failures = failures


def fail(error: BaseException) -> None:
    raise error


def full(place: str | None = None) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)


def test_what_the_user_can_fix_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: None) == 0
    assert run_command(lambda: fail(InputError("this"))) == 2
    assert run_command(lambda: fail(InputError("that")), quiet=True) == 2
    assert capsys.readouterr().err == "error: this\n"


def test_a_full_disk_is_reported_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    def wrapped() -> None:
        try:
            raise full("a/b")
        except OSError as error:
            raise RuntimeError("failed writing") from error

    for command in (
        lambda: fail(full("a/b")),
        wrapped,
        lambda: fail(GatheredError({1: (full("a/b"), "traceback")})),
    ):
        assert run_command(command, quiet=True) == 2
        assert capsys.readouterr().err == (
            "error: No space left on device: a/b. Finished work is kept: free some space, and run the same command "
            "again.\n"
        )


def test_a_path_that_cannot_be_used_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_command(tmp_path.read_bytes) == 2
    assert (
        capsys.readouterr().err
        == f"error: cannot use {tmp_path}: Is a directory. Check the path and its permissions.\n"
    )


def test_an_error_of_a_loader_worker_is_reported_without_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    class Refuses(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            raise InputError("shard 3 is damaged.\nRestore it.")

        def __len__(self) -> int:
            return 1

    assert run_command(lambda: list(DataLoader(Refuses(), num_workers=1))) == 2
    assert capsys.readouterr().err == "error: shard 3 is damaged.\nRestore it.\n"


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no"), RuntimeError("a defect"), KeyError("x")])
def test_a_defect_stays_a_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command(lambda: fail(error))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EROFS, "Choose another place, or make this one writable, and run"),
        (errno.EMFILE, "Finished work is kept: raise the limit (ulimit -n), and run"),
        (errno.EDQUOT, "Finished work is kept: free some space, and run"),
        (errno.EIO, "The disk fails. Finished work is kept: repair the disk, and run"),
    ],
)
def test_the_advice_is_that_of_the_error(number: int, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: fail(OSError(number, os.strerror(number), "a/b"))) == 2
    assert capsys.readouterr().err == f"error: {os.strerror(number)}: a/b. {advice} the same command again.\n"


def test_what_a_message_quotes_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: fail(InputError("a\x1b[2J\r\n\tb \u202e \udcff"))) == 2
    assert run_command(lambda: fail(PermissionError(errno.EACCES, "no", "a\x1b"))) == 2
    note("c\x07")
    assert capsys.readouterr().err == (
        "error: a\\x1b[2J\\r\n\tb \\u202e \\udcff\n"
        "error: cannot use a\\x1b: no. Check the path and its permissions.\n"
        "note: c\\x07\n"
    )


def test_what_an_error_of_the_disk_does_not_name_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        with naming("run/log.csv"), open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    def write_by_rust() -> None:
        with naming("run/model.safetensors"):
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    def gather() -> None:
        with naming("run/checkpoints"):
            raise GatheredError({1: (full(), "traceback")})

    def write_elsewhere() -> None:
        with naming("run"):
            raise full("a/b")

    for command, place in (
        (write, "run/log.csv"),
        (write_by_rust, "run/model.safetensors"),
        (gather, "run/checkpoints"),
        (write_elsewhere, "a/b"),
    ):
        assert run_command(command) == 2
        assert capsys.readouterr().err.startswith(f"error: No space left on device: {place}. Finished work is kept: ")


@pytest.mark.parametrize("kind", [InputError, DamagedError, MissingError, OutageError])
def test_an_error_of_a_loader_worker_says_its_own_words_alone(kind: type[InputError]) -> None:
    """As torch's DataLoader gives it: the traceback in the message."""
    trace = f'Caught {kind.__name__} in DataLoader worker process 0.\nTraceback (most recent call last):\n  File "x.py"'
    assert message_of(kind(f"{trace}\ndataengine.errors.{kind.__name__}: shard 3 is gone.\n")) == "shard 3 is gone."
    assert message_of(kind("shard 3 is gone.")) == "shard 3 is gone."
