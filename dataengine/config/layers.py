"""Merge an experiment's file over its bases and under its overrides, and record the place that set each key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

from dataengine.config.aliases import first_name, lines_of_first_names, with_first_names
from dataengine.config.fields import Loc, dotted
from dataengine.errors import InputError

_MERGE = "tag:yaml.org,2002:merge"
# Characters that libyaml reads otherwise than PyYAML: texts with them, and those that it refuses, are read by PyYAML
_READ_OTHERWISE = re.compile("[!|>%?\t\ufeff\x85\u2028\u2029]")
_MOST_CHARACTERS = 10_000_000  # of a file
_MOST_NODES = 1_000_000  # of a file, with all aliases expanded


def read_layers(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[Loc, str]]:
    """The merged values, and for each key the file and line, or the override, that set it.

    Raises InputError with file, line and key for a file that is not a YAML mapping, a `base` that cannot be read, or an
    override that is not of the form key=value.
    """
    values, lines = _read_chain(path, ())
    for override in overrides:
        key, equals, text = override.partition("=")
        shown = override if len(override) <= 200 else f"{override[:100]} ..."
        if not equals or not key:
            raise InputError(f"override '{shown}' is not of the form key=value, such as train.max_steps=100")
        loc: Loc = tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in key.split("."))
        try:
            value = _load(text, loc, lambda line, shown=shown: f"override '{shown}'")[0]  # type: ignore[misc]
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as an invalid date or endless brackets
            if isinstance(error, InputError):
                raise
            raise InputError(f"override '{shown}': the value is not YAML: {_one_line(error)}") from None
        loc = _set(values, first_name(loc), value, shown)
        lines = {known: line for known, line in lines.items() if known[: len(loc)] != loc}
        for depth in range(1, len(loc) + 1):
            lines.setdefault(loc[:depth], f"override {shown}")
    return values, lines


def _read_chain(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, object], dict[Loc, str]]:
    """Merge a file over its bases, with the file and line that set each key."""
    real = Path(os.path.realpath(path))
    if real in above:
        chain = " -> ".join(str(link) for link in (*above, real))
        raise InputError(f"{path}: `base` forms a circle: {chain}. Remove one of these `base` lines.")
    values, lines = _read_file(path)
    base = values.pop("base", None)
    if base is None:
        return values, lines
    if not isinstance(base, str):
        raise InputError(f"{lines[('base',)]}: `base` must be one path, relative to this file, got {base!r}")
    base_path = _plain_path(path.parent / base)
    try:
        problem = "" if base_path.is_file() else "which does not exist"
    except (OSError, ValueError) as error:  # a long name, a name with NUL, a forbidden folder
        problem = f"which cannot be used: {getattr(error, 'strerror', error)}"
    if problem:
        raise InputError(f"{lines[('base',)]}: `base` names {base_path}, {problem}. Correct the path.")
    base_values, base_lines = _read_chain(base_path, (*above, real))
    return _merge(base_values, values), {**base_lines, **lines}


def _plain_path(path: Path) -> Path:
    """A path without `..`, such as yamls/base/mini.yaml for yamls/mini/../base/mini.yaml, if it is the same file."""
    plain = Path(os.path.normpath(path))
    try:
        return plain if plain.samefile(path) else path
    except (OSError, ValueError):
        return path


def _read_file(path: Path) -> tuple[dict[str, object], dict[Loc, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except OSError as error:
        raise InputError(f"cannot read config {path}: {error.strerror}. Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from None
    if len(text) > _MOST_CHARACTERS:
        raise InputError(
            f"{path}: more than {_MOST_CHARACTERS:,} characters. Give the path of an experiment's YAML file."
        )
    try:
        values, lines = _load(text, (), lambda line: f"{path}, line {line}")
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(_describe_syntax(error, path, text)) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected `key: value` lines, such as `name: my_experiment`")
    return values, lines


def _load(text: str, loc: Loc, place: Callable[[int], str]) -> tuple[object, dict[Loc, str]]:
    """The value of a YAML text at `loc`, and the place of each key in it; `place` turns a line number into a place.

    Keys have their first names. Raises InputError for a key that is given twice, and for YAML aliases that expand to an
    endless or huge tree.
    """
    root = compose(text)
    lines, value = {loc: place(1)}, None
    if root is not None:
        _count_nodes(root, {}, place)
        _note_lines(root, loc, place, lines)
        value = yaml.SafeLoader("").construct_document(root)
    return with_first_names(value, loc, lines), lines_of_first_names(lines)


def compose(text: str) -> yaml.Node | None:
    """The tree of a YAML text: of PyYAML, by libyaml where it is installed and gives the same, ten times as fast."""
    if yaml.__with_libyaml__ and not _READ_OTHERWISE.search(text):
        with suppress(yaml.YAMLError, UnicodeError):
            return _Libyaml(text).get_single_node()
    return yaml.compose(text, yaml.SafeLoader)


if yaml.__with_libyaml__:

    class _Libyaml(Composer, yaml.CSafeLoader):
        """Composes the events of libyaml in Python: its own composer crashes at thousands of nested brackets."""

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)


def _count_nodes(node: yaml.Node, counted: dict[int, int], place: Callable[[int], str]) -> int:
    """Nodes of a tree with all aliases (*name) expanded. `counted` has those of each node, 0 while it is counted."""
    if id(node) in counted:
        if not counted[id(node)]:
            raise InputError(f"{place(node.start_mark.line + 1)}: an anchor contains itself. Write it out.")
        return counted[id(node)]
    counted[id(node)] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = chain.from_iterable(inner) if isinstance(node, yaml.MappingNode) else inner
    total = 1 + sum(1 if isinstance(part, yaml.ScalarNode) else _count_nodes(part, counted, place) for part in parts)
    if total > _MOST_NODES:
        raise InputError(
            f"{place(node.start_mark.line + 1)}: more than {_MOST_NODES:,} values with all aliases expanded. "
            "Shorten it."
        )
    counted[id(node)] = total
    return total


def _note_lines(node: yaml.Node, loc: Loc, place: Callable[[int], str], lines: dict[Loc, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        merged: list[yaml.Node] = []
        own: set[Loc] = set()
        for key, value in node.value:
            below = (*loc, str(key.value))
            if below in own:
                raise InputError(f"{place(key.start_mark.line + 1)}: key '{dotted(below)}' is given twice. Remove one.")
            own.add(below)
            if key.tag == _MERGE:  # `<<: *name`: more keys for the mapping
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            lines[below] = place(key.start_mark.line + 1)
            _note_lines(value, below, place, lines)
        for mapping in merged:
            found: dict[Loc, str] = {}
            _note_lines(mapping, loc, place, found)
            found = {below: line for below, line in found.items() if below[: len(loc) + 1] not in own}
            own |= {below for below in found if len(below) == len(loc) + 1}
            lines.update(found)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*loc, index)] = place(value.start_mark.line + 1)
            _note_lines(value, (*loc, index), place, lines)


def _merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """Mappings merge key by key; anything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _set(values: dict[str, object], loc: Loc, value: object, override: str) -> Loc:
    """Put a value at the place of an override, and create mappings on the way; the place, with list positions."""
    at: object = values
    found: list[str | int] = []
    for depth, key in enumerate(loc):
        last = depth == len(loc) - 1
        if isinstance(at, list) and isinstance(key, int) and key < len(at):
            found.append(key)
            at[key] = value if last else at[key]
            at = at[key]
        elif isinstance(at, dict):
            found.append(str(key))
            at[str(key)] = value if last else at.get(str(key), {})
            at = at[str(key)]
        else:
            raise InputError(f"override '{override}': '{dotted(loc[:depth])}' has no entry '{key}'")
    return tuple(found)


def _describe_syntax(error: Exception, path: Path, text: str) -> str:
    """The line at which a file is not valid YAML."""
    lines = text.splitlines()
    marks = (error.problem_mark, error.context_mark) if isinstance(error, yaml.MarkedYAMLError) else ()
    number = next((mark.line for mark in marks if mark is not None and mark.line < len(lines)), None)
    if not isinstance(error, yaml.MarkedYAMLError) or number is None:
        return f"{path}: not valid YAML: {_one_line(error)}"
    advice = "Indent with spaces." if "\t" in lines[number] else "Look at its indentation, colons, quotes and brackets."
    return f"{path}, line {number + 1}: not valid YAML: {error.problem}: {lines[number].strip()[:80]!r}. {advice}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
