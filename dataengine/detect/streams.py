"""From shown files to streams for training and sets for evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dataengine.characters import is_blank
from dataengine.detect.contents import Contents, alike, look, text_columns, text_of
from dataengine.detect.files import Shown, find_shown, pattern_of
from dataengine.detect.names import base_name, evaluation_role, name_tokens
from dataengine.detect.samples import Sample, sample_file
from dataengine.errors import InputError
from dataengine.records.evaluation_sets import read_set
from dataengine.records.formats import MOSES
from dataengine.storage.paths import FoundFile

LARGEST_SET = 10 << 20  # bytes of a file that may be an evaluation set
_SAMPLED = 64  # of files whose names differ in numbers only
_LEAST_ALIKE = 0.4
_FEWEST_LINES = 20  # below which names alone say that two files are translations


@dataclass
class Source:
    """A file, or a file for each language, and what it holds."""

    paths: tuple[FoundFile, ...]
    format: str
    stated_format: str | None
    contents: Contents
    columns: tuple[str, ...] = ()
    split: str = "line"
    records: int = 0  # sampled
    unusable: int = 0  # of them
    lacking: int = 0  # of these, those without one of their texts
    text_bytes: tuple[float, ...] = ()  # of each key in the whole, estimated
    texts: tuple[tuple[str, ...], ...] = ()  # some of each key, for a tokenizer's cost

    @property
    def path(self) -> str:
        """Of its first file."""
        return self.paths[0].path


@dataclass
class StreamGuess:
    """A stream to be proposed."""

    name: str
    contents: Contents  # of two languages if it has pairs
    sources: list[Source]
    notes: list[str] = field(default_factory=list)

    @property
    def is_pairs(self) -> bool:
        return self.contents.kind == "pairs"

    @property
    def records(self) -> int:
        return sum(source.records for source in self.sources)

    @property
    def unusable(self) -> int:
        return sum(source.unusable - (source.lacking if self.skips else 0) for source in self.sources)

    @property
    def skips(self) -> bool:
        """Whether records in more languages than the stream's lack some."""
        return any(source.lacking for source in self.sources if len(source.contents.keys) > len(self.contents.keys))

    @property
    def text_bytes(self) -> float:
        return sum(source.text_bytes[place] for source in self.sources for place in self._places(source))

    @property
    def texts(self) -> list[str]:
        """Some texts, for a tokenizer's cost."""
        sampled = [source for source in self.sources if source.texts]
        return [text for source in sampled for k in self._places(source) for text in source.texts[k]][:4000]

    def _places(self, source: Source) -> list[int]:
        """Which of a source's keys the stream has."""
        return [source.contents.keys.index(key) for key in self.contents.keys]

    def paths(self) -> list[str | dict[str, str]]:
        """As the stream's `documents` or `pairs` names them."""
        moses = [source for source in self.sources if source.format == MOSES]
        mapped: list[str | dict[str, str]] = [
            {
                code: file.path
                for code, file in zip(source.contents.languages, source.paths, strict=True)
                if code and code in self.contents.languages
            }
            for source in moses
        ]
        single: list[str | dict[str, str]] = list(pattern_of([s.path for s in self.sources if s.format != MOSES]))
        return single + mapped


@dataclass
class Proposal:
    """What is found in the shown files."""

    streams: list[StreamGuess]
    sets: dict[str, dict[str, str | dict[str, str]]]  # dev, test -> direction -> place
    tokenizers: list[str]
    unused: list[tuple[str, str]]


def propose(paths: Sequence[str]) -> Proposal:
    """Look at files and group them. Raises InputError if none can be trained on."""
    shown = find_shown(paths)
    sources, leftovers = _sources(shown)
    training, sets = [], []
    for source in sources:
        role = evaluation_role(source.path)
        if role and max(file.size for file in source.paths) <= LARGEST_SET:
            sets.append((role, source))
        else:
            training.append(source)
    streams = _streams(training)
    if not streams:
        reasons = "; ".join(f"{path}: {why}" for path, why in shown.unused[:3])
        only = f" {sets[0][1].path} is named like an evaluation set." if sets else ""
        raise InputError(f"no documents or pairs to train on in {', '.join(paths)}.{only} {reasons}".rstrip())
    return Proposal(streams, _choose_sets(streams, sets, leftovers, shown), shown.tokenizers, shown.unused)


