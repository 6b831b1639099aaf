"""The stream that each slot of a run draws from, by integer arithmetic alone.

A *slot* is the position of a sample in the run: slot i of step s. L lanes cut each batch into L equal parts with the
same mix, so the arithmetic here is that of one lane: a stage with quotas q (samples of each stream, over all lanes)
gives each lane the quotas q / L. There is no state: every answer follows from the stages and a step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import groupby

import numpy as np

from dataengine.arrays import Int64s

MAX_RUN_SAMPLES = 1 << 62  # sample numbers, and sums of two of them, are int64
_INT64 = (1 << 63) - 1


def count_drawn(quotas: Sequence[int], num_samples: int) -> list[int]:
    """Count what each stream supplies among the first `num_samples` samples of a stage.

    Takes positive quotas, shape (num_streams,); returns counts of the same shape. They sum to exactly `num_samples`.
    No count falls when `num_samples` grows, and at sum(quotas) the counts are the quotas. So the counts of one step are
    the difference of two calls, without state. A count differs from its exact share by less than the number of streams.
    """
    counts, ahead, rest = [], num_samples, sum(quotas)
    for quota in quotas:
        passed_on = ahead * (rest - quota) // rest
        counts.append(ahead - passed_on)
        ahead, rest = passed_on, rest - quota
    return counts


@dataclass(frozen=True)
class Part:
    """A part of a mix: a stream, or the streams of an entry for many pairs, such as bitext/en-zh and bitext/en-id."""

    names: tuple[str, ...]
    quotas: tuple[int, ...]  # positive

    @property
    def quota(self) -> int:
        """The samples of all its streams."""
        return sum(self.quotas)


def parts_of(samples: Mapping[str, int]) -> list[Part]:
    """The parts of a mix, from the samples of its streams in the order of their names, without those of 0.

    The largest streams of an entry come first: the first of k streams keeps to its share within a sample.
    """
    used = [(name, count) for name, count in samples.items() if count]
    parts = []
    for _, group in groupby(used, key=lambda entry: entry[0].partition("/")[0]):
        names, quotas = zip(*sorted(group, key=lambda entry: -entry[1]), strict=True)
        parts.append(Part(names, quotas))
    return parts


def count_parts(parts: Sequence[Part], num_samples: int) -> dict[str, int]:
    """What each stream supplies among the first `num_samples` samples of a stage.

    `count_drawn` among the parts, and then among the streams of each. So a mix of a stream and an entry of thousands is
    as even as one of two streams.
    """
    drawn: dict[str, int] = {}
    for part, count in zip(parts, count_drawn([part.quota for part in parts], num_samples), strict=True):
        drawn |= zip(part.names, count_drawn(part.quotas, count), strict=True)
    return drawn


def apportion(weights: Sequence[float | Fraction], total: int) -> list[int]:
    """Split `total` in proportion to weights (not all 0) by largest remainder; the parts sum to it exactly.

    Ties go to the earlier weight. A float counts as the exact fraction that it represents.
    """
    ratios = [weight.as_integer_ratio() for weight in weights]
    denominator = math.lcm(*(below for _, below in ratios))
    parts = [above * (denominator // below) for above, below in ratios]
    whole = sum(parts)
    counts = [total * part // whole for part in parts]
    remainders = [total * part % whole for part in parts]
    order = sorted(range(len(parts)), key=lambda k: (-remainders[k], k))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return counts


@dataclass(frozen=True)
class Stage:
    """A run of `steps` steps that draws `samples[stream]` samples, over all lanes, from each stream.

    The order of the streams decides their slots, so streams are always sorted by name. A stage that a fork leaves early
    keeps its quotas, which decide its slots, and ends after `cut` steps. Adjacent stages of the same name are pieces of
    one stage, unless a fork is between them.
    """

    name: str
    """Name of the stage in the config. Consecutive entries with one name are parts of one stage."""
    steps: int
    """Steps of the stage."""
    samples: Mapping[str, int]
    """Samples to draw from each stream in these steps; they sum to steps x batch_size."""
    cut: int | None = None
    """Steps that are run if a fork leaves the stage early; else null."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", dict(sorted(self.samples.items())))

    @property
    def length(self) -> int:
        """Steps that the run takes."""
        return self.steps if self.cut is None else self.cut


