"""The top level of an experiment's YAML, its budget and stages, and the checks between sections."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, model_validator

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
    SizePower,
    dotted,
    short_value,
)
from dataengine.config.streams import PairStream, ScoresConfig, Stream
from dataengine.config.training import EvaluateConfig, InitConfig, ModelConfig, TrainConfig
from dataengine.errors import did_you_mean
from dataengine.storage import model_hub as hub
from dataengine.storage.paths import is_url, read_only_hint
from dataengine.tables import few
from dataengine.text.language_codes import meant_language
from dataengine.text.language_names import ENGLISH_NAMES

_LANGUAGES = {"en": "English", "zh": "Chinese", "id": "Indonesian"}


class BudgetConfig(Section):
    """The length of the whole run. Stages with `fraction` or `rest` need it. State `steps` or `tokens`."""

    steps: Count | None = None
    """Length of the run in steps."""
    tokens: Count | None = None
    """Length of the run in predicted tokens, rounded down to steps."""

    @model_validator(mode="after")
    def _states_one(self) -> BudgetConfig:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("state `steps` or `tokens`, such as {steps: 160_000}")
        return self


class ParentConfig(Section):
    """Fork the schedule of another run: keep its steps before `step`, then run the stages of this config.

    Samples that the parent has drawn by then count as drawn.
    """

    manifest: Annotated[str, NOTHING]
    """Path or URL of the parent's manifest.json. The plan depends on its content, not on its path."""
    step: Count
    """The first step of this config's stages. The steps before it are the parent's."""


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mix = dict[Name, Weight | Literal["by_size", "all", "rest"] | SizePower]


