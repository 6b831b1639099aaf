"""Streams that a stage names and draws nothing from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dataengine.config.schema import StageConfig
from dataengine.schedule.slots import Stage
from dataengine.tables import few

_NO_ENTRIES: Mapping[str, Sequence[str]] = MappingProxyType({})


def idle_streams(
    stages: Sequence[StageConfig],
    resolved: Sequence[Stage],
    lanes: int,
    entries: Mapping[str, Sequence[str]] = _NO_ENTRIES,
) -> list[str]:
    """A sentence for each stream in the mix of a stage that gives no samples to it; one for the streams of an entry.

    `resolved` is the result of `resolve_stages`, without the stages of a parent. `entries`: their streams.
    """
    notes = []
    for stage in stages:
        pieces = [piece for piece in resolved if piece.name == stage.name]
        samples = sum(sum(piece.samples.values()) for piece in pieces) // lanes
        used = {name for piece in pieces for name, count in piece.samples.items() if count}
        for name in stage.streams:
            if name in entries:
                if idle := [one for one in entries[name] if one not in used]:
                    notes.append(
                        f"stage '{stage.name}' draws nothing from {len(idle):,} of the {len(entries[name]):,} streams "
                        f"of '{name}', whose part is less than a sample of each lane: {few(idle)}"
                    )
            elif not any(piece.samples.get(name) for piece in pieces):
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
