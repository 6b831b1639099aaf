from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from dataengine.errors import InputError
from dataengine.records.evaluation_sets import find_text_files, read_set, read_texts
from tests import conftest

PAIRS = [("Good morning.", "早上好。"), ("Thank you, Mr & Mrs Li.", "谢谢。")]
SOURCES, REFERENCES = ["Good morning.", "Thank you, Mr & Mrs Li."], ["早上好。", "谢谢。"]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


JSONL = '{"en": "Good morning.", "zh": "早上好。"}\n{"zh": "谢谢。", "en": "Thank you, Mr & Mrs Li."}\n'
TSV = "zh\tnote\ten\n早上好。\t\tGood morning.\n谢谢。\t\tThank you, Mr & Mrs Li.\n"
CSV = 'zh,"note, or none",en\n早上好。,,Good morning.\n谢谢。,,"Thank you, Mr & Mrs Li."\n'
XML = """<?xml version="1.0" encoding="utf-8"?>
<dataset id="newstest2022"><collection id="general">
<doc origlang="en" id="a"><src lang="en"><p><seg id="1">Good
 morning.</seg></p></src>
<ref lang="zh" translator="B"><p><seg id="1">早。</seg></p></ref>
<ref lang="zh" translator="A"><p><seg id="1">早上好。</seg></p></ref>
<hyp system="x" language="zh"><p><seg id="1">坏</seg></p></hyp></doc>
<doc origlang="en" id="b"><src lang="en"><p><seg id="1">Thank you, Mr &amp; Mrs Li.</seg></p></src>
<ref lang="zh" translator="A"><p><seg id="1">谢谢。</seg></p></ref></doc>
</collection></dataset>
"""


def sgm(kind: str, *segments: str, document: str = "d1") -> str:
    body = "\n".join(f'<seg id="{k}">{text}</seg>' for k, text in enumerate(segments, start=1))
    inside = f'<doc sysid="ref" docid="{document}">\n<p>\n{body}\n</p>\n</doc>'
    return f'<{kind} setid="x" srclang="any">\n{inside}\n</{kind}>\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dev.jsonl", JSONL),
        ("dev.jsonl", "\ufeff" + JSONL.replace("\n", "\r\n")),
        ("dev.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)),
        ("dev.tsv", TSV),
        ("dev.tsv", "\ufeff" + TSV.replace("\n", "\r\n")),
        ("wmt.en-zh.xml", XML),
        ("wmt.en-zh.xml.gz", gzip.compress(XML.encode(), mtime=0)),
        ("DEV.JSONL", JSONL),
        ("DEV.TSV", TSV),
        ("wmt.en-zh.xml.xz", lzma.compress(XML.encode())),
        ("wmt.en-zh.xml.bz2", bz2.compress(XML.encode())),
        ("dev.csv", CSV),
        ("DEV.CSV", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("dev.csv.zst", zstandard.compress(CSV.encode())),
        ("dev.jsonl.xz", lzma.compress(JSONL.encode())),
        ("dev.XML.GZ", gzip.compress(XML.encode(), mtime=0)),
        ("dev.tsv.ZST", zstandard.compress(TSV.encode())),
        ("utf-16.xml", XML.replace("utf-8", "UTF-16").encode("utf-16")),
        ("utf-16-be.xml", XML.replace("utf-8", "UTF-16").encode("utf-16-be")),
        ("gb.xml", XML.replace("utf-8", "GB18030").encode("gb18030")),
    ],
)
def test_files_of_pairs(tmp_path: Path, name: str, content: str | bytes) -> None:
    found = read_set(write(tmp_path / name, content), "en-zh")
    assert (found.sources, found.references) == (SOURCES, REFERENCES)
    assert found.files == (str(tmp_path / name),)
    if "xml" not in name.lower():
        back = read_set(str(tmp_path / name), "zh-en")
        assert (back.sources, back.references) == (REFERENCES, SOURCES)
    assert read_set(str(tmp_path / name), "en-zh", limit=1).sources == SOURCES[:1]


