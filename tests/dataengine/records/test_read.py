from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dataengine.errors import InputError
from dataengine.records import archives, splitting, tsv_heading, types
from dataengine.records import lines as lines_module
from dataengine.records import parts as parts_module
from dataengine.records import rows as rows_module
from dataengine.records.parts import plan_parts, whole_file
from dataengine.records.read import read_records
from dataengine.records.types import RecordFormat, Records, Reject, SourcePart, add_notes
from tests.conftest import DEMO, read_texts, set_everywhere
from tests.object_store import ObjectStore, object_store

__all__ = ["object_store"]

DOCUMENT = RecordFormat(("text",))
PAIR = RecordFormat(("en", "zh"), languages=("en", "zh"), columns=("en", "zh"), one_line=True)
SUFFIXES = ["", ".gz", ".zst"]
PAIRS = [
    ("Good morning.", "早上好。"),
    ('"Quoted" & <marked>', "“引号”"),
    ("  spaces  inside ", "空格"),
    ("🙂", "表情"),
]

Found = list[tuple[int, tuple[str, ...]]]


def compress(content: bytes, suffix: str, frames: int = 1) -> bytes:
    """Content as a file of this suffix, in a number of frames (members) after each other."""
    step = max(1, -(-len(content) // frames))
    pieces = [content[at : at + step] for at in range(0, len(content), step)] or [b""]
    pack = {"": lambda piece: piece, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    return b"".join(pack(piece) for piece in pieces)


def write(path: Path, content: bytes, frames: int = 1) -> Path:
    suffix = path.suffix if path.suffix in SUFFIXES else ""
    path.write_bytes(compress(content, suffix, frames))
    return path


def read(
    part: SourcePart | Path, form: RecordFormat = DOCUMENT, size: int = 1000
) -> tuple[Found, list[Reject], list[str], int]:
    """Records, rejects, labels and number of lines of a part."""
    batches, lines = collect(part if isinstance(part, SourcePart) else whole_file(part), form, size)
    found = [
        (line, texts)
        for batch in batches
        for line, texts in zip(batch.lines, zip(*batch.texts, strict=True), strict=True)
    ]
    return found, [one for batch in batches for one in batch.rejects], [x for b in batches for x in b.labels], lines


def collect(part: SourcePart, form: RecordFormat, size: int) -> tuple[list[Records], int]:
    batches, flow = [], read_records(part, form, size=size)
    while True:
        try:
            batches.append(next(flow))
        except StopIteration as end:
            return batches, end.value


def plan(
    *paths: Any, form: RecordFormat = DOCUMENT, part_bytes: int = 1 << 20, format: str | None = None
) -> list[SourcePart]:
    names = [path if isinstance(path, dict) else str(path) for path in paths]
    return plan_parts(names, "s", form, format=format, part_bytes=part_bytes, hashes={}, threads=2)[0]


def moses(folder: Path, english: bytes, chinese: bytes, suffix: str = "") -> dict[str, str]:
    return {
        "en": str(write(folder / f"corpus.en{suffix}", english)),
        "zh": str(write(folder / f"corpus.zh{suffix}", chinese)),
    }


def tmx(units: Sequence[str], head: str = '<!DOCTYPE tmx SYSTEM "tmx14.dtd">') -> bytes:
    body = f'<tmx version="1.4"><header/><body>{"".join(units)}</body></tmx>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}\n{body}'.encode()


def unit(**texts: str) -> str:
    """A translation unit; `_` in a language's name means a hyphen; texts are XML."""
    sides = "".join(f'<tuv xml:lang="{code.replace("_", "-")}"><seg>{text}</seg></tuv>' for code, text in texts.items())
    return f"<tu>{sides}</tu>"


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def parquet(path: Path, columns: dict[str, Any], rows: int = 1000) -> Path:
    import pyarrow
    from pyarrow import parquet as files

    files.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


# Every format, in every container.


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("format", ["jsonl", "tsv", "tmx"])
def test_pairs_are_the_same_in_every_format_and_container(
    tmp_path: Path, format: str, suffix: str, frames: int
) -> None:
    content = {
        "jsonl": b"".join(orjson.dumps({"en": en, "zh": zh}) + b"\n" for en, zh in PAIRS),
        "tsv": "".join(f"{en}\t{zh}\n" for en, zh in PAIRS).encode(),
        "tmx": tmx([unit(en=escape(en), zh=escape(zh)) for en, zh in PAIRS]),
    }[format]
    path = write(tmp_path / f"pairs.{format}{suffix}", content, frames)
    expected = [(n, (en.strip(), zh)) for n, (en, zh) in enumerate(PAIRS, 1)]
    assert read(path, PAIR) == (expected, [], [], len(PAIRS))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_moses_files_are_read_side_by_side(tmp_path: Path, suffix: str) -> None:
    english, chinese = ("".join(f"{pair[side]}\r\n" for pair in PAIRS).encode() for side in (0, 1))
    (part,) = plan(moses(tmp_path, english, chinese, suffix), form=PAIR)
    assert part.format == "moses"
    assert part.paths == (str(tmp_path / f"corpus.en{suffix}"), str(tmp_path / f"corpus.zh{suffix}"))
    assert read(part, PAIR) == ([(n, (en.strip(), zh)) for n, (en, zh) in enumerate(PAIRS, 1)], [], [], len(PAIRS))
    assert read(part, replace(PAIR, one_line=False))[0][2] == (3, PAIRS[2])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("line", [(1, "one"), (2, "two"), (5, " three"), (7, "four")]),
        ("paragraph", [(1, "one\ntwo"), (5, " three"), (7, "four")]),
        ("file", [(1, "one\ntwo\n\n\u3000\n three\n\nfour")]),
    ],
)
def test_plain_text_is_cut_into_documents(
    tmp_path: Path, split: str, expected: list[tuple[int, str]], suffix: str
) -> None:
    text = "\ufeffone\r\ntwo\r\n\r\n\u3000\r\n three\r\n\r\nfour"
    path = write(tmp_path / f"book.txt{suffix}", text.encode())
    records, rejects, _, lines = read(path, replace(DOCUMENT, split=split))
    assert (records, rejects, lines) == ([(line, (text,)) for line, text in expected], [], 7)


@pytest.mark.parametrize("split", ["paragraph", "file"])
def test_a_document_of_several_lines_is_rejected_once(
    tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "book.txt", b"a\n\xffb\n\xffc\n")
    form = replace(DOCUMENT, split=split)
    assert read(path, form) == ([], [Reject(1, "not UTF-8", "byte 2: a\n\ufffdb\n\ufffdc")], [], 3)
    set_everywhere(monkeypatch, lines_module, "LONGEST_LINE", 10)
    assert read(write(path, b"12345\n12345\n12345\n"), form)[:2] == ([], [Reject(1, "longer than 0 MiB", "")])
    assert read(write(path, b" \n\t\n"), form) == ([], [], [], 2)


def test_plain_text_has_no_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.txt", b"a\n")
    with pytest.raises(InputError) as error:
        read(path, PAIR)
    assert str(error.value) == (
        f"{path}: plain text has one text a line, and en, zh are wanted. Give a file for each language, as "
        "{en: PATH, zh: PATH}, or state the stream's `format`."
    )


# How records are found in a file.


def test_real_records_are_what_json_says() -> None:
    path = DEMO / "en-zh.train.jsonl.zst"
    content = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    expected = [orjson.loads(line) for line in content.splitlines()]
    records, rejects, _, lines = read(path, PAIR)
    assert (len(records), rejects, lines) == (9000, [], 9000)
    assert records == [(n, (pair["en"], pair["zh"])) for n, pair in enumerate(expected, 1)]


def test_sides_are_stripped_and_given_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", '{"en": "  two\\r\\nlines\\u2028more ", "zh": "\\n两行"}\n'.encode())
    assert read(path, PAIR)[0] == [(1, ("two lines more", "两行"))]
    assert read(path, replace(PAIR, one_line=False))[0] == [(1, ("  two\r\nlines\u2028more ", "\n两行"))]


def test_dotted_keys_go_into_nested_objects_unless_they_are_keys_themselves(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write(
        path, b'{"a": {"b": "nested", "c": {"d": "deep"}}}\n{"a": {"b": "nested", "c": {"d": "e"}}, "a.b": "literal"}'
    )
    assert read(path, RecordFormat(("a.b", "a.c.d")))[0] == [(1, ("nested", "deep")), (2, ("literal", "e"))]


@pytest.mark.parametrize("other", ["", "not JSON\n"])
def test_labels_name_the_subset_of_each_record(tmp_path: Path, other: str) -> None:
    labels: list[Any] = ["Wikipedia", None, 3]
    content = "".join(orjson.dumps({"text": "a", "meta": {"set": label}}).decode() + "\n" for label in labels)
    form = replace(DOCUMENT, label_key="meta.set")
    path = write(tmp_path / "docs.jsonl", (content + '{"text": "a"}\n{"text": "b", "meta": 1}\n' + other).encode())
    assert read(path, form)[2] == ["Wikipedia", "", "3", "", ""]
    strings = write(tmp_path / "docs.jsonl", (content.split("\n")[0] + "\n" + other).encode())
    assert read(strings, form)[2] == ["Wikipedia"]


@pytest.mark.parametrize("bad", [b"", b"only one cell\n"])
def test_tsv_and_text_have_labels_too(tmp_path: Path, bad: bytes) -> None:
    form = RecordFormat(("text",), columns=("set", "text"), label_key="set")
    assert read(write(tmp_path / "a.tsv", b"web\ta\n\tb\n" + bad), form)[2] == ["web", ""]
    with pytest.raises(InputError, match=r"a\.tsv: `subsets.key` is other, and `columns` names set, text\."):
        read(tmp_path / "a.tsv", replace(form, label_key="other"))
    assert read(write(tmp_path / "a.txt", b"a\n" + bad), replace(form, columns=()))[2] == [""] * (1 + bool(bad))


def test_tsv_takes_quotes_as_characters_and_needs_the_right_number_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", '"a\t"中\r\nx\ty\tz\nalone\n\n\t\nb\t文'.encode())
    records, rejects, _, lines = read(path, PAIR)
    assert records == [(1, ('"a', '"中')), (6, ("b", "文"))]
    assert rejects == [
        Reject(2, "3 columns instead of 2", "x\ty\tz"),
        Reject(3, "1 columns instead of 2", "alone"),
    ]
    assert lines == 6


@pytest.mark.parametrize("rest", [b"", b"alone\n"])
def test_a_heading_in_a_tsv_is_not_a_record_and_not_unusable(tmp_path: Path, rest: bytes) -> None:
    path = write(tmp_path / "a.tsv", b"\n\nen\tzh\r\na\tb\n" + rest)
    records, rejects, _, lines = read(path, PAIR)
    assert records == [(4, ("a", "b"))]
    assert [(one.line, one.reason) for one in rejects] == [(5, "1 columns instead of 2")] * bool(rest)
    assert lines == 4 + bool(rest)


def test_a_heading_within_a_tsv_is_unusable_and_one_of_another_order_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"en\tzh\na\tb\nen\tzh\nc\td\n")
    assert read(path, PAIR)[:2] == (
        [(2, ("a", "b")), (4, ("c", "d"))],
        [Reject(3, "a heading, not a record", "en\tzh")],
    )
    for other in (b"zh\ten\n", b"ZH\tEN\n", b"EN\tZH\n"):
        with pytest.raises(InputError, match=r"within the file is another heading .* Cut the file in two there\.$"):
            read(write(path, b"a\tb\n" + other), PAIR)
    assert read(write(path, b"a\tb\nc\nen\tid\n"), PAIR)[0] == [(1, ("a", "b")), (3, ("en", "id"))]


@pytest.mark.parametrize("stated", [(), ("en", "zh"), ("zh", "en"), ("zh", "en", "id")])
@pytest.mark.parametrize(
    ("heading", "names", "row"),
    [
        ("en\tzh", ("en", "zh"), "e\tz"),
        ("zh\ten", ("zh", "en"), "z\te"),
        ("ZH\tEn", ("zh", "en"), "z\te"),
        ('"zh"\t"en"', ("zh", "en"), "z\te"),
        ("id\tzh\tscore\ten", ("id", "zh", "score", "en"), "1\tz\t0.5\te"),
        ("\tzh-CN\ten_US", ("", "zh", "en"), "0\tz\te"),
        ("en-US\tzh\ten", ("en-US", "zh", "en"), "x\tz\te"),
    ],
)
def test_a_heading_overrides_stated_columns(
    tmp_path: Path, stated: tuple[str, ...], heading: str, names: tuple[str, ...], row: str
) -> None:
    form = replace(PAIR, columns=stated)
    path = write(tmp_path / "a.tsv", f"\ufeff{heading}\n{row}\n".encode())
    (part,) = plan(path, form=form)
    assert part.columns == names
    for one in (part, whole_file(path)):
        assert read(one, form)[:2] == ([(2, ("e", "z"))], [])
    notes = [batch.notes for batch in collect(part, form, 1000)[0]]
    assert notes == [{rows_module.HEADING_OBEYED: (1, 1, heading)} if stated not in ((), names) else {}]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_all_parts_of_a_tsv_have_the_columns_of_its_heading(tmp_path: Path, suffix: str) -> None:
    rows = [f"z{n}\te{n}\n" for n in range(50)]
    path = write(tmp_path / f"a.tsv{suffix}", ("zh\ten\n" + "".join(rows)).encode())
    parts = plan(path, form=PAIR, part_bytes=40)
    assert len(parts) > 5 or suffix
    assert {part.columns for part in parts} == {("zh", "en")}
    assert [texts for part in parts for _, texts in read(part, PAIR)[0]] == [(f"e{n}", f"z{n}") for n in range(50)]
    other = write(tmp_path / f"b.tsv{suffix}", ("en\tzh\n" + "".join(rows)).encode())
    last = plan(other, form=PAIR, part_bytes=40)[-1]
    assert (last.digest == parts[-1].digest) == (not suffix)
    assert last.columns == ("en", "zh")  # so that the unit is another one


def test_the_first_line_of_a_tsv_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tsv", b"zh\ten\na\tb\n")
    known: dict[str, Any] = {}

    def columns() -> tuple[str, ...]:
        nonlocal known
        parts, known = plan_parts([str(path)], "s", PAIR, format=None, part_bytes=9, hashes=known, threads=1)
        return parts[0].columns

    assert columns() == ("zh", "en")
    first_line = parts_module._first_line
    read_again: list[str] = []
    monkeypatch.setattr(parts_module, "_first_line", lambda file: read_again.append(file.path) or first_line(file))
    assert (columns(), read_again) == (("zh", "en"), [])
    write(path, b"en\tzh\tx\na\tb\tc\n")
    assert (columns(), read_again) == (("en", "zh", "x"), [str(path)])


@pytest.mark.parametrize(
    ("heading", "said"),
    [
        ("en\tzh-CN\tzh-TW", "its heading has 2 columns for zh (zh-CN, zh-TW)"),
        ("en\tEN\tzh\tzh", "its heading has 2 columns for zh (zh, zh)"),
    ],
)
def test_a_heading_with_two_columns_for_a_key_is_an_error(tmp_path: Path, heading: str, said: str) -> None:
    path = write(tmp_path / "a.tsv", heading.encode() + b"\n")
    with pytest.raises(InputError) as error:
        plan(path, form=PAIR)
    assert str(error.value) == (
        f"{path}: {said}. Name one of them exactly in the stream's `keys` (documents: `text_key`), or rename one."
    )


def test_the_label_is_found_by_the_heading_too(tmp_path: Path) -> None:
    form = RecordFormat(("text",), label_key="set")
    path = write(tmp_path / "a.tsv", b"Set\tid\tTEXT\nweb\t1\ta\n")
    assert read(path, form)[::2] == ([(2, ("a",))], ["web"])
    with pytest.raises(
        InputError, match=r"`subsets.key` is other, and its heading names Set, id, text\. Correct one\."
    ):
        read(path, replace(form, label_key="other"))


QUOTED = [
    (['a\t"He said ""no"""', "b\tc"], 1),
    (['"a ""b"" c"\td'], 1),
    (['"a\t"b', '"a"\t"b"', '""a""\tb', '"a" and "b"\tc', '""\tb"'], 0),
    ([f'"en {n}"\t"zh {n}"' for n in range(10)], 10),
    ([f'"en {n}"\t"zh {n}"' for n in range(9)], 0),
    ([*(f'"en {n}"\t"zh {n}"' for n in range(10)), '"a"\tb'], 0),
]


@pytest.mark.parametrize("bad", [[], ["alone"]])
@pytest.mark.parametrize(("rows", "count"), QUOTED)
def test_fields_in_quotes_as_csv_writes_them_are_noted(
    tmp_path: Path, rows: list[str], count: int, bad: list[str]
) -> None:
    path = write(tmp_path / "a.tsv", "".join(f"{row}\n" for row in [*bad, *rows]).encode())
    batches, _ = collect(whole_file(path), PAIR, 1000)
    expected = {tsv_heading.QUOTED: (count, 1 + len(bad), rows[0])} if count else {}
    assert [batch.notes for batch in batches] == [expected]
    assert sum(len(batch.lines) for batch in batches) == len(rows)


def test_tsv_takes_the_named_columns_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"1\tz\te\n2\tzz\tee\r\n")
    assert read(path, replace(PAIR, columns=("id", "zh", "en")))[0] == [(1, ("e", "z")), (2, ("ee", "zz"))]


