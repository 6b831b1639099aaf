from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
import pytest
import regex
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.rules import plain_document, plain_pairs
from dataengine.cleaning.rules import columns, scripts
from dataengine.cleaning.rules.columns import fold
from dataengine.cleaning.rules.digits import differing_digits, digits_differ, han_numbers
from dataengine.cleaning.rules.documents import DOCUMENT_RULES, check_documents
from dataengine.cleaning.rules.pairs import PAIR_RULES, check_pairs, copies, find_links, repeats
from dataengine.cleaning.rules.scripts import script_ranges, scripts_of
from dataengine.cleaning.rules.settings import DocumentRules, PairRules

ROOT = Path(__file__).parents[3]
NO_PAIR_RULE = PairRules(
    min_characters=None,
    max_characters=None,
    drop_broken_characters=False,
    min_letter_share=None,
    drop_identical_sides=False,
    min_script_share=None,
    max_length_ratio=None,
    max_missing_digits=None,
    drop_link_mismatch=False,
    drop_markup=False,
    max_repeated_share=None,
)
NO_DOCUMENT_RULE = DocumentRules(
    min_characters=None,
    max_characters=None,
    max_broken_share=None,
    min_letter_share=None,
    max_symbol_share=None,
    min_script_share=None,
    min_word_length=None,
    max_word_length=None,
    max_ellipsis_lines=None,
    max_repeated_lines=None,
)


def pair_verdict(source: str, target: str, direction: str, rules: PairRules | None = None) -> str:
    first, second = direction.split("-", 1)
    number = int(check_pairs([source], [target], (first, second), rules or PairRules())[0])
    return PAIR_RULES[number - 1] if number else "kept"


def document_verdict(text: str, language: str | None, rules: DocumentRules | None = None) -> str:
    number = int(check_documents([text], language, rules or DocumentRules())[0])
    return DOCUMENT_RULES[number - 1] if number else "kept"


