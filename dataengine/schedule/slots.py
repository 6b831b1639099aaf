"""The stream that each slot of a run draws from, by integer arithmetic alone.

A *slot* is the position of a sample in the run: slot i of step s. L lanes cut each batch into L equal parts with the
same mix, so the arithmetic here is that of one lane: a stage with quotas q (samples of each stream, over all lanes)
gives each lane the quotas q / L. There is no state: every answer follows from the stages and a step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from dataengine.arrays import Int64s
from dataengine.schedule.floors import Tree

MAX_RUN_SAMPLES = 1 << 62  # sample numbers, and sums of two of them, are int64


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
    order = sorted(range(len(parts)), key=remainders.__getitem__, reverse=True)  # equal ones stay in their order
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
    balanced: bool = False
    """Whether a balanced tree deals the slots. If false, the key is left out, and a chain deals them: in stages of one
    or two streams, for which both are the same, and in version 2."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", dict(sorted(self.samples.items())))

    @property
    def length(self) -> int:
        """Steps that the run takes."""
        return self.steps if self.cut is None else self.cut

    @property
    def described(self) -> dict[str, Any]:
        """The stage in a file. Dealt by a chain, it has no `balanced`, as in files of earlier versions."""
        described = asdict(self)
        if not self.balanced:
            del described["balanced"]
        return described

    @property
    def tree(self) -> Tree:
        """The tree that deals the slots of each lane: quotas of the same ratio deal the same slots."""
        return Tree.of(self.samples, balanced=self.balanced)


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

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_dealt"}  # a cache cannot be pickled

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
    def _dealt(self) -> Callable[[int], tuple[Tree, Int64s]]:
        """The tree of a stage, by its index, and the number of each of its streams; those of a few stages are kept."""

        def dealt(index: int) -> tuple[Tree, Int64s]:
            tree = self.stages[index].tree
            return tree, np.array([self._number_of[name] for name in tree.names], dtype=np.int64)

        return lru_cache(maxsize=4)(dealt)

    @cached_property
    def _drawn_before(self) -> Int64s:
        """Samples that one lane draws from each stream before each stage; shape (stages, num_streams)."""
        drawn = np.zeros((len(self.stages), len(self.streams)), dtype=np.int64)
        for index, stage in enumerate(self.stages[:-1]):
            counts = {name: quota // self.lanes for name, quota in stage.samples.items()}
            if stage.cut is not None:
                tree, _ = self._dealt(index)
                counts = dict(zip(tree.names, tree.count(stage.cut * self.width), strict=True))
            drawn[index + 1] = drawn[index]
            drawn[index + 1, [self._number_of[name] for name in counts]] += [*counts.values()]
        return drawn

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
        tree, numbers = self._dealt(index)
        drawn = self._drawn_before[index].copy()
        drawn[numbers] += tree.count((step - self.stage_starts[index]) * self.width)
        return dict(zip(self.streams, (drawn * self.lanes).tolist(), strict=True))

    def counts(self, step: int) -> dict[str, int]:
        """Samples of each stream in the batch of `step`; they sum to batch_size."""
        self.stage_index(step)
        before, after = self.cursors(step), self.cursors(step + 1)
        return {name: after[name] - before[name] for name in self.streams}

    def lane_slots(self, step: int, start: int = 0, stop: int | None = None) -> tuple[Int64s, Int64s]:
        """Stream number (in `streams`) and lane cursor of slots start..stop of one lane; shape (stop - start,) each.

        A lane has batch_size / lanes slots. Without `stop`, returns all from `start` on.
        """
        first = (step - self.stage_starts[self.stage_index(step)]) * self.width
        return self.deal(self.stage_index(step), first + np.arange(start, self.width if stop is None else stop))

    def deal(self, index: int, samples: Int64s) -> tuple[Int64s, Int64s]:
        """Stream number and lane cursor of samples that one lane draws in the stage of an index; shapes (n,)."""
        tree, numbers = self._dealt(index)
        streams, drawn = tree.deal(samples)
        return numbers[streams], self._drawn_before[index][numbers[streams]] + drawn
