"""Bring checkpoints to a run's bucket while training goes on. Needs neither torch nor Composer.

Each rank has an Uploader: one thread, whose queue are checkpoints that lie finished on this disk. It uploads the rank's
own files; on global rank 0 it then waits until the bucket has the files of all ranks, and puts the marker last. What a
killed process leaves undone lies on the disk still, and `resume_uploads` queues it again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from functools import partial
from typing import TypeVar

from dataengine.errors import InputError, MissingError
from dataengine.storage.retry import retry
from dataengine.storage.s3 import abort_uploads
from trainer.checkpoints.find import all_checkpoints, listed_files
from trainer.checkpoints.marker import MARKER, Checkpoint, checkpoint_folder, checkpoint_key
from trainer.checkpoints.retention import remove_copies, remove_old, set_aside_in_bucket
from trainer.run.folder import SMALL_FILES, Run

log = logging.getLogger(__name__)

_SAY_S = 30  # seconds between lines of a log that say the same
_LOOK_S = 1.0  # between looks for what other ranks put
_ABANDONED = timedelta(days=1)  # an upload in parts that is older is of a dead process

T = TypeVar("T")


class Uploader:
    """Uploads checkpoints of one rank in a thread of its own, an older one before a newer one.

    `keep`: checkpoints that stay in the bucket (None: all); `tidy`: whether this process, one of its node, removes the
    node's copies that are older than the newest checkpoint in the bucket. What fails is tried again until nothing has
    worked for `outage_limit_s` seconds; then `failure` says so and nothing more is uploaded or removed.
    """

    def __init__(self, run: Run, *, outage_limit_s: float = 3600.0, keep: int | None = None, tidy: bool = True) -> None:
        if run.store is None:
            raise ValueError(f"{run.url} is a folder: nothing is uploaded")
        self._run, self._store = run, run.store
        self._limit_s, self._keep, self._tidy = outage_limit_s, keep, tidy
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]]] = queue.SimpleQueue()  # what, and how
        self._changed = threading.Condition()
        self._pending = 0  # jobs that are not finished
        self._untidied: int | None = None  # newest step uploaded by a rank that does not put the marker
        self._said = -float("inf")
        self.failure: str | None = None  # what went wrong, once that was given up
        threading.Thread(target=self._work, name="uploads", daemon=True).start()

    def submit(
        self, step: int, own_files: Collection[str], all_files: Mapping[str, int], marker: bytes | None = None
    ) -> None:
        """Queue a checkpoint that is whole on this disk; does not wait.

        `own_files`: names that this rank uploads; `all_files`: name -> bytes, of all ranks; `marker`: content of
        COMPLETE.json on the one rank that completes the checkpoint.
        """
        self._enqueue(f"step {step:,}", partial(self._upload, step, own_files, all_files, marker))

    def publish(self) -> None:
        """Queue the run's log, config and manifest as they are then; does not wait."""
        self._enqueue("the log", self._publish)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until all is uploaded, with a line in the log now and then.

        Raises InputError if it was given up or takes longer than `timeout_s`; the files stay on this disk then.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._pending and self.failure is None:
                left = _SAY_S if deadline is None else min(_SAY_S, deadline - time.monotonic())
                if left <= 0:
                    raise InputError(
                        f"{self._pending} uploads to {self._run.url} were not finished after {timeout_s:g} s. "
                        f"The checkpoints are in {self._run.folder}; the same command uploads them when it starts."
                    )
                if not self._changed.wait(left) and left == _SAY_S:
                    log.info("waiting for %d uploads to %s", self._pending, self._run.url)
        if self.failure is not None:
            raise InputError(self.failure)

    def _enqueue(self, what: str, action: Callable[[], None]) -> None:
        with self._changed:
            self._pending += 1
        self._jobs.put((what, action))

    def _work(self) -> None:
        """The thread: one job after another until one is given up."""
        while True:
            try:
                what, action = self._jobs.get(timeout=None if self._untidied is None else _LOOK_S)
            except queue.Empty:
                self._look_for_marker()
                continue
            try:
                action()
            except Exception as error:  # given up, or a bug of ours: neither may pass unseen in a thread
                if not isinstance(error, InputError):
                    log.exception("an upload to %s failed", self._run.url)
                with self._changed:
                    self.failure = (
                        f"{what} could not be uploaded to {self._run.url}: {error or type(error).__name__} The "
                        f"checkpoints are in {self._run.folder}; the same command uploads them when it starts."
                    )
                    self._changed.notify_all()
                log.error("%s", self.failure)
                return
            with self._changed:
                self._pending -= 1
                self._changed.notify_all()

    def _upload(
        self, step: int, own_files: Collection[str], all_files: Mapping[str, int], marker: bytes | None
    ) -> None:
        key, begun = checkpoint_key(step), time.monotonic()
        for name in own_files:
            path = checkpoint_folder(self._run.folder, step) / name
            if not path.is_file():
                raise MissingError(f"{path} is gone.")
            self._attempt(partial(self._store.write_from, f"{key}/{name}", path))
        if marker is None:
            self._untidied = step if self._tidy else None
            return
        self._wait_for_files(step, all_files)
        self._publish()
        self._attempt(partial(self._store.write, f"{key}/{MARKER}", marker))
        log.info("step %d is in %s, %.0f s after it was queued here", step, self._run.url, time.monotonic() - begun)
        try:
            if self._tidy:
                remove_copies(self._run, step)
            remove_old(self._run, self._keep)
        except (InputError, OSError) as error:  # the checkpoint is safe; what is left goes with the next one
            log.warning("cannot remove old checkpoints of %s now: %s", self._run.url, error)

    def _publish(self) -> None:
        for name in SMALL_FILES:
            path = self._run.folder / name
            if path.is_file():
                self._attempt(partial(self._store.write, name, path.read_bytes()))  # read at once: the log grows

    def _wait_for_files(self, step: int, all_files: Mapping[str, int]) -> None:
        """Until the bucket has the files of all ranks. Raises MissingError if none arrives for as long as the limit."""
        key, latest, before = checkpoint_key(step), time.monotonic(), -1
        while True:
            sizes = self._attempt(partial(self._store.sizes, key))
            missing = [name for name, size in all_files.items() if sizes.get(f"{key}/{name}") != size]
            if not missing:
                return
            if len(missing) != before:
                latest, before = time.monotonic(), len(missing)
            if time.monotonic() - latest > self._limit_s:
                raise MissingError(
                    f"{len(missing)} of {len(all_files)} files of other ranks did not arrive ({missing[0]})."
                )
            self._say("step %d: waiting for %d files of other ranks", step, len(missing))
            time.sleep(_LOOK_S)

    def _attempt(self, action: Callable[[], T]) -> T:
        """Do something with the bucket; while that fails, also by a refusal, try again as long as the limit allows."""
        failed: list[float] = []

        def wait(error: BaseException, elapsed_s: float) -> None:
            failed.append(time.monotonic())
            self._say("%s Trying again for %.0f s; training goes on.", error, self._limit_s - elapsed_s)

        done = retry(action, outage_limit=self._limit_s, outages=(InputError, OSError), on_failure=wait)
        if failed:
            log.info("%s works again after %.0f s", self._run.url, time.monotonic() - failed[0])
        return done

    def _look_for_marker(self) -> None:
        """Of a node that does not put markers: once the newest checkpoint is complete, remove older copies."""
        step = self._untidied
        assert step is not None
        try:
            if self._store.size(f"{checkpoint_key(step)}/{MARKER}") is None:
                return
            remove_copies(self._run, step)
        except (InputError, OSError) as error:  # tried again at the next look
            self._say("cannot remove old copies in %s yet: %s", self._run.folder, error)
            return
        self._untidied = None

    def _say(self, message: str, *words: object) -> None:
        if time.monotonic() - self._said >= _SAY_S:
            self._said = time.monotonic()
            log.warning(message, *words)


