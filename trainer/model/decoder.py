"""The decoder without its loss. Needs no Composer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, LlamaConfig, PretrainedConfig, PreTrainedModel

from dataengine.config.pretrained import PretrainedModel
from dataengine.config.training import ModelConfig
from dataengine.errors import InputError
from dataengine.hardware.sizes import embedding_rows
from dataengine.schedule.manifest import Manifest
from trainer.checkpoints.load import load_checkpoint
from trainer.checkpoints.marker import Checkpoint
from trainer.compat import no_init_weights, with_rotary_base
from trainer.model.families import needs_eager

log = logging.getLogger(__name__)
_PREFIX = "decoder.hf."  # of the weights' names in a checkpoint: `TranslationModel.decoder`, `PackedDecoder.hf`


def empty_model(config: ModelConfig, manifest: Manifest) -> PreTrainedModel:
    """Return a model with uninitialized weights, to load a checkpoint into."""
    return new_model(model_config(config, manifest, "sdpa"))


def load_weights(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Read the weights of a sharded checkpoint, written by any number of ranks, into a model on one process."""
    weights = {_PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    load_checkpoint({"state": {"model": weights}}, checkpoint, no_dist=True)


def load_average(model: PreTrainedModel, checkpoints: Sequence[Checkpoint]) -> None:
    """Read the mean of several checkpoints' weights into a model, one tensor of one checkpoint at a time.

    The sums are float64, in the order of the checkpoints, and the means are rounded once.
    """
    for name, tensor in model.state_dict().items():
        total = torch.zeros(tensor.shape, dtype=torch.float64)
        for checkpoint in checkpoints:
            weights = torch.empty_like(tensor)
            load_checkpoint({"state": {"model": {_PREFIX + name: weights}}}, checkpoint, no_dist=True)
            total += weights
        tensor.copy_(total / len(checkpoints))


def new_model(config: PretrainedConfig) -> PreTrainedModel:
    """Return a model with uninitialized weights; tied weights are tied."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with no_init_weights():
        hf = kind(config)
    hf.tie_weights()  # no_init_weights leaves this out too
    return cast(PreTrainedModel, hf)


def model_config(config: ModelConfig, manifest: Manifest, attention: str) -> PretrainedConfig:
    """Return the config of transformers; `attention` names the attention implementation."""
    if isinstance(config, PretrainedModel):
        return pretrained_config(config, attention)
    return llama_config(config, manifest, attention)


def pretrained_config(model: PretrainedModel, attention: str) -> PretrainedConfig:
    """Return the config of a pretrained model, from its config.json. `sdpa` becomes `eager` where scores are capped.

    Raises InputError for a type of model that this version of transformers does not have as a decoder.
    """
    if model.type not in CONFIG_MAPPING:
        raise InputError(f"{_unknown(model)}: this version of transformers has no such model. {_NO_CODE}")
    kind: Any = CONFIG_MAPPING[model.type]
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{_unknown(model)}: transformers has no causal language model of this type. {_NO_CODE}")
    found: PretrainedConfig = kind.from_dict(with_rotary_base(model.base))
    if attention.startswith("sdpa") and needs_eager(found):
        log.info("attention: eager (%s caps its attention scores, which SDPA cannot do; flash-attn can)", model.type)
        attention = "eager"
    found._attn_implementation = attention
    return found


_NO_CODE = "Code that a model brings along is never run: give a model of a type that transformers has."


def _unknown(model: PretrainedModel) -> str:
    return f"the pretrained model is of type '{model.type}'"


def llama_config(config: ModelConfig, manifest: Manifest, attention: str) -> LlamaConfig:
    """Return the config of transformers for new weights; `attention` names the attention implementation."""
    sizes: dict[str, Any] = config.model_dump(exclude={"init_seed"})
    return LlamaConfig(
        **sizes,
        vocab_size=embedding_rows(manifest.vocab_size),
        max_position_embeddings=manifest.seq_len,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=manifest.eos_id,
        pad_token_id=None,
    )
