"""YAML of documents, validated by the models of dataengine.config.

A block is one of an experiment if its fence says yaml, or it has no fence and reads as a mapping whose first key is a
key of a config. Whole experiments (with `base`, or with `name`, `streams` and `stages`) are loaded as they are; parts
of one are laid over yamls/base/paper.yaml, so that their values are validated, too. A block of YAML none of whose keys
is like one of a config belongs to another program and is not checked. `...` makes a block a sketch of which the first
keys alone are checked.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from dataengine.cleaning.rules.settings import DocumentRules, PairRules
from dataengine.config.aliases import ALIASES
from dataengine.config.load import load_config
from dataengine.config.schema import Config, StageConfig
from dataengine.config.streams import DocumentClean, DocumentStream, PairClean, PairStream
from dataengine.errors import InputError
from tests.docs.commands import Place
from tests.docs.documents import ROOT, Block, Document

_NAMED = re.compile(r"\byamls/[\w/-]+\.yaml\b")
_ANY = "*"  # in a path: any name


@cache
def key_paths() -> frozenset[tuple[str, ...]]:
    """Every key of a config as a path; `*` means names and numbers."""
    found = set(_paths_of(Config, ())) | {("base",)}
    for (*above, alias), stored in ALIASES.items():
        path = tuple(_ANY if name.isupper() else name for name in above)
        found |= {(*path, alias, *rest[len(path) + 1 :]) for rest in found if rest[: len(path) + 1] == (*path, stored)}
    return frozenset(found)


def _paths_of(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        yield (*above, name)
        for inner in _models_in(info.annotation):
            many = re.search(r"\b(dict|Mapping|tuple)\[", str(info.annotation)) is not None
            yield from _paths_of(inner, (*above, name, _ANY) if many else (*above, name))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


@cache
def all_keys() -> frozenset[str]:
    """Every name of a key, in any section."""
    return frozenset(name for path in key_paths() for name in path if name != _ANY)


def is_key(path: tuple[str, ...]) -> bool:
    """Whether a path names a key: from the top, or from any section on (`clean.dedup`)."""
    return any(_ends_with(known, path) for known in key_paths())


def _ends_with(known: tuple[str, ...], path: tuple[str, ...]) -> bool:
    end = known[len(known) - len(path) :]
    return len(known) >= len(path) and all(one in (_ANY, name) for one, name in zip(end, path, strict=True))


def read_experiment(block: Block) -> dict[str, Any] | None:
    """The mapping of a block that is (part of) an experiment; None for any other block.

    Raises ValueError, with the block's place, for a block that is called YAML and is none.
    """
    if block.language not in ("yaml", "yml", ""):
        return None
    try:
        found = yaml.safe_load(block.text)
    except yaml.YAMLError as error:
        if block.language:
            raise ValueError(f"{block.at(0)}: not YAML: {' '.join(str(error).split())}") from None
        return None
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        return None
    keys = [*found]
    if block.language:
        near = [key for key in keys if key in all_keys() or difflib.get_close_matches(key, all_keys(), 1, 0.8)]
        return found if near else None
    return found if keys[0] in all_keys() and all(re.fullmatch(r"[a-z_]+", key) for key in keys) else None


def name_of(block: Block) -> str | None:
    """The path under which a block is to be saved: in its first line as a comment, or in the line before it."""
    first = block.lines[0] if block.lines else ""
    if first.startswith("#") and (found := _NAMED.search(first)):
        return found[0]
    found = _NAMED.search(block.before)
    return found[0] if found and re.search(r"\b(save|write|put|create)\b", block.before, re.IGNORECASE) else None


def make_place(folder: Path, document: Document) -> Place:
    """A copy of yamls/ with the experiments that a page shows under a name."""
    shutil.copytree(ROOT / "yamls", folder / "yamls", dirs_exist_ok=True)
    for block in document.blocks:
        name = name_of(block)
        if name and not (ROOT / name).is_file() and block.language in ("yaml", "yml", ""):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block.text, encoding="utf-8")
    return Place(folder)


def problems(block: Block, place: Place) -> list[str]:
    """What is wrong with a block of YAML, each with FILE:LINE."""
    try:
        found = read_experiment(block)
    except ValueError as error:
        return [str(error)]
    if found is None:
        return []
    if "..." in block.text:
        return [f"{block.at(0)}: there is no key {key}" for key in found if key not in all_keys()]
    text = block.text if "base" in found or {"name", "streams", "stages"} <= found.keys() else _laid_over(found)
    name = name_of(block) or f"yamls/{_folder_for(found.get('base'), place)}_shown.yaml"
    path = place.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    try:
        load_config(path)
    except InputError as error:
        return [
            f"{block.at(_line_of(line, text, block))}: {_without_place(line, path)}" for line in str(error).splitlines()
        ]
    finally:
        if name.endswith("_shown.yaml"):
            path.unlink()
    return []


def _folder_for(base: object, place: Place) -> str:
    """The folder below yamls/ from which a `base` is found."""
    folders = ["", "mine/", "mini/"]
    return next((one for one in folders if (place.folder / "yamls" / one / str(base)).is_file()), "")


def _laid_over(found: dict[str, Any]) -> str:
    """A part of an experiment as a whole one: its section, its stages and its streams are added where it has none."""
    part = _in_its_section(found)
    stages = part.setdefault("stages", [{"name": "shown", "steps": 1, "mix": {"mono": 1}}])
    part.setdefault("name", "shown")
    streams = part.setdefault("streams", {})
    mixes = [stage.get(key) or {} for stage in stages if isinstance(stage, Mapping) for key in ("mix", "to_mix")]
    base = yaml.safe_load((ROOT / "yamls/base/paper.yaml").read_text(encoding="utf-8"))["streams"]
    for name in (name for mix in mixes if isinstance(mix, Mapping) for name in mix):
        if name not in base and isinstance(streams, dict):
            streams.setdefault(name, {"documents": ["corpora/shown.jsonl"], "assume": {"tokens": "1B"}})
    return yaml.safe_dump({"base": "base/paper.yaml", **part}, sort_keys=False, allow_unicode=True)


def _in_its_section(found: dict[str, Any]) -> dict[str, Any]:
    """A part below the keys where it belongs: a stream, its cleaning, a stage, or the section that has its keys."""
    keys = found.keys()
    if keys <= _names(Config):
        return dict(found)
    if keys <= _names(DocumentStream) | _names(PairStream):
        return {"streams": {"mono": None, "shown": found}, "stages": [{"name": "s", "steps": 1, "mix": {"shown": 1}}]}
    if keys <= _names(StageConfig):
        return {"stages": [found]}
    for rules, clean, section in (
        (PairRules, PairClean, "pair_rules"),
        (DocumentRules, DocumentClean, "document_rules"),
    ):
        if keys <= _names(rules):
            return _in_its_section({"clean": {section: found}, **_source(section)})
        if keys <= _names(clean):
            return _in_its_section({"clean": found, **_source(section)})
    for section in ("train", "evaluate", "model", "init", "parent"):
        (model,) = _models_in(Config.model_fields[section].annotation)
        if keys <= _names(model) | {path[-1] for path in ALIASES if path[0] == section}:
            return {section: found}
    return dict(found)  # the error of the unknown key says which one


def _source(section: str) -> dict[str, Any]:
    if section == "document_rules":
        return {"documents": ["corpora/shown.jsonl"]}
    return {"pairs": ["corpora/shown.jsonl"], "directions": ["en-zh"]}


def _names(model: type[BaseModel]) -> frozenset[str]:
    others = {path[-1] for path in ALIASES if path[0] == "streams"} if model in (DocumentStream, PairStream) else set()
    return frozenset(model.model_fields) | others


def _line_of(message: str, text: str, block: Block) -> int:
    """The line of a block, from 0, that a message is about; the first one if that is not known."""
    found = re.search(r", line (\d+)", message)
    if not found:
        return 0
    if text == block.text:
        return int(found[1]) - 1
    line = text.splitlines()[int(found[1]) - 1].strip()  # of the YAML that was written again: look for its key
    key = re.match(r"[\w-]+", line.lstrip("- "))
    return next((n for n, one in enumerate(block.lines) if key and re.search(rf"\b{key[0]}\b", one)), 0)


def _without_place(message: str, path: Path) -> str:
    return re.sub(r"^line \d+: ", "", message.replace(f"{path}, ", "").replace(str(path), "the block"))