@pytest.mark.parametrize(("columns", "said"), [((), "nothing, and en, zh is"), (("en", "id"), "en, id, and zh is")])
def test_tsv_needs_names_of_columns(tmp_path: Path, columns: tuple[str, ...], said: str) -> None:
    path = write(tmp_path / "a.tsv", b"a\tb\n")
    with pytest.raises(InputError) as error:
        read(path, replace(PAIR, columns=columns))
    assert str(error.value) == (
        f"{path}: `columns` names {said} wanted. Its first line is not a heading with en, zh (it is 'a\\tb'). "
        "State the stream's `columns`, such as [en, zh]."
    )


# TMX.


def test_tmx_takes_the_exact_language_else_a_variety_of_it(tmp_path: Path) -> None:
    units = [
        unit(en_GB="variety", zh_CN="中"),
        unit(en_GB="variety", en="exact", ZH="中"),
        unit(en="first", fr="x").replace("</tu>", '<tuv lang="zh_TW"><seg>旧</seg></tuv></tu>'),
        unit(eng="other", zh="中"),
        unit(en="alone"),
    ]
    records, rejects, _, lines = read(write(tmp_path / "a.tmx", tmx(units)), PAIR)
    assert records == [(1, ("variety", "中")), (2, ("exact", "中")), (3, ("first", "旧"))]
    assert rejects == [
        Reject(4, "no key 'en'", '{"eng":"other","zh":"中"}'),
        Reject(5, "no key 'zh'", '{"en":"alone"}'),
    ]
    assert lines == 5
    assert read(tmp_path / "a.tmx", replace(PAIR, keys=("en_GB", "zh-cn")))[0] == [(1, ("variety", "中"))]
    assert read(tmp_path / "a.tmx", replace(PAIR, keys=("ENG", "zh")))[0] == [(4, ("other", "中"))]
    keys = ("translation.en", "target")  # of another format, not codes
    assert read(tmp_path / "a.tmx", replace(PAIR, keys=keys))[0] == [
        (1, ("variety", "中")), (2, ("exact", "中")), (3, ("first", "旧"))
    ]  # fmt: skip


def test_tmx_with_two_varieties_takes_the_named_one_else_the_first_by_the_alphabet_and_says_so(tmp_path: Path) -> None:
    units = [
        unit(en="a", zh_Hant="體", zh_Hans="体"),
        unit(en="b", zh_Hans="体", zh_Hant="體"),
        unit(en="c", zh_Hant_TW="體"),
        unit(en="d", zh_Hans="体", zh_Hant="體", zh="無"),
    ]
    path = write(tmp_path / "a.tmx", tmx(units))

    def chosen(key: str) -> tuple[list[tuple[str, ...]], dict[str, tuple[int, int, str]]]:
        form = replace(PAIR, keys=("en", key))
        batches, _ = collect(whole_file(path), form, 1000)
        return [texts for _, texts in read(path, form)[0]], batches[0].notes

    assert chosen("zh") == (
        [("a", "体"), ("b", "体"), ("c", "體"), ("d", "無")],
        {
            "a unit has several varieties of zh and none of exactly this code: taken is zh-hans, the first by the "
            "alphabet (another: state the stream's keys: {zh: CODE})": (2, 1, "en, zh-hant, zh-hans")
        },
    )
    assert chosen("zh-Hant") == ([("a", "體"), ("b", "體"), ("c", "體"), ("d", "體")], {})
    assert chosen("zh-Hans") == ([("a", "体"), ("b", "体"), ("d", "体")], {})


