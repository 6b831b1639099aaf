"""Parts C and F: the speed of training steps, and the operations at which they wait for the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from benchmarks.gpu import expected
from benchmarks.gpu.check import Check
from benchmarks.gpu.processes import ProcessError
from benchmarks.gpu.table import Figure, Row, at_least, at_most, failed, figure, near, not_run
from dataengine.config.training import TrainConfig

_STEPS, _WARM = 8, 3  # measured, and before them
_MODES: dict[str, dict[str, Any]] = {
    "eager": {"attention": "sdpa"},
    "compile": {"attention": "sdpa", "compile": True},
    "cudnn": {"attention": "cudnn"},
}


def speed(check: Check) -> Iterator[Row]:
    """Measure tokens per second of each mode; one that fails does not stop the others."""
    found: dict[str, dict[str, Any]] = {}
    for mode in _MODES:
        if reason := _unavailable(check, mode):
            yield not_run("C", mode, reason)
            continue
        try:
            found[mode] = train(check, mode)
        except ProcessError as error:
            yield failed("C", mode, str(error))
            continue
        yield from _speed_rows(mode, found[mode])
        if mode != "eager" and "eager" in found:
            yield from _beside_eager(check, mode, found[mode], found["eager"])


def train(check: Check, mode: str) -> dict[str, Any]:
    """Return the figures of a mode, trained at the first call. Raises ProcessError if memory runs out."""
    size, _ = check.fitting
    figures = check.measure(
        mode, microbatch=size, batch_size=2 * size, steps=_STEPS + _WARM, warm=_WARM, limit_s=240, **_MODES[mode]
    )
    if figures.get("out_of_memory"):
        raise ProcessError(f"{mode}, microbatch {size}: {figures['error']}")
    return figures


def _unavailable(check: Check, mode: str) -> str:
    """Return why a mode cannot be measured; "" if it can."""
    if mode == "cudnn" and "cudnn" not in get_args(TrainConfig.model_fields["attention"].annotation):
        return "train.attention has no cudnn"
    return "needs CUDA" if mode == "cudnn" and check.device == "cpu" else ""


def _speed_rows(mode: str, figures: dict[str, Any]) -> Iterator[Row]:
    rate, flops, peak = (figures[key] for key in ("tokens_per_second", "flops_per_token", "device_flops"))
    what = f"{mode}, microbatch {figures['microbatch']}"
    if peak is None:  # a device without a known peak
        yield figure("C", what, Figure(rate, unit=" tokens/s"))
        return
    usual = expected.MFU[mode] * peak / flops
    seen = Figure(rate, unit=" tokens/s")
    yield at_least("C", what, seen, expected.SHARE * usual, source=f"{expected.SHARE:.0%} of an {expected.BY_READING}")
    yield figure("C", f"{mode}: MFU", Figure(rate * flops / peak, ".1%"))


def _beside_eager(check: Check, mode: str, figures: dict[str, Any], eager: dict[str, Any]) -> Iterator[Row]:
    ratio = Figure(figures["tokens_per_second"] / eager["tokens_per_second"], ".2f", "x")
    if mode == "compile" and check.device == "cuda":
        yield at_least("C", "compile / eager", ratio, expected.SPEEDUP, source=expected.BY_READING)
    else:
        yield figure("C", f"{mode} / eager", ratio)
    loss, beside = Figure(figures["losses"][-1], ".4f"), eager["losses"][-1]
    source = "eager's loss of the same step"
    yield near("C", f"{mode}: loss", loss, beside, within=expected.LOSS_OF_MODES, source=source)


def syncs(check: Check) -> Iterator[Row]:
    """Count the syncs of one step of two microbatches, and list where they are."""
    if check.device == "cpu":
        yield not_run("F", "syncs of a step", "needs CUDA")
        return
    figures = check.measure("syncs", microbatch=1, batch_size=2, steps=4, warm=2, syncs=True, attention="sdpa")
    places: dict[str, int] = figures["syncs"]
    lines = "\n".join(f"{count:4} x {place}" for place, count in sorted(places.items(), key=lambda one: -one[1]))
    yield at_most(
        "F",
        "syncs of a step",
        Figure(sum(places.values())),
        expected.SYNCS,
        source=expected.BY_READING,
        detail=lines,
    )
