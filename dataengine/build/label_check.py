"""Check from a sample of each source, before a build, whether texts are in their stated language.

Records are short and mixed with names and code, so language identification of one record is unreliable. The check joins
the beginnings of several records to pieces of about 250 bytes. lid.176 identifies 99 % of such pieces of software
messages, manuals and poetry correctly. A file is reported if most of its pieces are clearly in another language, or
have almost no letters of their own scripts. A report changes no byte and stops no build.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from os.path import dirname
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from dataengine.build.units import Reading
from dataengine.characters import escape_controls, one_line
from dataengine.cleaning.language import is_known, judge_languages, model_codes
from dataengine.cleaning.rules.columns import script_shares
from dataengine.cleaning.rules.scripts import scripts_of
from dataengine.errors import InputError, stream_key
from dataengine.records.types import RecordFormat, SourcePart
from dataengine.text.language_codes import base_language, meant_language

_FILES = 16  # files of a stream to check
_MORE_FILES = 256  # further files to check if one of the first is wrong
_DESCRIBED = 8  # wrong files with a note of their own; the others are named together
_RECORDS = 400  # of a stream, about
_PIECES = 48  # of a side of a stream, about
_PIECE = 250  # bytes
_BEGINNING = 200  # characters of a record
_FEWEST = 3  # pieces of a file for a verdict
_MOST = 0.6  # share of wrong pieces for a report
_DOUBTED, _SURE = 0.1, 0.7  # probability of the stated language below, of another above
_EXCERPT = 60  # characters

# Languages that lid.176 does not distinguish well enough to contradict a label.
_NEIGHBOURS = [
    set(group.split())
    for group in (
        "id ms jv su min",
        "bs hr sh sr",
        "zh yue wuu",
        "no nb nn da",
        "es an ast ca gl mwl oc pt",
        "de als bar gsw ksh lb nds pfl",
        "nl af fy li nds vls zea",
        "it co eml fur lij lmo nap pms rm sc scn vec",
        "fr frp oc wa",
        "en sco",
        "tl fil bcl cbk ceb hil ilo pam war",
        "hi bh bho gom mai mr ne new sa",
        "ar acm aeb apc arq ary arz",
        "fa ckb glk ku lrc mzn ps",
        "ur pa pnb sd skr",
        "az azb tr",
        "ba tt",
        "cs sk",
        "dsb hsb",
        "be ru rue uk",
        "ru ce cv kv mhr mrj",
        "bg mk",
        "fo is",
        "bo dz",
        "am ti",
    )
]

T = TypeVar("T")
Paths = tuple[str, ...]  # of a file, or of the files of a Moses corpus


def check_labels(
    name: str,
    parts: Sequence[SourcePart],
    form: RecordFormat,
    languages: Sequence[str],
    rules: Mapping[str, object] | None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Notes on the languages of a stream. `languages` are the codes of a record's texts, `names` the names of some.

    A note for each file that is mostly in another language or has exchanged sides, for each rule (of `rules`, the
    fields of PairRules or DocumentRules) that does not apply because nothing is known of a language, and for each
    language that cannot be checked. Reads the beginning of at most 16 files, spread over the folders, in about 0.2 s,
    and of up to 256 more if one of these is wrong. A file that cannot be read gives no note; the build reports it.
    """
    notes = _unknown_languages(name, languages, names, documents=not form.languages)
    notes += _rules_without_language(name, languages, rules, documents=not form.languages)
    if not any(is_known(code) or scripts_of(code) for code in languages):
        return notes
    files = _files(parts)
    chosen = _choose(list(files))
    looked = _look(chosen, files, form, languages)
    if any(any(one.found) for one in looked):  # others may be wrong as well
        rest = set(files) - set(chosen)
        looked += _look(_spread([paths for paths in files if paths in rest], _MORE_FILES), files, form, languages)
    wrong = [one for one in looked if any(one.found)]
    others_right = any(one.enough and not any(one.found) for one in looked)
    for one in wrong[:_DESCRIBED]:
        notes += _describe(name, one.part, form, languages, one.records, one.found, others_right)
    if more := [" and ".join(one.part.paths) for one in wrong[_DESCRIBED:]]:
        notes.append(f"stream '{name}': {len(more)} more files look wrong: {', '.join(more)}")
    if wrong and len(looked) < len(files):
        notes.append(f"stream '{name}': checked {len(looked):,} of {len(files):,} files; others may be wrong, too")
    return notes


@dataclass(frozen=True)
class _Looked:
    """A checked file: some records, and the finding for each of its languages.

    `enough`: the records suffice for a verdict.
    """

    part: SourcePart
    records: list[_Record]
    found: list[_Finding | None]
    enough: bool


