from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dataengine.config.aliases import ALIASES, first_name
from dataengine.config.load import dump_config, load_config
from tests.dataengine.config.files import BASE, message, write

OLD = "  mono: {pairs: [a], directions: [en-zh, zh-en], adjacent: false, passes: 3}"
NEW = "  mono: {pairs: [a], directions: [en-zh, zh-en], targets: shuffled, epochs: 3}"
OLD_EVALUATE = "evaluate: {dev: {en-zh: d.tsv}, choose_by: [en-zh], shots: [0, 5], beams: 5}\n"
NEW_EVALUATE = "evaluate: {dev: {en-zh: d.tsv}, selection_directions: [en-zh], num_fewshot: [0, 5], num_beams: 5}\n"


def experiment(stream: str, evaluate: str) -> str:
    return BASE.replace("  mono:\n    documents: [a.jsonl]", stream) + evaluate


def test_both_names_of_a_key_make_one_config(tmp_path: Path) -> None:
    old = load_config(write(tmp_path, "old.yaml", experiment(OLD, OLD_EVALUATE)))
    new = load_config(write(tmp_path, "new.yaml", experiment(NEW, NEW_EVALUATE)))
    assert new == old
    assert dump_config(new) == dump_config(old)
    stored = yaml.safe_load(dump_config(new))
    sections = {**stored, "streams": {key: 0 for stream in stored["streams"].values() for key in stream}}
    assert not [key for section, *_, key in ALIASES if key in sections[str(section)]]
    assert (old.streams["mono"].passes, old.evaluate.choose_by) == (3, ("en-zh",))


def test_overrides_take_both_names(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", experiment(OLD, OLD_EVALUATE))
    assert load_config(path, ["streams.mono.targets=adjacent"]) == load_config(path, ["streams.mono.adjacent=true"])
    assert load_config(path, ["evaluate.num_fewshot.1=7", "evaluate.beams=1", "evaluate.num_beams=2"]) == (
        load_config(path, ["evaluate.shots=[0, 7]", "evaluate.beams=2"])
    )
    assert load_config(path, ["evaluate={num_beams: 2}"]).evaluate.beams == 2


@pytest.mark.parametrize(("base", "child", "passes"), [("passes: 2", "epochs: 3", 3), ("epochs: 2", "passes: 3", 3)])
def test_either_name_of_a_child_replaces_either_of_its_base(tmp_path: Path, base: str, child: str, passes: int) -> None:
    write(tmp_path, "base.yaml", BASE.replace("documents: [a.jsonl]", f"documents: [a.jsonl]\n    {base}"))
    path = write(tmp_path, "a.yaml", f"base: base.yaml\nstreams: {{mono: {{{child}}}}}\n")
    assert load_config(path).streams["mono"].passes == passes


@pytest.mark.parametrize("order", [("passes: 2", "epochs: 2"), ("epochs: 2", "passes: 2")])
def test_a_key_under_both_names_is_refused_with_both_lines(tmp_path: Path, order: tuple[str, str]) -> None:
    text = BASE.replace("documents: [a.jsonl]", "documents: [a.jsonl]\n    " + "\n    ".join(order))
    path = write(tmp_path, "a.yaml", text)
    new, old = (6 + order.index(f"{key}: 2") for key in ("epochs", "passes"))
    assert message(path) == (
        f"{path}, line {new}: key 'streams.mono.epochs' is another name for 'passes', which is also given in "
        f"{path}, line {old}. Remove one."
    )
    assert message(write(tmp_path, "b.yaml", BASE), "evaluate={beams: 1, num_beams: 1}").startswith(
        "override 'evaluate={beams: 1, num_beams: 1}': key 'evaluate.num_beams' is another name for 'beams', "
    )


def test_a_mistake_names_the_key_that_was_written(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", BASE.replace("documents: [a.jsonl]", "documents: [a.jsonl]\n    epochs: 0"))
    assert message(path) == f"{path}, line 6 (`epochs`): streams.mono.passes: expected a number greater than 0, got 0."
    path = write(tmp_path, "b.yaml", experiment(NEW.replace("shuffled", "random"), ""))
    assert message(path) == f"{path}, line 4: streams.mono.targets: expected adjacent or shuffled, got 'random'."
    path = write(tmp_path, "c.yaml", BASE)
    assert message(path, "streams.mono.targets=[]").endswith("expected adjacent or shuffled, got [].")
    assert message(path, "evaluate.num_beams=0").startswith(
        "override evaluate.num_beams=0: evaluate.beams: expected a "
    )
    assert "(did you mean 'streams.STREAM.epochs'?)" in message(path, "train.epochs=3")


def test_a_stream_or_a_section_elsewhere_may_have_the_name_of_an_alias() -> None:
    for loc in (("streams", "epochs"), ("stages", 0, "epochs"), ("train", "num_beams"), (), ("streams", "a", "keys")):
        assert first_name(loc) == loc
    assert first_name(("streams", "epochs", "epochs")) == ("streams", "epochs", "passes")
    assert first_name(("evaluate", "num_fewshot", 1)) == ("evaluate", "shots", 1)
