"""From which steps the learning rate restarts, over changes of the config and forks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dataengine.build.build import build
from dataengine.config.load import dump_config
from dataengine.config.schema import Config, StageConfig
from dataengine.schedule.manifest import Manifest
from dataengine.schedule.rates import Settings, planned_settings, restart_steps
from dataengine.schedule.slots import Schedule, Stage
from tests.conftest import ConfigMaker
from trainer.run.settings import (
    SETTINGS,
    History,
    differences,
    dump_history,
    late_restarts,
    parse_history,
    read_history,
    settings_at,
    settings_from,
    with_settings,
)


def schedule_of(lengths: dict[str, int], fork: int = 0, parent: tuple[Stage, ...] = ()) -> Schedule:
    return Schedule(1, 1, (*parent, *(Stage(name, steps, {"x": steps}) for name, steps in lengths.items())), fork)


def config_of(restarting: str, base: Config) -> Config:
    """A config of stages a, b and c, of which some restart the rate."""
    stages = tuple(
        StageConfig(name=name, steps=1, mix={"mono": 1}, restart_learning_rate=name in restarting) for name in "abc"
    )
    return base.model_copy(update={"stages": stages})


PIECES = {"a": 4, "b": 3, "c": 5}
STARTS = {"a": 0, "b": 4, "c": 7}
SUBSETS = st.sampled_from(["", "a", "b", "c", "ab", "bc", "ac", "abc"])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), SUBSETS), min_size=1, max_size=5), st.data())
def test_a_resume_changes_restarts_from_its_step_on_and_none_before(
    sessions: list[tuple[int, int, str]], data: st.DataObject
) -> None:
    schedule, history = schedule_of(PIECES), History()
    base = Config(name="x", tokenizer="t", streams={"mono": {"documents": ["a"]}}, stages=CONFIG_STAGES)  # type: ignore[call-arg, arg-type]
    trained: list[float] = []  # the rate of each step, as it was trained
    restarted: set[int] = set()  # what the steps so far made of their stages' first steps
    for back, steps, restarting in sessions:
        begin = max(0, len(trained) - back)
        config = config_of(restarting, base)
        settings = settings_from(history, begin, config, schedule)
        restarted = {one for one in restarted if one < begin}
        restarted |= {STARTS[name] for name in restarting if STARTS[name] >= begin}
        assert set(settings.restarts) == restarted
        late = [
            name for name, start in STARTS.items() if start < begin and (name in restarting) != (start in restarted)
        ]
        told = late_restarts(history, begin, config, schedule)
        assert [sentence.split("'")[1] for sentence in told] == late
        history = parse_history(dump_history(with_settings(history, begin, settings)), SETTINGS)
        end = min(begin + steps, schedule.steps)
        trained[begin:] = [settings.rate(step) for step in range(begin, end)]
        assert [settings_at(history, step).rate(step) for step in range(len(trained))] == trained  # type: ignore[union-attr]


CONFIG_STAGES = [{"name": "a", "steps": 1, "mix": {"mono": 1}}]


def test_what_is_said_of_a_restart_that_comes_too_late(make_config: ConfigMaker) -> None:
    schedule, base = schedule_of(PIECES), make_config()
    history = [(0, planned_settings(config_of("b", base), schedule))]
    assert late_restarts(history, 5, config_of("", base), schedule) == [
        "restart_learning_rate of stage 'b' is false, but the stage began at step 4 with a restart: the change "
        "has no effect"
    ]
    assert late_restarts(history, 4, config_of("", base), schedule) == []  # step 4 itself is the config's
    assert settings_from(history, 4, config_of("", base), schedule).restarts == ()
    before, now = history[0][1], settings_from(history, 5, config_of("c", base), schedule)
    assert differences(before, now) == [("restart_learning_rate", "at step 4", "at step 4, 7")]
    assert differences(now, replace(now, restarts=())) == [("restart_learning_rate", "at step 4, 7", "at no step")]


def test_a_grandchild_inherits_through_two_forks(make_config: ConfigMaker) -> None:
    base = make_config()
    parent = schedule_of(PIECES)
    history = with_settings([], 0, settings_from([], 0, config_of("b", base), parent))
    child = schedule_of({"b": 6}, 6, (parent.stages[0], replace(parent.stages[1], cut=2)))
    settings = settings_from(history, 6, config_of("b", base), child)
    assert settings.restarts == (4, 6)  # the parent's b at 4 is not the child's b
    assert settings_from(history, 6, config_of("a", base), child).restarts == (4,)  # nor is its own a the parent's
    history = with_settings(history, 6, settings)
    grandchild = schedule_of({"c": 2}, 12, child.stages)
    assert settings_from(history, 12, config_of("c", base), grandchild).restarts == (4, 6, 12)
    assert settings_from(history, 12, config_of("", base), grandchild).restarts == (4, 6)


def test_a_run_that_resumes_before_the_fork_of_its_grown_plan_keeps_what_its_history_says_of_these_steps(
    make_config: ConfigMaker,
) -> None:
    base, parent = make_config(), schedule_of(PIECES)
    history = [(0, planned_settings(config_of("bc", base), parent))]
    grown = schedule_of({"a": 3}, 9, (*parent.stages[:2], replace(parent.stages[2], cut=2)))
    assert settings_from(history, 2, config_of("ac", base), grown).restarts == (4, 7, 9)


def test_a_stage_in_pieces_restarts_once_and_a_parents_not_at_all() -> None:
    pieces = (Stage("a", 2, {"x": 2}), Stage("b", 2, {"x": 2}), Stage("a", 2, {"x": 2}))
    assert restart_steps(Schedule(1, 1, (*pieces, *pieces), 6), {"a", "b"}) == [6, 8]
    assert restart_steps(Schedule(1, 1, (*pieces, *pieces)), {"a", "b"}) == [0, 2]


def old_line(settings: Settings) -> bytes:
    """A line of a version that wrote no restarts."""
    content = dump_history([(0, settings)]).replace(b',"restarts":[6]', b"").replace(b',"restarts":[]', b"")
    assert b"restarts" not in content
    return content


def restarts_of(out: Path) -> list[tuple[int, ...]]:
    return [settings.restarts for _, settings in read_history(out)]


def test_a_history_of_an_earlier_version_goes_by_the_config_beside_it(make_config: ConfigMaker, tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"name": "first", "steps": 6, "mix": {"mono": 1}},
        {"name": "mixed", "steps": 6, "mix": {"mono": 1, "both": 1}, "restart_learning_rate": True},
    ]
    config = make_config(stages=stages)
    manifest: Manifest = build(config, workers=1).manifest
    out = tmp_path / "run"
    out.mkdir()
    (out / SETTINGS).write_bytes(old_line(planned_settings(config, manifest.schedule)))
    assert restarts_of(out) == [()]  # nothing beside it
    (out / "config.yaml").write_text(dump_config(config))
    (out / "manifest.json").write_bytes(manifest.content)
    assert restarts_of(out) == [(6,)]
    (out / SETTINGS).unlink()
    assert restarts_of(out) == [(6,)]

    # A child of that version went by the names of all stages, so its past is replayed by these.
    parent = {"manifest": str(out / "manifest.json"), "step": 9}
    init = {"checkpoint": str(out), "mode": "continue"}
    child = make_config(name="child", parent=parent, init=init, stages=[{**stages[1], "steps": 3}])
    grown = build(child, workers=1).manifest
    assert planned_settings(child, grown.schedule).restarts == (9,)
    (out / SETTINGS).write_bytes(old_line(planned_settings(config, manifest.schedule)))
    (out / "config.yaml").write_text(dump_config(child))
    (out / "manifest.json").write_bytes(grown.content)
    assert restarts_of(out) == [(6,)]
    (out / "config.yaml").write_text("damaged: [")
    assert restarts_of(out) == [()]
