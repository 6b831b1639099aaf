"""Work in a thread beside the training, one action at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future

import torch

from dataengine.errors import describe_disk

log = logging.getLogger(__name__)


class Beside:
    """Runs one action at a time in a thread. Its error is raised where the training waits for it.

    `failed` is called in the thread after an error, to let the training wait soon.
    """

    def __init__(self, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._running: Future[None] | None = None

    def start(self, action: Callable[[], None]) -> None:
        """Start an action, after the one before. Raises the error of that one."""
        self.wait()
        self._running = Future()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        arguments = (self._running, action, device)
        threading.Thread(target=self._work, args=arguments, name="checkpoint", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the action, if there is one. Raises its error, once, or TimeoutError.

        A signal may raise here, such as that of a loader's worker that died: the action then still runs.
        """
        if (running := self._running) is not None:
            if not futures.wait([running], timeout_s).done:
                raise TimeoutError
            self._running = None
            running.result()

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait for the action, and log its error: another one ends the training."""
        try:
            self.wait(timeout_s)
        except BaseException as error:  # torch.distributed.checkpoint's CheckpointException is not an Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            words = describe_disk(error) or str(error) or type(error).__name__
            log.error("the last checkpoint was not finished: %s", words)

    def _work(self, running: Future[None], action: Callable[[], None], device: int | None) -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # each thread has its own
            action()
        except BaseException as error:
            running.set_exception(error)
            self._failed()
        else:
            running.set_result(None)
