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
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from dataengine.cleaning.rules.settings import DocumentRules, PairRules
from dataengine.config.fields import LANGUAGE_PATTERN, NOTHING, PLAN, Count, Direction, Section, SizePower

CODES = ("{src}", "{tgt}")  # in a pattern of `pairs`: the languages of a pair

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
        dumped = dump(self)
        unset = [key for key, usual in defaults.items() if dumped[key] in (usual, [] if usual == () else usual)]
        return {**self.stored, **{key: value for key, value in dumped.items() if key not in unset}}


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
    format: Literal["jsonl", "tsv", "csv", "text", "tmx", "parquet", "arrow"] | None = None
    """Format of the files. Default: by the name of each file."""
    columns: Columns = ()
    """TSV and CSV: names of the columns in files without a heading, such as [en, zh]. Default: `heading`, the first
    line of each file names them."""
    split: Literal["line", "paragraph", "file"] = "line"
    """Plain text: which part of a file is one document."""
    passes: Annotated[Count, PLAN] = 1  # YAML: epochs
    """How many times the schedule may read the whole stream. Each epoch has an order of its own."""
    assume: Annotated[AssumeConfig | None, NOTHING] = None
    """Size of the stream for `dataengine plan` until it is built, such as {tokens: 162.5B}. Default: unknown."""


class DocumentStream(StreamConfig):
    """A stream of documents, each a text of its own."""

    documents: tuple[str, ...]
    """Files with documents: paths, globs or URLs (s3://, hf://datasets/ORG/NAME/PATH, https://). Formats: .jsonl,
    .json, .txt, .tsv, .csv, .tmx (also as .gz, .zst, .xz or .bz2), .parquet and .arrow (of `datasets`)."""
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


def has_codes(pairs: object) -> bool:
    """Whether the value of `pairs` is a pattern with {src} and {tgt}, alone or as the only one of a list."""
    (one,) = pairs if isinstance(pairs, list | tuple) and len(pairs) == 1 else [pairs]
    paths = [*one.values()] if isinstance(one, dict) else [one]
    texts = [path for path in paths if isinstance(path, str)]
    return len(texts) == len(paths) and any(code in text for text in texts for code in CODES)


