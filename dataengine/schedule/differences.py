"""Where two plans differ."""

from __future__ import annotations

import numpy as np

from dataengine.schedule.manifest import ORDER_KEYS, Manifest
from dataengine.schedule.slots import Stage
from dataengine.schedule.stages import by_entry
from dataengine.tables import table


def describe_difference(a: Manifest, b: Manifest) -> str:
    """The first step at which two plans differ, and the difference."""
    names = f"{a.name} and {b.name}"
    for key in ORDER_KEYS:
        if getattr(a, key) != getattr(b, key):
            return f"{names} differ from step 0 on: {key} is {getattr(a, key)} and {getattr(b, key)}"
    step = _first_difference(a, b)
    if step is None:
        return f"{names} are the same in all {a.schedule.steps:,} steps"
    rows: list[tuple[str, ...]] = [("", a.name, b.name)]
    for label, at in ((f"step {step:,}", "counts"), ("from there on", "rest"), ("in all", "all")):
        rows.append((label, *(_summary(m, step, at) for m in (a, b))))
    head = f"{names} are the same for {step:,} steps" if step else f"{names} differ from the first step on"
    return "\n".join([head, "", *table(rows, left=(0, 1, 2))])


def _first_difference(a: Manifest, b: Manifest) -> int | None:
    """The first step whose batches differ; None if there is none."""
    steps = min(a.schedule.steps, b.schedule.steps)
    shards = [{s.name: (s.index_sha256, s.samples) for s in m.streams} for m in (a, b)]
    step = 0
    for x, y in zip(
        a.stages, b.stages, strict=False
    ):  # stages with the same ratio draw the same samples: their steps need no comparison
        if not _alike(x, y) or any(shards[0][name] != shards[1][name] for name, count in x.samples.items() if count):
            break
        step += min(x.length, y.length)
        if x.length != y.length:
            break
    while step < steps:
        slots = [m.schedule.lane_slots(step) for m in (a, b)]
        drawn = [{m.schedule.streams[n] for n in np.unique(s[0])} for m, s in zip((a, b), slots, strict=True)]
        named = [np.array(m.schedule.streams)[s[0]] for m, s in zip((a, b), slots, strict=True)]
        if not (np.array_equal(named[0], named[1]) and np.array_equal(slots[0][1], slots[1][1])):
            return step
        if any(shards[0][name] != shards[1][name] for name in drawn[0]):
            return step
        step += 1
    return None if a.schedule.steps == b.schedule.steps else steps


def _alike(x: Stage, y: Stage) -> bool:
    """Whether the mixes of two stages have the same ratio, and their slots are dealt alike."""
    totals = sum(x.samples.values()), sum(y.samples.values())
    names = {*x.samples, *y.samples}
    return x.balanced == y.balanced and all(
        x.samples.get(name, 0) * totals[1] == y.samples.get(name, 0) * totals[0] for name in names
    )


def _summary(manifest: Manifest, step: int, what: str) -> str:
    schedule = manifest.schedule
    if what == "counts":
        if step >= schedule.steps:
            return "has ended"
        counts = schedule.counts(step)
        return ", ".join(f"{n} {c:,}" for n, c in by_entry(counts).items() if c) + " samples"
    before = schedule.cursors(step) if what == "rest" else {}
    after = schedule.cursors(schedule.steps)
    parts = {name: (count - before.get(name, 0)) * manifest.seq_len for name, count in after.items()}
    return ", ".join(f"{name} {tokens:,}" for name, tokens in by_entry(parts).items() if tokens) + " tokens"
