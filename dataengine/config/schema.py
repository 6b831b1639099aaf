"""One YAML file is one experiment: its sections, and what must agree between them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dataengine.config.fields import (
    BYTES,
    MAX_NUMBER,
    NOTHING,
    PLAN,
    TRAINING,
    Count,
    Loc,
    Name,
    PlacedError,
    Section,
    Size,
    dotted,
    short_value,
)
from dataengine.config.streams import PairStream, ScoresConfig, Stream
from dataengine.config.training import EvaluateConfig, InitConfig, ModelConfig, TrainConfig
from dataengine.errors import did_you_mean
from dataengine.storage.paths import is_url
from dataengine.text.language_codes import meant_language
from dataengine.text.language_names import ENGLISH_NAMES

_LANGUAGES = {"en": "English", "zh": "Chinese", "id": "Indonesian"}


class BudgetConfig(Section):
    """The length of the whole run, for stages that state `fraction` or `rest`."""

    steps: Count | None = None
    tokens: Count | None = None  # predicted tokens, rounded down to steps

    @model_validator(mode="after")
    def _states_one(self) -> BudgetConfig:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("state `steps` or `tokens`, such as {steps: 160_000}")
        return self


class ParentConfig(Section):
    """The run that this one goes on from: its steps before `step`, then the stages of this config."""

    manifest: Annotated[str, NOTHING]  # path of the parent's manifest.json; what it holds decides
    step: Count


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mix = dict[Name, Weight | Literal["by_size", "all", "rest"]]


class StageConfig(Section):
    """A run of steps with one mix, or with a mix that moves from `mix` to `to_mix`.

    The length is one of steps, tokens, samples (the latter two rounded down to steps), fraction (of the budget),
    drain and rest. A mix gives each stream a relative weight; or `by_size`: as much as is left of it; or `all` of what
    is left of it, while one stream takes the `rest` of each batch.
    """

    name: Name
    steps: Count | None = None
    tokens: Count | None = None  # predicted tokens: seq_len a sample
    samples: Count | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    drain: bool = False  # as many steps as the streams' remaining samples allow
    rest: bool = False  # what the other stages leave of the budget
    mix: Mix
    to_mix: dict[Name, Weight] | None = None
    at: Annotated[float, Field(ge=0, le=1)] | None = None  # begins after this fraction of the other stages' steps
    # Steps from the stage's start; default train.checkpoint_interval
    checkpoint_interval: Annotated[Count | None, TRAINING] = None
    restart_learning_rate: Annotated[bool, TRAINING] = False  # warm up and decay anew from the stage's start

    @model_validator(mode="after")
    def _agrees(self) -> StageConfig:
        lengths = (self.steps, self.tokens, self.samples, self.fraction, self.drain or None, self.rest or None)
        if sum(length is not None for length in lengths) != 1:
            raise ValueError(
                "a stage states its length once: "
                "`steps`, `tokens`, `samples`, `fraction`, `drain: true` or `rest: true`"
            )
        if not self.mix:
            raise ValueError("`mix` names at least one stream, such as {mono-en: 1}")
        words = {weight for weight in self.mix.values() if isinstance(weight, str)}
        numbers = any(isinstance(weight, float) for weight in self.mix.values())
        if "by_size" in words and (numbers or words != {"by_size"}):
            others = ", ".join(name for name, weight in self.mix.items() if weight != "by_size")
            raise ValueError(f"`by_size` is for all streams of a mix or for none, and not that of {others}")
        if words & {"all", "rest"} and (numbers or list(self.mix.values()).count("rest") != 1):
            raise ValueError("in a mix with `all` or `rest`, exactly one stream is `rest` and all others are `all`")
        if self.to_mix is not None and (words or self.drain):
            raise ValueError("a ramp (`to_mix`) needs numbers in both mixes and a length other than `drain`")
        if self.drain and words & {"all", "rest"}:
            raise ValueError("`drain` needs weights or `by_size`; `all` and `rest` need a stated length")
        if self.rest and self.at is not None:
            raise ValueError("a stage that is the `rest` has no place of its own: `at` goes with the other stages")
        return self

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that the stage draws from."""
        return tuple(dict.fromkeys([*self.mix, *(self.to_mix or ())]))


def fraction_sum(stages: Sequence[StageConfig]) -> Fraction:
    """What the stages' fractions of the budget sum to, as the decimal numbers that were written.

    Thirds and the like, which no decimal number is, sum to exactly 1 if only their last digits miss it.
    """
    total = sum((Fraction(repr(stage.fraction)) for stage in stages if stage.fraction is not None), Fraction(0))
    return Fraction(1) if abs(total - 1) < Fraction(1, 10**9) else total


