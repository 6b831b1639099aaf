"""JSON files as dataclasses: a file is checked as it is read, and an error names the key.

Reading raises ValueError, for the end of "FILE is damaged: ". It ignores unknown keys; defaults stand for missing ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

import orjson
import xxhash
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


@dataclass(frozen=True)
class Versioned:
    """What a file states in any of its versions, to be read before the rest."""

    version: int


_reader: Callable[[type], TypeAdapter[Any]] = lru_cache(TypeAdapter)


def decode(kind: type[T], content: bytes) -> T:
    """Read a dataclass from JSON; values must have the types that it states."""
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
    """Write a dataclass as JSON, with a hash of its fields as the last key."""
    fields = asdict(value)
    return orjson.dumps({**fields, "xxh3": _hash(fields)}, option=orjson.OPT_INDENT_2)


def decode_hashed(kind: type[T], content: bytes) -> T:
    """Read what `encode_hashed` wrote."""
    fields = orjson.loads(content)
    if not isinstance(fields, dict) or fields.pop("xxh3", None) != _hash(fields):
        raise ValueError("its hash is another")
    return decode(kind, content)


def _hash(fields: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(orjson.dumps(fields))