ODD = "one\u2028two  three\u00a0four\rfive\u0085six"  # line breaks of all kinds, and white space that breaks no line
FORMS: dict[str, Callable[[str], str]] = {
    "a.jsonl": lambda text: json.dumps({"en": f" {text} ", "zh": "一"}),
    "a.tsv": lambda text: f"en\tzh\n {text} \t一\n",
    "a.csv": lambda text: f'en,zh\n" {text} ",一\n',
    "a.xml": lambda text: XML.replace("Good\n morning.", f" {text} ".replace("\r", "&#13;")),
    "a.en": lambda text: f" {text} \n",
    "a.en.sgm": lambda text: sgm("srcset", f" {text} "),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_sentence_is_the_same_in_every_format_and_as_training_reads_it(tmp_path: Path, name: str) -> None:
    path = Path(write(tmp_path / name, FORMS[name](ODD)))
    (((_, (expected, _)),)) = conftest.read_texts(
        conftest.write_jsonl(tmp_path / "t.jsonl", [{"en": ODD, "zh": "一"}]), "en", "zh"
    )
    assert expected == "one two  three\u00a0four five six"
    place: str | dict[str, str] = str(path)
    if name in ("a.en", "a.en.sgm"):
        place = {"en": str(path), "zh": write(path.with_name(name.replace("en", "zh")), FORMS[name]("一"))}
    assert read_set(place, "en-zh").sources[0] == expected
    assert expected in read_texts(path)


def test_a_line_break_of_markup_is_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", XML.replace("Good\n morning.", "\n    Good \r\n\t morning,  Li.\n  "))
    assert read_set(path, "en-zh").sources[0] == "Good morning,  Li."


def test_a_file_for_each_language_plain_or_sgml(tmp_path: Path) -> None:
    en = write(tmp_path / "x.en", "\ufeffGood morning.\r\nThank you, Mr & Mrs Li.\r\n")
    zh = write(tmp_path / "x.zh", "早上好。\n谢谢。")
    plain = read_set({"en": en, "zh": zh}, "en-zh")
    assert (plain.sources, plain.references, plain.files) == (SOURCES, REFERENCES, (en, zh))
    assert read_set({"zh": zh, "en": en}, "zh-en").sources == REFERENCES
    en = write(tmp_path / "src.en.sgm", sgm("srcset", "Good morning.", "Thank you, Mr &amp; Mrs Li."))
    zh = write(tmp_path / "ref.zh.sgm", sgm("refset", "早上好。", "\n谢谢。 "))
    assert read_set({"en": en, "zh": zh}, "en-zh").sources == plain.sources
    assert read_set({"en": en, "zh": zh}, "en-zh").sha256 == plain.sha256


def test_a_folder_of_flores(tmp_path: Path) -> None:
    for code, text in (("eng_Latn", "Hello."), ("zho_Hans", "你好。"), ("zho_Hant", "您好。"), ("ind_Latn", "Halo.")):
        write(tmp_path / "devtest" / f"{code}.devtest", text + "\n")
    folder = str(tmp_path / "devtest")
    assert read_set(folder, "en-zh").references == ["你好。"]
    assert read_set(folder, "id-en").sources == ["Halo."]
    assert read_set(folder, "eng-ind").references == ["Halo."]
    with pytest.raises(InputError, match=r"has no file of 'fr' \(fra_Latn\); it has eng_Latn, ind_Latn, zho_Hans"):
        read_set(folder, "en-fr")
    with pytest.raises(InputError, match=r"no files such as eng_Latn.dev. Name one of the folders below it: devtest"):
        read_set(str(tmp_path), "en-zh")


def test_of_several_references_the_note_says_which_was_taken(tmp_path: Path) -> None:
    found = read_set(write(tmp_path / "a.xml", XML), "en-zh")
    assert found.note == "reference A of B, A"
    assert found.references[0] == "早上好。"
    only_b = XML.replace('translator="A"', 'translator="C"')
    assert read_set(write(tmp_path / "b.xml", only_b), "en-zh").references == REFERENCES  # B covers one document


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", JSONL + '{"en": "x"}\n', "a.jsonl, line 3: no key 'zh': "),
        ("a.jsonl", '{"en": "x", "id": "y"}\n', "Name a file that has it, or fix the line."),
        ("a.tsv", "en\tid\nx\ty\n", "Name the file of this direction, or add such a line if it has none."),
        ("a.jsonl", JSONL + '{"en": "x", "zh": " "}\n', "a.jsonl, line 3: "),
        ("a.jsonl", JSONL + "{\n", "a.jsonl, line 3: "),
        ("a.jsonl", "", "holds no pairs for en-zh"),
        ("a.tsv", "a\tb\nc\td\n", "line 1: expected the languages as headings, en and zh among them, found"),
        ("a.tsv", "", "line 1: expected the languages as headings"),
        ("a.tsv", "en\tzh\nonly one\n", "line 2: 1 columns, not 2"),
        ("a.tsv", "en\tzh\nHi\t \n", "sentence 1 is empty"),
        ("a.tsv", b"en\tzh\nHi\t\xff\n", "line 2: not UTF-8 at byte 3"),
        ("a.csv", "", "line 1: expected the languages as headings"),
        ("a.csv", "a,b\nc,d\n", "line 1: expected the languages as headings, en and zh among them, found"),
        ("a.csv", CSV + '"x,y,z\n', "a.csv, line 4: a quote that opens in this line is not closed: "),
        ("a.csv", CSV + "x,y\n", "a.csv, line 4: 2 columns instead of 3: x,y. Fix the line."),
        ("a.xml", "<dataset><doc>", "not XML"),
        ("a.xml", XML.replace('lang="zh"', 'lang="de"'), r"no reference in zh for all of 2 sentences \(found: none\)"),
        ("a.xml", XML.replace('lang="en"', 'lang="cs"'), "has no source in en; its languages are cs, zh"),
        (
            "a.xml",
            XML.replace("<dataset", '<!DOCTYPE a [<!ENTITY b "c">]><dataset', 1),
            "a.xml: declares XML entities, which could fill the memory. Remove the declarations.",
        ),
        ("a.docx", "x", "not a kind of set"),
        ("a.jsonl", JSONL + '{"en": "x", "zh": "\\u200b\\ufeff "}\n', "a.jsonl"),
        ("a.tsv", "en\tzh\nHi\t\u200b\u00ad\n", "a.tsv: sentence 1 is empty"),
        ("a.xml", XML.replace("谢谢。", "\u2060"), "a.xml: sentence 2 is empty"),
        (
            "a.xml",
            XML.replace("谢谢", "&#2;"),
            r"a.xml: a reference to a character that XML forbids: .*line 9, col.*Rem",
        ),
        ("a.xml", XML.replace("utf-8", "martian"), "a.xml: encoding martian: unknown encoding: martian. Convert the"),
        (
            "a.xml",
            XML.replace("utf-8", "gb18030"),
            r"a.xml: not gb18030 at byte \d+. Correct the encoding that its first",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_set(write(tmp_path / name, content), "en-zh")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.en", JSONL, "a file with this name must be plain text, but it is JSON. Name it .jsonl"),
        ("a.en", "[\n1\n]\n", "it is JSON"),
        ("a.en", XML, "it is XML or SGML. Name it .xml, .tmx or .sgm"),
        ("a.en", "\n" + sgm("refset", "x"), "it is XML or SGML"),
        ("a.en", "one\na\0b\n", r"it is no text \(a NUL character in line 2\)"),
        ("a.en", b"PAR1\xff", "a.en, line 1: not UTF-8 at byte 4"),
    ],
)
def test_another_format_under_the_name_of_plain_text_is_refused(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    for read in (read_texts, lambda path: read_set({"en": path, "zh": path}, "en-zh")):
        with pytest.raises(InputError, match=message):
            read(path)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", JSONL), ("a.tsv", TSV), ("a.xml", XML), ("a.sgm", "")])
def test_a_file_of_pairs_is_not_a_side(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content or sgm("srcset", "x"))
    with pytest.raises(InputError, match=r"a file for each language is plain text, or SGML for both"):
        read_set({"en": path, "zh": write(tmp_path / "a.zh", "一\n二\n")}, "en-zh")


TMX = """<?xml version="1.0"?><tmx version="1.4"><header/><body><tu>
<tuv xml:lang="en"><seg>Good <bpt i="1">&lt;b&gt;</bpt>morning<ept i="1">&lt;/b&gt;</ept>.</seg></tuv>
<tuv xml:lang="zh"><seg>早上好。</seg></tuv></tu></body></tmx>"""
TEXTS = {*SOURCES, *REFERENCES}
ALL_TEXTS: dict[str, tuple[str, set[str]]] = {
    "a.jsonl": (JSONL, TEXTS),
    "a.json": (f"[{JSONL.strip().replace(chr(10), ', ')}]", TEXTS),
    "a.ndjson": ('\n{"a": {"b": ["Good morning.", 3, null]}}\n', {"Good morning."}),
    "a.tsv": (TSV, {*TEXTS, "zh", "note", "en"}),
    "a.csv": (CSV, {*TEXTS, "zh", "note, or none", "en"}),
    "a.xml": (XML, {*TEXTS, "早。", "坏"}),
    "a.tmx": (TMX, {"Good morning.", "早上好。"}),
    "a.en.sgm": (sgm("refset", *SOURCES) + sgm("refset", "Morning."), {*SOURCES, "Morning."}),
    "a.en": (
        "Good morning.\r\n\nLi said: hello\tto you\n",
        {"Good morning.", "Li said: hello\tto you", "Li said: hello", "to you"},
    ),
    "a.zh.txt": ("\ufeff早上好。\n\u200b\n谢谢。", {*REFERENCES}),
    "eng_Latn.dev": ("[1] <b>Good morning.</b>\n", {"[1] <b>Good morning.</b>"}),
}


@pytest.mark.parametrize("compression", ["", ".gz", ".zst", ".xz", ".bz2", ".GZ"])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("name", ALL_TEXTS)
def test_all_texts_of_every_format_are_read_for_any_case_of_its_name(
    tmp_path: Path, name: str, upper: bool, compression: str
) -> None:
    content, expected = ALL_TEXTS[name]
    pack = {"": bytes, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.get(
        compression, gzip.compress
    )
    path = write(tmp_path / ((name.upper() if upper else name) + compression), pack(content.encode()))
    assert set(read_texts(path)) == expected


def test_all_texts_of_parquet_are_read_also_of_two_columns_of_one_name(tmp_path: Path) -> None:
    columns = [
        pa.array([["a b", None], ["c"]]),
        pa.array([{"k": "d"}, {"k": "e"}]),
        pa.array(["f", "g"]),
        pa.array([1, 2]),
    ]
    parquet.write_table(pa.table(columns, names=["x", "y", "x", "n"]), tmp_path / "a.PARQUET")
    assert sorted(read_texts(tmp_path / "a.PARQUET")) == ["a b", "c", "d", "e", "f", "g"]
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet: .*Fetch it again"):
        read_texts(write(tmp_path / "a.parquet", "text"))


@pytest.mark.parametrize("line", ['"open', 'a"b', '"a"b'])
def test_a_line_of_csv_that_is_no_record_is_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"a\.csv, line 3: a quote .*\. Fix the line\.$"):
        read_texts(write(tmp_path / "a.csv", f'"one\ntwo",b\n{line}\nc,d\n'))


def test_deep_values_are_read(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path / "a.jsonl", "[" * 1000 + '"deep"' + "]" * 1000)) == ["deep"]


