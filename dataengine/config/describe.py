"""Everything about a key of a config: its description, type, default, names, and what it decides.

Descriptions are the docstrings behind the fields. They are read from the source on demand: pydantic's
`use_attribute_docstrings` would read them at each import, which adds 40 ms to the start of every command.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import yaml
from pydantic import BaseModel

from dataengine.config.aliases import ALIASES, VALUES
from dataengine.config.errors import EACH, sections_of
from dataengine.config.fields import (
    DIRECTION_PATTERN,
    LANGUAGE_PATTERN,
    MAX_NUMBER,
    SIZE_POWER_PATTERN,
    Decision,
    decision_of,
    dotted,
)
from dataengine.config.schema import Config

_NOUN = re.compile(r"text|name|direction|language code|whole number|number|mapping|section")
_OTHER_NAMES = {(*loc[:-1], stored): str(loc[-1]) for loc, stored in ALIASES.items()}


@dataclass(frozen=True)
class Key:
    """A key that a config may have."""

    path: str  # dotted, with STREAM and STAGE for any of them, such as streams.STREAM.epochs
    section: type[BaseModel]
    field: str
    old_name: str | None  # the name of its field, where that is another one
    decides: Decision
    inner: tuple[type[BaseModel], ...]  # sections in its value

    @property
    def name(self) -> str:
        """The key as documents write it."""
        return self.path.rpartition(".")[2]

    @property
    def description(self) -> str:
        """What it does, as one paragraph."""
        return descriptions(self.section)[self.field]

    @property
    def type(self) -> str:
        """Its possible values, in words."""
        if values := VALUES.get(self.name) if self.old_name else None:
            return _one_of(list(values))
        return _type_words(_properties(self.section)[self.field])

    @property
    def default(self) -> str:
        """Its default as YAML; empty if there is none, or the description states it."""
        field = self.section.model_fields[self.field]
        if field.is_required() or isinstance(field.default, BaseModel) or "Default: " in self.description:
            return ""
        value = written_value(self, field.default)
        return f"{value:_}" if type(value) is int else flow(value)

    @property
    def is_required(self) -> bool:
        """Whether an experiment, together with its bases, must state it wherever it has its section."""
        return self.section.model_fields[self.field].is_required() and "Default: " not in self.description


def walk(section: type[BaseModel] = Config, path: str = "", decides: Decision = "nothing") -> Iterator[Key]:
    """All keys below a section. A key of both kinds of stream comes once for each of them."""
    for field in section.model_fields:
        loc = (*path.split(".")[:-1], field)
        name = _OTHER_NAMES.get(loc)
        own = decision_of(section, field) or decides
        inner = tuple(sections_of(section.model_fields[field].annotation))
        yield Key(dotted((*loc[:-1], name or field)), section, field, field if name else None, own, inner)
        for below in inner:
            yield from walk(below, f"{path}{field}.{EACH.get(field, '')}", own)


def written_value(key: Key, value: object) -> object:
    """A value of a field as YAML states it under the key's name."""
    if key.old_name and key.name in VALUES:
        return next(word for word, stored in VALUES[key.name].items() if stored == value)
    return value


def flow(value: object, *, ascii_only: bool = False) -> str:
    """A value as YAML, on one line if no text has a line break; with `ascii_only` always on one line, with escapes."""
    style = '"' if ascii_only else None
    text = yaml.safe_dump(
        _plain(value), default_flow_style=True, default_style=style, width=10**9, allow_unicode=not ascii_only,
        sort_keys=False,
    )  # fmt: skip
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


@cache
def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """The docstring behind each field of a section, its own or inherited, as one paragraph."""
    found: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        if issubclass(parent, BaseModel) and parent is not BaseModel:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
            assert isinstance(node, ast.ClassDef)
            found |= field_docstrings(node)
    return found


def field_docstrings(node: ast.ClassDef) -> dict[str, str]:
    """The docstrings behind the fields of a class's source, each as one paragraph; fields without one are left out."""
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def describe_section(section: type[BaseModel]) -> str:
    """The docstring of a section, a paragraph a line."""
    paragraphs = inspect.cleandoc(section.__doc__ or "").split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


@cache
def _properties(section: type[BaseModel]) -> dict[str, Any]:
    properties: dict[str, Any] = section.model_json_schema()["properties"]
    return properties


def _type_words(schema: Mapping[str, Any]) -> str:
    """A type in words, from its JSON schema."""
    kinds = schema.get("anyOf") or schema.get("oneOf")
    if kinds:
        return " or ".join(dict.fromkeys(_type_words(kind) for kind in kinds))
    if "enum" in schema or "const" in schema:
        return _one_of(schema.get("enum") or [schema["const"]])
    if "$ref" in schema:
        return "section"
    match schema["type"]:
        case "integer" | "number":
            return _number_words(schema)
        case "array":
            items = schema.get("items") or schema["prefixItems"][0]
            count = "two " if "prefixItems" in schema else ""
            return f"list of {count}{_plural(_type_words(items))}"
        case "object":
            ((pattern, values),) = schema.get("patternProperties", {"": schema.get("additionalProperties")}).items()
            return f"mapping {{{_text_words(pattern)}: {_type_words(values)}}}"
        case "string":
            return _text_words(schema.get("pattern", ""))
        case kind:
            return {"boolean": "true or false", "null": "null"}[kind]


def _number_words(schema: Mapping[str, Any]) -> str:
    """A number with its bounds, without those that only say what a computer can hold."""
    words = "whole number" if schema["type"] == "integer" else "number"
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    # pydantic keeps the words `gt`, `ge` and `le` for `fields.Count` and its like
    least = schema.get("minimum", schema.get("ge", 1 if "gt" in schema else None))
    most = schema.get("maximum", schema.get("le"))
    bounds = [
        f"above {above:g}" if above is not None else "",
        f"from {least:g}" if least is not None and abs(least) < 2**31 else "",
        f"at most {most:_}" if most is not None and most < 2**31 - 1 else "",
        f"below {below:g}" if below is not None else "",
    ]
    stated = f"{words} {', '.join(filter(None, bounds))}".strip()
    stated = re.sub(r"(from \S+), at most", r"\1 to", stated)
    return f"{stated} (such as 2_000 or 2M)" if most == MAX_NUMBER else stated


def _text_words(pattern: str) -> str:
    known = {
        "": "text",
        DIRECTION_PATTERN: "direction",
        LANGUAGE_PATTERN: "language code",
        SIZE_POWER_PATTERN: "`by_size^A`",
    }
    return known.get(pattern, "text" if "zstd" in pattern else "name")


def _one_of(values: list[str]) -> str:
    return " or ".join([", ".join(f"`{value}`" for value in values[:-1]), f"`{values[-1]}`"][len(values) == 1 :])


def _plural(words: str) -> str:
    """The words of a type with its nouns in the plural, but not those of a mapping's entries."""
    outer, brace, entries = words.partition(" {")
    return " or ".join(_NOUN.sub(lambda noun: f"{noun[0]}s", part, count=1) for part in outer.split(" or ")) + (
        brace + entries
    )