class Config(Section):
    """One experiment. Each field states what it decides."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_/-]*$"), PLAN]
    # Run folder: checkpoints, logs, exported models, scores; default runs/NAME
    out: Annotated[str, NOTHING]
    store: Annotated[str, NOTHING] = "store"  # built streams, shared by experiments
    # A folder on a fast disk of each node: shards of a store in a bucket, runs whose `out` is in one
    cache: Annotated[str, NOTHING] = "cache"
    cache_limit: Annotated[Count | None, NOTHING] = None  # bytes for such shards; default: the free space
    seed: Annotated[int, Field(ge=0, le=2**64 - 1), PLAN] = 17  # of the order of samples
    # Plain files and Parquet are cut into units of work of about so many bytes
    part_bytes: Annotated[Count, BYTES] = 128 * 10**6
    # A SentencePiece .model, a Hugging Face tokenizer.json, or a folder that has one; its content decides
    tokenizer: Annotated[str, NOTHING]
    # auto: gigatoken where it is seen to give the same ids
    tokenizer_engine: Annotated[Literal["auto", "reference"], NOTHING] = "auto"
    eos_token: Annotated[str | None, BYTES] = None  # default: the tokenizer's own
    bos: Annotated[bool, BYTES] = False  # the paper's training data have none
    seq_len: Annotated[Size, BYTES] = 2048  # predicted tokens a sample; a sample holds one more
    batch_size: Annotated[Size, PLAN] = 512  # samples a step, over all ranks
    lanes: Annotated[Size, PLAN] = 1
    shuffle_block: Annotated[Count, PLAN] = 32_768  # samples
    samples_per_shard: Annotated[Size, BYTES] = 4096
    shard_hashes: Annotated[tuple[Literal["xxh64", "xxh3_128", "sha256"], ...], BYTES] = Field(
        default=("xxh64",), min_length=1
    )
    shard_compression: Annotated[  # such as zstd:1
        Annotated[str, Field(pattern=r"^zstd:([1-9]|1\d|2[0-2])$")] | None, BYTES
    ] = None
    max_bad_fraction: Annotated[float, NOTHING] = Field(default=0.001, ge=0, le=1)  # of a stream's records
    languages: Annotated[dict[str, str], BYTES] = _LANGUAGES
    streams: Annotated[dict[Name, Stream], BYTES]
    budget: Annotated[BudgetConfig | None, PLAN] = None
    stages: Annotated[tuple[StageConfig, ...], PLAN]
    parent: Annotated[ParentConfig | None, PLAN] = None
    init: Annotated[InitConfig | None, TRAINING] = None
    model: Annotated[ModelConfig, TRAINING] = ModelConfig()
    train: Annotated[TrainConfig, TRAINING] = TrainConfig()
    evaluate: Annotated[EvaluateConfig, TRAINING] = EvaluateConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        filled = {"out": f"runs/{values.get('name')}", **values}
        if isinstance(filled.get("languages"), dict):  # a config adds to the usual names
            filled["languages"] = {**_LANGUAGES, **filled["languages"]}
        return filled

    @model_validator(mode="after")
    def _name_languages(self) -> Config:
        """Take the names of CLDR for languages that are used and that `languages` does not name."""
        for code, _ in self._languages_used():
            if code in ENGLISH_NAMES:
                self.languages.setdefault(code, ENGLISH_NAMES[code])
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        _check_numbers(self.model_dump(), ())
        for key, url in (("store", self.store), ("out", self.out)):
            if re.match(r"[a-z0-9]+:/[^/]|(s3|gs|oci)//", url.lower()):
                raise PlacedError((key,), f"{key} is {url}: a URL begins as in s3://bucket/folder")
            if "://" in url and not is_url(url):
                raise PlacedError(
                    (key,),
                    f"{key} is {url}: not a kind of store. Give a local folder, or s3://, gs:// or oci://bucket/folder",
                )
        if "://" in self.cache:
            raise PlacedError(("cache",), f"cache is {self.cache}: it must be a folder on a local disk")
        if self.init and self.init.mode == "continue" and self.parent is None:
            raise PlacedError(
                ("init", "mode"),
                "init.mode `continue` needs `parent`, the plan that goes on: {manifest: RUN/manifest.json, step: N}",
            )
        if self.batch_size % self.lanes:
            raise PlacedError(("lanes",), f"lanes ({self.lanes}) must divide batch_size ({self.batch_size})")
        for name, stream in self.streams.items():
            if stream.assume and stream.assume.samples and stream.assume.samples * (self.seq_len + 1) > MAX_NUMBER:
                raise PlacedError(
                    ("streams", name, "assume", "samples"),
                    f"streams.{name}.assume.samples is {stream.assume.samples:,}: with seq_len {self.seq_len:,} that "
                    f"is more than {MAX_NUMBER:,} tokens, the most that can be counted",
                )
        self._check_stages()
        self._check_languages()
        return self

    def _check_stages(self) -> None:
        if not self.stages:
            raise PlacedError(
                ("stages",), "`stages` needs at least one stage, such as {name: all, drain: true, mix: {mono: 1}}"
            )
        names: set[str] = set()
        for number, stage in enumerate(self.stages):
            for key, mix in (("mix", stage.mix), ("to_mix", stage.to_mix or {})):
                for stream in mix:
                    if stream not in self.streams:
                        raise PlacedError(
                            ("stages", number, key, stream),
                            f"stage '{stage.name}' mixes stream '{stream}', which `streams` does not define"
                            f"{did_you_mean(stream, self.streams)}",
                        )
            if stage.name in names:
                raise PlacedError(("stages", number, "name"), f"two stages are named '{stage.name}'")
            names.add(stage.name)
            if self.budget is None and (stage.rest or stage.fraction):
                raise PlacedError(
                    ("stages", number, "rest" if stage.rest else "fraction"),
                    "a stage with `rest` or `fraction` needs the run's `budget`, such as {steps: 160_000}",
                )
            if stage.rest and any(before.rest for before in self.stages[:number]):
                raise PlacedError(("stages", number, "rest"), "only one stage can be the `rest` of the budget")
            if fraction_sum(self.stages[: number + 1]) > 1:
                fractions = [f"{before.fraction:g}" for before in self.stages[: number + 1] if before.fraction]
                total = float(fraction_sum(self.stages[: number + 1]))
                raise PlacedError(
                    ("stages", number, "fraction"),
                    f"the fractions sum to {total:g} ({' + '.join(fractions)}), more than the whole budget",
                )

    def _languages_used(self) -> Iterator[tuple[str, Loc]]:
        """The languages of pairs and of evaluation sets, and where the config has them."""
        for name, stream in self.streams.items():
            if isinstance(stream, PairStream):
                yield from ((code, ("streams", name)) for code in stream.codes)
        for key, sets in (("dev", self.evaluate.dev), ("test", self.evaluate.test)):
            for direction in sets:
                yield from ((code, ("evaluate", key, direction)) for code in direction.split("-"))

    def _check_languages(self) -> None:
        for language, loc in self._languages_used():
            if language not in self.languages:
                meant = meant_language(language)
                raise PlacedError(
                    loc,
                    f"no name for language '{language}': {meant and f'{meant}; if that is not meant, '}add "
                    f"`languages: {{{language}: ...}}`, "
                    "the full name that prompts and training text use",
                )

    @property
    def first_step(self) -> int:
        """Where a new run begins: at the parent's step if it goes on with the parent's checkpoint."""
        return self.parent.step if self.parent and self.init and self.init.mode == "continue" else 0

    @property
    def scores(self) -> dict[str, ScoresConfig]:
        """The `scores` of the streams that state them."""
        pairs = {name: stream for name, stream in self.streams.items() if isinstance(stream, PairStream)}
        return {name: stream.scores for name, stream in pairs.items() if stream.scores}

    @property
    def streams_in_use(self) -> tuple[str, ...]:
        """Names of the streams that some stage mixes, in the order of the stages."""
        return tuple(dict.fromkeys(stream for stage in self.stages for stream in stage.streams))


def _check_numbers(value: object, loc: Loc) -> None:
    """Refuse, anywhere in a config, what JSON, paths and 64 bits cannot hold. Sections of other modules do not."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, (*loc, key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_numbers(inner, (*loc, number))
    elif isinstance(value, str) and "\0" in value:
        raise PlacedError(loc, f"{dotted(loc)}: expected a text without the character NUL")
    elif isinstance(value, float) and not math.isfinite(value):
        raise PlacedError(loc, f"{dotted(loc)}: expected a finite number, got {value}")
    elif isinstance(value, int) and not -MAX_NUMBER - 1 <= value < 2**64:
        raise PlacedError(loc, f"{dotted(loc)}: expected a number of at most {MAX_NUMBER:,}, got {short_value(value)}")
