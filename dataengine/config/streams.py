"""The section `streams`: the location of records, their form as text, and their cleaning."""

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

# The default is `columns: heading`: the first line of each file names its columns.
Columns = Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value == "heading" else value)]


class AssumeConfig(Section):
    """Size of a stream that is not built yet, for `dataengine plan`. State `tokens` or `samples`."""

    tokens: Count | None = None
    """All tokens of the stream, such as 162.5B."""
    samples: Count | None = None
    """All samples of the stream."""

    @model_validator(mode="after")
    def _states_one(self) -> AssumeConfig:
        if (self.tokens is None) == (self.samples is None):
            raise ValueError("state `tokens` or `samples`, such as {tokens: 162.5B}")
        return self


class SubsetsConfig(Section):
    """Drop records by the name of their subset."""

    key: str
    """The key of a record that names its subset, such as meta.redpajama_set_name."""
    drop: tuple[str, ...]
    """Names of the subsets to drop, such as [RedPajamaGithub]."""


class SectionOfOneKind(Section):
    """A section with keys of its own in streams of documents and in streams of pairs."""

    # Keys that every stored config.yaml begins with. Keys of the other kind have these values.
    stored: ClassVar[dict[str, object]]
    # Newer keys. A stored config.yaml has them if they are set.
    stored_if_set: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_keys(cls, values: object) -> object:
        """Remove the keys of the other kind that a stored config.yaml has."""
        if not isinstance(values, dict):
            return values
        other = {key: value for key, value in cls.stored.items() if key not in cls.model_fields}
        return {key: value for key, value in values.items() if key not in other or value != other[key]}

    @model_serializer(mode="wrap")
    def _with_empty_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        defaults = {key: type(self).model_fields[key].default for key in self.stored_if_set}
        own = {key: value for key, value in dump(self).items() if key not in defaults or value != defaults[key]}
        return {**self.stored, **own}


class CleanConfig(SectionOfOneKind):
    """Cleaning before tokenization. Everything is off by default, and each drop is counted by its reason."""

    stored: ClassVar[dict[str, object]] = {"pair_rules": None, "document_rules": None}
    min_language_score: float | None = Field(default=None, gt=0, le=1)
    """Drop texts whose score for their stated language, by the model lid.176, is lower. It also drops some good short
    texts; start with 0.01. Default: off."""
    dedup: tuple[str, ...] = ()
    """Drop exact duplicates after normalization; the first record stays. Documents: [text]. Pairs: `pair` for both
    sides, or a language code for one side, such as [pair, zh]."""
    near_dedup: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Drop records whose sets of 5-word shingles have at least this Jaccard similarity to an earlier record that stays,
    such as 0.9. Default: off."""
    decontaminate: tuple[str, ...] = ()
    """Files with evaluation texts, in any format of `evaluate`. Records that share a whole text, 13 words in a row or
    26 Chinese characters with them are dropped."""
    subsets: SubsetsConfig | None = None
    """Drop records by the name of their subset. Default: off."""


class DocumentClean(CleanConfig):
    """Cleaning of documents before tokenization. Everything is off by default."""

    document_rules: DocumentRules | None = None
    """Drop documents by rules on length, characters, script and repetition. {} turns the rules on with their defaults.
    Default: off."""


class PairClean(CleanConfig):
    """Cleaning of sentence pairs before tokenization. Everything is off by default."""

    pair_rules: PairRules | None = None
    """Drop pairs by rules on length, script, digits, links and markup. {} turns the rules on with their defaults.
    Default: off."""


class ScoresConfig(Section):
    """Drop pairs below a quality threshold. The scores come from a reference-free COMET model (`dataengine score`)."""

    model: str
    """The COMET model: path of a checkpoint, or a name on the Hugging Face hub."""
    thresholds: dict[Direction, float] = Field(min_length=1)
    """Lowest score that stays, by the direction that is scored. The paper uses {zh-en: 0.42} and {id-en: 0.58}."""


class StreamConfig(SectionOfOneKind):
    """A stream: the location of its records, their form as text, and the number of epochs."""

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
    format: Literal["jsonl", "tsv", "text", "tmx", "parquet"] | None = None
    """Format of the files. Default: by the name of each file."""
    columns: Columns = ()
    """TSV: names of the columns in files without a heading, such as [en, zh]. Default: `heading`, the first line of
    each file names them."""
    split: Literal["line", "paragraph", "file"] = "line"
    """Plain text: which part of a file is one document."""
    passes: Annotated[Count, PLAN] = 1  # YAML: epochs
    """How many times the schedule may read the whole stream. Each epoch has an order of its own."""
    assume: Annotated[AssumeConfig | None, NOTHING] = None
    """Size of the stream for `dataengine plan` until it is built, such as {tokens: 162.5B}. Default: unknown."""


class DocumentStream(StreamConfig):
    """A stream of documents, each a text of its own."""

    documents: tuple[str, ...]
    """Files with documents: paths, globs or URLs. Formats: .jsonl, .json, .txt, .tsv, .tmx (also as .gz, .zst, .xz or
    .bz2) and .parquet."""
    text_key: str = "text"
    """The key of the text in a record. A dotted key, such as meta.text, goes into nested objects."""
    language: str | None = None
    """Language code of the documents, for cleaning rules and `min_language_score`. Default: unknown."""
    clean: DocumentClean = DocumentClean()
    """Cleaning of the documents. Default: none."""

    @model_validator(mode="after")
    def _agrees(self) -> DocumentStream:
        if self.clean.min_language_score and not self.language:
            raise ValueError("`clean.min_language_score` needs the stream's `language`, such as en")
        _check_dedup(self.clean, ("text",))
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of the stream."""
        return self.documents

    @property
    def languages(self) -> tuple[str, ...]:
        """The code of the language of the documents, if it is known."""
        return (self.language,) if self.language else ()

    @property
    def codes(self) -> tuple[str, ...]:
        """The language code of a record's only text; empty if it is unknown."""
        return (self.language or "",)

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The key of a record's only text."""
        return (self.text_key,)


