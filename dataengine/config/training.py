"""The sections `model`, `init`, `train` and `evaluate`."""

from __future__ import annotations

import logging
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dataengine.config.fields import MAX_SIZE, NOTHING, Count, Direction, Least0, Section, Size

log = logging.getLogger(__name__)


class ModelConfig(Section):
    """The size of the model: a Llama-type decoder with the keys of transformers.LlamaConfig.

    The defaults are TinyLlama 1.1B (paper, table 9).
    """

    hidden_size: Size = 2048
    """Width of the residual stream. Must be a multiple of `num_attention_heads`."""
    intermediate_size: Size = 5632
    """Width of the feed-forward layers."""
    num_hidden_layers: Size = 22
    """Number of transformer layers, one after the other."""
    num_attention_heads: Size = 32
    """Query heads per layer. Must divide `hidden_size`."""
    num_key_value_heads: Size = 4
    """Key and value heads per layer (grouped-query attention). Must divide `num_attention_heads`."""
    rms_norm_eps: Annotated[float, Field(ge=0)] = 1e-5
    """The small number that RMSNorm adds to the variance."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary position embedding. Raise it for long sequences."""
    tie_word_embeddings: bool = False
    """Use one matrix for the input embedding and the output layer. It saves parameters in small models."""
    init_seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] = 3407
    """Seed of the initial weights. They do not depend on the number of ranks."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size}) "
                f"and be a multiple of num_key_value_heads ({self.num_key_value_heads})"
            )
        return self


class WandbConfig(Section):
    """Log the run to Weights & Biases. Needs the package wandb."""

    project: str
    """The project that the run appears in."""
    entity: str | None = None
    """The user or team that owns the project. Default: your own account."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes files under OUT/wandb; upload them later with `wandb sync`."""


class InitConfig(Section):
    """Start from the model and the optimizer of another run: the second stage (paper, section 3: Last). Or start from
    the weights of a pretrained Hugging Face model. State `checkpoint` with `mode`, or `hf`."""

    checkpoint: str | None = None
    """The checkpoint to start from: RUN/checkpoints/step-N, or RUN for its newest. A folder or a URL."""
    mode: Literal["restart", "continue"] | None = None
    """With `checkpoint`: `restart` begins at step 0 of this plan, with a new warm-up. `continue` starts at the step of
    `parent`, with the parent's learning rate."""
    hf: str | None = None
    """The pretrained model to start from: a folder as transformers writes it, or a name on the Hugging Face hub such as
    org/model. Training begins at step 0 with its weights and new moments; `model` and `tokenizer` are the model's."""
    revision: str | None = None
    """With a name on the hub: the commit, tag or branch of the model. Default: the newest commit when the run begins,
    which the run records."""

    @model_validator(mode="after")
    def _states_one(self) -> InitConfig:
        if (self.checkpoint is None) == (self.hf is None):
            raise ValueError("state `checkpoint` (with `mode`) or `hf`, such as {hf: org/model, revision: COMMIT}")
        if (self.checkpoint is None) != (self.mode is None):
            raise ValueError("`mode` goes with `checkpoint`: restart or continue")
        if self.revision is not None and self.hf is None:
            raise ValueError("`revision` goes with `hf`")
        return self


_Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    """Optimizer, learning rate, checkpoints, logs and safety limits of a training.

    The defaults are those of the paper (table 10), with the decay horizon of its reference code.
    """

    learning_rate: float = Field(default=4e-4, gt=0)
    """Peak learning rate, reached at the end of the warm-up."""
    min_learning_rate: float = Field(default=4e-5, ge=0)  # YAML: decay_to
    """Learning rate at the end of the decay and after it."""
    warmup_steps: Least0 = 2000
    """Steps of linear warm-up, counted from step 0 or from the last restart of the learning rate."""
    decay_steps: Count | Literal["end"] = 1_430_512
    """Steps until the learning rate reaches its minimum, counted from step 0 or from the last restart. `end`: the last
    step of the plan, even if `max_steps` stops earlier. The default is far beyond the paper's run, so its rate hardly
    falls."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: as a cosine or a line until `decay_steps`; `wsd`: it stays, and
    falls as a line in the last `cooldown_steps` before that; `constant`: never. A stage may state its own."""
    cooldown_steps: Count | Annotated[float, Field(gt=0, lt=1)] = 0.1
    """With `wsd`: steps in which the learning rate falls, or their fraction of `decay_steps`."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    """AdamW's decay of the running mean of the gradients and of their squares."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """The small number that AdamW adds to the denominator of its update."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's weight decay. It applies to all parameters."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down so that their norm over all parameters is at most this number."""
    microbatch_size: Size | Literal["auto"] = 16
    """Samples that a rank computes at a time. Gradient accumulation: each rank accumulates gradients over batch_size /
    ranks / microbatch_size microbatches. Lower it if memory runs out; `auto` takes the largest that fits a GPU."""
    max_steps: Annotated[Count | None, NOTHING] = None
    """Stop early, at step N of the plan. Default: the end of the plan."""
    checkpoint_interval: Count = 5000
    """Steps between checkpoints. Training also saves at the end of each stage and of the run. A stage may set its own
    interval."""
    keep_checkpoints: Annotated[Count | None, NOTHING] = None
    """Keep only the newest N checkpoints. Default: keep all."""
    log_interval: Annotated[Count, NOTHING] = 10
    """Steps between the lines that training prints. `log.csv` has a row for every step."""
    loader_workers: Annotated[int, Field(ge=0, le=1024), NOTHING] = 2
    """Processes per rank that read samples. 0 reads in the training process."""
    seed: Annotated[int, Field(ge=0, le=4 * 10**9)] = 3407
    """Seed of the random generators of training; each rank adds its number. Order and initial weights have seeds of
    their own."""
    attention: Literal["auto", "flash_attention_2", "cudnn", "sdpa"] = "auto"
    """Attention kernel. `auto` uses flash-attn on CUDA if it is installed, and PyTorch's SDPA otherwise. `cudnn` is
    SDPA with cuDNN's kernel, which may be faster on Hopper; PyTorch does not choose it by itself there."""
    model_class: Literal["decoder", "auto"] = "decoder"
    """`decoder` computes the loss in chunks, without full logits and without a mask where none is needed: for the model
    families of docs/guides/pretrained-model.md. `auto` runs the forward pass of transformers for any other pretrained
    model (`init.hf`), which takes more time and memory."""
    document_mask: bool = False
    """Keep the documents of a sample apart: none attends to another, and positions restart at each. The paper has no
    such mask."""
    compile: bool = False
    """Compile the model with torch.compile. The first step then takes minutes longer."""
    activation_checkpointing: bool = False
    """Recompute the activations of each layer in the backward pass. It saves memory and costs about a third more
    time."""
    shard_ranks: Size | None = None
    """Shard parameters over groups of N ranks and replicate them between groups (hybrid sharding). Use the GPUs of one
    node in a run on many nodes. Default: shard over all ranks."""
    deterministic: bool = False
    """Use only kernels that give the same floats in each run on the same GPUs. Slower. CPU runs are always
    deterministic."""
    outage_limit: Annotated[Count, Field(le=10**9), NOTHING] = 3600
    """Seconds for which training retries a bucket that does not answer. After that it stops."""
    spike_factor: float | None = Field(default=2.0, gt=1)
    """A step is bad if its loss is more than N times the usual loss of its streams, and more than 0.3 nats above it.
    null turns this off. A NaN or infinite loss is always bad."""
    spike_window: Annotated[int, Field(ge=10, le=10**6)] = 100
    """The usual loss of a stream is the median of its last N steps."""
    on_bad_step: Literal["stop", "skip"] = "stop"
    """`stop` ends training before the update of a bad step. `skip` leaves that update out and continues."""
    max_skipped_steps: Annotated[Count, NOTHING] = 10
    """The most steps that one run may skip. The next bad step stops it."""
    tensorboard: Annotated[bool, NOTHING] = False
    """Write TensorBoard event files under OUT/tensorboard."""
    wandb: Annotated[WandbConfig | None, NOTHING] = None
    """Log to Weights & Biases, such as {project: translation}. Default: off."""

    @model_validator(mode="after")
    def _mask_is_taken(self) -> TrainConfig:
        if self.document_mask and self.attention == "cudnn":
            raise ValueError("`attention`: cudnn takes no `document_mask`. Set another kernel, such as auto")
        if self.document_mask and self.model_class == "auto":
            raise ValueError("`model_class`: auto takes no `document_mask`. Set decoder, or leave `document_mask` out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _without_loss(cls, values: object) -> object:
        """Remove `loss`, a setting of earlier versions that the config.yaml of their runs has."""
        if not isinstance(values, dict) or values.get("loss") not in ("chunked", "liger"):
            return values
        if values["loss"] == "liger":
            _say_that_liger_is_gone()
        return {key: value for key, value in values.items() if key != "loss"}


@cache
def _say_that_liger_is_gone() -> None:
    log.warning(
        "train.loss: liger no longer exists, and the built-in loss is used: it is more exact and computes the logits "
        "once, not twice. Remove train.loss"
    )


# A file of pairs (JSON Lines or TSV with a key or heading per language, WMT .xml, a Flores-200 folder), or a file per
# language, plain or .sgm: {en: newstest.en, zh: newstest.zh}
SetPlace = str | dict[str, str]
_Shots = Annotated[int, Field(ge=0, le=MAX_SIZE)]


class EvaluateConfig(Section):
    """Translation of development and test sets, choice of a checkpoint, and reasoning tasks (paper, section 4)."""

    dev: dict[Direction, SetPlace] = {}
    """Development sets by direction; they choose the checkpoint. A set is a file with a key per language (JSON Lines,
    TSV, WMT .xml), a Flores-200 folder, or a file per language: {en: dev.en, zh: dev.zh}."""
    test: dict[Direction, SetPlace] = {}
    """Test sets by direction, in the same formats; they measure the chosen checkpoint."""
    max_sentences: Count | None = None
    """Translate only the first N sentences of each set. Default: all."""
    shots: tuple[_Shots, ...] = Field(default=(0,), min_length=1)  # YAML: num_fewshot
    """Numbers of examples in the prompt; each set is translated once with each. The paper uses [0, 5]."""
    examples: dict[Direction, SetPlace] = {}
    """Sets by direction that the examples in prompts come from. Default: `dev`."""
    choose_by: tuple[Direction, ...] = ()  # YAML: selection_directions
    """Directions whose mean BLEU on `dev`, with the first of `num_fewshot`, chooses the checkpoint. Default: all
    directions of `dev`."""
    beams: Size = 1  # YAML: num_beams
    """Beams of the search. 1 is greedy search."""
    length_penalty: float = 1.0
    """Beam search divides scores by the length to this power. Higher numbers favor longer translations."""
    max_new_tokens: Size = 256
    """The most tokens that a translation may have."""
    max_source_tokens: Size | None = None
    """Cut longer source texts to N tokens, and count them. Default: do not cut."""
    bos: bool | None = None
    """Put the BOS token before each prompt. Default: as in training (the top-level `bos`)."""
    batch_tokens: Size = 16_384
    """Tokens in memory at a time: prompts and new tokens, over all beams. Lower it if memory runs out."""
    bleu_tokenize: dict[str, str] = {}
    """The tokenizer of sacrebleu for a target language, such as {id: flores200}. Default: `zh` for Chinese, `ja-mecab`
    and `ko-mecab` for Japanese and Korean, `13a` otherwise."""
    bootstrap: Annotated[int, Field(ge=0, le=10**6)] = 1000
    """Resamples for the 95 % confidence intervals. 0 computes none."""
    comet: tuple[str, ...] = ()
    """COMET and CometKiwi models that score the translations: folders, or names on the Hugging Face hub."""
    reasoning: tuple[str, ...] = ()
    """Tasks of lm-eval, such as [arc_easy, xcopa_zh]. `paper` selects the 14 scores of the paper."""
    task_folder: str | None = None
    """A folder with lm-eval task files of your own. Default: only the tasks of lm-eval."""

    @model_validator(mode="after")
    def _agrees(self) -> EvaluateConfig:
        if unknown := [direction for direction in self.choose_by if direction not in self.dev]:
            raise ValueError(f"`choose_by`: {unknown[0]} is not a direction of `dev`: {', '.join(self.dev) or 'none'}")
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"`shots`: {list(self.shots)} has a number twice")
        return self
