"""Stages on the two sides of a fork are different stages, even if they have one name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot

from dataengine.build.build import build
from dataengine.commands.build import describe_build
from dataengine.commands.plan import describe_plan, load_plan, settings_and_notes
from dataengine.config.load import dump_config
from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.plot import draw_mix, plot_plan
from dataengine.schedule.rates import learning_rate
from dataengine.schedule.slots import Schedule, Stage
from dataengine.schedule.stages import cut_schedule, stage_rows
from tests.conftest import ConfigMaker
from trainer.checkpoints.steps import checkpoint_steps


def rows(schedule: Schedule) -> list[tuple[str, int, int]]:
    return [(row.name, row.start, row.steps) for row in stage_rows(schedule)]


PIECES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), min_size=1, max_size=6)


def stages(pieces: list[tuple[str, int]]) -> tuple[Stage, ...]:
    return tuple(Stage(name, steps, {"x": steps}) for name, steps in pieces)


@given(PIECES, PIECES, st.data())
def test_a_childs_rows_are_those_of_its_parent_up_to_the_fork_and_its_own(
    parent: list[tuple[str, int]], own: list[tuple[str, int]], data: st.DataObject
) -> None:
    before = Schedule(1, 1, stages(parent))
    fork = data.draw(st.integers(1, before.steps))
    child = Schedule(1, 1, (*cut_schedule(before, fork), *stages(own)), fork)
    cut = [(name, start, min(steps, fork - start)) for name, start, steps in rows(before) if start < fork]
    assert rows(child) == cut + [
        (name, fork + start, steps) for name, start, steps in rows(Schedule(1, 1, stages(own)))
    ]
    assert child.own_stages == stages(own)
    saved = checkpoint_steps(child, {"a": 2, "b": 3}, 1, child.steps)
    alone = checkpoint_steps(Schedule(1, 1, stages(own)), {"a": 2, "b": 3}, 1, child.steps - fork)
    assert [step - fork for step in saved if step > fork] == alone


def test_a_stage_that_an_earlier_fork_cut_ends_there() -> None:
    schedule = Schedule(1, 1, (Stage("a", 4, {"x": 4}, cut=2), Stage("a", 3, {"x": 3}), Stage("a", 1, {"x": 1})), 5)
    assert rows(schedule) == [("a", 0, 2), ("a", 2, 3), ("a", 5, 1)]


@pytest.fixture
def family(make_config: ConfigMaker, tmp_path: Path) -> tuple[Config, Config]:
    """A parent, built, and its child from step 9 in the middle of `mixed`, whose first stage is named so too."""
    parent = make_config()
    build(parent, workers=1)
    changes: dict[str, Any] = {
        "name": "child",
        "parent": {"manifest": str(tmp_path / "store/experiments/small/manifest.json"), "step": 9},
        "stages": [{"name": "mixed", "steps": 5, "mix": {"mono": 1, "both": 1e-9}, "checkpoint_interval": 2}],
    }
    return parent, make_config(**changes)


def test_every_table_and_picture_shows_two_stages_of_one_name(family: tuple[Config, Config], tmp_path: Path) -> None:
    _, config = family
    result = build(config, workers=1)
    manifest: Manifest = result.manifest
    assert rows(manifest.schedule) == [("first", 0, 6), ("mixed", 6, 3), ("mixed", 9, 5)]
    assert [line.split()[0] for line in describe_build(result).splitlines() if line.startswith("mixed")] == [
        "mixed"
    ] * 2
    path = tmp_path / "child.yaml"
    path.write_text(dump_config(config))
    text = describe_plan(load_plan(str(path)))
    mixed = [line for line in text.splitlines() if line.startswith("mixed")]
    assert [line.split()[1:3] for line in mixed] == [["6", "3"], ["9", "5"]]
    assert mixed[1].count("->") == 1  # of the rate: no ramp
    assert "note: stage 'mixed' draws nothing from stream 'both'" in text  # its own does not, its parent's did
    figure, axes = pyplot.subplots()
    draw_mix(axes, manifest, np.arange(manifest.schedule.steps))
    assert [note.get_text() for note in axes.texts] == ["first", "mixed", "mixed"]
    pyplot.close(figure)


def test_a_plan_shows_the_rates_of_a_child_and_inherits_its_parents_restarts(
    make_config: ConfigMaker, tmp_path: Path
) -> None:
    stages = [
        {"name": "first", "steps": 6, "mix": {"mono": 1}},
        {"name": "mixed", "steps": 6, "mix": {"mono": 1, "both": 1}, "restart_learning_rate": True},
    ]
    build(make_config(stages=stages), workers=1)
    beside = tmp_path / "store/experiments/small"
    changes: dict[str, Any] = {
        "name": "child",
        "parent": {"manifest": str(beside / "manifest.json"), "step": 9},
        "init": {"checkpoint": "run", "mode": "continue"},
        "stages": [{"name": "tail", "steps": 5, "mix": {"mono": 1}}],
    }
    config = make_config(**changes)

    def last_rows() -> list[list[str]]:
        path = tmp_path / "child.yaml"
        path.write_text(dump_config(config))
        plan = load_plan(str(path))
        plot_plan(plan.manifest, tmp_path / "plan.svg", *settings_and_notes(plan)[:1], first=9)
        return [line.split() for line in describe_plan(plan).splitlines() if line.startswith(("mixed", "tail", "note"))]

    build(config, workers=1)
    assert config.first_step == 9
    mixed, tail = last_rows()
    assert mixed[-1] == "0.0"  # the parent's steps are not this run's
    expected = [f"{learning_rate(step, config.train, [6]):.2e}" for step in (9, 13)]
    assert tail[-3:] == [expected[0], "->", expected[1]]

    grandchild = {
        **changes,
        "name": "grandchild",
        "parent": {"manifest": str(tmp_path / "store/experiments/child/manifest.json"), "step": 12},
    }
    config = make_config(**grandchild, train={"decay_steps": "end", "warmup_steps": 2})
    build(config, workers=1)
    expected = [f"{learning_rate(step, config.train, [6], 17):.2e}" for step in (12, 16)]
    assert last_rows()[-1][-3:] == [expected[0], "->", expected[1]]

    (beside / "config.yaml").unlink()
    note = " ".join(last_rows()[-1])
    assert note.startswith("note: learning rates are not shown: config.yaml beside ")
    assert note.endswith("small/manifest.json cannot be used: it is missing")
    config = config.model_copy(update={"init": None})  # trained from step 0, so nothing is inherited
    assert last_rows()[-1][-3:] == [
        f"{learning_rate(step, config.train, [], 17):.2e}" if step else "->" for step in (12, 0, 16)
    ]
