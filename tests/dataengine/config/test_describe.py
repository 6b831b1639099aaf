from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from dataengine.config.aliases import ALIASES
from dataengine.config.describe import Key, describe_section, descriptions, walk
from dataengine.config.fields import decision_of, dotted
from dataengine.config.schema import Config
from dataengine.config.streams import DocumentStream, PairStream, StreamConfig

KEYS = list(walk())
SECTIONS = list(dict.fromkeys([Config, *(inner for key in KEYS for inner in key.inner)]))


def key(path: str, section: type[BaseModel] | None = None) -> Key:
    return next(one for one in KEYS if one.path == path and section in (None, one.section))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_every_section_is_described(section: type[BaseModel]) -> None:
    known = descriptions(section)
    assert set(section.model_fields) <= set(known)
    for name in section.model_fields:
        text = known[name]
        assert len(words(text) - words(name.replace("_", " "))) >= 4, f"{section.__name__}.{name}: {text}"
        assert re.fullmatch(r"[A-Z`].*\.", text), f"{section.__name__}.{name}: {text}"
        assert text.count(". ") <= 3, f"{section.__name__}.{name} is long: {text}"
    assert len(set(known.values())) == len(known)
    assert len(words(describe_section(section))) >= 4


def test_all_sections_are_found() -> None:
    assert len(KEYS) > 150
    names = {section.__name__ for section in SECTIONS}
    assert {
        "Config",
        "PairStream",
        "DocumentStream",
        "PairRules",
        "WandbConfig",
        "SubsetsConfig",
        "AssumeConfig",
    } <= names


def test_the_docstring_behind_a_field_is_its_description_also_where_it_is_inherited_or_annotated() -> None:
    epochs = "How many times the schedule may read the whole stream. Each epoch has an order of its own."
    assert descriptions(StreamConfig)["passes"] == epochs
    assert key("streams.STREAM.epochs", DocumentStream).description == epochs
    assert key("streams.STREAM.epochs", PairStream).description == epochs
    assert key("lanes").description.startswith("Cut each stream into N parts; each serves one N-th of every batch.")
    assert "gradient accumulation" in key("train.microbatch_size").description.lower()
    assert describe_section(StreamConfig) == (
        "A stream: the location of its records, their form as text, and the number of epochs."
    )


def test_a_class_may_override_a_description() -> None:
    class Child(Config):
        lanes: int = 1
        """Another text."""

    assert descriptions(Child)["lanes"] == "Another text."
    assert descriptions(Child)["name"] == descriptions(Config)["name"]


@pytest.mark.parametrize(
    ("path", "type_", "default", "decides"),
    [
        ("name", "name", "", "plan"),
        ("seed", "whole number from 0", "17", "plan"),
        ("part_bytes", "whole number from 1 (such as 2_000 or 2M)", "128_000_000", "bytes"),
        ("languages", "mapping {text: text}", "{en: English, zh: Chinese, id: Indonesian}", "bytes"),
        ("shard_hashes", "list of `xxh64`, `xxh3_128` or `sha256`", "[xxh64]", "bytes"),
        ("streams.STREAM.pairs", "list of texts or mappings {text: text}", "", "bytes"),
        ("streams.STREAM.targets", "`adjacent` or `shuffled`", "adjacent", "bytes"),
        ("streams.STREAM.epochs", "whole number from 1 (such as 2_000 or 2M)", "1", "plan"),
        ("streams.STREAM.clean.near_dedup", "number above 0, below 1 or null", "", "bytes"),
        ("streams.STREAM.clean.pair_rules.max_repeated_share", "number from 0 to 1 or null", "0.5", "bytes"),
        ("stages.STAGE.mix", "mapping {name: number above 0 or `by_size`, `all` or `rest` or `by_size^A`}", "", "plan"),
        ("stages.STAGE.checkpoint_interval", "whole number from 1 (such as 2_000 or 2M) or null", "", "training"),
        ("parent.manifest", "text", "", "nothing"),
        ("train.betas", "list of two numbers from 0, below 1", "[0.9, 0.95]", "training"),
        ("train.decay_steps", "whole number from 1 (such as 2_000 or 2M) or `end`", "1_430_512", "training"),
        ("train.wandb.mode", "`online` or `offline`", "online", "nothing"),
        ("evaluate.num_fewshot", "list of whole numbers from 0", "[0]", "training"),
    ],
)
def test_type_default_and_what_a_key_decides(path: str, type_: str, default: str, decides: str) -> None:
    found = key(path)
    assert (found.type, found.default, found.decides) == (type_, default, decides)


def test_a_key_that_states_what_it_decides_is_believed_and_others_follow_their_section() -> None:
    for one in KEYS:
        stated = decision_of(one.section, one.field)
        above = next((outer for outer in KEYS if one.section in outer.inner), None)
        assert one.decides == (stated or (above.decides if above else None))


def test_every_second_name_is_the_one_that_is_described() -> None:
    renamed = {one.path: one.old_name for one in KEYS if one.old_name}
    assert renamed == {dotted(loc): stored for loc, stored in ALIASES.items()}


def test_what_must_be_stated_is_required() -> None:
    required = {one.path for one in KEYS if one.is_required and "." not in one.path}
    assert required == {"name", "tokenizer", "streams", "stages"}
