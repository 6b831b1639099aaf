"""The numbers of docs/concepts/schedule.md are those of the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataengine.config.schema import BudgetConfig, StageConfig
from dataengine.schedule.slots import Schedule
from dataengine.schedule.stages import StreamSize, resolve_stages

PAGE = (Path(__file__).parents[2] / "docs/concepts/schedule.md").read_text()
STREAMS = {"mono": 100, "en-zh": 20}


def schedule(
    *stages: dict[str, Any], batch: int = 8, budget: int | None = None, streams: dict[str, int] = STREAMS
) -> Schedule:
    resolved = resolve_stages(
        [StageConfig.model_validate(stage) for stage in stages],
        {name: StreamSize(samples) for name, samples in streams.items()},
        batch_size=batch,
        lanes=1,
        seq_len=4,
        budget=BudgetConfig(steps=budget) if budget else None,
    )
    return Schedule(batch, 1, resolved)


def lengths_and_quotas(made: Schedule) -> list[tuple[str, int, dict[str, int]]]:
    return [(stage.name, stage.length, dict(stage.samples)) for stage in made.stages]


@pytest.mark.parametrize(("steps", "batch", "quotas"), [(4, 8, (24, 8)), (3, 6, (14, 4))])
def test_the_slots_of_a_mix(steps: int, batch: int, quotas: tuple[int, int]) -> None:
    made = schedule({"name": "mixed", "steps": steps, "mix": {"mono": 3, "en-zh": 1}}, batch=batch)
    assert (made.stages[0].samples["mono"], made.stages[0].samples["en-zh"]) == quotas
    lines = []
    for step in range(steps):
        cells = [f"{made.streams[number]} {cursor}" for number, cursor in zip(*made.lane_slots(step), strict=True)]
        lines.append(f"    step {step}  " + "  ".join(f"{cell:7}" for cell in cells).rstrip())
    assert "\n".join(lines) in PAGE


def test_the_slots_of_three_streams() -> None:
    made = schedule({"name": "s", "steps": 4, "mix": {"a": 1, "b": 1, "c": 2}}, streams={"a": 8, "b": 8, "c": 16})
    assert made.stages[0].samples == {"a": 8, "b": 8, "c": 16}
    cells = [f"{made.streams[number]} {cursor}" for number, cursor in zip(*made.lane_slots(0), strict=True)]
    assert f"    step 0  {'  '.join(cells)}\n" in PAGE


def test_fraction_rest_and_drain() -> None:
    start = {"name": "start", "fraction": 0.5, "mix": {"mono": 1}}
    end = {"name": "end", "rest": True, "mix": {"mono": 1, "en-zh": 1}}
    assert lengths_and_quotas(schedule(start, end, budget=8)) == [
        ("start", 4, {"mono": 32}),
        ("end", 4, {"en-zh": 16, "mono": 16}),
    ]
    drained = schedule({"name": "all", "drain": True, "mix": {"mono": 3, "en-zh": 1}})
    assert lengths_and_quotas(drained) == [("all", 10, {"en-zh": 20, "mono": 60})]


def test_other_mixes() -> None:
    filled = schedule({"name": "s", "steps": 4, "mix": {"mono": "rest", "en-zh": "all"}})
    assert [filled.counts(step) for step in range(4)] == [{"en-zh": 5, "mono": 3}] * 4
    by_size = {"name": "s", "steps": 4, "mix": {"zh": "by_size", "id": "by_size"}}
    assert schedule(by_size, streams={"zh": 30, "id": 10}).stages[0].samples == {"zh": 24, "id": 8}
    ramp = schedule({"name": "s", "steps": 4, "mix": {"mono": 1}, "to_mix": {"en-zh": 1}})
    assert [ramp.counts(step)["en-zh"] for step in range(4)] == [1, 3, 5, 7]


def test_a_place() -> None:
    made = schedule(
        {"name": "monolingual", "steps": 8, "mix": {"mono": 1}},
        {"name": "pairs", "steps": 2, "mix": {"en-zh": 1}, "at": 0.25},
    )
    assert [(stage.name, stage.length) for stage in made.stages] == [
        ("monolingual", 2),
        ("pairs", 2),
        ("monolingual", 6),
    ]
    assert made.cursors(4)["mono"] == made.cursors(2)["mono"] == 16