def test_tmx_with_two_texts_of_one_code_takes_the_first_and_says_so(tmp_path: Path) -> None:
    double = unit(en="a", zh="一").replace("</tu>", '<tuv xml:lang="ZH"><seg>二</seg></tuv></tu>')
    path = write(tmp_path / "a.tmx", tmx([double, unit(en="b", zh="三"), double.replace("二", "一")]))
    ((batch,), _) = collect(whole_file(path), PAIR, 1000)
    assert batch.texts == (["a", "b", "a"], ["一", "三", "一"])
    assert batch.notes == {"a unit has several texts in zh: taken is the first": (1, 1, "en, zh")}


def test_tmx_leaves_native_codes_out_and_keeps_marked_text(tmp_path: Path) -> None:
    english = 'Press <bpt i="1">&lt;b&gt;<sub>sub</sub></bpt><hi>OK<ph>x</ph></hi><ept i="1">&lt;/b&gt;</ept> &amp; go'
    path = write(tmp_path / "a.tmx", tmx([unit(en=english, zh="<it>y</it>按<![CDATA[<!ENTITY]]>")]))
    assert read(path, PAIR)[0] == [(1, ("Press OK & go", "按<!ENTITY"))]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        *[(name, "早上好。🙂") for name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030")],
        *[(name, "おはようソ") for name in ("euc-jp", "shift_jis", "iso-2022-jp")],
        ("gbk", "早上好。"),
        ("big5", "早安。"),
        ("euc-kr", "안녕하세요"),
        ("windows-1252", "café – “x”"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_tmx_of_other_encodings_and_chunks_is_the_same(
    tmp_path: Path, encoding: str, text: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_everywhere(monkeypatch, lines_module, "CHUNK_BYTES", chunk)
    declared = "UTF-16" if encoding.startswith("utf-16") else encoding.removesuffix("-sig")
    content = tmx([unit(en=f"{n} &amp; &#x1F642;", zh=text) for n in range(9)]).decode().replace("UTF-8", declared)
    path = write(tmp_path / "a.tmx", content.encode(encoding))
    assert read(path, PAIR)[:2] == ([(n + 1, (f"{n} & 🙂", text)) for n in range(9)], [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("chunk", [5, 1 << 20])
@pytest.mark.parametrize("declaration", ['<!ENTITY a "b">', '<!ENTITY % a SYSTEM "/etc/passwd">'])
def test_tmx_that_declares_entities_is_refused(
    tmp_path: Path, declaration: str, chunk: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_everywhere(monkeypatch, lines_module, "CHUNK_BYTES", chunk)
    text = tmx([unit(en="a", zh="b")], f"<!DOCTYPE tmx [{declaration}]>").decode().replace("UTF-8", encoding)
    path = write(tmp_path / "a.tmx", text.encode(encoding))
    with pytest.raises(InputError) as error:
        read(path, PAIR)
    assert str(error.value) == f"{path}: declares XML entities, which could fill the memory. Remove the declarations."


def test_an_unknown_entity_makes_its_unit_unusable(tmp_path: Path) -> None:
    units = [unit(en="a&nbsp;b", zh="c"), unit(en="d", zh="<ph>&nbsp;</ph>e")]
    expected = [(2, ("d", "e"))], [Reject(1, "unknown entity &nbsp;", '{"en":"a&nbsp;b","zh":"c"}')], [], 2
    for head in ('<!DOCTYPE tmx SYSTEM "tmx14.dtd">', ""):
        assert read(write(tmp_path / "a.tmx", tmx(units, head)), PAIR) == expected


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        ("a&#x1F;b", "a character reference that XML does not allow", "a&#x1F;b"),
        ("a&#0;b", "a character reference that XML does not allow", "a&#0;b"),
        ("&#55357;&#56842;", "a character reference that XML does not allow", "&#55357;&#56842;"),
        ("&#xFFFFFFFFFF;", "a character reference that XML does not allow", "&#xFFFFFFFFFF;"),
        ("&#xFDD0;", "a character reference that XML does not allow", "&#xFDD0;"),
        ("AT&T", "an & that is not escaped", "AT&T"),
        ("a & b; c", "an & that is not escaped", "a & b; c"),
        ("a && b", "an & that is not escaped", "a && b"),
        ("a < b", "a < that is not escaped", "a < b"),
        ("1 <2", "a < that is not escaped", "1 <2"),
        ("a\x1fb", "a character that XML does not allow", "a\ufffdb"),
        ("<![CDATA[a\x1fb]]>", "a character that XML does not allow", "a\ufffdb"),
        ("a\ufdd1b", "a character that XML does not allow", "a\ufffdb"),
        ("a\ufffeb", "a character that XML does not allow", "a\ufffdb"),
        ("BAD", "not of the encoding that the file declares", "\ufffd"),
    ],
)
def test_a_fault_of_xml_costs_its_unit_and_not_the_file(
    tmp_path: Path, text: str, reason: str, shown: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_everywhere(monkeypatch, lines_module, "CHUNK_BYTES", chunk)
    content = tmx([unit(en="a", zh="b"), unit(en=text, zh="c"), unit(en="d", zh="e", fr=text), unit(en="f", zh="g")])
    path = write(tmp_path / "a.tmx", content.replace(b"BAD", b"\xff"))
    assert read(path, PAIR) == (
        [(1, ("a", "b")), (3, ("d", "e")), (4, ("f", "g"))],  # a text in another language does not matter
        [Reject(2, reason, f'{{"en":"{shown}","zh":"c"}}')],
        [],
        4,
    )


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_what_xml_allows_is_read_as_it_is(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_everywhere(monkeypatch, lines_module, "CHUNK_BYTES", chunk)
    english = (
        "<![CDATA[AT&T &#x1F; &nbsp; 1 < 2 <b]]>&#x41;&#0000066;&#9;&lt;&gt;&quot;&apos;&amp;amp;<!-- & < &#1; -->"
    )
    odd = unit(en=english, zh="<hi x='&#x1F;'>b</hi>").replace("<tu>", "<tu note='a & b \x1f'><prop>&#2; & </prop>")
    path = write(tmp_path / "a.tmx", tmx([odd]))
    assert read(path, PAIR)[:2] == ([(1, ("AT&T &#x1F; &nbsp; 1 < 2 <bAB\t<>\"'&amp;", "b"))], [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tmx([unit(en="a", zh="b")])[:-20], "unclosed token: line 3, column 106"),
        (tmx([unit(en="a <b", zh="b")]), "not well-formed (invalid token): line 3, column 66"),
        (tmx([unit(en="a", zh="b")]).replace(b"UTF-8", b"nonsense"), "unknown encoding: nonsense"),
        (tmx([unit(en="a", zh="b")]).replace(b"UTF-8", b"rot13"), "unknown encoding: rot13"),
        (
            tmx([unit(en="a", zh="b")]).replace(b"UTF-8", b"UTF-16"),
            "encoding specified in XML declaration is incorrect",
        ),
        (b"", "no element found: line 1, column 0"),
    ],
    ids=["cut short", "not closed", "unknown encoding", "no encoding of text", "not the encoding", "empty"],
)
def test_broken_xml_is_an_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = write(tmp_path / "a.tmx", content)
    with pytest.raises(InputError) as error:
        read(path, PAIR)
    assert str(error.value) == f"{path}: broken XML: {said}. Fix the file, or fetch it again."


# Rejects: what is wrong is said, and the neighbours stay.


@pytest.mark.parametrize("other", ["", "broken\n"])  # alone, and where the others are also looked at one by one
@pytest.mark.parametrize(
    ("line", "reason", "excerpt"),
    [
        (b'{"en": "a", "zh": "\\ud800"}', "not JSON", None),
        (b'{"en": "a", "zh"', "not JSON", 'unexpected end of data: line 1 column 17 (char 16): {"en": "a", "zh"'),
        (b'{"en": "a", "zh": "\xc4\xe3"}', "not UTF-8", 'byte 19: {"en": "a", "zh": "\ufffd\ufffd"}'),
        (b'["en", "zh"]', "not a JSON object", '["en", "zh"]'),
        (b'"en zh"', "not a JSON object", '"en zh"'),
        (b'{"en": "a"}', "no key 'zh'", '{"en": "a"}'),
        (b'{"en": "a", "zh": 3}', "'zh' is not a string", '{"en": "a", "zh": 3}'),
        (b'{"en": null, "zh": "b"}', "'en' is null", '{"en": null, "zh": "b"}'),
        (b'{"en": " \\n", "zh": "b"}', "'en' is empty", '{"en": " \\n", "zh": "b"}'),
        (b'{"en": "a", "zh": "b\\u0000"}', "'zh' has a NUL character", '{"en": "a", "zh": "b\\u0000"}'),
        (b'{"en": "' + b"a" * 300, "not JSON", None),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_kept(
    tmp_path: Path, line: bytes, reason: str, excerpt: str | None, other: str
) -> None:
    content = b'{"en": "a", "zh": "b"}\n' + line + b'\n{"en": "c", "zh": "d"}\n' + other.encode()
    records, rejects, _, _ = read(write(tmp_path / "pairs.jsonl", content), PAIR)
    assert records == [(1, ("a", "b")), (3, ("c", "d"))]
    assert len(rejects) == 1 + bool(other)
    assert (rejects[0].line, rejects[0].reason) == (2, reason)
    if excerpt is None:
        assert rejects[0].excerpt.endswith(": " + line[:200].decode())
    else:
        assert rejects[0].excerpt == excerpt


@pytest.mark.parametrize(
    ("line", "reject"),
    [
        (b"a\xffb\tc", Reject(2, "not UTF-8", "byte 1: a\ufffdb\tc")),
        (b"a\x00b\tc", Reject(2, "'en' has a NUL character", "a\0b\tc")),
        (b"a\t ", Reject(2, "'zh' is empty", "a\t ")),
    ],
)
def test_a_bad_row_is_named_and_its_neighbours_kept(tmp_path: Path, line: bytes, reject: Reject) -> None:
    expected = [(1, ("1", "2")), (3, ("3", "4"))], [reject]
    assert read(write(tmp_path / "a.tsv", b"1\t2\n" + line + b"\n3\t4\n"), PAIR)[:2] == expected
    english, chinese = line.split(b"\t")
    (part,) = plan(moses(tmp_path, b"1\n" + english + b"\n3\n", b"2\n" + chinese + b"\n4\n"), form=PAIR)
    records, rejects, _, _ = read(part, PAIR)
    assert (records, [(one.line, one.reason) for one in rejects]) == (expected[0], [(2, reject.reason)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"text": "a"}, {"text": "b"}]', ("one array", ".[]")),
        (b'[\n  {"text": "a"},\n', ("one array", ".[]")),
        (b' [\r\n\r\n{\r\n"text": "a"', ("one array", ".[]")),
        (b'{\n  "text": "a"\n}\n', ("records over several lines", ".")),
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_json_that_is_not_json_lines_is_named(
    tmp_path: Path, content: bytes, said: tuple[str, str], suffix: str
) -> None:
    path = write(tmp_path / f"a.json{suffix}", content)
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value) == (
        f"{path} is JSON with {said[0]}, not JSON Lines, which has one object a line. "
        f"Convert it (jq -c '{said[1]}' FILE)."
    )


@pytest.mark.parametrize("other", ["", "broken\n"])
@pytest.mark.parametrize("value", ["NaN", "-Infinity", '[1, {"x": Infinity}]'])
def test_nan_in_json_is_named(tmp_path: Path, value: str, other: str) -> None:
    line = f'{{"text": "a", "score": {value}}}'
    path = write(tmp_path / "a.jsonl", f'{{"text": "NaN"}}\n{line}\n{{"text": NaN\n{other}'.encode())
    records, rejects, _, _ = read(path)
    assert records == [(1, ("NaN",))]
    assert rejects[0] == Reject(2, "NaN or Infinity, which are not JSON (write null)", line)
    assert [one.reason for one in rejects[1:]] == ["not JSON"] * (1 + bool(other))


@pytest.mark.parametrize("other", ["", "broken\n"])
@pytest.mark.parametrize(
    ("key", "line", "doubled"),
    [
        ("text", '{"text": "a", "id": 1, "text" : "b"}', "text"),
        ("text", '{"text": "a", "text": "a"}', "text"),
        ("text", '{"type": "text", "text": "a", "x": [{"text": 1}, {"text": 2}]}', None),
        ("text", '{"x": "\\"text\\": \\"text\\":", "text": "a"}', None),
        ("中", '{"中": "a", "\\u4e2d": "b"}', "中"),
        ("a.b", '{"a": {"b": "c"}, "x": {"b": "d"}, "b": "e"}', None),
        ("a.b", '{"a": {"b": "c", "b": "d"}}', "a.b"),
        ("a.b", '{"a": {"b": "c"}, "a": {}}', "a.b"),
        ("a.b", '{"a.b": "c", "a": {}, "a": {"b": "x", "b": "y"}}', None),
        ("a.b", '{"a.b": "c", "a.b": "d"}', "a.b"),
        ("text", '{"text": "a", "set": "x", "set": "y"}', "set"),
    ],
)
def test_a_key_that_appears_twice_makes_its_record_unusable(
    tmp_path: Path, key: str, line: str, doubled: str | None, other: str
) -> None:
    path = write(tmp_path / "a.jsonl", (line + "\n" + other).encode())
    records, rejects, _, _ = read(path, RecordFormat((key,), label_key="set" if doubled == "set" else None))
    twice = [Reject(1, f"key '{doubled}' stands twice", line)] if doubled else []
    assert rejects[: len(twice)] == twice
    assert [one.reason for one in rejects[len(twice) :]] == ["not JSON"] * bool(other)
    assert len(records) == 1 - len(twice)


BLANK = ["\u200b", "\ufeff\ufeff", "\u00ad \u200d", "\u2028\u3000", "\u2060\u180e\t", "\u3164", "\ufe0f"]


@pytest.mark.parametrize("other", [False, True])  # alone, and where the others are also looked at one by one
@pytest.mark.parametrize("blank", BLANK)
@pytest.mark.parametrize("form", [PAIR, replace(PAIR, one_line=False)])
def test_a_text_that_shows_nothing_is_empty_in_every_format(
    tmp_path: Path, blank: str, form: RecordFormat, other: bool
) -> None:
    pairs = [("a", "b"), ("c", blank.replace("\t", "")), (" d", "\u200be"), *[("", "f")] * other]
    english, chinese = ("".join(f"{pair[side]}\n" for pair in pairs).encode() for side in (0, 1))
    parts = [
        whole_file(write(tmp_path / "a.jsonl", b"\n".join(orjson.dumps({"en": en, "zh": zh}) for en, zh in pairs))),
        whole_file(write(tmp_path / "a.tsv", "".join(f"{en}\t{zh}\n" for en, zh in pairs).encode())),
        whole_file(write(tmp_path / "a.tmx", tmx([unit(en=en, zh=zh) for en, zh in pairs]))),
        whole_file(parquet(tmp_path / "a.parquet", {"en": [en for en, _ in pairs], "zh": [zh for _, zh in pairs]})),
        plan(moses(tmp_path, english, chinese), form=PAIR)[0],
    ]  # fmt: skip
    for part in parts:
        records, rejects, _, _ = read(part, form)
        assert records == [(1, ("a", "b")), (3, ("d" if form.one_line else " d", "\u200be"))], part.format
        assert [(one.line, one.reason) for one in rejects] == [
            (2, "'zh' is empty"), *[(4, "'en' is empty")] * other
        ], part.format  # fmt: skip


@pytest.mark.parametrize("blank", BLANK)
def test_a_line_that_shows_nothing_is_blank_in_every_format(tmp_path: Path, blank: str) -> None:
    for name, content in (("a.jsonl", '{"text": "a"}'), ("a.tsv", "a"), ("a.txt", "a")):
        path = write(tmp_path / name, f"{content}\n{blank}\n{content}\n".encode())
        assert read(path, replace(DOCUMENT, columns=("text",))) == ([(1, ("a",)), (3, ("a",))], [], [], 3), name
    path = tmp_path / "a.txt"
    assert read(path, replace(DOCUMENT, split="paragraph"))[0] == [(1, ("a",)), (3, ("a",))]
    assert read(write(path, f"{blank}\n \n".encode()), replace(DOCUMENT, split="file"))[0] == []
    (part,) = plan(moses(tmp_path, f"a\n{blank}\n".encode(), b"b\n\n"), form=PAIR)
    assert read(part, PAIR) == ([(1, ("a", "b"))], [], [], 2)


def test_a_line_break_within_a_side_is_a_space_in_every_format(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd"
    line = text.encode() + b"\n"
    parts = [
        whole_file(write(tmp_path / "a.jsonl", orjson.dumps({"en": text, "zh": text}))),
        whole_file(write(tmp_path / "a.tsv", line[:-1] + b"\t" + line)),
        whole_file(parquet(tmp_path / "a.parquet", {"en": [text], "zh": [text]})),
        plan(moses(tmp_path, line, line), form=PAIR)[0],
    ]
    assert [read(part, PAIR)[0] for part in parts] == [[(1, ("a b c d", "a b c d"))]] * 4
    path = write(tmp_path / "a.tmx", tmx([unit(en="a\u2028b\x85c", zh="d\ne")]))
    assert read(path, PAIR)[0] == [(1, ("a b c", "d e"))]


def test_a_moses_pair_with_two_bad_sides_is_one_reject(tmp_path: Path) -> None:
    (part,) = plan(moses(tmp_path, b"\xff\n\na\n", b"\xfe\n \nb\n"), form=PAIR)
    assert read(part, PAIR) == ([(3, ("a", "b"))], [Reject(1, "not UTF-8", "byte 0: \ufffd")], [], 3)


def test_a_line_of_ten_megabytes_is_a_record(tmp_path: Path) -> None:
    text = "中文 " * 1_500_000
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        path = write(tmp_path / name, orjson.dumps({"text": text}) + b'\n{"text": "b"}')
        assert read(path)[0] == [(1, (text,)), (2, ("b",))]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("chunk", [16, 64, 1 << 20])
@pytest.mark.parametrize("long", [200, 20_000])
def test_a_line_over_the_limit_is_rejected_once(
    tmp_path: Path, chunk: int, long: int, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_everywhere(monkeypatch, lines_module, "LONGEST_LINE", 100)
    set_everywhere(monkeypatch, lines_module, "CHUNK_BYTES", chunk)
    texts = ["a", "b" * 99, "c" * 100, "d" * long, "e", "f" * 101, "g"]
    path = write(tmp_path / f"a.txt{suffix}", "\n".join(texts).encode())
    records, rejects, _, lines = read(path)
    assert records == [(1, ("a",)), (2, ("b" * 99,)), (3, ("c" * 100,)), (5, ("e",)), (7, ("g",))]
    assert rejects == [Reject(4, "longer than 0 MiB", ""), Reject(6, "longer than 0 MiB", "")]
    assert lines == 7
    jsonl = write(tmp_path / f"a.jsonl{suffix}", b'{"text": "a"}\n' + b"x" * long + b'\n{"text": "b"}\n')
    assert read(jsonl)[0] == [(1, ("a",)), (3, ("b",))]


# For a process of its own. Linux' peak of resident memory, which unlike that of getrusage starts again with a program.
PEAK = """
import sys
from pathlib import Path
from dataengine.records import jsonl, lines, parts, read, text, types, usable

def peak_mib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10

path, kind, longest = sys.argv[1], sys.argv[2], int(sys.argv[3])
for module in (jsonl, lines, text, usable):
    module.LONGEST_LINE = longest
keys = ("en", "zh") if kind == "tmx" else ("text",)
before = peak_mib()
batches = read.read_records(parts.whole_file(path), types.RecordFormat(keys))
count = sum(len(batch.lines) + len(batch.rejects) for batch in batches)
print(count, peak_mib() - before)
"""


def peak_mib(path: Path, format: str, longest: int = 1 << 28) -> tuple[int, int]:
    """Number of records, used and unusable, and growth of memory while a new process reads them."""
    command = [sys.executable, "-c", PEAK, str(path), format, str(longest)]
    count, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(count), int(grown)


def test_memory_does_not_grow_with_a_tmx(tmp_path: Path) -> None:
    units = [unit(en=f"sentence {n} " * 10, zh=f"句子{n}" * 10) for n in range(1000)]
    path = write(tmp_path / "a.tmx", tmx(units * 120))
    assert path.stat().st_size > 34 << 20
    count, grown = peak_mib(path, "tmx")
    assert count == 120_000
    assert grown < 25, grown


def test_memory_does_not_grow_with_a_line_over_the_limit_or_with_many_bad_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"x" * (100 << 20) + b"\n" + b'{"text": "b"}\n')
    assert peak_mib(path, "jsonl", 1 << 20) == (2, pytest.approx(10, abs=15))
    packer = zstandard.ZstdCompressor().compressobj()
    packed = [packer.compress(b"x" * (1 << 20)) for _ in range(300)]
    bomb = tmp_path / "a.jsonl.zst"
    bomb.write_bytes(b"".join([*packed, packer.compress(b'\n{"text": "b"}\n'), packer.flush()]))
    assert bomb.stat().st_size < 100_000
    count, grown = peak_mib(bomb, "jsonl", 1 << 20)
    assert count == 2
    assert grown < 180
    write(path, b"xxxxxxxxxxxxxxxxxxx\n" * 400_000)
    count, grown = peak_mib(path, "jsonl")
    assert count == 400_000
    assert grown < 70  # of rejects that are held together it would be several times as much


# Files that cannot be read.


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_cut_short_says_how_far_it_got(tmp_path: Path, suffix: str) -> None:
    content = b"".join(b'{"text": "line %d %d"}\n' % (n, n * n * 7919) for n in range(5000))
    path = write(tmp_path / f"docs.jsonl{suffix}", content, frames=2)
    whole = path.read_bytes()
    for stop in (len(whole) // 4, len(whole) // 2 + 100, len(whole) - 1):
        path.write_bytes(whole[:stop])
        with pytest.raises(
            InputError,
            match=r"docs\.jsonl.*: the archive ends early, after [\d,]+ bytes of text\. Fetch the file again\.$",
        ):
            read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2"])
def test_a_broken_archive_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"docs.jsonl{suffix}"
    for content in (b"\0" * 1000, b"ab\x05cd"):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value) == (
            f"{path}: broken archive: its first bytes are neither an archive nor text. Fetch the file again."
        )
    packed = PACK[suffix](b'{"text": "a"}\n')
    path.write_bytes(packed + b"garbage after the end")
    with pytest.raises(InputError, match=r": broken archive after 14 bytes of text: .*\. Fetch the file again\.$"):
        read(path)
    path.write_bytes(packed[:-5])
    with pytest.raises(
        InputError, match=r": the archive ends early, after \d+ bytes of text\. Fetch the file again\.$"
    ):
        read(path)


PACK: dict[str, Any] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("named", [*PACK, ".GZ"])
@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("members", [1, 3])
def test_an_archive_is_what_its_first_bytes_say(
    tmp_path: Path, named: str, packed: str, members: int, object_store: ObjectStore
) -> None:
    lines = [b'{"text": "%d"}\n' % n for n in range(300)]
    pieces = [b"".join(lines[at::members]) for at in range(members)]
    texts = [orjson.loads(line)["text"] for line in b"".join(pieces).splitlines()]
    path = tmp_path / f"a.jsonl{named}"
    path.write_bytes(b"".join(map(PACK[packed], pieces)))
    for place in (path, put(object_store, f"{packed or 'plain'}{members}{named or '.plain'}", path.read_bytes())):
        parts = plan(place, part_bytes=50, format="jsonl")
        assert [text for part in parts for _, (text,) in read(part)[0]] == texts
        assert (len(parts) > 1) == (packed == named == "")
    assert [texts[0] for _, texts in read(path)[0]] == texts
    assert len(list(lines_module.read_lines(path))) == 300


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_zero_bytes_after_a_member_of_an_archive_are_padding(tmp_path: Path, suffix: str) -> None:
    content = b'{"text": "a"}\n' * 300
    path = tmp_path / f"a.jsonl{suffix}"
    for packed, count in (
        (PACK[suffix](content) + b"\0" * 512, 300),
        (PACK[suffix](content) + b"\0" * 3_000_000, 300),
        (PACK[suffix](content) + b"\0" * 512 + PACK[suffix](content) + b"\0", 600),
    ):
        path.write_bytes(packed)
        assert len(read(path)[0]) == count
    path.write_bytes(PACK[suffix](content) + b"\0" * 100 + b"x" * 50)
    with pytest.raises(InputError, match="broken archive after 4,200 bytes of text"):
        read(path)


def tar_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return buffer.getvalue() + content


def zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), content)  # of 1980: the same bytes at each collection of the tests
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zip_of(b"text\n"), "is a zip archive. Unpack it (unzip) and name the files in it."),
        (zip_of(b"")[-22:], "is a zip archive. Unpack it (unzip) and name the files in it."),
        (b"7z\xbc\xaf\x27\x1c...", "is a 7z archive. Unpack it (7z x) and name the files in it."),
        (tar_of(b""), "is a tar archive. Unpack it (tar xf) and name the files in it."),
        (b"\x04\x22\x4d\x18....", "is compressed by lz4. Decompress it (lz4 -d)."),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a pointer of Git LFS, not the file. Fetch it (git lfs pull).",
        ),
        (
            b"PAR1\x15\x04....PAR1",
            "is a Parquet file. Name it .parquet, or state the stream's `format: parquet`.",
        ),
        (
            "早上好\n".encode("utf-16"),
            "is UTF-16. Convert it (iconv -f UTF-16 -t UTF-8 FILE; if it has no byte order mark, "
            "-f UTF-16LE or UTF-16BE).",
        ),
        (
            b"\0{\0\"\0a",
            "is UTF-16. Convert it (iconv -f UTF-16 -t UTF-8 FILE; if it has no byte order mark, "
            "-f UTF-16LE or UTF-16BE).",
        ),
        ("text\n".encode("utf-32"), "is UTF-32. Convert it (iconv -f UTF-32 -t UTF-8 FILE)."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.tsv", "a.txt.gz"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    form = replace(DOCUMENT, columns=("text",))
    for place in (lambda: whole_file(path), lambda: plan(path, form=form)[0]):
        with pytest.raises(InputError) as error:
            read(place(), form)
        assert str(error.value) == f"{path} {said}"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}(: | \(decompressed\) | ){re.escape(said)}$"):
        read(whole_file(path), form)


def test_an_archive_in_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(zstandard.compress(b"text\n")))
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value) == f"{path}: it is gzip, and in it is zstd again. Decompress it once."


def test_a_name_that_is_not_utf8_is_an_error_that_can_be_shown(tmp_path: Path) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/b\xe9.txt", os.O_CREAT))
    with pytest.raises(InputError) as error:
        plan(tmp_path / "*.txt")
    assert str(error.value) == f"stream 's': the name of {tmp_path}/b\\udce9.txt is not UTF-8. Rename the file."


def test_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    content = b'{"text": "a"}\n' * 100
    for suffix, packed in ((".gz", gzip.compress(content)), (".zst", checked_zst(content))):
        path = tmp_path / f"docs.jsonl{suffix}"
        path.write_bytes(packed[:-5] + bytes([packed[-5] ^ 1]) + packed[-4:] if suffix == ".gz" else flip_last(packed))
        with pytest.raises(InputError, match="broken archive"):
            read(path)


def checked_zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def flip_last(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def gzip_member(content: bytes, name: bytes, extra: bytes, level: int) -> bytes:
    """A member of a gzip file whose header has a file name, a comment, extra fields and a checksum, as far as given."""
    flags = 2 | (8 | 16 if name else 0) | (4 if extra else 0)
    header = b"\x1f\x8b\x08" + bytes([flags]) + b"\0" * 4 + b"\0\xff"
    header += len(extra).to_bytes(2, "little") + extra if extra else b""
    header += name + b"\0" + name + b"\0" if name else b""
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    sizes = zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    return header + packer.compress(content) + packer.flush() + sizes


@given(
    members=st.lists(
        st.tuples(
            st.sampled_from([b"", b"{}\n", b'{"text": "a"}\n' * 90]),
            st.sampled_from([b"", b"name", b"n" * 300]),
            st.sampled_from([b"", b"BC\2\0\0\0", b"x" * 300]),
            st.sampled_from([0, 1, 6]),
        ),
        min_size=1,
        max_size=6,
    ),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8),
)
@example(members=[(b"{}\n", b"name", b"BC\2\0\0\0", 0)] * 2, sizes=[11, 3])
def test_gzip_is_read_wherever_its_members_are_cut(
    members: list[tuple[bytes, bytes, bytes, int]], sizes: list[int]
) -> None:
    packed = [gzip_member(*member) for member in members]
    stored = b"".join(packed)
    ends = {sum(map(len, packed[: k + 1])) for k in range(len(packed))}

    def unpack(stored: bytes) -> bytes:
        cuts = [0]
        while cuts[-1] < len(stored):
            cuts.append(cuts[-1] + sizes[(len(cuts) - 1) % len(sizes)])
        flow = (stored[start:stop] for start, stop in itertools.pairwise(cuts))
        return b"".join(archives.unpack("a.gz", flow))

    assert unpack(stored) == gzip.decompress(stored) == b"".join(content for content, *_ in members)
    for cut in {len(stored) - 1, len(stored) // 2, len(packed[0]) + 12} - ends:
        if 10 <= cut < len(stored):
            with pytest.raises(InputError, match=r"archive ends early|broken archive"):
                unpack(stored[:cut])


def test_zst_with_skippable_frames_and_a_large_window_is_read(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl.zst"
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    ).compressobj()
    window = packer.compress(b'{"text": "b"}\n') + packer.flush()
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    path.write_bytes(skippable + compress(b'{"text": "a"}\n', ".zst") + skippable + window + skippable)
    assert read(path)[0] == [(1, ("a",)), (2, ("b",))]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("frames", [1, 100])
def test_byte_order_mark_carriage_returns_blank_lines_and_missing_last_newline(
    tmp_path: Path, suffix: str, frames: int
) -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b"}'
    path = write(tmp_path / f"docs.jsonl{suffix}", content, frames)
    assert read(path) == ([(1, ("a",)), (4, ("b",))], [], [], 4)
    assert list(lines_module.read_lines(path)) == [b'{"text": "a"}\r', b"\r", b"   ", b'{"text": "b"}']
    assert list(lines_module.read_lines(write(path, b"\xef\xbb\xbfone", frames))) == [b"one"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("format", ["jsonl", "tsv", "text"])
def test_lines_that_end_in_carriage_returns_alone_are_an_error(tmp_path: Path, format: str, suffix: str) -> None:
    line = line_of(("a", "b"), format)
    path = write(tmp_path / f"a{suffix}", b"\r".join([line] * 3) + b"\r")
    with pytest.raises(InputError, match="has no line feeds, but carriage returns"):
        read(whole_file(path, format), FORMS[format])
    write(path, line + b"\r")
    assert len(read(whole_file(path, format), FORMS[format])[0]) == 1


def test_carriage_returns_alone_in_moses_files_and_in_whole_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.en has no line feeds, but carriage returns"):
        read(plan(moses(tmp_path, b"a\rb\rc\r", b"x\ry\r"), form=PAIR)[0], PAIR)
    path = write(tmp_path / "a.txt", b"a\rb\r")
    with pytest.raises(InputError, match="carriage returns"):
        read(path, replace(DOCUMENT, split="paragraph"))
    assert read(path, replace(DOCUMENT, split="file"))[0] == [(1, ("a\rb",))]


def test_byte_order_marks_where_files_were_joined_are_no_text(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    path = write(tmp_path / "a.jsonl.gz", mark + b'{"text": "a"}\n' + mark + b'{"text": "b"}\n', frames=2)
    assert read(path)[:2] == ([(1, ("a",)), (2, ("b",))], [])
    for line in (b"en\tzh\n", b"zh\ten\n"):
        path = write(tmp_path / "a.tsv", mark + b"en\tzh\na\tb\n" + mark + line + b"c\td\n")
        if line == b"zh\ten\n":
            with pytest.raises(InputError, match="within the file is another heading"):
                read(path, PAIR)
            continue
        records, rejects, _, _ = read(path, PAIR)
        assert records == [(2, ("a", "b")), (4, ("c", "d"))]
        assert [(one.line, one.reason) for one in rejects] == [(3, "a heading, not a record")]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("format", ["jsonl", "tsv", "txt"])
def test_an_empty_file_has_no_records(tmp_path: Path, format: str, suffix: str) -> None:
    path = write(tmp_path / f"a.{format}{suffix}", b"")
    form = replace(DOCUMENT, columns=("text",))
    assert read(path, form) == ([], [], [], 0)
    (part,) = plan(path, form=form)
    assert (part.start, read(part, form)) == (0, ([], [], [], 0))
    (tmp_path / f"a.{format}{suffix}").write_bytes(b"")
    assert read(path, form) == ([], [], [], 0)


def test_moses_files_of_unequal_length_are_an_error(tmp_path: Path) -> None:
    for english, chinese, counts in ((3, 5, "3 5"), (1003, 2, "1,003 2"), (0, 1, "0 1")):
        (part,) = plan(moses(tmp_path, b"a\n" * english, b"b\n" * chinese), form=PAIR)
        with pytest.raises(InputError) as error:
            read(part, PAIR)
        first, second = counts.split()
        assert str(error.value) == (
            f"unequal numbers of lines: {tmp_path}/corpus.en has {first}, {tmp_path}/corpus.zh has {second}. "
            "Line n of each is pair n, so give whole files."
        )


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.tsv", "a.txt", "a.tmx", "moses"])
def test_a_file_that_changed_since_it_was_planned_is_an_error(tmp_path: Path, name: str) -> None:
    form = DOCUMENT if name in ("a.jsonl", "a.jsonl.gz", "a.txt") else PAIR
    content = {
        "a.jsonl": b'{"text": "old"}\n' * 9,
        "a.tsv": b"en\tzh\nold\told\n",
        "a.txt": b"old\nold\n",
        "a.tmx": tmx([unit(en="old", zh="old")]),
        "moses": b"old\n",
    }[name.removesuffix(".gz")]
    path: Any = write(tmp_path / name, content)
    if name == "moses":
        path = moses(tmp_path, content, content)
    parts = plan(path, form=form, part_bytes=40)
    assert all(read(part, form)[0] for part in parts)
    changed = Path(path["zh"]) if name == "moses" else path
    write(changed, content.replace(b"old", b"new"))
    with pytest.raises(InputError, match="changed after it was inspected"):
        read(parts[-1], form)


def test_a_file_that_lost_bytes_since_it_was_planned_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' * 10)
    (part,) = plan(path)
    write(path, b'{"text": "a"}\n' * 9)
    with pytest.raises(InputError) as error:
        read(part)
    assert str(error.value) == f"{path}: 14 bytes fewer than when it was found. It changed; run again."


# Parquet.


def test_parquet_is_cut_between_row_groups(tmp_path: Path) -> None:
    texts = [f"document {n}" for n in range(25)]
    path = parquet(tmp_path / "a.parquet", {"id": list(range(25)), "text": texts}, rows=10)
    parts = plan(path, part_bytes=1)
    assert [(part.format, part.start, part.stop) for part in parts] == [
        ("parquet", 0, 1), ("parquet", 1, 2), ("parquet", 2, 3)
    ]  # fmt: skip
    assert len({part.digest for part in parts}) == 3
    assert all(part.size > 0 for part in parts)
    assert [read(part) for part in parts] == [
        ([(n + 1, (text,)) for n, text in enumerate(texts[at : at + 10])], [], [], len(texts[at : at + 10]))
        for at in (0, 10, 20)
    ]
    (whole,) = plan(path)
    assert (whole.start, whole.stop) == (0, 3)
    assert read(whole)[0] == read(path)[0] == [(n, (text,)) for n, text in enumerate(texts, 1)]


def test_parquet_has_nulls_structs_and_dictionaries(tmp_path: Path) -> None:
    import pyarrow

    pairs = [{"en": "a", "zh": "b"}, None, {"en": "c", "zh": None}, {"en": "d", "zh": "e"}]
    path = parquet(
        tmp_path / "a.parquet",
        {
            "translation": pairs,
            "zh.x": ["1", "2", "3", "4"],
            "set": pyarrow.array(["w", "w", None, "v"]).dictionary_encode(),
        },
    )
    form = RecordFormat(("translation.en", "translation.zh"), label_key="set", one_line=True)
    records, rejects, labels, rows = read(path, form)
    assert records == [(1, ("a", "b")), (4, ("d", "e"))]
    assert rejects == [
        Reject(2, "'translation.en' is null", '{"translation.en":null,"translation.zh":null}'),
        Reject(3, "'translation.zh' is null", '{"translation.en":"c","translation.zh":null}'),
    ]
    assert (labels, rows) == (["w", "v"], 4)
    assert [texts for _, texts in read(path, RecordFormat(("zh.x",)))[0]] == [("1",), ("2",), ("3",), ("4",)]
    with pytest.raises(InputError, match=r"no column 'none'; it has .*\. Correct the stream's `subsets\.key`"):
        read(path, RecordFormat(("zh.x",), label_key="none"))
    assert read(path, RecordFormat(("set",)))[0] == [(1, ("w",)), (2, ("w",)), (4, ("v",))]


def test_a_literal_column_wins_over_a_field_of_a_struct(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"a": [{"b": "nested"}], "a.b": ["literal"]})
    assert read(path, RecordFormat(("a.b",)))[0] == [(1, ("literal",))]


def test_parquet_with_bytes_that_are_not_utf8_rejects_the_row(tmp_path: Path) -> None:
    import pyarrow

    raw = pyarrow.array([b"ok", b"\xff", b"fine"], pyarrow.binary())
    path = parquet(tmp_path / "a.parquet", {"text": pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())})
    records, rejects, _, _ = read(path)
    assert records == [(1, ("ok",)), (3, ("fine",))]
    assert [(one.line, one.reason) for one in rejects] == [(2, "not UTF-8")]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("body", "no column 'body'; it has meta, meta.n, tags. Correct the stream's `text_key`."),
        ("meta.m", "no column 'meta.m'; it has meta, meta.n, tags. Correct the stream's `text_key`."),
        (
            "tags.list.element",
            "no column 'tags.list.element'; it has meta, meta.n, tags. Correct the stream's `text_key`.",
        ),
        ("meta", "column 'meta' is struct<n: int64>, not text. Correct the stream's `text_key`."),
        ("meta.n", "column 'meta.n' is int64, not text. Correct the stream's `text_key`."),
        ("tags", "column 'tags' is list<element: string>, not text. Correct the stream's `text_key`."),
    ],
)
@pytest.mark.parametrize("rows", [0, 1])
def test_a_wrong_column_is_an_error(tmp_path: Path, key: str, said: str, rows: int) -> None:
    import pyarrow

    path = tmp_path / "a.parquet"
    meta = pyarrow.array([{"n": 1}] * rows, pyarrow.struct({"n": pyarrow.int64()}))
    parquet(path, {"meta": meta, "tags": pyarrow.array([["a"]] * rows, pyarrow.list_(pyarrow.string()))})
    with pytest.raises(InputError) as error:
        read(path, RecordFormat((key,)))
    assert str(error.value) == f"{path}: {said}"


