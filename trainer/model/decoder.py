"""The decoder without its loss. Needs no Composer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataengine.config.training import ModelConfig
from dataengine.hardware.sizes import embedding_rows
from dataengine.schedule.manifest import Manifest
from trainer.checkpoints.load import load_checkpoint
from trainer.checkpoints.marker import Checkpoint
from trainer.compat import no_init_weights

_PREFIX = "decoder.hf."  # of the weights' names in a checkpoint: `TranslationModel.decoder`, `PackedDecoder.hf`


def empty_model(config: ModelConfig, manifest: Manifest) -> LlamaForCausalLM:
    """Return a model with uninitialized weights, to load a checkpoint into."""
    return new_model(llama_config(config, manifest, "sdpa"))


def load_weights(model: LlamaForCausalLM, checkpoint: Checkpoint) -> None:
    """Read the weights of a sharded checkpoint, written by any number of ranks, into a model on one process."""
    weights = {_PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    load_checkpoint({"state": {"model": weights}}, checkpoint, no_dist=True)


def load_average(model: LlamaForCausalLM, checkpoints: Sequence[Checkpoint]) -> None:
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


def new_model(config: LlamaConfig) -> LlamaForCausalLM:
    """Return a model with uninitialized weights; tied weights are tied."""
    with no_init_weights():
        hf = LlamaForCausalLM(config)
    hf.tie_weights()  # no_init_weights leaves this out too
    return hf


def llama_config(config: ModelConfig, manifest: Manifest, attention: str) -> LlamaConfig:
    """Return the config of transformers; `attention` names the attention implementation."""
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
