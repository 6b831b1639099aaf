"""Files of JSON as dataclasses: what is written is read, and what is damaged is named by its key."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.json_files import Versioned, decode, decode_hashed, decode_lines, encode_hashed


@dataclass(frozen=True)
class Inner:
    name: str
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    step: int
    inner: list[Inner]
    shares: dict[str, float] = field(default_factory=dict)


names = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-(2**63), 2**63 - 1)
inners = st.builds(Inner, names, st.lists(integers).map(tuple))
outers = st.builds(
    Outer, integers, st.lists(inners), st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False))
)


@given(outers)
def test_what_is_written_with_a_hash_is_read_as_it_was(value: Outer) -> None:
    assert decode_hashed(Outer, encode_hashed(value)) == value


@given(outers, st.data())
def test_a_changed_byte_is_never_taken_for_another_value(value: Outer, data: st.DataObject) -> None:
    content = bytearray(encode_hashed(value))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_hashed(Outer, bytes(content))
    except ValueError:
        return
    assert found == value  # white space changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"step": "3", "inner": []}, "step: Input should be a valid integer"),
        ({"step": True, "inner": []}, "step: Input should be a valid integer"),
        ({"step": 3}, "inner: Field required"),
        ({"step": 3, "inner": [{"name": "a"}, {"name": None}]}, "inner.1.name: Input should be a valid string"),
        ({"step": 3, "inner": [{"name": "a", "counts": [1, 2.5]}]}, "inner.0.counts.1: "),
        ([], "Input should be an object"),
    ],
)
def test_an_error_names_the_key(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}"):
        decode(Outer, json.dumps(content).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"step": ' + b"[" * 100_000])
def test_what_is_not_json_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(Invalid JSON|inner|step)"):
        decode(Outer, content)
    with pytest.raises(ValueError, match=r"."):
        decode_hashed(Outer, content)
    with pytest.raises(ValueError, match=r"^Invalid JSON"):
        decode(Versioned, content)


def test_files_of_other_versions_are_read() -> None:
    content = b'{"step": 1, "inner": [{"name": "a", "more": 2}], "removed": [3]}'
    assert decode(Outer, content) == Outer(1, [Inner("a")])


def test_a_hash_of_other_fields_is_damage() -> None:
    fields = orjson.loads(encode_hashed(Outer(1, [])))
    for damaged in ({**fields, "step": 2}, {**fields, "more": 1}, {"step": 1, "inner": []}, []):
        with pytest.raises(ValueError, match=r"^its hash differs$"):
            decode_hashed(Outer, orjson.dumps(damaged))


def test_lines_are_read_one_by_one() -> None:
    assert decode_lines(Inner, b'{"name": "a"}\n{"name": "b", "counts": [1]}\n') == [Inner("a"), Inner("b", (1,))]
    assert decode_lines(Inner, b"") == []


def test_a_version_is_read_of_any_object() -> None:
    assert decode(Versioned, b'{"bleu": NaN, "version": 2}').version == 2
    with pytest.raises(ValueError, match=r"^version: Field required$"):
        decode(Versioned, b"{}")
