from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataengine.errors import InputError
from dataengine.records.evaluation_sets import read_texts
from dataengine.records.parts import lines_before
from dataengine.records.types import TO_THE_END, RecordFormat, Reject
from tests.dataengine.records.test_read import DOCUMENT, ObjectStore, object_store, plan, put, read

__all__ = ["object_store"]

Writer = Callable[..., Any]
WRITERS = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}
every_format = pytest.mark.parametrize("open_writer", WRITERS.values(), ids=WRITERS)
TRANSLATION = RecordFormat(("translation.en", "translation.zh"), languages=("en", "zh"), one_line=True)
ROWS = [{"en": f"sentence {number}", "zh": f"句子{number}"} for number in range(10)]


def write(path: Path, open_writer: Writer, table: Any, rows: int = 3, **options: Any) -> Path:
    """A file with batches of `rows` rows."""
    with open_writer(str(path), table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@every_format
def test_a_file_is_cut_between_its_batches(tmp_path: Path, open_writer: Writer) -> None:
    table = pa.table({"id": list(range(10)), "translation": ROWS})
    path = write(tmp_path / "data-00000-of-00001.arrow", open_writer, table)
    expected = [(number, (row["en"], row["zh"])) for number, row in enumerate(ROWS, 1)]
    whole = read(path, TRANSLATION)
    assert whole == (expected, [], [], 10)
    for part_bytes, counts in ((1, [3, 3, 3, 1]), (1 << 20, [10])):
        parts = plan(path, form=TRANSLATION, part_bytes=part_bytes)
        assert [read(part, TRANSLATION)[3] for part in parts] == counts
        before = [lines_before(part) or 0 for part in parts]
        assert before == [sum(counts[:number]) for number in range(len(counts))]
        assert [
            (first + number, texts)
            for first, part in zip(before, parts, strict=True)
            for number, texts in read(part, TRANSLATION)[0]
        ] == expected
        assert len({part.digest for part in parts}) == len(parts)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]


@every_format
def test_an_object_is_one_part(tmp_path: Path, open_writer: Writer, object_store: ObjectStore) -> None:
    path = write(tmp_path / "a.arrow", open_writer, pa.table({"translation": ROWS}))
    (part,) = plan(put(object_store, "a.arrow", path.read_bytes()), form=TRANSLATION, part_bytes=1)
    assert (part.start, part.stop) == (0, TO_THE_END)
    assert read(part, TRANSLATION) == read(path, TRANSLATION)


@every_format
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_every_type_of_text_nulls_and_bytes_that_are_not_utf8(tmp_path: Path, open_writer: Writer, kind: Any) -> None:
    raw = pa.array([b"one", None, b"\xff", "四".encode(), b""], pa.binary())
    texts = raw.cast({"string": "binary", "large_string": "large_binary"}.get(str(kind), "binary_view")).view(kind)
    inside = pa.StructArray.from_arrays([texts, pa.array(["a", "b", "c", "d", "e"])], ["x", "y"])
    path = write(tmp_path / "a.arrow", open_writer, pa.table({"text": texts, "in": inside}))
    for key in ("text", "in.x"):
        records, rejects, _, rows = read(path, RecordFormat((key,)))
        assert (records, rows) == ([(1, ("one",)), (4, ("四",))], 5)
        assert [(one.line, one.reason) for one in rejects] == [
            (2, f"'{key}' is null"), (3, "not UTF-8"), (5, f"'{key}' is empty")
        ]  # fmt: skip


@every_format
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_dictionaries_labels_and_null_structs_in_compressed_batches(
    tmp_path: Path, open_writer: Writer, compression: str | None
) -> None:
    table = pa.table(
        {
            "translation": [*ROWS[:2], None, *ROWS[3:]],
            "set": pa.array([None if number == 5 else "ab"[number % 2] for number in range(10)]).dictionary_encode(),
        }
    )
    options = pa.ipc.IpcWriteOptions(compression=compression)
    path = write(tmp_path / "a.arrow", open_writer, table, options=options)
    (part,) = plan(path, form=TRANSLATION, part_bytes=1)  # each batch may need the dictionary before it
    records, rejects, labels, rows = read(part, replace(TRANSLATION, label_key="set"))
    assert [texts[0] for _, texts in records] == [f"sentence {number}" for number in range(10) if number != 2]
    assert rejects == [Reject(3, "'translation.en' is null", '{"translation.en":null,"translation.zh":null}')]
    assert (labels, rows) == (["a", "b", "b", "a", "", "a", "b", "a", "b"], 10)