@dataclass(frozen=True)
class Schedule:
    """The stages of a run. Raises ValueError if their quotas do not fill `batch_size` x steps exactly.

    Exact for runs of up to MAX_RUN_SAMPLES samples. The steps before `fork` are those of a parent.
    """

    batch_size: int
    lanes: int
    stages: tuple[Stage, ...]
    fork: int = 0

    def __post_init__(self) -> None:
        if self.batch_size % self.lanes:
            raise ValueError(f"lanes ({self.lanes}) must divide batch_size ({self.batch_size})")
        for stage in self.stages:
            total = stage.steps * self.batch_size
            if sum(stage.samples.values()) != total or stage.steps < 1:
                raise ValueError(
                    f"stage '{stage.name}': quotas {dict(stage.samples)} must sum to steps x batch_size = {total}"
                )
            if not 0 < stage.length <= stage.steps:
                raise ValueError(f"stage '{stage.name}': cut {stage.cut} is not within its {stage.steps} steps")
            if any(quota < 0 or quota % self.lanes for quota in stage.samples.values()):
                raise ValueError(f"stage '{stage.name}': quotas must be multiples of {self.lanes} lanes")
        if (total := sum(stage.steps for stage in self.stages) * self.batch_size) > MAX_RUN_SAMPLES:
            raise ValueError(f"the stages hold {total:,} samples, more than {MAX_RUN_SAMPLES:,}")

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """Streams in the order of their first use."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.samples))

    @cached_property
    def _number_of(self) -> dict[str, int]:
        """The number of each stream in `streams`."""
        return {name: number for number, name in enumerate(self.streams)}

    @cached_property
    def steps(self) -> int:
        """Length of the run."""
        return sum(stage.length for stage in self.stages)

    @cached_property
    def stage_starts(self) -> list[int]:
        """First step of each stage."""
        starts = [0]
        for stage in self.stages[:-1]:
            starts.append(starts[-1] + stage.length)
        return starts

    @cached_property
    def stage_edges(self) -> list[int]:
        """The start of each stage and the end of the last, as indexes of pieces: a stage is between two edges."""
        stages, starts = self.stages, self.stage_starts
        begins = [
            k
            for k in range(1, len(stages))
            if stages[k].name != stages[k - 1].name or stages[k - 1].cut is not None or starts[k] == self.fork
        ]
        return [0, *begins, len(stages)]

    @property
    def own_stages(self) -> tuple[Stage, ...]:
        """The stages without those of a parent."""
        return tuple(s for s, start in zip(self.stages, self.stage_starts, strict=True) if start >= self.fork)

    @cached_property
    def _drawn_before(self) -> list[dict[str, int]]:
        """Samples that one lane draws from each stream before each stage."""
        drawn = dict.fromkeys(self.streams, 0)
        before = []
        for index, stage in enumerate(self.stages):
            before.append(dict(drawn))
            for name, count in count_parts(self._lane_parts[index], stage.length * self.width).items():
                drawn[name] += count
        return before

    @property
    def width(self) -> int:
        """Samples of one lane in a step."""
        return self.batch_size // self.lanes

    def stage_index(self, step: int) -> int:
        """Index of the stage of a step. Raises IndexError outside the run."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside the schedule's {self.steps} steps")
        return bisect.bisect_right(self.stage_starts, step) - 1

    def cursors(self, step: int) -> dict[str, int]:
        """Samples drawn from each stream, over all lanes, before `step`, which may be the end of the run."""
        index = self.stage_index(step) if step < self.steps else len(self.stages) - 1
        lane_slots = (step - self.stage_starts[index]) * self.width
        drawn = dict(self._drawn_before[index])
        for name, count in count_parts(self._lane_parts[index], lane_slots).items():
            drawn[name] += count
        return {name: count * self.lanes for name, count in drawn.items()}

    def counts(self, step: int) -> dict[str, int]:
        """Samples of each stream in the batch of `step`; they sum to batch_size."""
        self.stage_index(step)
        before, after = self.cursors(step), self.cursors(step + 1)
        return {name: after[name] - before[name] for name in self.streams}

    def lane_slots(self, step: int, start: int = 0, stop: int | None = None) -> tuple[Int64s, Int64s]:
        """Stream number (in `streams`) and lane cursor of slots start..stop of one lane; shape (stop - start,) each.

        A lane has batch_size / lanes slots. Without `stop`, returns all from `start` on.
        """
        index = self.stage_index(step)
        parts = self._lane_parts[index]
        first = (step - self.stage_starts[index]) * self.width + start
        count = (self.width if stop is None else stop) - start
        which, drawn = _rises([part.quota for part in parts], first, count)
        numbers, cursors = np.empty_like(drawn), np.empty_like(drawn)
        for k, part in enumerate(parts):
            slots = which == k
            if slots.any():
                inner, of_stream = _rises(part.quotas, int(drawn[slots][0]), int(slots.sum()))
                before = np.array([self._drawn_before[index][name] for name in part.names], dtype=np.int64)
                own = np.array([self._number_of[name] for name in part.names], dtype=np.int64)
                numbers[slots], cursors[slots] = own[inner], before[inner] + of_stream
        return numbers, cursors

    @cached_property
    def _lane_parts(self) -> list[list[Part]]:
        """The parts of each stage, with the quotas of one lane."""
        return [parts_of({name: quota // self.lanes for name, quota in stage.samples.items()}) for stage in self.stages]


def _rises(quotas: Sequence[int], first: int, count: int) -> tuple[Int64s, Int64s]:
    """Which of the counts of `count_drawn` rises at `first` and the slots after it, and its value before."""
    drawn = _count_drawn_from(quotas, first, count + 1)  # (streams, count + 1)
    which = np.argmax(drawn[:, 1:] > drawn[:, :-1], axis=0)  # exactly one count rises at each slot
    return which, drawn[which, np.arange(count)]


def _count_drawn_from(quotas: Sequence[int], first: int, count: int) -> Int64s:
    """`count_drawn` at `first` and the numbers after it, `count` in all; shape (num_streams, count).

    Each floor is taken relative to the floor at `first`, which is exact in Python integers. So each product has one
    factor below `count` and fits in int64; for huge stages, only a few numbers at a time do.
    """
    at_once = _INT64 // sum(quotas)
    if count > at_once:
        parts = [_count_drawn_from(quotas, first + k, min(at_once, count - k)) for k in range(0, count, at_once)]
        return np.concatenate(parts, axis=1)
    counts = np.empty((len(quotas), count), dtype=np.int64)
    ahead, rest = first, sum(quotas)
    more = np.arange(count, dtype=np.int64)  # added to `ahead`
    for k, quota in enumerate(quotas):
        passed_on, remainder = divmod(ahead * (rest - quota), rest)
        more_passed_on = (remainder + more * (rest - quota)) // rest
        counts[k] = (ahead - passed_on) + (more - more_passed_on)
        ahead, more, rest = passed_on, more_passed_on, rest - quota
    return counts
