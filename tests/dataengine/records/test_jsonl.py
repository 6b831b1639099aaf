from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.records import json_lines, jsonl
from dataengine.records.types import RecordFormat

TEXTS = st.sampled_from(["a", " b\u3000", "中\n文", "\u200b", "", " ", "\0", '"en"', "d\u2028e"])
VALUES = st.one_of(TEXTS, TEXTS, TEXTS, st.sampled_from([None, 1, [], ["a"], {"en": "x"}]))
OBJECTS = st.lists(st.tuples(st.sampled_from(["en", "zh", "set", "m"]), VALUES), min_size=2, max_size=5)
LINES = st.one_of(
    *[OBJECTS.map(lambda pairs: ",".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs))] * 9,
    st.just('"en": "a", "zh": "b", "set": "c", "m": {"en": "d"}'),
).map(lambda inner: f"{{{inner}}}".encode())
FORMS = [
    RecordFormat(("en",)),
    RecordFormat(("en",), label_key="set"),
    RecordFormat(("en", "zh"), one_line=True),
    RecordFormat(("m.en", "zh"), one_line=True, label_key="set"),
    RecordFormat(("en", "zh"), one_line=True, line_breaks="keep"),
]


@given(st.lists(LINES, max_size=6), st.sampled_from(FORMS))
def test_a_block_read_at_once_has_the_records_of_its_lines(lines: list[bytes], form: RecordFormat) -> None:
    keys = jsonl._JsonKeys.of(form)
    at_once = jsonl._parse_jsonl_at_once(lines, 7, form, keys)
    assert at_once in (None, jsonl._parse_jsonl_each(lines, 7, form, keys))


@pytest.mark.parametrize("form", FORMS)
def test_a_block_of_usable_records_is_read_at_once(form: RecordFormat) -> None:
    first = b'"en": "a"' if form.keys[0] == "en" else b'"m": {"en": "d"}'
    lines = [b"{" + first + b', "zh": "b ", "set": "c"}'] * 3
    keys = jsonl._JsonKeys.of(form)
    at_once = jsonl._parse_jsonl_at_once(lines, 7, form, keys)
    assert at_once is not None
    assert at_once == jsonl._parse_jsonl_each(lines, 7, form, keys)


@given(st.lists(st.text('"k: x', max_size=12), max_size=9), st.integers(1, 9))
def test_keys_are_counted_across_every_window(rest: list[str], window: int) -> None:
    lines = [f'"k": "{one}"'.encode() for one in rest]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_WINDOW", window)
        found = json_lines.DoubledKeys(["k"]).among(lines)
    assert found == any(len(re.findall(rb'"k"\s*:', line)) > 1 for line in lines)