@every_format
def test_a_file_without_rows_has_no_records_and_a_wrong_column_is_an_error(tmp_path: Path, open_writer: Writer) -> None:
    path = write(
        tmp_path / "a.arrow", open_writer, pa.table({"text": pa.array([], pa.string()), "n": pa.array([], pa.int64())})
    )
    assert read(path) == ([], [], [], 0)
    assert [read(part)[3] for part in plan(path)] == [0]
    for key, said in (("body", "no column 'body'; it has text, n"), ("n", "column 'n' is int64, not text")):
        with pytest.raises(InputError, match=said):
            read(path, RecordFormat((key,)))


@every_format
def test_a_truncated_file_is_refused_before_and_while_it_is_read(tmp_path: Path, open_writer: Writer) -> None:
    path = write(tmp_path / "a.arrow", open_writer, pa.table({"translation": ROWS}))
    whole = path.read_bytes()
    ends = [part.stop for part in plan(path, form=TRANSLATION, part_bytes=1)]
    for size in {*range(0, len(whole), 7), *range(len(whole) - 20, len(whole)), *ends}:
        path.write_bytes(whole[:size])
        for look in (lambda: plan(path, form=TRANSLATION), lambda: read(path, TRANSLATION)):
            with pytest.raises(InputError, match=r"a\.arrow(: broken after [\d,]+ (rows|mess)| is not an Arrow file)"):
                look()
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=r"broken after \d messages \([\d,]+ bytes\): (more follows|the end)"):
        plan(path, form=TRANSLATION)
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(InputError, match=r"a\.arrow is compressed by gzip as a whole\. Decompress it\.$"):
        plan(path, form=TRANSLATION)


@every_format
@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_no_wrong_byte_loses_a_row_silently(tmp_path: Path, open_writer: Writer, step: int) -> None:
    """The format has no checksums, so a byte of a text may be wrong; but each row is a record or unusable."""
    path = write(tmp_path / "a.arrow", open_writer, pa.table({"translation": [*ROWS[:4], None]}))
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), step):
        for flip in (1, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                records, rejects, _, rows = read(path, TRANSLATION)
            except InputError:
                refused += 1
                continue
            assert sorted([*(line for line, _ in records), *(one.line for one in rejects)]) == [1, 2, 3, 4, 5]
            assert rows == 5
    assert refused > len(whole) / step / 4


@every_format
def test_all_texts_are_read_for_decontamination(tmp_path: Path, open_writer: Writer) -> None:
    table = pa.table({"translation": ROWS[:2], "tags": [["a b"], []], "n": [1, 2]})
    path = write(tmp_path / "a.ARROW", open_writer, table)
    assert sorted(read_texts(path)) == ["a b", "sentence 0", "sentence 1", "句子0", "句子1"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="broken after"):
        read_texts(path)


def test_the_format_can_be_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "cache-1", pa.ipc.new_stream, pa.table({"text": ["a", "b"]}))
    (part,) = plan(path, form=DOCUMENT, format="arrow")
    assert read(part)[0] == [(1, ("a",)), (2, ("b",))]


def test_the_folder_of_a_dataset_is_refused_with_a_pattern_of_its_files(tmp_path: Path) -> None:
    write(tmp_path / "data-00000-of-00001.arrow", pa.ipc.new_stream, pa.table({"text": ["One."]}))
    with pytest.raises(InputError, match=rf"is a folder\. Name its files, such as {tmp_path}/\*\.arrow"):
        plan(tmp_path)
    assert plan(tmp_path / "*.arrow")