def test_a_parquet_column_that_appears_twice_is_an_error_if_it_is_wanted(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet as files

    meta = pyarrow.StructArray.from_arrays([pyarrow.array(["m"])] * 3, ["x", "x", "y"])
    table = pyarrow.Table.from_arrays(
        [pyarrow.array([text]) for text in "abc"] + [meta], ["text", "text", "other", "meta"]
    )
    path = tmp_path / "a.parquet"
    files.write_table(table, path)
    for key, twice in (("text", "text"), ("meta.x", "meta.x")):
        with pytest.raises(InputError) as error:
            read(path, RecordFormat((key,)))
        assert str(error.value) == f"{path}: 2 columns are named '{twice}'. Write the file again with one of them."
    assert read(path, RecordFormat(("other",)))[0] == [(1, ("c",))]
    assert read(path, RecordFormat(("meta.y",)))[0] == [(1, ("m",))]


def test_parquet_that_is_cut_short_or_broken_is_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": [f"{n * 7919 % 1000} text {n}" for n in range(5000)]})
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:100], b""):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"a\.parquet is not a Parquet file, or is truncated: .*[^.]\. Fetch it again\.$"
        ):
            plan(path)
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(InputError, match=r"a\.parquet is compressed by gzip as a whole\. Decompress it\.$"):
        plan(path)
    path.write_bytes(whole[:200] + b"\0" * 500 + whole[700:])
    with pytest.raises(InputError, match=r"a\.parquet: broken after [\d,]+ rows: .*[^.]\. Fetch the file again\.$"):
        read(path)


