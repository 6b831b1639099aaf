"""What a run needs of GPUs, as a table: memory, the microbatch that fits, operations, speed, hours."""

from __future__ import annotations

from dataengine.hardware.fitting import Work
from dataengine.hardware.flops import flops_per_token, mfu_range
from dataengine.hardware.gpus import Gpu
from dataengine.tables import size_words, table


def describe_cost(
    work: Work, gpu: Gpu, steps: int, *, error: float = 0, tokens_per_second: float | None = None
) -> list[str]:
    """Return the lines of a table: `work` on GPUs of one kind, a rank each, for a number of steps.

    `error` is the error of the count of bytes, as a share. `tokens_per_second` is the measured speed of all GPUs; then
    no hours are estimated.
    """
    rows = [("GPUs", f"{work.ranks:,} x {gpu.name} with {size_words(gpu.memory)}"), *_memory(work, gpu, error)]
    operations = flops_per_token(work.model, work.manifest.vocab_size, work.manifest.seq_len)
    rows.append(("operations", f"{operations / 1e9:#.3g} GFLOP a token"))
    if gpu.peak and tokens_per_second:
        rows.append(("speed", _measured(tokens_per_second / work.ranks, operations, gpu.peak)))
    elif gpu.peak:
        rows += _estimated(work, operations, gpu.peak, steps)
    elif not tokens_per_second:
        rows.append(("speed", f"no estimate: the bf16 operations per second of {gpu.name} are not known"))
    return table(rows, left=(0, 1))


def _memory(work: Work, gpu: Gpu, error: float) -> list[tuple[str, str]]:
    """Return rows on the memory of a step and the microbatch that fits."""
    largest, needed = work.largest(gpu.room)
    configured = work.train.microbatch_size
    if configured != "auto":
        size = min(configured, work.sizes[-1])
        needed = work.bytes_of(size)
    else:
        size = largest or 1
    how = f"within {error:.0%} of PyTorch's count" if error else "counted by PyTorch"
    over = "" if needed <= gpu.room else ", which does not fit"
    rows = [("memory", f"{size_words(needed)} at the peak of a step with microbatches of {size}{over} ({how})")]
    if largest == 0:
        return [*rows, ("microbatch", f"none: {work.refusal(gpu)}")]
    near = {work.largest(gpu.room * (1 + sign * error))[0] for sign in (-1, 1) if error}
    about = "about " if near - {largest} else ""
    return [*rows, ("microbatch", f"{about}{largest} is the largest that leaves a tenth of the memory free")]


def _measured(of_gpu: float, operations: float, peak: float) -> str:
    return f"{of_gpu:,.0f} tokens/s on a GPU: {of_gpu * operations / peak:.0%} of {peak / 1e12:,.0f} TFLOP/s (MFU)"


def _estimated(work: Work, operations: float, peak: float, steps: int) -> list[tuple[str, str]]:
    """Return rows on the speed to expect and the hours that follow."""
    expected = mfu_range(work.model, work.train, work.manifest.vocab_size, peak, work.ranks)
    if expected is None:
        return [("speed", "no estimate for so small a model, which cannot keep a GPU busy")]
    low, high = expected
    slow, fast = (mfu * peak / operations for mfu in (low, high))
    tokens = steps * work.manifest.batch_size * work.manifest.seq_len
    least, most = (tokens / speed / work.ranks / 3600 for speed in (fast, slow))
    of_peak = f"{100 * low:.0f} to {high:.0%} of {peak / 1e12:,.0f} TFLOP/s (MFU)"
    gpu_hours = f": {_hours(least * work.ranks, most * work.ranks, 'GPU-hours')}" if work.ranks > 1 else ""
    return [
        ("speed", f"{of_peak}, an estimate: {slow:,.0f} to {fast:,.0f} tokens/s on a GPU"),
        ("time", f"{_hours(least, most, 'hours')} for {steps:,} steps{gpu_hours}"),
    ]


def _hours(least: float, most: float, unit: str) -> str:
    digits = ",.0f" if most >= 100 else ".2g"
    return f"{least:{digits}} to {most:{digits}} {unit}"