KEPT = [
    (
        "en-zh",
        "You must reload the spreadsheet to see the updated links.",
        "您必须重新装入工作表才能看到更新后的链接。",
    ),
    ("zh-en", "移到下一行", "Move to the next line"),
    ("en-id", "Move to the next line", "Pindah ke baris berikutnya"),
    ("en-zh", "OK", "确定"),
    ("en-zh", "Use the LibreOffice Calc API", "使用 LibreOffice Calc API 编程接口"),  # Latin names in a Han sentence
    ("en-id", "Save as PDF", "Simpan sebagai PDF"),
    ("en-zh", "It opens on October 1st.", "它在10月1日开放。"),  # the month is a digit more
    ("en-zh", "12,000 users in 25 countries", "25个国家的1.2万用户"),
    ("en-zh", "On 12/25/2020 version 3.5 came out.", "３.５版于２０２０年１２月２５日发布。"),  # full-width digits
    ("en-zh", "Message %lu of %lu (%s of %s)", "%2$lu 的消息 %1$lu（%3$s 共 %4$s）"),
    ("en-zh", "See https://en.wikipedia.org/wiki/Test for more.", "更多内容请见 https://zh.wikipedia.org/wiki/测试 。"),
    ("en-zh", "Write to info@example.org for help.", "如需帮助，请发邮件到info@example.org。"),
    ("en-zh", "usage: git add <file>, where a < b & c; see below", "用法：git add <文件>，其中 a < b & c；见下"),
    ("en-id", "Add, subtract, multiply and divide", "Tambah, kurang, kali, dan bagi"),
    ("en-zh", "It was founded in 1987.", "它成立于一九八七年。"),
    ("en-zh", "See Article 1234 of the law.", "见该法第一千二百三十四条。"),
    ("zh-en", "会议在三点半开始，五号厅", "The meeting starts at 15:30 in hall 5"),
    ("en-zh", "Rp 123,450 were paid.", "已付壹拾贰万叁仟肆佰伍拾盾。"),  # financial
    ("en-zh", "Released on 31 December 1999", "發佈於一九九九年十二月三十一日"),
    ("en-ja", "Written on 25 May 1987", "一九八七年五月二十五日に書かれた"),
    ("en-zh", "One after the other, all of them", "一个接一个，一起，第一，十分，万一，两者，三五成群"),  # words
    ("en-zho", "Move to the next line", "移到下一行"),
    ("en-zh-TW", "Move to the next line", "移到下一行"),
    ("fa-en", "می\u200cخواهم کتاب\u200cها را بخوانم", "I want to read the books"),
    ("en-xx", "A language without a known script", "文字未知的语言不受限制"),
]
DROPPED = [
    ("length", "en-zh", "", "确定"),
    ("length", "zh-en", "确定", "word " * 401),
    ("length", "zh-en", "\u200b\ufeff", "nothing to see"),
    ("length", "zh-en", "确定", "OK" + "\u200b" * 2000),
    ("broken_characters", "en-zh", "To draw an ellipse, hold down Shift.", "要绘制椭圆，请在拖动\x97按住 Shift 键。"),
    ("broken_characters", "en-id", "Caf\ufffd is closed", "Kafe tutup"),
    ("broken_characters", "en-zh", "An icon \ue829 of a private font", "私有字体的图标"),
    ("few_letters", "en-zh", "- - - 12:30 -> 14:45 %", "从 12:30 到 14:45"),
    ("few_letters", "zh-en", "。。。！！！", "no words there"),
    ("identical_sides", "en-id", "LibreOffice  Writer", "libreoffice: writer!"),
    ("identical_sides", "en-id", "STRASSE nach Köln", "Straße nach Köln"),
    ("identical_sides", "en-zh", "The file was not found", "The file was not found."),
    ("identical_sides", "en-id", "LibreOffice Writer", "Libre\u00adOffice Wri\u3164ter\ufeff"),  # as it looks
    ("wrong_script", "en-zh", "Move to the next line", "Pindah ke baris berikutnya"),
    ("wrong_script", "zh-en", "移到下一行", "移到下一列"),
    ("wrong_script", "en-zh", "This is Japanese", "これは日本語です"),
    ("wrong_script", "en-zho", "Move to the next line", "Pindah ke baris berikutnya"),
    ("wrong_script", "en-zh_Hant", "Move to the next line", "Pindah ke baris berikutnya"),
    ("wrong_script", "en-srp-Cyrl", "Move to the next line", "Idi na sledeći red"),
    ("length_ratio", "en-zh", "To search through all your transactions, start a search from the main page.", "搜索"),
    ("length_ratio", "en-id", "Open", "Buka berkas yang dipilih dan tampilkan isinya di jendela yang baru"),
    ("digit_mismatch", "en-id", "This service needs LibreOffice 7.2.", "Layanan ini perlu LibreOffice 7.3."),
    ("digit_mismatch", "en-zh", "Copyright of the authors of 1998", "作者的版权"),
    ("digit_mismatch", "en-zh", "It was founded in 1987.", "它成立于一九八八年。"),
    ("digit_mismatch", "en-zh", "See Article 1234 of the law.", "见该法第一千二百三十五条。"),
    ("digit_mismatch", "en-zh", "argument 3 must be a number", "参数 2 必须是一个数"),  # 参 is not a 3 here, nor 一 a 1
    ("digit_mismatch", "en-zh", "argument 1 must be a number", "实参 2 必须是一个数"),
    ("link_mismatch", "en-zh", "See https://example.org for more.", "更多内容请见 https://other.org 。"),
    ("link_mismatch", "en-id", "Write to info@example.org for help.", "Kirim surel untuk bantuan."),
    ("markup", "en-zh", "Press <b>Enter</b> to go on.", "按回车键继续。"),
    ("markup", "zh-en", "安全的 Java&reg; 支持", "Secure Java support"),
    ("markup", "en-id", "Open the page", 'Buka <a href="halaman'),  # cut off
    ("markup", "en-id", "Open the page", "Buka <\u200bb>halaman"),
    ("repetition", "en-id", "buy it now, buy it now, buy it now, buy it now", "beli sekarang dan bawa pulang"),
    ("repetition", "en-zh", "He laughed out loud", "哈哈哈哈哈哈哈哈"),
    ("repetition", "en-zh", "He laughed out loud", "哈哈哈\u200b哈哈\u200d哈哈\u2060哈"),
    ("terminal_punctuation", "en-zh", "What? No! Why? Who? Stop. Go! Why?", "什么事情都没有发生"),
    ("surplus_digits", "en-zh", "Continue on page 12", "在下一页继续"),
    ("copied_text", "en-id", "The file was not found", "Berkas hilang. The file was not found"),
]
OFF_BY_DEFAULT = {"max_terminal_penalty": 6, "min_digit_overlap": 0.5, "max_copied_share": 0.9}


