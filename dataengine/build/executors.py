"""Run the units of a round: in processes on this machine, on a Ray cluster, or one slice of them in a job array.

Every engine gives the same bytes, because a unit does not know which engine runs it. Finished units are reused.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Protocol

from tqdm import tqdm

from dataengine.build.finished import find_finished, forget_units
from dataengine.build.units import Receipt, Unit, run_unit, run_units
from dataengine.errors import InputError
from dataengine.storage.store import Store

_progress: Synchronized[int]  # input bytes read by all workers; _start_worker sets it in each worker

_IN_FLIGHT = 4  # tasks submitted for each processor
_TASK_BYTES = 64 << 20  # input of the units that a task runs, at most; a larger unit has a task of its own
_TASK_UNITS = 256
_POLL_SECONDS = 2.0  # of Ray
_RAY_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": loopback is this node's address, as Ray does on macOS
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0  # of a slice that waits for others


Needed = Callable[[], bool]  # whether a unit still needs the files that earlier ones left for it


class Engine(Protocol):
    """Where units run."""

    def run(self, units: Sequence[Unit], store: Store, title: str, *, needed: Needed | None = None) -> list[Receipt]:
        """Run the unfinished units of a round; return the receipts of all units in order.

        The first error ends the run. Finished units stay, and the next build reuses them. With `needed`, units whose
        files for later units are removed count as unfinished, as long as it is true.
        """
        ...


def default_workers() -> int:
    """The processors this process may use; all of the machine where the system does not say, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Progress:
    """A progress bar of input bytes with tokens per second, if stderr is a terminal."""

    def __init__(self, units: Sequence[Unit], done: dict[int, Receipt], title: str) -> None:
        self._bytes = [unit.input_bytes for unit in units]
        self._tokens = 0
        total, before = sum(self._bytes), sum(self._bytes[k] for k in done)
        self._bar = tqdm(
            desc=title,
            total=total,
            initial=before,
            unit="B",
            unit_scale=True,
            smoothing=0.05,
            file=sys.stderr,
            disable=None,
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def read(self, count: int) -> None:
        self._bar.update(count)

    def finished(self, receipt: Receipt) -> None:
        self._tokens += receipt.tokens
        if self._tokens:
            seconds = max(self._bar.format_dict["elapsed"], 1e-9)
            self._bar.set_postfix_str(f"{self._tokens / seconds / 1e6:.2f}M tokens/s", refresh=False)


class _Tasks:
    """Units left to run, the largest first, in tasks of several small ones.

    The tasks become smaller towards the end, so that all processors end at about the same time.
    """

    def __init__(self, units: Sequence[Unit], left: Iterable[int]) -> None:
        self._sizes = {k: units[k].input_bytes for k in left}
        self._left = sorted(self._sizes, key=lambda k: self._sizes[k])
        self._bytes = sum(self._sizes.values())

    def __len__(self) -> int:
        return len(self._left)

    def take(self, processors: int) -> list[int]:
        """The numbers of the units of the next task; at least one must be left."""
        shares = _IN_FLIGHT * processors
        most, room = min(_TASK_UNITS, -(-len(self._left) // shares)), min(_TASK_BYTES, self._bytes // shares)
        task: list[int] = []
        while self._left and (not task or (len(task) < most and self._sizes[self._left[-1]] <= room)):
            task.append(self._left.pop())
            room -= self._sizes[task[-1]]
            self._bytes -= self._sizes[task[-1]]
        return task


def _begin(units: Sequence[Unit], store: Store, *, whole: bool) -> tuple[dict[int, Receipt], _Tasks]:
    """The receipts of the finished units, and the units left to run, without their receipts."""
    finished = find_finished(dict(enumerate(units)), store, whole=whole)
    forget_units(finished.gone.values(), store)
    return finished.receipts, _Tasks(units, (k for k in range(len(units)) if k not in finished.receipts))


@dataclass(frozen=True)
class LocalEngine:
    """Processes on this machine, the largest units first. With one worker, this process."""

    workers: int

    def run(self, units: Sequence[Unit], store: Store, title: str, *, needed: Needed | None = None) -> list[Receipt]:
        receipts, left = _begin(units, store, whole=needed is not None)
        if left:
            with _Progress(units, receipts, title) as progress:
                alone = min(self.workers, len(left)) == 1
                results = (
                    self._here(units, left, store, progress) if alone else self._pool(units, left, store, progress)
                )
                for k, receipt in results:
                    receipts[k] = receipt
                    progress.finished(receipt)
        return [receipts[k] for k in range(len(units))]

    def _here(
        self, units: Sequence[Unit], left: _Tasks, store: Store, progress: _Progress
    ) -> Iterator[tuple[int, Receipt]]:
        while left:
            for k in left.take(1):
                yield k, run_unit(units[k], store, progress.read)

    def _pool(
        self, units: Sequence[Unit], left: _Tasks, store: Store, progress: _Progress
    ) -> Iterator[tuple[int, Receipt]]:
        context = multiprocessing.get_context("spawn")
        counter: Synchronized[int] = context.Value("q", 0)
        reported = 0
        workers = min(self.workers, len(left))
        in_flight: dict[Future[list[Receipt]], list[int]] = {}

        def submit() -> None:
            while left and len(in_flight) < _IN_FLIGHT * workers:
                task = left.take(workers)
                in_flight[pool.submit(_run_in_worker, [units[k] for k in task], store)] = task

        with ProcessPoolExecutor(workers, context, _start_worker, (counter, os.getpid())) as pool:
            with _ignoring_interrupts():  # workers inherit this until they have started
                submit()
            try:
                while in_flight:
                    done, _ = wait(in_flight, timeout=0.5, return_when=FIRST_COMPLETED)
                    read = counter.get_obj().value  # without its lock, which a worker may have held when it was killed
                    progress.read(read - reported)
                    reported = read
                    for future in done:
                        yield from zip(in_flight.pop(future), future.result(), strict=True)
                    submit()
            except BaseException as error:  # also Ctrl-C: waiting units do not start, running ones leave nothing
                for process in multiprocessing.active_children():
                    process.terminate()  # the pool then counts as broken, and has ended when this block is left
                if isinstance(error, BrokenProcessPool):
                    raise InputError(
                        "a worker process died, perhaps because memory ran out. Finished work is kept. Run the same "
                        "command again, with fewer --workers if memory is short."
                    ) from None
                raise


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker(counter: Synchronized[int], parent: int) -> None:
    global _progress
    _progress = counter
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C also reaches workers; they end without a traceback
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker soon after its parent: a parent that gets SIGKILL cannot stop it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run_in_worker(units: Sequence[Unit], store: Store) -> list[Receipt]:
    return run_units(units, store, _count_bytes)


def _count_bytes(count: int) -> None:
    with _progress.get_lock():
        _progress.value += count


@dataclass(frozen=True)
class RayEngine:
    """Tasks on a Ray cluster, one processor each. Only units and receipts travel; tokens go straight to the store.

    If a node is lost, its tasks run again elsewhere. Every node must reach sources, tokenizer and store.
    """

    address: str | None  # None: RAY_ADDRESS, or the cluster of this machine

    def run(self, units: Sequence[Unit], store: Store, title: str, *, needed: Needed | None = None) -> list[Receipt]:
        receipts, left = _begin(units, store, whole=needed is not None)
        if left:
            ray = _connect(self.address)
            run = ray.remote(num_cpus=1, max_retries=3)(run_units)
            in_flight: dict[Any, list[int]] = {}
            with _Progress(units, receipts, title) as progress:
                while left or in_flight:
                    processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
                    while left and len(in_flight) < _IN_FLIGHT * processors:
                        task = left.take(processors)
                        in_flight[run.remote([units[k] for k in task], store)] = task
                    done, _ = ray.wait(list(in_flight), num_returns=1, timeout=_POLL_SECONDS)
                    for reference in done:
                        for k, receipt in zip(in_flight.pop(reference), _result(ray, reference), strict=True):
                            receipts[k] = receipt
                            progress.read(units[k].input_bytes)
                            progress.finished(receipt)
        return [receipts[k] for k in range(len(units))]


def _connect(address: str | None) -> Any:
    _check_address(address)
    if _is_here_alone(address):
        os.environ.setdefault(_RAY_LOOPBACK, "0")
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'dataengine[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address or "auto", log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise InputError(
                f"no Ray cluster at {address or 'RAY_ADDRESS or this machine'}: {error}. "
                "Start one (ray start --head), or name one with --ray-address."
            ) from None
    return ray


def _check_address(address: str | None) -> None:
    """Fail at once if nothing listens at HOST:PORT. Ray would wait for minutes."""
    if (place := _host_and_port(address)) is None:
        return
    try:
        socket.create_connection(place, timeout=5).close()
    except OSError as error:
        raise InputError(
            f"no Ray cluster at {address}: {error}. Start one (ray start --head) or correct --ray-address."
        ) from None


def _host_and_port(address: str | None) -> tuple[str, int] | None:
    host, _, port = (address or "").rpartition(":")
    return (host, int(port)) if host and port.isdigit() and "/" not in host else None


def _is_here_alone(address: str | None) -> bool:
    """Whether a cluster listens on loopback only. Ray takes 127.0.0.1 for the machine's address in the network."""
    if (place := _host_and_port(address)) is None or place[0] not in ("127.0.0.1", "localhost"):
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chosen:
            chosen.connect(("8.8.8.8", 80))  # sends nothing; Ray finds the address in this way
            outside = chosen.getsockname()[0]
        socket.create_connection((outside, place[1]), timeout=5).close()
    except OSError:
        return True
    return False


def _result(ray: Any, reference: Any) -> list[Receipt]:
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise InputError(
            f"a Ray task failed after all retries: {error}. Finished work is kept. Run the same command again."
        ) from None


@dataclass(frozen=True)
class SliceEngine:
    """One slice of the units, for a job array; then wait for the other slices of the round."""

    slice: int  # from 0
    slices: int
    workers: int
    wait_seconds: float  # 0: do not wait

    def run(self, units: Sequence[Unit], store: Store, title: str, *, needed: Needed | None = None) -> list[Receipt]:
        mine = [k for k in range(len(units)) if slice_of(k, self.slices) == self.slice]
        made = LocalEngine(self.workers).run([units[k] for k in mine], store, title, needed=needed)
        receipts = dict(zip(mine, made, strict=True))
        begun, waited = time.monotonic(), 0.0
        left = sorted({*range(len(units))} - receipts.keys(), key=lambda k: -units[k].input_bytes)
        whole = needed is not None
        left = _ask(units, left, receipts, store, whole=whole, at_once=max(len(left), 1))
        while left:
            if needed is not None and not needed():  # others had all, went on, and removed it again
                return replace(self, wait_seconds=self.wait_seconds - waited).run(units, store, title)
            waited = time.monotonic() - begun
            if waited >= self.wait_seconds:
                raise OthersNotDoneError(title, unfinished_slices(units, receipts, self.slices))
            time.sleep(min(_pause(waited), self.wait_seconds - waited))
            ended = time.monotonic() - begun >= self.wait_seconds
            left = _ask(units, left, receipts, store, whole=whole, at_once=len(left) if ended else 1)
        return [receipts[k] for k in range(len(units))]

    def run_alone_after(self, patience_s: float, units: Sequence[Unit], store: Store, title: str) -> list[Receipt]:
        """As `run`, but do the units of other slices here if they are not done when this slice has waited so long."""
        try:
            return replace(self, wait_seconds=min(patience_s, self.wait_seconds)).run(units, store, title)
        except OthersNotDoneError:
            return LocalEngine(self.workers).run(units, store, title)


def _ask(
    units: Sequence[Unit],
    left: list[int],
    receipts: dict[int, Receipt],
    store: Store,
    *,
    whole: bool,
    at_once: int,
) -> list[int]:
    """Add receipts of finished units, from the last of `left` on, until one of those asked for at once is unfinished.

    Return those left. The last ones are the smallest, which finish last. Each time, twice as many are asked for.
    """
    while left:
        asked = left[-at_once:]
        found = find_finished({k: units[k] for k in asked}, store, whole=whole).receipts
        receipts |= found
        left = left[:-at_once] + [k for k in asked if k not in found]
        if len(found) < len(asked):
            break
        at_once *= 2
    return left


def _pause(waited: float) -> float:
    """The seconds until other slices are asked again: longer the longer they took, and random."""
    return min(max(_SHORTEST_PAUSE_S, waited / 8), _LONGEST_PAUSE_S) * random.SystemRandom().uniform(0.75, 1.25)


@dataclass(frozen=True)
class FinishedEngine:
    """Run nothing: all units must be finished."""

    slices: int

    def run(self, units: Sequence[Unit], store: Store, title: str, *, needed: Needed | None = None) -> list[Receipt]:
        receipts = find_finished(dict(enumerate(units)), store, whole=needed is not None).receipts
        if len(receipts) < len(units):
            raise OthersNotDoneError(title, unfinished_slices(units, receipts, self.slices))
        return [receipts[k] for k in range(len(units))]


class OthersNotDoneError(Exception):
    """A round waits for units of other slices: its title, and the number of units left in each slice (from 0)."""

    def __init__(self, title: str, left: dict[int, int]) -> None:
        self.title, self.left = title, left
        super().__init__(title, left)

    @property
    def words(self) -> str:
        """The slices with unfinished units, numbered from 1, and the number of these."""
        return ", ".join(f"{number + 1} ({count:,} units)" for number, count in sorted(self.left.items()))


def slice_of(number: int, slices: int) -> int:
    """The slice of a unit: round robin."""
    return number % slices


def unfinished_slices(units: Sequence[Unit], receipts: dict[int, Receipt], slices: int) -> dict[int, int]:
    """The number of unfinished units in each slice."""
    left: dict[int, int] = {}
    for k in range(len(units)):
        if k not in receipts:
            number = slice_of(k, slices)
            left[number] = left.get(number, 0) + 1
    return left
