from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.errors import InputError
from dataengine.records import csv_joiner
from dataengine.records import lines as lines_module
from dataengine.records.csv_joiner import STRAY, UNCLOSED, Joiner
from dataengine.records.csv_records import MANY_LINES, RETURN
from dataengine.records.lines import LineSplitter
from dataengine.records.parts import plan_parts, whole_file
from dataengine.records.rows import HEADING_OBEYED
from dataengine.records.types import RecordFormat, Reject
from tests.conftest import set_everywhere
from tests.dataengine.records.test_read import DOCUMENT, PACK, PAIR, Found, collect, plan, read, write

PAIRS = replace(PAIR, columns=())
TABLE = RecordFormat(("text", "other"), label_key="label")
FIELDS = st.text(st.sampled_from('ab ,"\r\n\\\t\u2028中é🙂'), max_size=6)


def csv_of(rows: list[tuple[str, ...]], quoting: int = csv.QUOTE_MINIMAL, end: str = "\r\n") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, quoting=quoting, lineterminator=end).writerows(rows)  # type: ignore[arg-type]
    return file.getvalue().encode()


@pytest.mark.parametrize("suffix", PACK)
def test_fields_in_quotes_hold_commas_quotes_and_line_breaks(tmp_path: Path, suffix: str) -> None:
    content = '\ufeffen,note,zh\r\n"a, ""b""",,c\r\n\r\n"x\r\ny","\n",z\nlast,1,"最后"'.encode()
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(PACK[suffix](content))
    expected = [(2, ('a, "b"', "c")), (4, ("x y", "z")), (7, ("last", "最后"))]
    assert read(path, PAIRS) == (expected, [], [], 7)
    (part,) = plan(path, form=PAIRS, part_bytes=1)
    assert (part.format, part.columns, read(part, PAIRS)[0]) == ("csv", ("en", "note", "zh"), expected)
    assert read(path, RecordFormat(("en",)))[0][1] == (4, ("x\r\ny",))


@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=6),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    chunk=st.integers(1, 20),
    bad=st.booleans(),
)
@settings(max_examples=80)
def test_what_a_library_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    quoting: int,
    end: str,
    chunk: int,
    bad: bool,
) -> None:
    """By blocks, and one by one where a record is unusable; the number of a record is that of its first line."""
    if (quoting, end) == (csv.QUOTE_MINIMAL, "\n"):  # Python 3.11 writes a carriage return without quotes
        rows = [(a.replace("\r", ""), b.replace("\r", ""), c.replace("\r", "")) for a, b, c in rows]
    rows = [row for row in rows if row[0].strip() and row[1].strip()]
    number, expected = 2, []
    for row in rows:
        expected.append((number, row[:2]))
        number += csv_of([row], quoting, end).count(b"\n")
    content = csv_of([("text", "other", "label"), *rows], quoting, end) + b"\xff,x,y" * bad
    path = write(tmp_path_factory.getbasetemp() / "a.csv", content)
    with pytest.MonkeyPatch.context() as patch:
        set_everywhere(patch, lines_module, "CHUNK_BYTES", chunk)
        found, rejects, labels, lines = read(path, TABLE)
    assert (found, labels) == (expected, [row[2] for row in rows])
    assert rejects == [Reject(number, "not UTF-8", "byte 0: \ufffd,x,y")] * bad
    assert lines == number - 1 + bad


def spans(content: bytes, chunk: int) -> tuple[list[tuple[int, int]], list[Reject], list[bytes]]:
    """The lines of each record and of each reject, from what a joiner returns; and the records."""
    splitter, joiner = LineSplitter(), Joiner()
    pieces = [splitter.feed(content[at : at + chunk]) for at in range(0, len(content), chunk)]
    joined = [*map(joiner.feed, [*pieces, splitter.flush()]), joiner.feed([], last=True)]
    numbers = [number for one in joined for number in one.numbers]
    contents = [record or b"" for one in joined for record in one.contents]
    ends = [number + record.count(b"\n") for number, record in zip(numbers, contents, strict=True)]
    return list(zip(numbers, ends, strict=True)), [reject for one in joined for reject in one.rejects], contents


@given(st.text(st.sampled_from('",\n\na'), max_size=60), st.integers(1, 30))
@settings(max_examples=150)
def test_each_line_is_in_one_record_or_unusable(text: str, chunk: int) -> None:
    content = text.encode()
    records, rejects, contents = spans(content, chunk)
    lines = sorted([(reject.line, reject.line) for reject in rejects] + records)
    assert [line for first, last in lines for line in range(first, last + 1)] == list(
        range(1, 1 + text.count("\n") + (not text.endswith("\n") and bool(text)))
    )
    assert spans(content, 1 << 20) == (records, rejects, contents)
    if not rejects and all(map(csv_joiner.is_record, contents)):
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        assert rows == [next(csv.reader([one.decode()], strict=True), []) for one in contents]


BAD = [
    (b'1,"a,b', Reject(3, UNCLOSED, '1,"a,b')),
    (b'1,5" pipe,b', Reject(3, STRAY, '1,5" pipe,b')),
    (b'1,"a"b,c', Reject(3, STRAY, '1,"a"b,c')),
    (b'1, "a",c', Reject(3, STRAY, '1, "a",c')),
    (b"1,a\rb,c", Reject(3, RETURN, "1,a\rb,c")),
    (b"1,a", Reject(3, "2 columns instead of 3", "1,a")),
    (b'1,"a\n\nb",c,d', Reject(3, "4 columns instead of 3", '3 lines: 1,"a\n\nb",c,d')),
    (b"1,\xff,c", Reject(3, "not UTF-8", "byte 2: 1,\ufffd,c")),
    (b"1,a\0,c", Reject(3, "'en' has a NUL character", "1,a\0,c")),
    (b'1,"\n",c', Reject(3, "'en' is empty", '1,"\n",c')),
    (b"id,en,zh", Reject(3, "a heading, not a record", "id,en,zh")),
]