def resume_uploads(
    run: Run, uploader: Uploader, checkpoint: Checkpoint | None, share: int = 0, shares: int = 1
) -> None:
    """Queue what an earlier process left here and did not upload, up to the checkpoint that this one resumes from.

    Call it on every rank of a node before training, after all agreed on `checkpoint` (None: the run starts at 0).
    Each takes files number `share`, `share + shares` ...; number 0 puts the markers. What a node has only in parts is
    not queued.
    """
    assert run.store is not None
    last = checkpoint.step if checkpoint else 0
    earlier = [complete for complete in all_checkpoints(run) if complete.step <= last]
    uploaded = max((complete.step for complete in earlier if complete.key), default=0)
    for left in earlier:
        if left.local and not left.key and left.step > uploaded:
            own = sorted(left.files)[share::shares]
            marker = (left.folder / MARKER).read_bytes() if share == 0 else None
            uploader.submit(left.step, own, left.files, marker)
            if share == 0:
                log.info("%s is not in %s yet; uploading it", left.folder, run.url)


def clear_bucket(run: Run, checkpoint: Checkpoint | None) -> None:
    """Make room in the bucket for what this run will write anew. Call it on one rank, before training.

    Checkpoints without a marker go, unless they are whole on this disk; finished ones later than `checkpoint`, which
    were passed over, are set aside, for they may be whole; parts of uploads that were cut short more than a day ago go.
    Else a file of an earlier attempt could pass for one of a later attempt. Raises InputError if the bucket cannot be
    read or written.
    """
    assert run.store is not None
    last = checkpoint.step if checkpoint else 0
    whole = {complete.step for complete in all_checkpoints(run) if complete.local}
    for step, files in listed_files(run.store).items():
        if step > last or (MARKER not in files and step not in whole):
            set_aside_in_bucket(run.store, step)
    try:
        abort_uploads(run.store, _ABANDONED)
    except InputError as error:  # it costs room, nothing else
        log.warning("cannot look for uploads that were cut short: %s", error)
