from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from dataengine.build.agreement import build_differences, differences, read_built_config
from dataengine.build.build import build
from dataengine.cli import main
from dataengine.commands.plan import load_plan
from dataengine.config.errors import keys_below
from dataengine.config.fields import Decision, Loc, decision_of, dotted
from dataengine.config.load import dump_config, load_config
from dataengine.config.schema import Config, ParentConfig, StageConfig
from dataengine.config.streams import DocumentStream, PairStream
from dataengine.config.training import TrainConfig
from dataengine.errors import InputError
from dataengine.storage.local import LocalStore
from dataengine.storage.open import open_store
from tests.conftest import ConfigMaker

DECISIONS: tuple[Decision, ...] = ("bytes", "plan", "training", "nothing")


def test_every_field_of_a_config_states_what_it_decides() -> None:
    assert [name for name in Config.model_fields if decision_of(Config, name) is None] == []


def test_what_decides_nothing() -> None:
    """A place, a limit or a speed; whoever adds to these lists says that no result depends on it."""

    def nothing(section: Any) -> set[str]:
        return {name for name in section.model_fields if decision_of(section, name) == "nothing"}

    assert nothing(Config) == {
        "out", "store", "cache", "cache_limit", "tokenizer", "tokenizer_engine", "max_bad_fraction"
    }  # fmt: skip
    assert nothing(DocumentStream) == nothing(PairStream) == {"assume"}
    assert nothing(ParentConfig) == {"manifest"}
    assert nothing(StageConfig) == set()
    assert nothing(TrainConfig) == {
        "max_steps", "max_skipped_steps", "log_interval", "loader_workers", "keep_checkpoints", "outage_limit",
        "tensorboard", "wandb",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "decision", "key"),
    [
        ("seq_len=16", "bytes", "seq_len"),
        ("streams.both.directions=[zh-en]", "bytes", "streams.both.directions"),
        ("streams.mono.clean={document_rules: {}}", "bytes", "streams.mono.clean.document_rules"),
        ("streams.mono={pairs: [a.jsonl], directions: [en-zh]}", "bytes", "streams.mono"),
        ("streams.mono.passes=2", "plan", "streams.mono.passes"),
        ("seed=3", "plan", "seed"),
        ("stages.1.steps=7", "plan", "stages.1.steps"),
        ("stages.1.mix={both: 1, mono: 3, en-zh: 2}", "plan", "stages.1.mix"),  # ties go to the earlier stream
        ("stages.0.checkpoint_interval=2", "training", "stages.0.checkpoint_interval"),
        ("train.learning_rate=0.5", "training", "train.learning_rate"),
        ("train.log_interval=3", "nothing", "train.log_interval"),
        ("evaluate.beams=2", "training", "evaluate.beams"),
        ("cache_limit=1G", "nothing", "cache_limit"),
        ("streams.mono.assume={tokens: 1B}", "nothing", "streams.mono.assume"),
    ],
)
def test_a_change_counts_where_it_decides(make_config: ConfigMaker, override: str, decision: str, key: str) -> None:
    before, after = make_config(), make_config([override])
    for one in DECISIONS:
        found = differences(before, after, of=(one,))
        assert [difference.key for difference in found] == [key] * (one == decision)


ALL_SECTIONS = Config.model_validate(
    {
        "name": "all",
        "tokenizer": "t.model",
        "streams": {
            "mono": {
                "documents": ["a.jsonl"],
                "clean": {"document_rules": {}, "subsets": {"key": "set", "drop": ["a"]}},
                "assume": {"tokens": 5},
            },
            "both": {
                "pairs": ["b.jsonl"],
                "directions": ["en-zh"],
                "clean": {"pair_rules": {}},
                "scores": {"model": "m", "thresholds": {"en-zh": 0.5}},
            },
        },
        "budget": {"steps": 9},
        "stages": [{"name": "one", "rest": True, "mix": {"mono": 1}}, {"name": "two", "steps": 3, "mix": {"both": 1}}],
        "parent": {"manifest": "m.json", "step": 3},
        "init": {"checkpoint": "c", "mode": "continue"},
        "train": {"wandb": {"project": "p"}},
    }
)


