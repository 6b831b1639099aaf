"""The section `streams`: where records lie, how they become text, and what cleaning drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from dataengine.cleaning.rules.settings import DocumentRules, PairRules
from dataengine.config.fields import LANGUAGE_PATTERN, NOTHING, PLAN, Count, Direction, Section

# `columns: heading` is the default: the first line of each file names its columns.
Columns = Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value == "heading" else value)]


class AssumeConfig(Section):
    """The size of a stream that is not built yet, so that `dataengine plan` can show its schedule."""

    tokens: Count | None = None  # all tokens of its samples
    samples: Count | None = None

    @model_validator(mode="after")
    def _states_one(self) -> AssumeConfig:
        if (self.tokens is None) == (self.samples is None):
            raise ValueError("state `tokens` or `samples`, such as {tokens: 162.5B}")
        return self


class SubsetsConfig(Section):
    """Records to leave out by the name of the subset that they come from."""

    key: str  # where a record states it, such as meta.redpajama_set_name
    drop: tuple[str, ...]  # such as [RedPajamaGithub]


class SectionOfOneKind(Section):
    """A section with keys of its own in streams of documents and in streams of pairs."""

    # Keys of both kinds as every config.yaml states them: these come first, those of the other kind with these values
    stored: ClassVar[dict[str, object]]

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_keys(cls, values: object) -> object:
        """Leave out what a config.yaml states of the other kind."""
        if not isinstance(values, dict):
            return values
        other = {key: value for key, value in cls.stored.items() if key not in cls.model_fields}
        return {key: value for key, value in values.items() if key not in other or value != other[key]}

    @model_serializer(mode="wrap")
    def _with_empty_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {**self.stored, **dump(self)}


class CleanConfig(SectionOfOneKind):
    """What is dropped before tokenizing; each drop is counted by its reason. All is off until it is named."""

    stored: ClassVar[dict[str, object]] = {"pair_rules": None, "document_rules": None}
    min_language_score: float | None = Field(default=None, gt=0, le=1)  # of the language that a text should have
    dedup: tuple[str, ...] = ()  # text (documents); pair, or a language's code for that side alone (pairs)
    near_dedup: Annotated[float, Field(gt=0, lt=1)] | None = None  # least Jaccard similarity of near duplicates
    decontaminate: tuple[str, ...] = ()  # files of evaluation texts; what shares a text or a long n-gram goes
    subsets: SubsetsConfig | None = None


class DocumentClean(CleanConfig):
    """What is dropped of documents."""

    document_rules: DocumentRules | None = None  # {} takes the defaults


class PairClean(CleanConfig):
    """What is dropped of pairs."""

    pair_rules: PairRules | None = None  # {} takes the defaults


class ScoresConfig(Section):
    """Quality of pairs by a reference-free COMET model (`dataengine score`); pairs below a threshold are dropped."""

    model: str  # checkpoint (path, or a name on the Hugging Face hub)
    thresholds: dict[Direction, float] = Field(min_length=1)  # the paper: {zh-en: 0.42}, {id-en: 0.58}


class StreamConfig(SectionOfOneKind):
    """Where the records of a stream lie, how they become text, and how often they are read."""

    stored: ClassVar[dict[str, object]] = {
        "documents": [],
        "pairs": [],
        "format": None,
        "text_key": "text",
        "keys": {},
        "columns": [],
        "split": "line",
        "language": None,
        "directions": [],
        "adjacent": True,
        "sides": [],
        "clean": {},
        "scores": None,
    }
    format: Literal["jsonl", "tsv", "text", "tmx", "parquet"] | None = None  # default: by the file's name
    columns: Columns = ()  # .tsv: their names in files without a heading; a heading that names the keys is obeyed
    split: Literal["line", "paragraph", "file"] = "line"  # .txt: what a document is
    passes: Annotated[Count, PLAN] = 1  # or `epochs`: how often the schedule may go through the stream
    assume: Annotated[AssumeConfig | None, NOTHING] = None  # its size until it is built


class DocumentStream(StreamConfig):
    """A stream of documents."""

    # Paths, globs or URLs: .jsonl .json .txt .tsv .tmx, plain, .gz, .zst, .xz or .bz2, and .parquet
    documents: tuple[str, ...]
    text_key: str = "text"  # the key of the text; a dotted key goes into nested objects
    language: str | None = None  # the code of their language, for rules and min_language_score
    clean: DocumentClean = DocumentClean()

    @model_validator(mode="after")
    def _agrees(self) -> DocumentStream:
        if self.clean.min_language_score and not self.language:
            raise ValueError("`clean.min_language_score` needs the stream's `language`, such as en")
        _check_dedup(self.clean, ("text",))
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the records lie."""
        return self.documents

    @property
    def languages(self) -> tuple[str, ...]:
        """The code of the language that the stream writes, if it is stated."""
        return (self.language,) if self.language else ()

    @property
    def codes(self) -> tuple[str, ...]:
        """The code of a record's one text; empty if it is not stated."""
        return (self.language or "",)

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The key of a record's one text."""
        return (self.text_key,)


