"""Read and write JSON files as dataclasses. Reading checks the types, and errors name the key.

Errors are ValueErrors, worded to follow "FILE is damaged: ". Unknown keys are ignored, missing ones take defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from functools import lru_cache
from typing import Any, TypeVar

import orjson
import xxhash
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
# Metadata of a field that is left out while it has its default: a new field changes no older file or fingerprint
IF_SET = {"if_set": True}


@dataclass(frozen=True)
class Versioned:
    """The version of a file, which is read before the rest."""

    version: int


_reader: Callable[[type], TypeAdapter[Any]] = lru_cache(TypeAdapter)


def decode(kind: type[T], content: bytes) -> T:
    """Read a dataclass from JSON. Values must have the types of its fields."""
    reader: TypeAdapter[T] = _reader(kind)
    try:
        return reader.validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from None


def decode_lines(kind: type[T], content: bytes) -> list[T]:
    """Read a dataclass from each line of JSON Lines."""
    return [decode(kind, line) for line in content.splitlines()]


def encode_hashed(value: Any) -> bytes:
    """Write a dataclass as JSON, with a hash of the fields as the last key."""
    fields = {name: inner for name, inner in asdict(value).items() if name in written_fields(value)}
    return orjson.dumps({**fields, "xxh3": _hash(fields)}, option=orjson.OPT_INDENT_2)


def written_fields(value: Any) -> set[str]:
    """The names of a dataclass's fields without those that are left out (`IF_SET`)."""
    return {
        info.name
        for info in fields_of(value)
        if not info.metadata.get("if_set") or getattr(value, info.name) != info.default
    }


def decode_hashed(kind: type[T], content: bytes) -> T:
    """Read the output of `encode_hashed`."""
    fields = orjson.loads(content)
    if not isinstance(fields, dict) or fields.pop("xxh3", None) != _hash(fields):
        raise ValueError("its hash differs")
    return decode(kind, content)


def _hash(fields: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(orjson.dumps(fields))
