"""What a config says of its stages, turned into integers: exact steps, exact samples, in the order of time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from dataengine.config.schema import BudgetConfig, StageConfig, fraction_sum
from dataengine.errors import InputError
from dataengine.schedule.slots import MAX_RUN_SAMPLES, Schedule, Stage, apportion, count_drawn

MAX_TOKENS = (1 << 63) - 1  # of a run; manifests hold 64-bit integers
RAMP_PIECES = 100  # a ramp is so many runs of steps of one mix each, or one a step


@dataclass(frozen=True)
class StreamSize:
    """What the stages may draw from a stream: `samples` a pass, `passes` times, less `drawn` by a parent's steps."""

    samples: int
    passes: int = 1
    drawn: int = 0

    def left(self, lanes: int) -> int:
        """Samples that one lane may still draw; each lane has an equal range of the stream."""
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
    """Turn stages into integers, after the stages `before` (a parent's, up to its last step).

    A `fraction` of the budget is rounded to steps; fractions that sum to 1 fill the budget exactly. Stages take their
    samples in the order of the list, the `rest` last of all; `drain`, `all` and `by_size` go by what is left then.
    Mixes are split by largest remainder in units of one sample a lane, so sums are exact. A stage with `at` then moves
    to its place among the others, splitting one if need be; the pieces keep the name. Raises InputError, with numbers,
    if a stream has too little.
    """
    total = budget_steps(budget, batch_size, seq_len)
    resolver = _Resolver(dict(streams), batch_size, lanes, seq_len, _split_budget(stages, total or 0))
    begun = sum(stage.length for stage in before)
    resolved: list[list[Stage]] = [[] for _ in stages]
    for number in sorted(range(len(stages)), key=lambda n: stages[n].rest):  # a stable sort: the rest goes last
        others = begun + sum(piece.length for pieces in resolved for piece in pieces)
        steps = resolver.steps(number, stages[number], total, others)
        _check_length(stages[number].name, others + steps, batch_size, seq_len)
        resolved[number] = resolver.quotas(stages[number], steps)
    length = begun + sum(piece.length for pieces in resolved for piece in pieces)
    if total is not None and length > total:
        raise InputError(
            f"the stages take {length:,} steps, more than the budget of {total:,}. Raise `budget`, shorten a stage, or "
            "give one `rest: true`."
        )
    placed = [pieces for stage, pieces in zip(stages, resolved, strict=True) if stage.at is None]
    timeline = [piece for pieces in placed for piece in pieces]
    others = sum(piece.length for piece in timeline)
    inserts = [(stage.at, pieces) for stage, pieces in zip(stages, resolved, strict=True) if stage.at is not None]
    for at, pieces in sorted(inserts, key=lambda insert: -(insert[0] or 0)):  # later ones first: places stay valid
        timeline = _insert(timeline, round((at or 0) * others), pieces, batch_size, lanes)
    return (*before, *timeline)


def budget_steps(budget: BudgetConfig | None, batch_size: int, seq_len: int) -> int | None:
    """The steps of a budget, if there is one."""
    if budget is None:
        return None
    return budget.steps or (budget.tokens or 0) // (batch_size * seq_len)


def _split_budget(stages: Sequence[StageConfig], total: int) -> dict[int, int]:
    """Steps of the stages that state a fraction of `total` steps, by their place in the list.

    Each is rounded by itself; if the fractions sum to 1 and the rounded ones not to the total, they are those of the
    largest remainder, ties to the earlier. A fraction counts as the decimal number that was written.
    """
    shares = {number: stage.fraction for number, stage in enumerate(stages) if stage.fraction is not None}
    steps = {number: round(share * total) for number, share in shares.items()}
    if fraction_sum(stages) == 1 and sum(steps.values()) != total:
        parts = apportion([Fraction(repr(share)) for share in shares.values()], total)
        return dict(zip(shares, parts, strict=True))
    return steps


def _check_length(stage: str, steps: int, batch_size: int, seq_len: int) -> None:
    """Raise InputError for a run whose samples or tokens cannot be counted in 64 bits."""
    samples = steps * batch_size
    if samples > MAX_RUN_SAMPLES or samples * (seq_len + 1) > MAX_TOKENS:
        raise InputError(
            f"stage '{stage}' makes the run {steps:,} steps of {batch_size:,} samples x {seq_len:,} tokens long, more "
            f"than 64-bit numbers can count ({MAX_TOKENS:,} tokens). Shorten it."
        )