def test_a_folder_of_flores_means_all_its_files(tmp_path: Path) -> None:
    names = [write(tmp_path / "dev" / f"{code}.dev", "Hello.\n") for code in ("eng_Latn", "zho_Hans")]
    write(tmp_path / "dev" / "README", "x")
    assert find_text_files(str(tmp_path / "dev")) == names
    assert find_text_files(str(tmp_path / "dev" / "*.dev")) == names
    with pytest.raises(InputError, match=r"no files such as eng_Latn.dev. Name one of the folders below it: dev"):
        find_text_files(str(tmp_path))
    (tmp_path / "dev" / "ind_Latn.dev").symlink_to("gone")
    with pytest.raises(InputError, match=r"ind_Latn.dev is a link to gone, which does not exist"):
        find_text_files(str(tmp_path / "dev"))


def test_two_files_must_agree(tmp_path: Path) -> None:
    en, zh = write(tmp_path / "x.en", "a\nb\n"), write(tmp_path / "x.zh", "一\n")
    with pytest.raises(InputError, match=r"x.en has 2 lines and .*x.zh 1. Line n of each must be a pair"):
        read_set({"en": en, "zh": zh}, "en-zh")
    with pytest.raises(InputError, match=r"needs files for en and zh, not"):
        read_set({"en": en, "de": zh}, "en-zh")
    with pytest.raises(InputError, match=r"sentence 2 is empty"):
        read_set({"en": en, "zh": write(tmp_path / "y.zh", "一\n\n")}, "en-zh")
    one = write(tmp_path / "a.sgm", sgm("srcset", "x", "y"))
    with pytest.raises(InputError, match=r"do not have the same segments: 2 and 1, d1 2 is not in both"):
        read_set({"en": one, "zh": write(tmp_path / "b.sgm", sgm("refset", "一"))}, "en-zh")
    with pytest.raises(InputError, match=r"do not have the same segments: 2 and 2, d1 1"):
        read_set({"en": one, "zh": write(tmp_path / "c.sgm", sgm("refset", "一", "二", document="d2"))}, "en-zh")
    with pytest.raises(InputError, match=r"has no <seg id=...> inside"):
        read_set({"en": one, "zh": write(tmp_path / "d.sgm", "text")}, "en-zh")
    with pytest.raises(InputError, match=r"missing.en"):
        read_set({"en": str(tmp_path / "missing.en"), "zh": zh}, "en-zh")


def test_the_hash_is_of_the_texts_alone(tmp_path: Path) -> None:
    one = read_set(write(tmp_path / "a.jsonl", JSONL), "en-zh")
    assert read_set(write(tmp_path / "b.tsv", TSV), "en-zh").sha256 == one.sha256
    assert read_set(str(tmp_path / "a.jsonl"), "zh-en").sha256 != one.sha256
