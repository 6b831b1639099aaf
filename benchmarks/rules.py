"""How fast cleaning decides, against the same decisions one by one: `python benchmarks/rules.py`.

Three rows: the rules for pairs; cleaning pairs (rules, language identification, keys of exact duplicates); and cleaning
documents (the same, and MinHash keys of near duplicates). All decide on the same records, sentences of the length of
news and documents, in batches as a build reads them, in one thread; small files are repeated. The peer takes one record
after the other: plain Python rules, which stop at the first rule that drops a record, a call of fastText for each text,
and rensa's MinHash. Every decision must be equal. Records per CPU second, median of runs in turn.

Where a rule needs the text itself (links, markup, digits, repeats, equal sides), both call the same function: the plain
rules on every pair, ours on the few candidates of the columns.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import orjson
import rensa
import xxhash
import zstandard
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rows import Row, cpu_seconds, medians, show
from dataengine.build.clean import Cleaning, judge
from dataengine.build.measures import Texts, make_keys
from dataengine.characters import without_invisible
from dataengine.cleaning import language, minhash
from dataengine.cleaning.dedup import normalize
from dataengine.cleaning.rules.columns import fold
from dataengine.cleaning.rules.digits import digits_differ, few_digits_in_common, without_arguments
from dataengine.cleaning.rules.documents import DOCUMENT_RULES
from dataengine.cleaning.rules.pairs import PAIR_RULES, TERMINALS, check_pairs, find_links, has_markup, repeats
from dataengine.cleaning.rules.scripts import DENSE_SCRIPTS, script_ranges, scripts_of
from dataengine.cleaning.rules.settings import DocumentRules, PairRules
from dataengine.records.types import Records

BATCH = 4096
LEAST_SCORE, SIMILARITY = 0.3, 0.8
Columns = tuple[list[str], ...]
Decide = Callable[[Columns], Sequence[int] | NDArray[np.uint8]]


def main() -> None:
    """Print a row for each question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="demo/data/en-zh.train.jsonl.zst", help=".jsonl.zst (default: %(default)s)")
    parser.add_argument("--languages", default="en-zh", help="keys of the pairs, source first (default: %(default)s)")
    parser.add_argument("--least-words", type=int, default=10, help="of the source of a pair (default: %(default)s)")
    parser.add_argument("--documents", default="demo/data/mono.en.jsonl.zst", help="English (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    options = parser.parse_args()
    codes = tuple(options.languages.split("-"))
    kept = [pair for pair in read(options.pairs) if len(pair[codes[0]].split()) >= options.least_words]
    pairs = tuple([pair[code] for pair in kept * -(-40_000 // len(kept))] for code in codes)
    records = read(options.documents)
    documents = ([record["text"] for record in records * -(-4_000 // len(records))],)
    fasttext = f"fasttext-predict {version('fasttext-predict')} a text"
    found = compare("rules_pairs", "pairs/s", "plain Python", pairs, options, lambda sides: ours_rules(sides, codes),
                    lambda sides: plain_pairs(*sides, codes, PairRules()))  # fmt: skip
    compare("clean_pairs", "pairs/s", f"plain Python, {fasttext}", pairs, options, lambda sides: ours(sides, codes),
            lambda sides: plainly(sides, codes))  # fmt: skip
    peer = f"plain Python, {fasttext}, rensa {version('rensa')}"
    compare("clean_documents", "documents/s", peer, documents, options, lambda texts: ours(texts, ("en",)),
            lambda texts: plainly(texts, ("en",)))  # fmt: skip
    if not options.json:
        drops = np.bincount(found[: len(kept)], minlength=len(PAIR_RULES) + 1)[1:].tolist()
        dropped = ", ".join(f"{name} {count}" for name, count in zip(PAIR_RULES, drops, strict=True) if count)
        print(f"{len(kept):,} different pairs; dropped by rules: {dropped or 'none'}")


def read(path: str) -> list[dict[str, str]]:
    """The records of a file."""
    with zstandard.open(path, "rb") as file:
        return [orjson.loads(line) for line in file.read().splitlines()]


def compare(
    name: str, unit: str, peer: str, texts: Columns, options: argparse.Namespace, ours: Decide, theirs: Decide
) -> NDArray[np.uint8]:
    """Show a row; return the decisions, which are equal."""
    decisions: dict[str, NDArray[np.uint8]] = {}

    def measure(who: str, decide: Decide) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            begun = cpu_seconds()
            batches = [decide(tuple(column[k : k + BATCH] for column in texts)) for k in range(0, len(texts[0]), BATCH)]
            used = cpu_seconds() - begun
            decisions[who] = np.concatenate([np.asarray(batch, np.uint8) for batch in batches])
            return {"seconds": used}

        decide(tuple(column[:8] for column in texts))  # loads models and tables
        return run

    used = medians(options.runs, {"ours": measure("ours", ours), "peer": measure("peer", theirs)})
    differ = np.flatnonzero(decisions["ours"] != decisions["peer"])
    assert not len(differ), f"{name}: decisions differ at records {differ[:10].tolist()}"
    mine, others = used["ours"]["seconds"], used["peer"]["seconds"]
    count = len(texts[0])
    row = Row(name, count / mine, unit, peer, count / others, others / mine, mine, others, options.runs)
    show(row, as_json=options.json)
    return decisions["ours"]


def ours_rules(sides: Columns, languages: tuple[str, ...]) -> NDArray[np.uint8]:
    """The rules for pairs."""
    source, target = languages
    return check_pairs(*sides, (source, target), PairRules())


def ours(texts: Columns, languages: tuple[str, ...]) -> NDArray[np.uint8]:
    """Rules, languages and keys as in a build."""
    paired = len(texts) == 2
    rules = PairRules() if paired else DocumentRules()
    cleaning = Cleaning(
        languages=languages,
        rules=rules.model_dump(mode="json"),
        min_language_score=LEAST_SCORE,
        subsets=(),
        dedup=("pair",) if paired else ("text",),
        near_dedup=None if paired else SIMILARITY,
        evaluation=None,
        evaluation_paths=(),
        scores={},
        score_model=None,
    )
    batch = Records(list(range(len(texts[0]))), texts, [], [])
    seen = Texts(batch)
    make_keys(seen, cleaning.dedup, languages)
    if not paired:
        minhash.band_keys(seen.normal[0], SIMILARITY, seen.records, normal=True)
    return judge(batch, cleaning)


def plainly(texts: Columns, languages: tuple[str, ...]) -> list[int]:
    """Rules, languages and keys, one record after the other."""
    decided = []
    for record in zip(*texts, strict=True):
        paired = len(record) == 2
        if paired:
            dropped = plain_pair(*record, (languages[0], languages[1]), PairRules())
        else:
            dropped = plain_document(record[0], languages[0], DocumentRules())
        for number, (text, code) in enumerate(zip(record, languages, strict=True)):
            if not dropped and plain_score(text, code) < LEAST_SCORE:
                rules = len(PAIR_RULES) if paired else len(DOCUMENT_RULES)
                dropped = rules + number + 1
        if not dropped:
            whole = "\n".join(map(normalize, record))
            xxhash.xxh3_128_digest(whole.encode())
            if not paired:
                words = re.findall(r"\w+", whole)
                hasher = rensa.RMinHash(minhash.PERMUTATIONS, minhash.MINHASH_SEED)
                hasher.update([" ".join(words[k : k + 5]) for k in range(max(len(words) - 4, 1))])
                hasher.digest()
        decided.append(dropped)
    return decided


def plain_score(text: str, code: str) -> float:
    """The probability of a language, by a call of fastText; infinite for a text that is too short to judge."""
    letters = language._letters(text)
    if letters is None:
        return float("inf")
    labels, probabilities = language._load_model().predict(letters, k=-1, threshold=0.01)
    accepted = {f"__label__{one}" for one in language.model_codes(code)}
    return float(sum(p for label, p in zip(labels, probabilities, strict=True) if label in accepted))


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
