"""Turn the errors of pydantic into sentences with file, line and key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from dataengine.config.aliases import ALIASES
from dataengine.config.fields import (
    DIRECTION_PATTERN,
    LANGUAGE_PATTERN,
    MAX_NUMBER,
    SIZE_POWER_PATTERN,
    Loc,
    PlacedError,
    dotted,
    short_value,
)
from dataengine.config.schema import Config
from dataengine.config.streams import STREAM_KINDS
from dataengine.errors import did_you_mean

_TYPE = re.compile(r"str|int|float|bool|(constrained-|dict\[|literal\[|tuple\[|function-).*")  # pydantic's, in a union


@dataclasses.dataclass
class Problem:
    """An error of pydantic at one key."""

    error: ErrorDetails
    loc: Loc  # without pydantic's names of the types in a union
    kind: str | None  # of the stream that contains the key, if it is known
    # The errors for the other types that the value may have
    others: list[Problem] = dataclasses.field(default_factory=list)


def find_problems(errors: Sequence[ErrorDetails]) -> list[Problem]:
    """One problem per key. For a value that may have several types, pydantic gives an error per type."""
    joined: dict[Loc, Problem] = {}
    for error in _without_consequences(errors):
        loc, kind = _split_kind(error["loc"])
        if len(loc) > 1 and isinstance(loc[-1], str) and _TYPE.fullmatch(loc[-1]):
            loc = loc[:-1]
        problem = Problem(error, loc, kind)
        if loc in joined and error["type"] != "value_error":
            joined[loc].others.append(problem)
        else:
            joined[(*loc, len(joined)) if loc in joined else loc] = problem
    return list(joined.values())


def _without_consequences(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without errors about lists that are too short only because one of their entries is invalid."""
    locs = [error["loc"] for error in errors]
    return [
        error
        for error, loc in zip(errors, locs, strict=True)
        if error["type"] != "too_short" or not any(other[: len(loc)] == loc != other for other in locs)
    ]


def _split_kind(loc: Loc) -> tuple[Loc, str | None]:
    """A place in the file, and the kind of the stream there. Pydantic puts the kind after the name of the stream."""
    if loc[:1] == ("streams",) and len(loc) > 2 and loc[2] in STREAM_KINDS:
        return (*loc[:2], *loc[3:]), str(loc[2]) if len(loc) > 3 else None
    return loc, None


def describe_problem(problem: Problem, lines: Mapping[Loc, str], path: str) -> str:
    """One problem as a sentence with its place."""
    loc, error = problem.loc, problem.error
    mistake = error.get("ctx", {}).get("error")
    if isinstance(mistake, PlacedError):
        return f"{_place(mistake.loc, lines, path)}: {mistake}."
    if error["type"] == "stream_kind":  # a misspelt key may be the reason
        loc = (*loc, *[key for key in error["input"] if key not in _known_keys(loc, None)][:1])
    place = _place(loc, lines, path)
    if error["type"] == "extra_forbidden" or loc != problem.loc:
        return f"{place}: {_describe_unknown(loc, problem.kind)}."
    if error["type"] == "missing":
        return f"{place}: key '{dotted(loc)}' is missing. Add it."
    message = ", or ".join(dict.fromkeys(_message(one) for one in (problem, *problem.others)))
    if error["type"] in ("value_error", "stream_kind"):
        return f"{place}: {f'{dotted(loc)}: ' if loc else ''}{message}."
    if loc[-1] == "[key]" and isinstance(error["input"], bool):
        message += ". YAML reads no, yes, on and off without quotes as false and true"
    key = "" if place.startswith(f"override {dotted(loc)}=") else f"{dotted(loc)}: "  # the override names it
    return f"{place}: {key}{message}, got {short_value(error['input'])}."


def _describe_unknown(loc: Loc, kind: str | None) -> str:
    """The message for an unknown key: it belongs to the other kind of stream, or is near a known key."""
    key, known = str(loc[-1]), _known_keys(loc[:-1], kind)
    if kind and key in _known_keys(loc[:-1], None):
        (other,) = STREAM_KINDS.keys() - {kind}
        hint = f": `{kind}` makes this a stream of {kind}, and `{key}` belongs to streams of {other}"
    else:
        paths = sorted([*keys_below(Config), *map(dotted, ALIASES)], key=lambda path: -path.count("."))
        hint = did_you_mean(key, known, {path.rpartition(".")[2]: path for path in paths})
    return f"unknown key '{dotted(loc)}'{hint}. Known keys here: {', '.join(known)}"


