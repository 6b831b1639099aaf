from __future__ import annotations

import errno
import signal
import threading
import time

import pytest

from trainer.training.beside import Beside


def test_an_action_waits_for_the_one_before() -> None:
    done: list[str] = []
    beside, opened = Beside(lambda: None), threading.Event()

    def first() -> None:
        opened.wait()
        done.append("first")

    beside.start(first)
    assert done == []  # nobody waits for it
    threading.Timer(0.05, opened.set).start()
    beside.start(lambda: done.append("second"))
    beside.wait()
    assert done == ["first", "second"]
    beside.wait()  # there is nothing to wait for


class WorseError(BaseException):
    """Not an Exception, as the error of torch.distributed.checkpoint."""


@pytest.mark.parametrize("kind", [OSError, WorseError])
def test_an_error_asks_for_a_stop_and_is_raised_once_where_it_is_waited_for(kind: type[BaseException]) -> None:
    asked = threading.Event()
    beside = Beside(asked.set)

    def fail() -> None:
        raise kind("the disk is gone")

    beside.start(fail)
    assert asked.wait(10)
    with pytest.raises(kind, match="the disk is gone"):
        beside.start(lambda: None)
    beside.wait()


def test_an_error_that_another_one_hides_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    beside = Beside(lambda: None)

    def fail() -> None:
        raise WorseError("ranks: [0]\nTraceback") from OSError(errno.ENOSPC, "No space left on device", "run/a")

    beside.start(fail)
    beside.settle()
    assert "the last checkpoint was not finished: No space left on device: run/a. Finished" in caplog.text
    beside.start(lambda: time.sleep(0.2))
    beside.settle(0.01)
    assert "the last checkpoint was not finished: TimeoutError" in caplog.text
    beside.settle()  # it was only late


def test_an_action_is_waited_for_again_after_a_signal_that_raises() -> None:
    """As the signal of a loader's worker that died does, while a step waits for the checkpoint before."""
    done: list[bool] = []
    beside, opened = Beside(lambda: None), threading.Event()

    def write() -> None:
        opened.wait()
        done.append(True)

    def interrupt(number: int, frame: object) -> None:
        raise RuntimeError("a worker died")

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        beside.start(write)
        threading.Timer(0.05, signal.pthread_kill, [threading.get_ident(), signal.SIGUSR1]).start()
        with pytest.raises(RuntimeError, match="a worker died"):
            beside.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    opened.set()
    beside.settle()
    assert done