class PairStream(StreamConfig):
    """A stream of sentence pairs, written as translations or one side alone."""

    stored_if_set: ClassVar[tuple[str, ...]] = ("loss_on",)
    pairs: tuple[str | dict[str, str], ...]
    """Files with sentence pairs: paths, globs or URLs in the formats of `documents`. A mapping is a Moses corpus with a
    file per language: {en: corpus.en, zh: corpus.zh}."""
    keys: dict[str, str] = {}
    """The key of each language's sentence in a record, such as {zh: translation.zh}. Default: the language code."""
    directions: tuple[Direction, ...] = ()
    """Translation directions of the training text, source first, such as [en-zh, zh-en]. Each pair is written once;
    the directions take turns. State either `directions` or `sides`."""
    adjacent: bool = True  # YAML: targets
    """`adjacent` writes each source with its own target. `shuffled` gives it the target of another pair, at random;
    each target is used once."""
    loss_on: Literal["all", "target"] = "all"
    """Tokens that count in the loss: `all`, or those of the `target` and the EOS after it."""
    sides: tuple[Annotated[str, Field(pattern=LANGUAGE_PATTERN)], ...] = ()
    """Use only the sentences of these languages, each as a document of its own, such as [zh]."""
    clean: PairClean = PairClean()
    """Cleaning of the pairs. Default: none."""
    scores: ScoresConfig | None = None
    """Drop pairs below a quality threshold of a COMET model. Default: off."""

    @model_validator(mode="after")
    def _agrees(self) -> PairStream:
        if bool(self.directions) == bool(self.sides):
            raise ValueError("pairs need either `directions` (such as [en-zh]) or `sides` (such as [zh])")
        if same := [direction for direction in self.directions if len(set(direction.split("-"))) == 1]:
            raise ValueError(f"`directions`: {same[0]} has the same language twice")
        if files := _files_by_language([path for path in self.pairs if isinstance(path, str)], self.codes):
            corpus = ", ".join(f"{code}: {path}" for code, path in files.items())
            raise ValueError(f"`pairs`: write one file per language as a mapping: pairs: [{{{corpus}}}]")
        if not self.adjacent and not self.directions:
            raise ValueError("`targets: shuffled` needs `directions`")
        if self.loss_on == "target" and not self.directions:
            raise ValueError("`loss_on: target` needs `directions`: with `sides`, a document has no target")
        _check_dedup(self.clean, ("pair", *self.codes))
        if self.clean != PairClean() and len(self.codes) > 2:
            raise ValueError(
                f"cleaning compares two languages, and this stream has {len(self.codes)} ({', '.join(self.codes)}): "
                "make a stream for each pair"
            )
        if self.clean != PairClean() and len(self.codes) < 2:
            raise ValueError("cleaning compares two languages: add `keys` for both, such as {en: en, zh: zh}")
        for direction in self.scores.thresholds if self.scores else ():
            if set(direction.split("-")) != set(self.codes):
                raise ValueError(f"scores.thresholds: {direction} is not a direction of {' and '.join(self.codes)}")
        return self

    @property
    def paths(self) -> tuple[str | dict[str, str], ...]:
        """The files of the stream."""
        return self.pairs

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages in the training text."""
        return tuple(dict.fromkeys([*self.sides, *(code for d in self.directions for code in d.split("-"))]))

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the texts of a record: the languages of the training text, and others in `keys`."""
        return tuple(dict.fromkeys([*self.languages, *self.keys]))

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The keys of the texts of a record, in the order of `codes`."""
        return tuple(self.keys.get(code, code) for code in self.codes)


def _check_dedup(clean: CleanConfig, known: Sequence[str]) -> None:
    if unknown := [kind for kind in clean.dedup if kind not in known]:
        raise ValueError(f"clean.dedup: {', '.join(unknown)}: expected some of {', '.join(known)}")


def _files_by_language(paths: Sequence[str], codes: Sequence[str]) -> dict[str, str]:
    """The path of each language for paths such as corpus.en and corpus.zh.gz, or a.en.txt; empty for others."""
    found: dict[str, str] = {}
    for path in paths:
        name = path.rpartition("/")[2].removesuffix(".gz").removesuffix(".zst").removesuffix(".xz").removesuffix(".bz2")
        code = name.removesuffix(".txt").rpartition(".")[2]
        found |= {code: path}
    return {code: found[code] for code in codes} if set(found) == set(codes) and len(paths) == len(codes) else {}


# The key that decides the kind of a stream -> the section of that kind
STREAM_KINDS = {"documents": DocumentStream, "pairs": PairStream}


def _stated_kind(stream: object) -> str | None:
    """The key that decides the kind of a stream; None if it has both keys or neither."""
    if isinstance(stream, dict):
        stated = [key for key in STREAM_KINDS if stream.get(key, []) != []]
        return stated[0] if len(stated) == 1 else None
    return "pairs" if isinstance(stream, PairStream) else "documents"


Stream = Annotated[
    Annotated[DocumentStream, Tag("documents")] | Annotated[PairStream, Tag("pairs")],
    Discriminator(
        _stated_kind,
        custom_error_type="stream_kind",
        custom_error_message="state either `documents` or `pairs` for a stream: a list of paths",
    ),
]