@pytest.mark.parametrize(("direction", "source", "target"), KEPT)
def test_good_pairs_are_kept(direction: str, source: str, target: str) -> None:
    assert pair_verdict(source, target, direction) == "kept"


def test_rules_that_opusfilter_has_are_off_unless_set() -> None:
    for rule, direction, source, target in DROPPED:
        off = rule in ("terminal_punctuation", "surplus_digits", "copied_text")
        assert pair_verdict(source, target, direction) == ("kept" if off else rule)


@pytest.mark.parametrize(("rule", "direction", "source", "target"), DROPPED)
def test_each_rule_drops_its_pairs(rule: str, direction: str, source: str, target: str) -> None:
    assert pair_verdict(source, target, direction, PairRules(**OFF_BY_DEFAULT)) == rule  # type: ignore[arg-type]
    assert pair_verdict(source, target, direction, NO_PAIR_RULE) == "kept"


def test_every_rule_has_an_example() -> None:
    assert list(dict.fromkeys(rule for rule, *_ in DROPPED)) == list(PAIR_RULES)
    assert list(dict.fromkeys(rule for rule, *_ in DROPPED_DOCUMENTS)) == list(DOCUMENT_RULES)


@pytest.mark.parametrize(
    ("source", "target", "verdict"),
    [
        ("a" * 9, "abcd" * 12, "length_ratio"),  # bytes: 48 > 3 * 9 + 20
        ("a" * 9, "abcd" * 11 + "abc", "kept"),  # 47 = 3 * 9 + 20
        ("字" * 3, "abcd" * 11 + "abc", "kept"),  # three bytes each
        ("字" * 2, "abcd" * 11 + "abc", "length_ratio"),
        ("𠀀", "abcd" * 8, "kept"),  # 32 = 3 * 4 + 20
        ("𠀀", "abcd" * 8 + "a", "length_ratio"),
    ],
)
def test_the_length_ratio_is_of_bytes(source: str, target: str, verdict: str) -> None:
    rules = NO_PAIR_RULE.model_copy(update={"max_length_ratio": 3.0, "length_slack": 20})
    assert pair_verdict(source, target, "en-zh", rules) == verdict
    assert pair_verdict(target, source, "zh-en", rules) == verdict


@pytest.mark.parametrize(
    ("source", "target", "verdict"),
    [
        ("two", "2", "kept"),
        ("twenty-five", "25", "kept"),
        ("one hundred and eleven", "111", "digit_mismatch"),  # three digits that the other side lacks
        ("10 percent", "1000", "kept"),  # zeros do not count
        ("2 of 3", "2 of 4", "digit_mismatch"),  # each side has a digit that the other lacks
        ("٣ and ３", "3, 3", "kept"),
        ("%s of %s", "%2$s, %1$s", "kept"),
        ("%s of 5", "%2$s, 6", "digit_mismatch"),
        ("3,412", "三千四百一十二", "kept"),
        ("3,412", "三千四百一十五", "digit_mismatch"),  # a number counts as a whole or not at all
        ("345", "三月、四月与五月", "kept"),
        ("2:15, 3:45, 0.5", "两点一刻、三点三刻、半", "kept"),
        ("365 books", "参数, 大陆, 队伍, 千万", "digit_mismatch"),
        ("10 and 100 and 1,000", "10、百分之", "kept"),  # two are missing
        ("1, 1, 1", "千万、百度、一个、万一、十分", "digit_mismatch"),
        ("1, 1, 1", "第一、一月、十分钟", "kept"),
        ("８７６", "八百七十六", "kept"),
    ],
)
def test_digits_may_be_words_but_not_contradict(source: str, target: str, verdict: str) -> None:
    assert pair_verdict(source, target, "en-zh", NO_PAIR_RULE.model_copy(update={"max_missing_digits": 2})) == verdict


