"""Print the resolved keys of an experiment with the file and line that set each, or one key with its description."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel

from dataengine.characters import escape_controls
from dataengine.config.aliases import first_name
from dataengine.config.describe import Key, describe_section, flow, walk, written_value
from dataengine.config.errors import EACH
from dataengine.config.fields import DECISIONS, Loc, dotted
from dataengine.config.load import Loaded, load_with_places
from dataengine.config.schema import Config
from dataengine.errors import InputError, did_you_mean

_WIDEST = 64  # characters of a line up to which comments are aligned
_UNSET = object()
_KEYS = {(key.section, key.field): key for key in walk()}


def run(options: argparse.Namespace) -> None:
    """Print all keys, or those that --key names."""
    loaded = load_with_places(options.config, options.overrides)
    print(describe_key(loaded, options.key) if options.key else as_yaml(_rows(loaded, loaded.config, ())))


@dataclass(frozen=True)
class _Row:
    """A line of YAML, and what set its value; "" for the line above a section."""

    text: str
    place: str = ""


def as_yaml(rows: Iterator[_Row]) -> str:
    """Rows as YAML, with the places as comments."""
    lines = list(rows)
    width = min(_WIDEST, max((len(row.text) for row in lines if row.place), default=0))
    return "\n".join(f"{row.text:<{width}}  # {_comment(row.place)}" if row.place else row.text for row in lines)


def _comment(place: str) -> str:
    """A place on one line; a path or an override may have line breaks."""
    return escape_controls(" ".join(place.split()))


def _rows(loaded: Loaded, section: BaseModel, loc: Loc) -> Iterator[_Row]:
    for field in type(section).model_fields:
        key = _KEYS[type(section), field]
        value = written_value(key, getattr(section, field))
        yield from _entry(loaded, key.name, value, (*loc, field))


def _entry(loaded: Loaded, name: str, value: object, loc: Loc) -> Iterator[_Row]:
    """A key with its value: sections and mappings below it, anything else on its line."""
    if isinstance(value, BaseModel):
        yield _Row(f"{name}:")
        yield from _indented(_rows(loaded, value, loc))
    elif isinstance(value, Mapping) and value:
        yield _Row(f"{name}:")
        for inner, below in value.items():
            yield from _indented(_entry(loaded, _scalar(inner), below, (*loc, inner)))
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        yield _Row(f"{name}:")
        for number, below in enumerate(value):
            yield from _indented(_rows(loaded, below, (*loc, number)), "  - ")
    else:
        yield _Row(f"{name}: {_scalar(value)}", loaded.set_by(loc))


def _indented(rows: Iterator[_Row], first: str = "  ") -> Iterator[_Row]:
    for number, row in enumerate(rows):
        yield _Row(f"{' ' * len(first) if number else first}{row.text}", row.place)


def _scalar(value: object) -> str:
    """A value as YAML on one line of characters that do not command the terminal."""
    text = flow(value)
    return text if escape_controls(text) == text and "\n" not in text else flow(value, ascii_only=True)


def describe_key(loaded: Loaded, path: str) -> str:
    """A key with its description, type and default, what it decides, its value, and what set it.

    `path` is dotted, such as train.seed; STREAM and STAGE mean any stream and stage. Raises InputError for a key
    that does not exist.
    """
    loc = first_name(tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in path.split(".")))
    key, value, is_entry = _find(loaded.config, loc)
    name = str(loc[-1]) if is_entry else key.name
    facts = {
        "key": dotted((*loc[:-1], name)),
        "old name": "" if is_entry else key.old_name or "",
        "entry of" if is_entry else "type": f"{key.path}, a {key.type}" if is_entry else key.type,
        "default": "" if is_entry else "none, required" if key.is_required else key.default,
        "decides": f"{key.decides} ({DECISIONS[key.decides]})",
    }
    lines = [f"{fact:<8}  {text}".replace("`", "") for fact, text in facts.items() if text]
    lines += ["", key.description, *(describe_section(inner) for inner in key.inner if inner is type(value))]
    if value is not _UNSET:
        shown = (_scalar(loc[-1]), value) if is_entry else (name, written_value(key, value))
        lines += ["", as_yaml(_entry(loaded, *shown, loc))]
    return "\n".join(lines)


def _find(config: Config, loc: Loc) -> tuple[Key, object, bool]:
    """The key at a place, its value if it is set, and whether the place is an entry of the key's mapping or list."""
    key, value, is_entry = None, cast(object, config), False
    sections: tuple[type[BaseModel], ...] = (Config,)
    for depth, part in enumerate(loc):
        if sections and (isinstance(value, BaseModel) or value in (None, _UNSET)):
            here = [key for (section, _), key in _KEYS.items() if section in sections]
            found = [key for key in here if key.field == part]  # one for each kind of stream
            if not found:
                raise _unknown(loc[: depth + 1], list(dict.fromkeys(key.name for key in here)))
            key, is_entry = found[0], False
            value, sections = getattr(value, key.field, _UNSET), tuple(inner for one in found for inner in one.inner)
        else:
            entries = dict(enumerate(value)) if isinstance(value, tuple) else value if isinstance(value, dict) else {}
            if part not in entries and (key is None or part != EACH.get(key.field, "").rstrip(".")):
                raise _unknown(loc[: depth + 1], list(map(str, entries)))
            value, is_entry = entries.get(part, _UNSET), True
            sections = (type(value),) if isinstance(value, BaseModel) else sections
    assert key is not None, "a path has at least one part"
    return key, value, is_entry


def _unknown(loc: Loc, known: Sequence[str]) -> InputError:
    elsewhere = {key.name: key.path for key in sorted(_KEYS.values(), key=lambda key: -key.path.count("."))}
    here = f"Known keys here: {', '.join(known)}" if known else f"'{dotted(loc[:-1])}' has no keys"
    return InputError(f"--key: unknown key '{dotted(loc)}'{did_you_mean(str(loc[-1]), known, elsewhere)}. {here}")
