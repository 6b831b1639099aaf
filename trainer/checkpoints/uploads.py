"""Upload checkpoints to a run's bucket in the background. Needs neither torch nor Composer.

Each rank has an Uploader: one thread with a queue of checkpoints that are complete on the local disk. It uploads the
rank's own files. On global rank 0 it then waits until the bucket has the files of all ranks, and writes the marker
last. `resume_uploads` queues again what a killed process left on the disk.
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

_SAY_S = 30  # seconds between equal log lines
_LOOK_S = 1.0  # between checks for the files of other ranks
_ABANDONED = timedelta(days=1)  # an older multipart upload belongs to a dead process

T = TypeVar("T")


class Uploader:
    """Uploads the checkpoints of one rank in a thread, oldest first.

    `keep`: the number of checkpoints to keep in the bucket (None: all). `tidy`: whether this process, one per node,
    removes local copies older than the newest checkpoint in the bucket. Failed operations are retried until none has
    succeeded for `outage_limit_s` seconds. Then `failure` is set, and nothing more is uploaded or removed.
    """

    def __init__(self, run: Run, *, outage_limit_s: float = 3600.0, keep: int | None = None, tidy: bool = True) -> None:
        if run.store is None:
            raise ValueError(f"{run.url} is a folder: there is nothing to upload")
        self._run, self._store = run, run.store
        self._limit_s, self._keep, self._tidy = outage_limit_s, keep, tidy
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]]] = queue.SimpleQueue()  # description and action
        self._changed = threading.Condition()
        self._pending = 0  # jobs that are not finished
        self._untidied: int | None = None  # newest step uploaded by a rank that does not write the marker
        self._said = -float("inf")
        self.failure: str | None = None  # the error after which uploads stopped
        threading.Thread(target=self._work, name="uploads", daemon=True).start()

    def submit(
        self, step: int, own_files: Collection[str], all_files: Mapping[str, int], marker: bytes | None = None
    ) -> None:
        """Queue a checkpoint that is complete on the local disk; does not wait.

        `own_files`: names that this rank uploads. `all_files`: name -> bytes, of all ranks. `marker`: content of
        COMPLETE.json, on the one rank that completes the checkpoint.
        """
        self._enqueue(f"step {step:,}", partial(self._upload, step, own_files, all_files, marker))

    def publish(self) -> None:
        """Queue the run's log, config and manifest; does not wait. Their content is read when they are uploaded."""
        self._enqueue("the log", self._publish)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until everything is uploaded, with a log line every 30 seconds.

        Raises InputError if uploads stopped or take longer than `timeout_s`. The files stay on the local disk.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._pending and self.failure is None:
                left = _SAY_S if deadline is None else min(_SAY_S, deadline - time.monotonic())
                if left <= 0:
                    raise InputError(
                        f"{self._pending} uploads to {self._run.url} are not finished after {timeout_s:g} s. "
                        f"The checkpoints are in {self._run.folder}; run the same command again to upload them."
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
        """Run the thread: one job after another until one fails for good."""
        while True:
            try:
                what, action = self._jobs.get(timeout=None if self._untidied is None else _LOOK_S)
            except queue.Empty:
                self._look_for_marker()
                continue
            try:
                action()
            except Exception as error:  # a final failure or a bug: neither may go unnoticed in a thread
                if not isinstance(error, InputError):
                    log.exception("an upload to %s failed", self._run.url)
                with self._changed:
                    self.failure = (
                        f"{what} could not be uploaded to {self._run.url}: {error or type(error).__name__} The "
                        f"checkpoints are in {self._run.folder}; run the same command again to upload them."
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
        log.info("step %d is in %s, %.0f s after it was queued", step, self._run.url, time.monotonic() - begun)
        try:
            if self._tidy:
                remove_copies(self._run, step)
            remove_old(self._run, self._keep)
        except (InputError, OSError) as error:  # the checkpoint is safe; the next one tries again
            log.warning("cannot remove old checkpoints of %s now: %s", self._run.url, error)

    def _publish(self) -> None:
        for name in SMALL_FILES:
            path = self._run.folder / name
            if path.is_file():
                self._attempt(partial(self._store.write, name, path.read_bytes()))  # read in one go: the log grows

    def _wait_for_files(self, step: int, all_files: Mapping[str, int]) -> None:
        """Wait until the bucket has the files of all ranks. Raises MissingError if none arrives within the limit."""
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
        """Run an action on the bucket; retry errors and refusals within the limit."""
        failed: list[float] = []

        def wait(error: BaseException, elapsed_s: float) -> None:
            failed.append(time.monotonic())
            self._say("%s Retrying for %.0f s; training continues.", error, self._limit_s - elapsed_s)

        done = retry(action, outage_limit=self._limit_s, outages=(InputError, OSError), on_failure=wait)
        if failed:
            log.info("%s works again after %.0f s", self._run.url, time.monotonic() - failed[0])
        return done

    def _look_for_marker(self) -> None:
        """On a node that does not write markers: remove older copies once the newest checkpoint is complete."""
        step = self._untidied
        assert step is not None
        try:
            if self._store.size(f"{checkpoint_key(step)}/{MARKER}") is None:
                return
            remove_copies(self._run, step)
        except (InputError, OSError) as error:  # retried at the next check
            self._say("cannot remove old copies in %s now: %s", self._run.folder, error)
            return
        self._untidied = None

    def _say(self, message: str, *words: object) -> None:
        if time.monotonic() - self._said >= _SAY_S:
            self._said = time.monotonic()
            log.warning(message, *words)


def resume_uploads(
    run: Run, uploader: Uploader, checkpoint: Checkpoint | None, share: int = 0, shares: int = 1
) -> None:
    """Queue local checkpoints that an earlier process did not upload, up to the one that this process resumes from.

    Call it on every rank of a node before training, after all ranks agreed on `checkpoint` (None: the run starts at 0).
    Each rank takes files number `share`, `share + shares` ...; number 0 writes the markers. Checkpoints that a node has
    only in part are not queued.
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
    """Clear the bucket for the checkpoints that this run will write. Call it on one rank, before training.

    Removes checkpoints without a marker, unless they are complete on the local disk. Renames finished ones later than
    `checkpoint`, which were passed over but may be whole. Removes multipart uploads that ended more than a day ago.
    Otherwise a file of an earlier attempt could be taken for one of a later attempt. Raises InputError if the bucket
    cannot be read or written.
    """
    assert run.store is not None
    last = checkpoint.step if checkpoint else 0
    whole = {complete.step for complete in all_checkpoints(run) if complete.local}
    for step, files in listed_files(run.store).items():
        if step > last or (MARKER not in files and step not in whole):
            set_aside_in_bucket(run.store, step)
    try:
        abort_uploads(run.store, _ABANDONED)
    except InputError as error:  # costs only space
        log.warning("cannot look for unfinished uploads: %s", error)