UNITS = [[""] * 2, ["十", "拾"], ["百", "佰"], ["千", "仟"]]
SETS = ["零一二三四五六七八九", "〇壹贰叁肆伍陆柒捌玖", "零壹貳參肆伍陸柒捌玖"]


def write_chinese(number: int, digits: str, units: int, large: str) -> str:
    """A number below 10^12 by place value, with all its ones (一十二)."""
    groups = []
    for power, unit in ((8, large[1]), (4, large[0]), (0, "")):
        group = number // 10**power % 10**4
        places = [(group // 10**place % 10, UNITS[place][units]) for place in (3, 2, 1, 0)]
        words = "".join(digits[value] + unit if value else digits[0] for value, unit in places)
        words = re.sub(f"{digits[0]}+", digits[0], words).rstrip(digits[0])
        groups.append(words + unit if group else "")
    return "".join(groups).lstrip(digits[0])


@given(
    number=st.one_of(st.integers(1, 9999), st.integers(1, 10**12 - 1)),
    other=st.integers(1, 10**12 - 1),
    digits=st.sampled_from(SETS),
    units=st.integers(0, 1),
    large=st.sampled_from(["万亿", "萬億"]),
)
def test_a_number_in_chinese_numerals_is_the_number(
    number: int, other: int, digits: str, units: int, large: str
) -> None:
    by_place = write_chinese(number, digits, units, large)
    one_by_one = "".join(digits[int(digit)] for digit in str(number))
    for written in (by_place, one_by_one):
        if not re.fullmatch("[一参參陆陸伍拾]", written):
            assert not digits_differ(f"No. {number:,}.", f"第{written}号", 0)
            assert not digits_differ(f"{written}个", f"{number}", 0)
    wanted, others = (Counter(str(value).replace("0", "")) for value in (number, other))
    left = (wanted - others if others <= wanted else wanted).total()  # as a whole or not at all
    for most in (0, 2):
        assert digits_differ(f"{number}", f"第{write_chinese(other, digits, units, large)}号", most) == (left > most)


NUMERALS = [*"零一二三七十百万半点刻第月参的1237 ", "一刻", "点半", "千分之"]
numerals = st.lists(st.sampled_from(NUMERALS), max_size=10).map("".join)


@given(source=numerals, target=numerals, most=st.integers(0, 3))
def test_chinese_numerals_excuse_missing_digits_and_nothing_else(source: str, target: str, most: int) -> None:
    plain = [re.sub(r"[^\d]", " ", text) for text in (source, target)]
    if not digits_differ(*plain, most):
        assert not digits_differ(source, target, most)
    # At best, any choice of the numbers on the other side counts, each as a whole.
    wanted = [Counter(int(digit) for digit in re.findall("[1-9]", text)) for text in plain]
    least = []
    for missing, other in ((wanted[0] - wanted[1], target), (wanted[1] - wanted[0], source)):
        numbers = han_numbers(other)
        choices = (sum((numbers[k] for k in range(len(numbers)) if chosen >> k & 1), Counter()) for chosen in
                   range(1 << len(numbers)))  # fmt: skip
        least.append(min((missing - choice).total() for choice in choices if choice <= missing))
    found = differing_digits(source, target)
    assert found[0] >= least[0]
    assert found[1] >= least[1]
    if all(number.total() == 1 for number in (*han_numbers(source), *han_numbers(target))):
        assert found == tuple(least)


def test_links_are_hosts_of_urls_and_addresses() -> None:
    text = "见HTTPS://Docs.Example.org/zh?a=b、ftp://example.org。或a.b+c@Mail.example.org, a@b: http:// @x.y"
    assert find_links(text) == {"example.org": 2, "a.b+c@mail.example.org": 1}


def test_repetition_counts_runs_of_four() -> None:
    assert repeats("abcabcabcabc", 0.5)  # 9 runs, 3 different
    assert not repeats("abcabcab", 0.5)  # 5 runs, 3 different
    assert not repeats("abc", 0.0)


def test_the_longest_piece_of_a_side_on_the_other_decides() -> None:
    assert copies("abcdefghij", "x" * 50 + "abcdefghij", 0.9)
    assert copies("x abcdefghij", "abcdefghij", 0.9)
    assert not copies("abcde fghij", "abcde-fghij", 0.5)  # five of eleven
    assert copies("abcdef-hij", "abcdef+hij", 0.5)
    assert not copies("abc", "ABC", 0.5)
    assert not copies("", "abc", 0.0)
    assert not copies("abc", "abc", 1.0)


KEPT_DOCUMENTS = [
    ("en", "Writing is easy.\nAll you have to do is to cross out the wrong words."),
    ("zh", "日志是一个 systemd 日志查看器。\n“日志”显示了 systemd 日志中的事件。"),
    ("id", "Bidang formulir tanggal, waktu, numerik, mata uang, dan pola."),
    ("en", "The story goes on and on…"),  # one such line may be
    ("en", "Two dots are no ellipsis..\nNor are these two.."),
    (None, "文字未知的语言不受限制，任何文字都可以。"),
]
REFRAIN = "The same line comes again.\n"
DROPPED_DOCUMENTS = [
    ("length", "en", "Too short"),
    ("broken_characters", "zh", "要绘制椭圆，请在拖动\x97按住 Shift 键。"),
    ("few_letters", "en", "12.5 13.7 14.9 15.2 16.3 17.7 cm"),
    ("symbols", "en", "====== ====== It tells the name of it ===== ====== and all of these values"),
    ("symbols", "en", "#one #two #three #four #five #six"),
    ("wrong_script", "zh", "This is an English text in a Chinese collection."),
    ("wrong_script", "en", "这是英文文集里的一篇中文文章。"),
    ("word_length", "en", "Redirecting.to.../../../cargo-doc/doc/commands/cargo-install.html."),
    ("word_length", "id", "a b c d e f g h i j k l m n o p"),
    ("ellipsis_lines", "en", "Once upon a time…\nThere was a king...\nHe lived in a castle."),
    ("repeated_lines", "en", REFRAIN * 3 + "And then another one ends it."),
    ("curly_braces", "en", "The code is function() { return 1; } and nothing else."),
    ("lorem_ipsum", "en", "Lorem Ipsum dolor sit amet, consectetur adipiscing elit."),
]


@pytest.mark.parametrize(("language", "text"), KEPT_DOCUMENTS)
def test_good_documents_are_kept(language: str | None, text: str) -> None:
    assert document_verdict(text, language) == "kept"


@pytest.mark.parametrize(("rule", "language", "text"), DROPPED_DOCUMENTS)
def test_each_rule_drops_its_documents(rule: str, language: str, text: str) -> None:
    rules = DocumentRules(drop_curly_braces=True, drop_lorem_ipsum=True)
    assert document_verdict(text, language, rules) == rule
    assert document_verdict(text, language, NO_DOCUMENT_RULE) == "kept"


def test_curly_braces_and_lorem_ipsum_are_off_unless_set() -> None:
    assert document_verdict("Lorem ipsum in curly {braces} is no reason to drop a text.", "en") == "kept"


def test_mean_word_length_needs_a_language_with_spaces() -> None:
    text = "按 这样 的 顺序 输入 页码"
    rules = NO_DOCUMENT_RULE.model_copy(update={"min_word_length": 3.0})
    unspaced = ("zh", "zho", "zh-TW", "ja", "th", "xx-Thai", None, "xx")
    assert [document_verdict(text, language, rules) for language in unspaced] == ["kept"] * len(unspaced)
    spaced = ("en", "eng", "en-GB", "ko", "xx-Latn")
    assert [document_verdict(text, language, rules) for language in spaced] == ["word_length"] * len(spaced)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ko", "나는 어제 책을 한 권 샀다. 그 책은 아주 재미있다. 오늘 다시 읽을 것이다. 너도 한 번 읽어 봐라."),
        ("kor", "우리는 아침에 밥을 먹고 차를 마셨다. 날이 참 맑아서 산에 갔다."),
        ("vi", "Tôi đi học ở Hà Nội. Hôm nay trời rất đẹp và tôi có thể đi ra chợ để mua cá, gà và rau cho mẹ."),
        ("ml", "തിരുവനന്തപുരം കേരളത്തിന്റെ തലസ്ഥാനമാണ്. ഭരണസിരാകേന്ദ്രവും വിദ്യാഭ്യാസകേന്ദ്രവുമാണ് തിരുവിതാംകൂർ."),
        ("fi", "Käyttöjärjestelmän asetustiedostojen varmuuskopiointipalvelu käynnistettiin uudelleen."),
    ],
)
def test_words_may_be_as_short_or_long_as_the_language_has_them(language: str, text: str) -> None:
    mean = len("".join(text.split())) / len(text.split())
    assert not 3 <= mean <= 12
    assert document_verdict(text, language) == "kept"
    assert document_verdict(text, language, DocumentRules(min_word_length=0, max_word_length=None)) == "kept"
    other = "en-" + {"ko": "Hang", "kor": "Hang", "ml": "Mlym"}.get(language, "Latn")
    assert document_verdict(text, other) == "word_length"


