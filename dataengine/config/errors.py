"""What pydantic found wrong in a config, as sentences that name file, line and key."""

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
    """What pydantic found wrong with the value of one key."""

    error: ErrorDetails
    loc: Loc  # without pydantic's words for one of several types
    kind: str | None  # of the stream that it lies in, if that is known
    # What is wrong with the value as one of the other types that it may have
    others: list[Problem] = dataclasses.field(default_factory=list)


def find_problems(errors: Sequence[ErrorDetails]) -> list[Problem]:
    """One problem for each key: for a value that may be of several types, pydantic states one for each type."""
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
    """Without lists that are too short only because an entry cannot be used."""
    locs = [error["loc"] for error in errors]
    return [
        error
        for error, loc in zip(errors, locs, strict=True)
        if error["type"] != "too_short" or not any(other[: len(loc)] == loc != other for other in locs)
    ]


def _split_kind(loc: Loc) -> tuple[Loc, str | None]:
    """A place in the file, and the kind of the stream there, which pydantic names after the stream."""
    if loc[:1] == ("streams",) and len(loc) > 2 and loc[2] in STREAM_KINDS:
        return (*loc[:2], *loc[3:]), str(loc[2]) if len(loc) > 3 else None
    return loc, None


def describe_problem(problem: Problem, lines: Mapping[Loc, str], path: str) -> str:
    """One problem as a sentence with its place."""
    loc, error = problem.loc, problem.error
    mistake = error.get("ctx", {}).get("error")
    if isinstance(mistake, PlacedError):
        return f"{_place(mistake.loc, lines, path)}: {mistake}."
    if error["type"] == "stream_kind":  # a mistyped key may be why no kind is stated
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
        message += ". YAML takes no, yes, on and off without quotes for false and true"
    key = "" if place.startswith(f"override {dotted(loc)}=") else f"{dotted(loc)}: "  # the override names it
    return f"{place}: {key}{message}, got {short_value(error['input'])}."


def _describe_unknown(loc: Loc, kind: str | None) -> str:
    """What is said of a key that is none: one of the other kind of stream, or the nearest one that is known."""
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
    """What pydantic says, in the words of a YAML file."""
    error, loc = problem.error, problem.loc
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "tuple_type" and loc[-1] == "dedup":
        return "expected a list: [text] of documents; of pairs some of pair and the languages' codes, such as [pair]"
    if kind == "tuple_type":
        shown = value if isinstance(value, str) and re.fullmatch(r"[^\s,\[\]{}:#]{1,80}", value) else "a, b"
        return f"expected a list, such as [{shown}]"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        known = _known_keys(loc, problem.kind) if kind == "model_type" else []
        more = ", ..." if len(known) > 4 else ""
        none = ", or {} for none" if value is None else ""
        if known:
            return f"expected keys of its own ({', '.join(known[:4])}{more}){none}"
        return "expected keys, as {key: value}"
    if kind == "int_parsing_size":
        return f"expected a number of at most {MAX_NUMBER:,}"
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return "expected a whole number, such as 1000 or 80K"
    if kind in ("float_parsing", "float_type"):
        return "expected a number, such as 0.8"
    if kind == "string_pattern_mismatch" and context["pattern"] in (DIRECTION_PATTERN, LANGUAGE_PATTERN):
        return _expected_languages(str(value), loc, 2 if context["pattern"] == DIRECTION_PATTERN else 1)
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
    """What is said of a text that does not name `count` languages of pairs; a region is told from a language."""
    expected = "expected two languages, such as en-zh" if count == 2 else "expected the code of a language, such as zh"
    parts = re.split("[-_]", text)
    bare = [part for part in parts if re.fullmatch("[a-z]{2,3}", part)]
    regions = [f"{a}-{b}" for a, b in pairwise(parts) if a in bare and re.fullmatch("[A-Z]{2}|[A-Z][a-z]{3}", b)]
    if len(bare) != count or not regions:
        return expected
    variety = (
        f"; for the variety of a TMX state keys: {{{regions[0].partition('-')[0]}: {regions[0]}}}"
        if loc[0] == "streams"
        else ""
    )
    return f"expected languages without region or script: {'-'.join(bare)}{variety}"


def _known_keys(loc: Loc, kind: str | None) -> list[str]:
    """The keys of the section at `loc`, which lies in a stream of the `kind`; of no kind, those of all."""
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
    """All keys of a config with those that lead to them, such as train.seed; STREAM and STAGE stand for any of them."""
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
