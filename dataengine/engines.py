"""Run work units in processes of this machine, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from tqdm import tqdm

from dataengine.units import Receipt, Unit, run_unit

_progress: Synchronized[int]  # bytes of input read by all workers; set in each worker by _start_worker


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0))


def run_units(units: Sequence[Unit], folder: Path, *, workers: int, title: str) -> list[Receipt]:
    """Run units, the largest first, and return their receipts in the order given.

    The first error ends the run; units that are finished by then stay, and the next build takes them up.
    """
    if not units:
        return []
    context = multiprocessing.get_context("spawn")
    counter: Synchronized[int] = context.Value("q", 0)
    largest_first = sorted(range(len(units)), key=lambda k: -units[k].input_bytes)
    pool = ProcessPoolExecutor(
        min(workers, len(units)), context, initializer=_start_worker, initargs=(counter, os.getpid())
    )
    bar = tqdm(
        total=sum(unit.input_bytes for unit in units), desc=title, unit="B", unit_scale=True, file=sys.stderr,
        disable=None,  # no bar where stderr is no terminal
    )  # fmt: skip
    with pool, bar:
        futures: dict[Future[Receipt], int] = {pool.submit(_run_in_worker, units[k], folder): k for k in largest_first}
        receipts: dict[int, Receipt] = {}
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.update(counter.value - bar.n)
            for future in done:
                try:
                    receipts[futures[future]] = future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            tokens = sum(receipt.tokens for receipt in receipts.values())
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9) / 1e6:.2f}M tokens/s")
    return [receipts[k] for k in range(len(units))]


def _start_worker(counter: Synchronized[int], parent: int) -> None:
    global _progress
    _progress = counter
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker soon after its parent, which a SIGKILL leaves no time to stop it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run_in_worker(unit: Unit, folder: Path) -> Receipt:
    return run_unit(unit, folder, _count_bytes)


def _count_bytes(count: int) -> None:
    with _progress.get_lock():
        _progress.value += count