def test_word_lengths_are_bounded_in_every_language_with_spaces() -> None:
    assert document_verdict("나 는 어 제 책 을 한 권 샀 다", "ko") == "word_length"
    assert document_verdict("a b c d e f g h i j k l m n o p", "vi") == "word_length"
    assert document_verdict("Käyttöjärjestelmä.asetustiedosto.varmuuskopiointi käynnistettiin", "fi") == "word_length"


# Pieces that meet at the edges of what the rules look for.
PIECES = [
    *("a", "b", "The ", "line ", "ß", "SS", "İ", "ŉ", "ς", "Σ", "ﬁ", "Å", "é", "ａ", "µ", "ª"),
    *("字", "的", "龘", "𠀀", "か", "ー", "ｶ", "한", "ㄅ", "я", "ש", "ع", "ि", "म", "ไ", "้", "𐓟", "ᴀ"),
    *("1", "2", "0", "20", "３", "٣", "𝟏", "²", "Ⅷ", "%s", "%1$s", "%2$", "一", "十二", "三百", "点半", "第", "叁"),
    *(" ", "\n", "\t", "\r\n", "\x1c", "\x85", "\u2028", "\u3000", "\u200b", "\xa0"),
    *("\u00ad", "\u200c", "\u200d", "\ufeff", "\u3164", "\u115f", "\u034f", "\U000e0041", "？", "！"),
    *(".", "...", "…", "。", "_", "-", "=", "#", "{", "}", "☃", "😀", "€", "\u0301", "\ufe0f"),
    *("<", ">", "<b>", "</p >", "<a href=", "<file>", "<!--", "&", ";", "&amp;", "&#x41;", "& ;", "&nbsp"),
    *("@", ":", "/", "//", "http://", "https://a.b.c/", "ftp://x.b.c", "me@a.b", "ME@A.B", "a@"),
    *("\x00", "\x07", "\x7f", "\ufffd", "\ue000", "\ud800", "\udc00", "\U000f0000", "\ufffe"),
]
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).flatmap(
        lambda unit: st.integers(1, 6).map(lambda times: "".join(unit) * times)
    ),
    st.text(max_size=12),
)
pair_batches = st.lists(st.one_of(st.tuples(texts, texts), texts.map(lambda text: (text, text.upper()))), max_size=5)
shares = st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.75, 1.0])
ONE_PAIR_RULE = {
    "length": st.fixed_dictionaries({"min_characters": st.integers(0, 4), "max_characters": st.integers(4, 12)}),
    "broken_characters": st.just({"drop_broken_characters": True}),
    "few_letters": st.fixed_dictionaries({"min_letter_share": shares}),
    "identical_sides": st.just({"drop_identical_sides": True}),
    "wrong_script": st.fixed_dictionaries({"min_script_share": shares}),
    "length_ratio": st.fixed_dictionaries(
        {"max_length_ratio": st.sampled_from([1.0, 1.5, 3.0]), "length_slack": st.integers(0, 4)}
    ),
    "digit_mismatch": st.fixed_dictionaries({"max_missing_digits": st.integers(0, 3)}),
    "link_mismatch": st.just({"drop_link_mismatch": True}),
    "markup": st.just({"drop_markup": True}),
    "repetition": st.fixed_dictionaries({"max_repeated_share": shares}),
    "terminal_punctuation": st.fixed_dictionaries({"max_terminal_penalty": st.integers(0, 7)}),
    "surplus_digits": st.fixed_dictionaries({"min_digit_overlap": shares}),
    "copied_text": st.fixed_dictionaries({"max_copied_share": st.one_of(shares, st.just(0.9))}),
}
directions = st.tuples(*[st.sampled_from(["en", "zh", "ind", "ja", "hi", "th", "ru", "ko", "zh-TW", "xx"])] * 2)


