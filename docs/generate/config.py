"""docs/reference/config.md and yamls/schema.json: every key of an experiment's YAML, from the models of the config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from dataengine.config.aliases import VALUES
from dataengine.config.describe import Key, describe_section, walk
from dataengine.config.fields import DECISIONS
from dataengine.config.schema import Config
from dataengine.config.streams import CleanConfig, DocumentStream, PairStream, StreamConfig

_HEAD = """<!-- Generated from dataengine/config by docs/generate/config.py. Do not edit: python -m docs.generate -->
# Settings

One YAML file is one experiment. `dataengine config CONFIG` prints every key of an experiment with the file and line
that set it. `dataengine config CONFIG --key KEY` prints one key with its description.

**Base.** `base: PATH` names a YAML file that this file changes. The path is relative to the file that names it; all
other paths are relative to the working directory. Mappings merge key by key. Lists and plain values replace those of
the base. null drops a stream or an evaluation set of the base, and with `init.hf` also `model` and
`tokenizer`.

**Overrides.** `KEY=VALUE` on the command line replaces a key last, such as `batch_size=64`, `train.max_steps=100` or
`stages.1.steps=40`. Stages count from 0.

**Numbers.** A whole number may have underscores, and most may end in K, M, B (or G) or T: `32_768`, `80K`, `2.1B`.

**Second names.** Some keys had another name in earlier versions. The old name still works and is given beside the key.
Built configs are stored under the old names.

**Sections.** A section is a mapping with keys of its own.

**Names in capitals.** STREAM is the name of a stream, N a number, RUN a run folder.

**Decides.** The column says what changes with a key:

| decides | what changes | after a change |
| --- | --- | --- |
| bytes | {bytes} | Build again. Streams that the key does not affect are reused. |
| plan | {plan} | Build again. A run resumes if its past steps stay the same. |
| training | {training} | Start training or evaluation again. Streams and plan stay. |
| nothing | {nothing} | No action. |

Editors with the YAML language server, such as VS Code with the YAML extension, complete keys and show these
descriptions if the first line of a file names the schema, relative to the file:

    # yaml-language-server: $schema=../schema.json