class PairStream(StreamConfig):
    """A stream of sentence pairs, written as translations or one side alone. With a pattern in `pairs`, an entry for
    many streams: one for each language pair."""

    stored_if_set: ClassVar[tuple[str, ...]] = ("line_breaks", "missing", "template", "loss_on", "weights", "found")
    pairs: Annotated[
        tuple[str | dict[str, str], ...],
        BeforeValidator(lambda value: value if isinstance(value, list | tuple) or not has_codes(value) else [value]),
    ]
    """Files with sentence pairs: paths, globs or URLs in the formats of `documents`. A mapping is a Moses corpus with a
    file per language: {en: corpus.en, zh: corpus.zh}. A pattern with {src} and {tgt}, such as
    corpora/{src}-{tgt}/*.tsv, makes a stream for each language pair that has files, such as NAME/en-zh."""
    keys: dict[str, str] = {}
    """The key of each language's sentence in a record, such as {zh: translation.zh}. Default: the language code."""
    directions: Annotated[tuple[Direction, ...], BeforeValidator(lambda value: () if value == "all" else value)] = ()
    """Translation directions of the training text, source first, such as [en-zh, zh-en]. Each pair is written once;
    the directions take turns. State either `directions` or `sides`. With a pattern in `pairs`: `all` for both
    directions of each pair, or a list, which also chooses the pairs."""
    adjacent: bool = True  # YAML: targets
    """`adjacent` writes each source with its own target. `shuffled` gives it the target of another pair, at random;
    each target is used once."""
    line_breaks: Literal["space", "keep"] | None = None
    """Pairs of documents: `keep` keeps the line breaks of a text and joins a list of sentences with line breaks;
    `space` writes spaces instead, and nothing between Chinese or Japanese sentences. Default: line breaks become
    spaces, and a list is unusable."""
    missing: Literal["unusable", "skip"] = "unusable"
    """A record without one of its two texts is `unusable`; `skip` leaves it out and counts it in a note, for files in
    several languages whose records need not have all."""
    template: dict[str, Annotated[float, Field(gt=0)]] = {"paper": 1.0}
    """How a pair becomes text: `paper`, `plain`, `instruct`, `chat` (the tokenizer's own chat template), or the path of
    a Jinja file. Several share the pairs by weight: `{paper: 3, chat: 1}`."""
    loss_on: Literal["all", "target"] = "all"
    """Tokens that count in the loss: `all`, or those of the `target` and the EOS after it."""
    sides: tuple[Annotated[str, Field(pattern=LANGUAGE_PATTERN)], ...] = ()
    """Use only the sentences of these languages, each as a document of its own, such as [zh]."""
    weights: Annotated[Literal["by_size"] | SizePower, PLAN] = "by_size"
    """With a pattern in `pairs`: how the part of the entry in a mix is split among its streams. `by_size` is in
    proportion to what is left of each, `by_size^0.3` to this power of it: small pairs get more (temperature)."""
    found: tuple[Direction, ...] = ()
    """With a pattern in `pairs`: the pairs that have files, {src} first. The build looks for them and records them in
    config.yaml. Default: those that the last build recorded, else those whose files exist."""
    clean: PairClean = PairClean()
    """Cleaning of the pairs. Default: none."""
    scores: ScoresConfig | None = None
    """Drop pairs below a quality threshold of a COMET model. Default: off."""

    @field_validator("template", mode="before")
    @classmethod
    def _with_weight(cls, value: object) -> object:
        """A single template without a weight."""
        return {value: 1.0} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agrees(self) -> PairStream:
        if has_codes(self.pairs):
            return self._is_entry()
        if several := [path for path in self.pairs if has_codes([path])]:
            raise ValueError(f"`pairs`: a pattern stands alone, and not in a list: pairs: {several[0]}")
        if self.found or self.weights != "by_size":
            key = "found" if self.found else "weights"
            raise ValueError(f"`{key}` belongs to `pairs` with a pattern, such as corpora/{{src}}-{{tgt}}/*.tsv")
        if bool(self.directions) == bool(self.sides):
            raise ValueError("pairs need either `directions` (such as [en-zh]) or `sides` (such as [zh])")
        if same := [direction for direction in self.directions if len(set(direction.split("-"))) == 1]:
            raise ValueError(f"`directions`: {same[0]} has the same language twice")
        if files := _files_by_language([path for path in self.pairs if isinstance(path, str)], self.codes):
            corpus = ", ".join(f"{code}: {path}" for code, path in files.items())
            raise ValueError(f"`pairs`: write one file per language as a mapping: pairs: [{{{corpus}}}]")
        if not self.adjacent and not self.directions:
            raise ValueError("`targets: shuffled` needs `directions`")
        if not self.template:
            raise ValueError("`template` names at least one template, such as paper")
        if list(self.template) != ["paper"] and not self.directions:
            raise ValueError("`template` needs `directions`: with `sides`, a document has one sentence")
        if self.loss_on == "target" and not self.directions:
            raise ValueError("`loss_on: target` needs `directions`: with `sides`, a document has no target")
        _check_dedup(self.clean, ("pair", *self.codes))
        if self.clean != PairClean() and len(self.codes) > 2:
            raise ValueError(
                f"cleaning compares two languages, and this stream has {len(self.codes)} ({', '.join(self.codes)}): "
                "make a stream for each pair, all of the same files"
            )
        if self.missing == "skip" and len(self.codes) > 2:
            raise ValueError(
                f"`missing: skip` is for two languages, and this stream has {len(self.codes)} "
                f"({', '.join(self.codes)}): make a stream for each pair, all of the same files"
            )
        if self.clean != PairClean() and len(self.codes) < 2:
            raise ValueError("cleaning compares two languages: add `keys` for both, such as {en: en, zh: zh}")
        for direction in self.scores.thresholds if self.scores else ():
            if set(direction.split("-")) != set(self.codes):
                raise ValueError(f"scores.thresholds: {direction} is not a direction of {' and '.join(self.codes)}")
        return self

    def _is_entry(self) -> PairStream:
        """Check an entry, and each of its streams."""
        for key in ("sides", "scores"):
            if getattr(self, key):
                raise ValueError(f"`{key}` does not go with a pattern in `pairs`: state a stream for each pair")
        if languages := [kind for kind in self.clean.dedup if kind != "pair"]:
            raise ValueError(f"clean.dedup: {languages[0]}: expected `pair` alone for a pattern in `pairs`")
        if not self.found:
            raise ValueError("`found`: the pairs of the pattern are not known. dataengine.load_config looks for them")
        if same := [pair for pair in (*self.directions, *self.found) if len(set(pair.split("-"))) == 1]:
            raise ValueError(f"{same[0]} has the same language twice")
        both = {direction for pair in self.found for direction in (pair, _reverse(pair))}
        if unknown := [direction for direction in self.directions if direction not in both]:
            raise ValueError(f"`directions`: {unknown[0]} is not a direction of the pairs in `found`")
        if not all(self._directions_of(pair) for pair in self.found):
            raise ValueError("`found` has pairs without a direction in `directions`. Drop `found`")
        if len({frozenset(pair.split("-")) for pair in self.found}) < len(self.found):
            raise ValueError("`found` names a pair twice")
        for pair in self.found:
            try:
                PairStream.model_validate(self._stream(pair).model_dump())
            except ValidationError as error:
                raise ValueError(f"{pair}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        return self

    def _directions_of(self, pair: str) -> tuple[str, ...]:
        both = (pair, _reverse(pair))
        return tuple(one for one in self.directions if one in both) if self.directions else both

    def _stream(self, pair: str) -> PairStream:
        """The stream of a pair in `found`."""
        source, _, target = pair.partition("-")

        def fill(text: str) -> str:
            return text.replace("{src}", source).replace("{tgt}", target)

        (pattern,) = self.pairs
        path = fill(pattern) if isinstance(pattern, str) else {fill(k): fill(path) for k, path in pattern.items()}
        changes = {
            "pairs": (path,),
            "keys": {fill(code): fill(key) for code, key in self.keys.items()},
            "columns": tuple(map(fill, self.columns)),
            "directions": self._directions_of(pair),
            "weights": "by_size",
            "found": (),
        }
        return self.model_copy(update=changes)

    def entry_streams(self, name: str) -> dict[str, PairStream]:
        """The streams of an entry called `name`, by name, such as NAME/en-zh."""
        return {f"{name}/{pair}": self._stream(pair) for pair in self.found}

    @property
    def paths(self) -> tuple[str | dict[str, str], ...]:
        """The files of the stream."""
        return self.pairs

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages in the training text."""
        stated = [*self.directions, *self.found]
        return tuple(dict.fromkeys([*self.sides, *(code for d in stated for code in d.split("-"))]))

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the texts of a record: the languages of the training text, and others in `keys`."""
        return tuple(dict.fromkeys([*self.languages, *(code for code in self.keys if code not in CODES)]))

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The keys of the texts of a record, in the order of `codes`."""
        return tuple(self.keys.get(code, code) for code in self.codes)


def _reverse(direction: str) -> str:
    return "-".join(reversed(direction.split("-")))


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