class PairStream(StreamConfig):
    """A stream of sentence pairs."""

    # Paths as of documents; a mapping is a Moses corpus: {en: corpus.en, zh: corpus.zh}
    pairs: tuple[str | dict[str, str], ...]
    keys: dict[str, str] = {}  # language -> key of its sentence; default: the language's code
    directions: tuple[Direction, ...] = ()  # pair number i is written in direction i modulo their number
    # Or `targets: adjacent`; false, or `targets: shuffled`, takes the target of another pair, at random, each once
    adjacent: bool = True
    sides: tuple[Annotated[str, Field(pattern=LANGUAGE_PATTERN)], ...] = ()  # only these sides, a document each
    clean: PairClean = PairClean()
    scores: ScoresConfig | None = None

    @model_validator(mode="after")
    def _agrees(self) -> PairStream:
        if bool(self.directions) == bool(self.sides):
            raise ValueError("pairs need either `directions` (such as [en-zh]) or `sides` (such as [zh])")
        if same := [direction for direction in self.directions if len(set(direction.split("-"))) == 1]:
            raise ValueError(f"`directions`: {same[0]} goes from a language to itself")
        if files := _files_by_language([path for path in self.pairs if isinstance(path, str)], self.codes):
            corpus = ", ".join(f"{code}: {path}" for code, path in files.items())
            raise ValueError(f"`pairs`: a file for each language is a mapping: pairs: [{{{corpus}}}]")
        if not self.adjacent and not self.directions:
            raise ValueError("`adjacent: false` goes with `directions`")
        _check_dedup(self.clean, ("pair", *self.codes))
        if self.clean != PairClean() and len(self.codes) > 2:
            raise ValueError(
                f"cleaning compares two languages, and this stream has {len(self.codes)} ({', '.join(self.codes)}): "
                "make a stream for each pair"
            )
        if self.clean != PairClean() and len(self.codes) < 2:
            raise ValueError("cleaning compares two languages: state `keys` for both, such as {en: en, zh: zh}")
        for direction in self.scores.thresholds if self.scores else ():
            if set(direction.split("-")) != set(self.codes):
                raise ValueError(f"scores.thresholds: {direction} is no direction of {' and '.join(self.codes)}")
        return self

    @property
    def paths(self) -> tuple[str | dict[str, str], ...]:
        """Where the records lie."""
        return self.pairs

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the stream writes."""
        return tuple(dict.fromkeys([*self.sides, *(code for d in self.directions for code in d.split("-"))]))

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the texts of a record: languages that the stream writes, and others that `keys` name."""
        return tuple(dict.fromkeys([*self.languages, *self.keys]))

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The keys of the texts of a record, in the order of `codes`."""
        return tuple(self.keys.get(code, code) for code in self.codes)


def _check_dedup(clean: CleanConfig, known: Sequence[str]) -> None:
    if unknown := [kind for kind in clean.dedup if kind not in known]:
        raise ValueError(f"clean.dedup: {', '.join(unknown)}: expected some of {', '.join(known)}")


def _files_by_language(paths: Sequence[str], codes: Sequence[str]) -> dict[str, str]:
    """The path of each language if paths are such as corpus.en and corpus.zh.gz, or a.en.txt; empty if they are not."""
    found: dict[str, str] = {}
    for path in paths:
        name = path.rpartition("/")[2].removesuffix(".gz").removesuffix(".zst").removesuffix(".xz").removesuffix(".bz2")
        code = name.removesuffix(".txt").rpartition(".")[2]
        found |= {code: path}
    return {code: found[code] for code in codes} if set(found) == set(codes) and len(paths) == len(codes) else {}


# The key that makes a stream one of a kind -> the section of that kind
STREAM_KINDS = {"documents": DocumentStream, "pairs": PairStream}


def _stated_kind(stream: object) -> str | None:
    """The key by which a stream is one of a kind; None if it states both or neither."""
    if isinstance(stream, dict):
        stated = [key for key in STREAM_KINDS if stream.get(key, []) != []]
        return stated[0] if len(stated) == 1 else None
    return "pairs" if isinstance(stream, PairStream) else "documents"


Stream = Annotated[
    Annotated[DocumentStream, Tag("documents")] | Annotated[PairStream, Tag("pairs")],
    Discriminator(
        _stated_kind,
        custom_error_type="stream_kind",
        custom_error_message="a stream states either `documents` or `pairs`: a list of paths",
    ),
]