def cut_schedule(schedule: Schedule, step: int) -> tuple[Stage, ...]:
    """The stages of the steps before `step`; the last of them keeps its quotas and stops early, so its slots stay."""
    kept = []
    for stage, start in zip(schedule.stages, schedule.stage_starts, strict=True):
        if start < step:
            kept.append(stage if step >= start + stage.length else replace(stage, cut=step - start))
    return tuple(kept)


@dataclass
class _Resolver:
    """The samples that the stages so far leave in each stream."""

    streams: dict[str, StreamSize]
    batch_size: int
    lanes: int
    seq_len: int
    of_budget: Mapping[int, int]  # steps of the stages that state a fraction, by their place in the list

    def __post_init__(self) -> None:
        self.width = self.batch_size // self.lanes
        self.left = {name: size.left(self.lanes) for name, size in self.streams.items()}

    def steps(self, number: int, stage: StageConfig, total: int | None, others: int) -> int:
        """Length of stage `number`, given the budget and the steps of the other stages."""
        if stage.steps is not None:
            return stage.steps
        if stage.tokens is not None:
            steps = stage.tokens // (self.batch_size * self.seq_len)
        elif stage.samples is not None:
            steps = stage.samples // self.batch_size
        elif stage.drain:
            names, weights = self._weights(stage, self.left)
            steps = drain_steps(weights, [self.left[name] for name in names], self.width)
        else:
            assert total is not None  # Config sees to it
            if stage.rest and total <= others:
                raise InputError(
                    f"stage '{stage.name}' is the rest of the budget of {total:,} steps, but the other stages take "
                    f"{others:,}. Raise `budget` or shorten them."
                )
            steps = total - others if stage.rest else self.of_budget[number]
        if steps < 1:
            reason = "its streams have no full batch left" if stage.drain else "its length is less than a batch"
            raise InputError(
                f"stage '{stage.name}' has no step: {reason} of {self.batch_size} samples x {self.seq_len} tokens. "
                "Ask for more, add sources, or lower batch_size."
            )
        return steps

    def quotas(self, stage: StageConfig, steps: int) -> list[Stage]:
        """The stage in one piece, or a ramp in many, each with exact samples; takes them from what is left."""
        if stage.to_mix is None:
            return [self._take(stage, steps, self._split(stage, steps))]
        first, last = (dict(zip(*self._weights(stage, self.left, mix), strict=True)) for mix in (None, stage.to_mix))
        first, last = (_normalized(weights) for weights in (first, last))
        names = sorted({*first, *last})
        count = min(steps, RAMP_PIECES)
        edges = [steps * piece // count for piece in range(count + 1)]
        pieces = []
        owed = dict.fromkeys(names, Fraction(0))  # exact share so far less what was given
        for low, high in pairwise(edges):
            middle = Fraction(low + high, 2 * steps)
            samples = (high - low) * self.width
            for name in names:
                weight = first.get(name, Fraction(0)) * (1 - middle) + last.get(name, Fraction(0)) * middle
                owed[name] += weight * samples
            quotas = {name: max(math.floor(share), 0) for name, share in owed.items()}
            by_remainder = sorted(names, key=lambda name: quotas[name] - owed[name])
            for name in by_remainder[: samples - sum(quotas.values())]:
                quotas[name] += 1
            owed = {name: owed[name] - quotas[name] for name in names}
            pieces.append(self._take(stage, high - low, quotas))
        return pieces

    def _split(self, stage: StageConfig, steps: int) -> dict[str, int]:
        """Samples a lane from each stream of a stage with one mix."""
        if "rest" not in stage.mix.values():
            names, weights = self._weights(stage, self.left)
            return dict(zip(names, apportion(weights, steps * self.width), strict=True))
        quotas = {name: self.left[name] for name, weight in stage.mix.items() if weight == "all"}
        missing = steps * self.width - sum(quotas.values())
        (rest,) = (name for name, weight in stage.mix.items() if weight == "rest")
        if missing < 0:
            raise InputError(
                f"stage '{stage.name}': the streams that it draws `all` of have {sum(quotas.values()) * self.lanes:,} "
                f"samples, more than its {steps:,} steps hold ({steps * self.batch_size:,}). Lengthen the stage."
            )
        return {**quotas, rest: missing}

    def _weights(
        self, stage: StageConfig, left: Mapping[str, int], mix: object = None
    ) -> tuple[list[str], list[Fraction]]:
        """Streams and weights of a mix; `by_size` weighs each stream by what is left of it."""
        chosen = stage.mix if mix is None else mix
        assert isinstance(chosen, dict)
        weights = {name: left[name] if weight == "by_size" else weight for name, weight in chosen.items()}
        named = {name: Fraction(weight) for name, weight in weights.items() if weight}
        if not named:
            raise InputError(f"stage '{stage.name}': nothing is left of {', '.join(chosen)}. Add sources or passes.")
        return list(named), list(named.values())

    def _take(self, stage: StageConfig, steps: int, quotas: Mapping[str, int]) -> Stage:
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
                f"tokens), but it has {few}. Add sources to streams.{name}, or loosen what drops its records."
            )
        drawn = a_pass * size.passes - have
        needed = -(-(drawn + want) // a_pass)
        return (
            f"stream '{name}' is too small: stage '{stage}' draws {want:,} samples ({want * self.seq_len:,} tokens), "
            f"but it has {have:,} left ({size.samples:,} samples x {size.passes} pass(es), {drawn:,} drawn by earlier "
            f"stages). Add sources to streams.{name}, shorten the stage, lower its weight, or repeat the stream with "
            f"streams.{name}.passes: {needed}."
        )


@dataclass(frozen=True)
class StageRow:
    """A stage as tables show it: in one row, also if it is a ramp of many pieces."""

    name: str
    start: int
    steps: int
    pieces: tuple[Stage, ...]
    drawn: Mapping[str, int]  # samples, over all lanes; streams without any are left out

    def share(self, name: str) -> str:
        """A stream's share of the samples; of a ramp, that of its first piece and of its last."""
        ends = (self.pieces[0], self.pieces[-1])[: len(self.pieces)]
        return " -> ".join(f"{piece.samples.get(name, 0) / sum(piece.samples.values()):.1%}" for piece in ends)


def stage_rows(schedule: Schedule) -> list[StageRow]:
    """The stages of a run; pieces of one stage that stand in a row are one row."""
    rows = []
    for first, last in pairwise(schedule.stage_edges):
        pieces, start = schedule.stages[first:last], schedule.stage_starts[first]
        steps = sum(piece.length for piece in pieces)
        before, after = schedule.cursors(start), schedule.cursors(start + steps)
        drawn = {name: after[name] - before[name] for name in after if after[name] > before[name]}
        rows.append(StageRow(pieces[0].name, start, steps, pieces, drawn))
    return rows


def idle_streams(stages: Sequence[StageConfig], resolved: Sequence[Stage], lanes: int) -> list[str]:
    """A sentence for each stream that a stage mixes and draws nothing from.

    Takes what `resolve_stages` made of the stages, without a parent's.
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
    """Why a stage of so many samples a lane draws nothing from a stream that it mixes."""
    weight = stage.mix.get(name)
    if isinstance(weight, str):
        words = {"all": "nothing is left of it", "rest": "the other streams fill the stage"}
        return words.get(weight, "too little is left of it")
    if stage.to_mix is not None or weight is None or samples < 2:
        return f"its share is less than one of {samples:,} samples of a lane"
    others = math.fsum(other for key, other in stage.mix.items() if key != name and not isinstance(other, str))
    least = 1.01 * others / (samples - 1)  # at others / (samples - 1) the share is a sample; printed with three digits
    return f"its weight of {weight:g} is less than one of {samples:,} samples of a lane; {least:.3g} draws one"


def drain_steps(weights: Sequence[Fraction], left: Sequence[int], width: int) -> int:
    """The most steps of `width` samples whose split by weight fits into what is left."""
    total = sum(weights)
    # Largest remainder gives more than the share less one, so a share may exceed what is left by less than one.
    steps = math.floor(min((n + 1) * total / weight for n, weight in zip(left, weights, strict=True)) / width)
    while steps and any(q > n for q, n in zip(apportion(weights, steps * width), left, strict=True)):
        steps -= 1
    return steps


def _normalized(weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _insert(timeline: list[Stage], step: int, pieces: list[Stage], batch_size: int, lanes: int) -> list[Stage]:
    """Put pieces before `step` of a timeline, splitting the stage that it falls into."""
    placed: list[Stage] = []
    start, inserted = 0, False
    for stage in timeline:
        if not inserted and step <= start:
            placed += pieces
            inserted = True
        inside = step - start
        if not inserted and 0 < inside < stage.length:
            names = list(stage.samples)
            lane_quotas = [quota // lanes for quota in stage.samples.values()]
            drawn = count_drawn(lane_quotas, inside * batch_size // lanes)
            head = {name: count * lanes for name, count in zip(names, drawn, strict=True)}
            tail = {name: stage.samples[name] - head[name] for name in names}
            placed.append(Stage(stage.name, inside, {n: c for n, c in head.items() if c}))
            placed += pieces
            placed.append(Stage(stage.name, stage.length - inside, {n: c for n, c in tail.items() if c}))
            inserted = True
        else:
            placed.append(stage)
        start += stage.length
    return placed if inserted else placed + pieces