def _settings(value: object, loc: Loc = (), decision: Decision | None = None) -> Iterator[tuple[Loc, Decision | None]]:
    """Each setting of a config, with the decision that its field, or the nearest section around it, states."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _settings(getattr(value, name), (*loc, name), decision_of(type(value), name) or decision)
    elif loc in (("streams",), ("stages",)):
        assert isinstance(value, dict | tuple)
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _settings(inner, (*loc, key), decision)
    else:
        yield loc, decision


def _with_another(value: Any, loc: Loc) -> Any:
    """A config whose setting at `loc` is another, unchecked."""
    if not loc:
        return (*value, "more") if isinstance(value, tuple) else f"not {value}"
    key, *inner = loc
    if isinstance(value, BaseModel):
        return value.model_copy(update={str(key): _with_another(getattr(value, str(key)), tuple(inner))})
    if isinstance(value, dict):
        return {**value, key: _with_another(value[key], tuple(inner))}
    return tuple(_with_another(one, tuple(inner)) if number == key else one for number, one in enumerate(value))


@pytest.mark.parametrize(("loc", "decision"), _settings(ALL_SECTIONS))
def test_each_setting_counts_for_what_its_field_decides_and_for_nothing_else(loc: Loc, decision: Decision) -> None:
    changed = _with_another(ALL_SECTIONS, loc)
    found = {one: [other.key for other in differences(ALL_SECTIONS, changed, of=(one,))] for one in DECISIONS}
    assert found == {one: [dotted(loc)] * (one == decision) for one in DECISIONS}


def test_the_config_with_all_sections_has_them_all() -> None:
    assert {key for key in keys_below(Config) if "." in key} == {
        ".".join({"mono": "STREAM", "both": "STREAM", 0: "STAGE", 1: "STAGE"}.get(part, str(part)) for part in loc[:n])
        for loc, _ in _settings(ALL_SECTIONS)
        for n in range(2, len(loc) + 1)
        if n != 2 or loc[0] not in ("streams", "stages")
    }


def test_each_change_spoils_a_build_only_if_the_build_depends_on_it(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    manifest = build(config).manifest
    built = read_built_config(open_store(config.store), config.name)

    def changed(*overrides: str, **changes: Any) -> list[str]:
        found = build_differences(make_config(list(overrides), **changes), built, manifest)
        return [difference.key for difference in found]

    for free in ("cache_limit=1G", "cache=elsewhere", "out=elsewhere", "train.seed=5", "evaluate.beams=3",
                 "model.init_seed=4", "init={checkpoint: x, mode: restart}", "tokenizer_engine=reference",
                 "max_bad_fraction=0.5", "streams.mono.assume={tokens: 1B}", "stages.0.restart_learning_rate=true",
                 "streams.more={documents: [x.jsonl]}", "languages={de: German}"):  # fmt: skip
        assert changed(free) == [], free
    assert changed("batch_size=4") == ["batch_size"]
    assert changed("languages={zh: Mandarin}") == ["languages.zh"]
    moved = tmp_path / "copy.model"
    shutil.copy(config.tokenizer, moved)
    assert changed(tokenizer=str(moved)) == []
    other = moved.with_name("gone.model")
    assert changed(tokenizer=str(other)) == []  # its content is unknown


def test_a_copied_store_is_planned_inspected_and_built_without_a_write(
    make_config: ConfigMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    manifest = build(config).manifest
    moved = tmp_path / "moved"
    shutil.copytree(config.store, moved)
    shutil.rmtree(config.store)
    path = tmp_path / "experiment.yaml"
    plan = load_plan(str(path), [f"store={moved}", "cache_limit=1G"])
    assert (plan.manifest, plan.assumed) == (manifest, ())
    before = {file: file.stat().st_mtime_ns for file in moved.rglob("*")}
    for command in (["build"], ["plan"], ["inspect", "--stream", "mono", "--sample", "0"]):
        with pytest.raises(SystemExit) as stop:
            main([command[0], str(path), *command[1:], f"store={moved}", "cache_limit=1G"])
        assert stop.value.code == 0
    assert f"nothing to do: {moved}/experiments/small/manifest.json" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in moved.rglob("*")} == before


class ReadOnly(LocalStore):
    """A store on a disk that is mounted for reading."""

    def write(self, key: str, content: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), key)

    def remove_leftovers(self, prefix: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), prefix)


def test_a_store_that_cannot_be_written_is_read(make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config()
    manifest = build(config).manifest
    store = ReadOnly(config.store)
    result = build(make_config(["cache=elsewhere"]), store=store)
    assert (result.new, result.manifest) == (False, manifest)
    assert capsys.readouterr().err == ""
    result = build(make_config(["train.learning_rate=0.5"]), store=store)
    assert (result.new, result.manifest) == (False, manifest)
    assert "experiments/small/config.yaml is unchanged: " in capsys.readouterr().err
    Path(config.store, "source_hashes.json").unlink()
    assert not build(config, store=store).new
    assert "source_hashes.json is unchanged: " in capsys.readouterr().err
    with pytest.raises(OSError, match="Read-only"):
        build(make_config(["seed=5"]), store=store)


def test_changed_settings_of_training_are_written_down(make_config: ConfigMaker) -> None:
    config = make_config()
    build(config)
    build(make_config(["train.learning_rate=0.5"]))
    built = read_built_config(open_store(config.store), config.name)
    assert built.train.learning_rate == 0.5


def test_a_parent_counts_by_what_it_holds(make_config: ConfigMaker, tmp_path: Path) -> None:
    parent = build(make_config())
    copy = tmp_path / "parent.json"
    shutil.copy(parent.path, copy)

    def child(path: object, step: int = 6) -> Config:
        return make_config(name="child", stages=[{"name": "more", "steps": 2, "mix": {"mono": 1}}],
                           parent={"manifest": str(path), "step": step})  # fmt: skip

    config = child(parent.path)
    manifest = build(config).manifest
    built = read_built_config(open_store(config.store), "child")
    assert build_differences(child(copy), built, manifest) == []
    assert [one.key for one in build_differences(child(copy, 5), built, manifest)] == ["parent.step"]
    copy.write_bytes(build(make_config(["seed=4"], name="other")).manifest.content)
    assert [one.key for one in build_differences(child(copy), built, manifest)] == ["parent.manifest"]


def test_a_damaged_config_of_a_build_is_named(make_config: ConfigMaker) -> None:
    config = make_config()
    build(config)
    store = open_store(config.store)
    store.write("experiments/small/config.yaml", b"stages: [")
    with pytest.raises(InputError, match=r"experiments/small/config\.yaml cannot be used: .*Build again"):
        read_built_config(store, "small")
    with pytest.raises(InputError, match=r"no .*/experiments/none/config\.yaml beside the manifest"):
        read_built_config(store, "none")
    build(config)  # writes it again
    assert read_built_config(store, "small") == config


def test_a_resolved_config_differs_from_itself_in_nothing(make_config: ConfigMaker, tmp_path: Path) -> None:
    config = make_config()
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert differences(config, load_config(path), of=DECISIONS) == []
    assert differences(config, Config.model_validate(yaml.safe_load(dump_config(config))), of=DECISIONS) == []