class StageConfig(Section):
    """A part of the run with one mix of streams, or with a mix that moves from `mix` to `to_mix`.

    State the length of a stage by exactly one of `steps`, `tokens`, `samples`, `fraction`, `drain` and `rest`.
    """

    name: Name
    """Name of the stage in tables, logs and plots. Each stage needs a name of its own."""
    steps: Count | None = None
    """Length of the stage in steps."""
    tokens: Count | None = None
    """Length of the stage in predicted tokens (`seq_len` per sample), rounded down to steps."""
    samples: Count | None = None
    """Length of the stage in samples, rounded down to steps."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Length of the stage as a fraction of the budget, rounded to steps. Fractions that sum to 1 fill the budget
    exactly."""
    drain: bool = False
    """Run as many steps as the remaining samples of the streams allow."""
    rest: bool = False
    """Take the part of the budget that the other stages leave. Only one stage may."""
    mix: Mix
    """The streams of each batch, by weight. Relative weights: {mono: 3, en-zh: 1}. `by_size` for all streams: in
    proportion to their remaining samples, or `by_size^0.3`, to this power of them. `all` for some and `rest` for one:
    spread all remaining samples of some streams evenly, and fill each batch from the other."""
    to_mix: dict[Name, Weight] | None = None
    """Move linearly from the weights of `mix` to these over the stage, in up to 100 parts. Default: one mix."""
    at: Annotated[float, Field(ge=0, le=1)] | None = None
    """Start the stage after this fraction of the other stages' steps, and split the stage that runs there. Default: in
    the order of the file."""
    checkpoint_interval: Annotated[Count | None, TRAINING] = None
    """Steps between checkpoints, counted from the start of the stage. Default: `train.checkpoint_interval`."""
    restart_learning_rate: Annotated[bool, TRAINING] = False
    """Start the learning rate again at the start of this stage, with a warm-up and a decay."""
    schedule: Annotated[Literal["cosine", "linear", "constant"] | None, TRAINING] = None
    """Learning rate of this stage: from the rate of the step before it, as a cosine or a line to `decay_to` at its last
    step, or constant. Later stages keep that rate until one restarts it or states a schedule. Default: the rate goes on
    as before, by `train.schedule`."""
    decay_to: Annotated[Annotated[float, Field(ge=0)] | None, TRAINING] = None
    """Learning rate at the last step of this stage, for `schedule`. Default: `train.decay_to`."""

    @model_validator(mode="after")
    def _agrees(self) -> StageConfig:
        lengths = (self.steps, self.tokens, self.samples, self.fraction, self.drain or None, self.rest or None)
        if sum(length is not None for length in lengths) != 1:
            raise ValueError(
                "state the length of a stage once: "
                "`steps`, `tokens`, `samples`, `fraction`, `drain: true` or `rest: true`"
            )
        if not self.mix:
            raise ValueError("`mix` names at least one stream, such as {mono-en: 1}")
        words = {weight for weight in self.mix.values() if isinstance(weight, str)}
        numbers = any(isinstance(weight, float) for weight in self.mix.values())
        if (sizes := sorted(words - {"all", "rest"})) and (numbers or words != {sizes[0]}):
            others = ", ".join(name for name, weight in self.mix.items() if weight != sizes[0])
            raise ValueError(
                f"`{sizes[0]}` must be the weight of all streams of a mix or of none. Change the weight of {others}"
            )
        if words & {"all", "rest"} and (numbers or list(self.mix.values()).count("rest") != 1):
            raise ValueError("in a mix with `all` or `rest`, exactly one stream is `rest` and all others are `all`")
        if self.to_mix is not None and (words or self.drain):
            raise ValueError("a ramp (`to_mix`) needs numbers in both mixes and a length other than `drain`")
        if self.drain and words & {"all", "rest"}:
            raise ValueError("`drain` needs weights or `by_size`; `all` and `rest` need a stated length")
        if self.decay_to is not None and self.schedule not in ("cosine", "linear"):
            raise ValueError("`decay_to` of a stage needs `schedule: linear` or `schedule: cosine`")
        if self.rest and self.at is not None:
            raise ValueError("a stage with `rest: true` cannot have `at`. Use `at` for the other stages")
        return self

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of the stage."""
        return tuple(dict.fromkeys([*self.mix, *(self.to_mix or ())]))


def fraction_sum(stages: Sequence[StageConfig]) -> Fraction:
    """Sum of the stages' fractions of the budget, computed from the decimal numbers in the file.

    A sum that differs from 1 only in the last digits, such as that of three thirds, counts as exactly 1.
    """
    total = sum((Fraction(repr(stage.fraction)) for stage in stages if stage.fraction is not None), Fraction(0))
    return Fraction(1) if abs(total - 1) < Fraction(1, 10**9) else total


class Config(Section):
    """One experiment: names and places, the form of samples and batches, and the sections below."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_/-]*$"), PLAN]
    """Name of the experiment. A name with a slash, such as mine/first, makes folders."""
    out: Annotated[str, NOTHING]
    """Run folder for checkpoints, logs, exported models and scores: a local folder or a URL. Default: runs/NAME."""
    store: Annotated[str, NOTHING] = "store"
    """Where built streams and manifests are stored: a local folder or s3://bucket/prefix. Experiments share it."""
    cache: Annotated[str, NOTHING] = "cache"
    """A local folder for copies of shards, if `store` is in a bucket, and for the run, if `out` is in one. Use a fast
    disk of each node."""
    cache_limit: Annotated[Count | None, NOTHING] = None
    """The most bytes of shards in `cache`, such as 200G. Above it, the least recently used ones are removed. Default:
    the free space of the disk."""
    seed: Annotated[int, Field(ge=0, le=2**64 - 1), PLAN] = 17
    """Seed of the order of samples."""
    part_bytes: Annotated[Count, BYTES] = 128 * 10**6
    """Bytes per task: the build splits plain files and Parquet at about this size. Lower it if there are more workers
    than tasks."""
    tokenizer: Annotated[str, NOTHING, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]})]
    """Path of the tokenizer: a SentencePiece .model, a Hugging Face tokenizer.json (also hf://ORG/NAME/tokenizer.json),
    or a folder with one of them. Its content decides the tokens; its path does not matter. Default with `init.hf`, also
    for null: the pretrained model's tokenizer."""
    tokenizer_engine: Annotated[Literal["auto", "reference"], NOTHING] = "auto"
    """`auto` tokenizes with gigatoken, which is several times faster, if its ids equal those of the reference library.
    `reference` never uses gigatoken."""
    eos_token: Annotated[str | None, BYTES] = None
    """The token that ends each document, such as `</s>`. Default: the one of the tokenizer."""
    bos: Annotated[bool, BYTES] = False
    """Put the BOS token before each document. The paper's training data have none."""
    seq_len: Annotated[Size, BYTES] = 2048
    """Predicted tokens per sample. A sample stores one token more."""
    batch_size: Annotated[Size, PLAN] = 512
    """Samples per step, over all ranks. The number of ranks must divide it."""
    lanes: Annotated[Size, PLAN] = 1
    """Cut each stream into N parts; each serves one N-th of every batch. A node then reads only the shards of its own
    lanes. 1 is right for most clusters: set it to the number of nodes only if nodes cannot hold or afford to download
    all shards. Must divide `batch_size`."""
    shuffle_block: Annotated[Count, PLAN] = 32_768
    """Samples are shuffled within blocks of N, and the shards of a stream as a whole. Larger blocks mix better and need
    more cache."""
    samples_per_shard: Annotated[Size, BYTES] = 4096
    """Samples per shard file. A shard of the default size takes about 16 MB."""
    shard_hashes: Annotated[tuple[Literal["xxh64", "xxh3_128", "sha256"], ...], BYTES] = Field(
        default=("xxh64",), min_length=1
    )
    """Hashes of each shard in its index. All of them are checked when a shard is opened."""
    shard_compression: Annotated[Annotated[str, Field(pattern=r"^zstd:([1-9]|1\d|2[0-2])$")] | None, BYTES] = None
    """Compress shards with Zstandard at this level, such as zstd:1. Default: no compression."""
    max_bad_fraction: Annotated[float, NOTHING] = Field(default=0.001, ge=0, le=1)
    """The build fails if more than this fraction of a stream's records is unusable, such as broken JSON."""
    languages: Annotated[dict[str, str], BYTES] = _LANGUAGES
    """Full name of each language code, for training text and prompts. Names in the file add to the defaults; other
    codes get their English name from CLDR."""
    streams: Annotated[dict[Name, Stream], BYTES]
    """The streams by name: each has either `documents` or `pairs`. null drops a stream of the base."""
    budget: Annotated[BudgetConfig | None, PLAN] = None
    """Length of the whole run, for stages with `fraction` or `rest`. Default: the sum of the stages."""
    stages: Annotated[tuple[StageConfig, ...], PLAN]
    """The stages of the run, in order. A list in the file replaces that of the base."""
    parent: Annotated[ParentConfig | None, PLAN] = None
    """Fork the schedule of another run at one of its steps. Default: start a new schedule."""
    init: Annotated[InitConfig | None, TRAINING] = None
    """Start from the checkpoint of another run, or from a pretrained model. Default: new weights."""
    model: Annotated[ModelConfig, TRAINING] = ModelConfig()
    """Size of the model. Default: TinyLlama 1.1B; with `init.hf`, also for null: that of the pretrained model."""
    train: Annotated[TrainConfig, TRAINING] = TrainConfig()
    """Optimizer, learning rate, checkpoints, logs and safety limits."""
    evaluate: Annotated[EvaluateConfig, TRAINING] = EvaluateConfig()
    """Translation sets, decoding, choice of a checkpoint, and reasoning tasks."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        filled = {"out": f"runs/{values.get('name')}", **values}
        init = values.get("init")
        if isinstance(init, dict) and isinstance(init.get("hf"), str):  # null drops what a base states
            if filled.get("tokenizer") is None:
                filled["tokenizer"] = hub.address_of(init["hf"], init.get("revision"))
            if filled.get("model", {}) is None:
                del filled["model"]
        if isinstance(filled.get("languages"), dict):  # names in a file add to the defaults
            filled["languages"] = {**_LANGUAGES, **filled["languages"]}
        return filled

    @model_validator(mode="after")
    def _name_languages(self) -> Config:
        """Add the CLDR names of languages that are used but missing in `languages`."""
        for code, _ in self._languages_used():
            if code in ENGLISH_NAMES:
                self.languages.setdefault(code, ENGLISH_NAMES[code])
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        _check_numbers(self.model_dump(), ())
        for key, url in (("store", self.store), ("out", self.out)):
            if re.match(r"[a-z0-9]+:/[^/]|(s3|gs|oci)//", url.lower()):
                raise PlacedError((key,), f"{key} is {url}: write a URL as s3://bucket/folder")
            if "://" in url and not is_url(url):
                words = "unknown kind of store. Use a local folder, or s3://, gs:// or oci://bucket/folder."
                words = f"{words}{read_only_hint(url)}"
                raise PlacedError((key,), f"{key} is {url}: {words.removesuffix('.')}")
        if "://" in self.cache:
            raise PlacedError(("cache",), f"cache is {self.cache}: it must be a folder on a local disk")
        if self.init and self.init.mode == "continue" and self.parent is None:
            raise PlacedError(
                ("init", "mode"),
                "init.mode `continue` needs `parent`, the plan to continue: {manifest: RUN/manifest.json, step: N}",
            )
        if self.batch_size % self.lanes:
            raise PlacedError(("lanes",), f"lanes ({self.lanes}) must divide batch_size ({self.batch_size})")
        for name, stream in self.streams.items():
            if stream.assume and stream.assume.samples and stream.assume.samples * (self.seq_len + 1) > MAX_NUMBER:
                raise PlacedError(
                    ("streams", name, "assume", "samples"),
                    f"streams.{name}.assume.samples is {stream.assume.samples:,}: with seq_len {self.seq_len:,} that "
                    f"is more than {MAX_NUMBER:,} tokens, the largest possible number",
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
                raise PlacedError(("stages", number, "rest"), "only one stage can have `rest: true`")
            if fraction_sum(self.stages[: number + 1]) > 1:
                fractions = [f"{before.fraction:g}" for before in self.stages[: number + 1] if before.fraction]
                total = float(fraction_sum(self.stages[: number + 1]))
                raise PlacedError(
                    ("stages", number, "fraction"),
                    f"the fractions sum to {total:g} ({' + '.join(fractions)}), more than the whole budget",
                )

    def _languages_used(self) -> Iterator[tuple[str, Loc]]:
        """The languages of pairs and of evaluation sets, with their places in the config."""
        for name, stream in self.streams.items():
            if isinstance(stream, PairStream):
                yield from ((code, ("streams", name)) for code in stream.codes)
        for key, sets in (("dev", self.evaluate.dev), ("test", self.evaluate.test)):
            for direction in sets:
                yield from ((code, ("evaluate", key, direction)) for code in direction.split("-"))

    def _check_languages(self) -> None:
        unnamed = {language: loc for language, loc in self._languages_used() if language not in self.languages}
        for language, loc in unnamed.items():
            meant = meant_language(language)
            others = f" (and {len(unnamed) - 1:,} others: {few([*unnamed][1:])})" if unnamed.keys() - {language} else ""
            raise PlacedError(
                loc,
                f"no name for language '{language}'{others}: {meant and f'{meant}; if that is not meant, '}add "
                f"`languages: {{{language}: ...}}`, "
                "the full name that prompts and training text use",
            )

    @cached_property
    def all_streams(self) -> dict[str, Stream]:
        """The streams by name. In place of an entry for many pairs, its streams, such as bitext/en-zh."""
        found: dict[str, Stream] = {}
        for name, stream in self.streams.items():
            found |= stream.entry_streams(name) if isinstance(stream, PairStream) and stream.found else {name: stream}
        return found

    @cached_property
    def entries(self) -> dict[str, tuple[str, ...]]:
        """The names of the streams of each entry for many pairs."""
        return {
            name: tuple(f"{name}/{pair}" for pair in stream.found)
            for name, stream in self.streams.items()
            if isinstance(stream, PairStream) and stream.found
        }

    @property
    def entry_weights(self) -> dict[str, str]:
        """How a stage splits the samples of each entry among its streams."""
        streams = ((name, self.streams[name]) for name in self.entries)
        return {name: stream.weights for name, stream in streams if isinstance(stream, PairStream)}

    @property
    def first_step(self) -> int:
        """The first step of a new run: the parent's step if the run continues the parent's checkpoint, else 0."""
        return self.parent.step if self.parent and self.init and self.init.mode == "continue" else 0

    @property
    def scores(self) -> dict[str, ScoresConfig]:
        """The `scores` of the streams that have them."""
        pairs = {name: stream for name, stream in self.streams.items() if isinstance(stream, PairStream)}
        return {name: stream.scores for name, stream in pairs.items() if stream.scores}

    @property
    def streams_in_use(self) -> tuple[str, ...]:
        """Names of the streams that at least one stage mixes, in the order of the stages."""
        mixed = dict.fromkeys(chain.from_iterable(stage.streams for stage in self.stages))
        return tuple(chain.from_iterable(self.entries.get(name, (name,)) for name in mixed))


def _check_numbers(value: object, loc: Loc) -> None:
    """Refuse values anywhere in a config that JSON, paths or 64 bits cannot hold. Sections of other modules have no
    such check."""
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if inner:  # most are empty
                _check_numbers(inner, (*loc, key))
    elif isinstance(value, str) and "\0" in value:
        raise PlacedError(loc, f"{dotted(loc)}: expected a text without the character NUL")
    elif isinstance(value, float) and not math.isfinite(value):
        raise PlacedError(loc, f"{dotted(loc)}: expected a finite number, got {value}")
    elif isinstance(value, int) and not -MAX_NUMBER - 1 <= value < 2**64:
        raise PlacedError(loc, f"{dotted(loc)}: expected a number of at most {MAX_NUMBER:,}, got {short_value(value)}")
