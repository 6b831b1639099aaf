from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dataengine.cleaning.decontaminate import NGRAM_WORDS, SHORTEST_WORDS, EvaluationTexts
from dataengine.errors import InputError

DEMO = Path(__file__).parents[3] / "demo/data"
ENGLISH = "Either way, it contains information that initializes the resolver routines of the C library, see below."
CHINESE = "此外，它包含有解析策略的初始化信息，并且在每一次系统启动的时候由程序读取。"
EVALUATION = EvaluationTexts.from_texts(
    [ENGLISH, CHINESE, "Open file", "打开文件", "You have no new messages.", "第一条错误信息最重要"]
)


def contaminated(*texts: str) -> list[bool]:
    found: list[bool] = EVALUATION.contaminated(texts).tolist()
    return found


def test_a_whole_evaluation_text_is_found_in_any_dress() -> None:
    assert (
        contaminated(
            ENGLISH,
            ENGLISH.upper().replace(" ", "\n"),
            CHINESE,
            CHINESE.replace("，", " "),
            "you have NO new messages!",
        )
        == [True] * 5
    )


def test_a_short_evaluation_text_wipes_out_nothing() -> None:
    assert contaminated("Open file", "open file.", "打开文件", "Choose Open file to go on.") == [False] * 4


@pytest.mark.parametrize("words", [SHORTEST_WORDS - 1, SHORTEST_WORDS])
def test_whole_texts_count_from_five_words_or_ten_chinese_characters_on(words: int) -> None:
    english, chinese = " ".join("abcde"[:words]), "此外它包含有解析策略"[: 2 * words]
    found = EvaluationTexts.from_texts([english, chinese]).contaminated([english, chinese])
    assert found.tolist() == [words >= SHORTEST_WORDS] * 2


@pytest.mark.parametrize("words", [NGRAM_WORDS - 1, NGRAM_WORDS])
def test_a_run_of_thirteen_words_inside_a_document_is_found(words: int) -> None:
    run = " ".join(ENGLISH.split()[2 : 2 + words])
    assert contaminated(f"Before it. {run} and after it") == [words >= NGRAM_WORDS]


@pytest.mark.parametrize("characters", [2 * NGRAM_WORDS - 1, 2 * NGRAM_WORDS])
def test_a_run_of_twenty_six_chinese_characters_inside_a_document_is_found(characters: int) -> None:
    run = CHINESE.replace("，", "").replace("。", "")[4 : 4 + characters]
    assert contaminated(f"前面的文字{run}后面的文字") == [characters >= 2 * NGRAM_WORDS]


def test_an_evaluation_text_shorter_than_an_ngram_is_not_looked_for_inside_documents() -> None:
    assert contaminated("You have no new messages. Close the window.") == [False]


def test_texts_without_words_are_clean_even_if_an_evaluation_text_has_none() -> None:
    evaluation = EvaluationTexts.from_texts(["...", "", ENGLISH])
    assert evaluation.contaminated(["!!!", "", "..."]).tolist() == [False] * 3
    assert evaluation.contaminated([]).shape == (0,)
    assert EvaluationTexts.from_texts(["OK"]).contaminated(["OK", ENGLISH]).tolist() == [False, False]


texts_of_words = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=12)


@given(texts_of_words, texts_of_words, st.integers(1, 4), st.integers(1, 4))
def test_contamination_is_that_of_sets_of_strings(
    evaluation: list[str], texts: list[str], shortest: int, length: int
) -> None:
    def ngrams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[k : k + length]) for k in range(len(words) - length + 1)}

    whole = {text for text in evaluation if len(text.split()) >= shortest}
    known = set(itertools.chain(*map(ngrams, evaluation)))
    found = EvaluationTexts.from_texts(evaluation, shortest_words=shortest, ngram_words=length).contaminated(texts)
    assert found.tolist() == [text in whole or bool(ngrams(text) & known) for text in texts]


def test_real_pairs_are_clean_of_the_development_set_unless_put_in() -> None:
    with zstandard.open(DEMO / "en-zh.train.jsonl.zst", "rt", encoding="utf-8") as file:
        pairs = [orjson.loads(line) for line in itertools.islice(file, 3000)]
    path = DEMO / "en-zh.dev.jsonl"
    development = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    evaluation = EvaluationTexts.load([path])
    for language, most in (("en", 3), ("zh", 3)):  # passages of the GNU General Public License are in many programs
        assert np.count_nonzero(evaluation.contaminated([pair[language] for pair in pairs])) <= most
        long = [pair[language] for pair in development if len(pair[language]) > 40]
        assert evaluation.contaminated(long).all()
        assert evaluation.contaminated([f"{pairs[0][language]}\n{text}\nEnd" for text in long if len(text) > 120]).all()


