"""How fast the rules decide on pairs, against the same rules in plain Python: `python benchmarks/rules.py`.

Both decide on the same pairs (a small file is repeated until 100,000 are reached) in batches of 1,000, as a build reads
them, in one thread. Every decision must be equal. Pairs/s, median of runs in rotated order. The plain rules go pair by
pair and stop at the first rule that drops it. Where a rule needs the text itself (links, markup, digits, repeats, equal
sides), both call the same function: the plain rules on every pair, ours on the few candidates of the columns.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache

import numpy as np
import orjson
import zstandard
from numpy.typing import NDArray

from dataengine.characters import without_invisible
from dataengine.cleaning.rules.columns import fold
from dataengine.cleaning.rules.digits import digits_differ, few_digits_in_common, without_arguments
from dataengine.cleaning.rules.pairs import PAIR_RULES, TERMINALS, check_pairs, find_links, has_markup, repeats
from dataengine.cleaning.rules.scripts import DENSE_SCRIPTS, script_ranges, scripts_of
from dataengine.cleaning.rules.settings import DocumentRules, PairRules

BATCH = 1000


def main() -> None:
    """Print the table, or a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="demo/data/en-zh.train.jsonl.zst", help=".jsonl.zst (default: %(default)s)")
    parser.add_argument("--languages", default="en-zh", help="keys of the pairs, source first (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    source, target = options.languages.split("-")
    with zstandard.open(options.pairs, "rb") as file:
        pairs = [orjson.loads(line) for line in file.read().splitlines()]
    pairs *= -(-100_000 // len(pairs))
    sides = [pair[source] for pair in pairs], [pair[target] for pair in pairs]
    methods: dict[str, Callable[..., Sequence[int] | NDArray[np.uint8]]] = {"ours": check_pairs, "plain": plain_pairs}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    decisions: dict[str, NDArray[np.uint8]] = {}
    for run in range(options.runs):
        for name in sorted(methods, reverse=run % 2 == 1):
            begun = time.perf_counter()
            batches = [
                methods[name](sides[0][k : k + BATCH], sides[1][k : k + BATCH], (source, target), PairRules())
                for k in range(0, len(pairs), BATCH)
            ]
            seconds[name].append(time.perf_counter() - begun)
            decisions[name] = np.concatenate([np.asarray(batch, np.uint8) for batch in batches])
    ours, theirs = decisions["ours"], decisions["plain"]
    assert np.array_equal(ours, theirs), f"decisions differ at pairs {np.flatnonzero(ours != theirs)[:10].tolist()}"
    rates = {name: len(pairs) / statistics.median(seconds[name]) for name in methods}
    ratio = rates["ours"] / rates["plain"]
    if options.json:
        row = {"benchmark": "rules", "ours": rates["ours"], "unit": "pairs/s", "peer": "the same rules in plain Python"}
        print(json.dumps({**row, "peer_value": rates["plain"], "ratio": ratio}))
        return
    print(f"{'rules':12} {'ours':>10} {'plain Python':>13}  pairs/s")
    print(f"{options.languages:12} {rates['ours']:10,.0f} {rates['plain']:13,.0f} {ratio:7.1f}x")
    drops = np.bincount(ours, minlength=len(PAIR_RULES) + 1)[1:].tolist()
    dropped = ", ".join(f"{name} {count}" for name, count in zip(PAIR_RULES, drops, strict=True) if count)
    print(f"{len(pairs):,} pairs, decisions equal; dropped: {dropped or 'none'}")


def plain_pairs(
    sources: Sequence[str], targets: Sequence[str], languages: tuple[str, str], rules: PairRules
) -> list[int]:
    """`check_pairs`, pair by pair."""
    return [plain_pair(source, target, languages, rules) for source, target in zip(sources, targets, strict=True)]


def plain_pair(source: str, target: str, languages: tuple[str, str], rules: PairRules) -> int:
    """The rules in their order, for one pair."""
    name = first_rule(source, target, languages, rules)
    return PAIR_RULES.index(name) + 1 if name else 0


def first_rule(source: str, target: str, languages: tuple[str, str], rules: PairRules) -> str | None:
    """The name of the first rule that drops a pair."""
    for text in (source, target):
        if rules.min_characters is not None and len(without_invisible(text)) < rules.min_characters:
            return "length"
        if rules.max_characters is not None and len(text) > rules.max_characters:
            return "length"
    source, target = sides = without_invisible(source), without_invisible(target)
    if rules.drop_broken_characters and any(BROKEN.search(text) for text in sides):
        return "broken_characters"
    letters = [count_letters(text) for text in sides]
    if rules.min_letter_share is not None:
        for text, (weight, dense, marks) in zip(sides, letters, strict=True):
            solid = len("".join(text.split())) + 2 * dense
            if weight + marks < rules.min_letter_share * solid:
                return "few_letters"
    if rules.drop_identical_sides and fold(source) == fold(target) != "":
        return "identical_sides"
    if rules.min_script_share is not None:
        for text, language, (weight, _, _) in zip(sides, languages, letters, strict=True):
            found = count_letters_of(language, text)
            if found is not None and found < rules.min_script_share * weight:
                return "wrong_script"
    if rules.max_length_ratio is not None:
        shorter, longer = sorted(len(text.encode("utf-8", "surrogatepass")) for text in sides)
        if longer > rules.max_length_ratio * shorter + rules.length_slack:
            return "length_ratio"
    most = rules.max_missing_digits
    if most is not None and digits_differ(source, target, most):
        source_rest, target_rest = map(without_arguments, sides)
        if digits_differ(source_rest, target_rest, most):
            return "digit_mismatch"
    if rules.drop_link_mismatch and find_links(source) != find_links(target):
        return "link_mismatch"
    if rules.drop_markup and any(has_markup(text) for text in sides):
        return "markup"
    share = rules.max_repeated_share
    if share is not None and any(repeats(text, share) for text in sides):
        return "repetition"
    if rules.max_terminal_penalty is not None and terminal_penalty(source, target) > rules.max_terminal_penalty:
        return "terminal_punctuation"
    least = rules.min_digit_overlap
    if least is not None and few_digits_in_common(source, target, least):
        source_rest, target_rest = map(without_arguments, sides)
        if few_digits_in_common(source_rest, target_rest, least):
            return "surplus_digits"
    share = rules.max_copied_share
    if share is not None and longest_in_common(source, target) > share * min(map(len, sides)):
        return "copied_text"
    return None


def plain_document(text: str, language: str | None, rules: DocumentRules) -> int:
    """`check_documents`, one document in plain Python."""
    whole_length, text = len(text), without_invisible(text)
    solid = "".join(text.split())
    letters, dense, marks = count_letters(text)
    own = count_letters_of(language or "", text)
    broken = [c for c in solid if unicodedata.category(c) in ("Cc", "Co", "Cs") or c == "\ufffd"]
    symbols = [c for c in solid if c in "#…" or (unicodedata.category(c)[0] == "S" and c != "\ufffd")]
    words = text.split() if own is not None and language not in ("zh", "zh-TW", "ja", "th") else []
    mean = len(solid) / len(words) if words else None
    usual = {"ko": 3.5, "hi": 4.4, "fi": 8.6}.get(language or "", 5.3) / 5.3
    lines = [line for line in text.split("\n") if line.strip()]
    ending = sum(line.endswith(("...", "…")) for line in lines)
    stripped = [line.strip() for line in lines]
    again = sum(len("".join(line.split())) for k, line in enumerate(stripped) if line in stripped[:k])

    def over(value: float, share: float | None, whole: float) -> bool:
        return share is not None and value > share * whole

    drops = [
        (rules.min_characters is not None and len(text) < rules.min_characters)
        or (rules.max_characters is not None and whole_length > rules.max_characters),
        over(len(broken), rules.max_broken_share, len(solid)),
        rules.min_letter_share is not None and letters + marks < rules.min_letter_share * (len(solid) + 2 * dense),
        over(len(symbols), rules.max_symbol_share, len(solid)),
        rules.min_script_share is not None and own is not None and own < rules.min_script_share * letters,
        mean is not None
        and (
            (rules.min_word_length is not None and mean < rules.min_word_length * min(usual, 1))
            or (rules.max_word_length is not None and mean > rules.max_word_length * max(usual, 1))
        ),
        ending > 1 and over(ending, rules.max_ellipsis_lines, len(lines)),
        over(again, rules.max_repeated_lines, len(solid)),
        rules.drop_curly_braces and "{" in text,
        rules.drop_lorem_ipsum and "lorem ipsum" in text.lower(),
    ]
    return drops.index(True) + 1 if True in drops else 0


def terminal_penalty(source: str, target: str) -> int:
    """The number of which OpusFilter's TerminalPunctuationFilter takes the logarithm, for more marks."""
    marks, others = (sum(map(text.count, TERMINALS)) for text in (source, target))
    return abs(marks - others) + max(marks - 1, 0) + max(others - 1, 0)


def longest_in_common(source: str, target: str) -> int:
    """Characters of the longest piece that both sides have."""
    match = SequenceMatcher(None, source, target, autojunk=False).find_longest_match()
    return match.size


@lru_cache
def class_of(*scripts: str) -> re.Pattern[str]:
    """Runs of letters of some scripts."""
    ranges = [bounds for script in scripts for bounds in script_ranges(script)]
    return runs_of(filter(str.isalpha, (chr(code) for first, last in ranges for code in range(first, last + 1))))


def runs_of(characters: Iterable[str]) -> re.Pattern[str]:
    """Runs of some characters, as one character class of ranges."""
    codes = sorted(map(ord, characters))
    firsts = [code for code, before in zip(codes, [-9, *codes], strict=False) if code != before + 1]
    lasts = [code for code, after in zip(codes, [*codes[1:], -9], strict=True) if code != after - 1]
    return re.compile("[" + "".join(rf"\U{a:08x}-\U{b:08x}" for a, b in zip(firsts, lasts, strict=True)) + "]+")


BROKEN = runs_of(
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if character == "\ufffd" or (unicodedata.category(character) in ("Cc", "Co", "Cs") and not character.isspace())
)


def count(characters: re.Pattern[str], text: str) -> int:
    """The number of characters of a class in a text."""
    return sum(map(len, characters.findall(text)))


def count_letters(text: str) -> tuple[int, int, int]:
    """Letters, where one of a dense script counts as three; letters of dense scripts; marks."""
    kinds = Counter(map(unicodedata.category, text))
    dense = count(class_of(*DENSE_SCRIPTS), text)
    letters = kinds["Lu"] + kinds["Ll"] + kinds["Lt"] + kinds["Lm"] + kinds["Lo"]
    return letters + 2 * dense, dense, kinds["Mn"] + kinds["Mc"] + kinds["Me"]


def count_letters_of(language: str, text: str) -> int | None:
    """Letters of the scripts of a language; a dense letter counts as three."""
    scripts = scripts_of(language)
    if not scripts:
        return None
    dense = [script for script in scripts if script in DENSE_SCRIPTS]
    letters = count(class_of(*scripts), text)
    return letters + 2 * count(class_of(*dense), text) if dense else letters


if __name__ == "__main__":
    main()
