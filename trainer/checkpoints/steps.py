"""The steps after which checkpoints are saved, and how many are kept."""

from __future__ import annotations

from collections.abc import Mapping

from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Schedule
from dataengine.schedule.stages import stage_rows


def checkpoint_steps(schedule: Schedule, intervals: Mapping[str, int], default: int, last: int) -> list[int]:
    """Steps after which to save: each stage's interval counted from its start, each stage's end, and the last step.

    `intervals` maps names of stages that are not a parent's; pieces of one stage in a row count as one.
    """
    steps: set[int] = set()
    for row in stage_rows(schedule):
        end = row.start + row.steps
        interval = intervals.get(row.name, default) if row.start >= schedule.fork else default
        steps.update(range(row.start, end, interval), [end])
    return sorted({step for step in steps if 0 < step < last} | {last})


def last_step(max_steps: int | None, schedule: Schedule) -> int:
    """Where training ends."""
    return min(max_steps or schedule.steps, schedule.steps)


def planned_checkpoints(config: Config, manifest: Manifest) -> list[int]:
    """The steps after which checkpoints are saved, in order."""
    intervals = {stage.name: stage.checkpoint_interval for stage in config.stages if stage.checkpoint_interval}
    last = last_step(config.train.max_steps, manifest.schedule)
    steps = checkpoint_steps(manifest.schedule, intervals, config.train.checkpoint_interval, last)
    return [step for step in steps if step > config.first_step]


def kept_checkpoints(config: Config, manifest: Manifest) -> int:
    """How many checkpoints lie in the run folder at the end."""
    made = len(planned_checkpoints(config, manifest))
    return min(made, config.train.keep_checkpoints or made)