@pytest.mark.parametrize("rule", PAIR_RULES)
@settings(max_examples=100)
@given(batch=pair_batches, languages=directions, choices=st.data())
def test_columns_decide_as_plain_python_does(
    rule: str, batch: list[tuple[str, str]], languages: tuple[str, str], choices: st.DataObject
) -> None:
    rules = NO_PAIR_RULE.model_copy(update=choices.draw(ONE_PAIR_RULE[rule]))
    sources, targets = [source for source, _ in batch], [target for _, target in batch]
    decided = check_pairs(sources, targets, languages, rules)
    assert decided.dtype == np.uint8
    assert decided.tolist() == plain_pairs(sources, targets, languages, rules)


@settings(max_examples=100)
@given(batch=pair_batches, languages=directions)
@example(batch=[], languages=("en", "zh"))
@example(batch=[("", ""), ("", "")], languages=("en", "zh"))
def test_all_rules_together_name_the_first_that_drops(batch: list[tuple[str, str]], languages: tuple[str, str]) -> None:
    sources, targets = [source for source, _ in batch], [target for _, target in batch]
    decided = check_pairs(sources, targets, languages, PairRules())
    assert decided.tolist() == plain_pairs(sources, targets, languages, PairRules())


ONE_DOCUMENT_RULE = {
    "length": st.fixed_dictionaries({"min_characters": st.integers(0, 4), "max_characters": st.integers(4, 12)}),
    "broken_characters": st.fixed_dictionaries({"max_broken_share": shares}),
    "few_letters": st.fixed_dictionaries({"min_letter_share": shares}),
    "symbols": st.fixed_dictionaries({"max_symbol_share": shares}),
    "wrong_script": st.fixed_dictionaries({"min_script_share": shares}),
    "word_length": st.fixed_dictionaries(
        {"min_word_length": st.sampled_from([1.0, 2.5]), "max_word_length": st.sampled_from([2.5, 4.0])}
    ),
    "ellipsis_lines": st.fixed_dictionaries({"max_ellipsis_lines": shares}),
    "repeated_lines": st.fixed_dictionaries({"max_repeated_lines": shares}),
    "curly_braces": st.just({"drop_curly_braces": True}),
    "lorem_ipsum": st.just({"drop_lorem_ipsum": True}),
}
documents = st.lists(
    st.lists(
        st.one_of(texts, st.sampled_from(["one…", "two...", " one…", "...", "", "two..", "LOREM ipsum"])), max_size=6
    ).map("\n".join),
    max_size=4,
)


