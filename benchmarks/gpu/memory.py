"""Parts D and E: the memory of a step beside the computed one, and `auto` beside the largest microbatch that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.gpu import expected
from benchmarks.gpu.check import Check
from benchmarks.gpu.processes import ProcessError
from benchmarks.gpu.speed import train
from benchmarks.gpu.table import Figure, Row, figure, near, one_of
from dataengine.hardware.gpus import Gpu

_BATCH = 120  # samples: it has many divisors, which are the sizes that `auto` chooses from
_DIVISORS = [size for size in range(1, _BATCH + 1) if _BATCH % size == 0]


def memory(check: Check) -> Iterator[Row]:
    """Compare the peak of real steps on a mesh of one rank with the computed one."""
    size, computed = check.fitting
    questions = [(16, 8, False), (size, 1, False), (size, 1, True)]
    known, computed, recomputed = check.figures("peaks", large=True, questions=questions)["bytes"]
    source, within = "computed with torch 2.7.0", expected.KNOWN_WITHIN
    yield near("D", "computed for 8 ranks", _gigabytes(known), expected.KNOWN_GB, within=within, source=source)
    if check.device == "cpu":
        yield figure("D", f"computed for 1 rank, microbatch {size}", _gigabytes(computed))
        return
    yield _peak(f"peak, microbatch {size}", train(check, "eager"), computed)
    settings: dict[str, Any] = {"attention": "sdpa", "activation_checkpointing": True}
    figures = check.measure("recomputed", microbatch=size, batch_size=2 * size, steps=4, warm=2, **settings)
    yield _peak("peak, activation_checkpointing", figures, recomputed)


def _peak(what: str, figures: dict[str, Any], computed: int) -> Row:
    within, source = expected.PEAK_WITHIN, "computed by trainer/model/memory.py"
    return near("D", what, _gigabytes(figures["peak_bytes"]), computed / 1e9, within=within, source=source)


def _gigabytes(count: int) -> Figure:
    return Figure(count / 1e9, ".1f", " GB")


def auto(check: Check) -> Iterator[Row]:
    """Compare the choice of `microbatch_size: auto` with the largest divisor of the batch that runs."""
    chosen, runs = _by_limit(check) if check.device == "cpu" else _on_gpu(check)
    yield figure("E", "auto takes microbatches of", Figure(chosen))
    largest = largest_running(_DIVISORS, chosen, runs)
    after = _DIVISORS[min(_DIVISORS.index(chosen) + 1, len(_DIVISORS) - 1)]
    source = "a tenth of the memory stays free"
    yield one_of("E", "largest that runs", Figure(largest), (chosen, after), source=source)


def largest_running(sizes: Sequence[int], first: int, runs: Callable[[int], bool]) -> int:
    """Return the largest of ascending sizes that runs, searched from `first`; 0 if none does."""
    number = sizes.index(first)
    if not runs(first):
        return next((size for size in reversed(sizes[:number]) if runs(size)), 0)
    while number + 1 < len(sizes) and runs(sizes[number + 1]):
        number += 1
    return sizes[number]


def _on_gpu(check: Check) -> tuple[int, Callable[[int], bool]]:
    def attempt(microbatch: int | str) -> dict[str, object]:
        settings: dict[str, Any] = {"batch_size": _BATCH, "steps": 3, "warm": 1, "limit_s": 200, "attention": "sdpa"}
        return check.measure(f"microbatch-of-{microbatch}", microbatch=microbatch, **settings)

    found = attempt("auto")
    if found.get("out_of_memory"):
        raise ProcessError(f"auto's choice does not run: {found['error']}")
    chosen = int(str(found["microbatch"]))
    return chosen, lambda size: size == chosen or not attempt(size).get("out_of_memory")


def _by_limit(check: Check) -> tuple[int, Callable[[int], bool]]:
    """Return the choice for a device that exists on paper only, and whether its memory is enough for a size."""
    questions = [(size, 1, False) for size in _DIVISORS]
    needed = dict(zip(_DIVISORS, check.figures("sizes", large=False, questions=questions)["bytes"], strict=True))
    device = needed[24] + 1
    room = Gpu("on paper", device).room
    chosen = check.figures("auto", large=False, batch_size=_BATCH, room=room)["auto"]
    return chosen, lambda size: needed[size] <= device