def test_a_wrong_checksum_of_a_parquet_page_is_noticed(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet as files

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"record {number}" for number in range(100)]})
    files.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    assert len(read(path)[0]) == 100
    path.write_bytes(path.read_bytes().replace(b"record 42", b"record 43"))
    with pytest.raises(InputError, match=r"broken after 0 rows: .*checksum verification failed"):
        read(path)


def test_parquet_without_rows_has_no_records(tmp_path: Path) -> None:
    import pyarrow

    path = parquet(tmp_path / "a.parquet", {"text": pyarrow.array([], pyarrow.string())})
    assert read(path) == ([], [], [], 0)
    (part,) = plan(path)
    assert read(part) == ([], [], [], 0)


# Patterns.


def test_paths_keep_their_order_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "z.txt"):
        (tmp_path / name).touch()
    parts = plan(tmp_path / "z.txt", tmp_path / "*.jsonl")
    assert [(Path(part.paths[0]).name, part.format) for part in parts] == [
        ("z.txt", "text"), ("a.jsonl", "jsonl"), ("b.jsonl", "jsonl")
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["none.jsonl", "none*.jsonl"])
def test_a_pattern_that_finds_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(InputError) as error:
        plan(pattern)
    assert str(error.value) == (
        f"stream 's': no file {pattern}. Correct the path under streams.s "
        f"(relative paths start at the working directory, {Path.cwd()})."
    )


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jsonl", "jsonl"),
        ("a.NDJSON", "jsonl"),
        ("a.json.gz", "jsonl"),
        ("a.b.tsv.zst", "tsv"),
        ("a.CSV.gz", "csv"),
        ("a.TXT.GZ", "text"),
        ("a.tmx", "tmx"),
    ],
)
def test_the_format_follows_from_the_name(tmp_path: Path, name: str, format: str) -> None:
    (tmp_path / name).touch()
    assert plan(tmp_path / name)[0].format == format


