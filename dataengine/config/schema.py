"""One YAML file is one experiment: read it with its bases and overrides, and check it once, here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dataengine.cleaning.rules.pairs import DocumentRules, PairRules
from dataengine.config.layers import Loc, dotted, read_layers
from dataengine.errors import InputError, did_you_mean
from dataengine.storage.s3_client import is_url
from dataengine.text.language_codes import meant_language

_LANGUAGES = {"en": "English", "zh": "Chinese", "id": "Indonesian"}
_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


_COUNT = re.compile(r"(\d(?:_?\d){0,99})(?:\.(\d{1,99}))?([KMBGT]?)", re.ASCII)


def parse_count(value: object) -> object:
    """Read `2.1B` or `32_768` as an integer; leave what is no such text to the validator."""
    if isinstance(value, str) and (match := _COUNT.fullmatch(value.strip())):
        whole, decimals, suffix = match[1], match[2] or "", match[3]
        scaled, rest = divmod(int(whole + decimals) * _SUFFIXES[suffix], 10 ** len(decimals))
        return value if rest else scaled
    return value


Decision = Literal["bytes", "plan", "training", "nothing"]


@dataclass(frozen=True)
class Decides:
    """What a field of a config decides; a field of a nested section without this word decides what its section does."""

    what: Decision


BYTES = Decides("bytes")  # what the samples of streams hold
PLAN = Decides("plan")  # which sample stands where in the run
TRAINING = Decides("training")  # numbers of a training or an evaluation
NOTHING = Decides("nothing")  # no result: places, speed, limits


def decision_of(section: type[BaseModel], name: str) -> Decision | None:
    """What a field states that it decides; None if it decides what its section does."""
    return next((mark.what for mark in section.model_fields[name].metadata if isinstance(mark, Decides)), None)


_MOST = 2**63 - 1  # manifests, and NumPy's arithmetic on them, have 64 bits
_MOST_SIZE = 2**31 - 1
Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=_MOST)]
Size = Annotated[int, BeforeValidator(parse_count), Field(gt=0, le=_MOST_SIZE)]  # of something held in memory at once
Least0 = Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=_MOST)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
# `columns: heading` is the default: the first line of each file names its columns.
Columns = Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value == "heading" else value)]
_DIRECTION = r"^[A-Za-z0-9]+-[A-Za-z0-9]+$"
_LANGUAGE = r"^[A-Za-z0-9]+$"  # of pairs: no region or script, as `-` stands between the two of a direction
Direction = Annotated[str, Field(pattern=_DIRECTION)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, field: ValidationInfo) -> Any:
        """Pydantic takes `true` for 1."""
        if isinstance(value, bool):
            kinds = set(re.findall(r"\w+", str(cls.model_fields[str(field.field_name)].annotation)))
            if kinds & {"int", "float"} and "bool" not in kinds:
                raise ValueError(f"expected a number, got {str(value).lower()}")
        return value


class _PlacedError(ValueError):
    """A mistake at one key, found where several are looked at together."""

    def __init__(self, loc: Loc, words: str) -> None:
        super().__init__(words)
        self.loc = loc


class AssumeConfig(_Section):
    """The size of a stream that is not built yet, so that `dataengine plan` can show its schedule."""

    tokens: Count | None = None  # all tokens of its samples
    samples: Count | None = None

    @model_validator(mode="after")
    def _states_one(self) -> AssumeConfig:
        if (self.tokens is None) == (self.samples is None):
            raise ValueError("state `tokens` or `samples`, such as {tokens: 162.5B}")
        return self


class SubsetsConfig(_Section):
    """Records to leave out by the name of the subset that they come from."""

    key: str  # where a record states it, such as meta.redpajama_set_name
    drop: tuple[str, ...]  # such as [RedPajamaGithub]


class CleanConfig(_Section):
    """What is dropped before tokenizing; each drop is counted by its reason. All is off until it is named."""

    pair_rules: PairRules | None = None  # {} takes the defaults
    document_rules: DocumentRules | None = None
    min_language_score: float | None = Field(default=None, gt=0, le=1)  # of the language that a text should have
    dedup: tuple[str, ...] = ()  # text (documents); pair, or a language's code for that side alone (pairs)
    near_dedup: Annotated[float, Field(gt=0, lt=1)] | None = None  # least Jaccard similarity of near duplicates
    decontaminate: tuple[str, ...] = ()  # files of evaluation texts; what shares a text or a long n-gram goes
    subsets: SubsetsConfig | None = None


class ScoresConfig(_Section):
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


class StreamConfig(_Section):
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
    sides: tuple[Annotated[str, Field(pattern=_LANGUAGE)], ...] = ()  # pairs: only these sides, a document each
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


class BudgetConfig(_Section):
    """The length of the whole run, for stages that state `fraction` or `rest`."""

    steps: Count | None = None
    tokens: Count | None = None  # predicted tokens, rounded down to steps

    @model_validator(mode="after")
    def _states_one(self) -> BudgetConfig:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("state `steps` or `tokens`, such as {steps: 160_000}")
        return self


class ParentConfig(_Section):
    """The run that this one goes on from: its steps before `step`, then the stages of this config."""

    manifest: Annotated[str, NOTHING]  # path of the parent's manifest.json; what it holds decides
    step: Count


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mix = dict[Name, Weight | Literal["by_size", "all", "rest"]]


class StageConfig(_Section):
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


class ModelConfig(_Section):
    """A Llama-type decoder, in the words of transformers.LlamaConfig. Defaults: TinyLlama 1.1B (paper, table 9)."""

    hidden_size: Size = 2048
    intermediate_size: Size = 5632
    num_hidden_layers: Size = 22
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 4
    rms_norm_eps: Annotated[float, Field(ge=0)] = 1e-5
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    tie_word_embeddings: bool = False
    init_seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] = (
        3407  # weights do not depend on the rank or the world size
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size}) "
                f"and be a multiple of num_key_value_heads ({self.num_key_value_heads})"
            )
        return self


class WandbConfig(_Section):
    """Where Weights & Biases keeps the run; needs the package wandb."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"  # offline: files under OUT/wandb, for `wandb sync`


