"""The section `streams`: where records lie, how they become text, and what cleaning drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

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


class CleanConfig(Section):
    """What is dropped before tokenizing; each drop is counted by its reason. All is off until it is named."""

    pair_rules: PairRules | None = None  # {} takes the defaults
    document_rules: DocumentRules | None = None
    min_language_score: float | None = Field(default=None, gt=0, le=1)  # of the language that a text should have
    dedup: tuple[str, ...] = ()  # text (documents); pair, or a language's code for that side alone (pairs)
    near_dedup: Annotated[float, Field(gt=0, lt=1)] | None = None  # least Jaccard similarity of near duplicates
    decontaminate: tuple[str, ...] = ()  # files of evaluation texts; what shares a text or a long n-gram goes
    subsets: SubsetsConfig | None = None


class ScoresConfig(Section):
    """Quality of pairs by a reference-free COMET model (`dataengine score`); pairs below a threshold are dropped."""

    model: str  # checkpoint (path, or a name on the Hugging Face hub)
    thresholds: dict[Direction, float] = Field(min_length=1)  # the paper: {zh-en: 0.42}, {id-en: 0.58}


def _files_by_language(paths: Sequence[str], codes: Sequence[str]) -> dict[str, str]:
    """The path of each language if paths are such as corpus.en and corpus.zh.gz, or a.en.txt; empty if they are not."""
    found: dict[str, str] = {}
    for path in paths:
        name = path.rpartition("/")[2].removesuffix(".gz").removesuffix(".zst").removesuffix(".xz").removesuffix(".bz2")
        code = name.removesuffix(".txt").rpartition(".")[2]
        found |= {code: path}
    return {code: found[code] for code in codes} if set(found) == set(codes) and len(paths) == len(codes) else {}


class StreamConfig(Section):
    """A stream of documents or of sentence pairs: where its records lie and how they become text."""

    # Paths, globs or URLs: .jsonl .json .txt .tsv .tmx, plain, .gz, .zst, .xz or .bz2, and .parquet
    documents: tuple[str, ...] = ()
    pairs: tuple[str | dict[str, str], ...] = ()  # a mapping is a Moses corpus: {en: corpus.en, zh: corpus.zh}
    format: Literal["jsonl", "tsv", "text", "tmx", "parquet"] | None = None  # default: by the file's name
    text_key: str = "text"  # documents: the key of the text; a dotted key goes into nested objects
    keys: dict[str, str] = {}  # pairs: language -> key of its sentence; default: the language's code
    columns: Columns = ()  # .tsv: their names in files without a heading; a heading that names the keys is obeyed
    split: Literal["line", "paragraph", "file"] = "line"  # .txt: what a document is
    language: str | None = None  # documents: the code of their language, for rules and min_language_score
    directions: tuple[Direction, ...] = ()  # pairs: pair number i is written in direction i modulo their number
    adjacent: bool = True  # pairs: false takes the target of another pair, at random, each once
    sides: tuple[Annotated[str, Field(pattern=LANGUAGE_PATTERN)], ...] = ()  # pairs: only these sides, a document each
    clean: CleanConfig = CleanConfig()
    scores: ScoresConfig | None = None
    passes: Annotated[Count, PLAN] = 1  # how often the schedule may go through the stream
    assume: Annotated[AssumeConfig | None, NOTHING] = None  # its size until it is built

    @model_validator(mode="after")
    def _is_one_kind(self) -> StreamConfig:
        if bool(self.documents) == bool(self.pairs):
            raise ValueError("a stream states either `documents` or `pairs`: a list of paths")
        if bool(self.pairs) != (bool(self.directions) != bool(self.sides)):
            raise ValueError("pairs need either `directions` (such as [en-zh]) or `sides` (such as [zh])")
        if same := [direction for direction in self.directions if len(set(direction.split("-"))) == 1]:
            raise ValueError(f"`directions`: {same[0]} goes from a language to itself")
        if files := _files_by_language([path for path in self.pairs if isinstance(path, str)], self.codes):
            corpus = ", ".join(f"{code}: {path}" for code, path in files.items())
            raise ValueError(f"`pairs`: a file for each language is a mapping: pairs: [{{{corpus}}}]")
        if self.documents and (self.directions or self.sides):
            raise ValueError("`directions` and `sides` go with `pairs`")
        if self.pairs and self.text_key != "text":
            raise ValueError("`text_key` goes with `documents`; pairs have `keys`, by default their language codes")
        if not self.adjacent and not self.directions:
            raise ValueError("`adjacent: false` goes with `directions`")
        if self.documents and self.clean.pair_rules:
            raise ValueError("`clean.pair_rules` goes with `pairs`; documents have `clean.document_rules`")
        if self.documents and self.keys:
            raise ValueError("`keys` goes with `pairs`; documents have `text_key`")
        if self.documents and self.scores:
            raise ValueError("`scores` goes with `pairs`")
        if self.documents and self.clean.min_language_score and not self.language:
            raise ValueError("`clean.min_language_score` needs the stream's `language`, such as en")
        if self.pairs and self.clean.document_rules:
            raise ValueError("`clean.document_rules` goes with `documents`; pairs have `clean.pair_rules`")
        if self.pairs and self.language:
            raise ValueError("`language` goes with `documents`; the languages of pairs are those of their codes")
        known = ("text",) if self.documents else ("pair", *self.codes)
        if unknown := [kind for kind in self.clean.dedup if kind not in known]:
            raise ValueError(f"clean.dedup: {', '.join(unknown)}: expected some of {', '.join(known)}")
        if self.pairs and self.clean != CleanConfig() and len(self.codes) > 2:
            raise ValueError(
                f"cleaning compares two languages, and this stream has {len(self.codes)} ({', '.join(self.codes)}): "
                "make a stream for each pair"
            )
        if self.pairs and self.clean != CleanConfig() and len(self.codes) < 2:
            raise ValueError("cleaning compares two languages: state `keys` for both, such as {en: en, zh: zh}")
        for direction in self.scores.thresholds if self.scores else ():
            if set(direction.split("-")) != set(self.codes):
                raise ValueError(f"scores.thresholds: {direction} is no direction of {' and '.join(self.codes)}")
        return self

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the stream writes."""
        return tuple(dict.fromkeys([*self.sides, *(code for d in self.directions for code in d.split("-"))]))

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the languages that the stream reads: those that it writes, and others that `keys` name."""
        return tuple(dict.fromkeys([*self.languages, *self.keys]))