@pytest.mark.parametrize("name", ["corpus.en", "corpus", "corpus.en.gz"])
def test_a_name_without_a_format_needs_one(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"one\ntwo\n")
    with pytest.raises(InputError) as error:
        plan(path)
    assert str(error.value) == (
        f"stream 's': cannot detect the format of {path} from its name (.jsonl, .ndjson, .json, .tsv, .csv, .txt, "
        ".text, .tmx, .parquet, .arrow, then .gz, .zst, .xz, .bz2 or nothing). State streams.s.format: jsonl, tsv, "
        "csv, text, tmx, parquet or arrow."
    )
    (part,) = plan(path, format="text")
    assert read(part)[0] == [(1, ("one",)), (2, ("two",))]
    assert read(whole_file(path, "text"))[0] == read(part)[0]


def test_a_given_format_wins_over_the_name(tmp_path: Path) -> None:
    (part,) = plan(write(tmp_path / "a.txt", b'{"text": "a"}\n'), format="jsonl")
    assert read(part)[0] == [(1, ("a",))]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ({"en": "a.en"}, "has en"),
        ({"en": "a.en", "zh": ""}, "has en"),
        ({"en": "a.en", "zh": "a.zh", "id": "a.id"}, "has en, id, zh"),
    ],
)
def test_a_moses_corpus_needs_a_file_for_each_language(paths: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as error:
        plan(paths, form=PAIR)
    assert str(error.value) == (
        f"stream 's': a corpus of several files needs one for each of en, zh, and {said}. "
        "Correct `pairs` under streams.s."
    )


def test_globs_of_moses_files_go_together_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        for code in ("zh", "en"):
            (tmp_path / f"{name}.{code}").write_text(f"{name} {code}\n")
    parts = plan({"zh": f"{tmp_path}/*.zh", "en": f"{tmp_path}/*.en"}, form=PAIR)
    assert [read(part, PAIR)[0] for part in parts] == [[(1, ("a en", "a zh"))], [(1, ("b en", "b zh"))]]
    (tmp_path / "b.zh").unlink()
    with pytest.raises(InputError) as error:
        plan({"zh": f"{tmp_path}/*.zh", "en": f"{tmp_path}/*.en"}, form=PAIR)
    assert str(error.value) == (
        f"stream 's': unequal numbers of files: 2 {tmp_path}/*.en, 1 {tmp_path}/*.zh. Name as many for each language."
    )


# Laws of parts and batches.

TEXTS = st.text(st.sampled_from('ab \t\r\n"\\\u2028\x85\x1c\ufeff中é🙂'), max_size=8)
TABLE = RecordFormat(("text", "other"), columns=("text", "other"))


def line_of(texts: tuple[str, str], format: str) -> bytes:
    if format == "jsonl":
        return orjson.dumps({"text": texts[0], "other": texts[1], "label": "x"})
    clean = [text.replace("\n", " ").replace("\t", " ") for text in texts]
    return ("\t".join(clean) if format == "tsv" else clean[0]).encode()


def shows(text: str) -> bool:
    return bool(text.replace("\ufeff", "").strip())


def lines_of(format: str) -> st.SearchStrategy[list[bytes]]:
    """Lines of usable records, and others."""
    good = st.tuples(TEXTS, TEXTS).map(lambda texts: line_of(texts, format))
    odd = st.sampled_from([b"", b" ", b"\r", b"x", b"a\tb\tc", b"\xff", b'{"text": 1}', b'{"text": "a\\u0000"}', b"[]"])
    return st.lists(good | odd, max_size=12)


FORMS = {
    "jsonl": replace(TABLE, columns=(), label_key="label"),
    "tsv": TABLE,
    "text": replace(DOCUMENT, label_key="label"),
}


@pytest.mark.parametrize("format", ["jsonl", "tsv", "text"])
@given(data=st.data(), ended=st.booleans(), part_bytes=st.integers(1, 100), chunk=st.integers(1, 40))
@settings(max_examples=60)
def test_parts_hold_each_record_of_the_file_once(
    tmp_path_factory: pytest.TempPathFactory, format: str, data: st.DataObject, ended: bool, part_bytes: int, chunk: int
) -> None:
    lines, form = data.draw(lines_of(format)), FORMS[format]
    content = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    assume(b"\n" in content or b"\r" not in content)  # it would be refused
    path = write(tmp_path_factory.getbasetemp() / "cut", content)
    whole = read(whole_file(path, format), form, size=3)
    with pytest.MonkeyPatch.context() as patch:
        set_everywhere(patch, lines_module, "CHUNK_BYTES", chunk)
        parts = plan(path, form=form, part_bytes=part_bytes, format=format)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == len(content)
        assert sum(part.size for part in parts) == len(content)
        assert all(part.size >= part_bytes and content[part.stop - 1 : part.stop] == b"\n" for part in parts[:-1])
        records: Found = []
        rejects: list[Reject] = []
        labels: list[str] = []
        number = 0
        for part in parts:
            more, bad, names, count = read(part, form)
            records += [(line + number, texts) for line, texts in more]
            rejects += [replace(one, line=one.line + number) for one in bad]
            labels += names
            number += count
    assert (records, rejects, labels, number) == whole
    assert len(labels) == (len(records) if FORMS[format].label_key else 0)


@pytest.mark.parametrize("format", ["jsonl", "tsv", "text"])
@given(data=st.data(), part_bytes=st.integers(1, 60))
@settings(max_examples=50)
def test_the_digest_of_a_part_is_that_of_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, format: str, data: st.DataObject, part_bytes: int
) -> None:
    lines = data.draw(lines_of(format).filter(any))
    content = b"".join(line + b"\n" for line in lines)
    path = write(tmp_path_factory.getbasetemp() / "digest", content)

    def parts_of(content: bytes) -> list[SourcePart]:
        write(path, content)
        return plan(path, form=FORMS[format], format=format, part_bytes=part_bytes)

    before = parts_of(content)
    pieces = [content[part.start : part.stop] for part in before]
    assert len({part.digest for part in before}) == len(set(pieces))
    appended = parts_of(content + b"appended\n")
    assert appended[: len(before) - 1] == before[:-1]
    if before[-1].size >= part_bytes:  # it was full
        assert appended[len(before) - 1] == before[-1]
    else:
        assert appended[len(before) - 1].digest != before[-1].digest
    place = data.draw(st.sampled_from([at for at, byte in enumerate(content) if byte != ord("\n")]))
    changed = parts_of(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
    if content[place] ^ 0x40 != ord("\n"):
        assert [part.start <= place < part.stop for part in before] == [
            old.digest != new.digest for old, new in zip(before, changed, strict=True)
        ]


@pytest.mark.parametrize("format", ["jsonl", "tsv", "text"])
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), max_size=8), one_line=st.booleans())
@example(pairs=[("a\r", "b\r")], one_line=False)
@example(pairs=[("a", " b\u2028c\n"), ("\x1cd", "e")], one_line=True)
@settings(max_examples=80)
def test_one_bad_line_changes_no_other(
    tmp_path_factory: pytest.TempPathFactory, format: str, pairs: list[tuple[str, str]], one_line: bool
) -> None:
    """Blocks of usable records are parsed at once, others line by line: both give the same, and what was written."""
    form = replace(FORMS[format], one_line=one_line)
    pairs = [("first", "line"), *(pair for pair in pairs if all(map(shows, pair)))]
    good = b"".join(line_of(pair, format) + b"\n" for pair in pairs)
    expected = [list(pair[: len(form.keys)]) for pair in pairs]
    if format != "jsonl":
        expected = [[text.replace("\n", " ").replace("\t", " ") for text in texts] for texts in expected]
        expected = [[*texts[:-1], texts[-1].removesuffix("\r")] for texts in expected]  # the end of a line may be CRLF
    if one_line:
        expected = [[" ".join(text.strip().splitlines()) for text in texts] for texts in expected]
    for bad in (b"", b"\xff\n"):
        path = write(tmp_path_factory.getbasetemp() / "bad", good + bad)
        records, rejects, labels, _ = read(whole_file(path, format), form)
        assert records == [(n, tuple(texts)) for n, texts in enumerate(expected, 1)]
        assert [one.reason for one in rejects] == ["not UTF-8"] * bool(bad)
        assert labels == (["x" if format == "jsonl" else ""] * len(records) if form.label_key else [])


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 12), st.integers(1, 200))
@settings(max_examples=80)
def test_batches_are_full_in_order_and_count_each_record_once(
    tmp_path_factory: pytest.TempPathFactory, usable: list[bool], size: int, chunk: int
) -> None:
    content = b"".join(b'{"text": "%d"}\n' % n if good else b"bad %d\n" % n for n, good in enumerate(usable))
    path = write(tmp_path_factory.getbasetemp() / "batches.jsonl", content)
    with pytest.MonkeyPatch.context() as patch:
        set_everywhere(patch, lines_module, "CHUNK_BYTES", chunk)
        batches, lines = collect(whole_file(path), DOCUMENT, size)
    assert lines == len(usable)
    assert [line for batch in batches for line in batch.lines] == [n for n, good in enumerate(usable, 1) if good]
    assert [one.line for batch in batches for one in batch.rejects] == [
        n for n, good in enumerate(usable, 1) if not good
    ]
    assert all(len(batch.lines) <= size and (batch.lines or batch.rejects) for batch in batches)
    assert all(len(batch.lines) == len(batch.texts[0]) for batch in batches)
    if all(usable):
        assert [len(batch.lines) for batch in batches[:-1]] == [size] * (len(batches) - 1)