@pytest.mark.parametrize("rule", DOCUMENT_RULES)
@settings(max_examples=100)
@given(
    batch=documents,
    language=st.sampled_from(["en", "zh", "th", "hi", "ko", "fi", "zh-TW", "xx", None]),
    choices=st.data(),
)
def test_columns_decide_on_documents_as_plain_python_does(
    rule: str, batch: list[str], language: str | None, choices: st.DataObject
) -> None:
    rules = NO_DOCUMENT_RULE.model_copy(update=choices.draw(ONE_DOCUMENT_RULE[rule]))
    expected = [plain_document(text, language, rules) for text in batch]
    assert check_documents(batch, language, rules).tolist() == expected


def read_pairs(name: str, languages: Sequence[str]) -> tuple[list[str], list[str]]:
    with zstandard.open(ROOT / "demo" / "data" / name, "rb") as file:
        pairs = [orjson.loads(line) for line in file.read().splitlines()]
    return [pair[languages[0]] for pair in pairs], [pair[languages[1]] for pair in pairs]


@pytest.mark.parametrize("languages", [("en", "zh"), ("en", "id"), ("zh", "en")])
def test_real_pairs_are_kept_and_spoilt_ones_decided_as_in_plain_python(languages: tuple[str, str]) -> None:
    name = "-".join(sorted(languages, key=("en", "zh", "id").index))
    sources, targets = read_pairs(f"{name}.train.jsonl.zst", languages)
    decided = check_pairs(sources, targets, languages, PairRules())
    assert np.mean(decided > 0) < 0.01
    chance = random.Random(7)
    spoilt = list(targets)
    for number in range(len(spoilt)):
        spoil = chance.randrange(6)
        if spoil == 0:
            spoilt[number] = chance.choice(targets)
        elif spoil == 1:
            spoilt[number] = sources[number].upper()
        elif spoil == 2:
            spoilt[number] += chance.choice(["<br>", " 77", "\ufffd", "&nbsp;", " http://a.example/", "....."]) * 2
        elif spoil == 3:
            spoilt[number] *= chance.randrange(4)
    decided = check_pairs(sources, spoilt, languages, PairRules())
    assert decided.tolist() == plain_pairs(sources, spoilt, languages, PairRules())
    assert len(np.unique(decided)) >= 9


