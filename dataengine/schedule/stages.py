"""Turn the stages of a config into integers: exact steps and exact samples, in the order of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from types import MappingProxyType

from dataengine.config.schema import BudgetConfig, StageConfig, fraction_sum
from dataengine.errors import InputError, stream_key
from dataengine.schedule.floors import Tree
from dataengine.schedule.slots import MAX_RUN_SAMPLES, Schedule, Stage, apportion

_NO_WEIGHTS: Mapping[str, str] = MappingProxyType({})
MAX_TOKENS = (1 << 63) - 1  # of a run; manifests hold 64-bit integers
RAMP_PIECES = 100  # a ramp has at most this many pieces of one mix each, and at most one per step


@dataclass(frozen=True)
class StreamSize:
    """What the stages may draw from a stream: `samples` in each of `passes` epochs, less those `drawn` by a parent."""

    samples: int
    passes: int = 1
    drawn: int = 0

    def left(self, lanes: int) -> int:
        """Samples that one lane can still draw. Each lane has an equal range of the stream."""
        return self.samples // lanes * self.passes - self.drawn // lanes


def resolve_stages(
    stages: Sequence[StageConfig],
    streams: Mapping[str, StreamSize],
    *,
    batch_size: int,
    lanes: int,
    seq_len: int,
    budget: BudgetConfig | None = None,
    before: Sequence[Stage] = (),
    weights: Mapping[str, str] = _NO_WEIGHTS,
    balanced: bool = True,
) -> tuple[Stage, ...]:
    """Turn stages into integers. They follow the stages `before` of a parent.

    First, each stage gets its length and takes its samples, in the order of the list; the stage with `rest` is last.
    `drain`, `all` and `by_size` count what is left at that point. Mixes are split by largest remainder in units of one
    sample per lane, so sums are exact. Then a stage with `at` moves to its place. It splits another stage if needed,
    whose pieces keep the name. With batches of 4 samples in 2 lanes, a budget of 8 steps, and streams a and b of 30
    samples each,

        name: start, fraction: 0.5, mix: {a: 1}           takes 4 steps, a 16
        name: middle, steps: 1, mix: {b: 1}, at: 0.25     takes 1 step, b 4; begins after round(0.25 x 7) = 2 steps
        name: end, rest: true, mix: {a: 1, b: 1}          takes 8 - 4 - 1 = 3 steps, a 6, b 6

    becomes start (2 steps, a 8), middle (1 step, b 4), start (2 steps, a 8), end (3 steps, a 6, b 6).

    `weights` has the entries for many pairs: the streams of `bitext` are those of `streams` whose names begin with
    `bitext/`. In a mix, an entry gets what one stream would get. Its samples are then split among its streams by its
    weights (`by_size`, `by_size^0.3`), or by the word of the mix, again by largest remainder.

    `balanced`: whether balanced trees deal the slots, or chains (`floors.py`).
    Raises InputError, with numbers, if a stream has too few samples.
    """
    run = _Run(streams, batch_size, lanes, seq_len, budget_steps(budget, batch_size, seq_len), weights, balanced)
    lengths = run.stated_lengths(stages)
    length = sum(stage.length for stage in before)
    drawn: dict[int, list[Stage]] = {}
    for number in sorted(range(len(stages)), key=lambda n: stages[n].rest):  # a stable sort: the rest goes last
        stage = stages[number]
        steps = lengths[number] if number in lengths else run.open_length(stage, length)
        length += steps
        run.check_length(stage, steps, length)
        drawn[number] = run.draw(stage, steps)
    if run.budget is not None and length > run.budget:
        raise InputError(
            f"the stages take {length:,} steps, more than the budget of {run.budget:,}. Raise `budget`, shorten a "
            "stage, or give one `rest: true`."
        )
    timeline = [piece for number, stage in enumerate(stages) if stage.at is None for piece in drawn[number]]
    others = sum(piece.length for piece in timeline)
    inserts = [(stage.at, drawn[number]) for number, stage in enumerate(stages) if stage.at is not None]
    for at, pieces in sorted(inserts, key=lambda insert: -insert[0]):  # later ones first: places stay valid
        timeline = _insert(timeline, round(at * others), pieces, lanes)
    return (*before, *timeline)


def budget_steps(budget: BudgetConfig | None, batch_size: int, seq_len: int) -> int | None:
    """The steps of a budget, if there is one."""
    if budget is None:
        return None
    return budget.steps or (budget.tokens or 0) // (batch_size * seq_len)


def cut_schedule(schedule: Schedule, step: int) -> tuple[Stage, ...]:
    """The stages of the steps before `step`. The last one ends early; it keeps its quotas, so its slots stay."""
    kept = []
    for stage, start in zip(schedule.stages, schedule.stage_starts, strict=True):
        if start < step:
            kept.append(stage if step >= start + stage.length else replace(stage, cut=step - start))
    return tuple(kept)


def entry_of(name: str) -> str:
    """The entry that a stream belongs to, such as bitext of bitext/en-zh; the stream's own name if there is none."""
    return name.partition("/")[0]