def test_batches_of_long_records_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_everywhere(monkeypatch, types, "BATCH_CHARACTERS", 2500)
    set_everywhere(monkeypatch, lines_module, "CHUNK_BYTES", 100)
    path = write(tmp_path / "a.txt", b"".join(b"%d" % n * 1000 + b"\n" for n in range(8)))
    batches, _ = collect(whole_file(path), DOCUMENT, 1000)
    assert [batch.lines for batch in batches] == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_bytes_are_reported_as_they_are_read(tmp_path: Path) -> None:
    texts = [f"document {n}" for n in range(3000)]
    jsonl = b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)
    paths = [write(tmp_path / f"a.jsonl{suffix}", jsonl) for suffix in SUFFIXES]
    for path in (*paths, parquet(tmp_path / "a.parquet", {"text": texts})):
        for part_bytes in (10_000, 1 << 20):
            for part in plan(path, part_bytes=part_bytes):
                heard: list[int] = []
                assert sum(len(batch.lines) for batch in read_records(part, DOCUMENT, heard.append)) > 0
                assert sum(heard) == part.size


def test_hashes_are_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / name, b"one\ntwo\n") for name in ("b.txt", "a.txt", "c.txt")]

    def remember(known: dict[str, Any]) -> tuple[list[SourcePart], dict[str, Any]]:
        names = [str(path) for path in paths]
        return plan_parts(names, "s", DOCUMENT, format=None, part_bytes=4, hashes=known, threads=2)

    parts, hashes = remember({})
    assert len(parts) == 6
    assert list(hashes) == sorted(hashes)
    hashed: list[str] = []
    split = splitting.hash_lines
    monkeypatch.setattr(splitting, "hash_lines", lambda file, *rest: hashed.append(file.path) or split(file, *rest))
    assert remember(orjson.loads(orjson.dumps(hashes))) == (parts, hashes)
    assert hashed == []
    write(paths[1], b"one\ntwo\nthree\n")
    assert len(remember(hashes)[0]) == 7
    assert hashed == [str(paths[1])]