@pytest.mark.parametrize(("line", "reject"), BAD)
def test_a_bad_record_is_named_and_its_neighbours_kept(tmp_path: Path, line: bytes, reject: Reject) -> None:
    path = write(tmp_path / "a.csv", b'id,en,zh\n0,"x","y"\n' + line + b'\n2,"p, q",r\n3,s,t\n')
    after = 4 + line.count(b"\n")
    assert read(path, PAIRS)[:2] == ([(2, ("x", "y")), (after, ("p, q", "r")), (after + 1, ("s", "t"))], [reject])


def test_an_open_quote_costs_its_line_however_many_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"".join(b"a %d,b\n" % number for number in range(3000))
    path = write(tmp_path / "a.csv", b'en,zh\n"open,b\n' + lines)
    for limit in (1 << 28, 1000):  # bytes of a record that is not complete
        set_everywhere(monkeypatch, lines_module, "LONGEST_LINE", limit)
        records, rejects, _, _ = read(path, PAIRS)
        assert records == [(number + 3, (f"a {number}", "b")) for number in range(3000)]
        assert rejects == [Reject(2, UNCLOSED, '"open,b')]


def test_lines_that_quotes_join_and_that_could_be_records_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'id,en\n1,"Hello, he said\n2,one\n3,he left"\n4,x\n5,"two\nlines"\n')
    assert read(path, RecordFormat(("en",)))[0] == [
        (2, ("Hello, he said\n2,one\n3,he left",)), (5, ("x",)), (6, ("two\nlines",))
    ]  # fmt: skip
    assert [batch.notes for batch in collect(whole_file(path), RecordFormat(("en",)), 1000)[0]] == [{}]
    path = write(path, b'id,en\n1,"Hello\n2,one\n3,he left"\n4,x\n')
    (batch,) = collect(whole_file(path), RecordFormat(("en",)), 1000)[0]
    assert batch.notes == {MANY_LINES: (1, 2, '1,"Hello\n2,one\n3,he left"')}


def test_the_first_line_is_a_heading_or_columns_are_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'"zh-CN","EN"\nz,e\n')
    assert read(path, PAIRS)[0] == [(2, ("e", "z"))]
    (batch,) = collect(whole_file(path), replace(PAIRS, columns=("en", "zh")), 1000)[0]
    assert batch.notes == {HEADING_OBEYED: (1, 2, '"zh-CN","EN"')}
    path = write(path, b'z,"e, e"\n')
    assert read(path, replace(PAIRS, columns=("zh", "en")))[0] == [(1, ("e, e", "z"))]
    for look in (lambda: plan(path, form=PAIRS), lambda: read(path, PAIRS)):
        with pytest.raises(
            InputError, match=r"`columns` names nothing, and en, zh is wanted\. Its first line is not a"
        ):
            look()
    path = write(path, b"English,Chinese,score\n" + b"a,b,1\n" * 20)
    (batch,) = collect(whole_file(path), replace(PAIRS, columns=("en", "zh", "score")), 1000)[0]
    ((said, (count, line, _)),) = batch.notes.items()
    assert (said[:31], count, line) == ("a first line looks like a headi", 1, 1)
    with pytest.raises(InputError, match="within the file is another heading"):
        read(write(path, b"en,zh\na,b\nzh,en\nb,a\n"), PAIRS)


def test_a_heading_that_is_no_record_is_an_error_and_an_empty_file_has_no_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'"en,zh\n')
    with pytest.raises(InputError, match="Its first line is not a heading with en, zh"):
        plan_parts([str(path)], "s", PAIRS, format=None, part_bytes=9, hashes={}, threads=1)
    assert read(write(path, b""), PAIRS) == ([], [], [], 0)
    assert read(write(path, b"\n \n"), PAIRS) == ([], [], [], 2)
    assert read(write(path, b"text\na\n"), DOCUMENT)[0] == [(2, ("a",))]


SOUND = csv_of(
    [("en", "zh"), ("a", "b"), ("p, q", 'r "s"'), ("one\ntwo", "x\ny"), ("c", "d"), ("m", "n, o"), ("e", "f")]
)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_no_wrong_byte_loses_a_record_silently(tmp_path: Path, end: bytes) -> None:
    """A record beside the byte stays or is unusable with its line, or the file is refused."""
    sound = SOUND.replace(b"\r\n", end)
    whole: Found = read(write(tmp_path / "a.csv", sound), PAIRS)[0]
    starts = [0] + [at + 1 for at, byte in enumerate(sound) if byte == ord("\n")]
    path = tmp_path / "b.csv"
    for place in range(starts[1], len(sound)):
        for new in {b"", b'"', b",", b"\n", b"\0", b"\xff", bytes([sound[place] ^ 1])} - {sound[place : place + 1]}:
            path.write_bytes(sound[:place] + new + sound[place + 1 :])
            try:
                records, rejects, _, lines = read(path, PAIRS)
            except InputError:
                continue
            shift = lines - sound.count(b"\n")
            for line, texts in whole:
                stop = next((first for first, _ in whole if first > line), len(starts))
                if starts[line - 1] - 1 <= place < starts[stop - 1]:
                    continue  # its own byte, or the line end before it
                number = line + shift * (starts[line - 1] > place)
                again = [text for at, text in records if at == number] == [texts]
                assert again or number in {reject.line for reject in rejects}, (place, new, line)