# --- Loading ---


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_give_every_string_value_at_any_depth(tmp_path: Path, suffix: str) -> None:
    lines = b'{"a long key of five words": {"options": ["the first of the options", 3, null]}}\n\n'
    lines += b'["the second of the options"]\n'
    path = tmp_path / f"test.jsonl{suffix}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](lines))
    evaluation = EvaluationTexts.load([str(path)])
    found = evaluation.contaminated(
        ["The first of the options", "the second of the options", "a long key of five words"]
    )
    assert found.tolist() == [True, True, False]


def test_plain_text_gives_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "test.en"
    path.write_bytes(b'"the first of the options"\r\n\r\nthe second of the options')
    evaluation = EvaluationTexts.load([path])
    assert evaluation.contaminated(["the first of the options", "the second of the options"]).all()
    assert len(evaluation.texts) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.jsonl", b'{"a": "b"}\n{"a": \n', r"test\.jsonl, line 2: not JSON: .*\. Write one value a line"),
        ("test.txt", b"good\nb\xffd\n", r"test\.txt, line 2: not UTF-8 at byte 1\. Convert the file"),
        ("test.txt", b"\n \xe2\x80\x8b\n", r"test\.txt contains no text\. Name another file"),
        ("test.jsonl", b'{"a": 1}\n', r"test\.jsonl contains no text\. Name another file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        EvaluationTexts.load([tmp_path / name])


SENTENCES = ["The committee decided to postpone the vote.", "委员会决定将投票推迟到明年春天举行。"]
HELD = {
    "dev.jsonl": f'{{"en": "{SENTENCES[0]}", "zh": "{SENTENCES[1]}"}}\n',
    "dev.tsv": f"en\tzh\n{SENTENCES[0]}\t{SENTENCES[1]}\n",
    "dev.xml": f'<dataset><doc id="1"><src lang="en"><p><seg id="0">{SENTENCES[0]}</seg></p></src>'
    f'<ref lang="zh"><p><seg id="0">{SENTENCES[1]}</seg></p></ref></doc></dataset>',
    "dev.sgm": "\n".join(f'<doc docid="a"><seg id="{k}">{text}</seg></doc>' for k, text in enumerate(SENTENCES)),
    "dev.txt": "\n".join(SENTENCES),
}


@pytest.mark.parametrize("suffix", ["", ".gz", ".ZST"])
@pytest.mark.parametrize("name", [*HELD, *map(str.upper, HELD)])
def test_the_same_is_found_for_any_format_of_the_evaluation_set(tmp_path: Path, name: str, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".ZST": zstandard.compress}[suffix]
    (tmp_path / (name + suffix)).write_bytes(pack(HELD[name.lower()].encode()))
    evaluation = EvaluationTexts.load([tmp_path / (name + suffix)])
    assert evaluation.contaminated(SENTENCES).tolist() == [True, True]
    assert evaluation.identity == EvaluationTexts.from_texts(SENTENCES).identity


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        EvaluationTexts.load([tmp_path / "absent.jsonl"])


def test_identity_depends_on_what_decides_alone() -> None:
    identity = EvaluationTexts.from_texts([ENGLISH, CHINESE]).identity
    assert len(identity) == 64
    same = [[CHINESE, ENGLISH], [ENGLISH, CHINESE, ENGLISH.upper(), "OK", "..."]]
    assert {EvaluationTexts.from_texts(texts).identity for texts in same} == {identity}
    others = [
        EvaluationTexts.from_texts([ENGLISH]),
        EvaluationTexts.from_texts([ENGLISH, CHINESE, "You have no new messages"]),
        EvaluationTexts.from_texts([ENGLISH, CHINESE], shortest_words=4),
        EvaluationTexts.from_texts([ENGLISH, CHINESE], ngram_words=12),
    ]
    assert len({identity, *(other.identity for other in others)}) == 5


@pytest.mark.parametrize("character", ["\u00ad", "\u200b", "\ufeff", "\u200f", "\u202c"])
def test_characters_that_do_not_show_hide_no_evaluation_text(tmp_path: Path, character: str) -> None:
    sentence = "the first of many words that stand in an evaluation set and in a document too"
    path = tmp_path / "dev.txt"
    path.write_text(sentence + "\n", encoding="utf-8")
    evaluation = EvaluationTexts.load([path])
    hidden = sentence.replace("o", f"{character}o").replace(" ", f"{character} ")
    assert evaluation.contaminated([hidden, f"before {hidden} after", "nothing of it"]).tolist() == [True, True, False]
    path.write_text(hidden + "\n", encoding="utf-8")
    assert EvaluationTexts.load([path]).identity == evaluation.identity
