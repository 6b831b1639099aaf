"""Turn the stages of a config into integers: exact steps and exact samples, in the order of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from dataengine.config.schema import BudgetConfig, StageConfig, fraction_sum
from dataengine.errors import InputError
from dataengine.schedule.slots import MAX_RUN_SAMPLES, Schedule, Stage, apportion, count_drawn

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
    Raises InputError, with numbers, if a stream has too few samples.
    """
    run = _Run(streams, batch_size, lanes, seq_len, budget_steps(budget, batch_size, seq_len))
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


@dataclass
class _Run:
    """A run whose stages take their samples one after another."""

    streams: Mapping[str, StreamSize]
    batch_size: int
    lanes: int
    seq_len: int
    budget: int | None  # steps

    def __post_init__(self) -> None:
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
            weights = self._weights(stage, stage.mix)
            return drain_steps([*weights.values()], [self.left[name] for name in weights], self.width)
        assert self.budget is not None  # Config sees to it
        if self.budget <= others:
            raise InputError(
                f"stage '{stage.name}' is the rest of the budget of {self.budget:,} steps, but the other stages take "
                f"{others:,}. Raise `budget` or shorten them."
            )
        return self.budget - others

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
        return [self._take(stage, length, quotas) for length, quotas in _ramp(first, last, steps, self.width)]

    def _split(self, stage: StageConfig, steps: int) -> dict[str, int]:
        """Samples per lane from each stream of a stage with one mix."""
        if "rest" not in stage.mix.values():
            weights = self._weights(stage, stage.mix)
            return dict(zip(weights, apportion([*weights.values()], steps * self.width), strict=True))
        quotas = {name: self.left[name] for name, weight in stage.mix.items() if weight == "all"}
        missing = steps * self.width - sum(quotas.values())
        (rest,) = (name for name, weight in stage.mix.items() if weight == "rest")
        if missing < 0:
            raise InputError(
                f"stage '{stage.name}': the streams that it draws `all` of have {sum(quotas.values()) * self.lanes:,} "
                f"samples, more than its {steps:,} steps hold ({steps * self.batch_size:,}). Lengthen the stage."
            )
        return {**quotas, rest: missing}

    def _weights(self, stage: StageConfig, mix: Mapping[str, float | str]) -> dict[str, Fraction]:
        """The weights of a mix. `by_size` is the number of samples that are left of the stream."""
        weights = {name: Fraction(self.left[name] if weight == "by_size" else weight) for name, weight in mix.items()}
        found = {name: weight for name, weight in weights.items() if weight}
        if not found:
            raise InputError(f"stage '{stage.name}': nothing is left of {', '.join(mix)}. Add sources or epochs.")
        return found

    def _take(self, stage: StageConfig, steps: int, quotas: Mapping[str, int]) -> Stage:
        """Draw `quotas` samples per lane as a piece of a stage."""
        for name, quota in quotas.items():
            if quota > self.left[name]:
                raise InputError(self._too_small(stage.name, name, quota))
            self.left[name] -= quota
        return Stage(stage.name, steps, {name: quota * self.lanes for name, quota in quotas.items() if quota})

    def _too_small(self, stage: str, name: str, quota: int) -> str:
        size = self.streams[name]
        have, want = self.left[name] * self.lanes, quota * self.lanes
        a_pass = size.samples // self.lanes * self.lanes
        if not a_pass:
            few = f"only {size.samples:,} samples, fewer than the {self.lanes} lanes" if size.samples else "no samples"
            return (
                f"stream '{name}' is too small: stage '{stage}' draws {want:,} samples ({want * self.seq_len:,} "
                f"tokens), but it has {few}. Add sources to streams.{name}, or relax the rules that drop its records."
            )
        drawn = a_pass * size.passes - have
        needed = -(-(drawn + want) // a_pass)
        return (
            f"stream '{name}' is too small: stage '{stage}' draws {want:,} samples ({want * self.seq_len:,} tokens), "
            f"but it has {have:,} left ({size.samples:,} samples x {size.passes} epoch(s), {drawn:,} drawn by earlier "
            f"stages). Add sources to streams.{name}, shorten the stage, lower its weight, or repeat the stream with "
            f"streams.{name}.epochs: {needed}."
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
        """The share of a stream in the samples; for a ramp, its shares in the first and the last piece."""
        ends = (self.pieces[0], self.pieces[-1])[: len(self.pieces)]
        return " -> ".join(f"{piece.samples.get(name, 0) / sum(piece.samples.values()):.1%}" for piece in ends)


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


def idle_streams(stages: Sequence[StageConfig], resolved: Sequence[Stage], lanes: int) -> list[str]:
    """A sentence for each stream in the mix of a stage that gives no samples to it.

    `resolved` is the result of `resolve_stages`, without the stages of a parent.
    """
    notes = []
    for stage in stages:
        pieces = [piece for piece in resolved if piece.name == stage.name]
        samples = sum(sum(piece.samples.values()) for piece in pieces) // lanes
        for name in stage.streams:
            if not any(piece.samples.get(name) for piece in pieces):
                why = _why_idle(stage, name, samples)
                notes.append(f"stage '{stage.name}' draws nothing from stream '{name}': {why}")
    return notes


def _why_idle(stage: StageConfig, name: str, samples: int) -> str:
    """Why a stage with `samples` samples per lane draws nothing from a stream in its mix."""
    weight = stage.mix.get(name)
    if isinstance(weight, str):
        words = {"all": "nothing is left of it", "rest": "the other streams fill the stage"}
        return words.get(weight, "too little is left of it")
    if stage.to_mix is not None or weight is None or samples < 2:
        return f"its share is less than one of {samples:,} samples of a lane"
    others = math.fsum(other for key, other in stage.mix.items() if key != name and not isinstance(other, str))
    least = (
        1.01 * others / (samples - 1)
    )  # others / (samples - 1) is a share of one sample; 1 % more survives printing with three digits
    return f"its weight of {weight:g} is less than one of {samples:,} samples of a lane; {least:.3g} draws one"


def drain_steps(weights: Sequence[Fraction], left: Sequence[int], width: int) -> int:
    """The largest number of steps of `width` samples whose split by weight fits into the samples that are left."""
    total = sum(weights)
    # Largest remainder gives more than the share minus one, so a share may exceed what is left by less than one.
    steps = math.floor(min((n + 1) * total / weight for n, weight in zip(left, weights, strict=True)) / width)
    while steps and any(q > n for q, n in zip(apportion(weights, steps * width), left, strict=True)):
        steps -= 1
    return steps


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
    quotas = [quota // lanes for quota in stage.samples.values()]
    drawn = count_drawn(quotas, sum(quotas) * steps // stage.length)
    head = {name: count * lanes for name, count in zip(stage.samples, drawn, strict=True)}
    tail = {name: count - head[name] for name, count in stage.samples.items()}
    parts = ((steps, head), (stage.length - steps, tail))
    first, second = (Stage(stage.name, length, {name: n for name, n in part.items() if n}) for length, part in parts)
    return first, second
