"""The types of fields of a config: numbers such as 2.1B, names, directions; and what a field decides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

Loc = tuple[str | int, ...]  # the keys and list positions that lead to a value

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_COUNT = re.compile(r"(\d(?:_?\d){0,99})(?:\.(\d{1,99}))?([KMBGT]?)", re.ASCII)


def parse_count(value: object) -> object:
    """Read `2.1B` or `32_768` as an integer. Leave any other value to the validator."""
    if isinstance(value, str) and (match := _COUNT.fullmatch(value.strip())):
        whole, decimals, suffix = match[1], match[2] or "", match[3]
        scaled, rest = divmod(int(whole + decimals) * _SUFFIXES[suffix], 10 ** len(decimals))
        return value if rest else scaled
    return value


Decision = Literal["bytes", "plan", "training", "nothing"]
DECISIONS: dict[Decision, str] = {
    "bytes": "the samples of the streams",
    "plan": "which sample is trained on at which step",
    "training": "losses, weights and scores",
    "nothing": "places, speed and limits",
}


@dataclass(frozen=True)
class Decides:
    """Marks what a field of a config decides. A field of a nested section without a mark decides what its section
    does."""

    what: Decision


BYTES, PLAN, TRAINING, NOTHING = Decides("bytes"), Decides("plan"), Decides("training"), Decides("nothing")


def decision_of(section: type[BaseModel], name: str) -> Decision | None:
    """The mark of a field; None if it decides what its section does."""
    return next((mark.what for mark in section.model_fields[name].metadata if isinstance(mark, Decides)), None)


MAX_NUMBER = 2**63 - 1  # manifests and NumPy's arithmetic on them have 64 bits
MAX_SIZE = 2**31 - 1
Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=MAX_NUMBER)]
Size = Annotated[
    int, BeforeValidator(parse_count), Field(gt=0, le=MAX_SIZE)
]  # of something that is in memory as a whole
Least0 = Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=MAX_NUMBER)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
DIRECTION_PATTERN = r"^[A-Za-z0-9]+-[A-Za-z0-9]+$"
LANGUAGE_PATTERN = r"^[A-Za-z0-9]+$"  # of pairs: no region or script, because `-` separates the two of a direction
Direction = Annotated[str, Field(pattern=DIRECTION_PATTERN)]

# The size of a stream to the power A, from 0 to 1 with at most two decimals
SIZE_POWER_PATTERN = r"^by_size\^(0|1|0?\.\d{1,2}|1\.0{1,2})$"
SizePower = Annotated[str, Field(pattern=SIZE_POWER_PATTERN)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: object, field: ValidationInfo) -> object:
        """Refuse `true` for a number: pydantic reads it as 1."""
        if isinstance(value, bool):
            kinds = set(re.findall(r"\w+", str(cls.model_fields[str(field.field_name)].annotation)))
            if kinds & {"int", "float"} and "bool" not in kinds:
                raise ValueError(f"expected a number, got {str(value).lower()}")
        return value


def dotted(loc: Loc) -> str:
    """A place as overrides name it, such as `streams.mono.tokens`."""
    return ".".join(str(part) for part in loc)


class PlacedError(ValueError):
    """A mistake at one key, found by a check that compares several keys."""

    def __init__(self, loc: Loc, words: str) -> None:
        super().__init__(words)
        self.loc = loc


def short_value(value: object) -> str:
    """A value as written in the config, cut if it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:100]} ... ({len(text):,} characters)"