class InitConfig(_Section):
    """Begin with the model and the optimizer of another run: the second stage (paper, section 3: Last)."""

    checkpoint: str  # RUN/checkpoints/step-N, or RUN for its newest; a folder or a URL
    mode: Literal["restart", "continue"]  # restart: from step 0 of this plan; continue: at the step of its `parent`


_Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(_Section):
    """Optimization, checkpoints and logs. Defaults: paper, table 10, and the reference code's horizon."""

    learning_rate: float = Field(default=4e-4, gt=0)
    min_learning_rate: float = Field(default=4e-5, ge=0)
    warmup_steps: Least0 = 2000
    # The cosine takes so many steps from step 0 or the last restart, then the rate stays; `end`: up to the plan's end,
    # wherever train.max_steps stops
    decay_steps: Count | Literal["end"] = 1_430_512
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: Annotated[float, Field(ge=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: float = Field(default=1.0, gt=0)
    microbatch_size: Size | Literal["auto"] = 16  # samples a rank computes at a time; auto: the most that fit a GPU
    max_steps: Annotated[Count | None, NOTHING] = None  # stop early; default: the end of the schedule
    checkpoint_interval: Count = 5000  # steps
    keep_checkpoints: Annotated[Count | None, NOTHING] = None  # the newest so many; default: all
    log_interval: Annotated[Count, NOTHING] = 10  # steps
    loader_workers: Annotated[int, Field(ge=0, le=1024), NOTHING] = 2  # processes a rank
    seed: Annotated[int, Field(ge=0, le=4 * 10**9)] = 3407  # Composer adds the rank, and has 32 bits
    attention: Literal["auto", "flash_attention_2", "sdpa"] = "auto"
    loss: Literal["chunked", "liger"] = "chunked"  # of all logits a part at a time; or liger-kernel's, on CUDA
    compile: bool = False  # torch.compile; the first step takes minutes longer
    activation_checkpointing: bool = False  # compute layers again backward: less memory, a third more time
    shard_ranks: Size | None = None  # parameters are sharded over so many ranks and replicated beyond; default: all
    deterministic: bool = False  # the same floats at each run on the same GPUs, slower; on CPU they are the same anyway
    # Seconds for which a bucket that does not answer is tried again
    outage_limit: Annotated[Count, Field(le=10**9), NOTHING] = 3600
    spike_factor: float | None = Field(default=2.0, gt=1)  # stop at a loss so many times the usual; null: never
    spike_window: Annotated[int, Field(ge=10, le=10**6)] = 100  # steps in which a stream's loss is found usual
    on_bad_step: Literal["stop", "skip"] = (
        "stop"  # skip: go on without the update of a step that must not be trained on
    )
    # Of a run, in all; one more stops it
    max_skipped_steps: Annotated[Count, NOTHING] = 10
    tensorboard: Annotated[bool, NOTHING] = False  # event files under OUT/tensorboard
    wandb: Annotated[WandbConfig | None, NOTHING] = None


# A file of pairs (JSON Lines or TSV with a key or heading per language, WMT .xml, a Flores-200 folder), or a file for
# each language: {en: newstest.en, zh: newstest.zh}, plain or .sgm.
SetPlace = str | dict[str, str]
_Shots = Annotated[int, Field(ge=0, le=_MOST_SIZE)]


class EvaluateConfig(_Section):
    """Translation of development and test sets, choice of a checkpoint, reasoning tasks (paper, section 4)."""

    dev: dict[Direction, SetPlace] = {}  # chooses the checkpoint
    test: dict[Direction, SetPlace] = {}  # judges the chosen one
    max_sentences: Count | None = None  # the first so many of each set
    shots: tuple[_Shots, ...] = Field(default=(0,), min_length=1)  # examples in the prompt; the paper: [0, 5]
    examples: dict[Direction, SetPlace] = {}  # where they come from; default: dev
    choose_by: tuple[Direction, ...] = ()  # mean dev BLEU over these, with the first of `shots`; default: all of dev
    beams: Size = 1  # 1: greedy search
    length_penalty: float = 1.0  # of beam search: exponent of the length that scores are divided by
    max_new_tokens: Size = 256
    max_source_tokens: Size | None = None  # longer sources are cut to so many and counted; default: none is cut
    bos: bool | None = None  # before the prompt; default: as in training
    batch_tokens: Size = 16_384  # prompts and new tokens, over all beams, that are in memory at a time
    bleu_tokenize: dict[str, str] = {}  # target language -> sacrebleu's tokenizer, such as {id: flores200}
    bootstrap: Annotated[int, Field(ge=0, le=10**6)] = 1000  # resamples for 95 % confidence intervals; 0: none
    comet: tuple[str, ...] = ()  # COMET and CometKiwi models: folders, or names on the Hugging Face hub
    reasoning: tuple[str, ...] = ()  # lm-eval tasks, such as [arc_easy, xcopa_zh]
    task_folder: str | None = None  # of lm-eval task files of your own

    @model_validator(mode="after")
    def _agrees(self) -> EvaluateConfig:
        if unknown := [direction for direction in self.choose_by if direction not in self.dev]:
            raise ValueError(f"`choose_by`: {unknown[0]} is no direction of `dev`: {', '.join(self.dev) or 'none'}")
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"`shots`: {list(self.shots)} has a number twice")
        return self


class Config(_Section):
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
    # A SentencePiece .model or a Hugging Face tokenizer.json; what it holds decides
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
    streams: Annotated[dict[Name, StreamConfig], BYTES]
    budget: Annotated[BudgetConfig | None, PLAN] = None
    stages: Annotated[tuple[StageConfig, ...], PLAN]
    parent: Annotated[ParentConfig | None, PLAN] = None
    init: Annotated[InitConfig | None, TRAINING] = None
    model: Annotated[ModelConfig, TRAINING] = ModelConfig()
    train: Annotated[TrainConfig, TRAINING] = TrainConfig()
    evaluate: Annotated[EvaluateConfig, TRAINING] = EvaluateConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = {"out": f"runs/{values.get('name')}", **values}
        if isinstance(filled.get("languages"), dict):  # a config adds to the usual names
            filled["languages"] = {**_LANGUAGES, **filled["languages"]}
        return filled

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        _check_numbers(self.model_dump(), ())
        for key, url in (("store", self.store), ("out", self.out)):
            if re.match(r"[a-z0-9]+:/[^/]|(s3|gs|oci)//", url.lower()):
                raise _PlacedError((key,), f"{key} is {url}: a URL begins as in s3://bucket/folder")
            if "://" in url and not is_url(url):
                raise _PlacedError(
                    (key,),
                    f"{key} is {url}: not a kind of store. Give a local folder, or s3://, gs:// or oci://bucket/folder",
                )
        if "://" in self.cache:
            raise _PlacedError(("cache",), f"cache is {self.cache}: it must be a folder on a local disk")
        if self.init and self.init.mode == "continue" and self.parent is None:
            raise _PlacedError(
                ("init", "mode"),
                "init.mode `continue` needs `parent`, the plan that goes on: {manifest: RUN/manifest.json, step: N}",
            )
        if self.batch_size % self.lanes:
            raise _PlacedError(("lanes",), f"lanes ({self.lanes}) must divide batch_size ({self.batch_size})")
        for name, stream in self.streams.items():
            if stream.assume and stream.assume.samples and stream.assume.samples * (self.seq_len + 1) > _MOST:
                raise _PlacedError(
                    ("streams", name, "assume", "samples"),
                    f"streams.{name}.assume.samples is {stream.assume.samples:,}: with seq_len {self.seq_len:,} that "
                    f"is more than {_MOST:,} tokens, the most that can be counted",
                )
        self._check_stages()
        self._check_languages()
        return self

    def _check_stages(self) -> None:
        if not self.stages:
            raise _PlacedError(
                ("stages",), "`stages` needs at least one stage, such as {name: all, drain: true, mix: {mono: 1}}"
            )
        names: set[str] = set()
        for number, stage in enumerate(self.stages):
            for key, mix in (("mix", stage.mix), ("to_mix", stage.to_mix or {})):
                for stream in mix:
                    if stream not in self.streams:
                        raise _PlacedError(
                            ("stages", number, key, stream),
                            f"stage '{stage.name}' mixes stream '{stream}', which `streams` does not define"
                            f"{did_you_mean(stream, self.streams)}",
                        )
            if stage.name in names:
                raise _PlacedError(("stages", number, "name"), f"two stages are named '{stage.name}'")
            names.add(stage.name)
            if self.budget is None and (stage.rest or stage.fraction):
                raise _PlacedError(
                    ("stages", number, "rest" if stage.rest else "fraction"),
                    "a stage with `rest` or `fraction` needs the run's `budget`, such as {steps: 160_000}",
                )
            if stage.rest and any(before.rest for before in self.stages[:number]):
                raise _PlacedError(("stages", number, "rest"), "only one stage can be the `rest` of the budget")
            if fraction_sum(self.stages[: number + 1]) > 1:
                fractions = [f"{before.fraction:g}" for before in self.stages[: number + 1] if before.fraction]
                total = float(fraction_sum(self.stages[: number + 1]))
                raise _PlacedError(
                    ("stages", number, "fraction"),
                    f"the fractions sum to {total:g} ({' + '.join(fractions)}), more than the whole budget",
                )

    def _check_languages(self) -> None:
        used: list[tuple[str, Loc]] = [
            (code, ("streams", name)) for name, stream in self.streams.items() for code in stream.languages
        ]
        for key in ("dev", "test"):
            for direction in getattr(self.evaluate, key):
                used += [(code, ("evaluate", key, direction)) for code in direction.split("-")]
        for language, loc in used:
            if language not in self.languages:
                meant = meant_language(language)
                raise _PlacedError(
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
    def streams_in_use(self) -> tuple[str, ...]:
        """Names of the streams that some stage mixes, in the order of the stages."""
        return tuple(dict.fromkeys(stream for stage in self.stages for stream in stage.streams))


def _check_numbers(value: Any, loc: Loc) -> None:
    """Refuse, anywhere in a config, what JSON, paths and 64 bits cannot hold. Sections of other modules do not."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, (*loc, key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_numbers(inner, (*loc, number))
    elif isinstance(value, str) and "\0" in value:
        raise _PlacedError(loc, f"{dotted(loc)}: expected a text without the character NUL")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _PlacedError(loc, f"{dotted(loc)}: expected a finite number, got {value}")
    elif isinstance(value, int) and not -_MOST - 1 <= value < 2**64:
        raise _PlacedError(loc, f"{dotted(loc)}: expected a number of at most {_MOST:,}, got {_short(value)}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment: its file on top of the files that `base` names, then `a.b=value` overrides.

    A `base` path is relative to the file that names it; all other paths are relative to the working directory.
    Raises InputError naming file, line and key for anything that cannot be used.
    """
    values, lines = read_layers(Path(path), overrides)
    _drop_nulls(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        found = _without_consequences(error.errors())
        problems = [_describe(problem, lines, str(path)) for problem in _join_kinds(found)]
        raise InputError("\n".join(problems)) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _drop_nulls(values: Mapping[str, Any]) -> None:
    """Remove streams and evaluation sets that are null, which is how a file drops what its base has."""
    evaluate = values.get("evaluate")
    named = [evaluate.get(key) for key in ("dev", "test", "examples")] if isinstance(evaluate, dict) else []
    for mapping in [values.get("streams"), *named]:
        if isinstance(mapping, dict):
            for key in [key for key, value in mapping.items() if value is None]:
                del mapping[key]


_KIND = re.compile(r"str|int|float|bool|(constrained-|dict\[|literal\[|tuple\[|function-).*")  # pydantic's, in a union


def _without_consequences(problems: Sequence[Any]) -> list[Any]:
    """Without lists that are too short only because an entry cannot be used."""
    locs = [tuple(problem["loc"]) for problem in problems]
    return [
        problem
        for problem, loc in zip(problems, locs, strict=True)
        if problem["type"] != "too_short" or not any(other[: len(loc)] == loc != other for other in locs)
    ]


def _join_kinds(problems: Sequence[Any]) -> list[Any]:
    """One problem for each key: for a value that may be of several kinds, pydantic states one for each kind."""
    joined: dict[Loc, Any] = {}
    for problem in problems:
        loc = tuple(problem["loc"])
        if len(loc) > 1 and isinstance(loc[-1], str) and _KIND.fullmatch(loc[-1]):
            loc = loc[:-1]
        if loc in joined and problem["type"] != "value_error":
            joined[loc]["others"].append(problem)
        else:
            joined[(*loc, len(joined)) if loc in joined else loc] = {**problem, "loc": loc, "others": []}
    return list(joined.values())


def _describe(problem: Any, lines: Mapping[Loc, str], path: str) -> str:
    """One problem that pydantic found, as a sentence with its place."""
    loc: Loc = tuple(problem["loc"])
    mistake = problem.get("ctx", {}).get("error")
    if isinstance(mistake, _PlacedError):
        return f"{_place(mistake.loc, lines, path)}: {mistake}."
    place = _place(loc, lines, path)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        paths = sorted(_keys_below(Config), key=lambda path: -path.count("."))
        hint = did_you_mean(str(loc[-1]), known, {path.rpartition(".")[2]: path for path in paths})
        return f"{place}: unknown key '{dotted(loc)}'{hint}. Known keys here: {', '.join(known)}."
    if problem["type"] == "missing":
        return f"{place}: key '{dotted(loc)}' is missing. Add it."
    message = ", or ".join(dict.fromkeys(_message(one) for one in (problem, *problem["others"])))
    if problem["type"] == "value_error":
        return f"{place}: {f'{dotted(loc)}: ' if loc else ''}{message}."
    if loc[-1] == "[key]" and isinstance(problem["input"], bool):
        message += ". YAML takes no, yes, on and off without quotes for false and true"
    key = "" if place.startswith(f"override {dotted(loc)}=") else f"{dotted(loc)}: "  # the override names it
    return f"{place}: {key}{message}, got {_short(problem['input'])}."


def _short(value: object) -> str:
    """A value as it was written, cut where it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:100]} ... ({len(text):,} characters)"


def _place(loc: Loc, lines: Mapping[Loc, str], path: str) -> str:
    return next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), path)


def _message(problem: Any) -> str:
    """What pydantic says, in the words of a YAML file."""
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    loc: Loc = tuple(problem["loc"])
    if kind == "tuple_type" and loc[-1] == "dedup":
        return "expected a list: [text] of documents; of pairs some of pair and the languages' codes, such as [pair]"
    if kind == "tuple_type":
        shown = value if isinstance(value, str) and re.fullmatch(r"[^\s,\[\]{}:#]{1,80}", value) else "a, b"
        return f"expected a list, such as [{shown}]"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        known = _known_keys(loc) if kind == "model_type" else []
        more = ", ..." if len(known) > 4 else ""
        none = ", or {} for none" if value is None else ""
        if known:
            return f"expected keys of its own ({', '.join(known[:4])}{more}){none}"
        return "expected keys, as {key: value}"
    if kind == "int_parsing_size":
        return f"expected a number of at most {_MOST:,}"
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return "expected a whole number, such as 1000 or 80K"
    if kind in ("float_parsing", "float_type"):
        return "expected a number, such as 0.8"
    if kind == "string_pattern_mismatch" and context["pattern"] in (_DIRECTION, _LANGUAGE):
        return _expected_languages(str(value), loc, 2 if context["pattern"] == _DIRECTION else 1)
    if kind == "string_pattern_mismatch" and context["pattern"].startswith("^[A-Za-z0-9]"):
        return "expected a name of letters, digits, - and _ that begins with a letter or digit"
    if kind == "less_than_equal" and isinstance(context["le"], int):
        return f"expected a number of at most {context['le']:,}"
    message: str = problem["msg"]
    if message.startswith("Input should be "):
        number = "a number " if kind.startswith(("greater", "less")) else ""
        return f"expected {number}{message.removeprefix('Input should be ')}"
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _expected_languages(text: str, loc: Loc, count: int) -> str:
    """What is said of a text that does not name `count` languages of pairs; a region is told from a language."""
    expected = "expected two languages, such as en-zh" if count == 2 else "expected the code of a language, such as zh"
    parts = re.split("[-_]", text)
    bare = [part for part in parts if re.fullmatch("[a-z]{2,3}", part)]
    regions = [f"{a}-{b}" for a, b in pairwise(parts) if a in bare and re.fullmatch("[A-Z]{2}|[A-Z][a-z]{3}", b)]
    if len(bare) != count or not regions:
        return expected
    variety = (
        f"; for the variety of a TMX state keys: {{{regions[0].partition('-')[0]}: {regions[0]}}}"
        if loc[0] == "streams"
        else ""
    )
    return f"expected languages without region or script: {'-'.join(bare)}{variety}"


def _known_keys(loc: Loc) -> list[str]:
    """The keys of the section at `loc`."""
    section: type[BaseModel] = Config
    for key in loc:
        if isinstance(key, str) and key in section.model_fields:
            section = _SECTIONS.get(key, section)
    return list(section.model_fields)


def _keys_below(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """All keys of a config with those that lead to them, such as train.seed; STREAM and STAGE stand for any of them."""
    for name, field in section.model_fields.items():
        yield f"{path}{name}"
        for inner in {_SECTIONS.get(name)} & {field.annotation, *_parts(field.annotation)}:
            assert inner is not None
            yield from _keys_below(inner, f"{path}{name}.{_EACH.get(name, '')}")


def _parts(annotation: Any) -> Iterator[Any]:
    """What a type is made of, at any depth."""
    for part in get_args(annotation):
        yield part
        yield from _parts(part)


_EACH = {"streams": "STREAM.", "stages": "STAGE."}
_SECTIONS: dict[str, type[BaseModel]] = {
    "clean": CleanConfig,
    "document_rules": DocumentRules,
    "pair_rules": PairRules,
    "scores": ScoresConfig,
    "subsets": SubsetsConfig,
    "assume": AssumeConfig,
    "budget": BudgetConfig,
    "parent": ParentConfig,
    "init": InitConfig,
    "streams": StreamConfig,
    "stages": StageConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "wandb": WandbConfig,
    "evaluate": EvaluateConfig,
}
