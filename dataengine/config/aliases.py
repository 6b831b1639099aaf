"""Second names of keys. Only the first names are stored, so second names are replaced when a file is read."""

from __future__ import annotations

from collections.abc import Mapping

from dataengine.config.fields import Loc, dotted, short_value
from dataengine.errors import InputError

ALIASES: dict[Loc, str] = {
    ("streams", "STREAM", "epochs"): "passes",
    ("streams", "STREAM", "targets"): "adjacent",
    ("train", "decay_to"): "min_learning_rate",
    ("evaluate", "selection_directions"): "choose_by",
    ("evaluate", "num_fewshot"): "shots",
    ("evaluate", "num_beams"): "beams",
}
_SECOND_NAMES = {loc[-1] for loc in ALIASES}
# Name -> the values that are written under it -> those that are stored under the first name
VALUES: dict[str, dict[str, object]] = {"targets": {"adjacent": True, "shuffled": False}}


def first_name(loc: Loc) -> Loc:
    """The place of a key, or of an entry of its value, by the key's first name."""
    if _SECOND_NAMES.isdisjoint(loc):
        return loc
    pattern = ("streams", "STREAM", *loc[2:]) if loc[:1] == ("streams",) else loc
    depth = next((n for n in range(1, len(loc) + 1) if pattern[:n] in ALIASES), 0)
    return (*loc[: depth - 1], ALIASES[pattern[:depth]], *loc[depth:]) if depth else loc


def second_name(key: str) -> str:
    """The dotted place of a key by its second name, as documents write it; the same if it has none."""
    *above, last = key.split(".")
    pattern = ("streams", "STREAM", *above[2:]) if above[:1] == ["streams"] else tuple(above)
    known = {(loc[:-1], stored): str(loc[-1]) for loc, stored in ALIASES.items()}
    return ".".join([*above, known.get((pattern, last), last)])


def lines_of_first_names(lines: Mapping[Loc, str]) -> dict[Loc, str]:
    """The place of each key by its first name. A place where the second name was written also states that name."""
    places = {}
    for loc, place in lines.items():
        first = first_name(loc)
        other = [key for key, stored in zip(loc, first, strict=True) if key != stored] if first != loc else []
        places[first] = f"{place} (`{other[0]}`)" if other else place
    return places


def with_first_names(value: object, loc: Loc, lines: Mapping[Loc, str]) -> object:
    """The value at `loc` of one file or override, with the first names of its keys.

    Raises InputError, with both lines, for a key that is given under both of its names.
    """
    if loc and loc[-1] in VALUES and first_name(loc) != loc:
        words = VALUES[str(loc[-1])]
        if not isinstance(value, str) or value not in words:
            raise InputError(f"{lines[loc]}: {dotted(loc)}: expected {' or '.join(words)}, got {short_value(value)}.")
        return words[value]
    if not isinstance(value, dict):
        return value
    renamed: dict[object, object] = {}
    for key, inner in value.items():
        here = (*loc, key)
        first = first_name(here)
        if first != here and first[-1] in value:
            raise InputError(
                f"{lines[here]}: key '{dotted(here)}' is another name for '{first[-1]}', which is also given in "
                f"{lines[first]}. Remove one."
            )
        renamed[first[-1]] = with_first_names(inner, here, lines)
    return renamed