# Object stores.


def put(store: ObjectStore, key: str, content: bytes) -> str:
    store.client.put_object(Bucket=store.bucket, Key=key, Body=content)
    return f"{store.url}/{key}"


def test_objects_are_cut_and_read_as_files_are(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "WINDOW", 64)  # the window in which a line end is looked for
    content = b"".join(orjson.dumps({"text": "x" * (n * 37 % 200)}) + b"\n" for n in range(1, 40))
    for name, text in (("ended", content), ("open", content[:-1]), ("empty", b""), ("line", content[:30])):
        path, url = write(tmp_path / f"{name}.jsonl", text), put(object_store, f"{name}.jsonl", text)
        for part_bytes in (1, 100, 1000, len(text), len(text) + 1):
            local, remote = plan(path, part_bytes=part_bytes or 1), plan(url, part_bytes=part_bytes or 1)
            assert [(part.start, part.stop, part.size) for part in remote] == [
                (part.start, part.stop, part.size) for part in local
            ]
            assert len({part.digest for part in remote}) == len(remote)
            if part_bytes != 1:
                assert [read(part) for part in remote] == [read(part) for part in local]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_globs_of_objects_are_read_in_every_format(tmp_path: Path, object_store: ObjectStore, suffix: str) -> None:
    english, chinese = ("".join(f"{pair[side]}\n" for pair in PAIRS).encode() for side in (0, 1))
    put(object_store, f"b/2.jsonl{suffix}", compress(b'{"text": "second"}\n', suffix))
    put(object_store, f"b/1.jsonl{suffix}", compress(b'{"text": "first"}\n', suffix))
    put(object_store, f"m/x.en{suffix}", compress(english, suffix))
    put(object_store, f"m/x.zh{suffix}", compress(chinese, suffix))
    rows = parquet(tmp_path / "a.parquet", {"text": ["a", "b", "c"]}, rows=2).read_bytes()
    parts = plan(f"{object_store.url}/b/*.jsonl{suffix}")
    assert [read(part)[0] for part in parts] == [[(1, ("first",))], [(1, ("second",))]]
    (pairs,) = plan({code: f"{object_store.url}/m/*.{code}{suffix}" for code in ("en", "zh")}, form=PAIR)
    assert [texts for _, texts in read(pairs, PAIR)[0]] == [(en.strip(), zh) for en, zh in PAIRS]
    groups = plan(put(object_store, "a.parquet", rows), part_bytes=1)
    assert [read(part)[0] for part in groups] == [[(1, ("a",)), (2, ("b",))], [(1, ("c",))]]
    with pytest.raises(InputError) as error:
        plan(f"{object_store.url}/none/*.jsonl")
    assert str(error.value) == f"stream 's': no file {object_store.url}/none/*.jsonl. Correct the path under streams.s."


def test_an_object_that_changes_while_it_is_read_is_an_error(object_store: ObjectStore) -> None:
    content = b'{"text": "before"}\n' * 1_000_000  # 18 MiB: several blocks
    url = put(object_store, "a.jsonl", content)
    (part,) = plan(url, part_bytes=1 << 30)
    flow = read_records(part, DOCUMENT)
    assert next(flow).texts[0][0] == "before"
    put(object_store, "a.jsonl", content.replace(b"before", b"behind"))
    with pytest.raises(InputError, match=r"a\.jsonl: it changed while it was being read .*\. Run again\.$"):
        list(flow)
    with pytest.raises(InputError, match=r"a\.jsonl: it changed while it was being read .*\. Run again\.$"):
        next(read_records(part, DOCUMENT))
    (other,) = plan(url, part_bytes=1 << 30)
    assert other.digest != part.digest


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.tmx"])
def test_a_local_file_that_changes_after_it_was_listed_is_an_error(tmp_path: Path, name: str) -> None:
    """Its units would be remembered under the earlier content's hash; the length is equal, so only the hash differs."""
    path, form = tmp_path / name, RecordFormat(("en",), ("en",))

    def write(word: str) -> None:
        text = f'{{"en": "{word}"}}\n'
        if name.endswith(".tmx"):
            text = f'<tmx><body><tu><tuv xml:lang="en"><seg>{word}</seg></tuv></tu></body></tmx>'
        content = text.encode()
        path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)

    write("before")
    (part,), _ = plan_parts([str(path)], "s", form, format=None, part_bytes=10**6, hashes={}, threads=1)
    assert [list(batch.texts[0]) for batch in read_records(part, form)] == [["before"]]
    write("behind")
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))} changed after it was inspected"):
        list(read_records(part, form))


def notes_of_tsv(path: Path, rows: list[str], columns: str, **form: Any) -> dict[str, tuple[int, int, str]]:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    read = RecordFormat(columns=tuple(columns.split()), **form)
    (part,), _ = plan_parts([str(path)], "x", read, format=None, part_bytes=10**9, hashes={}, threads=1)
    notes: dict[str, tuple[int, int, str]] = {}
    for batch in read_records(part, read, lambda count: None):
        add_notes(notes, batch.notes)
    return notes


@pytest.mark.parametrize(
    ("heading", "columns", "setting"),
    [
        ("id\tChinese\tEnglish\tscore", "id zh en score", "keys: {en: English, zh: Chinese}"),
        ("nr\tdari\tke\tskor", "id zh en score", "keys: {en: ke, zh: dari}"),  # numbers below say so
        ("source_text\ttarget_text", "en zh", "keys: {en: source_text, zh: target_text}"),
        ("English\tChinese (Simplified)", "en zh", "keys: {en: English, zh: Chinese (Simplified)}"),
        ("nan\tdari\tke\tnone", "id zh en score", ""),
        ("src\ttgt", "en zh", "keys: {en: src, zh: tgt}"),
        ("File\tChinese", "en zh", ""),
        ("Open the file.\tChinese.", "en zh", ""),
        ("source\tsource", "en zh", ""),
        ("source", "en zh", ""),  # unusable, which is said anyway
    ],
)
def test_a_heading_that_names_none_of_the_keys_is_noted(
    tmp_path: Path, heading: str, columns: str, setting: str
) -> None:
    rows = {"id": "{}", "zh": "第 {} 句", "en": "sentence {}", "score": "0.{}"}
    lines = ["", heading, *("\t".join(rows[name].format(k) for name in columns.split()) for k in range(30))]
    notes = notes_of_tsv(tmp_path / "c.tsv", lines, columns, keys=("en", "zh"), languages=("en", "zh"))
    words = f"a first line looks like a heading and is read as a record; if it is one, set {setting}, and no `columns`"
    assert notes == ({words: (1, 2, heading)} if setting else {})


def test_a_heading_of_documents_that_names_no_key_is_noted(tmp_path: Path) -> None:
    rows = ["id\tcontent", *(f"{k}\ttext {k}" for k in range(30))]
    (words,) = notes_of_tsv(tmp_path / "d.tsv", rows, "id text", keys=("text",))
    assert "set text_key: content, and no" in words
    assert notes_of_tsv(tmp_path / "d.tsv", ["content", "text", "label"], "text", keys=("text",)) == {}


@pytest.mark.parametrize("name", ["en-zh", "en-id"])
def test_no_real_pair_looks_like_a_heading(name: str) -> None:
    source, target = name.split("-")
    rows = ["\t".join(texts) for _, texts in read_texts(DEMO / f"{name}.train.jsonl.zst", source, target)]
    for keys in ((source, target), (target, source)):
        assert [row for row in rows if tsv_heading.unread_heading(row, rows[:50], keys, keys)] == []
