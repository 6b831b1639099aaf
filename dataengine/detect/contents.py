"""Of a sampled file: documents or pairs, which keys hold the texts, and in which languages."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dataengine.characters import is_blank
from dataengine.cleaning.language import is_known, judge_languages, model_codes
from dataengine.detect.names import base_name, is_doubtful, key_language, name_pair, name_tokens
from dataengine.detect.samples import Sample
from dataengine.text.language_codes import base_language

JUDGED = 200  # texts of a key that are judged
_FEWEST = 3  # texts that must be long enough to be judged
_FEWEST_LETTERS = 30  # of a document, on average, in a table whose keys and language say nothing
_SIDES = (("src", "tgt"), ("source", "target"), ("src", "trg"), ("original", "translation"), ("sentence1", "sentence2"))
_TEXT_KEYS = ("text", "content", "body", "document", "raw_content")
_WIDE = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
_ADDRESS = re.compile(r"\w+://\S+|\S+@\S+|\d{4}-\d\d-\d\dT?\S*|[0-9a-f-]{16,}")


@dataclass(frozen=True)
class Heard:
    """What the identifier of languages takes texts for."""

    judged: int  # texts that are long enough
    shares: dict[str, float]  # by the identifier's codes; they sum to at most 1

    def share(self, language: str) -> float:
        """The part of the texts that is in a language, or in one that is hard to distinguish from it."""
        return sum(self.shares.get(code, 0.0) for code in model_codes(language))

    @property
    def likeliest(self) -> str | None:
        """The language of most texts; None if too few can be judged or no language has 60 %."""
        if self.judged < _FEWEST or not self.shares:
            return None
        best = max(self.shares, key=lambda code: self.shares[code])
        code = base_language(best)
        return code if self.share(code) >= 0.6 else None

    def others(self, language: str) -> str:
        """Which other languages there are, in words; "" if none has 2 %."""
        rest = Counter({c: s for c, s in self.shares.items() if c not in model_codes(language) and s >= 0.02})
        return ", ".join(f"{share:.0%} {code}" for code, share in rest.most_common(2))


@dataclass(frozen=True)
class Contents:
    """What a file holds. A record of documents has one key, one of pairs two or more."""

    kind: str  # documents or pairs
    keys: tuple[str, ...]
    languages: tuple[str | None, ...]  # of each key
    notes: tuple[str, ...] = ()  # what is uncertain
    lists: bool = False  # of pairs: a text may be a list of sentences


def listen(texts: Sequence[str]) -> Heard:
    """Judge the languages of up to `JUDGED` texts, chosen at random, each time alike."""
    places = sorted(random.Random(0).sample(range(len(texts)), min(JUDGED, len(texts))))
    judged = [shares for shares in judge_languages([texts[place][:2000] for place in places]) if shares]
    total: Counter[str] = Counter()
    for shares in judged:
        total.update(shares)
    return Heard(len(judged), {code: share / len(judged) for code, share in sorted(total.items())} if judged else {})


def look(sample: Sample) -> Contents | None:
    """What the records of a sample hold; None if no key holds text."""
    columns = text_columns(sample)
    if not columns:
        return None
    heard = {key: listen(texts) for key, texts in columns.items()}
    lists = {key for row in sample.rows for key in columns if isinstance(row.get(key), list)}
    if pairs := _pairs(sample, columns, heard):
        return replace(pairs, lists=not lists.isdisjoint(pairs.keys))
    columns = {key: texts for key, texts in columns.items() if key not in lists}
    return _documents(sample, columns, heard) if columns else None


def text_of(value: object) -> str | None:
    """A text, or a list of sentences as one; None for any other value, and for a text that shows nothing."""
    if isinstance(value, list) and all(isinstance(sentence, str) for sentence in value):
        value = "\n".join(value)
    return value if isinstance(value, str) and not is_blank(value) else None


def text_columns(sample: Sample) -> dict[str, list[str]]:
    """The texts of each key that holds text, in the order of the keys."""
    values: dict[str, list[str]] = {}
    for row in sample.rows:
        for key, value in row.items():
            if (text := text_of(value)) is not None:
                values.setdefault(key, []).append(text)
    if sample.format in ("text", "tmx"):
        return values
    return {key: texts for key, texts in values.items() if _is_text(texts, len(sample.rows))}


def _is_text(texts: Sequence[str], records: int) -> bool:
    """Whether values are text: in half of the records, mostly different, of several words or in a script without
    spaces; addresses, dates and numbers are not."""
    bare = [_ADDRESS.sub("", text[:2000]) for text in texts[:1000]]
    words = sum(1 for text in bare if len(re.findall(r"[^\W\d_]{2,}", text)) > 1 or len(_WIDE.findall(text)) > 1)
    return len(texts) >= 0.5 * records and len(set(texts)) > 0.2 * len(texts) and words >= 0.3 * len(texts[:1000])


def _pairs(sample: Sample, columns: dict[str, list[str]], heard: dict[str, Heard]) -> Contents | None:
    named: dict[str, str] = {}  # language -> key
    notes = []
    for key in columns:
        code = key_language(key)
        if code is None or (is_doubtful(key) and not _agrees(heard[key], code, 0.3)):
            continue
        if code not in named or len(columns[key]) > len(columns[named[code]]):
            if code in named:
                notes.append(f"{key} and {named[code]} both name {code}: {key}, which has more texts, is used")
            named[code] = key
        else:
            notes.append(f"{key} and {named[code]} both name {code}: {named[code]} is used")
    if len(named) > 1:
        for code, key in named.items():
            notes += _conflict(f"key {key}", code, heard[key])
        return Contents("pairs", tuple(named.values()), tuple(named), tuple(notes))
    if sample.format in ("text", "tmx"):
        return None
    if sides := _sides(sample, columns, heard):
        keys, codes, said = sides
        return Contents("pairs", keys, codes, said)
    return None


def _sides(
    sample: Sample, columns: dict[str, list[str]], heard: dict[str, Heard]
) -> tuple[tuple[str, str], tuple[str, str], tuple[str, ...]] | None:
    """The two keys of pairs whose names are of no language: source and target, or the only two texts, in two."""
    small = {key.rpartition(".")[2].casefold(): key for key in columns}
    known = [(small[one], small[other]) for one, other in _SIDES if one in small and other in small]
    if not known and len(columns) == 2:
        one, other = columns
        lengths = [sum(map(len, columns[key])) / len(columns[key]) for key in (one, other)]
        known = [(one, other)] if max(lengths) < 6 * min(lengths) else []
    if not known:
        return None
    keys = known[0]
    found = [heard[key].likeliest for key in keys]
    stated = name_pair(base_name(sample.file.path)) or name_pair("/".join(sample.file.path.split("/")[-2:-1]))
    if stated:
        straight = sum(heard[key].share(code) for key, code in zip(keys, stated, strict=True))
        turned = sum(heard[key].share(code) for key, code in zip(keys, stated[::-1], strict=True))
        codes = stated if straight >= turned else stated[::-1]
        conflicts = [_conflict("the file name", code, heard[key]) for key, code in zip(keys, codes, strict=True)]
        return keys, codes, tuple(line for lines in conflicts for line in lines)
    one_code, other_code = found
    if one_code is None or other_code is None or one_code == other_code:
        return None
    said = [
        f"{code} of key {key} is a guess by its text ({heard[key].share(code):.0%} of {heard[key].judged} texts)"
        for key, code in zip(keys, (one_code, other_code), strict=True)
    ]
    return keys, (one_code, other_code), tuple(said)


def _documents(sample: Sample, columns: dict[str, list[str]], heard: dict[str, Heard]) -> Contents | None:
    """Documents: the key with most letters a record, or a usual name that has at least half as many.

    None for short texts of no certain language under a key that is not a usual one: a table of names or numbers.
    """
    letters = {
        key: sum(len(re.findall(r"[^\W\d_]", _ADDRESS.sub("", text[:2000]))) for text in texts[:1000])
        for key, texts in columns.items()
    }
    best = max(letters, key=lambda key: letters[key])
    usual = [key for key in _TEXT_KEYS if letters.get(key, 0) >= 0.5 * letters[best]]
    key = usual[0] if usual else best
    others = [other for other in columns if other != key]
    notes = [f"the text is read from {key}, not from {', '.join(others)}"] if others else []
    language, said = name_language(sample, key, heard[key])
    if language is None and not usual and letters[key] < _FEWEST_LETTERS * min(len(columns[key]), 1000):
        return None
    return Contents("documents", (key,), (language,), (*notes, *said))


def name_language(sample: Sample, key: str, heard: Heard) -> tuple[str | None, list[str]]:
    """The language of documents, by key, file and folder names, checked by the text; else by the text alone."""
    folder = sample.file.path.split("/")[-2:-1]
    tokens = [token for part in folder for token in name_tokens(part) if token.end - token.start == len(part)]
    tokens += name_tokens(base_name(sample.file.path))
    strong = [token.language for token in tokens if token.strong]
    if sample.format != "text" and (code := key_language(key)) and not is_doubtful(key):
        strong.append(code)
    if strong:
        return strong[-1], _conflict("the name", strong[-1], heard)
    for token in reversed(tokens):
        if _agrees(heard, token.language, 0.5):
            return token.language, []
    found = heard.likeliest
    if found:
        rest = heard.others(found)
        said = f"{found} is a guess from {heard.judged} texts" + (f"; {rest}" if rest else "")
        return found, [said]
    mixed = ", ".join(f"{share:.0%} {code}" for code, share in Counter(heard.shares).most_common(3))
    said = f"no language has most of {heard.judged} texts: {mixed}"
    return None, [said if mixed else "the texts are too short to guess a language"]


def _agrees(heard: Heard, code: str, least: float) -> bool:
    return heard.judged >= 1 and heard.share(code) >= least


def _conflict(place: str, code: str, heard: Heard) -> list[str]:
    """What to say if a name says a language and the text another."""
    other = heard.likeliest
    if not is_known(code) or other is None or heard.share(code) >= 0.5 or other in model_codes(code):
        return []
    return [f"{place} says {code}, but the text looks like {other} ({heard.share(other):.0%} of {heard.judged} texts)"]


def alike(one: Sequence[str], other: Sequence[str]) -> float:
    """How much the lengths of lines go together, -1 to 1: near 0 for texts that are not translations of each other."""
    lengths = [(math.log1p(len(a)), math.log1p(len(b))) for a, b in zip(one, other, strict=False)]
    count = len(lengths)
    means = [sum(column) / count for column in zip(*lengths, strict=True)]
    centred = [(a - means[0], b - means[1]) for a, b in lengths]
    spread = math.sqrt(sum(a * a for a, _ in centred) * sum(b * b for _, b in centred))
    return sum(a * b for a, b in centred) / spread if spread else 0.0
