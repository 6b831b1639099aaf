"""Pairs of documents: lists of sentences and texts of several lines. And records in more languages than a stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from dataengine.cleaning import dedup
from dataengine.cleaning.decontaminate import EvaluationTexts
from dataengine.cleaning.language import score_language
from dataengine.cleaning.minhash import shingle_texts
from dataengine.cleaning.rules.documents import check_documents
from dataengine.cleaning.rules.pairs import check_pairs
from dataengine.cleaning.rules.settings import DocumentRules, PairRules
from dataengine.errors import InputError
from dataengine.records.parts import whole_file
from dataengine.records.types import RecordFormat, Reject, SourcePart
from tests.dataengine.records.test_arrow import write as write_arrow
from tests.dataengine.records.test_read import PAIR, collect, moses, parquet, plan, read, tmx, unit, write

FORM = replace(PAIR, columns=())
KEEP, SPACE, SKIP = (
    replace(FORM, line_breaks="keep"),
    replace(FORM, line_breaks="space"),
    replace(FORM, skip_missing=True),
)
ENGLISH, CHINESE = ["One sentence. ", "", "Two\r\nlines."], ["一句。", " ", "两\n行。"]


def files_of(folder: Path, rows: list[dict[str, Any]], kind: Any = None) -> list[SourcePart]:
    """The same records as JSON Lines, Parquet and Arrow."""
    columns = {code: pa.array([row.get(code) for row in rows], kind) for code in ("en", "zh")}
    write(folder / "a.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))
    parquet(folder / "a.parquet", columns)
    write_arrow(folder / "a.arrow", pa.ipc.new_stream, pa.table(columns))
    return [whole_file(folder / f"a.{format}") for format in ("jsonl", "parquet", "arrow")]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (KEEP, ("One sentence.\n\nTwo\nlines.", "一句。\n\n两\n行。")),
        (SPACE, ("One sentence. Two lines.", "一句。两 行。")),
    ],
)
@pytest.mark.parametrize("other", [[], ["more"]])  # alone, and where the others are also looked at one by one
def test_lists_of_sentences_are_one_text_also_of_unequal_lengths(
    tmp_path: Path, form: RecordFormat, expected: tuple[str, str], other: list[str]
) -> None:
    rows = [{"en": ENGLISH, "zh": CHINESE}, {"en": ["a", "b"], "zh": ["一"]}, {"en": ["c"], "zh": other}]
    for part in files_of(tmp_path, rows, pa.list_(pa.string())):
        records, rejects, _, _ = read(part, form)
        between = "\n" if form is KEEP else " "
        assert records == [(1, expected), (2, (f"a{between}b", "一")), *[(3, ("c", "more"))] * bool(other)], part.format
        assert [(one.line, one.reason) for one in rejects] == [(3, "'zh' is an empty list")] * (not other)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "'zh' is an empty list"),
        ([["一"]], "'zh' is a list that holds something else than texts"),
        (["一", None], "'zh' is a list that holds something else than texts"),
        ([1], "'zh' is a list that holds something else than texts"),
        ([" ", ""], "'zh' is empty"),
        (["一\0"], "'zh' has a NUL character"),
        ({"a": "一"}, "'zh' is not a string"),
    ],
)
def test_a_list_that_is_no_text_is_unusable(tmp_path: Path, value: Any, reason: str) -> None:
    rows = [{"en": "a", "zh": "一"}, {"en": ["b"], "zh": value}, {"en": ["c", "d"], "zh": "三"}]
    path = write(tmp_path / "a.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))
    records, rejects, _, _ = read(path, SPACE)
    assert records == [(1, ("a", "一")), (3, ("c d", "三"))]
    assert [(one.line, one.reason) for one in rejects] == [(2, reason)]


def test_without_line_breaks_a_list_is_unusable_as_before(tmp_path: Path) -> None:
    jsonl, *others = files_of(tmp_path, [{"en": ["a"], "zh": ["一"]}], pa.list_(pa.string()))
    assert read(jsonl, FORM)[:2] == ([], [Reject(1, "'en' is not a string", '{"en":["a"],"zh":["\u4e00"]}')])
    for part in others:
        with pytest.raises(
            InputError, match=r"column 'en' is list<.*>, not text\. State the stream's `line_breaks`: keep"
        ):
            read(part, FORM)
    with pytest.raises(InputError, match=r"column 'en' is list<.*>, not text\. Correct the stream's `text_key`\."):
        read(others[0], RecordFormat(("en",)))


def test_a_list_with_bytes_that_are_not_utf8_is_unusable(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"\xff", b"fine"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), texts)
    path = parquet(tmp_path / "a.parquet", {"en": lists, "zh": ["一", "二"]})
    records, rejects, _, _ = read(path, KEEP)
    assert (records, [(one.line, one.reason) for one in rejects]) == ([(1, ("ok", "一"))], [(2, "not UTF-8")])


@pytest.mark.parametrize(("form", "between"), [(FORM, " "), (SPACE, " "), (KEEP, "\n")])
def test_line_breaks_within_a_side_are_kept_in_every_format(tmp_path: Path, form: RecordFormat, between: str) -> None:
    text, expected = " a\u2028b\r\n\r\nc\n", between.join(["a", "b", "", "c"])
    parts = files_of(tmp_path, [{"en": text, "zh": text}])
    parts.append(whole_file(write(tmp_path / "a.csv", f'en,zh\n"{text}","{text}"\n'.encode())))
    parts.append(whole_file(write(tmp_path / "a.tmx", tmx([unit(en=text, zh=text)]))))
    assert [texts for part in parts for _, texts in read(part, form)[0]] == [(expected, expected)] * 5
    line = "a\u2028b\n".encode()
    assert read(plan(moses(tmp_path, line, line), form=form)[0], form)[0] == [(1, (f"a{between}b",) * 2)]


def test_cleaning_takes_a_line_break_for_a_space() -> None:
    """So a pair is judged alike whether its line breaks are kept or not."""
    english = "The quick brown fox jumps over the lazy dog near the river bank in 1984. It then sleeps for 12 hours."
    chinese = "敏捷的棕色狐狸在1984年 跳过了河边的懒狗。 然后它睡了 12 个小时。今天的天气非常好 我们一起去公园散步。"
    spaced = [
        (english, chinese), (english, english), (chinese, english), ("a b c", "一 二"), (english * 30, chinese * 5),
        ("see https://a.b/c now", "看 https://a.b/c 吧"), ("%s of %d files", "%s 的 %d 个 文件"), ("1 2 3", "4 5 6"),
        ("(a) [b] <b>c d</b>", "<b>一 二</b>"), ("same same same same " * 9, "一样 " * 30),
    ]  # fmt: skip
    broken = [tuple(text.replace(" ", "\n") for text in pair) for pair in spaced]
    before, after = (list(zip(*pairs, strict=True)) for pairs in (spaced, broken))
    rules = PairRules()
    verdicts = check_pairs(*before, ("en", "zh"), rules)
    assert check_pairs(*after, ("en", "zh"), rules).tolist() == verdicts.tolist()
    assert len(set(verdicts.tolist())) > 4
    texts = EvaluationTexts.from_texts([english, chinese])
    for one, other, code in zip(before, after, ("en", "zh"), strict=True):
        np.testing.assert_array_equal(score_language(one, code), score_language(other, code))
        np.testing.assert_array_equal(dedup.text_keys(one, 1, 0), dedup.text_keys(other, 1, 0))
        np.testing.assert_array_equal(texts.contaminated(one), texts.contaminated(other))
        np.testing.assert_array_equal(shingle_texts(one).hashes, shingle_texts(other).hashes)
    np.testing.assert_array_equal(dedup.pair_keys(*before, 1, 0), dedup.pair_keys(*after, 1, 0))
    assert texts.contaminated(after[0]).any()
    assert check_documents(after[0], "en", DocumentRules()).shape == (len(after[0]),)


MULTI = [
    {"en": "a", "zh": "一", "id": "satu"},
    {"en": "b", "id": "dua"},
    {"en": None, "zh": "三", "id": "tiga"},
    {"en": "d", "zh": " "},
    {"zh": "五", "id": ""},
    {"en": 6, "zh": "六"},
]


def test_records_without_one_of_the_two_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in MULTI))
    (batch,) = collect(whole_file(path), SKIP, 1000)[0]
    assert (batch.lines, batch.texts) == ([1], (["a"], ["一"]))
    assert [(one.line, one.reason) for one in batch.rejects] == [(6, "'en' is not a string")]
    assert {said: place[:2] for said, place in batch.notes.items()} == {
        "a record has no 'en' and is left out (`missing: skip`)": (2, 3),
        "a record has no 'zh' and is left out (`missing: skip`)": (2, 2),
    }
    assert len(read(path, FORM)[1]) == 5
    indonesian = replace(SKIP, keys=("zh", "id"), languages=("zh", "id"))
    assert [texts for _, texts in read(path, indonesian)[0]] == [("一", "satu"), ("三", "tiga")]


def test_records_are_left_out_alike_in_every_format(tmp_path: Path) -> None:
    rows = [{"en": "a", "zh": "一"}, {"en": "b", "zh": None}, {"en": None, "zh": "三"}, {"en": "d", "zh": "四"}]
    cells = [[row[code] or "" for code in ("en", "zh")] for row in rows]
    parts = files_of(tmp_path, rows)
    parts.append(
        whole_file(write(tmp_path / "a.csv", "".join(f"{en},{zh}\n" for en, zh in [["en", "zh"], *cells]).encode()))
    )
    parts.append(
        whole_file(write(tmp_path / "a.tsv", "".join(f"{en}\t{zh}\n" for en, zh in [["en", "zh"], *cells]).encode()))
    )
    sides = ["".join(f"{row[side]}\n" for row in cells).encode() for side in (0, 1)]
    parts += plan(moses(tmp_path, *sides), form=SKIP)
    for part in parts:
        (batch,) = collect(part, SKIP, 1000)[0]
        assert (list(zip(*batch.texts, strict=True)), batch.rejects) == ([("a", "一"), ("d", "四")], []), part.format
        assert [count for count, _, _ in batch.notes.values()] == [1, 1]
