"""What an experiment's file says on top of its bases, below its overrides, and where each key was set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dataengine.errors import InputError

Loc = tuple[str | int, ...]  # the keys and list positions that lead to a value


def read_layers(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[Loc, str]]:
    """Values, and for each key the file and line, or the override, that set it.

    Raises InputError with file, line and key for a file that is no YAML mapping, a `base` that cannot be read, and an
    override that is not of the form key=value.
    """
    values, lines = _read_chain(path, ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"override '{override}' is not of the form key=value, such as train.max_steps=100")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, brackets without end
            raise InputError(f"override '{override}': the value is not YAML: {_one_line(error)}") from None
        loc = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        _set(values, loc, value, override)
        lines = {known: line for known, line in lines.items() if known[: len(loc)] != loc}
        for depth in range(1, len(loc) + 1):
            lines.setdefault(loc[:depth], f"override {override}")
    return values, lines


def dotted(loc: Loc) -> str:
    """A place as overrides name it, such as `streams.mono.tokens`."""
    return ".".join(str(part) for part in loc)


def _read_chain(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Loc, str]]:
    """Merge a file over its bases; say for each key the file and line that set it."""
    if path.resolve() in above:
        chain = " -> ".join(str(link) for link in (*above, path.resolve()))
        raise InputError(f"{path}: `base` goes round in a circle: {chain}. Remove one of these `base` lines.")
    values, lines = _read_file(path)
    base = values.pop("base", None)
    if base is None:
        return values, lines
    if not isinstance(base, str):
        raise InputError(f"{lines[('base',)]}: `base` is one path, relative to this file, got {base!r}")
    base_path = path.parent / base
    try:
        problem = "" if base_path.is_file() else "which does not exist"
    except OSError as error:  # a name that is too long, a folder that must not be looked into
        problem = f"which cannot be used: {error.strerror}"
    if problem:
        raise InputError(f"{lines[('base',)]}: `base` names {base_path}, {problem}. Correct the path.")
    base_values, base_lines = _read_chain(base_path, (*above, path.resolve()))
    return _merge(base_values, values), {**base_lines, **lines}


def _read_file(path: Path) -> tuple[dict[str, Any], dict[Loc, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read config {path}: {error.strerror}. Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from None
    lines: dict[Loc, str] = {}
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None:
            _note_lines(root, (), str(path), lines)
        values = yaml.safe_load(text)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(_describe_syntax(error, path, text)) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected `key: value` lines, such as `name: my_experiment`")
    return values, lines


def _note_lines(node: yaml.Node, loc: Loc, path: str, lines: dict[Loc, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*loc, str(key.value))
            if below in lines:
                where = f"{path}, line {key.start_mark.line + 1}"
                raise InputError(f"{where}: key '{dotted(below)}' stands twice. Remove one.")
            lines[below] = f"{path}, line {key.start_mark.line + 1}"
            _note_lines(value, below, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*loc, index)] = f"{path}, line {value.start_mark.line + 1}"
            _note_lines(value, (*loc, index), path, lines)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; anything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _set(values: dict[str, Any], loc: Loc, value: object, override: str) -> None:
    at: Any = values
    for depth, key in enumerate(loc):
        last = depth == len(loc) - 1
        if isinstance(at, list) and isinstance(key, int) and key < len(at):
            pass
        elif isinstance(at, dict):
            key = str(key)
            if not last:
                at.setdefault(key, {})
        else:
            raise InputError(f"override '{override}': '{dotted(loc[:depth])}' has no entry '{key}'")
        if last:
            at[key] = value
        else:
            at = at[key]


def _describe_syntax(error: Exception, path: Path, text: str) -> str:
    """Where a file stops being YAML, with that line."""
    lines = text.splitlines()
    marks = (error.problem_mark, error.context_mark) if isinstance(error, yaml.MarkedYAMLError) else ()
    number = next((mark.line for mark in marks if mark is not None and mark.line < len(lines)), None)
    if not isinstance(error, yaml.MarkedYAMLError) or number is None:
        return f"{path}: not valid YAML: {_one_line(error)}"
    advice = "Indent with spaces." if "\t" in lines[number] else "Look at its indentation, colons, quotes and brackets."
    return f"{path}, line {number + 1}: not valid YAML: {error.problem}: {lines[number].strip()[:80]!r}. {advice}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