def _sources(shown: Shown) -> tuple[list[Source], list[FoundFile]]:
    """What the files hold, those that belong together joined; and files of XML, which may be evaluation sets."""
    samples: list[tuple[FoundFile, Sample | None]] = []  # None: as the one before of its name
    other: list[FoundFile] = []
    for group in _groups(shown.files):
        step = max(1, math.ceil(len(group) / _SAMPLED))
        for number, file in enumerate(group):
            if number % step:
                samples.append((file, None))
                continue
            try:
                samples.append((file, sample_file(file)))
            except InputError as error:
                if file.path.lower().endswith(".xml") and evaluation_role(file.path):
                    other.append(file)
                else:
                    shown.unused.append((file.path, str(error)))
    twins, single = _find_twins(samples, shown)
    sources = [_twin_source(files) for files in twins]
    last: Source | None = None
    for file, sample in single:
        if sample is None and last is not None:
            sources.append(_copy(last, file))
            continue
        contents = look(sample) if sample is not None else None
        if sample is None or contents is None:
            shown.unused.append((file.path, "no key holds text" if sample else "files of its kind could not be used"))
            last = None
            continue
        last = _source((file,), sample, contents)
        sources.append(last)
    return sorted(sources, key=lambda source: source.path), other


def _copy(source: Source, file: FoundFile) -> Source:
    return Source(
        (file,),
        source.format,
        source.stated_format,
        source.contents,
        source.columns,
        source.split,
        text_bytes=tuple(size * file.size / max(source.paths[0].size, 1) for size in source.text_bytes),
    )


def _groups(files: Sequence[FoundFile]) -> list[list[FoundFile]]:
    """Files whose names differ in numbers only."""
    groups: dict[str, list[FoundFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        groups.setdefault(re.sub(r"\d+", "#", file.path), []).append(file)
    return list(groups.values())


def _source(files: tuple[FoundFile, ...], sample: Sample, contents: Contents) -> Source:
    good, lacking, columns = 0, 0, [list[str]() for _ in contents.keys]
    for row in sample.rows:
        values = [value for key in contents.keys if (value := text_of(row.get(key))) is not None]
        lacking += any(row.get(key) in (None, "", []) for key in contents.keys)
        if len(values) == len(contents.keys) and not any("\0" in value for value in values):
            good += 1
            for column, value in zip(columns, values, strict=True):
                column.append(value)
    records = len(sample.rows) + sample.bad
    return Source(
        files,
        sample.format,
        sample.stated_format,
        contents,
        sample.columns,
        sample.split,
        records,
        records - good,
        lacking,
        tuple(sample.scale * _bytes(column) for column in columns),
        tuple(tuple(column[:1000]) for column in columns),
    )


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode(errors="replace")) for text in texts)


def _find_twins(
    samples: Sequence[tuple[FoundFile, Sample | None]], shown: Shown
) -> tuple[list[dict[str, tuple[FoundFile, Sample]]], list[tuple[FoundFile, Sample | None]]]:
    """Plain text files that are translations line by line, by language; and all others."""
    groups: dict[str, dict[str, tuple[FoundFile, Sample]]] = {}
    for file, sample in samples:
        if sample is not None and sample.format == "text":
            for name, language in _twin_names(file.path):
                groups.setdefault(name, {}).setdefault(language, (file, sample))
    twins, used = [], set[str]()
    for group in groups.values():
        left = {code: one for code, one in group.items() if one[0].path not in used}
        if len(left) > 1 and _are_twins([sample for _, sample in left.values()]):
            twins.append(left)
            used |= {file.path for file, _ in left.values()}
        elif counts := _nearly_equal([sample for _, sample in left.values()]):
            paths = ", ".join(file.path for file, _ in left.values())
            shown.unused.append((f"{paths} as pairs", f"they have {counts} lines; a translation has as many"))
    return twins, [one for one in samples if one[0].path not in used]


def _twin_names(path: str) -> list[tuple[str, str]]:
    """The path without a language, and the language: of the file's name, or of its folder."""
    folder, _, name = path.rpartition("/")
    base = base_name(path)
    found = []
    for token in sorted(name_tokens(base), key=lambda token: (token.strong, token.start), reverse=True)[:1]:
        found.append((f"{folder}/{base[: token.start]}*{base[token.end :]}{name[len(base) :]}", token.language))
    above, _, last = folder.rpartition("/")
    tokens = name_tokens(last)
    if len(tokens) == 1 and tokens[0].end - tokens[0].start == len(last):
        found.append((f"{above}/*/{name}", tokens[0].language))
    return found


def _are_twins(samples: Sequence[Sample]) -> bool:
    """Whether files have translations of each other, by the numbers and the lengths of their lines."""
    first, *others = [sample.lines for sample in samples]
    if all(sample.whole for sample in samples) and any(len(first) != len(other) for other in others):
        return False
    shared = min(map(len, (first, *others)))
    return shared < _FEWEST_LINES or all(_go_together(first[:500], other[:500]) for other in others)


