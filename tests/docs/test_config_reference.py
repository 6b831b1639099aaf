from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from dataengine.config.describe import walk
from docs.generate.config import json_schema, pages
from tests.conftest import ROOT

FILES = sorted((ROOT / "yamls").rglob("*.yaml"))
SCHEMA = Draft7Validator(json_schema())
SMALL: dict[str, Any] = {
    "base": "base.yaml",
    "streams": {
        "docs": {"documents": ["a"], "assume": {"tokens": 1}, "clean": {"document_rules": {}, "subsets": {}}},
        "pairs": {"pairs": ["a"], "clean": {"pair_rules": {}}, "scores": {"thresholds": {"zh-en": 0.4}}},
    },
    "budget": {"steps": 1},
    "stages": [{"name": "a", "mix": {"docs": 1}}],
    "parent": {},
    "init": {},
    "model": {},
    "train": {"wandb": {}},
    "evaluate": {"dev": {}, "test": {}},
}


def mappings(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The sections in a file, with their places."""
    if isinstance(value, dict):
        yield at, value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from mappings(inner, (*at, key))


@pytest.mark.parametrize("name", list(pages()))
def test_what_is_committed_is_what_is_generated(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == pages()[name], "run python -m docs.generate"


def test_the_schema_is_one_and_requires_nothing_that_a_base_may_state() -> None:
    Draft7Validator.check_schema(SCHEMA.schema)
    SCHEMA.validate({})
    SCHEMA.validate(SMALL)
    assert [name for name, section in SCHEMA.schema["definitions"].items() if "required" in section] == ["StageConfig"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_fits_the_schema_and_names_it(path: Path) -> None:
    text = path.read_text()
    SCHEMA.validate(yaml.safe_load(text))
    place = os.path.relpath(ROOT / "yamls" / "schema.json", path.parent)
    assert text.startswith(f"# yaml-language-server: $schema={place}\n")


@pytest.mark.parametrize("at", [at for at, _ in mappings(SMALL) if at not in (("streams",),)], ids=str)
def test_a_misspelt_key_does_not_fit_at_any_level(at: tuple[Any, ...]) -> None:
    changed = json.loads(json.dumps(SMALL))
    dict(mappings(changed))[at]["mis.spelt"] = {}
    assert not SCHEMA.is_valid(changed)


def test_every_key_is_in_the_schema_under_both_names_with_its_description() -> None:
    definitions = {"Config": SCHEMA.schema, **SCHEMA.schema["definitions"]}
    for key in walk():
        properties = definitions[key.section.__name__]["properties"]
        assert properties[key.name]["description"] == key.description
        assert key.old_name is None or f"`{key.name}`" in properties[key.old_name]["description"]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("streams: {mono: null}", True),
        ("streams: {mono: {epochs: 2}}", True),
        ("streams: {mono: {passes: 2}}", True),
        ("streams: {mono: {documents: [a], directions: [en-zh]}}", False),
        ("streams: {mono: {pairs: [{en: a, zh: b}], targets: shuffled, columns: heading}}", True),
        ("streams: {mono: {pairs: [a], targets: mixed}}", False),
        ("streams: {mono: {pairs: a}}", False),
        ("streams: {mono: {assume: {tokens: 162.5B}}}", True),
        ("streams: {mono: {assume: {tokens: 162.5Q}}}", False),
        ("streams: {mono: {clean: null}}", False),
        ("evaluate: {dev: {en-zh: null, zh-en: {en: a, zh: b}}, shots: [0], beams: 5}", True),
        ("evaluate: {num_fewshot: [0, 5], num_beams: 5, selection_directions: [en-zh]}", True),
        ("evaluate: {dev: {en_zh: a}}", False),
        ("seq_len: 32_768", True),
        ('seq_len: "32_768"', True),  # as YAML 1.2 reads it
        ("seq_len: 0", False),
        ("seq_len: 1.5", False),
        ("seq_len: true", False),
        ("seq_len: null", False),
        ("cache_limit: null", True),
        ("train: {learning_rate: 4e-4}", True),  # a text in YAML 1.1
        ("train: {learning_rate: 0}", False),
        ("train: {decay_steps: end, microbatch_size: auto, betas: [0.9, 0.95], spike_factor: null}", True),
        ("train: {decay_steps: never}", False),
        ("train: {betas: [0.9]}", False),
        ("train: {wandb: {project: p, mode: offline}}", True),
        ("stages: [{name: a, steps: 155_000, mix: {a: by_size}}]", True),
        ("stages: [{name: a, steps: 1, mix: {a: most}}]", False),
        ("stages: [{steps: 1, mix: {a: 1}}]", False),
        ("base: [a.yaml]", False),
    ],
)
def test_what_fits_the_schema(text: str, fits: bool) -> None:
    assert SCHEMA.is_valid(yaml.safe_load(text)) == fits


def test_every_key_has_one_row_in_the_reference() -> None:
    page = pages()["docs/reference/config.md"]
    rows = re.findall(r"^\| `(\w+)`", page, flags=re.MULTILINE)
    keys = {key.path: key for key in walk()}
    # Keys of both kinds of stream appear once; `clean` of each kind has a row
    assert len(rows) == len(keys) + 1
    assert set(rows) == {key.name for key in keys.values()}
    for key in keys.values():
        assert key.old_name is None or f"| `{key.name}` (old name: `{key.old_name}`" in page


def test_links_of_the_reference_lead_to_headings() -> None:
    page = pages()["docs/reference/config.md"]
    headings = {
        re.sub(r"[^\w -]", "", title).replace(" ", "-").lower() for title in re.findall("^## (.*)$", page, re.M)
    }
    links = re.findall(r"\]\(#([^)]*)\)", page)
    assert len(links) > 30
    assert set(links) <= headings
