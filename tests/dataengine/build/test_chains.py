"""Experiments that were built before balanced trees dealt slots: manifests of version 2."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataengine.build.build import build
from dataengine.commands.plan import load_plan, stale_note
from dataengine.config.schema import Config
from dataengine.schedule.manifest import Manifest, read_manifest
from tests.conftest import ConfigMaker

MIXED = {"name": "mixed", "steps": 6, "mix": {"mono": 3, "en-zh": 2, "both": 1}}
MORE = {"name": "more", "steps": 3, "mix": {"mono": 1, "en-zh": 1, "both": 1}}


def build_before(config: Config) -> Manifest:
    """Build as version 2 did: the quotas are the same, and chains deal the slots."""
    path = Path(build(config).path)
    manifest = read_manifest(path)
    before = replace(manifest, stages=tuple(replace(stage, balanced=False) for stage in manifest.stages))
    path.write_bytes(before.content)
    assert json.loads(before.content)["version"] == 2
    return before


def ids(manifest: Manifest, steps: int) -> list[list[int]]:
    return [manifest.order.sample_ids(step).tolist() for step in range(steps)]


def test_a_new_plan_of_three_streams_has_a_balanced_tree_and_version_3(make_config: ConfigMaker) -> None:
    described = json.loads(Path(build(make_config()).path).read_bytes())
    assert described["version"] == 3
    assert [(stage["name"], stage.get("balanced")) for stage in described["stages"]] == [
        ("first", None), ("mixed", True), ("last", None),
    ]  # fmt: skip


def test_a_build_keeps_the_rule_so_that_a_run_can_resume(make_config: ConfigMaker, tmp_path: Path) -> None:
    before = build_before(make_config(stages=[MIXED]))
    again = build(make_config(stages=[MIXED]))
    assert not again.new
    assert again.manifest.content == before.content
    assert stale_note(load_plan(str(tmp_path / "experiment.yaml"))) == ""
    longer = make_config(stages=[MIXED, MORE])
    assert load_plan(str(tmp_path / "experiment.yaml")).manifest.version == 2
    grown = build(longer).manifest
    assert grown.prefix_sha256(6) == before.prefix_sha256(6)
    assert ids(grown, 6) == ids(before, 6)
    assert grown.version == 2
    Path(build(longer).path).unlink()
    assert build(longer).manifest.version == 3


def test_a_fork_keeps_the_steps_of_its_parent_and_has_trees_of_its_own(make_config: ConfigMaker) -> None:
    before = build_before(make_config(stages=[MIXED]))
    parent = {"manifest": f"{make_config().store}/experiments/small/manifest.json", "step": 4}
    child = make_config(name="child", parent=parent, stages=[MORE])
    for _ in range(2):  # the second build finds a manifest with chains, which are the parent's
        manifest = build(child).manifest
        assert [(stage.name, stage.balanced) for stage in manifest.stages] == [("mixed", False), ("more", True)]
        assert ids(manifest, 4) == ids(before, 4)
        assert manifest.prefix_sha256(4) == before.prefix_sha256(4)


@pytest.mark.parametrize("stages", [[MIXED], [{**MIXED, "to_mix": {"mono": 1}}, {**MORE, "at": 0.5}]])
def test_another_rule_is_another_past_with_a_reason(make_config: ConfigMaker, stages: list[dict[str, Any]]) -> None:
    before = build_before(make_config(stages=stages))
    now = replace(before, stages=tuple(replace(stage, balanced=len(stage.samples) > 2) for stage in before.stages))
    assert before.prefix_sha256(0) == now.prefix_sha256(0)
    assert before.prefix_sha256(5) != now.prefix_sha256(5)
    assert before.differences(now, 5)[0] == (
        "the slots of stage 'mixed' were dealt by a chain and are by a balanced tree (a build keeps chains where the "
        "store has the earlier manifest.json)"
    )