def _look(
    chosen: Sequence[Paths], files: Mapping[Paths, list[SourcePart]], form: RecordFormat, languages: Sequence[str]
) -> list[_Looked]:
    """Check some files of a stream."""
    groups = [_spread(files[paths], max(1, _FILES // len(chosen))) for paths in chosen]
    pieces = max(_FEWEST + 1, _PIECES // max(len(groups), 1))
    count = max(_RECORDS // max(sum(map(len, groups)), 1), 25)
    with ThreadPoolExecutor(8) as pool:  # a bucket answers slowly
        read = [[pool.submit(_read, part, form, count) for part in group] for group in groups]
    looked = []
    for group, jobs in zip(groups, read, strict=True):
        records = [record for job in jobs for record in job.result()]
        texts = [[record.texts[k] for record in records] for k in range(len(languages))]
        found = [_judge(column, code, pieces) for column, code in zip(texts, languages, strict=True)]
        enough = all(len(_pieces(column, pieces)) >= _FEWEST for column in texts)
        looked.append(_Looked(group[0], records, found, enough))
    return looked


@dataclass(frozen=True)
class _Record:
    line: int | None  # in its file; None if the lines before it are not counted
    texts: tuple[str, ...]


@dataclass(frozen=True)
class _Finding:
    """Most of a column is not in its language."""

    language: str | None  # the model's code of the likely language; None if not clear
    wrong: int  # pieces
    pieces: int
    records: tuple[int, ...]  # of the first wrong pieces


def _unknown_languages(name: str, languages: Sequence[str], names: Mapping[str, str], *, documents: bool) -> list[str]:
    """A note for each code without a known script that the model does not know either: its texts are not checked."""
    notes = []
    for code in languages:
        if code and not is_known(code) and not scripts_of(code):
            what = "its texts are" if documents else f"side {code} of its pairs is"
            meant = meant_language(code, names.get(code, ""))
            notes.append(
                f"stream '{name}': '{code}' is not a language code that can be checked, so {what} not checked"
                + (f". {meant}" if meant else "")
            )
    return notes


def _rules_without_language(
    name: str, languages: Sequence[str], rules: Mapping[str, object] | None, *, documents: bool
) -> list[str]:
    """A note for each language without known scripts, if a rule depends on them."""
    if rules is None:
        return []
    keys = [key for key in ("min_script_share", "min_word_length", "max_word_length") if rules.get(key) is not None]
    notes = []
    for code in languages:
        if code and keys and not scripts_of(code):
            words = " and ".join(filter(None, [", ".join(keys[:-1]), keys[-1]]))
            is_code = not meant_language(code) and re.fullmatch("[A-Za-z]{2,3}", code)
            notes.append(
                f"stream '{name}': the scripts of language '{code}' are not known, so {words} "
                f"{'does' if len(keys) == 1 else 'do'} not apply to it"
                + (f". Name its script if they should, as in language: {code}-Latn" if documents and is_code else "")
            )
    return notes


def _spread(values: Sequence[T], count: int) -> list[T]:
    """At most `count` of the values, the first and the last among them, evenly spaced."""
    if len(values) <= count:
        return list(values)
    return [values[k] for k in np.unique(np.linspace(0, len(values) - 1, count).round().astype(int)).tolist()]


def _files(parts: Sequence[SourcePart]) -> dict[Paths, list[SourcePart]]:
    """The parts of each file."""
    files: dict[Paths, list[SourcePart]] = {}
    for part in parts:
        files.setdefault(part.paths, []).append(part)
    return files


def _choose(files: Sequence[Paths]) -> list[Paths]:
    """The files to check, spread over the folders."""
    folders: dict[str, list[Paths]] = {}
    for paths in files:
        folders.setdefault(dirname(paths[0]), []).append(paths)
    chosen = _spread(list(folders.values()), _FILES)
    return [paths for folder in chosen for paths in _spread(folder, max(1, _FILES // len(chosen)))]


def _read(part: SourcePart, form: RecordFormat, count: int) -> list[_Record]:
    """The first records of a part, as far as it can be read. For plain text the first lines, regardless of `split`."""
    found: list[_Record] = []
    reading = Reading(part, replace(form, label_key=None, split="line"), lambda size: None)
    with suppress(InputError, OSError), closing(reading.batches(count)) as batches:
        for batch in batches:
            lines = batch.lines if part.start == 0 else [None] * len(batch.lines)
            found += map(_Record, lines, zip(*batch.texts, strict=True))
            if len(found) >= count:
                break
    return found[:count]


def _pieces(texts: Sequence[str], count: int) -> list[list[int]]:
    """The numbers of the texts in each piece; at most `count` pieces, spread over all texts."""
    pieces: list[list[int]] = [[]]
    size = 0
    for number, text in enumerate(texts):
        pieces[-1].append(number)
        size += len(text[:_BEGINNING].encode(errors="replace"))
        if size >= _PIECE:
            pieces.append([])
            size = 0
    return _spread(pieces[:-1], count)


def _neighbours(code: str) -> set[str]:
    """A language and those that the model does not distinguish from it."""
    return {code}.union(*(group for group in _NEIGHBOURS if code in group))


def _judge(texts: Sequence[str], language: str, count: int) -> _Finding | None:
    """The finding if most of the texts are not in their language; None if they are, or if the texts are too few."""
    scripts, known = scripts_of(language), is_known(language)
    pieces = _pieces(texts, count) if scripts or known else []
    if len(pieces) < _FEWEST:
        return None
    least = max(_MOST * len(pieces), _FEWEST)
    joined = [" ".join(one_line(texts[k][:_BEGINNING]) for k in piece) for piece in pieces]
    judged = judge_languages(joined)
    own = {*model_codes(language), *_neighbours(base_language(language))}
    doubted = [sum(found.get(code, 0.0) for code in own) < _DOUBTED for found in judged]
    if known and sum(doubted) < least:
        return None
    likeliest = [max(found, key=lambda code: found[code], default="") for found in judged]
    names = [
        code if sum(found.get(close, 0.0) for close in {code, *model_codes(code)}) >= _SURE else None
        for code, found in zip(likeliest, judged, strict=True)
    ]
    foreign = script_shares(joined, language) < 0.1 if scripts else np.zeros(len(joined), np.bool_)  # no letter: nan
    wrong = [k for k in range(len(pieces)) if foreign[k] or (known and doubted[k] and names[k] and names[k] not in own)]
    if len(wrong) < least:
        return None
    name, times = Counter(names[k] for k in wrong).most_common(1)[0]
    clear = name is not None and times > len(wrong) / 2
    if not clear and foreign.sum() < least:
        return None  # a mix of languages: code, names
    examples = tuple(record for k in wrong for record in pieces[k])
    return _Finding(name if clear else None, len(wrong), len(pieces), examples)


def _describe(
    name: str,
    part: SourcePart,
    form: RecordFormat,
    languages: Sequence[str],
    records: Sequence[_Record],
    found: Sequence[_Finding | None],
    others_right: bool,
) -> list[str]:
    """Notes on one file. `others_right`: another file of the stream looks right."""
    if len(found) == 2 and found[0] and found[1] and _exchanged(found[0], found[1], languages):
        one, other = languages
        keys = f"keys: {{{one}: {form.keys[1]}, {other}: {form.keys[0]}}}"
        how = f"set {stream_key(name)}.{keys}"
        if len(part.paths) > 1:
            how = f"{'name these two apart from the others, and ' if others_right else ''}exchange the two paths"
        elif others_right:
            how = f"give this file a stream of its own with {keys}"
        return [
            f"stream '{name}': the sides of {' and '.join(part.paths)} look exchanged: {one} holds {found[0].language} "
            f"and {other} holds {found[1].language} ({_examples(records, found[0].records, languages)}). If so, {how}"
        ]
    notes = []
    for k, (finding, code) in enumerate(zip(found, languages, strict=True)):
        if finding is None:
            continue
        path = part.paths[k] if len(part.paths) > 1 else part.paths[0]
        side = f"side {code} of " if form.languages else ""
        what = f"look like '{finding.language}'" if finding.language else "have almost no letters of its script"
        fix = f"{stream_key(name)}.{'pairs or keys' if form.languages else 'language or documents'}"
        notes.append(
            f"stream '{name}': {side}{path} should be '{code}', but {finding.wrong} of {finding.pieces} excerpts "
            f"{what} ({_examples(records, finding.records, languages, k)}). If so, correct {fix}"
        )
    return notes


def _exchanged(one: _Finding, other: _Finding, languages: Sequence[str]) -> bool:
    return one.language in model_codes(languages[1]) and other.language in model_codes(languages[0])


def _examples(
    records: Sequence[_Record], numbers: Sequence[int], languages: Sequence[str], side: int | None = None
) -> str:
    """Excerpts of the first two of some records, or of one with both sides."""
    shown = []
    for record in [records[number] for number in numbers[: 1 if side is None else 2]]:
        texts = [escape_controls(one_line(text)[:_EXCERPT]) for text in record.texts]
        words = (
            ", ".join(f'{code} "{text}"' for code, text in zip(languages, texts, strict=True))
            if side is None
            else f'"{texts[side]}"'
        )
        shown.append(f"line {record.line}: {words}" if record.line else words)
    return "; ".join(shown)
