"""A text is read by libyaml where PyYAML gives the same tree on the same lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.layers import compose
from tests.conftest import ROOT

PARTS = st.sampled_from(
    ["a", "b: ", "1.5", "- ", ": ", ":", "\n", "\n  ", "  ", "{", "}", "[", "]", ", ", "'", '"', "#", " # ", "&x ",
     "*x", "\n---", "\n...", "<<: ", "~", "é", "😀", "\\", "=", "-", "\r\n", "\r", "@", "!", "!!str ", "| ", ">-\n",
     "? ", "%", "\t", "\u2028", "\x85", "\ufeff", "\x00", "\ud800"]
)  # fmt: skip


def tree(text: str, plain: bool) -> object:
    """The tree of a text with the line of each part, or the kind of error."""
    try:
        root = yaml.compose(text, yaml.SafeLoader) if plain else compose(text)
    except (yaml.YAMLError, ValueError) as error:
        return type(error)
    return root and described(root)


def described(node: yaml.Node) -> tuple[object, ...]:
    if isinstance(node, yaml.ScalarNode):
        return node.tag, node.value
    inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    return node.tag, node.start_mark.line, [(part.start_mark.line, described(part)) for part in inner]


@settings(max_examples=500)
@given(st.lists(PARTS, max_size=16).map("".join))
def test_any_text_is_read_as_by_pyyaml(text: str) -> None:
    for one in (text, f"a: {text}", f"- {text}\n- b"):
        assert tree(one, plain=False) == tree(one, plain=True)


@pytest.mark.parametrize("path", sorted((ROOT / "yamls").rglob("*.yaml")), ids=str)
def test_the_experiments_are_read_as_by_pyyaml(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tree(text, plain=False) == tree(text, plain=True)


def test_thousands_of_nested_brackets_are_an_error_and_no_crash() -> None:
    for text in ("[" * 100_000, "- " * 100_000):
        with pytest.raises(RecursionError):
            compose(text)