def by_entry(samples: Mapping[str, int]) -> dict[str, int]:
    """Samples of streams by name, with those of an entry for many pairs as one."""
    joined: dict[str, int] = {}
    for name, count in samples.items():
        joined[entry_of(name)] = joined.get(entry_of(name), 0) + count
    return joined


@lru_cache(1 << 16)
def size_weight(word: str, size: int) -> int:
    """The weight of a stream of `size` samples by `by_size` or `by_size^A`: 2**32 x size**A, rounded down.

    It is found in whole numbers: with A = p / q it is the largest w with w**q <= size**p * 2**(32 q). So it is the same
    on each machine, as no library of floats is. 0 if the stream is empty.
    """
    exponent = Fraction(word.partition("^")[2] or 1)
    p, q = exponent.numerator, exponent.denominator
    return _root(size**p << (32 * q), q) if size else 0


def _root(number: int, degree: int) -> int:
    """The largest whole number whose power `degree` is at most `number`, by Newton's method from above.

    Floats give the number it begins with, which is too large by more than their errors, and do not change the result.
    """
    root = int(2.0 ** (math.log2(number) / degree) * (1 + 1e-9)) + 1
    while (lower := ((degree - 1) * root + number // root ** (degree - 1)) // degree) < root:
        root = lower
    return root


def _divide(shares: Sequence[tuple[Fraction, Mapping[str, int]]], samples: int) -> dict[str, int]:
    """Split samples by weight, and then each part among its streams by their weights."""
    quotas = apportion([share for share, _ in shares], samples)
    divided = (_split_by(parts, quota) for (_, parts), quota in zip(shares, quotas, strict=True))
    return {name: count for counts in divided for name, count in counts.items()}


def _split_by(weights: Mapping[str, int], samples: int) -> dict[str, int]:
    if len(weights) == 1:
        return dict.fromkeys(weights, samples)
    return dict(zip(weights, apportion([*weights.values()], samples), strict=True))


@dataclass
class _Run:
    """A run whose stages take their samples one after another."""

    streams: Mapping[str, StreamSize]
    batch_size: int
    lanes: int
    seq_len: int
    budget: int | None  # steps
    weights: Mapping[str, str]  # of the entries
    balanced: bool

    def __post_init__(self) -> None:
        self.members = {
            entry: [name for name in self.streams if name.startswith(f"{entry}/")] for entry in self.weights
        }
        self.width = self.batch_size // self.lanes
        self.left = {name: size.left(self.lanes) for name, size in self.streams.items()}  # samples a lane

    def stated_lengths(self, stages: Sequence[StageConfig]) -> dict[int, int]:
        """Steps of the stages that state their length, by their index in the list: all but `drain` and `rest`.

        A fraction of the budget counts as the decimal number in the YAML. Each length is rounded by itself. If the
        fractions sum to 1 but the rounded lengths do not sum to the budget, the budget is split by largest remainder;
        ties go to the earlier stage.
        """
        steps: dict[int, int] = {}
        shares = {number: stage.fraction for number, stage in enumerate(stages) if stage.fraction is not None}
        if shares:
            assert self.budget is not None  # Config sees to it
            steps = {number: round(share * self.budget) for number, share in shares.items()}
            if fraction_sum(stages) == 1 and sum(steps.values()) != self.budget:
                parts = apportion([Fraction(repr(share)) for share in shares.values()], self.budget)
                steps = dict(zip(shares, parts, strict=True))
        for number, stage in enumerate(stages):
            if stage.steps is not None:
                steps[number] = stage.steps
            elif stage.tokens is not None:
                steps[number] = stage.tokens // (self.batch_size * self.seq_len)
            elif stage.samples is not None:
                steps[number] = stage.samples // self.batch_size
        return steps

    def open_length(self, stage: StageConfig, others: int) -> int:
        """Steps of a stage that drains its streams, or takes the rest of the budget after `others` steps."""
        if stage.drain:
            return self._drain_steps(stage)
        assert self.budget is not None  # Config sees to it
        if self.budget <= others:
            raise InputError(
                f"stage '{stage.name}' is the rest of the budget of {self.budget:,} steps, but the other stages take "
                f"{others:,}. Raise `budget` or shorten them."
            )
        return self.budget - others

    def _drain_steps(self, stage: StageConfig) -> int:
        """The largest number of steps whose samples fit into what is left of each stream."""
        shares = self._shares(stage)
        whole = sum(share for share, _ in shares)
        # Each of two splits by largest remainder gives less than one sample more than the share.
        most = min(
            (self.left[name] + 2) * whole * sum(parts.values()) / (share * part)
            for share, parts in shares
            for name, part in parts.items()
        )
        steps = math.floor(most / self.width)
        while steps and any(n > self.left[name] for name, n in _divide(shares, steps * self.width).items()):
            steps -= 1
        return steps

    def check_length(self, stage: StageConfig, steps: int, length: int) -> None:
        """Raise InputError for a stage without steps, and for a run with more samples or tokens than fit 64 bits."""
        if steps < 1:
            reason = "its streams have no full batch left" if stage.drain else "its length is less than a batch"
            raise InputError(
                f"stage '{stage.name}' has no step: {reason} of {self.batch_size} samples x {self.seq_len} tokens. "
                "Ask for more, add sources, or lower batch_size."
            )
        samples = length * self.batch_size
        if samples > MAX_RUN_SAMPLES or samples * (self.seq_len + 1) > MAX_TOKENS:
            raise InputError(
                f"stage '{stage.name}' makes the run {length:,} steps of {self.batch_size:,} samples x "
                f"{self.seq_len:,} tokens long, more than 64-bit numbers can count ({MAX_TOKENS:,} tokens). Shorten it."
            )

    def draw(self, stage: StageConfig, steps: int) -> list[Stage]:
        """Draw the samples of a stage: one piece, or the pieces of a ramp, each with exact samples."""
        if stage.to_mix is None:
            return [self._take(stage, steps, self._split(stage, steps))]
        first, last = self._weights(stage, stage.mix), self._weights(stage, stage.to_mix)
        pieces = list(_ramp(first, last, steps, self.width))
        for entry in self.weights:
            self._spread_over_pieces(entry, [quotas for _, quotas in pieces])
        return [self._take(stage, length, quotas) for length, quotas in pieces]

    def _spread_over_pieces(self, entry: str, pieces: Sequence[dict[str, int]]) -> None:
        """Put the streams of an entry in its place, in the samples of the pieces of a ramp."""
        drawn = list(accumulate((quotas.pop(entry, 0) for quotas in pieces), initial=0))
        if not drawn[-1]:
            return
        tree = Tree.of(_split_by(self._parts(entry), drawn[-1]), balanced=self.balanced)
        for quotas, (before, after) in zip(pieces, pairwise(map(tree.count, drawn)), strict=True):
            quotas |= {name: high - low for name, low, high in zip(tree.names, before, after, strict=True)}

    def _parts(self, mixed: str, weight: float | str = "") -> dict[str, int]:
        """The streams that a name in a mix stands for, with weights by the mix's word for sizes, or by the entry's."""
        if mixed not in self.weights:
            return {mixed: 1}
        word = weight if isinstance(weight, str) and weight.startswith("by_size") else self.weights[mixed]
        parts = {name: size_weight(word, self.left[name]) for name in self.members[mixed] if self.left[name]}
        if not parts:
            raise InputError(f"nothing is left of '{mixed}'. Add sources to streams.{mixed}, or epochs.")
        return parts

    def _shares(self, stage: StageConfig) -> list[tuple[Fraction, dict[str, int]]]:
        """The weight of each name in a mix that is used, with the weights of its streams."""
        weights = self._weights(stage, stage.mix)
        return [(weight, self._parts(mixed, stage.mix[mixed])) for mixed, weight in weights.items()]

    def _split(self, stage: StageConfig, steps: int) -> dict[str, int]:
        """Samples per lane from each stream of a stage with one mix."""
        if "rest" not in stage.mix.values():
            return _divide(self._shares(stage), steps * self.width)
        words = stage.mix.items()
        quotas = {
            name: self.left[name]
            for mixed, weight in words
            if weight == "all"
            for name in self.members.get(mixed, [mixed])
        }
        missing = steps * self.width - sum(quotas.values())
        (rest,) = (name for name, weight in words if weight == "rest")
        if missing < 0:
            raise InputError(
                f"stage '{stage.name}': the streams that it draws `all` of have {sum(quotas.values()) * self.lanes:,} "
                f"samples, more than its {steps:,} steps hold ({steps * self.batch_size:,}). Lengthen the stage."
            )
        return {**quotas, **(_split_by(self._parts(rest), missing) if missing else {})}

    def _weights(self, stage: StageConfig, mix: Mapping[str, float | str]) -> dict[str, Fraction]:
        """The weights of the names in a mix, without those of which nothing is left."""
        weights = {name: self._weight(name, weight) for name, weight in mix.items()}
        found = {name: weight for name, weight in weights.items() if weight}
        if not found:
            raise InputError(f"stage '{stage.name}': nothing is left of {', '.join(mix)}. Add sources or epochs.")
        return found

    def _weight(self, mixed: str, weight: float | str) -> Fraction:
        if not isinstance(weight, str):
            return Fraction(weight)
        return Fraction(sum(size_weight(weight, self.left[name]) for name in self.members.get(mixed, [mixed])))

    def _take(self, stage: StageConfig, steps: int, quotas: Mapping[str, int]) -> Stage:
        """Draw `quotas` samples per lane as a piece of a stage."""
        for name, quota in quotas.items():
            if quota > self.left[name]:
                raise InputError(self._too_small(stage.name, name, quota))
            self.left[name] -= quota
        return _stage(stage.name, steps, {name: n * self.lanes for name, n in quotas.items()}, self.balanced)

    def _too_small(self, stage: str, name: str, quota: int) -> str:
        size, key = self.streams[name], stream_key(name)
        have, want = self.left[name] * self.lanes, quota * self.lanes
        a_pass = size.samples // self.lanes * self.lanes
        if not a_pass:
            few = f"only {size.samples:,} samples, fewer than the {self.lanes} lanes" if size.samples else "no samples"
            return (
                f"stream '{name}' is too small: stage '{stage}' draws {want:,} samples ({want * self.seq_len:,} "
                f"tokens), but it has {few}. Add sources to {key}, or relax the rules that drop its records."
            )
        drawn = a_pass * size.passes - have
        needed = -(-(drawn + want) // a_pass)
        return (
            f"stream '{name}' is too small: stage '{stage}' draws {want:,} samples ({want * self.seq_len:,} tokens), "
            f"but it has {have:,} left ({size.samples:,} samples x {size.passes} epoch(s), {drawn:,} drawn by earlier "
            f"stages). Add sources to {key}, shorten the stage, lower its weight, or repeat the stream with "
            f"{key}.epochs: {needed}."
        )


@dataclass(frozen=True)
class StageRow:
    """A stage as one row of a table, even if it is a ramp of many pieces."""

    name: str
    start: int
    steps: int
    pieces: tuple[Stage, ...]
    drawn: Mapping[str, int]  # samples over all lanes; only streams with any

    def share(self, name: str) -> str:
        """The share of a stream or an entry in the samples; for a ramp, its shares in the first and the last piece."""
        ends = (self.pieces[0], self.pieces[-1])[: len(self.pieces)]
        return " -> ".join(
            f"{by_entry(piece.samples).get(name, 0) / sum(piece.samples.values()):.1%}" for piece in ends
        )


def stage_rows(schedule: Schedule) -> list[StageRow]:
    """The stages of a run. Adjacent pieces of one stage are one row."""
    rows = []
    for first, last in pairwise(schedule.stage_edges):
        pieces, start = schedule.stages[first:last], schedule.stage_starts[first]
        steps = sum(piece.length for piece in pieces)
        before, after = schedule.cursors(start), schedule.cursors(start + steps)
        drawn = {name: after[name] - before[name] for name in after if after[name] > before[name]}
        rows.append(StageRow(pieces[0].name, start, steps, pieces, drawn))
    return rows


def _ramp(
    first: Mapping[str, Fraction], last: Mapping[str, Fraction], steps: int, width: int
) -> Iterator[tuple[int, dict[str, int]]]:
    """Steps, and samples per lane, of each piece of a ramp between two mixes.

    A piece has the mix at its middle. The next piece makes up for rounding errors.
    """
    names = sorted({*first, *last})
    starts, ends = ([mix.get(name, Fraction(0)) / sum(mix.values()) for name in names] for mix in (first, last))
    owed = [Fraction(0)] * len(names)  # exact share so far minus the samples given
    count = min(steps, RAMP_PIECES)
    for low, high in pairwise(steps * piece // count for piece in range(count + 1)):
        middle, samples = Fraction(low + high, 2 * steps), (high - low) * width
        owed = [
            share + samples * (start * (1 - middle) + end * middle)
            for share, start, end in zip(owed, starts, ends, strict=True)
        ]
        quotas = [max(math.floor(share), 0) for share in owed]
        by_remainder = sorted(range(len(names)), key=lambda n: quotas[n] - owed[n])
        for n in by_remainder[: samples - sum(quotas)]:
            quotas[n] += 1
        owed = [share - quota for share, quota in zip(owed, quotas, strict=True)]
        yield high - low, dict(zip(names, quotas, strict=True))


def _insert(timeline: list[Stage], step: int, pieces: list[Stage], lanes: int) -> list[Stage]:
    """Insert pieces before `step` of a timeline. Splits the stage at that step."""
    start = 0
    for number, stage in enumerate(timeline):
        if step <= start:
            return [*timeline[:number], *pieces, *timeline[number:]]
        if step < start + stage.length:
            head, tail = _split_stage(stage, step - start, lanes)
            return [*timeline[:number], head, *pieces, tail, *timeline[number + 1 :]]
        start += stage.length
    return [*timeline, *pieces]


def _split_stage(stage: Stage, steps: int, lanes: int) -> tuple[Stage, Stage]:
    """Split a stage after `steps` steps, with the samples that each part draws."""
    tree, slots = stage.tree, sum(stage.samples.values()) // lanes * steps // stage.length
    head = {name: count * lanes for name, count in zip(tree.names, tree.count(slots), strict=True)}
    tail = {name: count - head.get(name, 0) for name, count in stage.samples.items()}
    parts = ((steps, head), (stage.length - steps, tail))
    first, second = (_stage(stage.name, length, part, stage.balanced) for length, part in parts)
    return first, second


def _stage(name: str, steps: int, samples: Mapping[str, int], balanced: bool) -> Stage:
    """A stage of the streams that give samples. For up to two, a balanced tree is a chain, and is not noted."""
    used = {name: count for name, count in samples.items() if count}
    return Stage(name, steps, used, balanced=balanced and len(used) > 2)