def _place(loc: Loc, lines: Mapping[Loc, str], path: str) -> str:
    return next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), path)


def _message(problem: Problem) -> str:
    """The message of pydantic in the terms of YAML."""
    error, loc = problem.error, problem.loc
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "tuple_type" and loc[-1] == "dedup":
        return "expected a list: [text] for documents; `pair` and language codes for pairs, such as [pair]"
    if kind == "tuple_type":
        shown = value if isinstance(value, str) and re.fullmatch(r"[^\s,\[\]{}:#]{1,80}", value) else "a, b"
        return f"expected a list, such as [{shown}]"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        known = _known_keys(loc, problem.kind) if kind == "model_type" else []
        more = ", ..." if len(known) > 4 else ""
        none = ", or {} for none" if value is None else ""
        if known:
            return f"expected a mapping with keys ({', '.join(known[:4])}{more}){none}"
        return "expected a mapping, such as {key: value}"
    if kind == "int_parsing_size":
        return f"expected a number of at most {MAX_NUMBER:,}"
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return "expected a whole number, such as 1000 or 80K"
    if kind in ("float_parsing", "float_type"):
        return "expected a number, such as 0.8"
    if kind == "string_pattern_mismatch" and context["pattern"] in (DIRECTION_PATTERN, LANGUAGE_PATTERN):
        return _expected_languages(str(value), loc, 2 if context["pattern"] == DIRECTION_PATTERN else 1)
    if kind == "string_pattern_mismatch" and context["pattern"] == SIZE_POWER_PATTERN:
        return "a power of it from 0 to 1, such as by_size^0.3"
    if kind == "string_pattern_mismatch" and context["pattern"].startswith("^[A-Za-z0-9]"):
        return "expected a name of letters, digits, - and _ that begins with a letter or digit"
    if kind == "less_than_equal" and isinstance(context["le"], int):
        return f"expected a number of at most {context['le']:,}"
    message = error["msg"]
    if message.startswith("Input should be "):
        number = "a number " if kind.startswith(("greater", "less")) else ""
        return f"expected {number}{message.removeprefix('Input should be ')}"
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _expected_languages(text: str, loc: Loc, count: int) -> str:
    """The message for a text that is not `count` language codes. It distinguishes a region from a language."""
    expected = "expected two languages, such as en-zh" if count == 2 else "expected a language code, such as zh"
    parts = re.split("[-_]", text)
    bare = [part for part in parts if re.fullmatch("[a-z]{2,3}", part)]
    regions = [f"{a}-{b}" for a, b in pairwise(parts) if a in bare and re.fullmatch("[A-Z]{2}|[A-Z][a-z]{3}", b)]
    if len(bare) != count or not regions:
        return expected
    variety = (
        f"; to choose a variety of a TMX file, use keys: {{{regions[0].partition('-')[0]}: {regions[0]}}}"
        if loc[0] == "streams"
        else ""
    )
    return f"expected languages without region or script: {'-'.join(bare)}{variety}"


def _known_keys(loc: Loc, kind: str | None) -> list[str]:
    """The keys of the section at `loc` in a stream of this `kind`; None: of all kinds."""
    sections: list[type[BaseModel]] = [Config]
    keys = iter(loc)
    for key in keys:
        sections = [
            inner
            for section in sections
            if key in section.model_fields
            for inner in sections_of(section.model_fields[str(key)].annotation)
        ] or sections
        if key in EACH:
            next(keys, None)  # the name of a stream or the number of a stage
        if key == "streams" and kind:
            sections = [section for section in sections if section is STREAM_KINDS[kind]]
    known = {key for section in sections for key in section.model_fields}
    in_order = [key for section in sections for key in (*getattr(section, "stored", ()), *section.model_fields)]
    return [key for key in dict.fromkeys(in_order) if key in known]


def keys_below(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """All keys of a config as dotted paths, such as train.seed, with STREAM and STAGE for any stream and stage."""
    for name, field in section.model_fields.items():
        yield f"{path}{name}"
        for inner in sections_of(field.annotation):
            yield from keys_below(inner, f"{path}{name}.{EACH.get(name, '')}")


def sections_of(annotation: object) -> Iterator[type[BaseModel]]:
    """The sections in a type, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_of(part)


EACH = {"streams": "STREAM.", "stages": "STAGE."}
