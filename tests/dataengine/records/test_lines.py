from __future__ import annotations

import bz2
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.records import lines as lines_module
from dataengine.records.lines import LineSplitter, read_beginning
from dataengine.records.parts import plan_parts, whole_file
from dataengine.records.types import RecordFormat


def split(chunks: Sequence[bytes]) -> list[bytes | None]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.flush()


@given(st.lists(st.text("ab\r\n", max_size=9).map(str.encode), max_size=9), st.integers(0, 9))
def test_any_cut_of_a_file_gives_the_lines_of_its_whole(chunks: list[bytes], longest: int) -> None:
    expected: list[bytes | None] = list(b"".join(chunks).split(b"\n"))
    if not expected[-1]:
        expected.pop()  # there is no line after the last line feed
    assert split(chunks) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "LONGEST_LINE", longest)
        assert split(chunks) == [line if line is not None and len(line) <= longest else None for line in expected]


def test_a_line_that_is_too_long_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LONGEST_LINE", 10)
    splitter = LineSplitter()
    for _ in range(100):
        assert splitter.feed(b"12345678") == []
        assert sum(map(len, splitter._pieces)) <= 10
    assert splitter.feed(b"9\nnext") == [None]
    assert splitter.flush() == [b"next"]
    assert splitter.flush() == []


def test_the_beginning_of_a_part_is_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthree\nfour")
    form = RecordFormat(("text",))
    parts, _ = plan_parts([str(path)], "s", form, format=None, part_bytes=8, hashes={}, threads=1)
    assert [read_beginning(part, 7) for part in parts] == [(b"one\n", 4), (b"three\n", 6)]
    assert read_beginning(whole_file(path), 2) == (b"on", 2)  # no line ends there
    assert read_beginning(whole_file(path), 100) == (b"one\ntwo\nthree\n", 14)


def test_of_an_archive_so_much_is_read_that_some_text_is_there(tmp_path: Path) -> None:
    lines = b"".join(b"%d\n" % random.Random(number).getrandbits(200) for number in range(5000))
    path = tmp_path / "a.txt"
    path.write_bytes(bz2.compress(lines))
    text, used = read_beginning(whole_file(path), 100)
    assert lines.startswith(text)
    assert text.endswith(b"\n")
    assert 100 < used <= path.stat().st_size