"""

# Headings in a reader's order -> the keys below it; a kind of stream where a key belongs to that kind alone
_SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "Top level": ("", Config),
    "streams.STREAM": ("streams.STREAM", StreamConfig),
    "streams.STREAM with documents": ("streams.STREAM", DocumentStream),
    "streams.STREAM with pairs": ("streams.STREAM", PairStream),
    "streams.STREAM.clean": ("streams.STREAM.clean", CleanConfig),
    **{
        path: (path, section)
        for path, section in dict.fromkeys(
            (key.path, inner) for key in walk() for inner in key.inner if not key.path.endswith((".clean", "streams"))
        )
    },
}
_ORDER = (
    *("Top level", "streams.STREAM", "streams.STREAM with documents", "streams.STREAM with pairs"),
    *("streams.STREAM.clean", "streams.STREAM.clean.document_rules", "streams.STREAM.clean.pair_rules"),
    *("streams.STREAM.clean.subsets", "streams.STREAM.scores", "streams.STREAM.assume"),
    *("stages", "budget", "parent", "init", "model", "train", "train.wandb", "evaluate"),
)
_LITERAL = re.compile(r"(`[^`]*`)|(\{[^{}]*\}|\[[^\[\]]*\])")


def pages() -> dict[str, str]:
    """The reference page and the JSON schema for editors."""
    schema = json.dumps(json_schema(), indent=1, ensure_ascii=False)
    return {"docs/reference/config.md": reference(), "yamls/schema.json": f"{schema}\n"}


def reference() -> str:
    """All sections with their keys as Markdown."""
    assert set(_ORDER) == set(_SECTIONS), set(_ORDER) ^ set(_SECTIONS)
    contents = "".join(f"- [`{title}`](#{_anchor(title)})\n" for title in _ORDER)
    return _HEAD.format(**DECISIONS) + contents + "".join(_section(title, *_SECTIONS[title]) for title in _ORDER)


def _section(title: str, path: str, section: type[BaseModel]) -> str:
    about = [_prose(paragraph) for paragraph in describe_section(section).split("\n")]
    lines = ["", f"## {title}" if " " in title else f"## `{title}`", ""]
    lines += [line for paragraph in about for line in (paragraph, "")]
    lines += ["| key | type | default | decides | meaning |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *(_row(key) for key in _keys(path, section)), ""])


def _keys(path: str, section: type[BaseModel]) -> list[Key]:
    """The keys of a section, each once; of a kind of stream only those that the other kind does not have."""
    if section is StreamConfig:
        return [key for key in _below(path) if key.section is DocumentStream and key.field in StreamConfig.model_fields]
    if section in (DocumentStream, PairStream):
        own = [key for key in _below(path) if key.section is section and key.field not in StreamConfig.model_fields]
        return sorted(own, key=lambda key: key.field not in ("documents", "pairs"))
    return list({key.path: key for key in _below("stages.STAGE" if path == "stages" else path)}.values())


def _below(path: str) -> list[Key]:
    return [key for key in walk() if key.path.rpartition(".")[0] == path]


def _row(key: Key) -> str:
    name = f"`{key.name}`" + (f" (old name: `{_old(key)}`)" if key.old_name else "")
    default = "required" if key.is_required else f"`{key.default}`" if key.default else ""
    cells = (name, _type(key), default, key.decides, _prose(key.description))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _old(key: Key) -> str:
    """The old name of a key; where its values had other names too, with those."""
    words = [f"{str(stored).lower()} for {value}" for value, stored in VALUES.get(key.name, {}).items()]
    return f"{key.old_name}`, with `{'`, `'.join(words)}" if words else str(key.old_name)


def _type(key: Key) -> str:
    """The type in words, with a link to the keys of a section."""
    title = key.path if key.path in _SECTIONS else "streams.STREAM"
    return re.sub(r"\bsections?\b", lambda word: f"[{word[0]}](#{_anchor(title)})", key.type)


def _prose(text: str) -> str:
    """A description with YAML literals as code."""
    return _LITERAL.sub(lambda found: found[1] or f"`{found[2]}`", text)


def _anchor(title: str) -> str:
    """The anchor that Python-Markdown and GitHub give a heading."""
    return re.sub(r"[^\w -]", "", title).replace(" ", "-").lower()


_COUNT = r"^\d(_?\d)*$|^\d(_?\d)*(\.\d+)?[KMBGT]$"
_WHOLE = r"^-?\d(_?\d)*$"
_DECIMAL = r"^[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_BASE = (
    "A YAML file that this file changes, relative to this file. Mappings merge key by key; lists and plain values "
    "replace those of the base."
)


def json_schema() -> dict[str, Any]:
    """The JSON schema of an experiment's YAML file for editors.

    A file states only what its base lacks, so no key is required but in lists, which replace those of the base.
    """
    schema = Config.model_json_schema(ref_template="#/definitions/{model}")
    definitions = schema.pop("$defs")
    of_section: dict[str, list[Key]] = {}
    for key in walk():
        of_section.setdefault(key.section.__name__, []).append(key)
    made = {name: _section_schema(of_section[name], definitions.get(name, schema)) for name in of_section}
    top = made.pop("Config")
    streams, sets = top["properties"]["streams"], made["EvaluateConfig"]["properties"]
    for mapping in (streams, sets["dev"], sets["test"], sets["examples"]):
        ((_, value),) = mapping["patternProperties"].items()
        value["anyOf"].append({"type": "null"})
    model = top["properties"]["model"]
    model["anyOf"] = [*model.pop("allOf"), {"type": "null"}]
    for kind in ("DocumentStream", "PairStream"):
        columns = made[kind]["properties"]["columns"]
        columns["anyOf"] = [{word: columns.pop(word) for word in ("type", "items")}, {"const": "heading"}]
    template = made["PairStream"]["properties"]["template"]
    template["anyOf"] = [{word: template.pop(word) for word in ("type", "additionalProperties")}, {"type": "string"}]
    pairs, directions = (made["PairStream"]["properties"][key] for key in ("pairs", "directions"))
    pattern = {"type": "string", "pattern": r"\{(src|tgt)\}"}
    lists = {word: pairs.pop(word) for word in ("type", "items")}
    pairs["anyOf"] = [lists, pattern, {"type": "object", "additionalProperties": pattern}]
    directions["anyOf"] = [{word: directions.pop(word) for word in ("type", "items")}, {"const": "all"}]
    made["StageConfig"]["required"] = ["name", "mix"]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "Generated from dataengine/config by docs/generate/config.py. Do not edit: python -m docs.generate",
        "title": "An experiment of dataengine",
        **top,
        "properties": {"base": {"type": "string", "description": _BASE}, **top["properties"]},
        "definitions": made,
    }


def _section_schema(keys: list[Key], schema: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for key in keys:
        stored = _adapt(schema["properties"][key.field]) | _default(key)
        if "$ref" in stored:  # draft 7 ignores keys beside a reference
            stored = {"allOf": [{"$ref": stored["$ref"]}]}
        if key.old_name:
            properties[key.old_name] = {**stored, "description": f"The old name of `{key.name}`. {key.description}"}
        if key.old_name and key.name in VALUES:
            stored = {"enum": list(VALUES[key.name]), "default": key.default}
        properties[key.name] = {**stored, "description": key.description}
    about = describe_section(keys[0].section)
    return {"type": "object", "description": about, "additionalProperties": False, "properties": properties}


def _default(key: Key) -> dict[str, Any]:
    value = key.section.model_fields[key.field].get_default()
    return {"default": value} if isinstance(value, bool | int | float | str) else {}


def _adapt(schema: dict[str, Any]) -> dict[str, Any]:
    """A type of pydantic as YAML may state it: numbers also as texts such as 2.1B, 32_768 and 4e-4."""
    if schema.get("type") in ("integer", "number"):
        return {"anyOf": list(_number(schema))}
    kept = {word: value for word, value in schema.items() if word not in ("title", "default", "prefixItems")}
    if "prefixItems" in schema:
        kept["items"] = _adapt(schema["prefixItems"][0])
    elif "items" in schema:
        kept["items"] = _adapt(schema["items"])
    if kinds := kept.pop("oneOf", None) or kept.get("anyOf"):
        kept["anyOf"] = [inner for kind in kinds for inner in _flat(_adapt(kind))]
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _adapt(schema["additionalProperties"])
    if "patternProperties" in schema:
        kept["patternProperties"] = {key: _adapt(value) for key, value in schema["patternProperties"].items()}
        kept["additionalProperties"] = False
    return kept


def _flat(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema["anyOf"] if list(schema) == ["anyOf"] else [schema]


def _number(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A number with its bounds, those left out that only say what a computer can hold; and how texts state one."""
    words = {"gt": "exclusiveMinimum", "ge": "minimum", "le": "maximum"}  # of fields.Count and its like
    bounds = {words.get(word, word): value for word, value in schema.items() if word not in ("title", "default")}
    yield {word: value for word, value in bounds.items() if word == "type" or abs(value) < 2**31 - 1}
    whole = _COUNT if {"gt", "ge"} & set(schema) else _WHOLE
    yield {"type": "string", "pattern": whole if schema["type"] == "integer" else _DECIMAL}
