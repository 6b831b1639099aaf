from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dataengine.errors import InputError
from dataengine.evaluation_sets import read_set

PAIRS = [("Good morning.", "早上好。"), ("Thank you, Mr & Mrs Li.", "谢谢。")]
SOURCES, REFERENCES = ["Good morning.", "Thank you, Mr & Mrs Li."], ["早上好。", "谢谢。"]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


JSONL = '{"en": "Good morning.", "zh": "早上好。"}\n{"zh": "谢谢。", "en": "Thank you, Mr & Mrs Li."}\n'
TSV = "zh\tnote\ten\n早上好。\t\tGood morning.\n谢谢。\t\tThank you, Mr & Mrs Li.\n"
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
        ("dev.jsonl.gz", gzip.compress(JSONL.encode())),
        ("dev.tsv", TSV),
        ("dev.tsv", "\ufeff" + TSV.replace("\n", "\r\n")),
        ("wmt.en-zh.xml", XML),
        ("wmt.en-zh.xml.gz", gzip.compress(XML.encode())),
    ],
)
def test_files_of_pairs(tmp_path: Path, name: str, content: str | bytes) -> None:
    found = read_set(write(tmp_path / name, content), "en-zh")
    assert (found.sources, found.references) == (SOURCES, REFERENCES)
    assert found.files == (str(tmp_path / name),)
    if "xml" not in name:
        back = read_set(str(tmp_path / name), "zh-en")
        assert (back.sources, back.references) == (REFERENCES, SOURCES)
    assert read_set(str(tmp_path / name), "en-zh", limit=1).sources == SOURCES[:1]


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
        ("a.jsonl", JSONL + '{"en": "x"}\n', "a.jsonl, line 3: no key"),
        ("a.jsonl", JSONL + '{"en": "x", "zh": " "}\n', "a.jsonl, line 3: "),
        ("a.jsonl", JSONL + "{\n", "a.jsonl, line 3: "),
        ("a.jsonl", "", "holds no pairs for en-zh"),
        ("a.tsv", "a\tb\nc\td\n", "line 1: expected the languages as headings, en and zh among them, found"),
        ("a.tsv", "", "line 1: expected the languages as headings"),
        ("a.tsv", "en\tzh\nonly one\n", "line 2: 1 columns, not 2"),
        ("a.tsv", "en\tzh\nHi\t \n", "sentence 1 is empty"),
        ("a.tsv", b"en\tzh\nHi\t\xff\n", "line 2: not UTF-8 at byte 3"),
        ("a.xml", "<dataset><doc>", "not XML"),
        ("a.xml", XML.replace('lang="zh"', 'lang="de"'), r"no reference in zh for all of 2 sentences \(found: none\)"),
        ("a.xml", XML.replace('lang="en"', 'lang="cs"'), "has no source in en; its languages are cs, zh"),
        ("a.docx", "x", "not a kind of set"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_set(write(tmp_path / name, content), "en-zh")


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
