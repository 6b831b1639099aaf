"""What the name of a file or a key says of languages and of evaluation."""

from __future__ import annotations

import re
from typing import NamedTuple

from dataengine.records.archives import SUFFIXES as ARCHIVES
from dataengine.records.formats import SUFFIXES
from dataengine.text.language_codes import base_language
from dataengine.text.language_names import ENGLISH_NAMES

# Codes of languages that are more often something else: they count only where the text agrees.
_OTHER_WORDS = (
    "am an as be ch co ee he hi ho id ie ii in io is it la lo may me mi ml mo mt my na no om or os per pi ps rm run sc "
    "se so src st su tar ti to ts ty arm bar dan est mal mon que red sub tam tel doc"
)
_WORDS = frozenset(_OTHER_WORDS.split())
_BY_NAME = {name.casefold(): code for code, name in ENGLISH_NAMES.items()}
_EVALUATION = re.compile(
    r"(?<![a-z])(dev|devtest|devset|test|testset|valid|validation|val|eval|heldout|flores\d*|newstest|newsdev|ntrex)(?![a-z])"
)
_TEST = re.compile(r"(?<![a-z])(devtest|test|testset|newstest)(?![a-z])")
_CODE = re.compile(r"[A-Za-z]{2,3}(?:[-_](?:[A-Z][a-z]{3}|[A-Z]{2}))?")


class Token(NamedTuple):
    """A part of a name that may be the code of a language."""

    start: int
    end: int
    language: str
    strong: bool  # in a usual place for codes, and not a common word


def known_code(text: str) -> str | None:
    """The language of a code such as zh, zho, zh-CN, zho_Hans; None for a text that is not a code."""
    if not _CODE.fullmatch(text):
        return None
    first = re.split("[-_]", text)[0]
    base = base_language(text)
    return base if base in ENGLISH_NAMES and (len(first) == 2 or base != first.lower()) else None


def key_language(key: str) -> str | None:
    """The language that a key names: en, translation.en, text_en, sentence_eng_Latn, English; None if it names none."""
    last = key.rpartition(".")[2]
    if code := known_code(last) or _BY_NAME.get(last.casefold()):
        return code
    parts = [part for part in re.split(r"[-_ ]", last) if part]
    for at in (len(parts) - 1, 0, len(parts) - 2):
        if 0 <= at < len(parts) and len(parts) > 1:
            code = known_code(parts[at]) or _BY_NAME.get(parts[at].casefold())
            if code and parts[at].lower() not in _WORDS - {"id"}:
                return code
    return None


def is_doubtful(key: str) -> bool:
    """Whether a key that names a language may as well be a usual word, such as id or no."""
    return key.rpartition(".")[2].lower() in _WORDS


def base_name(path: str) -> str:
    """The last part of a path without the suffixes of archives and formats."""
    name = path.rpartition("/")[2]
    for suffixes in (ARCHIVES, SUFFIXES):
        for suffix in suffixes:
            if name.lower().endswith(suffix):
                name = name[: -len(suffix)]
                break
    return name


def name_tokens(name: str) -> list[Token]:
    """The codes of languages in a name (see `base_name`), in their order; those of a pair such as en-zh are not."""
    pairs = [match.span() for match in _pair_matches(name)]
    found = []
    for match in re.finditer(r"(?<![A-Za-z])[A-Za-z]{2,3}(?:[-_](?:[A-Z][a-z]{3}|[A-Z]{2}))?(?![A-Za-z])", name):
        code = known_code(match[0])
        if code is None or any(start <= match.start() < end for start, end in pairs):
            continue
        between_dots = name[: match.start()][-1:] in ("", ".") and name[match.end() :][:1] in ("", ".")
        found.append(Token(*match.span(), code, between_dots and match[0].lower() not in _WORDS))
    return found


def name_pair(name: str) -> tuple[str, str] | None:
    """The two languages that a name has as in news.en-zh; None if there are none."""
    found = _pair_matches(name)
    return tuple(known_code(code) for code in found[-1].groups()) if found else None  # type: ignore[return-value]


def _pair_matches(name: str) -> list[re.Match[str]]:
    found = []
    for match in re.finditer(r"(?<![A-Za-z])([a-z]{2,3})[-_]([a-z]{2,3})(?![A-Za-z])", name):
        one, other = map(known_code, match.groups())
        if one and other and one != other and not set(match.groups()) <= _WORDS:
            found.append(match)
    return found


def evaluation_role(path: str) -> str | None:
    """`dev` or `test` for a file that is named like an evaluation set; None for any other."""
    *folders, name = path.lower().split("/")
    folder = folders[-1] if folders and _EVALUATION.fullmatch(folders[-1]) else ""
    if not (folder or _EVALUATION.search(name)):
        return None
    return "test" if _TEST.search(name if _EVALUATION.search(name) else folder) else "dev"
