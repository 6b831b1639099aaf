"""The sections `model`, `init`, `train` and `evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dataengine.config.fields import MAX_SIZE, NOTHING, Count, Direction, Least0, Section, Size


class ModelConfig(Section):
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


class WandbConfig(Section):
    """Where Weights & Biases keeps the run; needs the package wandb."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"  # offline: files under OUT/wandb, for `wandb sync`


class InitConfig(Section):
    """Begin with the model and the optimizer of another run: the second stage (paper, section 3: Last)."""

    checkpoint: str  # RUN/checkpoints/step-N, or RUN for its newest; a folder or a URL
    mode: Literal["restart", "continue"]  # restart: from step 0 of this plan; continue: at the step of its `parent`


_Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
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
_Shots = Annotated[int, Field(ge=0, le=MAX_SIZE)]


class EvaluateConfig(Section):
    """Translation of development and test sets, choice of a checkpoint, reasoning tasks (paper, section 4)."""

    dev: dict[Direction, SetPlace] = {}  # chooses the checkpoint
    test: dict[Direction, SetPlace] = {}  # judges the chosen one
    max_sentences: Count | None = None  # the first so many of each set
    shots: tuple[_Shots, ...] = Field(
        default=(0,), min_length=1
    )  # or `num_fewshot`: examples in the prompt; the paper: [0, 5]
    examples: dict[Direction, SetPlace] = {}  # where they come from; default: dev
    # Or `selection_directions`: mean dev BLEU over these, with the first of `shots`; default: all of dev
    choose_by: tuple[Direction, ...] = ()
    beams: Size = 1  # or `num_beams`; 1: greedy search
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