@pytest.mark.parametrize("block", [1, 50, 1 << 17])
def test_decisions_do_not_depend_on_the_batch(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, targets = (side[:600] for side in read_pairs("en-zh.train.jsonl.zst", ("en", "zh")))
    targets[::3] = [target * 3 for target in targets[::3]]
    targets[1::5] = sources[1::5]
    whole = check_pairs(sources, targets, ("en", "zh"), PairRules())
    lines = ["\n".join(sources[k : k + 1 + k % 9] * (1 + k % 3)) for k in range(200)]
    documents_whole = check_documents(lines, "en", DocumentRules())
    monkeypatch.setattr(columns, "_BLOCK", block)
    cuts = [0, 0, 1, 2, 100, 257, 600]
    parts = [
        check_pairs(sources[start:stop], targets[start:stop], ("en", "zh"), PairRules())
        for start, stop in pairwise(cuts)
    ]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert check_documents(lines, "en", DocumentRules()).tolist() == documents_whole.tolist()
    assert len(np.unique(whole)) > 2
    assert len(np.unique(documents_whole)) > 1


def test_scripts_are_those_of_unicode() -> None:
    letters = "".join(filter(str.isalpha, map(chr, range(sys.maxunicode + 1))))
    for script in scripts.SCRIPT_RANGES:
        codes = [code for first, last in script_ranges(script) for code in range(first, last + 1)]
        ours = set(filter(str.isalpha, map(chr, codes)))
        theirs = set(regex.findall(rf"\p{{Script={script}}}", letters))
        assert ours - theirs <= set("ー\uff70")  # common to Hiragana and Katakana
        assert theirs <= ours, script


def test_languages_and_their_scripts() -> None:
    assert scripts_of("en") == scripts_of("id") == ("Latin",)
    assert scripts_of("zh") == scripts_of("zh-CN") == scripts_of("ZH_tw") == ("Bopomofo", "Han")
    assert scripts_of("sr") == ("Latin", "Cyrillic")
    assert scripts_of("zho") == scripts_of("chi") == scripts_of("cmn_Hant") == scripts_of("zh-yue") == scripts_of("zh")
    assert scripts_of("ind") == scripts_of("pt-BR") == scripts_of("zh-Latn") == scripts_of("xx-Latn") == ("Latin",)
    assert scripts_of("sr-Cyrl") == ("Cyrillic",)
    assert scripts_of("jpn") == scripts_of("ja-Jpan")
    assert scripts_of("xx") == scripts_of("") == scripts_of(None) == ()


def test_a_folded_text_has_letters_and_digits_only() -> None:
    assert fold("  Straße_ 12, NO. 3!\n") == "strasse12no3"
    assert fold("a\u00adb\u200b\ufeffc\u3164d\uffa0e") == "abcde"


@given(texts)
def test_texts_that_fold_to_the_same_have_equal_sums(text: str) -> None:
    table = columns.fold_table()
    sums = [int(table[[ord(character) for character in form]].sum(dtype=np.uint32)) for form in (text, fold(text))]
    assert sums[0] == sums[1]


def test_an_unknown_or_impossible_rule_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_ratio"):
        PairRules(max_ratio=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="min_script_share"):
        DocumentRules(min_script_share=1.5)


def test_sides_of_unequal_number_are_refused() -> None:
    message = "2 sources and 1 targets: each source needs a target"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_pairs(["a", "b"], ["c"], ("en", "id"), PairRules())