def _go_together(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether lines are alike, without those that are blank on a side."""
    full = [pair for pair in zip(one, other, strict=False) if not any(map(is_blank, pair))]
    return bool(full) and alike(*zip(*full, strict=True)) >= _LEAST_ALIKE


def _nearly_equal(samples: Sequence[Sample]) -> str:
    """The numbers of lines of whole files that differ by at most a tenth; "" if they are equal or differ more."""
    counts = [len(sample.lines) for sample in samples if sample.whole]
    if len(counts) < max(len(samples), 2) or len(set(counts)) == 1 or min(counts) < 0.9 * max(counts):
        return ""
    return ", ".join(f"{count:,}" for count in counts)


def _twin_source(files: dict[str, tuple[FoundFile, Sample]]) -> Source:
    codes = sorted(files, key=lambda code: (code != "en", code))
    contents = Contents("pairs", tuple(codes), tuple(codes))
    columns = [files[code][1].lines for code in codes]
    lines = list(zip(*columns, strict=False))
    return Source(
        tuple(files[code][0] for code in codes),
        MOSES,
        None,
        contents,
        records=len(lines),
        unusable=sum(1 for texts in lines if any(map(is_blank, texts))),
        text_bytes=tuple(files[c][1].scale * _bytes(column) for c, column in zip(codes, columns, strict=True)),
        texts=tuple(tuple(text for text in column[:1000] if not is_blank(text)) for column in columns),
    )


def _streams(sources: Sequence[Source]) -> list[StreamGuess]:
    """Streams of sources that are alike, documents first; more than two languages make a stream for each pair."""
    found: dict[tuple[object, ...], StreamGuess] = {}
    names: set[str] = set()
    for source in sorted(sources, key=lambda source: (source.contents.kind, source.path)):
        for contents in _two_by_two(source.contents):
            stated = (source.stated_format, source.columns, source.split, source.format == "tmx" and contents.keys)
            key = (contents.kind, contents.keys, contents.languages, contents.lists, stated)
            if key not in found:
                codes = [code or "text" for code in contents.languages]
                name = "-".join(codes if contents.kind == "pairs" else ["mono", *codes])
                number = 2
                while name in names:
                    name = f"{name.removesuffix(f'-{number - 1}')}-{number}"
                    number += 1
                names.add(name)
                found[key] = StreamGuess(name, contents, [])
            found[key].sources.append(source)
            fresh = [said for said in contents.notes if said not in found[key].notes]
            found[key].notes += fresh[: max(0, 4 - len(found[key].notes))]
    return list(found.values())


def _two_by_two(contents: Contents) -> list[Contents]:
    """Documents as they are; pairs of two languages each, one of which is English if there is English."""
    if contents.kind == "documents":
        return [contents]
    by_code = dict(zip(contents.languages, contents.keys, strict=True))
    first = "en" if "en" in by_code else contents.languages[0]
    others = [code for code in by_code if code != first]
    if len(others) == 1:
        return [contents]
    said = (*contents.notes, f"a record holds {', '.join(map(str, by_code))}; other pairs of them are possible")
    return [
        replace(contents, keys=(by_code[first], by_code[code]), languages=(first, code), notes=said) for code in others
    ]


def _choose_sets(
    streams: Sequence[StreamGuess], sets: Sequence[tuple[str, Source]], xml: Sequence[FoundFile], shown: Shown
) -> dict[str, dict[str, str | dict[str, str]]]:
    """For each trained direction the first set that can be read."""
    directions = [
        f"{one}-{other}"
        for stream in streams
        if stream.is_pairs
        for one, other in (stream.contents.languages, stream.contents.languages[::-1])
    ]
    chosen: dict[str, dict[str, str | dict[str, str]]] = {"dev": {}, "test": {}}
    candidates: list[tuple[str, str, Source | None]] = [(role, source.path, source) for role, source in sets]
    candidates += [(evaluation_role(file.path) or "dev", file.path, None) for file in xml]
    for role, path, source in candidates:
        why, used = "it has no direction that is trained", False
        if source is not None and source.contents.kind == "documents":
            shown.unused.append((path, "named like an evaluation set, and holds documents; `evaluate` takes pairs"))
            continue
        for direction in dict.fromkeys(directions):
            codes = direction.split("-")
            if source is not None and not set(codes) <= set(source.contents.languages):
                continue
            if direction in chosen[role]:
                why = f"evaluate.{role}.{direction} is {chosen[role][direction]} already"
                continue
            place: str | dict[str, str] = path
            if source is not None and source.format == MOSES:
                files = dict(zip(source.contents.languages, source.paths, strict=True))
                place = {code: files[code].path for code in codes}
            try:
                read_set(place, direction)
            except InputError as error:
                why = str(error)
                continue
            chosen[role][direction], used = place, True
        if not used:
            shown.unused.append((path, f"named like an evaluation set: {why}"))
    return chosen


def sampled_columns(source: Source, size: int) -> list[list[str]]:
    """The texts of each key in about the first `size` bytes of a source."""
    if source.format == MOSES:
        return [[str(row["text"]) for row in sample_file(file, size).rows] for file in source.paths]
    columns = text_columns(sample_file(source.paths[0], size))
    return [columns.get(key, []) for key in source.contents.keys]
