"""The steps after which checkpoints are saved, and the number that is kept."""

from __future__ import annotations

from collections.abc import Mapping

from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Schedule
from dataengine.schedule.stages import stage_rows


def checkpoint_steps(schedule: Schedule, intervals: Mapping[str, int], default: int, last: int) -> list[int]:
    """Return the steps after which to save: by each stage's interval from its start, at its end, and at the last step.

    `intervals` maps stage names, without a parent's stages. Consecutive pieces of one stage count as one.
    """
    steps: set[int] = set()
    for row in stage_rows(schedule):
        end = row.start + row.steps
        interval = intervals.get(row.name, default) if row.start >= schedule.fork else default
        steps.update(range(row.start, end, interval), [end])
    return sorted({step for step in steps if 0 < step < last} | {last})


def last_step(max_steps: int | None, schedule: Schedule) -> int:
    """Return the step at which training ends."""
    return min(max_steps or schedule.steps, schedule.steps)


def planned_checkpoints(config: Config, manifest: Manifest) -> list[int]:
    """Return the steps after which checkpoints are saved, in order."""
    intervals = {stage.name: stage.checkpoint_interval for stage in config.stages if stage.checkpoint_interval}
    last = last_step(config.train.max_steps, manifest.schedule)
    steps = checkpoint_steps(manifest.schedule, intervals, config.train.checkpoint_interval, last)
    return [step for step in steps if step > config.first_step]


def kept_checkpoints(config: Config, manifest: Manifest) -> int:
    """Return the number of checkpoints in the run folder at the end."""
    made = len(planned_checkpoints(config, manifest))
    return min(made, config.train.keep_checkpoints or made)
