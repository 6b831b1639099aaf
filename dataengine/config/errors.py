"""What pydantic found wrong in a config, as sentences that name file, line and key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from dataengine.cleaning.rules.settings import DocumentRules, PairRules
from dataengine.config.fields import DIRECTION_PATTERN, LANGUAGE_PATTERN, MAX_NUMBER, PlacedError, short_value
from dataengine.config.layers import Loc, dotted
from dataengine.config.schema import BudgetConfig, Config, ParentConfig, StageConfig
from dataengine.config.streams import AssumeConfig, CleanConfig, ScoresConfig, StreamConfig, SubsetsConfig
from dataengine.config.training import EvaluateConfig, InitConfig, ModelConfig, TrainConfig, WandbConfig
from dataengine.errors import did_you_mean

_KIND = re.compile(r"str|int|float|bool|(constrained-|dict\[|literal\[|tuple\[|function-).*")  # pydantic's, in a union


def without_consequences(problems: Sequence[Any]) -> list[Any]:
    """Without lists that are too short only because an entry cannot be used."""
    locs = [tuple(problem["loc"]) for problem in problems]
    return [
        problem
        for problem, loc in zip(problems, locs, strict=True)
        if problem["type"] != "too_short" or not any(other[: len(loc)] == loc != other for other in locs)
    ]


def join_kinds(problems: Sequence[Any]) -> list[Any]:
    """One problem for each key: for a value that may be of several kinds, pydantic states one for each kind."""
    joined: dict[Loc, Any] = {}
    for problem in problems:
        loc = tuple(problem["loc"])
        if len(loc) > 1 and isinstance(loc[-1], str) and _KIND.fullmatch(loc[-1]):
            loc = loc[:-1]
        if loc in joined and problem["type"] != "value_error":
            joined[loc]["others"].append(problem)
        else:
            joined[(*loc, len(joined)) if loc in joined else loc] = {**problem, "loc": loc, "others": []}
    return list(joined.values())


def describe_problem(problem: Any, lines: Mapping[Loc, str], path: str) -> str:
    """One problem that pydantic found, as a sentence with its place."""
    loc: Loc = tuple(problem["loc"])
    mistake = problem.get("ctx", {}).get("error")
    if isinstance(mistake, PlacedError):
        return f"{_place(mistake.loc, lines, path)}: {mistake}."
    place = _place(loc, lines, path)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        paths = sorted(_keys_below(Config), key=lambda path: -path.count("."))
        hint = did_you_mean(str(loc[-1]), known, {path.rpartition(".")[2]: path for path in paths})
        return f"{place}: unknown key '{dotted(loc)}'{hint}. Known keys here: {', '.join(known)}."
    if problem["type"] == "missing":
        return f"{place}: key '{dotted(loc)}' is missing. Add it."
    message = ", or ".join(dict.fromkeys(_message(one) for one in (problem, *problem["others"])))
    if problem["type"] == "value_error":
        return f"{place}: {f'{dotted(loc)}: ' if loc else ''}{message}."
    if loc[-1] == "[key]" and isinstance(problem["input"], bool):
        message += ". YAML takes no, yes, on and off without quotes for false and true"
    key = "" if place.startswith(f"override {dotted(loc)}=") else f"{dotted(loc)}: "  # the override names it
    return f"{place}: {key}{message}, got {short_value(problem['input'])}."


def _place(loc: Loc, lines: Mapping[Loc, str], path: str) -> str:
    return next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), path)


def _message(problem: Any) -> str:
    """What pydantic says, in the words of a YAML file."""
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    loc: Loc = tuple(problem["loc"])
    if kind == "tuple_type" and loc[-1] == "dedup":
        return "expected a list: [text] of documents; of pairs some of pair and the languages' codes, such as [pair]"
    if kind == "tuple_type":
        shown = value if isinstance(value, str) and re.fullmatch(r"[^\s,\[\]{}:#]{1,80}", value) else "a, b"
        return f"expected a list, such as [{shown}]"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        known = _known_keys(loc) if kind == "model_type" else []
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
    message: str = problem["msg"]
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


def _known_keys(loc: Loc) -> list[str]:
    """The keys of the section at `loc`."""
    section: type[BaseModel] = Config
    for key in loc:
        if isinstance(key, str) and key in section.model_fields:
            section = _SECTIONS.get(key, section)
    return list(section.model_fields)


def _keys_below(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """All keys of a config with those that lead to them, such as train.seed; STREAM and STAGE stand for any of them."""
    for name, field in section.model_fields.items():
        yield f"{path}{name}"
        for inner in {_SECTIONS.get(name)} & {field.annotation, *_parts(field.annotation)}:
            assert inner is not None
            yield from _keys_below(inner, f"{path}{name}.{_EACH.get(name, '')}")


def _parts(annotation: Any) -> Iterator[Any]:
    """What a type is made of, at any depth."""
    for part in get_args(annotation):
        yield part
        yield from _parts(part)


_EACH = {"streams": "STREAM.", "stages": "STAGE."}
_SECTIONS: dict[str, type[BaseModel]] = {
    "clean": CleanConfig,
    "document_rules": DocumentRules,
    "pair_rules": PairRules,
    "scores": ScoresConfig,
    "subsets": SubsetsConfig,
    "assume": AssumeConfig,
    "budget": BudgetConfig,
    "parent": ParentConfig,
    "init": InitConfig,
    "streams": StreamConfig,
    "stages": StageConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "wandb": WandbConfig,
    "evaluate": EvaluateConfig,
}
